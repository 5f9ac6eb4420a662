"""The table of nodes: what is wrong first, each with the command that mends it."""

from collections import Counter
from collections.abc import Sequence

from ostler.cli import output
from ostler.model.node import NodeState
from ostler.model.words import many
from ostler.protocol.messages import NodeView
from ostler.protocol.standing import Severity, standing

# SLOTS are those for jobs without a GPU and those with one; GPU BUSY counts cards on which anything computes, ours or not.
MOST_NAMED = 5  # releases
COLUMNS = "NODE~|STATE|POOL?|JOBS>|SLOTS?>|GPU BUSY?>|LOAD?>|MEMORY?>|DISK?>|SEEN>|VERSION?|WHY+"


def show(nodes: Sequence[NodeView], release: str) -> None:
    """Print it, and how many nodes are not well."""
    rows = [(one, standing(one, release=release)) for one in nodes]
    rows.sort(key=lambda row: (-row[1].severity, row[0].node_id))
    output.table(
        output.columns(COLUMNS),
        [
            (
                one.node_id, about.word, one.pool, len(one.attempts), f"{one.cpu_slots}+{one.gpu_slots}",
                f"{max(0, one.gpu_slots - one.gpu_free)}/{one.gpu_slots}" if one.gpu_slots else None,
                f"{one.load:.2f}", output.size(one.free_mb * 2**20),
                None if one.disk_free_mb is None else output.size(one.disk_free_mb * 2**20),
                output.ago(one.last_seen_at), _runs(one), about.story,
            )
            for one, about in rows
        ],
        empty="no nodes",
    )  # fmt: skip
    bad = sum(about.severity >= Severity.WARN for _, about in rows)
    if bad:
        output.note(f"{bad} of {many(len(rows), 'node')} {'is' if bad == 1 else 'are'} not well")
    runs = Counter(_runs(one) for one in nodes if one.state is not NodeState.RETIRED)
    if len(runs) > 1:
        counts = ", ".join(f"{name} ({count} node{'' if count == 1 else 's'})" for name, count in runs.most_common(MOST_NAMED))
        output.note(output.clean(f"{len(runs)} releases are in force: {counts}"))


def _runs(node: NodeView) -> str:
    """The release that it was installed in, or else the version of what it runs."""
    return node.release or node.version
