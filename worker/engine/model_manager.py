"""Which models are on the device: loaded on first use or ahead of it, each once, within a memory budget.

    acquire(model)  the loaded backend, kept until release(model); None while it loads (the first call starts the load)
    load(model)     a Future that is done when the model is ready

A load runs on a thread of its own, so that the models already there go on answering; one at a time, because two might
not
fit (downloads are not held up by it), nor into the machine's memory, which devices have in common: they share the lock
`loading`. To make room, models that nobody is using leave, the one longest unused first; so do those unused for
`idle_sec`. A
model that cannot be loaded raises its own ModelUnavailable, at once for RETRY_SEC, then it is tried anew. A device
that is lost meanwhile is remembered in `lost`.

`claim`, `release`, `warm` and `sweep` are for the lane's thread, on which models are warmed and closed; `load` and
`close` for any.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from worker import catalog
from worker.backends.base import Backend
from worker.errors import AviaryError, Cancelled, DeviceLost, ModelUnavailable, OutOfMemory
from worker.faults import forget, translate

log = logging.getLogger(__name__)

RETRY_SEC = 30.0
KEEP_SEC = 1.0  # a model that became ready may be claimed for so long before it must make room
GIB = 1024**3


@dataclasses.dataclass(slots=True, eq=False)
class _ManagedModel:
    """A model that is loading, loaded (fresh: but not yet warmed; leaving: to be closed), or failed."""

    backend: Backend | None = None
    needs_warmup: bool = True
    evicting: bool = False
    error: AviaryError | None = None
    bytes: int = 0
    users: int = 0
    keep_until: float = 0.0
    since: float = dataclasses.field(default_factory=time.monotonic)  # last use, or the failure
    futures: list[Future[None]] = dataclasses.field(default_factory=list)


class ModelManager:
    """`budget` gives the bytes that all weights together may take; `changed` is called when a load has ended."""

    def __init__(
        self,
        create: Callable[[catalog.Model], Backend],
        *,
        budget: Callable[[], float] = lambda: float("inf"),
        idle_sec: float = 0.0,
        changed: Callable[[], None] = lambda: None,
        loading: threading.Lock | None = None,
    ) -> None:
        self._create, self._budget, self._idle_sec, self._changed = create, budget, idle_sec, changed
        self._residents: dict[str, _ManagedModel] = {}
        self._lock, self._loading = threading.Condition(), loading or threading.Lock()
        self._closed: AviaryError | None = None  # and why
        self._waiting_for_room = False
        self.lost: DeviceLost | None = None

    def acquire(self, model: str) -> Backend | None:
        """The backend, which stays until `release`; None while it loads. Raises ModelUnavailable when it cannot be
        loaded."""
        with self._lock:
            resident = self._residents.get(model)
            if resident is None or (resident.error and time.monotonic() - resident.since > RETRY_SEC):
                self._start(model)
                return None
            if resident.error:
                raise resident.error.with_traceback(None)  # an error that is raised again keeps every frame it passed
            if (
                resident.backend is None
                or resident.needs_warmup
                or resident.evicting
                or (self._waiting_for_room and time.monotonic() >= resident.keep_until)
            ):
                return None
            resident.users += 1
            return resident.backend

    def release(self, model: str) -> None:
        """Ends a claim that gave a backend."""
        with self._lock:
            resident = self._residents[model]
            resident.users -= 1
            resident.since = time.monotonic()
            self._lock.notify_all()

    @property
    def due(self) -> bool:
        """Whether a model waits for `warm` or has to leave in `sweep`, or the device is lost."""
        with self._lock:
            return self.lost is not None or any(
                one.evicting or (one.backend is not None and one.needs_warmup) for one in self._residents.values()
            )

    def warm(self) -> None:
        """Makes ready what has been loaded since."""
        with self._lock:
            needs_warmup = [
                (name, one) for name, one in self._residents.items() if one.backend is not None and one.needs_warmup
            ]
        for name, resident in needs_warmup:
            self._warm(name, resident)

    def load(self, model: str) -> Future[None]:
        """Starts loading; the future is done when the model is ready, and fails with ModelUnavailable."""
        future: Future[None] = Future()
        future.set_running_or_notify_cancel()  # so that nobody can cancel what others wait for
        with self._lock:
            if self._closed:
                future.set_exception(self._closed)
                return future
            resident = self._residents.get(model)
            if resident is None or resident.error:
                resident = self._start(model)
            if resident.backend is not None and not resident.needs_warmup:
                future.set_result(None)
            else:
                resident.futures.append(future)
        return future

    def states(self) -> dict[str, str]:
        """Each model's state: ready, loading or failed."""
        with self._lock:
            return {
                name: "failed" if one.error else "loading" if one.backend is None or one.needs_warmup else "ready"
                for name, one in self._residents.items()
            }

    def has(self, model: str) -> bool:
        """Whether the model is ready."""
        return self.states().get(model) == "ready"

    def lose(self, error: DeviceLost) -> None:
        """The device is lost, as whoever watches it says."""
        self.lost = error
        self._changed()

    def evict_idle(self) -> float | None:
        """Closes what has to make room or has been unused for `idle_sec`. Seconds until there may be more to do, or
        None."""
        now = time.monotonic()
        with self._lock:
            for name, resident in list(self._residents.items()):
                if resident.error and now - resident.since > RETRY_SEC:
                    del self._residents[name]
            idle = self._idle()
            for resident in idle.values():
                resident.evicting |= bool(self._idle_sec) and now - resident.since >= self._idle_sec
            evicting = {name: one for name, one in self._residents.items() if one.evicting}
        for name, resident in evicting.items():
            assert resident.backend is not None
            _close(resident.backend)
            log.info("unloaded %s", name)
        if evicting:
            with self._lock:
                for name in evicting:
                    self._residents.pop(name, None)
                self._lock.notify_all()
        left = [self._idle_sec - (now - resident.since) for resident in idle.values() if not resident.evicting]
        return min(left, default=None) if self._idle_sec else None

    def close(self, why: AviaryError | None = None) -> None:
        """Unloads everything. A load under way is abandoned to its thread; who waits for it is told `why`."""
        with self._lock:
            self._closed = closed = why or Cancelled("the worker is shutting down")
            residents, self._residents = list(self._residents.values()), {}
            futures = [future for resident in residents for future in resident.futures]
            for resident in residents:
                resident.futures = []
            self._lock.notify_all()
        for future in futures:
            future.set_exception(closed)
        for resident in residents:
            if resident.backend is not None:
                _close(resident.backend)

    def _start(self, model: str) -> _ManagedModel:
        resident = self._residents[model] = _ManagedModel()
        threading.Thread(target=self._load, args=(model, resident), name=f"load {model}", daemon=True).start()
        return resident

    def _idle(self) -> dict[str, _ManagedModel]:
        return {
            name: one
            for name, one in self._residents.items()
            if one.backend is not None and not one.users and not one.needs_warmup and not one.evicting
        }

    def _load(self, model: str, resident: _ManagedModel) -> None:
        started = time.monotonic()
        try:
            backend = self._create(catalog.find(model))
            weight = backend.weight_bytes()
            with self._loading:
                self._make_room(model, weight)
                backend.load()
                with self._lock:
                    if self._closed is None:
                        resident.backend, resident.bytes, resident.since = backend, weight, time.monotonic()
            if resident.backend is None:
                _close(backend)
                return
        except BaseException as error:  # noqa: BLE001  whatever it is (a panic of a Rust library is no Exception), others go on
            self._failed(resident, _unavailable(model, error))
            return
        log.info("loaded %s in %.1f s", model, time.monotonic() - started)
        self._changed()

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise self._closed

    def _make_room(self, model: str, weight: int) -> None:
        """Unloads the longest unused until the weight fits. Raises ModelUnavailable if it never can.

        Where all are in use it waits, and nobody may claim a model meanwhile: else one that is always busy would never
        leave.
        """
        budget = self._budget() if weight else float("inf")
        if weight > budget:
            raise ModelUnavailable(
                f"{model} needs {weight / GIB:.1f} GiB for its weights; {budget / GIB:.1f} GiB are allowed "
                "(MODELS_MEMORY_GB)"
            )
        with self._lock:
            while weight + sum(one.bytes for one in self._residents.values()) > budget:
                self._refuse_if_closed()
                idlest = min(self._idle().values(), key=lambda one: one.since, default=None)
                if (
                    idlest
                    and time.monotonic() >= idlest.keep_until
                    and not any(one.evicting for one in self._residents.values())
                ):
                    idlest.evicting = True
                    self._changed()
                self._waiting_for_room = True
                self._lock.wait(0.1)
            self._waiting_for_room = False
            self._refuse_if_closed()
        self._changed()

    def _warm(self, model: str, resident: _ManagedModel) -> None:
        assert resident.backend is not None
        try:
            resident.backend.warm()
        except BaseException as error:  # noqa: BLE001  the lane never dies
            with self._lock:
                backend, resident.backend = resident.backend, None
            _close(backend)
            self._failed(resident, _unavailable(model, error))
            return
        with self._lock:
            resident.needs_warmup, resident.since = False, time.monotonic()
            resident.keep_until = resident.since + KEEP_SEC
            futures, resident.futures = resident.futures, []
            self._lock.notify_all()
        for future in futures:
            future.set_result(None)

    def _failed(self, resident: _ManagedModel, error: AviaryError) -> None:
        with self._lock:
            if isinstance(error, DeviceLost):
                self.lost = error
            resident.error, resident.since, resident.bytes = error, time.monotonic(), 0
            futures, resident.futures = resident.futures, []
            self._lock.notify_all()
        for future in futures:
            future.set_exception(error)
        self._changed()


def _close(backend: Backend) -> None:
    try:
        backend.close()
    except BaseException:
        log.exception("a model did not close")


def _unavailable(model: str, error: BaseException) -> AviaryError:
    if not isinstance(error, AviaryError):
        log.error("%s could not be loaded", model, exc_info=error)
    forget(error)
    ours = translate(error)
    if isinstance(error, AviaryError) or isinstance(ours, DeviceLost):
        return ours
    if isinstance(ours, OutOfMemory):
        ours = ModelUnavailable(f"{model} does not fit into the device's memory beside what is there")
    else:
        ours = ModelUnavailable(f"{model} could not be loaded: {type(error).__name__}: {error}")
    ours.__cause__ = error
    return ours
