"""Runs the HTTP server in this process until it is told to end.

SIGTERM and Ctrl-C: no new connections, what is under way is finished within DRAIN_SEC, then the engine ends.
"""
from __future__ import annotations

import logging
import sys
import tempfile

from worker import logs
from worker.config import Settings
from worker.server.app import create_app
from worker.server.gate import check_address

log = logging.getLogger(__name__)

DRAIN_SEC = 30
SWITCH_SEC = 0.0005      # the event loop gets the interpreter back from decoding and rendering ten times sooner than it would


def run(settings: Settings) -> int:
    """Serves; returns the exit code. Raises ConfigError when the settings do not allow it."""
    import uvicorn

    check_address(settings)
    sys.setswitchinterval(SWITCH_SEC)
    logs.configure(settings)
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    tempfile.tempdir = str(settings.data_dir)       # uploads pass through here too
    server = uvicorn.Server(uvicorn.Config(create_app(settings), host=settings.host, port=settings.port, log_config=None,
                                           access_log=False, timeout_graceful_shutdown=DRAIN_SEC))
    log.info("serving on http://%s:%d: the page is /ui, the documentation /docs", settings.host, settings.port)
    server.run()
    return 0 if server.started else 1
