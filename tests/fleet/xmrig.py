#!/usr/bin/python3 -I
"""A stand-in for a miner: its words about its version, and its HTTP API. It mines nothing. /run/ill makes the API answer 500."""

import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer


class Api(BaseHTTPRequestHandler):
    """As much of the real one's summary as is looked at."""

    began = time.monotonic()

    def do_GET(self):
        good = int(time.monotonic() - self.began)
        body = json.dumps({"hashrate": {"total": [1234.5, None, None]}, "results": {"shares_good": good}}).encode()
        self.send_response(500 if os.path.exists("/run/ill") else 200 if self.path == "/2/summary" else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Nothing."""


if "--version" in sys.argv:
    print("XMRig 6.21.0\n built on Jan 1 2026 with GCC 12.2.0")
    sys.exit()
print("mining", flush=True)
HTTPServer(("127.0.0.1", 18080), Api).serve_forever()
