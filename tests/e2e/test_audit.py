"""`ostler audit` on the installed command line: by asking the coordinator, and over the database alone."""

import json
import sqlite3
from contextlib import closing

import pytest

from e2e.fleet import Fleet, until

ANYBODYS = "WGZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmY="  # a public key that is no coordinator's: the curve's base point


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A coordinator that no node has joined."""
    with Fleet(tmp_path_factory.mktemp("alone") / "data", args=("--no-node",)) as running:
        yield running


def verified(fleet, *args):
    done = fleet.cli("audit", "verify", "--json", *args)
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout)


def test_the_log_is_listed_and_verifies_online_and_offline(alone, tmp_path):
    job_id = alone.submit({"command": "true"})
    assert alone.cli("job", "cancel", job_id).returncode == 0
    listed = alone.cli("audit", "list", "--target", job_id)
    assert listed.stdout.splitlines()[1].split()[3:8] == ["admin", "admin", "cancel_job", job_id, "200"]
    assert json.loads(alone.cli("audit", "list", "--json", "--limit", "1").stdout)["items"][0]["action"] == "cancel_job"
    until(lambda: verified(alone)[1]["unsealed"] == 0, what="everything sealed")
    code, said = verified(alone)
    assert (code, said["findings"], said["rows"] >= 2) == (0, [], True)
    assert "rows under" in alone.cli("audit", "verify", "--head", said["head"]).stdout
    database, key = alone.data / "ostler.db", said["key"]
    here = verified(alone, "--database", database, "--key", key, "--head", said["head"])
    assert here == (0, {**said, "head_found": True})
    assert verified(alone, "--head", "00" * 32)[0] == 1

    copy = tmp_path / "copy.db"
    with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    with closing(sqlite3.connect(copy)) as connection, connection:
        [(row,)] = connection.execute("SELECT id FROM audit WHERE action = 'cancel_job'")
        connection.execute("UPDATE audit SET principal = 'admim' WHERE id = ?", (row,))
    before = sorted(tmp_path.iterdir())
    done = alone.cli("audit", "verify", "--database", copy, "--key", key)
    assert sorted(tmp_path.iterdir()) == before  # nothing is written beside a copy, which may lie where nobody can
    assert done.returncode == 1
    assert done.stdout.splitlines()[0] == f"row {row} was changed after it was sealed"
    code, other = verified(alone, "--database", database, "--key", ANYBODYS)
    assert code == 1
    assert "not signed by the coordinator's key" in other["findings"][0]["message"]

    alone.kill("coordinator")
    alone.get("/version")
    alone.submit({"command": "true"})
    until(lambda: verified(alone)[1]["unsealed"] == 0, what="everything sealed")
    code, later = verified(alone, "--head", said["head"])
    assert (code, later["head_found"], later["rows"] > said["rows"]) == (0, True, True)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["audit", "verify", "--database", "x"], 2, "belong together"),
        (["audit", "verify", "--database", "/none/such", "--key", ANYBODYS], 3, "is not a file"),
        (["audit", "verify", "--database", __file__, "--key", ANYBODYS], 3, "cannot be read as a coordinator's database"),
        (["audit", "verify", "--database", __file__, "--key", "x"], 2, "is not an Ed25519 public key"),
        (["audit", "verify", "--head", "x"], 3, "64 hexadecimal digits"),
        (["audit", "list", "--since", "soon"], 2, "is not a duration"),
    ],
)
def test_mistakes_are_told(alone, words, code, said):
    done = alone.cli(*words)
    assert done.returncode == code, done.stderr
    assert said in " ".join(done.stderr.replace("│", "").split())
    assert "Traceback" not in done.stderr
