"""Structured logs: JSON lines with `ts, level, node_id, job_id, event, attrs` (source: section 12), rotated by the process itself."""

import json
import logging
import os
import sys
import traceback
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

ROTATE_BYTES = 50 * 1000 * 1000
ROTATE_KEEP = 7


class JsonLines(logging.Formatter):
    """One JSON object a line. The message is the event's name; `extra={"job_id": …, "attrs": {…}}` adds the rest."""

    def __init__(self, node_id: str | None = None) -> None:
        super().__init__()
        self.node_id = node_id

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        attrs: dict[str, Any] = dict(getattr(record, "attrs", None) or {})
        if record.exc_info and record.exc_info[1] is not None:
            attrs["traceback"] = "".join(traceback.format_exception(record.exc_info[1]))
        line = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "node_id": self.node_id,
            "job_id": getattr(record, "job_id", None),
            "event": record.getMessage(),
            "attrs": attrs,
        }
        return json.dumps(line, default=str, ensure_ascii=False)


class PlainLines(logging.Formatter):
    """The same for a person's eyes: time, level, event, then key=value."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line (and a traceback where there is one)."""
        attrs: dict[str, Any] = dict(getattr(record, "attrs", None) or {})
        job_id = getattr(record, "job_id", None)
        if job_id:
            attrs = {"job": job_id, **attrs}
        at = datetime.fromtimestamp(record.created, UTC).strftime("%H:%M:%S.%f")[:-3]
        pairs = " ".join(f"{key}={value}" for key, value in attrs.items())
        line = f"{at} {record.levelname.lower():7} {record.getMessage()} {pairs}".rstrip()
        if record.exc_info and record.exc_info[1] is not None:
            line += "\n" + "".join(traceback.format_exception(record.exc_info[1])).rstrip()
        return line


def open_log(
    *, level: str = "info", as_json: bool = True, path: Path | None = None, node_id: str | None = None
) -> logging.Logger:
    """The logger `ostler`, writing to `path` (rotated at 50 MB, seven old ones kept) or, without one, to standard error.

    Under systemd standard error reaches the journal as it is, one line an event.
    """
    logger = logging.getLogger("ostler")
    logger.setLevel(level.upper())
    logger.propagate = False
    for old in list(logger.handlers):
        logger.removeHandler(old)
        old.close()
    target: logging.Handler
    if path is None:
        target = logging.StreamHandler(sys.stderr)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640))
        target = RotatingFileHandler(path, maxBytes=ROTATE_BYTES, backupCount=ROTATE_KEEP, encoding="utf-8")
    target.setFormatter(JsonLines(node_id) if as_json else PlainLines())
    logger.addHandler(target)
    logging.raiseExceptions = False  # a full disk must not turn each log line into a traceback
    return logger
