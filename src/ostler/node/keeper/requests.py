"""What a request may say: types and ranges checked one by one, unknown fields let pass."""

from ostler.node.keeper import kernel

_KEY_LENGTH = 200
_REASON_LENGTH = 1000
_DAYS_100_S = 8_640_000


class Refusal(Exception):
    """A request that is not carried out: the error reply's `code`, message, and where there are, errno and step.

    Codes: malformed, invalid, unknown_op, exists, not_found, open, cgroup, setup, exec, fork, state, stopping, withdrawn, busy, internal.
    """

    def __init__(self, code: str, message: str, *, number: int | None = None, step: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.number = number
        self.step = step

    def as_reply(self) -> dict[str, object]:
        """The `error` member of the reply."""
        reply: dict[str, object] = {"code": self.code, "message": self.message}
        if self.number is not None:
            reply["errno"] = self.number
        if self.step is not None:
            reply["step"] = self.step
        return reply


def _invalid(path: str, message: str) -> Refusal:
    return Refusal("invalid", f"{path}: {message}")


class Fields:
    """One JSON object of a request, read field by field; each reader raises Refusal with the field's path."""

    __slots__ = ("_path", "_values")

    def __init__(self, values: object, path: str = "") -> None:
        if not isinstance(values, dict):
            raise _invalid(path or "request", "must be an object")
        self._values = values
        self._path = path

    def path(self, name: str) -> str:
        """The field's full name for messages."""
        return f"{self._path}.{name}" if self._path else name

    def get(self, name: str) -> object:
        """The value, or None where it is null or missing."""
        return self._values.get(name)

    def names(self) -> list[str]:
        """All names that are there."""
        return list(self._values)

    def flag(self, name: str) -> bool | None:
        """True, false or missing."""
        value = self._values.get(name)
        if value is None or isinstance(value, bool):
            return value
        raise _invalid(self.path(name), "must be true or false")

    def integer(self, name: str, low: int, high: int) -> int | None:
        """A whole number within bounds, or None."""
        value = self._values.get(name)
        if value is None:
            return None
        if type(value) is not int or not low <= value <= high:
            raise _invalid(self.path(name), f"must be a whole number from {low} to {high}")
        return value

    def number(self, name: str, low: float, high: float) -> float | None:
        """A number within bounds, or None."""
        value = self._values.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise _invalid(self.path(name), f"must be a number from {low} to {high}")
        return value

    def text(self, name: str, *, required: bool = True) -> str | None:
        """A string that the kernel can take (no NUL, encodable), or None where it is not required."""
        value = self._values.get(name)
        if value is None and not required:
            return None
        return checked_text(value, self.path(name))

    def absolute(self, name: str, *, required: bool = True) -> str | None:
        """An absolute path."""
        value = self.text(name, required=required)
        if value is not None and not value.startswith("/"):
            raise _invalid(self.path(name), "must be an absolute path")
        return value

    def items(self, name: str) -> list[object]:
        """A list, empty where it is missing."""
        value = self._values.get(name)
        if value is None:
            return []
        if not isinstance(value, list):
            raise _invalid(self.path(name), "must be a list")
        return value

    def pairs(self, name: str) -> dict[str, object]:
        """An object, empty where it is missing."""
        value = self._values.get(name)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise _invalid(self.path(name), "must be an object")
        return value


def raw(text: str) -> bytes:
    """A string as the kernel takes it; bytes that are not UTF-8 travel as lone surrogates (PEP 383)."""
    return text.encode("utf-8", "surrogateescape")


def checked_text(value: object, path: str) -> str:
    """A string without NUL that can be encoded; raises Refusal."""
    if not isinstance(value, str):
        raise _invalid(path, "must be a string")
    if "\0" in value:
        raise _invalid(path, "must not contain NUL")
    if not value.isascii():
        try:
            raw(value)
        except UnicodeEncodeError:
            raise _invalid(path, "cannot be encoded") from None
    return value


def checked_keys(values: Fields) -> list[str]:
    """The request's `keys`, or its one `key`."""
    if values.get("keys") is None:
        return [checked_key(values)]
    return [_key(checked_text(value, "keys")) for value in values.items("keys")]


def checked_key(values: Fields) -> str:
    """The request's key: visible ASCII without '=', at most 200 characters."""
    return _key(values.text("key") or "")


def _key(key: str) -> str:
    if not 0 < len(key) <= _KEY_LENGTH or not key.isascii() or not key.isprintable() or " " in key or "=" in key:
        raise _invalid("key", f"must be 1 to {_KEY_LENGTH} visible ASCII characters without '='")
    return key


class Limits:
    """What an attempt may use; None is no limit. `unknown` are limits that this release does not know."""

    __slots__ = (
        "address_space_mb", "cpu_pct", "cpus", "file_mb", "grace_s", "io", "log_mb", "memory_mb", "nice", "open_files",
        "processes", "unknown", "wall_s",
    )  # fmt: skip
    _NAMES = frozenset({*__slots__, "io_class", "io_level"} - {"io", "unknown"})

    def __init__(self, values: Fields) -> None:
        self.nice = values.integer("nice", -20, 19)
        self.io = self._io(values)
        self.memory_mb = values.number("memory_mb", 1, 1 << 40)
        self.address_space_mb = values.number("address_space_mb", 1, 1 << 40)
        self.cpu_pct = values.number("cpu_pct", 1, 1_000_000)
        self.cpus = [_cpu(value) for value in values.items("cpus")] or None
        self.open_files = values.integer("open_files", 3, 1 << 30)
        self.processes = values.integer("processes", 1, 1 << 22)
        self.file_mb = values.number("file_mb", 0, 1 << 40)
        self.wall_s = values.number("wall_s", 0, _DAYS_100_S)
        grace_s = values.number("grace_s", 0, _DAYS_100_S)
        self.grace_s = 10.0 if grace_s is None else grace_s
        self.log_mb = values.number("log_mb", 0, 1 << 40)
        self.unknown = [name for name in values.names() if name not in self._NAMES and values.get(name) is not None]

    @staticmethod
    def _io(values: Fields) -> tuple[int, int] | None:
        name = values.text("io_class", required=False)
        level = values.integer("io_level", 0, 7)
        if name is None:
            return None if level is None else (kernel.IO_CLASSES["best-effort"], level)
        if name not in kernel.IO_CLASSES:
            raise _invalid("limits.io_class", f"must be one of {', '.join(kernel.IO_CLASSES)}")
        return kernel.IO_CLASSES[name], 0 if name == "idle" else 4 if level is None else level


def _cpu(value: object) -> int:
    if type(value) is not int or not 0 <= value < 65536:
        raise _invalid("limits.cpus", "must be a list of CPU numbers")
    return value


_alike: "dict[str, Limits]" = {}  # by what was sent, spelled out: 1, 1.0 and true are not the same; nobody changes them
_MOST_ALIKE = 64


def _limits(values: object) -> Limits:
    """Jobs come in thousands with the same limits."""
    key = repr(values)
    found = _alike.get(key)
    if found is None:
        found = Limits(Fields({} if values is None else values, "limits"))
        if len(_alike) >= _MOST_ALIKE:
            _alike.clear()
        _alike[key] = found
    return found


def _variables(values: "dict[str, object]") -> "dict[bytes, bytes]":
    """The environment: at a glance where all of it is plain ASCII, else one by one, for the path of what is wrong."""
    try:
        names, texts = "".join(values), "".join(values.values())  # type: ignore[arg-type]
    except TypeError:
        names = texts = "\0"
    if "" not in values and (names + texts).isascii() and "=" not in names and "\0" not in names + texts:
        return {name.encode(): value.encode() for name, value in values.items()}  # type: ignore[attr-defined]
    found = {}
    for name, value in values.items():
        if not name or "=" in name:
            raise _invalid("env", "a name must not be empty or contain '='")
        found[raw(checked_text(name, "env"))] = raw(checked_text(value, f"env.{name}"))
    return found


class Start:
    """A `start` request. With `room` it waits until fewer than so many run that were started with one; `first` of those that wait.

    `hasty` is a wrapper that may end before what it has started.
    """

    __slots__ = (
        "argv", "cwd", "env", "first", "gid", "hasty", "key", "limits", "no_new_privs", "open", "record", "room", "seccomp", "stderr",
        "stdin", "stdout", "uid", "wipe", "wrapper",
    )  # fmt: skip

    def __init__(self, values: Fields) -> None:
        self.key = checked_key(values)
        self.argv = [raw(checked_text(value, "argv")) for value in values.items("argv")]
        if not self.argv or not self.argv[0]:
            raise _invalid("argv", "must name a program")
        self.env = _variables(values.pairs("env"))
        self.cwd = values.absolute("cwd") or "/"
        self.stdin = values.absolute("stdin", required=False)
        self.stdout = values.absolute("stdout") or ""
        self.stderr = values.absolute("stderr") or ""
        self.record = values.absolute("record", required=False)
        self.wipe = values.absolute("wipe", required=False)
        self.open = [(_descriptor(number), _file(path)) for number, path in values.pairs("open").items()]
        self.limits = _limits(values.get("limits"))
        self.no_new_privs = values.flag("no_new_privs") or False
        self.seccomp = values.absolute("seccomp", required=False)
        self.uid = values.integer("uid", 0, (1 << 32) - 2)
        self.gid = values.integer("gid", 0, (1 << 32) - 2)
        self.room = values.integer("room", 1, 1 << 20)
        self.first = values.flag("first") or False
        wrapper = values.flag("wrapper")
        program = self.argv[0].rsplit(b"/", 1)[-1]
        self.wrapper = program == b"bwrap" if wrapper is None else wrapper
        self.hasty = self.wrapper and program != b"ostler-sandbox"


def _descriptor(number: str) -> int:
    if not number.isascii() or not number.isdigit() or not 3 <= int(number) < 256:
        raise _invalid("open", f"{number[:20]!a} is not a descriptor number from 3 to 255")
    return int(number)


def _file(path: object) -> str:
    text = checked_text(path, "open")
    if not text.startswith("/"):
        raise _invalid("open", "must name absolute paths")
    return text


class Kill:
    """A `kill` request; without `grace_s` the attempt's own grace holds."""

    __slots__ = ("grace_s", "key", "reason")

    def __init__(self, values: Fields) -> None:
        self.key = checked_key(values)
        self.reason = values.text("reason") or ""
        if not 0 < len(self.reason) <= _REASON_LENGTH:
            raise _invalid("reason", f"must have 1 to {_REASON_LENGTH} characters")
        self.grace_s = values.number("grace_s", 0, _DAYS_100_S)
