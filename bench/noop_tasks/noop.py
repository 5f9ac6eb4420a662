"""The Python task that does nothing, for warm workers."""


def run() -> None:
    """Nothing."""
