"""Releases: which the coordinator has, and whose signatures it believes. Each function is one transaction's worth."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from ostler.coordinator.store.times import when
from ostler.coordinator.store.tx import Row, Tx
from ostler.model.errors import Conflict, NotFound
from ostler.model.release import Age, Excerpt, Release, age
from ostler.protocol.codec import decode, encode
from ostler.protocol.messages import ReleasePage, ReleaseView

_COLUMNS = "release, sha256, size, facts, pushed_at, pushed_by"


@dataclass(frozen=True, slots=True)
class Trusted:
    """The release keys that are believed, raw, by id. A set is replaced by one of a later generation alone, as on a host."""

    generation: int
    keys: Mapping[str, bytes]


def trusted(tx: Tx) -> Trusted:
    """Whom to believe; nobody before the first upload. For `Store.read`."""
    rows = tx.rows("SELECT key_id, public, generation FROM release_keys ORDER BY key_id")
    return Trusted(rows[0][2] if rows else 0, {key_id: bytes(public) for key_id, public, _ in rows})


def check_wanted(tx: Tx, *, trust: bool) -> Mapping[str, bytes] | None:
    """The keys by which an upload is to be judged before its bytes are taken; None: those that it brings. Raises Conflict."""
    keys = trusted(tx).keys
    if trust:
        return None
    if not keys:
        raise Conflict(
            "the coordinator trusts no release key yet", hint="an admin's first one tells it whom: `ostler release push --trust`"
        )
    return keys


def add_release(tx: Tx, release: Release, *, sha256: str, size: int, by: str | None, trust: bool) -> ReleaseView:
    """Keep a bundle that was checked; one of this id that is there stays. Its keys are believed from now on, where they are newer, or
    because an admin says so (`trust`).
    """
    _adopt(tx, release, trust=trust)
    facts = {
        "digest": release.digest, "version": release.version, "commit": release.commit, "made": release.made,
        "protocol": release.protocol, "schema": release.schema, "platforms": release.platforms, "signed_by": release.signed_by,
        "excerpts": release.excerpts,
    }  # fmt: skip
    tx.run(
        f"INSERT INTO releases ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (release) DO NOTHING",  # noqa: S608 - our own constant
        (release.release, sha256, size, encode(facts).decode(), tx.at, by),
    )
    return show_release(tx, release.release)


def _adopt(tx: Tx, release: Release, *, trust: bool) -> None:
    now = trusted(tx)
    if not trust and release.generation <= now.generation:
        return
    tx.run("DELETE FROM release_keys")
    tx.many(
        "INSERT INTO release_keys (key_id, public, generation) VALUES (?, ?, ?)",
        [(name, key, release.generation) for name, key in sorted(release.keys.items())],
    )


def list_releases(tx: Tx) -> ReleasePage:
    """All of them, the newest first: there are tens. For `Store.read`."""
    rows = tx.rows(f"SELECT {_COLUMNS} FROM releases ORDER BY pushed_at DESC, release")  # noqa: S608 - our own constant
    running = _running(tx)
    return ReleasePage(items=tuple(_view(row, running) for row in rows), trusted=tuple(sorted(trusted(tx).keys)))


def show_release(tx: Tx, release: str) -> ReleaseView:
    """One release; raises NotFound."""
    row = tx.row(f"SELECT {_COLUMNS} FROM releases WHERE release = ?", (release,))  # noqa: S608 - our own constant
    if row is None:
        raise NotFound(f"the coordinator has no release {release}", hint=f"ostler release push {release}")
    return _view(row, _running(tx))


def ages(tx: Tx) -> dict[str, Age]:
    """How old each release is that the coordinator has. For `Store.read`."""
    told = {
        release: decode(facts, _Facts, what="facts of a release")
        for release, facts in tx.rows("SELECT release, facts FROM releases")
    }
    return {release: age(one.version, one.made) for release, one in told.items()}


def remove_release(tx: Tx, release: str) -> ReleaseView:
    """Keep it no longer; its bytes go with the next sweep. Raises NotFound."""
    view = show_release(tx, release)
    tx.run("DELETE FROM releases WHERE release = ?", (release,))
    return view


def _running(tx: Tx) -> dict[str, int]:
    """How many nodes that are not retired run each release."""
    name = tx.json_text("c.body", "release")
    return dict(
        tx.rows(
            f"""SELECT {name}, count(*) FROM nodes n JOIN capabilities c ON c.node_id = n.node_id
                WHERE n.state <> 'retired' AND {name} IS NOT NULL GROUP BY 1"""  # noqa: S608 - a fragment of ours
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Facts:
    digest: str
    version: str
    commit: str | None
    made: int
    protocol: tuple[int, int]
    schema: int
    platforms: tuple[str, ...]
    signed_by: tuple[str, ...]
    excerpts: dict[str, Excerpt]


def excerpts_of(tx: Tx, release: str) -> Mapping[str, Excerpt]:
    """What of its bundle hosts need, by platform; nothing where there is no such release. For `Store.read`."""
    row = tx.row("SELECT facts FROM releases WHERE release = ?", (release,))
    return {} if row is None else decode(row[0], _Facts, what="facts of a release").excerpts


def _view(row: Row, running: Mapping[str, int]) -> ReleaseView:
    release, sha256, size, facts, pushed_at, pushed_by = row
    said = decode(facts, _Facts, what="facts of a release")
    return ReleaseView(
        release=release, digest=said.digest, version=said.version, commit=said.commit,
        made_at=datetime.fromtimestamp(said.made, UTC) if said.made else None, protocol=said.protocol, schema=said.schema,
        platforms=said.platforms, signed_by=said.signed_by, sha256=sha256, size=size, pushed_at=when(pushed_at),
        pushed_by=pushed_by, nodes=running.get(release, 0),
    )  # fmt: skip
