"""A real receiver of webhooks: an HTTP server that keeps what it gets and answers as it is told."""

import http.server
import json
import re
import threading
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "follow-events-and-webhooks.md"


def documented_check():
    """The function that the documentation gives to receivers."""
    [code] = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    space = {}
    exec(code, space)
    return space["is_genuine"]


class Receiver:
    """Answers POSTs with `answer`: a status, or a function of the parsed body that gives one."""

    def __init__(self, port=0):
        self.got, self.answer, self.more_headers = [], 200, {}
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                said = json.loads(body)
                status = receiver.answer(said) if callable(receiver.answer) else receiver.answer
                receiver.got.append((status, dict(self.headers), body, self.path))
                if status == 0:
                    return
                self.send_response(status)
                for name, value in receiver.more_headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"ok")

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def taken(self):
        """The events of deliveries that were answered well, as they came."""
        return [event for status, _, body, _ in list(self.got) if status == 200 for event in json.loads(body)["events"]]
