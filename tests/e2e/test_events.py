"""`ostler events` on the installed command line: through kill -9 of the coordinator and Ctrl-C, every event once."""

import json
import signal
import subprocess

import pytest

from e2e.fleet import OSTLER, Fleet, until


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A coordinator that no node has joined."""
    with Fleet(tmp_path_factory.mktemp("alone") / "data", args=("--no-node",)) as running:
        yield running


class Following:
    """`ostler events -f` as a process whose lines go to a file."""

    def __init__(self, fleet, tmp_path, *args):
        self.out, self.err = tmp_path / "events.out", tmp_path / "events.err"
        with self.out.open("w") as out, self.err.open("w") as err:
            self.process = subprocess.Popen([OSTLER, "events", "-f", *args], stdout=out, stderr=err, env=fleet.env)

    def lines(self):
        return [json.loads(line) for line in self.out.read_text().splitlines() if line]

    def interrupt(self):
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(20)


def test_following_through_kill_9_of_the_coordinator(alone, tmp_path):
    following = Following(alone, tmp_path, "--since", "1h", "--kind", "submit", "--kind", "cancel", "--json")
    submitted = []
    for _ in range(3):
        for _ in range(5):
            submitted.append(alone.submit({"command": "true"}))
        until(lambda: len(following.lines()) >= len(submitted) - 2, what="most of what was submitted told")
        alone.kill("coordinator")
        alone.get("/version")
    submitted.append(alone.submit({"command": "true"}))
    until(lambda: len(following.lines()) >= len(submitted), what="all that was submitted told")
    assert following.interrupt() == 130
    assert following.err.read_text() == ""
    told = following.lines()
    assert [one["job_id"] for one in told if one["kind"] == "submit"] == submitted
    assert len({one["cursor"] for one in told}) == len(told)
    again = alone.cli("events", "--json", "--kind", "submit", "--after", told[-3]["cursor"])
    assert [json.loads(line)["job_id"] for line in again.stdout.splitlines()] == submitted[-2:]


def test_what_happened_is_listed(alone):
    job_id = alone.submit({"command": "true"})
    assert alone.cli("job", "cancel", job_id).returncode == 0
    done = alone.cli("events", "--job", job_id)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[2:4] for line in done.stdout.splitlines()] == [["submit", job_id], ["cancel", job_id]]
    assert alone.cli("events", "--job", job_id, "--kind", "cancel", "--since", "10m").stdout.count("\n") == 1
    assert alone.cli("events", "--node", "n-none").stdout == ""


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--kind", "bogus"], 3, "kind: bogus is unknown; there are"),
        (["--after", "x y"], 3, "cursor"),
        (["--after", "x", "--since", "1h"], 2, "give one"),
        (["--since", "soon"], 2, "is not a duration"),
        (["-f", "--job", "nope"], 3, "there is no job nope"),
    ],
)
def test_mistakes_are_told(alone, words, code, said):
    done = alone.cli("events", *words)
    assert done.returncode == code
    assert said in done.stderr.replace("│", "")
    assert "Traceback" not in done.stderr
