"""The plot of one run as SVG: rates, latency, and CPU per job by part, one bar for each system."""

from html import escape
from typing import Any

WIDTH, LEFT, BAR, GAP, HEAD = 860, 170, 15, 5, 34
OURS, THEIRS = "#b5482a", "#8a97a6"
PARTS = ("#b5482a", "#d9a441", "#5b8c5a", "#3f6f9f", "#8a6fa8", "#8a97a6")
TITLES = {
    "bulk": "external no-op jobs, bulk (jobs/s)",
    "singles": "external no-op jobs, one by one (jobs/s)",
    "tasks": "Python no-ops (per second)",
}


def text(x: float, y: float, words: str, *, anchor: str = "start", bold: bool = False) -> str:
    """One line of text."""
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{weight}>{escape(words)}</text>'


def bar(x: float, y: float, width: float, colour: str, hint: str = "") -> str:
    """One bar, or a piece of one."""
    title = f"<title>{escape(hint)}</title>" if hint else ""
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.5):.1f}" height="{BAR}" fill="{colour}">{title}</rect>'


def panel(title: str, rows: list[tuple[str, list[tuple[str, float, str]], str]], top: float) -> tuple[list[str], float]:
    """A title and one bar for each row (name, pieces of (hint, value, colour), label); the shapes and where the next panel begins."""
    longest = max(sum(value for _, value, _ in pieces) for _, pieces, _ in rows)
    scale = (WIDTH - LEFT - 110) / (longest or 1)
    shapes, y = [text(LEFT, top + 20, title, bold=True)], top + HEAD
    for name, pieces, label in rows:
        shapes.append(text(LEFT - 8, y + BAR - 3, name, anchor="end"))
        x = float(LEFT)
        for hint, value, colour in pieces:
            shapes.append(bar(x, y, value * scale, colour, hint))
            x += value * scale
        shapes.append(text(x + 6, y + BAR - 3, label))
        y += BAR + GAP
    return shapes, y + 12


def draw(summary: Any, rates: tuple[str, ...]) -> str:
    """All panels for which there are figures; empty where there are none."""
    shapes: list[str] = []
    top = 10.0

    def colour(name: str) -> str:
        return OURS if name.startswith("ostler") else THEIRS

    def add(title: str, rows: list[tuple[str, list[tuple[str, float, str]], str]]) -> None:
        nonlocal top
        if rows:
            more, top = panel(title, rows, top)
            shapes.extend(more)

    for figure in rates:
        values = [(name, summary.value(name, figure, "jobs_per_s")) for name in summary.names]
        ranked = sorted(((name, value) for name, value in values if value), key=lambda one: -one[1])
        add(TITLES[figure], [(name, [(name, value, colour(name))], f"{value:.0f}") for name, value in ranked])
    late = [
        (name, summary.value(name, "program", "started_p50_ms"), summary.value(name, "program", "started_p99_ms"))
        for name in summary.names
    ]
    late = sorted((one for one in late if one[1] is not None), key=lambda one: one[1])
    add(
        "submit → program started on an idle system, p50 and p99 (ms)",
        [
            (name, [("p50", p50, colour(name)), ("p99", p99 - p50, "#d8d4cc")], f"{p50:.1f} / {p99:.1f}")
            for name, p50, p99 in late
        ],
    )
    costs = [(name, summary.parts(name, "singles")) for name in summary.names]
    costs = sorted(((name, parts) for name, parts in costs if parts), key=lambda one: sum(one[1].values()))
    add(
        "CPU per external job, one by one, by part (ms; hold the pointer over a piece)",
        [
            (
                name,
                [(f"{part} {ms:.2f} ms", ms, PARTS[i % len(PARTS)]) for i, (part, ms) in enumerate(parts.items())],
                f"{sum(parts.values()):.2f}",
            )
            for name, parts in costs
        ],
    )
    if not shapes:
        return ""
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{top:.0f}" font-family="sans-serif" font-size="12">'
    )
    return "\n".join([opening, f'<rect width="{WIDTH}" height="{top:.0f}" fill="white"/>', *shapes, "</svg>\n"])
