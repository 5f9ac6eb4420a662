"""Between node and coordinator: registration, leases, reports and deliveries."""

from typing import Any

from msgspec import Struct, field

from ostler.model.attempt import AttemptState, Usage
from ostler.model.capabilities import Capabilities
from ostler.model.enumeration import Word
from ostler.model.failures import Failure
from ostler.model.manifest import InputFile
from ostler.model.rollout.report import Report
from ostler.model.service import Observation
from ostler.protocol.dsse import Envelope

PROTOCOL = 1  # what this release speaks
PROTOCOL_MIN = 1  # the oldest that it still understands


class Outside(Word):
    """Where a node stands that speaks no protocol of this release's."""

    OLDER = "older"
    NEWER = "newer"


def outside(protocol: int) -> Outside | None:
    """Which side of this release's window a protocol is on; None inside."""
    return Outside.OLDER if protocol < PROTOCOL_MIN else Outside.NEWER if protocol > PROTOCOL else None


def mend_outside(side: Outside | None, node_id: str) -> str:
    """What brings such a node back in."""
    update = f"`ostler fleet update --host {node_id}`"
    return f"upgrade the coordinator, or with its release {update}" if side is Outside.NEWER else update


LOG_STREAMS = ("stdout", "stderr")
INLINE_LOG_BYTES = 64 * 1024  # a shorter log tail travels inside the outcome
INLINE_BYTES = 64 * 1024  # all artifacts of an attempt together, where they travel inside the outcome, to whoever takes that


class Held(Struct, frozen=True):
    """One attempt that a node holds: the fencing pair."""

    job_id: str
    attempt: int


class RegisterRequest(Struct, frozen=True, kw_only=True):
    """A daemon's first call. With a join token it enrols `public_key` (raw Ed25519, base64); later it signs a challenge.

    `boot_epoch` is "<kernel boot id>:<daemon incarnation>". `held` lists the attempts that the node still has; what the
    coordinator believes it has besides is lost. `signature` is over `register_message(...)`. With a `session_key` (raw X25519, made for
    this session) the coordinator answers with its own.
    """

    node_id: str
    version: str
    protocol: int
    boot_epoch: str
    public_key: bytes
    capabilities: Capabilities
    cpu_slots: int
    gpu_slots: int
    held: tuple[Held, ...] = ()
    challenge: str | None = None
    signature: bytes | None = None
    session_key: bytes | None = None


def register_message(challenge: str, node_id: str, boot_epoch: str) -> bytes:
    """What a node signs to prove that it has the private half of its key."""
    return f"ostler-register-v1\n{challenge}\n{node_id}\n{boot_epoch}".encode()


class ProveRequest(Struct, frozen=True, kw_only=True):
    """A node asks whether its key is known, and opens no session. `signature` is over `prove_message(...)`."""

    node_id: str
    protocol: int
    public_key: bytes
    challenge: str | None = None
    signature: bytes | None = None


def prove_message(challenge: str, node_id: str) -> bytes:
    """What a node signs to ask whether its key is known."""
    return f"ostler-prove-v1\n{challenge}\n{node_id}".encode()


class KeyRequest(Struct, frozen=True, kw_only=True):
    """A node's new key in the place of the one that it has: both sign `key_message(...)`."""

    node_id: str
    public_key: bytes
    new_key: bytes
    challenge: str
    signature: bytes
    new_signature: bytes


def key_message(challenge: str, node_id: str, new_key: bytes) -> bytes:
    """What a node signs with its key and with the new one."""
    return f"ostler-key-v1\n{challenge}\n{node_id}\n{new_key.hex()}".encode()


class KeyStanding(Struct, frozen=True, kw_only=True):
    """The ids of a node's keys (`dsse.key_id`): the one that it has, and the one that takes its place with the first session that it
    opens. Until then both are good."""

    node_id: str
    key_id: str
    next_key_id: str | None = None


class RegisterResponse(Struct, frozen=True, kw_only=True):
    """What the node lives by from now on. `coordinator_key` is the raw Ed25519 key that signs assignments.

    An outcome may carry so many `inline_bytes` of artifacts; a release that knows nothing of that says 0. `session_key` is an envelope
    around an `Agreement`, signed by that key.
    """

    node_id: str
    node_token: str
    token_ttl_s: float
    heartbeat_s: float
    lease_s: float
    pull_wait_s: float
    coordinator_key: bytes
    version: str
    protocol: int
    protocol_min: int
    draining: bool = False
    forget: tuple[Held, ...] = ()
    inline_bytes: int = 0
    session_key: Envelope | None = None


class DirectiveKind(Word):
    """What a coordinator may tell a node."""

    CANCEL = "cancel"
    DRAIN = "drain"
    RESUME = "resume"
    RECONCILE = "reconcile"
    FORGET = "forget"
    REFRESH_TOKEN = "refresh_token"  # noqa: S105 - a kind of directive
    REGISTER = "register"
    DEBUG = "debug"
    UPDATE = "update"


class WantedUpdate(Struct, frozen=True, kw_only=True):
    """The release that a node is to run: what its `platform` needs of the bundle, by sha256 and size, and for how long it must be good.
    With `back` (why) the node is to undo this very update in place of making it.
    """

    rollout_id: str
    release: str
    sha256: str
    size: int
    window_s: float
    back: str | None = None
    platform: str | None = None


class Directive(Struct, frozen=True, kw_only=True):
    """One wish of the coordinator.

    cancel: end this attempt and report it cancelled. reconcile: the coordinator believes that you hold this attempt; if not, report it
    failed with E_LOST. forget: this attempt is over for the coordinator; stop and discard it. refresh_token: use `token` from
    now on. register: your session is unknown, register anew. debug: pin this attempt's workspace and upload it.
    drain (with `timeout_s`: what then still runs is cancelled) and resume speak to the node as a whole; so does update, to nodes whose
    capabilities say that they take releases.
    """

    kind: DirectiveKind
    job_id: str | None = None
    attempt: int | None = None
    reason: str | None = None
    token: str | None = None
    timeout_s: float | None = None
    update: WantedUpdate | None = None


class HeartbeatRequest(Struct, frozen=True, kw_only=True):
    """Renews the lease of exactly the attempts in `held`. `held=None` (the source's form) renews all that the node has."""

    node_id: str
    load: float = 0.0
    free_mb: int = 0
    gpu_free: int = 0
    disk_free_mb: int | None = None
    held: tuple[Held, ...] | None = None
    version: str | None = None
    boot_epoch: str | None = None
    draining: bool = False
    quarantine: str | None = None  # why it takes no work, where it found something wrong with itself
    health: tuple[str, ...] = ()
    slots: int | None = None
    capabilities: Capabilities | None = None  # only when they changed
    services: tuple[Observation, ...] | None = None  # all that the node declares; only when something changed
    update: Report | None = None  # how the update stands that is wanted


class HeartbeatResponse(Struct, frozen=True, kw_only=True):
    """Directives, and how long the renewed leases now last."""

    ok: bool = True
    lease_s: float = 0.0
    directives: tuple[Directive, ...] = ()


class PullRequest(Struct, frozen=True, kw_only=True):
    """A long poll. `slots` and `gpu_slots` are credit: how many more jobs the node takes now; the newest pull of a node wins.

    `held` are all attempts that the node has or was offered: a lease offered earlier and missing here is taken back at once.
    Without `protocol` the caller speaks the source's section 8 and gets one plain manifest. `together`: it reads an envelope that
    holds a list of assignments. `begins`: the first so many of what it is given are acknowledged by this very call; for that a
    session numbers its pulls, upwards from 1, and takes such a word from the newest one alone. `session_key` names the session's key by
    which it would know what it is given; the coordinator signs where it does not have that one.
    """

    node_id: str
    filters: dict[str, Any] | None = None
    slots: int = 1
    gpu_slots: int = 0
    wait_s: float = 0.0
    held: tuple[Held, ...] = ()
    protocol: int | None = None
    boot_epoch: str | None = None
    together: bool = False
    begins: int = 0
    number: int = 0
    session_key: str | None = None


class Assignment(Struct, frozen=True, kw_only=True):
    """The signed payload: `spec` is the manifest, byte for byte as it was submitted; the rest is what the coordinator adds.

    One of a `latency` queue begins before all that was leased ahead. One that is `acked` was acknowledged by the pull of this name
    (`pull_name`), and by no other one that it might be brought by again.
    """

    job_id: str
    attempt: int
    node_id: str
    lease_s: float
    spec: str
    tries: int = 0
    inputs: tuple[InputFile, ...] = ()  # artifacts of other jobs that `spec` names as inputs, as they are
    latency: bool = False
    acked: bool = False
    pull: str = ""


def pull_name(boot_epoch: str, number: int) -> str:
    """Of one pull of all that a node ever makes."""
    return f"{boot_epoch}:{number}"


class PullResponse(Struct, frozen=True, kw_only=True):
    """Leases as signed envelopes and directives. `job` is only for callers of the source's section 8.

    An envelope's payload is an Assignment, or a list of them for who asked for that; its payload type tells which.
    """

    job: dict[str, Any] | None = None
    jobs: tuple[Envelope, ...] = ()
    directives: tuple[Directive, ...] = ()


class AckItem(Struct, frozen=True, kw_only=True):
    """Accepts a lease, or hands it back unbegun with a reason (`decline`), which costs no retry."""

    job_id: str
    attempt: int
    decline: str | None = None


class ProgressItem(Struct, frozen=True, kw_only=True):
    """Where a running attempt stands: its stage, and what the job says of itself (`pct` 0 to 100, `note` at most 500 characters)."""

    job_id: str
    attempt: int
    state: AttemptState | None = None
    pct: float | None = None
    note: str | None = None


class LogEnd(Struct, frozen=True, kw_only=True):
    """The end of one log stream: its whole `length` and `sha256` (hex); `tail` holds the bytes from `offset` that were not shipped yet."""

    stream: str
    length: int
    sha256: str
    offset: int = 0
    tail: bytes = b""


class ArtifactEntry(Struct, frozen=True, kw_only=True):
    """One delivered output; `size` in bytes, `sha256` in hex."""

    path: str
    type: str
    size: int
    sha256: str


class Outcome(Struct, frozen=True, kw_only=True):
    """How an attempt ended: done (no failure, not cancelled), failed or cancelled. Idempotent by (job_id, attempt).

    `contents` are the bytes of small artifacts by path; an outcome in a batch brings those of all that it names, or none.
    """

    job_id: str
    attempt: int
    failure: Failure | None = None
    cancelled: bool = False
    exit_code: int | None = None
    signal: int | None = None
    usage: Usage = Usage()
    logs: tuple[LogEnd, ...] = ()
    artifacts: tuple[ArtifactEntry, ...] = ()
    sandbox: str | None = None
    contents: dict[str, bytes] = field(default_factory=dict)


class AckBatch(Struct, frozen=True, kw_only=True):
    """Body of `POST /jobs/ack`."""

    items: tuple[AckItem, ...]


class ProgressBatch(Struct, frozen=True, kw_only=True):
    """Body of `POST /jobs/progress`."""

    items: tuple[ProgressItem, ...]


class OutcomeBatch(Struct, frozen=True, kw_only=True):
    """Body of `POST /jobs/result` and `POST /jobs/fail`."""

    items: tuple[Outcome, ...]


class ItemResult(Struct, frozen=True, kw_only=True):
    """The answer to one item: ok, or the code of the error tree, its message, and for logs the offset to rewind to."""

    job_id: str
    attempt: int
    ok: bool = True
    code: str | None = None
    message: str | None = None
    stream: str | None = None
    offset: int | None = None


class BatchResponse(Struct, frozen=True, kw_only=True):
    """One answer per item, in order."""

    items: tuple[ItemResult, ...]


class SecretValue(Struct, frozen=True, kw_only=True):
    """One value on its way to the node that runs an attempt (base64 on the wire)."""

    name: str
    value: bytes

    def __repr__(self) -> str:
        """Without the value: what is printed ends up in logs."""
        return f"SecretValue(name={self.name!r})"


class SecretValues(Struct, frozen=True, kw_only=True):
    """The values of all secrets that an attempt's manifest names, one for each entry and in that order."""

    items: tuple[SecretValue, ...]
