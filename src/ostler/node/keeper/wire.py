"""JSON lines without the `json` package: that imports `re` and `enum`, 1.2 MB in a process that otherwise has 8."""

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing and collections cost memory
    from collections.abc import Callable

_scan: "Callable[[str, int], tuple[object, int]]"
_encode: "Callable[[object, int], tuple[str, ...]]"


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def _refuse_type(value: object) -> object:
    raise TypeError(f"{type(value).__name__} is not JSON")


class _Rules:
    """What the scanner asks its owner for: plain JSON, of equal names the last, no NaN."""

    def __init__(self) -> None:
        self.strict = True
        self.object_hook = None
        self.object_pairs_hook = None
        self.parse_float = float
        self.parse_int = int
        self.parse_constant = _refuse_constant


try:
    import _json

    _scan = _json.make_scanner(_Rules())  # type: ignore[arg-type]
    _encode = _json.make_encoder(None, _refuse_type, _json.encode_basestring_ascii, None, ":", ",", False, False, False)
except (ImportError, TypeError):  # an interpreter without, or with another, accelerator; then the memory is spent
    import json

    _scan = json.JSONDecoder(parse_constant=_refuse_constant).raw_decode
    _dumps = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode

    def _encode(value: object, _: int) -> tuple[str, ...]:
        return (_dumps(value),)


def decode(line: bytes) -> object:
    """Return the value in one line of UTF-8 JSON; raises ValueError on anything else."""
    text = line.decode("utf-8").strip(" \t\r")
    try:
        value, end = _scan(text, 0)
    except (StopIteration, SystemError):
        # SystemError: the scanner would raise an exception of the `json` package, which is not imported
        raise ValueError("this is not JSON") from None
    except RecursionError:
        raise ValueError("this JSON is nested too deeply") from None
    if end != len(text):
        raise ValueError(f"there is more after the JSON value, at character {end}")
    return value


def encode(value: object) -> str:
    """Return a value of dicts, lists, strings, finite numbers, booleans and None as ASCII JSON."""
    return "".join(_encode(value, 0))
