"""The advisory locks that coordinators on one PostgreSQL share: numbers that nobody else's program takes by chance."""

from enum import IntEnum

_OURS = 0x4F53  # "OS", in the two highest bytes of every key
_BITS = 40


class Lock(IntEnum):
    """What a lock is about."""

    DUTY = 2  # of a session: one number for each of the loops that only one coordinator runs
    WRITE = 1  # held by every transaction that writes: alone, or shared with others that may run beside it
    NUMBERS = 3  # of a session, for the moment in which it draws numbers for jobs
    EVENTS = 4  # shared by every transaction that writes, with the last id that was drawn before it began as its number
    AUDIT = 5
    ONE_BY_ONE = 6  # what is done by one transaction after the other, by its name


def parts_of(lock: Lock) -> tuple[int, int]:
    """What `pg_locks` shows of its keys: `classid` is the first of these plus the number's bits above 32, of which there are so many."""
    return (_OURS << 16) | (lock << 8), _BITS - 32


def key_of(lock: Lock, number: int = 0) -> int:
    """The 64-bit key of a lock, of one among many where it has a number."""
    return (_OURS << 48) | (lock << _BITS) | (number & ((1 << _BITS) - 1))
