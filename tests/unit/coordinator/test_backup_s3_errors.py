"""What the client of S3 says, as recorded, and what a person reads: the cause and what mends it, and nothing that is secret."""

import pytest

from ostler.coordinator.upkeep.places.s3_errors import explained
from ostler.model.errors import Forbidden, InvalidSpec, NotFound, Rejected, StoreBusy, Unauthenticated

ANSWER = (
    "Generic S3 error: Error performing list request: Error performing GET http://127.0.0.1:39871/b?list-type=2 in 644.378µs - Server "
    'returned non-2xx status code: {status}: <?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message>'
    "{more}</Error>\n\nDebug source:\nGeneric {{\n    store: \"S3\",\n"
)  # fmt: skip
NO_ANSWER = (
    "Generic S3 error: Error performing GET {url} in 101.590402ms, after 1 retries, max_retries: 1, retry_timeout: 3s  - HTTP error: "
    "error sending request\n\nDebug source:\nGeneric {{\n    store: \"S3\",\n    source: RetryError(\n RetryErrorImpl {{\n inner: Http(\n"
    " HttpError {{\n kind: {kind},\n source: reqwest::Error {{\n kind: Request,\n source: hyper_util::client::legacy::Error(\n Connect,\n"
    " {why}"
)  # fmt: skip


def answer(status: str, code: str, message: str = "", more: str = "") -> str:
    return ANSWER.format(status=status, code=code, message=message, more=more)


def no_answer(why: str, *, kind: str = "Connect", url: str = "http://127.0.0.1:1/b/a") -> str:
    return NO_ANSWER.format(url=url, kind=kind, why=why)


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        (answer("404 Not Found", "NoSuchBucket"), NotFound, "there is no bucket b at http://s3"),
        (answer("403 Forbidden", "InvalidAccessKeyId"), Unauthenticated, "InvalidAccessKeyId"),
        (answer("403 Forbidden", "SignatureDoesNotMatch"), Unauthenticated, "SignatureDoesNotMatch"),
        (answer("400 Bad Request", "ExpiredToken"), Unauthenticated, "ExpiredToken"),
        (answer("403 Forbidden", "RequestTimeTooSkewed"), Rejected, "clock"),
        (
            answer("400 Bad Request", "AccessDenied", "The difference between the request time and the server&#39;s time exceeds it"),
            Rejected, "clock",
        ),
        (answer("403 Forbidden", "AccessDenied"), Forbidden, "does not permit"),
        (answer("403 Forbidden", ""), Forbidden, "does not permit"),
        (answer("301 Moved Permanently", "PermanentRedirect"), InvalidSpec, "region"),
        (answer("400 Bad Request", "AuthorizationHeaderMalformed"), InvalidSpec, "region"),
        (answer("507 Insufficient Storage", "XMinioStorageFull"), StoreBusy, "no room"),
        (answer("503 Service Unavailable", "SlowDown"), StoreBusy, "SlowDown"),
        (no_answer('"tcp connect error",\n Os {\n code: 111,\n message: "Connection refused",'), StoreBusy, "Connection refused"),
        (no_answer('"dns error",\n Custom {\n error: "failed to lookup address: Name not known",'), StoreBusy, "Name not known"),
        (no_answer("", kind="Timeout"), StoreBusy, "Timeout"),
        (no_answer("Custom {\n kind: Other,\n error: InvalidCertificate(UnknownIssuer"), Rejected, "not trusted (UnknownIssuer)"),
        (no_answer("", url="http://169.254.169.254/latest/api/token"), Unauthenticated, "no credentials"),
        ('Generic S3 error: Missing SecretAccessKey\n\nDebug source:\n source: MissingSecretAccessKey,', Unauthenticated, "no credentials"),
    ],
)  # fmt: skip
def test_causes(text: str, kind: type[Exception], said: str):
    found = explained(RuntimeError(text), shown="s3://b/p", bucket="b", endpoint="http://s3")
    assert (type(found), said in found.message) == (kind, True), found.message
    assert found.hint
    assert "Debug" not in f"{found.message}{found.hint}"


def test_what_was_signed_is_not_said_again():
    """So Amazon answers a wrong signature; a session's token is part of it."""
    canonical = "<CanonicalRequest>GET\n/\nx-amz-security-token:one\n</CanonicalRequest><StringToSign>AWS4</StringToSign>"
    found = explained(
        RuntimeError(answer("403 Forbidden", "SignatureDoesNotMatch", "The request signature", canonical)),
        shown="s3://b/p", bucket="b", endpoint="http://s3",
    )  # fmt: skip
    assert "token:" not in f"{found.message}{found.hint}"
    assert "AWS4" not in f"{found.message}{found.hint}"
