"""How one job is shown: what it is, how each attempt went and where its time went, what happened when, what it delivered."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from ostler.cli import output
from ostler.cli.watch import advice
from ostler.model.dependencies import Until
from ostler.model.job import TERMINAL
from ostler.protocol.messages import AttemptView, DependencyView, EventView, GroupView, JobView

MAX_SHOWN = 100  # dependencies in one answer; those that are not over come first


def print_job(view: JobView, now: datetime | None = None) -> None:
    """The whole page."""
    now = now or datetime.now(UTC)
    output.fields(_head(view, now))
    for title, some in (("DEPENDS ON", view.depends_on), ("IS WAITED FOR BY", view.dependents)):
        if some:
            output.say()
            output.table(output.columns(f"{title}|STATE|UNTIL|OTHERWISE"), map(_dependency_row, some))
    if view.attempts:
        output.say()
        _attempts(view, now)
    if view.timeline:
        output.say()
        _timeline(view.timeline)
    if view.artifacts:
        output.say()
        rows = [(one.path, output.size(one.size), one.type) for one in view.artifacts]
        output.table(output.columns("ARTIFACT~|SIZE>|TYPE~"), rows)


def print_group(view: GroupView, now: datetime | None = None) -> None:
    """An array or a group: how it stands, and the first few jobs that failed."""
    now = now or datetime.now(UTC)
    output.fields(
        [
            ("array" if view.array else "group", view.group_id),
            ("state", view.state.value),
            ("jobs", f"{view.count}: {output.tally(view.counts)}"),
            *_times(view, now),
        ]
    )
    if view.failures:
        output.say()
        rows = [(one.job_id, one.state.value, one.exit_code, *_why(one)) for one in view.failures]
        output.table(output.columns("FIRST THAT FAILED|STATE|EXIT>|CODE|WHY~"), rows)


def _dependency_row(one: DependencyView) -> tuple[object, ...]:
    return one.job_id, one.state.value, one.until.value, one.otherwise.value if one.until is Until.SUCCESS else None


def _why(view: JobView) -> tuple[str | None, str | None]:
    return (view.failure.code.value, view.failure.message) if view.failure else (None, None)


def _times(view: JobView | GroupView, now: datetime) -> Iterator[tuple[str, object]]:
    yield "submitted", f"{view.submitted_at.astimezone():%Y-%m-%d %H:%M:%S} ({output.ago(view.submitted_at, now)} ago)"
    yield "took", output.span((view.finished_at - view.submitted_at).total_seconds()) if view.finished_at else None


def _head(view: JobView, now: datetime) -> Iterator[tuple[str, object]]:
    yield "job", view.job_id
    yield "state", view.state.value
    yield "held", "yes: `ostler job release` lets it go on" if view.held else None
    start = view.not_before if view.waiting else None
    yield "waits until", f"{start.astimezone():%Y-%m-%d %H:%M:%S}" if start is not None and start > now else None
    open_ones = sum(one.state not in TERMINAL for one in view.depends_on)
    yield (
        "waits for",
        f"{open_ones}{'' if open_ones < MAX_SHOWN else ' or more'} of the jobs that it depends on" if open_ones else None,
    )
    yield "cancel", "asked for" if view.cancel_requested and view.finished_at is None else None
    yield "what", view.title
    yield "runner", view.runner.value
    yield "queue", f"{view.queue}, priority {view.priority}"
    yield "labels", ", ".join(f"{key}={value}" for key, value in sorted(view.labels.items()))
    yield "node", view.node_id
    yield from _times(view, now)
    yield "tries", f"{view.tries} (attempt {view.attempt})" if view.attempt else None
    yield "next try", f"in {output.span((view.due_at - now).total_seconds())}" if view.due_at else None
    yield (
        "expires",
        f"in {output.span((view.expires_at - now).total_seconds())}" if view.expires_at and not view.finished_at else None,
    )
    yield "progress", " ".join(filter(None, (f"{view.pct:.0f} %" if view.pct is not None else None, view.note)))
    yield "exit code", view.exit_code
    yield "signal", view.signal
    yield "retry of", view.retry_of
    yield "group" if view.manifest is not None and view.manifest.get("array_index") is None else "array", view.group_id
    if view.failure is not None:
        yield "failure", f"{view.failure.code.value}: {view.failure.message}"
        yield "what to do", advice(view.failure.code, view.job_id)


def _attempts(view: JobView, now: datetime) -> None:
    columns = output.columns("ATTEMPT>|STATE|NODE~|TIME IN EACH STATE~|CPU>|PEAK MEMORY>|READ>|WRITTEN>|SANDBOX|END~")
    output.table(columns, [_attempt_row(one, view.timeline, now) for one in view.attempts])


def _attempt_row(one: AttemptView, timeline: Sequence[EventView], now: datetime) -> tuple[object, ...]:
    usage = one.usage
    end = one.failure.code.value if one.failure else f"signal {one.signal}" if one.signal else None
    if end is None and one.exit_code is not None:
        end = f"exit {one.exit_code}"
    times = " ".join(f"{state} {output.span(seconds)}" for state, seconds in time_in_states(one, timeline, now))
    if usage is None:
        return one.attempt, one.state.value, one.node_id, times, None, None, None, None, one.sandbox, end
    return (
        one.attempt, one.state.value, one.node_id, times, output.span(usage.cpu_user_s + usage.cpu_system_s),
        output.size(usage.peak_memory_mb * 2**20), output.size(usage.read_bytes), output.size(usage.written_bytes),
        one.sandbox, end,
    )  # fmt: skip


def time_in_states(one: AttemptView, timeline: Sequence[EventView], now: datetime) -> list[tuple[str, float]]:
    """(state, seconds) in order: by what the node measured once the attempt is over, else by the timeline."""
    acked = one.acked_at or one.finished_at or now
    found = [("leased", (acked - one.leased_at).total_seconds())]
    if one.acked_at is None:
        return found
    usage = one.usage
    if usage is not None and (usage.wall_s or usage.prepare_s or usage.upload_s):
        parts = (("preparing", usage.prepare_s), ("running", usage.wall_s), ("uploading", usage.upload_s))
        return found + [(state, seconds) for state, seconds in parts if seconds]
    marks = [("acked", one.acked_at)]
    known = {"prepare": "preparing", "start": "running", "upload": "uploading"}
    for event in timeline:
        state = known.get(event.kind, event.kind)
        if event.attempt == one.attempt and state in {"preparing", "running", "uploading"}:
            marks.append((state, event.at))
    ends = [*(at for _, at in marks[1:]), one.finished_at or now]
    return found + [(state, (until - at).total_seconds()) for (state, at), until in zip(marks, ends, strict=True)]


def _timeline(timeline: Sequence[EventView]) -> None:
    rows = [(output.moment(one.at), one.kind, one.attempt, one.node_id, one.message) for one in timeline]
    columns = output.columns("AT|EVENT|ATTEMPT>|NODE~|MESSAGE~")
    output.table(columns, rows)
