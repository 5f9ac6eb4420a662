"""What `ostler fleet install` and `ostler node install` bring: release, configuration that was checked here, and join tokens."""

import asyncio
import subprocess
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

from ostler.assembly.endpoint import Endpoint, look_for_endpoint
from ostler.assembly.resolve import resolve_node
from ostler.fleet.installing import Wanted
from ostler.fleet.inventory.host import Host
from ostler.fleet.inventory.load import COMMAND_LINE
from ostler.fleet.node_config import CA, CANARY, CONFIG_DIR, Own, render
from ostler.fleet.releases.store import Release, for_platform
from ostler.fleet.ssh.step import Outcome, Step
from ostler.model.errors import InvalidSpec, MachineUnreachable, NotFound, OstlerError, Problem
from ostler.model.node import NodeState
from ostler.model.words import on_one_line
from ostler.node.allowlist import parse_entry
from ostler.node.session import is_loopback
from ostler.protocol import routes
from ostler.protocol.client import AsyncClient
from ostler.protocol.messages import NodeView, ReasonRequest, TokenKind, TokenRequest
from ostler.protocol.trust import Trust

JOIN_S = 900.0
ALLOWLIST = "allowlist.d"


def wanted(release: Release, *, token: Callable[[], Awaitable[str | None]] | None) -> Wanted:
    """A release for hosts; `token` answers a join token where a host needs one."""
    return Wanted(
        release=release.release,
        digest=release.manifest.digest,
        platforms=release.manifest.platforms,
        bundle_mb=max(1, release.size >> 20),
        bundle=cache(lambda platform: for_platform(release.bundle, platform)),
        token=token,
    )


async def join_token(endpoint: Endpoint, host: Host) -> str:
    """A join token for one host and its pool, made by the coordinator and good for a quarter of an hour. Raises the error tree."""
    tls = Trust(ca_file=endpoint.ca_file, client_cert=endpoint.client_cert, client_key=endpoint.client_key)
    note = f"ostler fleet install {host.name}"
    asked = TokenRequest(kind=TokenKind.JOIN, pool=host.pool, uses=1, note=note, expires_s=JOIN_S)
    async with AsyncClient(endpoint.url, token=endpoint.token, trust=tls) as client:
        made = await client.call(routes.CREATE_TOKEN, asked)
    return str(made.token)


async def known_as(endpoint: Endpoint, node_id: str) -> str | None:
    """The name itself where the coordinator has a node of it that is not retired; None too where it cannot be asked."""
    tls = Trust(ca_file=endpoint.ca_file, client_cert=endpoint.client_cert, client_key=endpoint.client_key)
    try:
        async with AsyncClient(endpoint.url, token=endpoint.token, trust=tls) as client:
            node: NodeView = await client.call(routes.SHOW_NODE, node_id=node_id)
    except OstlerError:
        return None
    return None if node.state is NodeState.RETIRED else node_id


async def retire(endpoint: Endpoint, node_id: str) -> bool:
    """Have the coordinator forget a node whose host has no Ostler any more; False where it did already. Raises the error tree."""
    tls = Trust(ca_file=endpoint.ca_file, client_cert=endpoint.client_cert, client_key=endpoint.client_key)
    async with AsyncClient(endpoint.url, token=endpoint.token, trust=tls) as client:
        try:
            node: NodeView = await client.call(routes.SHOW_NODE, node_id=node_id)
            if node.state is NodeState.RETIRED:
                return False
            await client.call(routes.RETIRE_NODE, ReasonRequest(reason="ostler fleet uninstall"), node_id=node_id)
        except NotFound:
            return False
    return True


def own_of(host: Host, *, coordinator: str, ca_file: Path | None, allowlist: Mapping[str, str]) -> Own:
    """A host's configuration and what stands beside it. Raises InvalidSpec with every mistake in it."""
    text = render(host, coordinator=coordinator, own_ca=ca_file is not None)
    with tempfile.TemporaryDirectory(prefix="ostler-install-") as place:
        file = Path(place, f"{host.name}.yaml")
        file.write_text(text)
        try:
            resolve_node(file, env={}, need_secrets=False)
        except InvalidSpec as exc:
            said = host.origin.get("vars.node") or host.origin.get("vars.services") or host.origin.get("name")
            problems = [
                replace(one, file=said, line=None) for one in exc.problems
            ]  # the text is ours, the words are the inventory's
            raise InvalidSpec(
                f"the node's configuration that the inventory makes for {host.name} is not valid", problems
            ) from None
    files = CANARY | {f"{ALLOWLIST}/{name}": content for name, content in allowlist.items()}
    return Own(config=text, files=files if ca_file is None else {**files, CA: _read(ca_file)})


def owns(hosts: Mapping[str, Host], *, coordinator: str | None) -> dict[str, Own]:
    """What is each host's own, as its inventory has it now. Raises InvalidSpec with the first host's mistakes.

    Nothing of hosts that were only named, and of none where no coordinator is named here or by `coordinator`, its URL as hosts reach it.
    """
    hosts = {name: host for name, host in hosts.items() if host.origin.get("name") != COMMAND_LINE}
    endpoint = look_for_endpoint()
    if not hosts or (endpoint is None and coordinator is None):
        return {}
    found = endpoint or Endpoint(url=coordinator or "", origin="--coordinator")
    address = address_for_hosts(found, coordinator)
    return {name: own_of(host, coordinator=address, ca_file=found.ca_file, allowlist={}) for name, host in hosts.items()}


def address_for_hosts(endpoint: Endpoint, named: str | None) -> str:
    """The URL under which hosts reach the coordinator's API. Raises InvalidSpec for one that only this machine reaches."""
    url = (named or endpoint.url).rstrip("/")
    if urlsplit(url).scheme not in {"http", "https"} or not urlsplit(url).hostname:
        raise InvalidSpec(f"{url!r} is not the URL of a coordinator", hint="it has the form https://HOST:PORT")
    if named is None and is_loopback(url):
        raise InvalidSpec(
            f"{url} is an address that only this machine reaches", hint="say --coordinator URL as the hosts reach it"
        )
    return url if url.endswith("/api/v1") else f"{url}/api/v1"


_ALLOWLIST = "--allowlist names a directory with one file for each command that jobs may run"


def allowlist_mistakes(entries: Mapping[str, str | None]) -> list[str]:
    """Every mistake in a host's allowlist, one line each; the entries' texts by file name, None where one cannot be read."""
    found = []
    for file, text in ((f"{CONFIG_DIR}/{ALLOWLIST}/{name}", text) for name, text in sorted(entries.items())):
        problems = [Problem("", "cannot be read as UTF-8 text", file)] if text is None else parse_entry(text, file=file)[1]
        found += [on_one_line(str(one)) for one in problems]
    return found


def read_allowlist(folder: Path | None) -> dict[str, str]:
    """The entries of a folder by file name. Raises InvalidSpec with every mistake."""
    found = {}
    problems = []
    for file in sorted(folder.glob("*.yaml")) if folder is not None else ():
        found[file.name] = _read(file)
        problems += parse_entry(found[file.name], file=str(file))[1]
    if problems:
        raise InvalidSpec("the allowlist is not valid", problems)
    if folder is not None and not found:
        raise InvalidSpec(f"{folder} has no *.yaml" if folder.is_dir() else f"there is no directory {folder}", hint=_ALLOWLIST)
    return found


async def run_here(step: Step) -> Outcome:
    """Carry a step out on this very machine. Raises MachineUnreachable where it does not end in time."""
    try:
        done = await asyncio.to_thread(
            subprocess.run,
            step.argv,
            input=b"".join(step.stdin),
            capture_output=True,
            check=False,
            timeout=step.timeout.total_seconds(),
        )
    except subprocess.TimeoutExpired:
        raise MachineUnreachable(f"{step.title}: no end in {step.timeout.total_seconds():g} s") from None
    return Outcome(code=done.returncode, stdout=done.stdout, stderr=done.stderr)


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as exc:
        raise InvalidSpec(f"{file} cannot be read: {exc}") from exc
