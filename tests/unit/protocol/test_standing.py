"""What is said of a node, from what the coordinator knows of it."""

from datetime import UTC, datetime, timedelta

import pytest

from ostler.model.node import NodeState
from ostler.protocol.messages import NodeView, Outside
from ostler.protocol.standing import Severity, standing

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def node(state=NodeState.READY, **facts):
    return NodeView(
        **{
            "node_id": "n1", "state": state, "version": "1.2.0", "protocol": 1, "boot_epoch": "b", "joined_at": NOW,
            "last_seen_at": NOW, **facts,
        }
    )  # fmt: skip


@pytest.mark.parametrize(
    ("view", "severity", "word", "story"),
    [
        (node(), Severity.GOOD, "ready", None),
        (node(NodeState.JOINING), Severity.GOOD, "joining", None),
        (node(NodeState.LOST), Severity.BAD, "lost", "`ostler node retire n1`"),
        (node(NodeState.UNKNOWN, reason="no sign of life for 30 s"), Severity.BAD, "unknown", "for 30 s, it keeps its jobs"),
        (node(draining=True, quarantine="/j: is read-only"), Severity.BAD, "quarantined", "/j: is read-only: mend the machine"),
        (node(quarantine="old news"), Severity.GOOD, "ready", None),
        (node(NodeState.DRAINED, reason="new disk"), Severity.WISHED, "drained", "new disk: `ostler node resume n1`"),
        (node(NodeState.DRAINING), Severity.WISHED, "draining", "no reason given: `ostler node resume n1`"),
        (node(draining=True), Severity.WISHED, "draining", "drained on the machine: `ostler node resume` there"),
        (node(cordoned=True, cordon_reason="odd"), Severity.WISHED, "cordoned", "odd: `ostler node uncordon n1`"),
        (node(outside=Outside.OLDER), Severity.BAD, "outside", "older than the coordinator's: what it runs goes on"),
        (node(NodeState.LOST, outside=Outside.OLDER), Severity.BAD, "outside", "nothing new: `ostler fleet update --host n1`"),
        (node(outside=Outside.NEWER), Severity.BAD, "outside", "upgrade the coordinator, or with its release `ostler fleet"),
        (node(outside=Outside.OLDER, last_seen_at=NOW - timedelta(hours=1)), Severity.BAD, "outside", "silent, and when last"),
        (node(NodeState.RETIRED, outside=Outside.OLDER), Severity.GONE, "retired", None),
        (node(last_seen_at=None), Severity.WARN, "ready", "not heard of since"),
        (node(last_seen_at=NOW - timedelta(seconds=100)), Severity.WARN, "ready", "not heard of for 100 s"),
        (node(version="1.1.9"), Severity.WARN, "ready", "runs 1.1.9, the coordinator 1.2.0rc1"),
        (node(version="unheard of"), Severity.WARN, "ready", "runs unheard of"),
        (node(version="1.10"), Severity.GOOD, "ready", None),
        (node(disk_free_mb=100), Severity.WARN, "ready", "100 MB of disk are left"),
        (node(health=("disk_full /: nearly",)), Severity.WARN, "ready", "disk_full /: nearly"),
        (node(NodeState.RETIRED, reason="sold"), Severity.GONE, "retired", "sold"),
    ],
)
def test_the_worst_of_it(view, severity, word, story):
    found = standing(view, release="1.2.0rc1", now=NOW)
    assert (found.severity, found.word) == (severity, word)
    assert found.story == story if story is None else story in found.story


def test_what_a_person_wished_hides_no_fault():
    """A node that is cordoned and lost is lost."""
    assert standing(node(NodeState.LOST, cordoned=True), now=NOW).word == "lost"
