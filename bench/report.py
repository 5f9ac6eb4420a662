"""From turns to a table in Markdown, the same as JSON, a plot, and a verdict for each target."""

import json
import os
import platform
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import plot

PRODUCT = "ostler"
RATES = ("bulk", "singles", "tasks")
WAITS = ("program", "function")
CORES_FOR_TWO = 4  # below that two coordinators, PostgreSQL and the nodes share the cores that one leaves idle
Row = dict[str, Any]


def median(values: Iterable[float]) -> float | None:
    """None of nothing."""
    found = list(values)
    return statistics.median(found) if found else None


class Summary:
    """What all rounds together say of each contestant."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows
        self.names = list(
            dict.fromkeys(row["name"] for row in sorted(rows, key=lambda row: (row["name"] != PRODUCT, row["round"])))
        )

    def each(self, name: str, figure: str, key: str) -> dict[int, float]:
        """One value for each round in which it was measured."""
        return {
            row["round"]: row["figures"][figure][key]
            for row in self.rows
            if row["name"] == name and figure in row.get("figures", {})
        }

    def value(self, name: str, figure: str, key: str) -> float | None:
        """The median of its rounds."""
        return median(self.each(name, figure, key).values())

    def ratio(self, figure: str, key: str, peer: str, name: str = PRODUCT, *, theirs: str = "") -> float | None:
        """Product to peer (there the figure `theirs`), each round by itself, then the median: the machine's drift cancels out."""
        ours, others = self.each(name, figure, key), self.each(peer, theirs or figure, key)
        return median(ours[number] / others[number] for number in ours if others.get(number))

    def parts(self, name: str, figure: str) -> dict[str, float]:
        """CPU milliseconds of one job by part."""
        found = [
            row["figures"][figure]["cpu_ms"] for row in self.rows if row["name"] == name and figure in row.get("figures", {})
        ]
        return {part: statistics.median(one.get(part, 0.0) for one in found) for part in (found[-1] if found else {})}

    def last(self, name: str, figure: str) -> dict[str, Any]:
        """A figure that is measured once."""
        found = [row["figures"][figure] for row in self.rows if row["name"] == name and figure in row.get("figures", {})]
        return found[-1] if found else {}

    def word(self, name: str, key: str) -> str | None:
        """Version, settings, or why there is nothing."""
        return next((row[key] for row in self.rows if row["name"] == name and key in row), None)


def number(value: float | None, form: str = "{:.0f}") -> str:
    """A cell."""
    return "–" if value is None else form.format(value)


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def rates(summary: Summary) -> str:
    """Jobs per second, with the product's multiple of each peer."""

    def cell(name: str, figure: str) -> str:
        value = summary.value(name, figure, "jobs_per_s")
        multiple = summary.ratio(figure, "jobs_per_s", name) if name != PRODUCT else None
        return number(value) + (f" (×{multiple:.2f})" if multiple else "")

    def latency(name: str, figure: str, what: str) -> str:
        p50, p99 = (summary.value(name, figure, f"{what}_{share}_ms") for share in ("p50", "p99"))
        return f"{number(p50, '{:.1f}')} / {number(p99, '{:.1f}')}"

    head = [
        "system",
        "external, bulk /s",
        "external, one by one /s",
        "Python no-ops /s",
        "submit → program started p50 / p99 ms",
        "→ result",
        "submit → function started",
        "→ result",
    ]
    waits = [(figure, what) for figure in WAITS for what in ("started", "result")]
    rows = [
        [name, *(cell(name, figure) for figure in RATES), *(latency(name, figure, what) for figure, what in waits)]
        for name in summary.names
        if summary.word(name, "figures")
    ]
    return "(×): the product's multiple of that system, median of rounds.\n\n" + table(head, rows)


def costs(summary: Summary) -> str:
    """CPU milliseconds per job."""

    def cell(name: str, figure: str) -> str:
        parts = summary.parts(name, figure)
        split = ", ".join(f"{part} {ms:.2f}" for part, ms in parts.items() if ms >= 0.005)
        return f"**{sum(parts.values()):.2f}** ({split})" if parts else "–"

    rows = [[name, *(cell(name, figure) for figure in RATES)] for name in summary.names if summary.word(name, "figures")]
    return table(["CPU ms per job", "external, bulk", "external, one by one", "Python no-op"], rows)


def footprints(summary: Summary) -> str:
    """Memory and idle CPU by part, and the cold start."""
    rows = []
    for name in summary.names:
        parts, cold = summary.last(name, "footprint"), summary.last(name, "cold").get("s")
        if parts or cold:
            memory = ", ".join(f"{part} {one['pss_mb']:.0f}" for part, one in parts.items() if one["processes"])
            idle = ", ".join(f"{part} {one['idle_cpu_pct']:.2f}" for part, one in parts.items() if one["processes"])
            rows.append([name, memory, idle, number(cold, "{:.2f}")])
    return (
        table(["system", "PSS MB after the load", "idle CPU, % of a core", "worker's exec → queued job starts, s"], rows)
        if rows
        else ""
    )


def alone(summary: Summary) -> str:
    """What is measured of the product alone."""
    lines = []
    if one := summary.last("a million queued", "million"):
        lines.append(
            f"{one['queued']:,} queued: submitted {one['submit_per_s']:,.0f} a second; a claim costs {one['claim_ratio']:.2f} × that"
            f" with a thousand queued ({one['claim_cpu_ms']:.2f} ms of CPU a job); slowest page of a list {one['slowest_page_ms']:.0f} ms"
            f" ({one['slowest_page']}), explain {one['explain_ms']:.1f} ms, cancel {one['cancel_ms']:.1f} ms;"
            f" coordinator {one['pss_mb']:.0f} MB."
        )
    if one := summary.last("ten thousand nodes", "nodes"):
        kinds = ", ".join(f"{name} {call['p50_ms']:.0f} / {call['p99_ms']:.0f}" for name, call in one["calls"].items())
        lines.append(
            f"{one['nodes']:,} simulated nodes for {one['seconds']:.0f} s: {one['lost']} leases lost; p50 / p99 in ms: {kinds}; coordinator"
            f" {one['coordinator_cpu'] or 0:.2f} of a core, {one['coordinator_mb'] or 0:.0f} MB; the simulator itself was late by"
            f" {one['late_p99_ms']:.0f} ms (p99)."
        )
    return "\n\n".join(lines)


def replicas(summary: Summary) -> str:
    """One and two coordinators on one PostgreSQL."""
    rows = []
    for name in ("one coordinator", "two coordinators", "one, held", "two, held"):
        if (rate := summary.value(name, "jobs", "jobs_per_s")) is not None:
            parts = ", ".join(f"{part} {ms:.2f}" for part, ms in summary.parts(name, "jobs").items())
            rows.append([name, f"{rate:.0f}", parts])
    if not rows:
        return ""
    return table(["on PostgreSQL, simulated nodes", "jobs/s", "CPU ms per job"], rows) + (
        "\n\nHeld: each coordinator may use a fifth of a core, so that two do not fight for the cores of this machine."
    )


# --- verdicts ---


def verdicts(summary: Summary) -> list[dict[str, Any]]:
    """One line for each part of a target that was measured."""
    found: list[dict[str, Any]] = []

    def judge(
        target: str, what: str, value: float | None, must: float | None, goal: float | None,
        *, most: bool = False, form: str = "{:.2f}", goal_word: str = "goal",
    ) -> None:  # fmt: skip
        if value is None:
            return
        meets: Callable[[float], bool] = (lambda limit: value <= limit) if most else (lambda limit: value >= limit)
        sign = "≤" if most else "≥"
        words = []
        for word, limit in (("must", must), (goal_word, goal)):
            if limit is not None:
                words.append(f"{word} {sign} {form.format(limit)} {'met' if meets(limit) else 'NOT met'}")
        verdict = "; ".join(words) or "too few cores to judge"
        found.append({"target": target, "what": what, "value": value, "verdict": verdict, "text": form.format(value)})

    def multiple(figure: str, peer: str) -> float | None:
        return summary.ratio(figure, "jobs_per_s", peer)

    judge("Q1", "bulk, × HyperQueue", multiple("bulk", "hyperqueue"), 1.5, 2.0)
    judge("Q1", "bulk, × Procrastinate", multiple("bulk", "procrastinate"), 2.0, 2.5)
    judge("Q1", "one by one, × Celery everysec", multiple("singles", "celery"), 1.2, 1.4)
    for what, figure, other in (
        ("a program", "program", "program"),
        ("a function", "function", "function"),
        ("a program, their function", "program", "function"),
    ):
        for peer, must, goal in (("celery", 1.2, None), ("saq", None, 1.0)):
            value = summary.ratio(figure, "started_p50_ms", peer, theirs=other)
            judge("Q2", f"{what} started, p50, × {peer}", value, must, goal, most=True, goal_word="stretch")
    for figure in WAITS:
        judge(
            "Q2",
            f"a {figure} started, p99, ms",
            summary.value(PRODUCT, figure, "started_p99_ms"),
            10,
            None,
            most=True,
            form="{:.1f}",
        )
    judge("Q3", "Python no-ops, × SAQ", multiple("tasks", "saq"), 1.5, None)
    judge("Q4", "in bubblewrap, jobs/s", summary.value("ostler in bubblewrap", "bulk", "jobs_per_s"), 200, None, form="{:.0f}")
    if parts := summary.last(PRODUCT, "footprint"):
        node = [parts[part] for part in ("node", "keeper") if part in parts]
        judge("Q5", "node with keeper, PSS MB", sum(one["pss_mb"] for one in node), 60, 40, most=True, form="{:.0f}")
        judge("Q5", "coordinator, PSS MB", parts["coordinator"]["pss_mb"], 110, 80, most=True, form="{:.0f}")
        judge("Q5", "node idle, % of a core", sum(one["idle_cpu_pct"] for one in node), 0.3, None, most=True)
        judge("Q5", "coordinator idle, % of a core", parts["coordinator"]["idle_cpu_pct"], 0.5, None, most=True)
    judge("Q5", "node's exec → queued job starts, s", summary.last(PRODUCT, "cold").get("s"), 0.5, None, most=True)
    if one := summary.last("a million queued", "million"):
        judge("Q7", f"claim with {one['queued']:,} queued, × a thousand", one["claim_ratio"], 1.3, None, most=True)
        judge("Q7", "slowest page of a list, ms", one["slowest_page_ms"], 50, None, most=True, form="{:.0f}")
    if one := summary.last("ten thousand nodes", "nodes"):
        judge("Q8", f"{one['nodes']:,} nodes, heartbeat p99, ms", one["heartbeat_p99_ms"], 250, None, most=True, form="{:.0f}")
        judge("Q8", "leases lost", one["lost"], 0, None, most=True, form="{:.0f}")
    allowed = (os.cpu_count() or 1) >= CORES_FOR_TWO
    both = summary.ratio("jobs", "jobs_per_s", "one coordinator", "two coordinators")
    judge("Q9", f"two coordinators, × one, on {os.cpu_count()} cores", both, 1.5 if allowed else None, None)
    judge("Q9", "two coordinators, × one, each held", summary.ratio("jobs", "jobs_per_s", "one, held", "two, held"), 1.5, None)
    return found


# --- machine and output ---


def machine(place: Path) -> dict[str, Any]:
    """What the figures were taken on."""
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")),
        "",
    )
    memory = int(Path("/proc/meminfo").read_text().split()[1]) / 2**20
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    inside = [(len(where), kind) for where, kind in mounts if place.resolve().is_relative_to(where)]
    return {
        "cpu": cpu or platform.processor(), "cores": os.cpu_count(), "memory_gib": round(memory), "kernel": platform.release(),
        "file_system": max(inside)[1] if inside else "unknown", "python": platform.python_version(),
    }  # fmt: skip


def write(results: Path, rows: list[Row], facts: dict[str, Any], place: Path) -> str:
    """Write latest.json, latest.md and latest.svg; the answer is the Markdown."""
    summary, facts = Summary(rows), machine(place) | facts
    judged = verdicts(summary)
    busy = median(row["others_cores"] for row in rows if "others_cores" in row)
    lines = [
        f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_gib']} GiB; Linux {facts['kernel']}, {facts['file_system']}; "
        f"Python {facts['python']}; {facts['slots']} slots; other programs used {number(busy, '{:.2f}')} cores (median of turns); "
        f"{facts['minutes']:.0f} minutes."
    ]
    if any(
        summary.each(name, figure, key) for name in summary.names for figure, key in (("bulk", "count"), ("program", "count"))
    ):
        lines += [rates(summary), costs(summary)]
    lines += [text for text in (footprints(summary), alone(summary), replicas(summary)) if text]
    told = [
        [name, summary.word(name, "version") or "", summary.word(name, "settings") or trouble(summary, name)]
        for name in summary.names
    ]
    lines.append(table(["system", "version", "settings"], told))
    if judged:
        shown = [[one["target"], one["what"], one["text"], one["verdict"]] for one in judged]
        lines.append(table(["target", "what", "here", "verdict"], shown))
    text = "\n\n".join(lines)
    data = {"facts": facts, "verdicts": judged, "turns": rows}
    (results / "latest.json").write_text(json.dumps(data, indent=1, ensure_ascii=False))
    (results / "latest.md").write_text(text + "\n")
    if drawn := plot.draw(summary, RATES):
        (results / "latest.svg").write_text(drawn)
    return text


def trouble(summary: Summary, name: str) -> str:
    """Why a contestant has no figures."""
    missing, failed = summary.word(name, "missing"), summary.word(name, "failed")
    return f"not to be had here: {missing}" if missing else f"failed: {failed}" if failed else ""
