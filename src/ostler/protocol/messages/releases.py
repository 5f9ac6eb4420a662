"""Between people, nodes and coordinator: the releases that hosts get."""

from datetime import datetime

from msgspec import Struct


class ReleaseQuery(Struct, frozen=True, kw_only=True):
    """Of an upload: the sha256 of the manifest as the operator knows it, and (admins) to trust from now on the keys that it brings."""

    digest: str | None = None
    trust: bool = False


class BundleQuery(Struct, frozen=True, kw_only=True):
    """Of a download: only what a host of this platform (`cp311-x86_64`) needs; absent: the whole bundle."""

    platform: str | None = None


class ReleaseView(Struct, frozen=True, kw_only=True):
    """One release that the coordinator has. `size` and `sha256` are of its bundle, `made_at` is when its commit was made, `nodes` counts
    those that run it."""

    release: str
    digest: str
    version: str
    commit: str | None
    made_at: datetime | None
    protocol: tuple[int, int]
    schema: int
    platforms: tuple[str, ...]
    signed_by: tuple[str, ...]
    sha256: str
    size: int
    pushed_at: datetime
    pushed_by: str | None = None
    nodes: int = 0


class ReleasePage(Struct, frozen=True, kw_only=True):
    """All releases, the one that was pushed last first; `trusted` are the ids of the release keys that the coordinator believes."""

    items: tuple[ReleaseView, ...]
    next_cursor: str | None = None
    trusted: tuple[str, ...] = ()
