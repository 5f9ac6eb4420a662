"""A real Ceph with its S3 gateway for tests, the strict server: one monitor, one store in memory, one gateway, on loopback.

It needs Debian's packages, which are installed where that can be (as root), and ten seconds. It knows conditions (If-None-Match).
"""

import atexit
import contextlib
import itertools
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

from s3 import ACCESS_KEY, SECRET_KEY, environment, free_port

PACKAGES = ("radosgw", "ceph-mon", "ceph-osd")
START_S = 90
CONFIG = """
[global]
fsid = {fsid}
mon host = v2:127.0.0.1:{v2},v1:127.0.0.1:{v1}
mon initial members = a
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
osd objectstore = memstore
memstore device bytes = 1073741824
mon allow pool size one = true
mon max pg per osd = 1000
mon data avail crit = 1
mon data avail warn = 1
run dir = {home}/run
admin socket = {home}/run/$name.asok
log file = {home}/log/$name.log
keyring = {home}/admin.keyring
[mon.a]
mon data = {home}/mon
[osd.0]
osd data = {home}/osd
keyring = {home}/osd/keyring
[client.rgw.a]
keyring = {home}/rgw.keyring
rgw data = {home}/rgw
rgw frontends = beast endpoint=127.0.0.1:{port}
"""


class Missing(Exception):
    """It cannot be had here; says why."""


class Server:
    """See the module; `environment` and `bucket` are those of `s3.Server`."""

    def __init__(self) -> None:
        if not shutil.which("radosgw") and os.geteuid() == 0 and shutil.which("apt-get"):
            command = ["apt-get", "install", "-y", "-q", "--no-install-recommends", *PACKAGES]
            environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
            subprocess.run(command, check=False, capture_output=True, timeout=300, env=environment)
        if not all(shutil.which(name) for name in PACKAGES):
            raise Missing(f"Ceph is not installed: apt-get install {' '.join(PACKAGES)}")
        self.home = Path(tempfile.mkdtemp(prefix="ostler-ceph-"))
        self.port, self._numbers = free_port(), itertools.count(1)
        self._daemons: list[subprocess.Popen[bytes]] = []
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        home, fsid, v1, v2 = self.home, uuid.uuid4(), free_port(), free_port()
        for name in ("mon", "osd", "rgw", "run", "log"):
            (home / name).mkdir()
        (home / "ceph.conf").write_text(CONFIG.format(home=home, fsid=fsid, v1=v1, v2=v2, port=self.port))
        everything = [word for part in ("mon", "osd", "mgr") for word in ("--cap", part, "allow *")]
        self._run("ceph-authtool", "--create-keyring", home / "mon.keyring", "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
        self._run("ceph-authtool", "--create-keyring", home / "admin.keyring", "--gen-key", "-n", "client.admin", *everything)
        self._run("ceph-authtool", home / "mon.keyring", "--import-keyring", home / "admin.keyring")
        address = f"[v2:127.0.0.1:{v2},v1:127.0.0.1:{v1}]"
        self._run("monmaptool", "--create", "--addv", "a", address, "--fsid", fsid, home / "monmap")
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", home / "monmap", "--keyring", home / "mon.keyring")
        self._daemon("ceph-mon", "-i", "a")
        osd = uuid.uuid4()
        self._run("ceph", "osd", "new", osd)
        self._run("ceph-authtool", "--create-keyring", home / "osd" / "keyring", "--gen-key", "-n", "osd.0")
        caps = ("mon", "allow profile osd", "osd", "allow *", "mgr", "allow profile osd")
        self._run("ceph", "auth", "add", "osd.0", *caps, "-i", home / "osd" / "keyring")
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        self._daemon("ceph-osd", "-i", "0")
        self._run("ceph", "osd", "crush", "add", "osd.0", "1.0", "root=default", "host=h")
        caps = ("mon", "allow rw", "osd", "allow rwx")
        self._run("ceph", "auth", "get-or-create", "client.rgw.a", *caps, "-o", home / "rgw.keyring")
        gateway = self._daemon("radosgw", "-n", "client.rgw.a")
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and gateway.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                break
            time.sleep(0.1)
        keys = ("--access-key", ACCESS_KEY, "--secret-key", SECRET_KEY)
        self._run("radosgw-admin", "user", "create", "--uid", "tests", "--display-name", "tests", *keys)

    def _run(self, program: str, *arguments: object) -> None:
        command = [program, *map(str, arguments), "--conf", str(self.home / "ceph.conf")]
        if program in {"ceph-authtool", "monmaptool"}:
            command = command[:-2]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=START_S)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr[-1000:]}")

    def _daemon(self, program: str, *arguments: str) -> "subprocess.Popen[bytes]":
        command = ["setpriv", "--pdeathsig", "KILL", "--", program, "-f", *arguments, "--conf", str(self.home / "ceph.conf")]
        with (self.home / "log" / f"{program}.out").open("wb") as log:
            self._daemons.append(one := subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL))
        return one

    def close(self) -> None:
        for one in reversed(self._daemons):
            one.kill()
            one.wait()
        shutil.rmtree(self.home, ignore_errors=True)

    def bucket(self) -> str:
        """The name of a new one."""
        name = f"bucket-{next(self._numbers)}"
        said = [f"--s3-{key}={value}" for key, value in self._options.items()]
        command = [
            str(Path(sys.executable).parent / "rclone"),
            "--config",
            str(self.home / "none"),
            *said,
            "mkdir",
            f":s3:{name}",
        ]
        subprocess.run(command, check=True, capture_output=True, timeout=START_S)
        return name

    @property
    def _options(self) -> dict[str, str]:
        endpoint = self.environment["AWS_ENDPOINT_URL"]
        return {"provider": "Ceph", "access-key-id": ACCESS_KEY, "secret-access-key": SECRET_KEY, "endpoint": endpoint}

    @property
    def environment(self) -> dict[str, str]:
        return environment(f"http://127.0.0.1:{self.port}")


_shared: Server | None = None


def shared() -> Server:
    """One for all tests of this process. Raises Missing."""
    global _shared  # noqa: PLW0603 - as long as the process
    if _shared is None:
        _shared = Server()
        atexit.register(_shared.close)
    return _shared
