"""A bucket of S3, or a prefix of one, as a place of backups.

There is no rename here and no lock, but a content appears whole, and is seen by whoever asks afterwards. On that rests a hold: who
adds or prunes puts a content of its own into `locks/` *before* it looks who else has one there. So of two at least the later one sees
the other: who adds makes way for who prunes, and who prunes leaves the contents alone while anybody adds. Such a lock is written anew
while its owner lives. One that is older than STALE, by the server's clock, is nobody's; its owner, if it only slept, counts by its
own clock and gives up before.

The client reads AWS_* from the environment, as all clients of S3 do; nothing of that is in a configuration of Ostler's.
"""

import contextlib
import itertools
import os
import secrets
import ssl
import threading
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ostler.coordinator.config import s3_parts
from ostler.coordinator.upkeep.places.port import Hold
from ostler.coordinator.upkeep.places.s3_errors import explained
from ostler.model.errors import InvalidSpec, OperationInFlight, OstlerError, Rejected

try:
    import obstore
    from obstore.exceptions import AlreadyExistsError, BaseError, NotSupportedError
    from obstore.store import S3Store
except ImportError as exc:
    raise Rejected(
        "backups in S3 need the package obstore, which is not installed",
        hint="pipx inject ostler obstore, or: pip install 'ostler[s3]'",
    ) from exc

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

STALE = timedelta(minutes=15)  # of a lock that nobody wrote anew
REFRESH = timedelta(minutes=2)
GIVE_UP = timedelta(minutes=10)
PART = 8 * 2**20  # bytes: larger contents are uploaded in parts
BLOCK = 2**20
_PARTS = 9000  # at most 10,000 are allowed
_AT_ONCE = 2  # parts of one content
_LOCKS = "locks"
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")


class S3Place:
    """See `Place`."""

    lanes = 8

    def __init__(self, bucket: str, prefix: str, *, endpoint: str | None, ca_bundle: Path | None) -> None:
        self.bucket, self.prefix = bucket, prefix
        self.endpoint = endpoint or "Amazon S3"
        self._options: ClientConfig = {
            "allow_http": (endpoint or "").startswith("http://"),
            "timeout": "1day",
            "read_timeout": "300s",
        }
        if ca_bundle is not None:
            self._options["root_certificate"] = _certificates(ca_bundle)
        # Who waits for the first answer shall not wait for minutes; what is under way outlives an interruption.
        self._first, self._patient = self._client(retries=2, within_s=10), self._client(retries=10, within_s=180)
        self._reached = False

    @classmethod
    def at(cls, address: str) -> "S3Place":
        """The place of an address, with what the environment says of the server. Raises InvalidSpec."""
        try:
            bucket, prefix = s3_parts(address)
        except ValueError as exc:
            raise InvalidSpec(str(exc)) from None
        # What cannot be part of a request would stop the client with a panic.
        for name in (name for name, value in os.environ.items() if name.startswith("AWS_") and not value.isprintable()):
            raise InvalidSpec(
                f"{name} has a character in it that cannot be printed", hint="perhaps the end of a line; write it anew"
            )
        name, endpoint = next(((name, found) for name in _ENDPOINTS if (found := os.environ.get(name))), ("", None))
        if endpoint is not None and not _is_endpoint(endpoint):
            raise InvalidSpec(f"{name} is no address of a server", hint="write https://HOST or https://HOST:PORT")
        bundle = os.environ.get("AWS_CA_BUNDLE")
        return cls(bucket, prefix, endpoint=endpoint, ca_bundle=Path(bundle) if bundle else None)

    def _client(self, *, retries: int, within_s: float) -> S3Store:
        retry: RetryConfig = {"max_retries": retries, "retry_timeout": timedelta(seconds=within_s)}
        with self._told():
            return S3Store(self.bucket, prefix=self.prefix or None, client_options=self._options, retry_config=retry)

    @property
    def shown(self) -> str:
        """The address."""
        return f"s3://{self.bucket}/{self.prefix}".removesuffix("/")

    @property
    def _store(self) -> S3Store:
        return self._patient if self._reached else self._first

    @contextlib.contextmanager
    def _told(self, *, reads: bool = True) -> Iterator[None]:
        """Errors of the client as ours. Not chained: what they say may hold more than anybody should read."""
        try:
            yield
        except FileNotFoundError as exc:
            if "NoSuchBucket" in str(exc) or not reads:
                raise self._explained(exc) from None
            raise FileNotFoundError(str(exc).partition(":")[0]) from None
        except (AlreadyExistsError, NotSupportedError):
            raise
        except (BaseError, ValueError) as exc:
            raise self._explained(exc) from None
        self._reached = True

    def _explained(self, exc: Exception) -> Exception:
        return explained(exc, shown=self.shown, bucket=self.bucket, endpoint=self.endpoint)

    def folders(self) -> list[str]:
        """See `Place`."""
        with self._told():
            return sorted(obstore.list_with_delimiter(self._store)["common_prefixes"])

    def names(self, folder: str = "") -> Iterator[str]:
        """See `Place`."""
        pages = iter(obstore.list(self._store, prefix=folder or None, chunk_size=1000))
        while True:
            with self._told():
                page = next(pages, None)
            if page is None:
                return
            yield from (one["path"] for one in page)

    def read(self, name: str) -> bytes:
        """See `Place`."""
        with self._told():
            return bytes(obstore.get(self._store, name).bytes())

    def stream(self, name: str) -> Iterator[bytes]:
        """See `Place`."""
        with self._told():
            blocks = iter(obstore.get(self._store, name).stream(BLOCK))
        while True:
            with self._told():
                block = next(blocks, None)
            if block is None:
                return
            yield block

    def claim(self, name: str, content: bytes) -> bool:
        """See `Place`. Where the server knows no condition (If-None-Match), the last of several that ask at once has it; those that
        have read it by then find out when they finish."""
        try:
            with self._told(reads=False):
                obstore.put(self._store, name, content, mode="create")
        except AlreadyExistsError:
            return False
        except NotSupportedError:
            self.write(name, [content], len(content))
        return self.read(name) == content

    def write(self, name: str, blocks: Iterable[bytes], size: int) -> None:
        """See `Place`."""
        source = _Source(blocks)
        first = b"".join(source.up_to(PART))
        try:
            with self._told(reads=False):
                if len(first) < PART:
                    obstore.put(self._store, name, first, use_multipart=False)
                else:
                    content = itertools.chain([first], source)
                    obstore.put(self._store, name, content, chunk_size=max(PART, size // _PARTS), max_concurrency=_AT_ONCE)
        except Exception:
            if source.raised is not None:  # the client may say that it could not take back what it had begun
                raise source.raised from None
            raise

    def local(self, name: str) -> None:
        """See `Place`: it is on no machine of ours."""

    def new_folder(self, stem: str) -> str:
        """See `Place`: others may ask in the same second."""
        return f"{stem}-{secrets.token_hex(4)}"

    def settle(self, folder: str) -> None:
        """See `Place`: what was written is safe."""

    def remove(self, names: Iterable[str]) -> None:
        """See `Place`."""
        if listed := list(names):
            with self._told(reads=False):
                obstore.delete(self._store, listed)

    def drop(self, folder: str) -> None:
        """See `Place`."""
        self.remove(self.names(folder))

    def removal(self, folder: str) -> str:
        """See `Place`."""
        return f"aws s3 rm --recursive {self.shown}/{folder}/"

    @contextlib.contextmanager
    def hold(self, *, prune: bool) -> Iterator[Hold]:
        """See `Place`."""
        lock = _Lock(self, "prune" if prune else "add")
        with lock.kept():
            others = lock.others()
            if any(name.startswith("prune-") for name in others):
                raise OperationInFlight(
                    f"the backups in {self.shown} are being pruned",
                    hint=f"wait until that is over; if it was killed, for {STALE.total_seconds() / 60:.0f} minutes",
                )
            yield Hold(alone=prune and not others, check=lock.check)

    def ages(self, folder: str) -> dict[str, float]:
        """When each content of a folder was written, by the server's clock; names without the folder."""
        with self._told():
            return {
                one["path"].rpartition("/")[2]: one["last_modified"].timestamp()
                for page in obstore.list(self._store, prefix=folder, chunk_size=1000)
                for one in page
            }


class _Lock:
    """One owner's content in `locks/`."""

    def __init__(self, place: S3Place, kind: str) -> None:
        self._place, self._name = place, f"{kind}-{secrets.token_hex(8)}"
        self._over, self._written_at = threading.Event(), 0.0

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Written anew in here, by a thread of its own, so that whoever looks knows that its owner lives."""
        self._write()
        thread = threading.Thread(target=self._keep, name="backup-lock", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()
            with contextlib.suppress(OstlerError):  # then it ends by its age
                self._place.remove([self._path])

    def others(self) -> list[str]:
        """The locks of others that live; the others' are removed."""
        ages = self._place.ages(_LOCKS)
        now = ages.pop(self._name, None)
        if now is None:
            raise self._lost()
        dead = [name for name, at in ages.items() if now - at > STALE.total_seconds()]
        self._place.remove([f"{_LOCKS}/{name}" for name in dead])
        return [name for name in ages if name not in dead]

    def check(self) -> None:
        """Raises OperationInFlight where others may take this lock for a dead one's."""
        if time.clock_gettime(
            time.CLOCK_BOOTTIME
        ) - self._written_at > GIVE_UP.total_seconds() or self._name not in self._place.ages(_LOCKS):
            raise self._lost()

    def _lost(self) -> OperationInFlight:
        return OperationInFlight(
            f"{self._place.shown} was out of reach for so long that others may have changed it meanwhile", hint="start anew"
        )

    @property
    def _path(self) -> str:
        return f"{_LOCKS}/{self._name}"

    def _write(self) -> None:
        began = time.clock_gettime(time.CLOCK_BOOTTIME)  # suspension counts
        self._place.write(self._path, [b"an ostler backup is at work\n"], 0)
        self._written_at = began

    def _keep(self) -> None:
        while not self._over.wait(REFRESH.total_seconds()):
            if time.clock_gettime(time.CLOCK_BOOTTIME) - self._written_at > GIVE_UP.total_seconds():
                return  # somebody may have removed it: it must not come back
            with contextlib.suppress(Exception):  # the next round tries again, `check` tells
                self._write()


class _Source:
    """Blocks, and what they raised: the client would say something else."""

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self._blocks, self.raised = iter(blocks), None

    raised: BaseException | None

    def up_to(self, size: int) -> Iterator[bytes]:
        """Blocks until there are so many bytes, or all."""
        have = 0
        while have < size and (block := next(self, None)) is not None:
            have += len(block)
            yield block

    def __iter__(self) -> "_Source":
        return self

    def __next__(self) -> bytes:
        try:
            return next(self._blocks)
        except StopIteration:
            raise
        except BaseException as exc:
            self.raised = exc
            raise


def _is_endpoint(text: str) -> bool:
    try:
        found = urlsplit(text)
        found.port  # noqa: B018 - raises where it is none
    except ValueError:
        return False
    return (
        found.scheme in {"http", "https"} and bool(found.hostname) and "@" not in found.netloc and not (found.query or found.fragment)
        and text.isascii() and text.isprintable() and " " not in text
    )  # fmt: skip


def _certificates(bundle: Path) -> str:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(bundle)  # what holds none would be told less clearly later
        return bundle.read_text("ascii", "replace")
    except ssl.SSLError:
        raise InvalidSpec(f"AWS_CA_BUNDLE: there are no certificates (PEM) in {bundle}") from None
    except OSError as exc:
        raise InvalidSpec(f"AWS_CA_BUNDLE: {bundle} cannot be read: {exc.strerror}") from None
