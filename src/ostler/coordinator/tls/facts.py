"""What a certificate says, as a value: apart from what reads it, which costs megabytes that a coordinator without TLS does not pay."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a certificate says of itself. `uses` are `ca`, `server`, `client`; the fingerprint is the SHA-256 of its DER form."""

    name: str
    issuer: str
    uses: tuple[str, ...]
    sans: tuple[str, ...]
    not_before: datetime
    not_after: datetime
    sha256: str
