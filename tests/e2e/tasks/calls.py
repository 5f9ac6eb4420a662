"""Functions that tests call by name."""

import os
import threading
import time
from datetime import date
from pathlib import Path

from ostler.task import job_id


class Torn(Exception):
    """An error of this module's own, with attributes."""

    def __init__(self, what, *, pieces=2):
        super().__init__(what)
        self.pieces = pieces


class Box:
    """No data."""

    def __init__(self, value):
        self.value = value

    def __eq__(self, other):
        return isinstance(other, Box) and other.value == self.value

    __hash__ = None


def square(number):
    return number * number


def slow_square(number, seconds=0.05):
    time.sleep(seconds)
    return number * number


def give(value):
    return value


def together(*args, **kwargs):
    return args, kwargs


def boxed(value):
    return Box(value)


def megabytes(count):
    return b"x" * (count << 20)


def torn(what, pieces):
    raise Torn(what, pieces=pieces)


def fail(kind, *args):
    raise {"ValueError": ValueError, "KeyError": KeyError, "OSError": OSError, "SystemExit": SystemExit}[kind](*args)


def dig(depth):
    return dig(depth - 1) if depth else 0


def nest(depth):
    found = []
    for _ in range(depth):
        found = [found]
    return found


def hold(path):
    """Say that it runs, and go on until it is killed."""
    Path(path).touch()
    threading.Event().wait()


def once_then_die(path):
    """The first time its process ends at once, as if the machine had taken it."""
    if not Path(path).exists():
        Path(path).touch()
        os._exit(9)
    return "second"


def today(day: date):
    return day, job_id()


async def later(value):
    return value


def generator():
    yield 1


def _private():
    return "private"


def outer():
    def inner():
        return 1

    return inner


alias = square
