"""Never ends, and does not listen."""

import signal
import threading


def run():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Event().wait()
