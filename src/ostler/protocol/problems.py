"""Errors on the wire: RFC 9457 problem details out of the error tree, and the tree's errors out of them."""

from http import HTTPStatus
from typing import Any

from ostler.model import errors
from ostler.model.errors import OstlerError, Problem
from ostler.protocol import codec
from ostler.protocol.messages import ProblemDetail, ProblemReport

MEDIA_TYPE = "application/problem+json"


def _tree(root: type[OstlerError]) -> dict[str, type[OstlerError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        if child.__module__ == root.__module__:  # a part's own kind of one of these is to others what it is a kind of
            found.update(_tree(child))
    return found


CLASSES: dict[str, type[OstlerError]] = _tree(OstlerError)
_BY_STATUS: dict[int, type[OstlerError]] = {
    400: errors.Rejected,
    401: errors.Unauthenticated,
    403: errors.Forbidden,
    404: errors.NotFound,
    405: errors.NotFound,
    409: errors.Conflict,
    410: errors.Gone,
    412: errors.Outdated,
    413: errors.TooLarge,
    422: errors.InvalidSpec,
    426: errors.UpgradeRequired,
    429: errors.NoCapacity,
}


def describe(error: OstlerError, *, instance: str | None = None) -> ProblemReport:
    """What a caller is told: never more than the error itself says."""
    listed = error.problems if isinstance(error, errors.InvalidSpec) else ()
    return ProblemReport(
        title=error.code.replace("_", " ").capitalize(),
        status=error.status,
        code=error.code,
        detail=error.message,
        instance=instance,
        hint=error.hint,
        errors=tuple(ProblemDetail(path=p.path, message=p.message, line=p.line) for p in listed),
        challenge=getattr(error, "challenge", None),
        lease_s=getattr(error, "lease_s", None),
        offset=getattr(error, "offset", None),
    )


def encode(report: ProblemReport) -> bytes:
    """A report as JSON, without members that say nothing."""
    plain: dict[str, Any] = codec.to_plain(report)
    return codec.encode({name: value for name, value in plain.items() if value not in (None, [], ())})


def restore(status: int, content: bytes, *, retry_after: float | None = None) -> OstlerError:
    """The error that a coordinator meant; also for an answer by something else, such as a proxy, that knows no codes."""
    try:
        report = codec.decode(content, ProblemReport, what="problem report")
    except errors.InvalidSpec:
        hint = "check that the URL is a coordinator's" if status < HTTPStatus.INTERNAL_SERVER_ERROR else None
        report = ProblemReport(title=_phrase(status), status=status, code="", hint=hint)
    kind = CLASSES.get(report.code) or _BY_STATUS.get(status) or (errors.Unavailable if status >= 500 else errors.Rejected)
    message = report.detail or f"the coordinator answered {status} {report.title}"
    if issubclass(kind, errors.InvalidSpec):
        return kind(message, [Problem(d.path, d.message, line=d.line) for d in report.errors], hint=report.hint)
    if issubclass(kind, errors.Unauthenticated):
        return kind(message, challenge=report.challenge, hint=report.hint)
    if issubclass(kind, errors.UpgradeRequired):
        return kind(message, challenge=report.challenge, lease_s=report.lease_s, hint=report.hint)
    if issubclass(kind, errors.OffsetMismatch):
        return kind(message, offset=report.offset or 0, hint=report.hint)
    if issubclass(kind, errors.Unavailable):
        return kind(message, retry_after=retry_after, hint=report.hint)
    return kind(message, hint=report.hint)


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""
