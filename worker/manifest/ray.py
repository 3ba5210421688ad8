"""Asks engines on a Ray cluster: an actor with an engine on each GPU. Ray is not among the requirements.

    with on_ray(settings, "transcribe", address="auto") as ask:
        process(manifest, output, ask, concurrency=ask.concurrency)

Lines go to the engines, answers and embeddings come back, and this process alone writes. The engines read the audio:
paths must mean the same on all machines (a shared folder), or be URLs. worker/ is to be installed on all of them.

An engine is asked once its model has loaded. Ray replaces one that dies or whose device is lost, and what it was asked
is asked of whoever is free. The engines end with the block, and with this process, however it ends.

Not Ray Data: it hands on whole blocks of lines, which a run that is killed has to do again, and reads a manifest from
its beginning.
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
from worker.manifest.askers import Task, with_engine
from worker.manifest.lines import Line
from worker.manifest.run import LineResult

log = logging.getLogger(__name__)

LOCAL = "local"
TRIES = 4  # engines that may die while they hear one line, or one after another while they load
RESTARTS = 100  # of one engine in a run: one that dies before it can be asked anything must not do so for ever
CONNECT_SEC, CLOSE_SEC = 10, 10


@contextlib.contextmanager
def on_ray(
    settings: Settings, task: Task, *, address: str = LOCAL, engines: int | None = None, each: int = 16, **options: Any
) -> Iterator[Cluster]:
    """What asks the cluster. `address`: "auto", "host:port" or "ray://host:port"; "local" starts one on this machine's
    loopback,
    for the block. Where Ray is connected already, that is used. `engines`: by default one a GPU of the cluster; if it
    has none,
    or DEVICE is cpu, one a machine. `each`: lines that an engine is asked about at a time. `options`: the request's
    fields (model, style, ...).

    Raises RequestError where Ray is not installed, ServerUnreachable where no cluster answers.
    """
    if address == LOCAL:
        keep_ray_here()
    try:
        import ray
    except ImportError:
        raise RequestError("a cluster needs Ray: pip install 'aviary-worker[ray]'", param="ray") from None
    with contextlib.ExitStack() as stack:
        if not ray.is_initialized():
            _connect(address)
            stack.callback(ray.shutdown)
        gpus = 0 if settings.device == "cpu" else int(ray.cluster_resources().get("GPU", 0))
        actor = ray.remote(
            num_cpus=1, num_gpus=min(gpus, 1), max_restarts=RESTARTS, max_concurrency=each, scheduling_strategy="SPREAD"
        )(EngineActor)
        values = settings.model_dump(mode="json", exclude_unset=True)  # each machine has its own defaults
        count = engines or gpus or sum(node["Alive"] for node in ray.nodes())
        cluster = Cluster([actor.remote(values, task, options) for _ in range(count)], each)
        stack.callback(cluster.close)
        yield cluster


class EngineActor:
    """One engine, in a process of its own. Errors are returned: raised, they would arrive wrapped in Ray's."""

    def __init__(self, values: Mapping[str, Any], task: Task, options: Mapping[str, Any]) -> None:
        from worker.engine.engine import Engine

        settings = Settings(**values)
        logs.configure(settings)
        self._engine = Engine(settings)
        self._ask = with_engine(self._engine, task, **options)

    def load(self) -> AviaryError | None:
        """Returns when the default model has loaded, or why it cannot."""
        from worker import catalog

        try:
            self._engine.load(catalog.find(self._engine.settings.default_model).id).result()
        except AviaryError as error:
            return error
        return None

    def ask(self, line: Line) -> LineResult | AviaryError:
        try:
            return self._ask(line)
        except DeviceLost:
            log.exception("this engine is replaced")
            os._exit(1)
        except AviaryError as error:
            return error


class Cluster:
    """The actors as an Ask. `concurrency`: lines that they may be asked about at a time."""

    def __init__(self, actors: list[Any], each: int) -> None:
        self.concurrency = len(actors) * each
        self._actors = actors
        self._free: queue.SimpleQueue[Any] = (
            queue.SimpleQueue()
        )  # an actor, for each line it may be asked about; or an error
        self._asked: set[Future[Any]] = set()
        self._lock, self._closed = threading.Lock(), False
        for actor in actors:
            self._load(actor, each)

    def __call__(self, line: Line) -> LineResult:
        import ray

        line = dataclasses.replace(line, folder=line.folder.absolute())
        for _ in range(TRIES):
            actor = self._free.get()
            if isinstance(actor, AviaryError):
                self._free.put(actor)  # for the next who asks
                raise actor
            try:
                answer = self._send(actor, line)
            except ray.exceptions.RayTaskError:  # a fault in the code, not of the actor
                self._free.put(actor)
                raise
            except ray.exceptions.RayError as error:
                if self._closed:
                    raise Cancelled("stopped") from None
                log.warning("line %d is asked again: %s", line.index + 1, type(error).__name__)
                self._load(actor, 1)
            else:
                self._free.put(actor)
                if isinstance(answer, AviaryError):
                    raise answer
                return answer
        raise DeviceLost(f"{TRIES} engines died while they heard line {line.index + 1}: their logs say why")

    def close(self) -> None:
        """Ends the actors, and waits until nobody waits for them."""
        import ray

        with self._lock:
            self._closed = True
        self._free.put(Cancelled("stopped"))
        for actor in self._actors:
            ray.kill(actor)
        concurrent.futures.wait(self._asked, timeout=CLOSE_SEC)

    def _send(self, actor: Any, line: Line) -> LineResult | AviaryError:
        with self._lock:
            if self._closed:
                raise Cancelled("stopped")
            asked: Future[LineResult | AviaryError] = actor.ask.remote(line).future()
            self._asked.add(asked)
        try:
            return asked.result()
        finally:
            with self._lock:
                self._asked.discard(asked)

    def _load(self, actor: Any, lines: int) -> None:
        """The actor is free for so many lines once it has loaded. If it cannot, that ends the run: who asks next is
        told."""

        def done(loading: Future[AviaryError | None]) -> None:
            if (error := loading.exception()) is not None:
                free: Any = ServerUnreachable(f"an engine cannot be started on the cluster: {error}")
            else:
                free = loading.result() or actor
            for _ in range(lines):
                self._free.put(free)

        actor.load.options(max_task_retries=TRIES - 1).remote().future().add_done_callback(done)


def _connect(address: str) -> None:
    import ray

    own: Mapping[str, Any] = {"include_dashboard": False} if address == LOCAL else {}
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if host:  # Ray itself waits for minutes
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_SEC).close()
        ray.init(address=address, logging_level="WARNING", **own)
    except (OSError, ValueError) as error:
        raise ServerUnreachable(f"no Ray cluster at {address!r}: {error}") from error
