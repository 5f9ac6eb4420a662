"""The coordinator's process: `python -m ostler.assembly.coordinator --data DIR [--listen HOST:PORT]`.

It says "ready URL" on standard output, logs to standard error, looks at its certificate's files anew at SIGHUP, and
stops at SIGTERM or SIGINT. Exit codes: 0 stopped, 1 a file that cannot be used, 2 wrong usage, 3 cannot start as configured, 4 its
database cannot be reached.
"""

import argparse
import asyncio
import gc
import resource
import secrets
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import uvloop

from ostler.assembly import handover
from ostler.assembly.endings import guard_daemon
from ostler.coordinator.config import CoordinatorConfig, refuse_password
from ostler.coordinator.keys import read_secret
from ostler.coordinator.service import run_coordinator
from ostler.fleet.releases.reading import read_bundle
from ostler.model.errors import InvalidSpec, Problem, Rejected
from ostler.runtime.cores import forbid_core_dumps
from ostler.runtime.logs import open_log

TOKEN_NAME = "admin.token"  # noqa: S105 - a file's name
DESCRIPTORS = 65_536
# An open long poll is a hundred objects that the collector of cycles looks at, so with ten thousand nodes a whole collection stops
# everything for seconds, and Python's own thresholds ask for one each few seconds. What is cyclic garbage here dies young.
SELDOM = (50_000, 3, 1_000)


def parse(arguments: Sequence[str]) -> tuple[CoordinatorConfig, argparse.Namespace]:
    """The configuration: out of an inherited descriptor, which was checked before, or of a few flags. Raises InvalidSpec."""
    parser = argparse.ArgumentParser(prog="python -m ostler.assembly.coordinator", description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config-fd", type=int, metavar="N", help="read the whole configuration from this descriptor")
    source.add_argument("--data", type=Path, metavar="DIR", help="the directory that belongs to this coordinator")
    parser.add_argument("--listen", default="127.0.0.1:7070", metavar="HOST:PORT", help="port 0 takes a free one")
    parser.add_argument("--store", metavar="URL", help="where the state is kept (default: ostler.db in the data directory)")
    parser.add_argument("--allow-insecure-listen", action="store_true", help="listen beyond loopback although there is no TLS")
    parser.add_argument("--lease", type=float, metavar="S", help="how long a node's lease lasts")
    parser.add_argument("--heartbeat", type=float, metavar="S", help="how often a node renews")
    parser.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    parser.add_argument("--log-plain", action="store_true", help="log lines for eyes instead of JSON")
    given = parser.parse_args(arguments)
    if given.config_fd is not None:
        return handover.take(given.config_fd, CoordinatorConfig), given
    host, _, port = given.listen.rpartition(":")
    if not host or not port.isdigit():
        parser.error(f"--listen: {given.listen!r} is not HOST:PORT")
    refuse_password(given.store)
    plain = CoordinatorConfig(data=given.data.absolute())
    config = replace(
        plain,
        listen_host=host.strip("[]"),
        listen_port=int(port),
        store=given.store,
        allow_insecure_listen=given.allow_insecure_listen,
        lease=plain.lease if given.lease is None else timedelta(seconds=given.lease),
        heartbeat=plain.heartbeat if given.heartbeat is None else timedelta(seconds=given.heartbeat),
    )
    if wrong := config.problems():
        raise InvalidSpec("the configuration is not valid", [Problem(*line.partition(": ")[::2]) for line in wrong])
    return config, given


def admin_token(config: CoordinatorConfig) -> str:
    """The API token of whoever owns the data directory, made at the first start. Raises Rejected where that cannot be used."""
    made = f"ostler_api_admin_{secrets.token_urlsafe(32)}\n"
    try:
        config.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        return read_secret(config.data / TOKEN_NAME, made.encode).decode().strip()
    except OSError as exc:
        raise Rejected(
            f"the data directory {config.data} cannot be used: {exc.strerror}", hint="give another with --data DIR"
        ) from exc


def _let_many_in() -> None:
    """Each connection is a descriptor, and the usual soft limit of 1024 is less than what one address may hold open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < (wanted := min(hard, DESCRIPTORS)):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _run(config: CoordinatorConfig, given: argparse.Namespace) -> None:
    stop, hangup = asyncio.Event(), asyncio.Event()
    for one, act in ((signal.SIGTERM, stop.set), (signal.SIGINT, stop.set), (signal.SIGHUP, hangup.set)):
        asyncio.get_running_loop().add_signal_handler(one, act)
    logger = open_log(level=given.log_level, as_json=not given.log_plain)
    await run_coordinator(
        config, stop=stop, on_ready=_tell, logger=logger, read_bundle=read_bundle,
        admin_token=await asyncio.to_thread(admin_token, config), hangup=hangup,
    )  # fmt: skip


def _tell(url: str) -> None:
    gc.collect()
    gc.freeze()  # what start-up made stays for good: no later collection needs to look at it again
    gc.set_threshold(*SELDOM)
    sys.stdout.write(f"ready {url}\n")
    sys.stdout.flush()


def main(arguments: Sequence[str]) -> int:
    """Runs until stopped."""
    forbid_core_dumps()

    def work() -> None:
        config, given = parse(arguments)
        _let_many_in()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_run(config, given))

    return guard_daemon(work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
