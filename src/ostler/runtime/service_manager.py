"""What a service is to tell the manager that started it (systemd's notification protocol): ready, alive, stopping."""

import contextlib
import socket
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServiceManager:
    """`address` is where it listens (None: nobody does), `watchdog_s` how often it must hear of the service at least (None: it
    does not care)."""

    address: str | None = None
    watchdog_s: float | None = None

    @classmethod
    def of(cls, environ: Mapping[str, str], *, pid: int) -> "ServiceManager":
        """As the environment of the process `pid` says; a watchdog meant for another process is none."""
        micros, whose = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", str(pid))
        watchdog_s = int(micros) / 1e6 if micros.isdecimal() and int(micros) > 0 and whose == str(pid) else None
        return cls(environ.get("NOTIFY_SOCKET") or None, watchdog_s)

    def tell(self, *words: str) -> None:
        """Such as READY=1, WATCHDOG=1, STOPPING=1, STATUS=text. A manager that does not listen is no reason to end."""
        if self.address is None:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as door:
            door.setblocking(False)
            door.sendto("\n".join(words).encode(), "\0" + self.address[1:] if self.address.startswith("@") else self.address)
