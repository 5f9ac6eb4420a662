"""Endpoints of and about nodes: registration, heartbeats, and what people decide about them."""

from dataclasses import dataclass
from typing import Any, Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from msgspec.structs import replace

from ostler import __version__
from ostler.coordinator.api import section8, window
from ostler.coordinator.api.bodies import decode_json
from ostler.coordinator.api.calls import Call, Services
from ostler.coordinator.api.credentials import Credentials
from ostler.coordinator.operations import nodes as ops
from ostler.coordinator.operations import overview as overviews
from ostler.coordinator.operations import reads, tokens
from ostler.coordinator.store.tx import Tx
from ostler.model.errors import InvalidSpec, Problem, StaleAttempt, Unauthenticated, UpgradeRequired
from ostler.model.manifest import NAME
from ostler.protocol import messages as m
from ostler.protocol.dsse import Envelope, is_public_key

KEY_BYTES = 32
MAX_TEXT = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class _Hello:
    """What every release, older or newer, says in its registration."""

    protocol: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outsider:
    """What of a registration is the same in every protocol: enough to know who it is, and to keep what it holds for it."""

    protocol: int
    node_id: str
    version: str
    boot_epoch: str
    public_key: bytes
    held: tuple[m.Held, ...] = ()
    challenge: str | None = None
    signature: bytes | None = None


async def register_node(call: Call) -> Any:
    """A join token enrols a node; one that is enrolled signs a challenge and needs no token."""
    services = call.services
    raw = await call.body.whole()
    protocol = decode_json(raw, _Hello).protocol
    if protocol is not None and m.outside(protocol) is not None:
        raise await _refuse_outsider(call, raw, protocol)
    request = section8.read_registration(raw) or decode_json(raw, m.RegisterRequest)
    _check_registration(request)
    if call.caller.secret is not None:
        call.target = request.node_id
        session = await call.write(_enrol, request, call.caller.secret, services.credentials.challenge())
    else:
        await _check_registrant(call, request)
        session = await services.store.write(ops.open_session, request)
    services.door.note_session(request.node_id, request.boot_epoch)
    services.pulls.begin_session(request.node_id)
    config = services.config
    return m.RegisterResponse(
        node_id=request.node_id,
        node_token=services.credentials.node_token(request.node_id, request.boot_epoch, request.protocol),
        token_ttl_s=config.token_ttl.total_seconds(),
        heartbeat_s=config.heartbeat.total_seconds(),
        lease_s=config.lease.total_seconds(),
        pull_wait_s=config.longest_poll.total_seconds(),
        coordinator_key=services.keys.public,
        version=__version__,
        protocol=m.PROTOCOL,
        protocol_min=m.PROTOCOL_MIN,
        draining=session.draining,
        forget=session.forget,
        inline_bytes=m.INLINE_BYTES,
        session_key=_agreed(services, request),
    )


def _agreed(services: Services, request: m.RegisterRequest) -> Envelope | None:
    if request.session_key is None:
        return None
    try:
        return services.session_keys.agree(request.node_id, request.boot_epoch, request.session_key)
    except ValueError:  # of small order: what it has is signed, as for who asks for nothing else
        return None


async def _refuse_outsider(call: Call, raw: bytes, protocol: int) -> UpgradeRequired:
    """It opens no session. Where it proves which node it is, its leases are renewed, so that nobody else is given what it runs."""
    services = call.services
    try:
        said = decode_json(raw, _Outsider)
    except InvalidSpec:
        return window.refusal(protocol, "NODE")
    if said.signature is None:
        return window.refusal(protocol, said.node_id, challenge=services.credentials.challenge())
    found = [*_check_text("boot_epoch", said.boot_epoch), *_check_text("version", said.version)]
    if found:
        raise InvalidSpec("the registration is not valid", found)
    call.target = said.node_id
    await _check_registrant(call, said)
    refusal = window.refusal(protocol, said.node_id, lease_s=services.config.lease.total_seconds())
    await services.store.write(
        ops.renew_outside, said.node_id, said.boot_epoch, said.held, protocol=protocol, version=said.version, why=refusal.message
    )
    return refusal


def _check_registration(request: m.RegisterRequest) -> None:
    found = []
    if not NAME.fullmatch(request.node_id):
        found.append(Problem("node_id", "must be 1 to 63 letters, digits, '.', '_' or '-'"))
    for name in ("boot_epoch", "version"):
        found += _check_text(name, getattr(request, name))
    if not section8.is_keyless(request):
        found += _check_key("public_key", request.public_key)
    if request.session_key is not None and len(request.session_key) != KEY_BYTES:
        found.append(Problem("session_key", f"must be a raw X25519 key of {KEY_BYTES} bytes, in base64"))
    for name in ("cpu_slots", "gpu_slots"):
        if not 0 <= getattr(request, name) <= 10_000:
            found.append(Problem(name, "must be from 0 to 10000"))
    if found:
        raise InvalidSpec("the registration is not valid", found)


def _check_key(name: str, key: bytes) -> list[Problem]:
    if len(key) != KEY_BYTES:
        return [Problem(name, f"must be a raw Ed25519 key of {KEY_BYTES} bytes, in base64")]
    weak = "is no sound Ed25519 public key: it is of small order, or not in its one encoding; make another one"
    return [] if is_public_key(key) else [Problem(name, weak)]


def _check_text(name: str, value: str) -> list[Problem]:
    good = 0 < len(value) <= MAX_TEXT and value.isprintable()
    return [] if good else [Problem(name, f"must be 1 to {MAX_TEXT} printable characters")]


def _enrol(tx: Tx, request: m.RegisterRequest, join_token: str, challenge: str) -> ops.Session:
    """A join token's use and what it buys are one transaction: neither is had without the other.

    It lets strangers in. A node that is known proves that it is that node, whatever token it shows: a public key is no secret.
    """
    token_id = tokens.use_join_token(tx, join_token, request)
    if request.public_key and ops.is_enrolled(tx, request.node_id, request.public_key):
        raise Unauthenticated(
            f"node {request.node_id!r} is enrolled with this key already: sign the challenge with it", challenge=challenge
        )
    ops.enrol_node(tx, request, token_id)
    return ops.open_session(tx, request)


async def prove_node(call: Call) -> m.KeyStanding:
    """By a node that is asked whether it is known here; its session, if there is one, goes on."""
    request = await call.json(m.ProveRequest)
    if m.outside(request.protocol) is not None:
        raise window.refusal(request.protocol, request.node_id)
    message = m.prove_message(request.challenge or "", request.node_id)
    await _check_signature(call, request, message)
    return await call.read(ops.key_standing, request.node_id)


async def replace_key(call: Call) -> m.KeyStanding:
    """By a node, for itself. Who has no longer the old key cannot, and who has not the new one either."""
    request = await call.json(m.KeyRequest)
    if found := _check_key("new_key", request.new_key):
        raise InvalidSpec("the key is not valid", found)
    message = m.key_message(request.challenge, request.node_id, request.new_key)
    if not _verifies(request.new_key, request.new_signature, message):
        raise Unauthenticated("the new key did not sign for itself")
    await _check_signature(call, request, message)
    call.target = request.node_id
    return await call.write_for(f"node {request.node_id}", ops.replace_key, request.node_id, request.new_key)


async def _check_registrant(call: Call, request: m.RegisterRequest | _Outsider) -> None:
    message = m.register_message(request.challenge or "", request.node_id, request.boot_epoch)
    await _check_signature(call, request, message)


class _Proof(Protocol):
    """What a node shows to prove that it has the private half of its key."""

    @property
    def node_id(self) -> str: ...
    @property
    def public_key(self) -> bytes: ...
    @property
    def challenge(self) -> str | None: ...
    @property
    def signature(self) -> bytes | None: ...


async def _check_signature(call: Call, request: _Proof, message: bytes) -> None:
    """Spends the challenge: of several who answer with the same one, one is let in."""
    credentials = call.services.credentials
    if request.challenge is None or request.signature is None or not credentials.challenge_is_good(request.challenge):
        raise _must_sign(credentials)
    keys = await call.services.store.read(ops.node_keys, request.node_id)
    if request.public_key not in keys or not _verifies(request.public_key, request.signature, message):
        raise Unauthenticated(
            f"no node {request.node_id!r} is enrolled with this key",
            hint="enrol it: `ostler token create --join`, then start it with the token",
        )
    if not credentials.spend(request.challenge):
        raise _must_sign(credentials)


def _must_sign(credentials: Credentials) -> Unauthenticated:
    return Unauthenticated(
        "sign the challenge with the node's key, or show a join token",
        challenge=credentials.challenge(),
        hint="make a join token with `ostler token create --join` if this node was never enrolled",
    )


def _verifies(key: bytes, signature: bytes, message: bytes) -> bool:
    if not is_public_key(key):  # a node of section 8 has none
        return False
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except InvalidSignature:
        return False
    return True


async def heartbeat(call: Call) -> m.HeartbeatResponse:
    """Renews leases; answers directives, and a fresh token in the second half of the old one's life."""
    services = call.services
    request = await call.json(m.HeartbeatRequest)
    node_id = call.own_node(request.node_id)
    epoch = call.node.boot_epoch
    if request.boot_epoch not in {None, epoch}:
        raise StaleAttempt(f"the token of {node_id} is for another session than the heartbeat", hint="register the node anew")
    if request.version is not None and (found := _check_text("version", request.version)):
        raise InvalidSpec("the heartbeat is not valid", found)
    # What a power cut takes away the next heartbeat says again, but for what is told once, when it changed.
    once = request.capabilities is not None or request.services is not None
    write = services.store.write if once else services.store.write_lazily
    directives = await write(ops.heartbeat, replace(request, boot_epoch=epoch), call.node.protocol)
    if request.slots is not None:
        services.pulls.credit(node_id, request.slots)
    if request.capabilities is not None:
        services.pulls.changed(node_id)
    if services.credentials.wants_refresh(call.node):
        fresh = services.credentials.node_token(node_id, epoch, call.node.protocol)
        directives = [*directives, m.Directive(kind=m.DirectiveKind.REFRESH_TOKEN, token=fresh)]
    return m.HeartbeatResponse(lease_s=services.config.lease.total_seconds(), directives=tuple(directives))


async def overview(call: Call) -> m.Overview:
    """The fleet at a glance."""
    return await call.read(overviews.overview, call.owner)


async def list_nodes(call: Call) -> m.NodePage:
    """Nodes by id."""
    return await call.read(reads.list_nodes, call.query(m.PageQuery), call.owner)


async def show_node(call: Call) -> m.NodeView:
    """One node."""
    return await call.read(reads.show_node, call.path["node_id"], call.owner)


async def drain_node(call: Call) -> m.NodeView:
    """By a person, or by the node for itself."""
    if call.is_node:
        call.own_node(call.path["node_id"])
    return await call.write(ops.drain_node, call.path["node_id"], await call.json(m.DrainRequest))


async def resume_node(call: Call) -> m.NodeView:
    """By a person, or by the node for itself."""
    if call.is_node:
        call.own_node(call.path["node_id"])
    return await call.write(ops.resume_node, call.path["node_id"])


async def cordon_node(call: Call) -> m.NodeView:
    """By a person."""
    return await call.write(ops.cordon_node, call.path["node_id"], (await call.json(m.ReasonRequest)).reason)


async def uncordon_node(call: Call) -> m.NodeView:
    """By a person."""
    return await call.write(ops.uncordon_node, call.path["node_id"])


async def move_node(call: Call) -> m.NodeView:
    """By a person."""
    return await call.write(ops.move_node, call.path["node_id"], (await call.json(m.PoolRequest)).pool)


async def retire_node(call: Call) -> m.NodeView:
    """By a person. From the moment of the answer on no token of the node opens anything here."""
    node_id = call.path["node_id"]
    view = await call.write(ops.retire_node, node_id, (await call.json(m.ReasonRequest)).reason)
    call.services.door.retire(node_id)
    return view
