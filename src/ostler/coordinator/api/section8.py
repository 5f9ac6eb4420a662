"""The source's dialect: section 8 of the original contract, whose nodes know no attempts, no keys and no batches.

Everything here is a pure conversion into this release's messages.
"""

import secrets
from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from ostler.coordinator.api.bodies import decode_json
from ostler.model.capabilities import Capabilities
from ostler.model.errors import InvalidSpec, Problem
from ostler.model.failures import Failure, FailureCode
from ostler.protocol import codec
from ostler.protocol import messages as m

KEYLESS = b""
_EPOCH = "section8:"


class Ack(Struct, frozen=True, kw_only=True):
    """`POST /jobs/ack`: JSON or query parameters."""

    job_id: str
    node_id: str | None = None
    attempt: int | None = None


class Progress(Struct, frozen=True, kw_only=True):
    """`POST /jobs/progress`."""

    job_id: str
    node_id: str | None = None
    attempt: int | None = None
    pct: float | None = None
    note: str | None = None


class Fail(Struct, frozen=True, kw_only=True):
    """`POST /jobs/fail`."""

    job_id: str
    node_id: str | None = None
    attempt: int | None = None
    error_code: str = ""
    error_msg: str = ""
    logs_ref: str | None = None


class Result(Struct, frozen=True, kw_only=True):
    """`POST /jobs/result` without a form, and the `metadata` of one: whatever else stands there is not ours to judge."""

    job_id: str | None = None
    node_id: str | None = None
    attempt: int | None = None
    exit_code: int | None = None


def read_registration(raw: bytes) -> m.RegisterRequest | None:
    """A registration out of a bare capability payload (section 7), or None where it is one of this release.

    Such a node has no key: it shows its join token each time. Its every start is a new session.
    """
    body = codec.decode(raw, dict[str, Any])
    if "protocol" in body or "public_key" in body:
        return None
    capabilities = decode_json(raw, Capabilities)
    node_id, version, gpus = body.get("node_id"), body.get("version", "unknown"), body.get("gpu")
    if not isinstance(node_id, str) or not isinstance(version, str):
        raise InvalidSpec("the registration is not valid", [Problem("node_id", "is missing")])
    return m.RegisterRequest(
        node_id=node_id,
        version=version,
        protocol=m.PROTOCOL,
        boot_epoch=_EPOCH + secrets.token_hex(8),
        public_key=KEYLESS,
        capabilities=capabilities,
        cpu_slots=1,
        gpu_slots=len(gpus) if isinstance(gpus, list) else 0,
    )


def is_keyless(request: m.RegisterRequest) -> bool:
    """True for a registration that `read_registration` made."""
    return request.public_key == KEYLESS and request.boot_epoch.startswith(_EPOCH)


def plain_job(job_id: str, spec: str) -> dict[str, Any]:
    """The manifest as such a node reads it."""
    return {**codec.decode(spec, dict[str, Any]), "job_id": job_id}


def outcome_of_failure(said: Fail, attempt: int) -> m.Outcome:
    """A failure whose code need not be one of ours: a word that we do not know stays in the message."""
    known = said.error_code in list(FailureCode)
    message = said.error_msg if known or not said.error_code else f"{said.error_code}: {said.error_msg}"
    if said.logs_ref:
        message = f"{message} (logs: {said.logs_ref})"
    code = FailureCode(said.error_code) if known else FailureCode.EXIT
    return m.Outcome(job_id=said.job_id, attempt=attempt, failure=Failure(code, message[:4000]))


def outcome_of_result(said: Result, job_id: str, attempt: int, artifacts: Mapping[str, m.ArtifactEntry]) -> m.Outcome:
    """A result: such a node reports failures through the other route, so this one is good."""
    return m.Outcome(job_id=job_id, attempt=attempt, exit_code=said.exit_code, artifacts=tuple(artifacts.values()))
