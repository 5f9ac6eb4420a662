"""A fleet of real hosts: containers with systemd and sshd, each with its own address, name, host key and enforced limits.

    python -m tests.fleet.testbed up --hosts 16     (make testbed HOSTS=16)
    python -m tests.fleet.testbed down              (make testbed-down)

The hosts' network reaches this machine and nothing beyond it. Each host has root, `deploy` (sudo without a password) and `plain`
(no sudo), all opened by one key. Whatever belongs to a testbed bears its label, and goes with it; so does that of dead test runs.
"""

import argparse
import contextlib
import itertools
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import asyncssh
import yaml

from ostler.model.words import many

from . import image as images
from .engine import ROOT, Unable, flags, make_room_for_watchers, podman

LABEL = "ostler.testbed"
OWNER = "ostler.testbed.owner"
FOR_PEOPLE = "people"
FOLDER = ROOT / "var" / "testbed"
USERS = ("root", "deploy", "plain")
FIRST, LAST = 11, 250  # the hosts' addresses within their network
START_S = 60
# A boot id of its own makes a boot of a host what it is on a machine. Since that is mounted over /proc, the kernel would give no ordinary
# user a new /proc in a sandbox, if there were not a whole one besides. systemd from 256 on takes old control groups only if told.
INIT = (
    "mount --make-rshared / && cat /proc/sys/kernel/random/uuid >/run/boot_id && "
    "mount --bind /run/boot_id /proc/sys/kernel/random/boot_id && "
    "mkdir -p /run/proc && mount -t proc proc /run/proc && "
    "exec /lib/systemd/systemd systemd.unified_cgroup_hierarchy=0 SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1"
)


@dataclass(frozen=True)
class Host:
    """One host. What is done to it here is done from outside, as a hand at its power switch and its cable would."""

    name: str
    address: str
    release: str
    bed: "Testbed" = field(repr=False, compare=False)

    @property
    def identity(self) -> Path:
        """The private key that opens root, `deploy` and `plain`."""
        return self.bed.folder / "id_ed25519"

    @property
    def known_hosts(self) -> Path:
        """With this host's key in it, under its name and its address; of the last start of the testbed or `replace` of a host."""
        return self.bed.folder / "known_hosts"

    @property
    def mac(self) -> str:
        """Of its network card, the same after each start: neighbours remember it for a minute."""
        return "02:77:" + ":".join(f"{int(one):02x}" for one in self.address.split("."))

    @property
    def container(self) -> str:
        """What Podman calls it."""
        return f"ostler-{self.bed.name}-{self.name}"

    def exec(self, *argv: str, check: bool = True, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """A command as root, past the network and sshd."""
        return podman("exec", "--interactive", self.container, *argv, check=check, stdin=stdin)

    @contextlib.asynccontextmanager
    async def ssh(self, user: str = "deploy") -> AsyncIterator[asyncssh.SSHClientConnection]:
        """A connection whose host key is verified."""
        async with asyncssh.connect(
            self.address, username=user, client_keys=[str(self.identity)], known_hosts=str(self.known_hosts), config=None
        ) as connection:
            yield connection

    def pause(self) -> None:
        """It stands still: packets arrive, nobody answers."""
        podman("pause", self.container)

    def unpause(self) -> None:
        """It goes on as if nothing had been."""
        podman("unpause", self.container)

    def disconnect(self) -> None:
        """Its cable is pulled; what runs on it goes on."""
        podman("network", "disconnect", self.bed.network, self.container)

    def connect(self) -> None:
        """Its cable is back, with the address it had."""
        podman("network", "connect", f"--ip={self.address}", f"--mac-address={self.mac}", self.bed.network, self.container)

    def kill(self) -> None:
        """The power is gone; the disk stays."""
        podman("kill", "--signal=KILL", self.container)
        podman("wait", self.container)

    def start(self) -> None:
        """The power is back; returns when sshd answers."""
        podman("start", self.container)
        self.wait()

    def boot_id(self) -> str:
        """Another one after each boot."""
        return self.exec("cat", "/proc/sys/kernel/random/boot_id").stdout.strip()

    def reboot(self) -> None:
        """In order, from within; returns when sshd answers again."""
        before = self.boot_id()
        self.exec("systemctl", "reboot", check=False)
        for _ in _until(f"{self.name} boots"):
            if podman("exec", self.container, "cat", "/run/boot_id", check=False).stdout.strip() not in {"", before}:
                break
        self.wait()

    def replace(self) -> None:
        """A new bare machine with the same name and address, and another host key."""
        podman("rm", "--force", "--time=0", self.container)
        self.bed.boot(self)
        self.wait()
        self.bed.write_files()

    def wait(self) -> None:
        """Until sshd answers."""
        for _ in _until(f"sshd of {self.name} answers"):
            with contextlib.suppress(OSError), socket.create_connection((self.address, 22), timeout=2) as line:
                if line.recv(4) == b"SSH-":
                    return


class Testbed:
    """Hosts of one network. A context: nothing of it is left afterwards."""

    __test__ = False

    def __init__(self, name: str, folder: Path, *, owner: str = "") -> None:
        self.name, self.folder, self._owner = name, folder, owner or _identity(os.getpid())
        self.network = f"ostler-{name}"
        self.no_newer: str | None = None  # why no host has a newer release
        self.hosts: dict[str, Host] = {}
        self._net = ""

    @property
    def gateway(self) -> str:
        """This machine's address as the hosts see it, there also as `operator` in /etc/hosts: where a coordinator can listen."""
        return f"{self._net}.1"

    def up(self, hosts: int, *, newer: bool) -> "Testbed":
        """Boot that many hosts, mini-1 and on, the last one with a Debian whose Python is newer where that can be had. Raises Unable."""
        releases = [images.own_release()] * hosts
        images.image(releases[0])
        make_room_for_watchers()
        if newer:
            try:
                releases[-1] = images.newer_release()
                images.image(releases[-1])
            except Unable as exc:
                self.no_newer, releases[-1] = str(exc), releases[0]
        sweep()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._make_key()
        self._make_network()
        for number, release in enumerate(releases, 1):
            name = f"mini-{number}"
            self.hosts[name] = Host(name, f"{self._net}.{FIRST + number - 1}", release, self)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(self._boot_whole, self.hosts.values()))
        self.write_files()
        return self

    def add(self, name: str, *, newer: bool = False) -> Host:
        """One more bare host. Raises Unable where none with a newer Debian can be had."""
        release = images.newer_release() if newer else images.own_release()
        images.image(release)
        taken = {int(one.address.rpartition(".")[2]) for one in self.hosts.values()}
        number = next(one for one in range(FIRST, LAST) if one not in taken)
        host = self.hosts[name] = Host(name, f"{self._net}.{number}", release, self)
        self._boot_whole(host)
        self.write_files()
        return host

    def remove(self, host: Host) -> None:
        """Take one away, with all that is on it."""
        podman("rm", "--force", "--time=0", host.container)
        del self.hosts[host.name]
        self.write_files()

    def boot(self, host: Host) -> None:
        """Make and start the container of a host."""
        names = [f"--add-host={one.name}:{one.address}" for one in self.hosts.values()]
        podman(
            "run", "--detach", f"--name={host.container}", f"--hostname={host.name}", f"--network={self.network}",
            f"--ip={host.address}", f"--mac-address={host.mac}", *names,
            f"--add-host=operator:{self.gateway}", *self._labels(), "--restart=always",
            f"--volume={self.folder.resolve() / 'authorized_keys'}:/etc/testbed/authorized_keys:ro", *flags(),
            images.image(host.release), "/bin/sh", "-c", INIT,
        )  # fmt: skip

    def write_files(self) -> None:
        """known_hosts, ssh_config and inventory.yml in the folder."""
        keys = {}
        for host in self.hosts.values():
            kind, key = host.exec("cat", "/etc/ssh/ssh_host_ed25519_key.pub").stdout.split()[:2]
            keys[host.name] = f"{host.name},{host.address} {kind} {key}\n"
        (self.folder / "known_hosts").write_text("".join(keys.values()))
        identity, known = self.folder.resolve() / "id_ed25519", self.folder.resolve() / "known_hosts"
        (self.folder / "ssh_config").write_text(
            "".join(f"Host {host.name}\n  HostName {host.address}\n" for host in self.hosts.values())
            + f"Host *\n  User deploy\n  IdentityFile {identity}\n  IdentitiesOnly yes\n  UserKnownHostsFile {known}\n"
        )
        inventory = {
            host.name: {"address": host.address, "user": "deploy", "port": 22, "identity_file": str(identity)}
            for host in self.hosts.values()
        }
        (self.folder / "inventory.yml").write_text(yaml.safe_dump({"hosts": inventory}, sort_keys=False))

    def down(self) -> int:
        """Remove the hosts and their network; how many hosts there were."""
        return _remove(f"{LABEL}={self.name}")

    def __enter__(self) -> "Testbed":
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    def _boot_whole(self, host: Host) -> None:
        self.boot(host)
        host.wait()

    def _labels(self) -> list[str]:
        return [f"--label={LABEL}={self.name}", f"--label={OWNER}={self._owner}"]

    def _make_key(self) -> None:
        identity = self.folder / "id_ed25519"
        if not identity.exists():
            key = asyncssh.generate_private_key("ssh-ed25519", comment="testbed")
            identity.touch(mode=0o600)
            identity.write_bytes(key.export_private_key())
            (self.folder / "authorized_keys").write_bytes(key.export_public_key())

    def _make_network(self) -> None:
        """The first free network of a range that neither Podman nor Docker takes by itself."""
        for number in itertools.count():
            self._net = f"10.77.{number}"
            made = podman(
                "network", "create", "--internal", f"--subnet={self._net}.0/24", *self._labels(), self.network, check=False
            )  # fmt: skip
            if made.returncode == 0:
                return
            if number == 255 or "exists" in made.stderr:
                raise Unable(f"no network for the hosts: {made.stderr.strip()}")


def sweep() -> None:
    """Remove what is left of testbeds whose process is no more."""
    found = podman("network", "ls", "--filter", f"label={LABEL}", "--format", "{{.Name}}").stdout.split()
    for network in found:
        shown = podman("network", "inspect", network, "--format", "{{json .Labels}}", check=False).stdout
        labels = yaml.safe_load(shown) or {}
        if labels.get(LABEL, FOR_PEOPLE) != FOR_PEOPLE and _identity(int(labels[OWNER].partition("-")[0])) != labels[OWNER]:
            _remove(f"{LABEL}={labels[LABEL]}")


def _remove(label: str) -> int:
    containers = podman("ps", "--all", "--quiet", "--filter", f"label={label}").stdout.split()
    if containers:
        podman("rm", "--force", "--time=0", *containers)
    if networks := podman("network", "ls", "--quiet", "--filter", f"label={label}").stdout.split():
        podman("network", "rm", "--force", *networks)
    return len(containers)


def _identity(pid: int) -> str:
    """A process by its number and the tick of its start, as numbers come again; the number alone where there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return str(pid)
    return f"{pid}-{stat.rpartition(')')[2].split()[19]}"


def _until(what: str, limit_s: float = START_S) -> Iterator[None]:
    """Turns of a loop that waits; raises RuntimeError when the limit is over."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        yield
        time.sleep(0.05)
    raise RuntimeError(f"waited {limit_s:.0f} s in vain until {what}")


def main(argv: Sequence[str] | None = None) -> int:
    """The testbed for people."""
    parser = argparse.ArgumentParser(prog="testbed")
    parser.add_argument("do", choices=("up", "down"))
    parser.add_argument("--hosts", type=int, default=4)
    args = parser.parse_args(argv)
    if not 1 <= args.hosts <= LAST - FIRST:
        parser.error(f"--hosts: 1 to {LAST - FIRST}")
    bed = Testbed(FOR_PEOPLE, FOLDER)
    try:
        there = bed.down()
        if there:
            print(f"==> {'replaces' if args.do == 'up' else 'removed'} {many(there, 'host')}")
        if args.do == "up":
            _up_for_people(bed, args.hosts)
        elif not there:
            print("==> there was no testbed")
    except (Unable, RuntimeError) as exc:
        print(exc, file=sys.stderr)
        return 1
    return 0


def _up_for_people(bed: Testbed, hosts: int) -> None:
    began = time.monotonic()
    bed.up(hosts, newer=hosts >= 4)
    if bed.no_newer:
        print(f"==> all hosts run the same release: {bed.no_newer}")
    print(f"==> {many(hosts, 'host')} up after {time.monotonic() - began:.1f} s:")
    for host in bed.hosts.values():
        print(f"    {host.name:<10}{host.address:<15}{host.release}")
    shown = os.path.relpath(bed.folder)
    print(f"    ssh -F {shown}/ssh_config {next(iter(bed.hosts))}      # users {', '.join(USERS)}")
    print("    make testbed-down removes them; this machine is", bed.gateway, "to them. To make nodes of them:")
    print(f"    export OSTLER_INVENTORY={shown}/inventory.yml")
    print(
        f"    echo 'allow_insecure_listen: true' > {shown}/coordinator.yaml      # a network of this machine alone; else use TLS"
    )
    print(f"    ostler coordinator --data {shown}/coordinator --listen {bed.gateway}:7470 --config {shown}/coordinator.yaml &")
    print(f"    export OSTLER_URL=http://{bed.gateway}:7470 OSTLER_TOKEN=$(cat {shown}/coordinator/admin.token)")
    print(f"    ostler release build && ostler fleet install --known-hosts {shown}/known_hosts --allowlist DIR")


if __name__ == "__main__":
    sys.exit(main())
