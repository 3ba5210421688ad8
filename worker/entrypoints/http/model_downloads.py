"""Downloads of models that a server runs: one for each model, however many requests ask for it.

    future = downloads.start(row)      True if files were downloaded, False if all of them were on this machine

A download continues if the clients that asked for it hang up. Requests that arrive during a download share it; other
processes wait for it (see `worker.backends.common.hub_cache`).
"""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future

from worker.backends.common import hub_cache
from worker.catalog import Model
from worker.config import Settings
from worker.errors import AviaryError
from worker.faults import report

log = logging.getLogger(__name__)


class Downloads:
    """The downloads of one process. Thread-safe."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self._lock = settings, threading.Lock()
        self._running: dict[str, Future[bool]] = {}  # by the id of the model

    def start(self, row: Model) -> Future[bool]:
        """Start to download a model, or join the download that runs. The future cannot be canceled."""
        with self._lock:
            if row.id in self._running:
                return self._running[row.id]
            future = self._running[row.id] = Future[bool]()
            future.set_running_or_notify_cancel()
        threading.Thread(target=self._run, args=(row, future), name=f"download {row.id}", daemon=True).start()
        return future

    def _run(self, row: Model, future: Future[bool]) -> None:
        outcome: bool | AviaryError
        try:
            outcome = hub_cache.pull(row, self._settings)
        except BaseException as error:  # noqa: BLE001  a request waits for the outcome
            outcome = report(error, during=f"the download of {row.id}")
            log.warning("%s was not downloaded: %s", row.id, outcome.message)
        else:
            log.info("%s is on this machine%s", row.id, "" if outcome else " already")
        with self._lock:
            del self._running[row.id]
        if isinstance(outcome, AviaryError):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
