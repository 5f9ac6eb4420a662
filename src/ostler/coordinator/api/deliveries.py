"""One result with its artifacts, as a form: bytes go straight to staging files and get a name when the whole form is good."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from msgspec import structs

from ostler.coordinator.api import section8
from ostler.coordinator.api.bodies import decode_json
from ostler.coordinator.api.calls import Call
from ostler.coordinator.api.multipart import Part, PartEnd, read_form
from ostler.coordinator.artifacts.store import Staging
from ostler.coordinator.operations import leases
from ostler.coordinator.operations.uploads import Expected, expected_artifacts
from ostler.coordinator.store.beside import beside_others
from ostler.coordinator.store.tx import Tx
from ostler.model.errors import InvalidSpec, Problem, TooLarge
from ostler.model.manifest import Artifact
from ostler.protocol import messages as m
from ostler.protocol.forms import escape

MAX_METADATA = 8 * 2**20
MAX_FIELD = 1024
MAX_PARTS = 1000
MB = 2**20
_METADATA = frozenset({"metadata", "metadata.json"})


@dataclass(frozen=True, slots=True)
class Delivered:
    """The answer to the one outcome; `source_form` when the caller spoke the source's section 8."""

    result: m.ItemResult
    source_form: bool


@dataclass(slots=True)
class _File:
    """One artifact on its way in; `limit` in bytes."""

    staging: Staging | None  # None: its bytes are read and dropped
    path: str
    declared: Artifact | None
    limit: int
    entry: m.ArtifactEntry | None
    size: int = 0


@dataclass(slots=True)
class _Delivery:
    """What is known of one form so far."""

    call: Call
    fields: dict[str, bytearray] = field(default_factory=dict)
    outcome: m.Outcome | None = None
    source: section8.Result | None = None
    job_id: str = ""
    attempt: int = 0
    expected: Expected | None = None
    staged: list[Staging] = field(default_factory=list)
    entries: dict[str, m.ArtifactEntry] = field(default_factory=dict)

    async def open(self) -> Expected:
        """Reads the metadata and asks what may be delivered: before the first byte of an artifact is taken."""
        if self.expected is not None:
            return self.expected
        self._read_metadata()
        node, store = self.call.node, self.call.services.store
        if self.outcome is not None:
            self.job_id, self.attempt = self.outcome.job_id, self.outcome.attempt
        else:
            source = self.source or section8.Result()
            self.call.own_node(source.node_id)
            self.job_id = source.job_id or self._text("job_id")
            if source.attempt is not None:
                self.attempt = source.attempt
            else:
                self.attempt = await store.read(leases.bind_live_attempt, node.node_id, self.job_id)
        self.expected = await store.read(expected_artifacts, node.node_id, self.job_id, self.attempt)
        return self.expected

    def _read_metadata(self) -> None:
        raw = next((bytes(self.fields[name]) for name in _METADATA if name in self.fields), None)
        if raw is None:
            raise InvalidSpec("the form is not a result", [Problem("metadata", "must come before the artifacts")])
        said = decode_json(raw, section8.Result)
        if said.job_id is not None and said.attempt is not None:
            self.outcome = decode_json(raw, m.Outcome)
            if self.outcome.contents:  # nobody would hold them against their sha256
                raise InvalidSpec("the form is not a result", [Problem("contents", "go as files of the form")])
        else:
            self.source = said

    def _text(self, name: str) -> str:
        raw = self.fields.get(name)
        if not raw:
            raise InvalidSpec("the form is not a result", [Problem(name, "is missing")])
        try:
            return raw.decode()
        except UnicodeDecodeError as exc:
            raise InvalidSpec("the form is not a result", [Problem(name, "is not UTF-8")]) from exc

    async def begin(self, filename: str) -> _File:
        """Admits one artifact: declared by the manifest, announced by the metadata, not too large, and once."""
        expected = await self.open()
        path, declared = _declared(expected.artifacts, filename, by_name=self.outcome is None)
        known = self.outcome.artifacts if self.outcome is not None else ()
        entry = next((one for one in known if one.path == path), None)
        if expected.over or (declared is None and self.outcome is None):
            # A form of section 8 must hold a file also where the job declares none: it is read and dropped.
            return _File(None, path, declared, self.call.route.max_body, entry)
        if declared is None:
            raise InvalidSpec("an artifact is not wanted", [Problem(filename, "is not declared by the manifest's `artifacts`")])
        if path in self.entries or len(self.staged) >= MAX_PARTS:
            raise InvalidSpec("an artifact is not wanted", [Problem(path, "stands twice in the form, or is one too many")])
        if self.outcome is not None and entry is None:
            raise InvalidSpec("an artifact is not wanted", [Problem(path, "is not listed in the metadata's `artifacts`")])
        limit = declared.max_mb * MB
        if entry is not None and not 0 <= entry.size <= limit:
            raise _too_large(path, declared)
        staging = await self.call.services.artifacts.stage()
        self.staged.append(staging)
        return _File(staging, path, declared, entry.size if entry is not None else limit, entry)

    async def write(self, file: _File, data: bytes) -> None:
        """Bytes of an artifact; refused at the first one too many."""
        file.size += len(data)
        if file.size > file.limit:
            if file.entry is None and file.declared is not None:
                raise _too_large(file.path, file.declared)
            raise InvalidSpec("an artifact is not as announced", [Problem(file.path, f"is longer than {file.limit} bytes")])
        if file.staging is not None:
            await file.staging.write(data)

    async def end(self, file: _File) -> None:
        """An artifact is whole: as long as announced, with the announced sha256, and on the disk."""
        if file.staging is None:
            return
        if file.entry is not None and file.size != file.entry.size:
            raise InvalidSpec(
                "an artifact is not as announced", [Problem(file.path, f"has {file.size} bytes, not {file.entry.size}")]
            )
        stored = await file.staging.seal(file.entry.sha256 if file.entry is not None else None)
        kind = file.declared.type if file.declared is not None else "application/octet-stream"
        self.entries[file.path] = m.ArtifactEntry(path=file.path, type=kind, size=stored.size, sha256=stored.sha256)

    async def finish(self) -> Delivered:
        """Names the bytes, then the outcome: an outcome never names what is not durable."""
        expected = await self.open()
        announced = self.outcome.artifacts if self.outcome is not None else ()
        if not expected.over and (missing := [one.path for one in announced if one.path not in self.entries]):
            raise InvalidSpec("the form is not whole", [Problem(path, "is announced and was not sent") for path in missing])
        for staging in self.staged:
            await staging.commit()
        if self.outcome is not None:
            # What the manifest says an artifact is stands in the store, whatever the node calls it.
            outcome = structs.replace(self.outcome, artifacts=tuple(self.entries.get(one.path, one) for one in announced))
        else:
            outcome = section8.outcome_of_result(self.source or section8.Result(), self.job_id, self.attempt, self.entries)
        result = await self.call.services.store.write(_finish_one, self.call.node.node_id, outcome, self.call.node.boot_epoch)
        return Delivered(result, self.outcome is None)


@beside_others
def _finish_one(tx: Tx, node_id: str, outcome: m.Outcome, boot_epoch: str) -> m.ItemResult:
    return leases.finish_attempts(tx, node_id, [outcome], boot_epoch=boot_epoch)[0]


async def receive_delivery(call: Call) -> Delivered:
    """Takes one form. Whatever goes wrong, no staging file is left."""
    delivery = _Delivery(call)
    text: tuple[str, int] | None = None
    file: _File | None = None
    try:
        async for event in read_form(call.while_admitted(call.body.chunks()), call.header(b"content-type") or ""):
            if isinstance(event, Part):
                text, file = None, None
                if event.name in _METADATA or event.filename is None:
                    if event.name in delivery.fields or len(delivery.fields) > 16:
                        raise InvalidSpec("the form is not a result", [Problem(event.name, "stands twice, or is one too many")])
                    delivery.fields[event.name] = bytearray()
                    text = event.name, MAX_METADATA if event.name in _METADATA else MAX_FIELD
                else:
                    file = await delivery.begin(event.filename)
            elif isinstance(event, PartEnd):
                if file is not None:
                    await delivery.end(file)
            elif file is not None:
                await delivery.write(file, event)
            elif text is not None:
                name, limit = text
                delivery.fields[name] += event
                if len(delivery.fields[name]) > limit:
                    raise TooLarge(f"the part {name} is longer than {limit} bytes")
        return await delivery.finish()
    finally:
        for staging in delivery.staged:
            await staging.discard()


def _declared(artifacts: Mapping[str, Artifact], filename: str, *, by_name: bool) -> tuple[str, Artifact | None]:
    """The declared artifact that a file's name means, as forms spell it; `by_name` also by its last part alone."""
    if filename in artifacts:
        return filename, artifacts[filename]
    same = [path for path in artifacts if escape(path) == filename]
    same = same or [path for path in artifacts if by_name and escape(path.rpartition("/")[2]) == filename]
    return (same[0], artifacts[same[0]]) if len(same) == 1 else (filename, None)


def _too_large(path: str, declared: Artifact) -> TooLarge:
    return TooLarge(f"the artifact {path} is larger than the {declared.max_mb} MB that the manifest allows; nothing was stored")
