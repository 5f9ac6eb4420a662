"""A release is a virtual environment (source: PEP 405) of the Python that runs this program."""

import sys
from pathlib import Path

PYTHON, SETTINGS = "bin/python", "pyvenv.cfg"


def base() -> Path:
    """What a release's own `bin/python` refers to."""
    return Path(sys.executable).resolve()


def settings() -> str:
    """The text beside it."""
    return f"home = {base().parent}\ninclude-system-site-packages = false\n"
