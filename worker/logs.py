"""Logging: one record a line on stderr, as JSON on Runpod.

Records carry a job's id if there is one, never a transcript.
"""

from __future__ import annotations

import json
import logging
import sys

from worker.config import Settings


class _JsonFormatter(logging.Formatter):
    """One JSON object a line: level, logger, message, and traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {"level": record.levelname, "logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def configure(settings: Settings) -> None:
    """Send the records of this package to stderr, from LOG_LEVEL on. Other libraries' records stay as they are.

    Records are JSON if RUNPOD_ENDPOINT_ID is set, else text.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _JsonFormatter()
        if settings.runpod_endpoint_id
        else logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S")
    )
    logger = logging.getLogger("worker")
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(settings.log_level)
