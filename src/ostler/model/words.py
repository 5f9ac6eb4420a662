"""Numbers of things, and lines of others, as people read them."""


def many(count: int, noun: str) -> str:
    """`1 host`, `2 hosts`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def on_one_line(text: str) -> str:
    """The lines of an error that a program printed, its hint among them, as one."""
    return "; ".join(line.strip().removeprefix("hint: ") for line in text.splitlines() if line.strip())
