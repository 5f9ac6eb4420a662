"""What a service manager hears: over a real datagram socket, as systemd listens."""

import socket
from pathlib import Path

import pytest

from ostler.runtime.service_manager import ServiceManager


def test_it_hears_each_word(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(5)
        ServiceManager(str(tmp_path / "notify")).tell("READY=1", "STATUS=works")
        assert manager.recv(100) == b"READY=1\nSTATUS=works"


def test_an_abstract_address(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{tmp_path}")
        manager.settimeout(5)
        ServiceManager(f"@{tmp_path}").tell("WATCHDOG=1")
        assert manager.recv(100) == b"WATCHDOG=1"


def test_nobody_listens(tmp_path: Path) -> None:
    ServiceManager().tell("READY=1")
    ServiceManager(str(tmp_path / "nothing")).tell("READY=1")


@pytest.mark.parametrize(
    ("environ", "manager"),
    [
        ({}, ServiceManager()),
        ({"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "30000000"}, ServiceManager("/run/x", 30.0)),
        ({"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "7"}, ServiceManager("/run/x", 30.0)),
        ({"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "8"}, ServiceManager("/run/x")),
        ({"NOTIFY_SOCKET": "", "WATCHDOG_USEC": "soon"}, ServiceManager()),
        ({"WATCHDOG_USEC": "0"}, ServiceManager()),
    ],
)
def test_what_the_environment_says(environ: dict[str, str], manager: ServiceManager) -> None:
    assert ServiceManager.of(environ, pid=7) == manager
