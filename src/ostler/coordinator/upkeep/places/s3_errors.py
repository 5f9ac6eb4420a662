"""What an S3 server or the way to it says, as errors that tell what to do.

Nothing of an answer is told but its code: a server that finds a signature wrong sends back what was signed, and a session's token is
part of that.
"""

import re

from ostler.model.errors import Forbidden, InvalidSpec, NotFound, OstlerError, Rejected, StoreBusy, Unauthenticated

KEYS = "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN where it belongs to them)"
RIGHTS = "it wants s3:ListBucket on the bucket, and s3:GetObject, s3:PutObject, s3:DeleteObject and s3:AbortMultipartUpload in it"

_CODE = re.compile(r"<Code>(\w{1,60})</Code>")
_STATUS = re.compile(r"status code: (\d{3})\b")
_KIND = re.compile(r"HttpError \{\s*kind: (\w+)")
_WHY = re.compile(r'(?:message|error): "([^"<>]{1,120})"|(InvalidCertificate\(\w+)')
_NO_CREDENTIALS = (
    "MissingAccessKeyId",
    "MissingSecretAccessKey",
    "/latest/api/token",
    "/latest/meta-data/",
    "CredentialsProvider",
)

_UNKNOWN = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken", "TokenRefreshRequired", "401")
_SKEWED = ("RequestTimeTooSkewed", "RequestExpired")
_SKEW = "difference between the request time and the server"  # so it stands under other codes, too
_ELSEWHERE = (
    "PermanentRedirect",
    "TemporaryRedirect",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "301",
)
_FULL = ("QuotaExceeded", "XMinioStorageFull", "InsufficientStorage", "507")


def explained(error: BaseException, *, shown: str, bucket: str, endpoint: str) -> OstlerError:
    """The same for a person: what is wrong with the place `shown`, at which endpoint, and what mends it."""
    text = str(error)
    code, status, kind = _found(_CODE, text), _found(_STATUS, text), _found(_KIND, text)
    said = code or status

    if any(one in text for one in _NO_CREDENTIALS):
        return Unauthenticated(
            f"there are no credentials for {shown}", hint=f"set {KEYS}; without them the role of a machine at Amazon is asked for"
        )
    if code == "NoSuchBucket":
        return NotFound(f"there is no bucket {bucket} at {endpoint}", hint="make it first; or is AWS_ENDPOINT_URL another one's?")
    if said in _UNKNOWN:
        return Unauthenticated(f"{endpoint} does not take the credentials for {shown}: {said}", hint=f"look at {KEYS}")
    if said in _SKEWED or _SKEW in text:
        return Rejected(
            f"{endpoint} refuses calls for {shown}: this machine's clock and the server's differ too much",
            hint="set the clock right: `timedatectl` shows whether it is kept so",
        )
    if said in _ELSEWHERE:
        return InvalidSpec(f"the bucket {bucket} is not in the region that was asked ({said})", hint="set AWS_REGION to its own")
    if said in _FULL:
        return StoreBusy(f"there is no room left for {shown} ({said})", hint="`ostler backup prune` removes older backups")
    if said in {"AccessDenied", "403"}:
        return Forbidden(f"{endpoint} does not permit that in {shown}", hint=f"{RIGHTS}: look at the key's policy")
    if said:
        return StoreBusy(f"{endpoint} cannot do that in {shown} now: it answers {said}", hint="try again; its own log says more")
    why = next((first or second for first, second in reversed(_WHY.findall(text))), kind or type(error).__name__)
    if "InvalidCertificate" in text:
        return Rejected(
            f"the certificate of {endpoint} is not trusted ({why.partition('(')[2] or why})",
            hint="AWS_CA_BUNDLE names the file with the certificate of who signed it",
        )
    return StoreBusy(f"{endpoint} cannot be reached: {why}", hint="is AWS_ENDPOINT_URL right, and the network there?")


def _found(pattern: re.Pattern[str], text: str) -> str | None:
    found = pattern.search(text)
    return None if found is None else found[1]
