"""`ostler up`: coordinator, node and keeper as processes on one data directory, started, watched and stopped together."""

import contextlib
import fcntl
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from ostler.assembly import first_run, handover, keeper_stop, launch, profile
from ostler.assembly.children import Child, Launch, Nursery, Stopped
from ostler.assembly.resolve import checked_node, resolve_node
from ostler.assembly.resolve_coordinator import resolve_coordinator
from ostler.model.errors import OperationInFlight, OstlerError, Rejected
from ostler.model.node import NodeState
from ostler.node.config import NodeConfig
from ostler.protocol import routes
from ostler.protocol.client import Client
from ostler.protocol.messages import NodePage, NodeView, PageQuery, TokenRequest, TokenView
from ostler.protocol.trust import Trust
from ostler.runtime.settings import Flag

TOKEN_NAME = "admin.token"  # noqa: S105 - the coordinator writes it into its data directory
START_S = 60.0
JOIN_S = 600.0
PAGE = 500  # nodes in one answer
PROC = Path("/proc")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What was asked for. `slots` is None where nothing was said."""

    data: Path
    listen: str | None = None
    slots: int | None = None
    node: bool = True
    env: dict[str, str] = field(repr=False)


class Up:
    """One set. `run` returns after a signal."""

    def __init__(self, wanted: Wanted, *, tell: Callable[[str], None], ready: Callable[[str], None]) -> None:
        self.wanted, self.data = wanted, wanted.data
        self.tell, self._ready = tell, ready
        self.nursery = Nursery(tell, on_start=self._note)
        self.url = ""
        self.token = ""
        self._trust = Trust()
        self.join_token: TokenView | None = None
        log = self.data / "log"
        self.coordinator = Child("coordinator", self._plan_coordinator, log / "coordinator.log", patience_s=30.0)
        self.node = Child("node", self._plan_node, log / "node.log", patience_s=30.0)

    def run(self) -> None:
        """Start, say so, watch, stop. Raises OperationInFlight where another one runs on this data."""
        _make(self.data)
        with hold(self.data), self.nursery.signals():
            try:
                self._start()
                self._ready(self.url)
                self.nursery.keep_alive()
            except Stopped:
                self.tell("stopping")
            finally:
                self._stop()

    # --- start ---

    def _start(self) -> None:
        end_leftovers(self.data, self.tell)
        first_run.prepare(self.data, slots=self.wanted.slots or os.cpu_count() or 1, tell=self.tell)
        self._begin(self.coordinator)
        self.url = self.nursery.until(lambda: self.coordinator.said(b"ready "), self.coordinator, timeout_s=START_S)
        self._trust = self._trust_here()
        self.nursery.on_hangup = self._reload
        self._note()
        self.token = (self.data / TOKEN_NAME).read_text().strip()
        self._write_profiles()
        if self.wanted.node:
            with Client(self.url, token=self.token, trust=self._trust) as client:
                self._start_node(client)

    def _begin(self, child: Child) -> None:
        self.nursery.children.append(child)
        self.nursery.start(child)

    def _start_node(self, client: Client) -> None:
        before = _epochs(client)
        self.join_token = client.call(routes.CREATE_TOKEN, TokenRequest(expires_s=JOIN_S, note="ostler up"))
        self._begin(self.node)

        def joined() -> str | None:
            fresh = [one for one in _nodes(client) if one.boot_epoch != before.get(one.node_id)]
            up = (NodeState.READY, NodeState.DRAINING, NodeState.DRAINED)  # drained stays drained, and is no failure
            return next((one.node_id for one in fresh if one.state in up), None)

        self.nursery.until(joined, self.node, timeout_s=START_S)
        with contextlib.suppress(OstlerError):  # a node that was enrolled before took no use of it
            client.call(routes.REVOKE_TOKEN, token_id=self.join_token.token_id)
        self.join_token = None

    def _plan_coordinator(self) -> Launch:
        flags = {"data": Flag(name="--data", value=str(self.data)), **launch.listen_flags(self.wanted.listen)}
        if self.url:  # started again: where the others know it
            flags["listen_port"] = Flag(name="--listen", value=int(self.url.rpartition(":")[2]))
        file = self.data / "coordinator.yaml"
        config = resolve_coordinator(file if file.exists() else None, env=self.wanted.env, flags=flags).value
        descriptor = handover.put(config)
        return Launch(launch.daemon_command(launch.COORDINATOR, descriptor), self.wanted.env, (descriptor,))

    def _plan_node(self) -> Launch:
        file = self.data / "node.yaml"
        flags = {}
        if self.join_token is not None:
            flags["coordinator.auth_token"] = Flag(name="ostler up", value=self.join_token.token)
        env = self._node_env()
        descriptor = handover.put(checked_node(file, env=env, flags=flags))
        return Launch(launch.daemon_command(launch.NODE, descriptor, "--config-file", str(file)), env, (descriptor,))

    def _node_env(self) -> dict[str, str]:
        """As variables, so that a daemon that reads its file anew finds the same."""
        env = {**self.wanted.env, "OSTLER_NODE__COORDINATOR__BASE_URL": f"{self.url}/api/v1"}
        for name in ("ca_file", "client_cert", "client_key"):
            if (path := getattr(self._trust, name)) is not None:
                env[f"OSTLER_NODE__COORDINATOR__{name.upper()}"] = str(path)
        if self.wanted.slots is not None:
            env["OSTLER_NODE__RESOURCES__MAX_CONCURRENT_CPU"] = str(self.wanted.slots)
        return env

    def _trust_here(self) -> Trust:
        """What node.yaml says of the coordinator; where it pins no CA, the one of `ostler ca` on this data stands."""
        if not self.url.startswith("https:"):
            return Trust()
        said = resolve_node(self.data / "node.yaml", env=self.wanted.env, need_secrets=False).value.coordinator.trust
        own = self.data / "ca" / "ca.pem"
        return replace(said, ca_file=own) if said.verify and said.ca_file is None and own.exists() else said

    def _node_config(self) -> NodeConfig:
        return checked_node(self.data / "node.yaml", env=self._node_env())

    def _reload(self) -> None:
        for child in (self.coordinator, self.node):
            if child.process is not None:
                child.process.send_signal(signal.SIGHUP)

    # --- what others find ---

    def _write_profiles(self) -> None:
        trust = self._trust
        mine = profile.Profile(
            url=self.url, token=self.token, data=self.data,
            ca_file=trust.ca_file, client_cert=trust.client_cert, client_key=trust.client_key,
        )  # fmt: skip
        own = self.data / profile.NAME
        profile.write(own, mine)
        users = profile.user_profile(self.wanted.env)
        if users == own:
            return
        here = f"for this one: export OSTLER_PROFILE={own}"
        try:
            if may_replace(users, mine, self.wanted.env):
                profile.write(users, mine)
            else:
                self.tell(f"kept {users}, which names another coordinator; {here}")
        except OSError as exc:  # a user without a home, or with a full one: the set runs all the same
            self.tell(f"{users} cannot be written ({exc.strerror}); {here}")

    def _note(self) -> None:
        """Who we are and whom we started, for the next `ostler up` on this data."""
        children = {one.name: one.process.pid for one in self.nursery.children if one.process is not None}
        write_facts(self.data, self.url, children)

    # --- stop ---

    def _stop(self) -> None:
        """The daemon first, so that it starts nothing anew; then the keeper with what runs; the coordinator last."""
        killed = None
        if self.node in self.nursery.children:
            self.node.stop()
            with contextlib.suppress(OstlerError, OSError):
                killed = keeper_stop.shut_down(self._node_config().state)
        self.coordinator.stop()
        if killed:
            self.tell(
                f"killed {killed} running attempt{'' if killed == 1 else 's'}; they are tried again where their jobs allow it"
            )


def _make(data: Path) -> None:
    """The data directory, usable; raises Rejected."""
    why = None
    try:
        str(data).encode()
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(data, os.R_OK | os.W_OK | os.X_OK):
            why = "it is not writable for you"
    except UnicodeEncodeError:
        why = "its name is not valid Unicode"
    except FileExistsError:
        why = "it is not a directory"
    except OSError as exc:
        why = str(exc.strerror or exc)
    if why is not None:
        raise Rejected(f"the data directory {data} cannot be used: {why}", hint="give another with --data DIR")


def _epochs(client: Client) -> dict[str, str]:
    return {one.node_id: one.boot_epoch for one in _nodes(client)}


def _nodes(client: Client) -> Iterator[NodeView]:
    """All of them: ours may come behind hundreds, also of retired ones."""
    cursor: str | None = None
    while True:
        page: NodePage = client.call(routes.LIST_NODES, query=PageQuery(cursor=cursor, limit=PAGE))
        yield from page.items
        if (cursor := page.next_cursor) is None:
            return


def may_replace(path: Path, mine: profile.Profile, env: dict[str, str]) -> bool:
    """Whether `ostler up` may write the user's profile: see `ostler.assembly.profile`."""
    if not path.exists():
        return True
    try:
        found = profile.read(path, env)
    except OstlerError:
        return False
    return found.data is not None and (found.data == mine.data or not is_held(found.data))


# --- one set a data directory -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def hold(data: Path) -> Iterator[None]:
    """Hold the data directory; raises OperationInFlight where another set runs on it, with its URL."""
    descriptor = os.open(data / "up.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            facts = read_facts(data)
            where = f" at {facts['url']}" if facts.get("url") else ""
            pid = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise OperationInFlight(
                f"`ostler up` runs already on {data}{where} (process {pid})",
                hint="use it, or give another --data",
            ) from exc
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
        yield
    finally:
        os.close(descriptor)


def is_held(data: Path) -> bool:
    """Whether an `ostler up` runs on this data directory."""
    try:
        with hold(data):
            return False
    except OperationInFlight:
        return True
    except OSError:
        return False


def write_facts(data: Path, url: str, children: dict[str, int]) -> None:
    """Process ids with their start times: an id alone may be somebody else's by now."""
    facts = {"pid": os.getpid(), "url": url, "children": {name: [pid, start_time(pid)] for name, pid in children.items()}}
    part = data / ".up.json.part"
    part.write_text(json.dumps(facts))
    part.replace(data / "up.json")


def read_facts(data: Path) -> dict[str, object]:
    """What the latest set said of itself."""
    try:
        facts = json.loads((data / "up.json").read_text())
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def start_time(pid: int) -> int | None:
    """When a process began, in clock ticks since boot; None where there is none."""
    try:
        return int((PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def end_leftovers(data: Path, tell: Callable[[str], None]) -> None:
    """End coordinator and daemon of a set whose `ostler up` was killed. Its keeper and jobs go on, for the new daemon."""
    children = read_facts(data).get("children")
    for name, found in (children if isinstance(children, dict) else {}).items():
        match found:
            case [int(pid), int(began)] if start_time(pid) == began:
                tell(f"ending the {name} that an earlier `ostler up` left behind (process {pid})")
                _end(pid, began)


def _end(pid: int, began: int) -> None:
    for number, patience_s in ((signal.SIGTERM, 20.0), (signal.SIGKILL, 5.0)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            if start_time(pid) != began or _is_zombie(pid):
                return
            time.sleep(0.02)


def _is_zombie(pid: int) -> bool:
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
