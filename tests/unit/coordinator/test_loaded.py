"""What a coordinator loads at its start: what only some need is loaded by those alone."""

import subprocess
import sys

NOT_NEEDED = ("yaml", "pygments", "rich", "httpx", "cryptography.x509", "alembic", "typer", "psycopg")


def test_a_plain_coordinator_loads_only_what_it_runs():
    code = f"import sys, ostler.assembly.coordinator; print([name for name in {NOT_NEEDED} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
