"""A proxy on loopback that carries calls to a coordinator, and loses answers of submissions when it is told to."""

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from urllib.parse import urlsplit

SUBMISSION = b"POST /api/v1/jobs HTTP/1.1\r\n"


class LossyProxy:
    """Listens at `url`. Of the next `losses` submissions it lets the answer come, tells `on_loss`, and drops the connection."""

    def __init__(self, url: str, *, losses: int, on_loss: Callable[[], None] = lambda: None) -> None:
        target = urlsplit(url)
        self._target = (target.hostname, target.port)
        self._on_loss = on_loss
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self.losses, self.submissions = losses, 0
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> "LossyProxy":
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        with client, suppress(OSError), socket.create_connection(self._target) as server:
            asked = threading.Event()
            threading.Thread(target=self._forward, args=(client, server, asked), daemon=True).start()
            while block := server.recv(1 << 16):
                if asked.is_set() and self._loses():
                    self._on_loss()
                    break
                asked.clear()
                client.sendall(block)
            client.shutdown(socket.SHUT_RDWR)  # a close alone does not reach the other side while a thread still reads

    def _forward(self, client: socket.socket, server: socket.socket, asked: threading.Event) -> None:
        with suppress(OSError):
            while block := client.recv(1 << 16):
                if block.startswith(SUBMISSION):
                    self.submissions += 1
                    asked.set()
                server.sendall(block)
        with suppress(OSError):
            server.shutdown(socket.SHUT_WR)

    def _loses(self) -> bool:
        with self._lock:
            self.losses -= 1
            return self.losses >= 0
