"""The coordinator's configuration: one frozen value, built and validated in `assembly`."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ostler.model.errors import InvalidSpec
from ostler.model.manifest import NAME
from ostler.model.quota import parse_money

DATABASE_NAME = "ostler.db"
RENEW_AFTER = timedelta(seconds=1)  # a pull that changes nothing else renews at most so often; a lease's margin must be longer

STRICT = {"extra": "forbid"}


# What libpq also takes for an address. Here it would be a file of that name, which may have a password in it.
_KEYWORDS = re.compile(r"(?:^|\s)(?:host|hostaddr|port|user|dbname|password|passfile|service)\s*=")
_ADDRESS = "write postgresql://USER@HOST:PORT/DATABASE, or a path to an SQLite file"


S3_SCHEME = "s3://"
_S3 = re.compile(
    r"s3://(?P<bucket>[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9])(?P<prefix>(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9._=+-]+)*)/?"
)


def s3_parts(address: str) -> tuple[str, str]:
    """Bucket and prefix of s3://BUCKET/PREFIX. Raises ValueError, which does not say the address again where a secret may be in it."""
    if found := _S3.fullmatch(address):
        return found["bucket"], found["prefix"].removeprefix("/")
    if "@" in address or "?" in address:
        raise ValueError("credentials are no part of an address: they come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    raise ValueError(f"{address[:200]!r} is not s3://BUCKET/PREFIX, with a bucket of 3 to 63 letters, digits, . and -")


def refuse_password(store: str | None) -> None:
    """For an address of the store that was typed as an option: raises InvalidSpec where a password stands in it, or it is none."""
    if store is None:
        return
    keywords = "://" not in store and _KEYWORDS.search(store) is not None
    try:
        secret = "://" in store and (urlsplit(store).password or "password=" in unquote(store))
    except ValueError:
        raise InvalidSpec("the address of the store is not valid", hint=_ADDRESS) from None
    if secret or (keywords and re.search(r"password\s*=", store)):
        raise InvalidSpec(
            "a password on the command line can be read by everybody on this machine",
            hint="leave it out of --store: put it into ~/.pgpass (or the file that PGPASSFILE names) or PGPASSWORD, or write the whole "
            "address as `store` into coordinator.yaml, or into OSTLER_COORDINATOR__STORE",
        )
    if keywords:
        raise InvalidSpec("an address of the store is no list of KEY=VALUE", hint=_ADDRESS)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolRetention:
    """What is otherwise for jobs whose last attempt was on a node of one pool; what is left out is as for all."""

    __pydantic_config__ = STRICT

    jobs: timedelta | None = None
    events: timedelta | None = None
    logs: timedelta | None = None
    artifacts: timedelta | None = None
    logs_mb: int | None = None
    artifacts_mb: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How long things are kept, counted from the end of their job, and how much of them in MB (absent: no limit); beyond it the
    oldest go first.

    `uploads` are input files that no job names; `idempotency` keys make a repeated submission give the same answer. Of the `audit`
    log the seals stay for ever. A job that is removed takes its events, logs and artifacts with it; `nodes` that were retired go once
    no job names them. A pass is made `every` so often.
    """

    __pydantic_config__ = STRICT

    jobs: timedelta = timedelta(days=90)
    events: timedelta = timedelta(days=90)
    logs: timedelta = timedelta(days=30)
    artifacts: timedelta = timedelta(days=30)
    uploads: timedelta = timedelta(days=7)
    idempotency: timedelta = timedelta(hours=24)
    audit: timedelta = timedelta(days=400)
    nodes: timedelta = timedelta(days=90)
    logs_mb: int | None = None
    artifacts_mb: int | None = None
    every: timedelta = timedelta(hours=1)
    pools: dict[str, PoolRetention] = field(default_factory=dict)

    def of(self, pool: str | None) -> PoolRetention:
        """What holds for a pool, every age filled in. Its sizes are its own alone: those of all stand beside them."""
        own = self.pools.get(pool or "", PoolRetention())
        return PoolRetention(
            jobs=own.jobs or self.jobs, events=own.events or self.events, logs=own.logs or self.logs,
            artifacts=own.artifacts or self.artifacts, logs_mb=own.logs_mb, artifacts_mb=own.artifacts_mb,
        )  # fmt: skip

    def shortest(self, *kinds: str) -> timedelta:
        """The shortest age of these kinds in any pool: nothing younger needs a look."""
        ages: list[timedelta] = [getattr(one, kind) for one in (self.of(None), *map(self.of, self.pools)) for kind in kinds]
        return min(ages)

    def problems(self) -> Iterator[str]:
        """What is wrong, as "field: what"."""
        places: list[tuple[str, Retention | PoolRetention]] = [("", self)]
        places += [(f"pools.{name}.", one) for name, one in self.pools.items()]
        for place, one in places:
            for name in ("jobs", "events", "logs", "artifacts", "uploads", "idempotency", "audit", "nodes", "every"):
                age = getattr(one, name, None)
                if age is not None and age <= timedelta(0):
                    yield f"{place}{name}: must be longer than 0 s"
            for name in ("logs_mb", "artifacts_mb"):
                size = getattr(one, name)
                if size is not None and size < 0:
                    yield f"{place}{name}: must be 0 or more"


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretsConfig:
    """Where the key comes from under which the store keeps secrets: from `keys/secrets.key` in `data`, made at the first start, or
    from a command (program and arguments, without a shell) that prints it at each start: 32 raw bytes, or those as base64."""

    key_command: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsConfig:
    """Certificate (with what chains it to its authority) and key as PEM files; they are read anew when they change. With a `client_ca`
    a client must show a certificate that this authority signed, beside its token."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 - read by the validator of human input

    cert: Path
    key: Path
    client_ca: Path | None = None

    def problems(self) -> Iterator[str]:
        """As those of the whole."""
        for name in ("cert", "key", "client_ca"):
            if (path := getattr(self, name)) is not None and not path.is_absolute():
                yield f"tls.{name}: must be an absolute path"


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitsConfig:
    """How much one caller may ask: an API token, a node, or where neither is shown an address. More is answered with 429 and a time
    to come back. `calls_per_s` with `burst` at once; `open_calls` at the same time, long polls among them; `failures_per_s` are
    authentications that fail, from one address (four seconds' worth at once); `commands_per_s` those that one principal gives to one
    service (likewise); `connections` are those that one address holds open."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 - read by the validator of human input

    calls_per_s: float = 2000.0
    burst: float = 4000.0
    failures_per_s: float = 5.0
    commands_per_s: float = 5.0
    open_calls: int = 1024
    connections: int = 4096

    def problems(self) -> Iterator[str]:
        """As those of the whole."""
        for name in ("calls_per_s", "failures_per_s", "commands_per_s"):
            if not getattr(self, name) > 0:
                yield f"limits.{name}: must be more than 0"
        for name in ("burst", "open_calls", "connections"):
            if not getattr(self, name) >= 1:
                yield f"limits.{name}: must be 1 or more"


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolPrice:
    """What an hour of one processor thread and of one GPU costs, as decimals in quotes, such as "0.05"."""

    __pydantic_config__ = STRICT

    cpu_hour: str = "0"
    gpu_hour: str = "0"

    def problems(self) -> Iterator[str]:
        """What is wrong, as "field: what"."""
        for name in ("cpu_hour", "gpu_hour"):
            try:
                parse_money(getattr(self, name))
            except ValueError as exc:
                yield f"{name}: {exc}"


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhooksConfig:
    """Whom webhooks may reach: with `allow_private` also this machine and its own network, for receivers that stand there; without,
    public addresses alone, since a webhook is an address that somebody else chose and the coordinator calls."""

    __pydantic_config__ = STRICT

    allow_private: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupConfig:
    """Backups that the coordinator takes by itself: a directory, or s3://BUCKET/PREFIX, that `ostler backup list`, `verify` and
    `ostler restore` read, how often, and how many of them are kept. With a `passphrase_file` they are encrypted, which those need that
    shall hold keys. For S3 the coordinator's environment has AWS_ACCESS_KEY_ID and the rest."""

    __pydantic_config__ = STRICT

    to: str
    every: timedelta = timedelta(hours=24)
    keep: int = 7
    passphrase_file: Path | None = None
    with_keys: bool = False

    def problems(self) -> Iterator[str]:
        """As those of the whole."""
        if str(self.to).startswith(S3_SCHEME):
            try:
                s3_parts(self.to)
            except ValueError as exc:
                yield f"backup.to: {exc}"
        elif not Path(self.to).is_absolute():
            yield "backup.to: must be an absolute path, or s3://BUCKET/PREFIX"
        if self.passphrase_file is not None and not self.passphrase_file.is_absolute():
            yield "backup.passphrase_file: must be an absolute path"
        if self.every < timedelta(minutes=1):
            yield "backup.every: must be 1 m or longer"
        if self.keep < 1:
            yield "backup.keep: must be 1 or more"
        if self.with_keys and self.passphrase_file is None:
            yield "backup.with_keys: needs a passphrase_file, since whoever reads the keys can do whatever the coordinator can"


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorConfig:
    """Where the coordinator keeps its data, where it listens, and the durations that it sets for nodes.

    `data` is a directory that belongs to one coordinator. A node's lease lasts `lease`; the coordinator adds `lease_margin`
    before it judges, so that a node always gives a job up earlier than it is reassigned. A pull is held back for `pull_wait`, at the
    most for half of the lease. Sizes are in bytes. Beyond loopback it listens with `tls` alone; `allow_insecure_listen` is for a
    proxy on another machine that terminates TLS.

    `store` is where the state is kept: an SQLite file, which is `ostler.db` in `data` where nothing is said, or
    postgresql://USER@HOST:PORT/DATABASE, which several coordinators may share; `env:NAME` reads it from the environment.

    `artifacts` is a directory that all of them see; by default it is in `data`.

    Jobs of `latency_queues` go before other jobs of the same submitter and begin before what a node has leased ahead; the jobs of all
    other queues are leased in batches.
    """

    __pydantic_config__ = STRICT

    data: Path
    artifacts: Path | None = None
    listen_host: str = "127.0.0.1"
    listen_port: int = 7070
    allow_insecure_listen: bool = False
    tls: TlsConfig | None = None
    lease: timedelta = timedelta(seconds=45)
    lease_margin: timedelta = timedelta(seconds=5)
    heartbeat: timedelta = timedelta(seconds=15)
    pull_wait: timedelta = timedelta(seconds=30)
    token_ttl: timedelta = timedelta(hours=1)
    drain: timedelta = timedelta(seconds=10)
    latency_queues: tuple[str, ...] = ("interactive",)
    max_log_bytes: int = 64 * 2**20
    max_batch: int = 10_000
    store: str | None = field(default=None, repr=False)
    secrets: SecretsConfig = SecretsConfig()
    retention: Retention = field(default_factory=Retention)
    limits: LimitsConfig = LimitsConfig()
    prices: dict[str, PoolPrice] = field(default_factory=dict)
    webhooks: WebhooksConfig = WebhooksConfig()
    backup: BackupConfig | None = None

    @property
    def latency(self) -> frozenset[str]:
        """The queues whose jobs are leased one by one and never wait behind a batch."""
        return frozenset(self.latency_queues)

    @property
    def longest_poll(self) -> timedelta:
        """How long a pull is held back: a lease that it brings counts from when it was sent, so most of that must be left."""
        return min(self.pull_wait, self.lease / 2)

    @property
    def artifacts_directory(self) -> Path:
        """Where artifacts and uploaded inputs are kept."""
        return self.artifacts or self.data / "artifacts"

    @property
    def database(self) -> str:
        """What `Store.open` takes: what is configured, else the SQLite file under `data`."""
        return self.store or str(self.data / DATABASE_NAME)

    def problems(self) -> list[str]:
        """Every contradiction at once, as "field: what is wrong"; empty when the values fit each other."""
        listed = self.store is not None and "://" not in self.store and _KEYWORDS.search(self.store)
        found = [f"store: is a list of KEY=VALUE; {_ADDRESS}"] if listed else []
        if self.artifacts is not None and not self.artifacts.is_absolute():
            found.append("artifacts: must be an absolute path")
        if not 0 <= self.listen_port <= 65535:
            found.append(f"listen_port: {self.listen_port} is not a port (0 to 65535)")
        for name in ("lease", "heartbeat", "pull_wait", "token_ttl"):
            if getattr(self, name) <= timedelta(0):
                found.append(f"{name}: must be longer than 0 s")
        if self.lease_margin <= RENEW_AFTER:
            found.append(f"lease_margin: must be longer than {RENEW_AFTER.total_seconds():g} s, which a renewal may be late by")
        found += [
            f"latency_queues: {name!r} must be 1 to 63 letters, digits, '.', '_' or '-'"
            for name in self.latency_queues
            if not NAME.fullmatch(name)
        ]
        if self.drain < timedelta(0):
            found.append("drain: must be 0 s or longer")
        if self.heartbeat * 2 >= self.lease:
            found.append(
                f"heartbeat: {self.heartbeat.total_seconds():g} s must be less than half of the lease "
                f"({self.lease.total_seconds():g} s), so that one lost heartbeat loses no job"
            )
        for section in (self.tls, self.limits, self.backup):
            found += [] if section is None else section.problems()
        if self.max_log_bytes <= 0:
            found.append("max_log_bytes: must be more than 0")
        if self.secrets.key_command and not self.secrets.key_command[0].startswith("/"):
            found.append("secrets.key_command: must begin with the absolute path of a program")
        if not 1 <= self.max_batch <= 10_000:
            found.append("max_batch: must be from 1 to 10000")
        for place, pools in (("prices", self.prices), ("retention.pools", self.retention.pools)):
            found += [f"{place}: {pool[:100]!r} is no pool's name" for pool in pools if not NAME.fullmatch(pool)]
        found += [f"prices.{pool}.{line}" for pool, price in self.prices.items() for line in price.problems()]
        found += [f"retention.{line}" for line in self.retention.problems()]
        return found
