"""What `ostler top` shows: one reading after the other, and each as lines that fit the terminal."""

import sys
import time
from collections.abc import Iterator, Sequence
from datetime import datetime

from rich.console import Console
from rich.live import Live
from rich.text import Text

from ostler.cli import output
from ostler.cli.session import Session
from ostler.model.errors import Unavailable
from ostler.protocol import routes
from ostler.protocol.messages import Overview
from ostler.protocol.standing import Severity, standing
from ostler.runtime.backoff import Backoff

ANSWER_S = 5.0  # a line that broke without a word is noticed after so long
MOST_PAUSE_S = 5.0
_FAILURES = 5
_LINES = 40  # of nodes and of queues each, where no terminal says how many fit


Reading = tuple[Overview, str | None]


def readings(session: Session, seen: Overview, every: float) -> Iterator[Reading]:
    """What was last seen and, while the coordinator does not answer, why. Raises Rejected, such as for a token that was revoked."""
    backoff = Backoff(min_s=min(every, 0.2), max_s=max(every, MOST_PAUSE_S))
    yield seen, None
    pause = every
    while True:
        time.sleep(pause)
        try:
            seen = session.call(routes.OVERVIEW, timeout_s=ANSWER_S)
        except Unavailable as exc:
            pause = backoff.next_s()
            yield seen, exc.message
        else:
            backoff.reset()
            pause = every
            yield seen, None


def screen(reads: Iterator[Reading], release: str) -> None:
    """Show them on the terminal's other screen, which is given back at the end."""
    console = Console(highlight=False)
    with Live(console=console, screen=True, auto_refresh=False) as live:
        for seen, trouble in reads:
            width, height = console.size
            lines = page(seen, release=release, width=width, height=height, trouble=trouble)
            live.update(Text.from_ansi("\n".join(lines), no_wrap=True, overflow="crop"), refresh=True)


def plain(reads: Iterator[Reading], release: str) -> None:
    """Print one after the other, for what is no terminal."""
    told: str | None = None
    for seen, trouble in reads:
        if trouble is None:
            output.say("\n".join([*page(seen, release=release), ""]))
        elif told is None:
            output.say(output.clean(f"reconnecting… {trouble}"))
        sys.stdout.flush()
        told = trouble


def page(
    seen: Overview, *, release: str, width: int | None = None, height: int | None = None, trouble: str | None = None
) -> list[str]:
    """All lines of one reading; at most `height` of at most `width` columns."""
    nodes = [(one, standing(one.node, release=release, now=seen.at)) for one in seen.nodes]
    nodes.sort(key=lambda row: (-row[1].severity, row[0].node.node_id))
    bad = sum(about.severity >= Severity.WARN for _, about in nodes)
    running = sum(one.running for one in seen.queues)
    queued, more = sum(one.queued for one in seen.queues), any(one.more for one in seen.queues)
    count = f"{len(nodes)} node{'' if len(nodes) == 1 else 's'}"
    head = [
        f"{_moment(seen.at)}  {count}, {bad} not well  {running} running, {queued}{'+' if more else ''} queued",
        output.paint(output.clean(f"reconnecting… {trouble}"), "warn") if trouble is not None else "",
    ]
    failures = [
        (one.job_id, one.owner, one.failure.code.value if one.failure else None, output.ago(one.finished_at, seen.at),
         one.failure.message if one.failure else None)
        for one in seen.failures[:_FAILURES]
    ]  # fmt: skip
    below = ["", *_table("FAILED|OWNER|CODE|AGO?>|WHY~", failures, width, _FAILURES)] if failures else []
    # What is left of the height goes to the queues, a third at most, and to the nodes.
    left = None if height is None else max(4, height - len(head) - len(below) - 1)
    loads = [
        (one.owner, one.queue, one.running, f"{one.queued}{'+' if one.more else ''}")
        for one in sorted(seen.queues, key=lambda one: (-one.running, -one.queued, one.owner or ""))
    ]
    queues = (
        ["", *_table("OWNER|QUEUE|RUNNING>|QUEUED>", loads, width, _LINES if left is None else max(2, left // 3))]
        if loads
        else []
    )
    rows = [
        (
            one.node.node_id, about.word, one.node.pool, one.jobs, f"{one.node.cpu_slots}+{one.node.gpu_slots}",
            f"{max(0, one.node.gpu_slots - one.node.gpu_free)}/{one.node.gpu_slots}" if one.node.gpu_slots else None,
            f"{one.node.load:.2f}", output.size(one.node.free_mb * 2**20), output.ago(one.node.last_seen_at, seen.at), about.story,
        )
        for one, about in nodes
    ]  # fmt: skip
    room = _LINES if left is None else max(2, left - len(queues))
    lines = [
        *head,
        *_table("NODE~|STATE|POOL?|JOBS>|SLOTS?>|GPU BUSY?>|LOAD?>|MEMORY?>|SEEN>|WHY~", rows, width, room),
        *queues,
        *below,
    ]
    return lines if height is None else lines[:height]


def _table(columns: str, rows: Sequence[Sequence[object]], width: int | None, most: int) -> list[str]:
    """At most `most` lines: those of the rows that do not fit are counted in the last one."""
    if not rows:
        return ["no nodes"]
    shown = rows if len(rows) < most else rows[: max(1, most - 2)]
    cells = [["-" if cell is None or cell == "" else output.clean(str(cell)) for cell in row] for row in shown]
    rest = [f"… and {len(rows) - len(shown)} more"] if len(shown) < len(rows) else []
    return [*output.layout(output.columns(columns), cells, width), *rest]


def _moment(at: datetime) -> str:
    return at.astimezone().strftime("%H:%M:%S")
