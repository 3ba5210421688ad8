"""What the routes share: a payload in, the engine's Response out, with the limits of a server around it.

    take(http, payload)          one request: admitted, run, and given up when the client hangs up or its time is over
    stream(payload)              the same, with each bit of text as it comes
    run(http, payload)           any task's payload, to its answer's JSON

A server holds at most MAX_QUEUE inputs; while its models load it says so at once instead of keeping people waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import threading
from collections.abc import AsyncGenerator, Mapping
from concurrent.futures import Future
from typing import Any, BinaryIO

from fastapi.requests import Request as HttpRequest

from worker import catalog
from worker.config import Settings
from worker.engine.engine import Engine
from worker.engine.request_state import OnResult
from worker.entrypoints.http.metrics import Metrics
from worker.entrypoints.tasks import Tasks, is_light
from worker.errors import AviaryError, Cancelled, DeadlineExceeded, ModelNotFound, QueueFull, StillLoading
from worker.protocol.request import parse, unwrapped
from worker.types import Failure, Request, Response, Result

log = logging.getLogger(__name__)

Payload = Mapping[str, Any]
LOADING_SEC = 5.0


class Service:
    """One engine behind HTTP. Its methods are for the event loop."""

    def __init__(self, settings: Settings, engine: Engine, meters: Metrics) -> None:
        self.settings, self.engine, self.meters = settings, engine, meters
        self.tasks = Tasks(settings, engine)
        self._loads: dict[str, Future[None]] = {}
        self._in_flight, self._counting = 0, threading.Lock()
        self._cannot_score = False

    def load(self) -> None:
        """Begins to load MODEL and MODELS; answers at once."""
        for name in (self.settings.default_model, *self.settings.models):
            model = catalog.find(name).id
            self._loads[model] = self.engine.load(model)
            self._loads[model].add_done_callback(_log_failure)
            self._loads[model].add_done_callback(_settle)
        if self.settings.audio_score_config is not None:
            self.tasks.scorer.ready.add_done_callback(_log_failure)
            self.tasks.scorer.ready.add_done_callback(self._note_scoring)

    def _note_scoring(self, ready: Future[None]) -> None:
        self._cannot_score = ready.cancelled() or ready.exception() is not None

    def close(self) -> None:
        """Before the engine's."""
        self.tasks.close()

    @property
    def default(self) -> str:
        """The id of the model that requests get which name none."""
        return catalog.find(self.settings.default_model).id

    @property
    def state(self) -> str:
        """loading, ready, or unhealthy: the device is lost, or the default model, or all that score, could not be
        loaded."""
        if self.engine.lost is not None or self._cannot_score:
            return "unhealthy"
        load = self._loads.get(self.default)
        if load is None or self.engine.models.get(self.default) == "ready":
            return "ready"
        if not load.done():
            return "loading"
        return "unhealthy" if load.exception() else "ready"

    async def take(
        self,
        http: HttpRequest,
        payload: Payload,
        files: Mapping[str, BinaryIO] | None = None,
        *,
        on_result: OnResult | None = None,
    ) -> Response:
        """The response. Raises AviaryError for what is wrong with the request as a whole."""
        request = await self.parse(payload, files)
        future = self.submit(request, on_result=on_result)
        response: Response = await self.wait(http, future)
        return response

    async def one(self, http: HttpRequest, payload: Payload, files: Mapping[str, BinaryIO] | None = None) -> Response:
        """The response to a request of one input, whose error is the request's. Raises AviaryError."""
        response = await self.take(http, payload, files)
        _raise(response)
        return response

    async def run(
        self, http: HttpRequest, payload: Payload, files: Mapping[str, BinaryIO] | None = None
    ) -> dict[str, Any]:
        """The answer to a payload of any task. Raises AviaryError, that of a single input among them."""
        self.allow(payload)
        work = (
            self.tasks.prepare(payload, files=files)
            if is_light(payload)
            else await asyncio.to_thread(self.tasks.prepare, payload, files=files)
        )
        self._refuse_while_loading(work.model)
        self.admit(work.size)
        try:
            outcome = await self.wait(http, work.start(None))
        finally:
            self.leave(work.size)
        if isinstance(outcome, list) and len(outcome) == 1 and isinstance(outcome[0], AviaryError):
            raise outcome[0].with_traceback(None)
        return await asyncio.to_thread(work.finish, outcome)

    async def stream(
        self, payload: Payload, files: Mapping[str, BinaryIO] | None = None
    ) -> AsyncGenerator[str | Response, None]:
        """Each bit of the one input's text as it comes, at last the Response. To be closed; that gives the request up.
        Raises AviaryError."""
        loop, told = asyncio.get_running_loop(), asyncio.Queue[str | None]()

        def tell(text: str | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(told.put_nowait, text)

        request = await self.parse(payload, files)
        future = self.submit(request, on_text=lambda _index, text: tell(text))
        future.add_done_callback(lambda _future: tell(None))
        deadline = loop.time() + self.settings.request_timeout_sec
        try:
            while (text := await asyncio.wait_for(told.get(), deadline - loop.time())) is not None:
                yield text
        except asyncio.TimeoutError:
            raise self._late() from None
        finally:
            future.cancel()
        response = future.result()
        _raise(response)
        yield response

    async def parse(self, payload: Payload, files: Mapping[str, BinaryIO] | None = None) -> Request:
        """The request, of a model that HTTP may name. Raises RequestError."""
        self.allow(payload)
        if is_light(payload):
            return parse(payload, self.settings, files=files)
        return await asyncio.to_thread(parse, payload, self.settings, files=files)

    def submit(self, request: Request, **listeners: Any) -> Future[Response]:
        """Runs the request if there is room. Raises StillLoading, QueueFull."""
        self._refuse_while_loading(request.model)
        self.admit(request.size)
        future = self.engine.submit(request, **listeners)
        future.add_done_callback(lambda _future: self.leave(request.size))
        return future

    def admit(self, inputs: int) -> None:
        """Counts inputs in, until `leave`. Raises QueueFull; one request too large for the queue may have it alone."""
        with self._counting:
            if self._in_flight and self._in_flight + inputs > self.settings.max_queue:
                raise QueueFull(
                    f"{self._in_flight} inputs are being worked on, {self.settings.max_queue} at most (MAX_QUEUE)",
                    retry_after_sec=1 + self._in_flight // 64,
                )
            self._in_flight += inputs
            self.meters.in_flight(self._in_flight)

    def leave(self, inputs: int) -> None:
        """On any thread."""
        with self._counting:
            self._in_flight -= inputs
            self.meters.in_flight(self._in_flight)

    async def wait(self, http: HttpRequest, future: Future[Any]) -> Any:
        """The future's result; it is cancelled when the client hangs up or REQUEST_TIMEOUT_SEC is over."""
        answer = asyncio.ensure_future(asyncio.wrap_future(future))
        gone = asyncio.ensure_future(hung_up(http))
        try:
            await asyncio.wait(
                {answer, gone}, timeout=self.settings.request_timeout_sec, return_when=asyncio.FIRST_COMPLETED
            )
            if answer.done():
                return answer.result()
            raise Cancelled("the client hung up") if gone.done() else self._late()
        finally:
            gone.cancel()
            answer.cancel()
            future.cancel()

    def allow(self, payload: Payload) -> None:
        """Raises ModelNotFound for a model that HTTP may not name; a scoring model's key is not one of the catalog."""
        body = unwrapped(payload)
        asked = body.get("openai_input", body) if "openai_route" in body else body
        name = asked.get("model") if isinstance(asked, Mapping) else None
        if not isinstance(name, str) or body.get("task") == "score":
            return
        own = {self.settings.default_model, *self.settings.models}
        allowed = self.settings.allowed_models
        if "*" in allowed or name in own:
            return
        known = [model for model in catalog.MODELS if not allowed or {model.id, *model.aliases} & set(allowed)]
        if name in allowed or any(name == model.id or name in model.aliases for model in known):
            return
        names = ", ".join(sorted(own) + [model.name for model in known])
        raise ModelNotFound(f"model {name!r} is not one of this server's: {names} (ALLOWED_MODELS)", param="model")

    def _refuse_while_loading(self, model: str | None) -> None:
        load = self._loads.get(model or "")
        if load is not None and not load.done() and self.engine.models.get(model or "") != "ready":
            raise StillLoading(f"{model} is being loaded", retry_after_sec=LOADING_SEC)

    def _late(self) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"not done within {self.settings.request_timeout_sec:g} s (REQUEST_TIMEOUT_SEC): send it "
            "as a job (/run, /transcribe/async)",
            retry_after_sec=LOADING_SEC,
        )


async def hung_up(http: HttpRequest) -> None:
    """Returns when the client has closed its connection. The body must have been read."""
    while (await http.receive())["type"] != "http.disconnect":
        pass


def _raise(response: Response) -> None:
    (outcome,) = response.results
    if isinstance(outcome, Failure):
        raise outcome.error.with_traceback(None)  # one that is shared would keep the frames of all who raised it
    assert isinstance(outcome, Result)


def _settle(_load: Future[None]) -> None:
    """What has been loaded stays: else the collector would look through all of it again and again, and hold up the
    event loop for a tenth of a second each time."""
    gc.collect()
    gc.freeze()


def _log_failure(load: Future[None]) -> None:
    error = load.exception()
    if isinstance(error, AviaryError) and not isinstance(error, Cancelled):
        log.error("%s", error.message)
