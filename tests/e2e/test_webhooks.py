"""Webhooks on the installed command line: kill -9 of the coordinator between deliveries loses nothing."""

import json

import pytest

from e2e.fleet import Fleet, until
from integration.receiver import Receiver, documented_check


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A coordinator that no node has joined, and that may call this machine."""
    settings = {"OSTLER_COORDINATOR__WEBHOOKS__ALLOW_PRIVATE": "true"}
    with Fleet(tmp_path_factory.mktemp("alone") / "data", args=("--no-node",), settings=settings) as running:
        yield running


def test_kill_9_between_deliveries_loses_nothing(alone):
    with Receiver() as receiver:
        made = json.loads(alone.cli("webhook", "add", receiver.url, "--kind", "submit", "--json").stdout)
        submitted = []
        for _ in range(3):
            receiver.answer = lambda _: 200 if len(receiver.got) % 3 else 0  # now and then the answer is lost
            submitted += [alone.submit({"command": "true"}) for _ in range(20)]
            until(lambda: receiver.got, what="a delivery")
            alone.kill("coordinator")
            alone.get("/version")
        receiver.answer = 200
        assert alone.cli("webhook", "enable", made["webhook_id"]).stdout == f"{made['webhook_id']} is enabled\n"
        until(lambda: {one["job_id"] for one in receiver.taken} == set(submitted), what="every event taken")
        seen = list(dict.fromkeys(one["job_id"] for one in receiver.taken))
        assert seen == submitted, "in order, once what came twice is left out"
        is_genuine = documented_check()
        assert all(is_genuine(made["secret"], headers["Ostler-Signature"], body) for _, headers, body, _ in receiver.got)
        listed = alone.cli("webhook", "list").stdout.splitlines()[1].split()
        assert listed[:2] == [made["webhook_id"], "(everything)"]
        assert alone.cli("webhook", "test", made["webhook_id"]).stdout == "delivered: answered 200\n"
        receiver.answer = 404
        failed = alone.cli("webhook", "test", made["webhook_id"])
        assert (failed.returncode, failed.stdout) == (1, "not delivered: answered 404\n")
        assert alone.cli("webhook", "rm", made["webhook_id"]).returncode == 0
    assert alone.cli("webhook", "list").stderr == "no webhooks\n"


def test_a_receiver_that_was_away_gets_what_it_missed(alone):
    with Receiver() as receiver:
        made = json.loads(alone.cli("webhook", "add", receiver.url, "--kind", "submit", "--json").stdout)
        port = int(receiver.url.rpartition(":")[2])
    missed = [alone.submit({"command": "true"}) for _ in range(3)]
    until(lambda: json.loads(alone.cli("webhook", "list", "--json").stdout)["items"][0]["failures"], what="a failed delivery")
    assert "no connection" in alone.cli("webhook", "list").stdout
    with Receiver(port) as receiver:
        assert alone.cli("webhook", "enable", made["webhook_id"]).returncode == 0
        until(lambda: len(receiver.taken) >= 3, what="what was missed")
        assert [one["job_id"] for one in receiver.taken] == missed
    assert alone.cli("webhook", "rm", made["webhook_id"]).returncode == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["webhook", "add", "ftp://x"], "url: must begin with https://"),
        (["webhook", "add", "https://example.org", "--kind", "bogus"], "kind: bogus is unknown"),
        (["webhook", "rm", "w-none"], "there is no webhook w-none"),
        (["webhook", "test", "w/none"], "must not hold '/'"),
    ],
)
def test_mistakes_are_told(alone, words, said):
    done = alone.cli(*words)
    assert (done.returncode, said in done.stderr) == (3, True), done.stderr
