"""Following a job's logs: one thread a stream, each through restarts of the coordinator, bytes as the job wrote them."""

import base64
import json
import os
import select
import threading

from ostler.cli import output
from ostler.cli.session import Session
from ostler.model.errors import OstlerError
from ostler.protocol.messages import LogQuery


class Follower(threading.Thread):
    """Copies one log stream to a descriptor until the job is over; after a broken connection it goes on behind the last byte.

    `failure` is what ended it early. A reader who went away (`| head`) ends only the copying, never the job.
    """

    def __init__(self, session: Session, job_id: str, stream: str, descriptor: int, *, attempt: int | None = None) -> None:
        super().__init__(name=f"follow-{stream}", daemon=True)
        self.stream = stream
        self.failure: OstlerError | None = None
        self._session = session.patient()
        self._job_id, self._query = job_id, LogQuery(stream=stream, attempt=attempt)
        # Written straight to the descriptor: a daemon thread that dies inside a buffer would take its lock with it.
        self._descriptor = descriptor
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Copy nothing more; the thread is not waited for."""
        self._stopped.set()

    def run(self) -> None:
        """Follow to the end."""
        began = 0
        try:
            for event in self._session.follow_log(self._job_id, self._query):
                if self._stopped.is_set():
                    return
                content = json.loads(event.data)
                if event.kind == "attempt" and content["attempt"] != began:
                    if began and self.stream == "stdout":
                        output.note(f"attempt {content['attempt']}")
                    began = content["attempt"]
                elif event.kind == "log":
                    self._write(base64.b64decode(content["data"]))
        except OstlerError as exc:
            self.failure = exc
        except BrokenPipeError:
            return
        except OSError as exc:
            self.failure = OstlerError(f"{self.stream} of {self._job_id} cannot be passed on: {exc.strerror}")
        finally:
            self._session.close()

    def _write(self, data: bytes) -> None:
        left = memoryview(data)
        while left and not self._stopped.is_set():
            try:
                left = left[os.write(self._descriptor, left) :]
            except BlockingIOError:  # a terminal that somebody made non-blocking
                select.select([], [self._descriptor], [], 1.0)
