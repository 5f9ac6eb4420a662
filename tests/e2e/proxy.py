"""A way to a coordinator that can be cut: a TCP proxy in a thread, for what a network does to connections."""

import contextlib
import socket
import threading


class Way:
    """Listens at `url` and forwards to a port. `freeze` swallows what is sent, `cut` breaks connections and refuses new ones."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._state = "open"
        self._pairs: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def open(self):
        """How many ends of connections there are."""
        with self._lock:
            return len(self._pairs)

    def freeze(self):
        self._state = "frozen"

    def cut(self):
        self._state = "cut"
        with self._lock:
            pairs, self._pairs = self._pairs, set()
        for one in pairs:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def mend(self):
        self._state = "open"

    def close(self):
        self.cut()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                if self._state == "cut":
                    near.close()
                    continue
                try:
                    far = socket.create_connection(("127.0.0.1", self._target))
                except OSError:  # nobody listens there just now
                    near.close()
                    continue
                with self._lock:
                    self._pairs |= {near, far}
                threading.Thread(target=self._connect, args=(near, far), daemon=True).start()

    def _connect(self, near, far):
        with near, far:
            back = threading.Thread(target=self._forward, args=(far, near), daemon=True)
            back.start()
            self._forward(near, far)
            back.join()
        with self._lock:
            self._pairs -= {near, far}

    def _forward(self, source, sink):
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if self._state == "open":
                    sink.sendall(data)
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
