"""Logging: one record a line on stderr, as JSON on Runpod.

Records carry a job's id if there is one, never a transcript. Nothing in a record starts a line of its own: in plain
text, a character that is not printable is escaped (`\\n`, `\\x1b`), and the lines of a traceback are indented.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

from worker.config import Settings


class _JsonFormatter(logging.Formatter):
    """One JSON object a line: level, logger, message, and traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {"level": record.levelname, "logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry)


class _Plain(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  the name is logging's
        return _escaped(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802
        return "\n".join(f"  {_escaped(line)}" for line in super().formatException(ei).split("\n"))


def configure(settings: Settings) -> None:
    """Send the records of this package to stderr, from LOG_LEVEL on. Other libraries' records stay as they are.

    Records are JSON if RUNPOD_ENDPOINT_ID is set, else text.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _JsonFormatter()
        if settings.runpod_endpoint_id
        else _Plain("%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S")
    )
    logger = logging.getLogger("worker")
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(settings.log_level)


def _escaped(text: str) -> str:
    """Return the text with every character that is not printable as its escape in Python."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
