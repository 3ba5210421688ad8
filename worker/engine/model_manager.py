"""Which models are on the device: each is loaded once, on first use or ahead of it, within a memory budget.

    acquire(model)   the loaded backend, kept until release(model); None while it loads (the first call starts a load)
    load(model)      a Future that is done when the model is ready
    warm()           warms up the models that have been loaded
    evict_idle()     closes the models that must make room or have been idle for `idle_sec`

Each load runs on a thread of its own, so the models that are ready keep working. Only one model loads at a time
(downloads may overlap), because two might not fit on the device, or in host memory, which all devices share; hence the
shared `loading` lock, and `alone`, which waits for other processes. To make room, the least recently used model without
users is evicted.

A model that cannot be loaded raises its ModelUnavailable from `acquire`, at once for RETRY_SEC; then it is loaded
again. If the device is lost meanwhile, `lost` says why.

`acquire`, `release`, `warm` and `evict_idle` are for the runner's thread, which warms and closes the models. Any thread
may call `load`, `lose` and `close`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

from worker import catalog
from worker.backends.base import Backend
from worker.backends.common import memory
from worker.backends.common.device import GIB
from worker.errors import AviaryError, Cancelled, DeviceLost, ModelUnavailable
from worker.faults import RemoteTraceback, forget, translate_load

log = logging.getLogger(__name__)

RETRY_SEC = 30.0
KEEP_SEC = 1.0  # a model that became ready is not evicted sooner, so that it can be acquired first

State = Literal["ready", "loading", "failed"]


@dataclasses.dataclass(slots=True, eq=False)
class _ManagedModel:
    """A model that is loading, loaded or failed."""

    backend: Backend | None = None
    """None while the model loads, and after a failure."""
    needs_warmup: bool = True
    evicting: bool = False
    """Whether the model is to be closed, and can no longer be acquired."""
    error: AviaryError | None = None
    """Why the model could not be loaded."""
    bytes: int = 0
    """Size of the weights."""
    users: int = 0
    """How often the model is acquired."""
    keep_until: float = 0.0
    """The time before which the model is not evicted, on time.monotonic()."""
    since: float = dataclasses.field(default_factory=time.monotonic)
    """The time of the last use or of the failure, on time.monotonic()."""
    hold: contextlib.ExitStack = dataclasses.field(default_factory=contextlib.ExitStack)
    """Keeps the weights on disk from being removed until the model is closed."""
    futures: list[Future[None]] = dataclasses.field(default_factory=list)
    """The futures of `load` that wait for the model."""

    @property
    def state(self) -> State:
        if self.error is not None:
            return "failed"
        return "loading" if self.backend is None or self.needs_warmup else "ready"

    @property
    def is_loaded_but_cold(self) -> bool:
        return self.backend is not None and self.needs_warmup

    @property
    def is_idle(self) -> bool:
        return self.state == "ready" and not self.users and not self.evicting


class ModelManager:
    """The models of one device.

    create: makes the backend of a catalog row.
    find: returns the row of a model's id.
    budget: returns the bytes that the weights of all models together may take.
    idle_sec: seconds without use after which a model is evicted; 0: never.
    changed: called when a load has ended, a model must be evicted, or the device is lost.
    loading: the lock that the managers of all devices share while they load.
    alone: makes the context in which a model loads, once there is room for it.
    hold: makes the context of a catalog row in which its weights stay on disk, from the load until the model is closed.
    """

    def __init__(
        self,
        create: Callable[[catalog.Model], Backend],
        *,
        find: Callable[[str], catalog.Model] = catalog.find,
        budget: Callable[[], float] = lambda: float("inf"),
        idle_sec: float = 0.0,
        changed: Callable[[], None] = lambda: None,
        loading: threading.Lock | None = None,
        alone: Callable[[], AbstractContextManager[None]] = nullcontext,
        hold: Callable[[catalog.Model], AbstractContextManager[None]] = lambda row: nullcontext(),
    ) -> None:
        self._create, self._find, self._budget, self._idle_sec, self._changed = create, find, budget, idle_sec, changed
        self._hold = hold
        self._models: dict[str, _ManagedModel] = {}
        self._lock, self._loading, self._alone = threading.Condition(), loading or threading.Lock(), alone
        self._closed: AviaryError | None = None  # why the manager is closed
        self._waiting_for_room = False
        self.lost: DeviceLost | None = None

    def acquire(self, model: str) -> Backend | None:
        """Return the backend, which is then kept until `release`; None while the model loads.

        Raises ModelUnavailable or another AviaryError if the model cannot be loaded.
        """
        with self._lock:
            managed = self._models.get(model)
            if managed is None or (managed.error and time.monotonic() - managed.since > RETRY_SEC):
                self._start(model)
                return None
            if managed.error:
                raise managed.error.with_traceback(None)  # an error that is raised again keeps every frame it passed
            must_wait = self._waiting_for_room and time.monotonic() >= managed.keep_until
            if managed.state != "ready" or managed.evicting or must_wait:
                return None
            managed.users += 1
            return managed.backend

    def release(self, model: str) -> None:
        """End the use of a backend that `acquire` returned."""
        with self._lock:
            managed = self._models[model]
            managed.users -= 1
            managed.since = time.monotonic()
            self._lock.notify_all()

    @property
    def has_work(self) -> bool:
        """Whether the runner has something to do here: a model to warm up or to evict, or the loss of the device."""
        with self._lock:
            return self.lost is not None or any(
                managed.evicting or managed.is_loaded_but_cold for managed in self._models.values()
            )

    def warm(self) -> None:
        """Warm up the models that have been loaded since the last call."""
        with self._lock:
            cold = {name: managed for name, managed in self._models.items() if managed.is_loaded_but_cold}
        for name, managed in cold.items():
            self._warm(name, managed)

    def load(self, model: str) -> Future[None]:
        """Start to load the model. The future is done when the model is ready, and fails with ModelUnavailable."""
        future: Future[None] = Future()
        future.set_running_or_notify_cancel()  # several callers may wait for it, so none of them can cancel it
        with self._lock:
            if self._closed:
                future.set_exception(self._closed)
                return future
            managed = self._models.get(model)
            if managed is None or managed.error:
                managed = self._start(model)
            if managed.state == "ready":
                future.set_result(None)
            else:
                managed.futures.append(future)
        return future

    def states(self) -> dict[str, State]:
        """Return the state of each model, by its id."""
        with self._lock:
            return {name: managed.state for name, managed in self._models.items()}

    def is_ready(self, model: str) -> bool:
        """Whether the model is loaded and warm."""
        return self.states().get(model) == "ready"

    def lose(self, error: DeviceLost) -> None:
        """Record that the device is lost, and why."""
        self.lost = error
        self._changed()

    def evict_idle(self) -> float | None:
        """Close the models that must make room or have been idle for `idle_sec`, and forget old failures.

        Return the seconds until the next model will have been idle for long enough, or None.
        """
        now = time.monotonic()
        with self._lock:
            self._forget_failures(now)
            idle = self._idle()
            for managed in idle.values():
                if self._idle_sec and now - managed.since >= self._idle_sec:
                    managed.evicting = True
            evicting = {name: managed for name, managed in self._models.items() if managed.evicting}
        for name, managed in evicting.items():
            assert managed.backend is not None
            _close(managed.backend)
            managed.hold.close()
            log.info("unloaded %s", name)
        if evicting:
            memory.collect()
            with self._lock:
                for name in evicting:
                    self._models.pop(name, None)
                self._lock.notify_all()
        left = [self._idle_sec - (now - managed.since) for managed in idle.values() if not managed.evicting]
        return min(left, default=None) if self._idle_sec else None

    def close(self, why: AviaryError | None = None) -> None:
        """Unload all models; the futures of loads that have not ended fail with `why`.

        A load cannot be stopped: its thread closes the model once it is loaded.
        """
        with self._lock:
            self._closed = closed = why or Cancelled("the worker is shutting down")
            models, self._models = list(self._models.values()), {}
            futures = [future for managed in models for future in managed.futures]
            for managed in models:
                managed.futures = []
            self._lock.notify_all()
        for future in futures:
            future.set_exception(closed)
        for managed in models:
            if managed.backend is not None:
                _close(managed.backend)
                managed.hold.close()

    def _start(self, model: str) -> _ManagedModel:
        managed = self._models[model] = _ManagedModel()
        threading.Thread(target=self._load, args=(model, managed), name=f"load {model}", daemon=True).start()
        return managed

    def _idle(self) -> dict[str, _ManagedModel]:
        return {name: managed for name, managed in self._models.items() if managed.is_idle}

    def _forget_failures(self, now: float) -> None:
        for name, managed in list(self._models.items()):
            if managed.error and now - managed.since > RETRY_SEC:
                del self._models[name]

    def _load(self, model: str, managed: _ManagedModel) -> None:
        started = time.monotonic()
        try:
            row = self._find(model)
            backend = self._create(row)
            weight = backend.weight_bytes()
            managed.hold.enter_context(self._hold(row))
            with self._loading:
                self._make_room(model, weight)
                with self._alone():
                    backend.load()
                with self._lock:
                    if self._closed is None:
                        managed.backend, managed.bytes, managed.since = backend, weight, time.monotonic()
            if managed.backend is None:
                _close(backend)
                managed.hold.close()
                return
        except BaseException as error:  # noqa: BLE001  a panic of a Rust library is no Exception; other models keep working
            self._fail(managed, _unavailable(model, error))
            return
        log.info("loaded %s in %.1f s", model, time.monotonic() - started)
        self._changed()

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise self._closed

    def _make_room(self, model: str, weight: int) -> None:
        """Evict the least recently used models until the weights fit. Raises ModelUnavailable if they never can.

        While all models are in use this waits, and no model can be acquired: a model that is always in use would
        otherwise never be evicted.
        """
        budget = self._budget() if weight else float("inf")
        if weight > budget:
            raise ModelUnavailable(
                f"{model} needs {weight / GIB:.1f} GiB for its weights; {budget / GIB:.1f} GiB are allowed "
                "(MODELS_MEMORY_GB)"
            )
        with self._lock:
            while weight + sum(managed.bytes for managed in self._models.values()) > budget:
                self._refuse_if_closed()
                self._evict_one()
                self._waiting_for_room = True
                self._lock.wait(0.1)
            self._waiting_for_room = False
            self._refuse_if_closed()
        self._changed()

    def _evict_one(self) -> None:
        """Mark the least recently used idle model for eviction, unless a model is being evicted already."""
        oldest = min(self._idle().values(), key=lambda managed: managed.since, default=None)
        if oldest is None or time.monotonic() < oldest.keep_until:
            return
        if not any(managed.evicting for managed in self._models.values()):
            oldest.evicting = True
            self._changed()

    def _warm(self, model: str, managed: _ManagedModel) -> None:
        assert managed.backend is not None
        try:
            managed.backend.warm()
        except BaseException as error:  # noqa: BLE001  the runner's thread never ends by an exception
            with self._lock:
                backend, managed.backend = managed.backend, None
            _close(backend)
            self._fail(managed, _unavailable(model, error))
            return
        with self._lock:
            managed.needs_warmup, managed.since = False, time.monotonic()
            managed.keep_until = managed.since + KEEP_SEC
            futures, managed.futures = managed.futures, []
            self._lock.notify_all()
        for future in futures:
            future.set_result(None)

    def _fail(self, managed: _ManagedModel, error: AviaryError) -> None:
        managed.hold.close()
        with self._lock:
            if isinstance(error, DeviceLost):
                self.lost = error
            managed.error, managed.since, managed.bytes = error, time.monotonic(), 0
            futures, managed.futures = managed.futures, []
            self._lock.notify_all()
        for future in futures:
            future.set_exception(error)
        self._changed()


def _close(backend: Backend) -> None:
    try:
        backend.close()
    except BaseException:
        log.exception("a model could not be closed")


def _unavailable(model: str, error: BaseException) -> AviaryError:
    """Return the error that a failed load means. The traceback of a foreign exception is logged."""
    if not isinstance(error, AviaryError):
        log.error("%s could not be loaded", model, exc_info=error)
    elif isinstance(error.__cause__, RemoteTraceback):  # of a foreign exception in the process of a device
        log.error("%s could not be loaded", model, exc_info=error.__cause__)
    forget(error)
    return translate_load(error, model)
