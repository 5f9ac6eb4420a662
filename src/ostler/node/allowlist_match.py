"""The verdict about a command and its arguments: which entry of the allowlist grants them, or the rule that came closest.

An entry's groups are tried by a search that remembers where it has been: first fit first, backtracking where groups overlap.
The number of trials is bounded; an entry so ambiguous that the bound is reached denies.
"""

import difflib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from ostler.model.failures import Failure, FailureCode
from ostler.node.allowlist import UNLIMITED, Allowlist, Entry, Group, Order

MAX_ARGS = 1024
MAX_TRIALS = 100_000
_SHOWN = 80
_LOOK_BACK = 8

# Where a search stands: the next argument, and what was used. In file order that is (group, times) of the latest group,
# else how often each group was used.
_Place = tuple[int, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Use:
    """One use of a group (0-based index) for the `count` arguments from `first` on (0-based)."""

    group: int
    first: int
    count: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer for one command. `uses` covers all arguments when allowed, and those before the first misfit when not.

    `entry` is the one that grants, or that came closest; None where no entry names the command.
    """

    args: tuple[str, ...]
    entry: Entry | None
    failure: Failure | None
    uses: tuple[Use, ...] = ()

    @property
    def allowed(self) -> bool:
        """Whether the command may run."""
        return self.failure is None

    def lines(self) -> list[str]:
        """The explanation that `ostler allowlist test` prints."""
        if self.failure is not None:
            lines = [f"denied: {self.failure.code.value}: {self.failure.message}"]
            if self.entry is not None and self.uses:
                lines.append(f"up to there {self.entry.file} allows:")
        else:
            lines = []
        if self.entry is None:
            return lines
        if self.failure is None:
            lines.append(f"allowed: {self.entry.path} by {self.entry.file}")
        for use in self.uses:
            words = " ".join(_show(arg) for arg in self.args[use.first : use.first + use.count])
            group = self.entry.groups[use.group]
            lines.append(f"  {_numbers(use.first, use.count)}: {words}  <- group {use.group + 1}, line {group.line}: {group}")
        if self.failure is None:
            lines.extend(f"  {line}" for line in _limits(self.entry))
        return lines


@dataclass(slots=True)
class _Search:
    """What a search saw: every place reached with the place before it, and the place where all arguments fit."""

    reached: dict[_Place, tuple[_Place, int] | None]
    end: _Place | None = None
    exhausted: bool = False

    def uses(self, place: _Place) -> tuple[Use, ...]:
        found: list[Use] = []
        while (before := self.reached[place]) is not None:
            found.append(Use(before[1], before[0][0], place[0] - before[0][0]))
            place = before[0]
        return tuple(reversed(found))


@dataclass(frozen=True, slots=True)
class _Miss:
    """How close an entry came: the number of arguments that fitted (and a half when only a required group was missing)."""

    depth: float
    reason: str
    uses: tuple[Use, ...] = ()


def check(allowlist: Allowlist, command: str, args: Sequence[str], *, env: Collection[str] = ()) -> Verdict:
    """Whether a node may run `command` with `args` and the manifest's environment variables `env` (names)."""
    args = tuple(args)
    entries = allowlist.find(command)
    if not entries:
        return Verdict(args, None, Failure(FailureCode.DENY, _unknown(allowlist, command)))
    if reason := _never(args):
        return Verdict(args, entries[0], Failure(FailureCode.DENY, f"{_show(command)}: {reason}"))
    size = sum(map(len, args)) + len(args) if all(map(str.isascii, args)) else sum(len(arg.encode()) + 1 for arg in args)
    for entry in entries:
        if size <= entry.max_total_args_len and entry.env.issuperset(env):
            search = _search(entry, args)
            if search.end is not None:
                return Verdict(args, entry, None, search.uses(search.end))
    misses = [(entry, _miss(entry, args, size, env)) for entry in entries]
    entry, miss = max(misses, key=lambda pair: pair[1].depth)
    return Verdict(args, entry, Failure(FailureCode.DENY, f"{_show(command)}: {miss.reason}"), miss.uses)


def _never(args: tuple[str, ...]) -> str | None:
    """What no entry can grant."""
    if len(args) > MAX_ARGS:
        return f"{len(args)} arguments are more than {MAX_ARGS}"
    for number, arg in enumerate(args, 1):
        if "\0" in arg or "\n" in arg or "\r" in arg:
            return f"argument {number} {_show(arg)} holds a newline or NUL character, which no rule can allow"
        if not arg.isascii():
            try:
                arg.encode()
            except UnicodeEncodeError:
                return f"argument {number} {_show(arg)} is not valid Unicode"
    return None


def _fits(group: Group, args: tuple[str, ...], at: int) -> bool:
    if at + len(group.parts) > len(args):
        return False
    return all(part.matches(args[at + i]) for i, part in enumerate(group.parts))


def _search(entry: Entry, args: tuple[str, ...]) -> _Search:
    in_file_order = entry.order is Order.FILE
    start: _Place = (0, (-1, 0) if in_file_order else (0,) * len(entry.groups))
    search = _Search({start: None})
    stack = [start]
    known: dict[tuple[int, int], bool] = {}
    trials = 0
    while stack:
        place = stack.pop()
        at, used = place
        if at == len(args) and _lacking(entry, used) is None:
            search.end = place
            return search
        found: list[_Place] = []
        for index in _usable_in_order(entry, used) if in_file_order else _usable(entry, used):
            trials += 1
            if (fits := known.get((index, at))) is None:
                fits = known[index, at] = _fits(entry.groups[index], args, at)
            if not fits:
                continue
            after = (at + len(entry.groups[index].parts), _mark(entry, used, index))
            if after not in search.reached:
                search.reached[after] = (place, index)
                found.append(after)
        if trials > MAX_TRIALS:
            search.exhausted = True
            return search
        stack.extend(reversed(found))
    return search


def _usable_in_order(entry: Entry, used: tuple[int, ...]) -> Iterator[int]:
    """The latest group while it may repeat, then those after it up to the first that must not be skipped."""
    latest, times = used
    if latest >= 0 and (entry.groups[latest].repeat == UNLIMITED or times < entry.groups[latest].repeat):
        yield latest
    for index in range(latest + 1, len(entry.groups)):
        yield index
        if entry.groups[index].required:
            return


def _usable(entry: Entry, used: tuple[int, ...]) -> Iterator[int]:
    for index, group in enumerate(entry.groups):
        if group.repeat == UNLIMITED or used[index] < group.repeat:
            yield index


def _mark(entry: Entry, used: tuple[int, ...], index: int) -> tuple[int, ...]:
    """What is used once group `index` was; unlimited groups count to one, so that their places stay few."""
    most = entry.groups[index].repeat or 1
    if entry.order is Order.FILE:
        return (index, min(used[1] + 1, most) if index == used[0] else 1)
    return (*used[:index], min(used[index] + 1, most), *used[index + 1 :])


def _lacking(entry: Entry, used: tuple[int, ...]) -> int | None:
    """The first required group that was not used."""
    for index, group in enumerate(entry.groups):
        if group.required and (index > used[0] if entry.order is Order.FILE else not used[index]):
            return index  # in file order a required group cannot have been skipped
    return None


def _miss(entry: Entry, args: tuple[str, ...], size: int, env: Collection[str]) -> _Miss:
    if refused := sorted(set(env) - entry.env):
        names = ", ".join(map(_show, refused))
        return _Miss(-1, f"{entry.file} does not let a manifest set {names} (its `env` would name them)")
    if size > entry.max_total_args_len:
        return _Miss(-1, f"the arguments are {size} bytes long; {entry.file} allows {entry.max_total_args_len}")
    search = _search(entry, args)
    if search.exhausted:
        return _Miss(0, f"the rules of {entry.file} are too ambiguous for {len(args)} arguments; make its patterns narrower")
    places: dict[int, _Place] = {}
    for place in search.reached:  # the first place that reached each argument is the one of the best-fitting groups
        places.setdefault(place[0], place)
    best = _Miss(-1, f"{entry.file} allows no arguments")
    for at in sorted(places, reverse=True)[:_LOOK_BACK]:
        found = _miss_at(entry, args, places[at])
        if found.depth > best.depth:
            best = _Miss(found.depth, found.reason, search.uses(places[at]))
    return best


def _miss_at(entry: Entry, args: tuple[str, ...], place: _Place) -> _Miss:
    """The closest rule for the arguments from `place` on: the one that fits most of them."""
    at, used = place
    if at == len(args):
        lacking = _lacking(entry, used)
        assert lacking is not None  # noqa: S101 - else the search had ended here
        return _Miss(at + 0.5, f"the required arguments of {_rule(entry, lacking)} are missing")
    usable = set(_usable_in_order(entry, used) if entry.order is Order.FILE else _usable(entry, used))
    best = _Miss(at, f"argument {at + 1} {_show(args[at])} matches no rule; {entry.file} has no arguments")
    best_rank = (-1, False, 0.0, False)
    for index, group in enumerate(entry.groups):
        fitting = 0
        while fitting < len(group.parts) and at + fitting < len(args) and group.parts[fitting].matches(args[at + fitting]):
            fitting += 1
        restricted = False
        if fitting == len(group.parts):
            if index in usable:
                continue  # that way was gone; a later place tells more
            reason = f"{_numbers(at, fitting)} {_show(args[at])} {_unusable(entry, used, index)}"
        elif at + fitting == len(args):
            reason = f"the arguments end too early: {_rule(entry, index)} has {len(group.parts)} parts, {fitting} were given"
        else:
            arg = args[at + fitting]
            why = group.parts[fitting].refusal(arg) or ""
            restricted = not why.startswith("does not match")
            if not fitting and not restricted:
                why = "matches no rule that may stand here"
            reason = f"argument {at + fitting + 1} {_show(arg)} {why}; closest rule: {_rule(entry, index)}"
        likeness = 0.0 if fitting else _likeness(args[at], group.parts[0].text)
        rank = (fitting, restricted, likeness, index in usable)
        if rank > best_rank:
            best, best_rank = _Miss(at + fitting, reason), rank
    return best


def _likeness(arg: str, pattern: str) -> float:
    return difflib.SequenceMatcher(None, arg[:_SHOWN], pattern[:_SHOWN], autojunk=False).ratio()


def _unusable(entry: Entry, used: tuple[int, ...], index: int) -> str:
    group, rule = entry.groups[index], _rule(entry, index)
    if entry.order is Order.ANY or index == used[0]:
        return f"stands too often: {rule} may be used {group.repeat} time{'s' * (group.repeat > 1)} (`repeat` changes that)"
    if index < used[0]:
        return f"comes too late: {rule} stands before group {used[0] + 1}, and groups keep that order (`order: any` lifts it)"
    lacking = _lacking(entry, used)
    before = _rule(entry, lacking) if lacking is not None else "another rule"
    return f"comes too early: {before} is required before it"


def _rule(entry: Entry, index: int) -> str:
    group = entry.groups[index]
    return f"{entry.file}:{group.line} group {index + 1} ({group})"


def _unknown(allowlist: Allowlist, command: str) -> str:
    if not allowlist.entries:
        return f"{_show(command)} is not allowed: this node's allowlist is empty"
    names = sorted(allowlist.entries)
    close = difflib.get_close_matches(command[:_SHOWN], names, n=1)
    if close:
        return f"no allowlist entry names {_show(command)}; did you mean {close[0]!r}?"
    return f"no allowlist entry names {_show(command)}; allowed: {', '.join(names[:10])}{', …' * (len(names) > 10)}"


def _limits(entry: Entry) -> Iterator[str]:
    yield f"arguments: at most {entry.max_total_args_len} bytes"
    if entry.max_runtime_s is not None:
        yield f"runtime: at most {entry.max_runtime_s} s"
    if entry.max_output_mb is not None:
        yield f"output: at most {entry.max_output_mb} MB"
    if entry.stdin is not None:
        yield f"standard input: {entry.stdin}"
    if entry.stdout is not None:
        yield f"standard output: also written to output/{entry.stdout}"
    if entry.env:
        yield f"environment: {', '.join(sorted(entry.env))}"
    if entry.sandbox is not None:
        yield f"sandbox: at least {entry.sandbox.value}"


def _numbers(first: int, count: int) -> str:
    return f"argument {first + 1}" if count == 1 else f"arguments {first + 1}-{first + count}"


def _show(text: str) -> str:
    return repr(text) if len(text) <= _SHOWN else f"{text[:_SHOWN]!r}…"
