"""What a coordinator says of itself, and how it says that something is wrong."""

from msgspec import Struct, field


class VersionView(Struct, frozen=True, kw_only=True):
    """What a coordinator is and speaks."""

    version: str
    protocol: int
    protocol_min: int
    schema: int


class HealthView(Struct, frozen=True, kw_only=True):
    """`/healthz` and `/readyz` of the coordinator; `checks` maps each check to "ok" or what is wrong."""

    status: str
    version: str
    protocol: int = 0
    protocol_min: int = 0
    schema: int = 0
    checks: dict[str, str] = field(default_factory=dict)


class ProblemDetail(Struct, frozen=True, kw_only=True):
    """One mistake in a request: the field's path and what to write instead."""

    path: str
    message: str
    line: int | None = None


class ProblemReport(Struct, frozen=True, kw_only=True):
    """RFC 9457 problem details, with a stable `code`, a `hint` that says what to do, and every mistake at once."""

    title: str
    status: int
    code: str
    type: str = "about:blank"
    detail: str | None = None
    instance: str | None = None
    hint: str | None = None
    errors: tuple[ProblemDetail, ...] = ()
    challenge: str | None = None
    offset: int | None = None
    lease_s: float | None = None
