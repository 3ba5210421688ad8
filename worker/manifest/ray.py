"""Process a manifest with engines on a Ray cluster: one actor with an engine on each GPU. Ray is an optional package.

    with on_ray(settings, "transcribe", address="auto") as ask:
        process(manifest, output, ask, concurrency=ask.concurrency)

Lines go to the engines, results and embeddings come back, and only this process writes. The engines read the audio, so
a path must mean the same on all machines (a shared folder), or be a URL. The package must be installed on all machines.

An engine receives lines once its model has loaded. Ray replaces an engine that dies or loses its device, and a free
engine processes its lines again. The engines end with the block, and with this process, however it ends.

Ray Data is not used: it hands on whole blocks of lines, which a killed run would have to repeat, and it always reads a
manifest from the beginning.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import logging
import os
import queue
import socket
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from typing import Any

from worker import logs
from worker.config import Settings, keep_ray_here
from worker.errors import AviaryError, Cancelled, DeviceLost, RequestError, ServerUnreachable
from worker.manifest.askers import with_engine
from worker.manifest.line_results import Task
from worker.manifest.lines import Line
from worker.manifest.run import LineResult

log = logging.getLogger(__name__)

LOCAL = "local"
TRIES = 4  # attempts at one line, and at loading one engine, before an engine's death ends the run
RESTARTS = 100  # of one engine in a run, so that an engine that always dies at start does not restart forever
RESTART_SEC = 0.5  # between two calls of an actor that Ray is restarting
CONNECT_SEC, CLOSE_SEC = 10, 10


@contextlib.contextmanager
def on_ray(
    settings: Settings, task: Task, *, address: str = LOCAL, engines: int | None = None, each: int = 16, **options: Any
) -> Iterator[Cluster]:
    """Yield an Asker that uses engines on a Ray cluster.

    Args:
        settings: The settings of the engines.
        task: The task of every line.
        address: "auto", "host:port" or "ray://host:port"; "local" starts a cluster on this machine's loopback address
            for the duration of the block. A connection that Ray already has takes precedence.
        engines: The number of engines; by default one for each GPU of the cluster, or, if it has none or DEVICE is
            cpu, one for each machine.
        each: The number of lines that one engine processes at a time.
        options: The request's fields (model, style, …).

    Raises:
        RequestError: Ray is not installed.
        ServerUnreachable: No cluster responds at the address.
    """
    if address == LOCAL:
        keep_ray_here()
    try:
        import ray
    except ImportError:
        raise RequestError(
            "a cluster requires Ray, which is not installed: pip install 'aviary-worker[ray]'", param="ray"
        ) from None
    with contextlib.ExitStack() as stack:
        if not ray.is_initialized():
            _connect(address)
            stack.callback(ray.shutdown)
        gpus = 0 if settings.device == "cpu" else int(ray.cluster_resources().get("GPU", 0))
        actor = ray.remote(
            num_cpus=1, num_gpus=min(gpus, 1), max_restarts=RESTARTS, max_concurrency=each, scheduling_strategy="SPREAD"
        )(EngineActor)
        values = settings.model_dump(mode="json", exclude_unset=True)  # unset values take each machine's own defaults
        count = engines or gpus or sum(node["Alive"] for node in ray.nodes())
        cluster = Cluster([actor.remote(values, task, options) for _ in range(count)], each)
        stack.callback(cluster.close)
        yield cluster


class EngineActor:
    """One engine in a process of its own. Its methods return errors, because Ray wraps errors that are raised."""

    def __init__(self, values: Mapping[str, Any], task: Task, options: Mapping[str, Any]) -> None:
        from worker.engine.engine import Engine

        settings = Settings(**values)
        logs.configure(settings)
        self._engine = Engine(settings)
        self._ask = with_engine(self._engine, task, **options)

    def load(self) -> AviaryError | None:
        """Load the default model, and return None, or the error if it cannot be loaded."""
        from worker import catalog

        try:
            settings = self._engine.settings
            self._engine.load(catalog.find(settings.default_model, settings.places).id).result()
        except AviaryError as error:
            return error
        return None

    def ask(self, line: Line) -> LineResult | AviaryError:
        """Return the result of a line, or its error. If the device is lost, the process exits and Ray replaces it."""
        try:
            return self._ask(line)
        except DeviceLost:
            log.exception("the engine lost its device; Ray replaces the engine")
            os._exit(1)
        except AviaryError as error:
            return error


class Cluster:
    """The actors as one Asker. `concurrency` is the number of lines that they process at a time, together."""

    def __init__(self, actors: list[Any], each: int) -> None:
        self.concurrency = len(actors) * each
        self._actors = actors
        # One entry for each further line that an actor can take; or an AviaryError, which ends the run.
        self._free: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._pending: set[Future[Any]] = set()
        self._lock, self._closed = threading.Lock(), False
        for actor in actors:
            self._load(actor, each)

    def __call__(self, line: Line) -> LineResult:
        """Process a line on a free actor. Raises: the line's error, or the error that ends the run."""
        import ray

        line = dataclasses.replace(line, folder=line.folder.absolute())
        for _ in range(TRIES):
            actor = self._free.get()
            if isinstance(actor, AviaryError):
                self._free.put(actor)  # the next caller gets the same error
                raise actor
            try:
                result = self._send(actor, line)
            except ray.exceptions.RayTaskError:  # an error in the code; the actor is alive
                self._free.put(actor)
                raise
            except ray.exceptions.RayError as error:
                if self._closed:
                    raise Cancelled("the run was stopped") from None
                log.warning("line %d is processed again: %s", line.index + 1, type(error).__name__)
                self._load(actor, 1)
            else:
                self._free.put(actor)
                if isinstance(result, AviaryError):
                    raise result
                return result
        raise DeviceLost(
            f"{TRIES} engines died while they processed line {line.index + 1}. See the logs of the engines."
        )

    def close(self) -> None:
        """End the actors, and wait until no thread waits for them."""
        import ray

        with self._lock:
            self._closed = True
        self._free.put(Cancelled("the run was stopped"))
        for actor in self._actors:
            ray.kill(actor)
        concurrent.futures.wait(self._pending, timeout=CLOSE_SEC)

    def _send(self, actor: Any, line: Line) -> LineResult | AviaryError:
        with self._lock:
            if self._closed:
                raise Cancelled("the run was stopped")
            pending: Future[LineResult | AviaryError] = actor.ask.remote(line).future()
            self._pending.add(pending)
        try:
            return pending.result()
        finally:
            with self._lock:
                self._pending.discard(pending)

    def _load(self, actor: Any, lines: int) -> None:
        """Make the actor free for this many lines once it has loaded; if it cannot load, end the run.

        While Ray restarts an actor, its calls may fail at once. Such a call is made again after RESTART_SEC: it is no
        attempt at loading.
        """
        import ray

        def on_load(loading: Future[AviaryError | None]) -> None:
            error = loading.exception()
            if isinstance(error, ray.exceptions.ActorUnavailableError):
                again = threading.Timer(RESTART_SEC, self._load, (actor, lines))
                again.daemon = True
                again.start()
                return
            if error is not None:
                free: Any = ServerUnreachable(f"an engine cannot be started on the cluster: {error}")
            else:
                free = loading.result() or actor
            for _ in range(lines):
                self._free.put(free)

        with self._lock:
            if self._closed:
                return
            loading = actor.load.options(max_task_retries=TRIES - 1).remote().future()
        loading.add_done_callback(on_load)


def _connect(address: str) -> None:
    import ray

    options: Mapping[str, Any] = {"include_dashboard": False} if address == LOCAL else {}
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if host:  # checked here because Ray waits for minutes
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_SEC).close()
        ray.init(address=address, logging_level="WARNING", **options)
    except (OSError, ValueError) as error:
        raise ServerUnreachable(f"no Ray cluster responds at {address!r}: {error}") from error
