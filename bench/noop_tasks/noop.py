"""What warm workers are asked to do: nothing."""

import time


def run() -> None:
    """Nothing."""


def clock() -> float:
    """Nothing; answers when it began."""
    return time.time()
