"""Logging: one line a record on stderr, JSON on Runpod. Records carry a job's id where there is one, never a
transcript."""

from __future__ import annotations

import json
import logging
import sys

from worker.config import Settings


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {"level": record.levelname, "logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def configure(settings: Settings) -> None:
    """Sends the worker's own records to stderr at LOG_LEVEL; other libraries' from WARNING on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _Json()
        if settings.runpod_endpoint_id
        else logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S")
    )
    logger = logging.getLogger("worker")
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(settings.log_level)
