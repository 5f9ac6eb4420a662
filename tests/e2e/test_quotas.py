"""Quotas and retention as people meet them: a submitter at their limits on the command line, and a log that was removed."""

import json
from datetime import UTC, datetime

from e2e.fleet import until
from ostler.model.array import child_id


def as_person(fleet, name):
    """The same set, seen with a submitter's token."""
    made = fleet.cli("token", "create", "--role", "submitter", "--name", name)
    assert made.returncode == 0, made.stderr
    other = object.__new__(type(fleet))
    other.__dict__ |= {**fleet.__dict__, "env": fleet.env | {"OSTLER_TOKEN": made.stdout.strip()}}
    return other


def test_a_submitter_at_the_limits(fleet):
    set_ = fleet.cli("quota", "set", "ann", "--queued", "2", "--running", "1", "--cpu-hours", "1")
    assert "0 / 2" in set_.stdout, set_.stderr
    assert "no token bears the name ann yet" in set_.stderr
    ann = as_person(fleet, "ann")
    assert fleet.cli("quota", "set", "ann", "--queued", "2").stderr == ""
    first = ann.cli("job", "submit", "-", stdin='{"command": "sleep", "args": ["600"]}')
    assert (first.returncode, first.stderr) == (0, ""), first.stderr
    until(lambda: fleet.job(first.stdout.strip())["state"] == "running")
    second = ann.cli("job", "submit", "-", stdin='{"command": "true", "array": 2}')
    assert (second.returncode, second.stderr) == (0, "warning: ann has 2 of 2 jobs waiting\n")
    refused = ann.cli("run", "--", "true")
    assert refused.returncode == 3
    assert "error: ann has 2 of 2 jobs waiting, so 1 more is too many; nothing was submitted" in refused.stderr
    assert "hint: wait until some have begun, or cancel some" in refused.stderr
    group = second.stdout.split()[1].rstrip(":")
    assert "it waits: ann runs 1 of 1 jobs at once" in ann.cli("job", "explain", child_id(group, 0)).stdout
    view = json.loads(ann.cli("quota", "--json").stdout)
    assert (view["principal"], view["used"]["queued"], view["used"]["running"]) == ("ann", 2, 1)
    assert view["used"]["cpu_hours"] > 0
    assert datetime.fromisoformat(view["resets_at"]) > datetime.now(UTC)
    denied = ann.cli("quota", "set", "ann", "--queued", "1000")
    assert denied.returncode == 3
    assert ann.cli("quota", "show", "bob").returncode == 3
    ann.cli("job", "cancel", first.stdout.strip())
    assert ann.cli("job", "wait", group, "--timeout", "60").returncode == 0
    told = json.loads(ann.cli("events", "--kind", "quota_warning", "--json").stdout.splitlines()[0])
    assert told["message"] == "ann has 2 of 2 jobs waiting"


def test_used_hours_end_at_a_clear_refusal(fleet):
    eve = as_person(fleet, "eve")
    assert eve.cli("run", "--", "true").returncode == 0
    fleet.cli("quota", "set", "eve", "--cpu-hours", "0.000001")  # less than that was
    refused = eve.cli("run", "--", "true")
    assert refused.returncode == 3
    assert "of 0.000001 CPU hours in 20" in refused.stderr
    assert "the next month begins at 20" in refused.stderr
    fleet.cli("quota", "set", "eve", "--cpu-hours", "none")
    assert eve.cli("run", "--", "true").returncode == 0
    mistakes = fleet.cli("quota", "set", "eve", "--cpu-hours", "many")
    assert (mistakes.returncode, "neither a number of hours nor" in " ".join(mistakes.stderr.split())) == (2, True), (
        mistakes.stderr
    )


def test_a_log_that_was_removed(own_fleet):
    fleet = own_fleet(settings={"OSTLER_COORDINATOR__RETENTION__LOGS": "1ms"})
    with fleet:
        done = fleet.cli("run", "--label", "a=b", "--", "echo", "soon gone")
        assert done.stdout == "soon gone\n", done.stderr
        job_id = json.loads(fleet.cli("job", "list", "--label", "a=b", "--json").stdout)["items"][0]["job_id"]
        assert f"{job_id}  logs" in fleet.cli("retention", "--dry-run").stdout
        assert fleet.cli("retention", "--now").stdout == "removed: 1 logs (10 B)\n"
        read = fleet.cli("job", "logs", job_id)
        assert (read.returncode, read.stdout) == (3, "")
        assert f"error: the logs of job {job_id} were removed at 20" in read.stderr
        assert "UTC: older than 1ms" in read.stderr
        assert json.loads(fleet.cli("job", "show", job_id, "--json").stdout)["state"] == "done"
