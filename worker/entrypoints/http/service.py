"""What the routes share: a request in, its answer out, with the limits of a server around it.

    answer = await service.run(http, fields, files)     admitted and run; dropped if the client hangs up or is late
    answer = await service.one(http, fields, files)     the same for one input, whose error is the request's
    answer = await service.complete(http, work)         the same for work that is checked already
    work = await service.prepare(http, fields, files)   only checked; service.stream(work) then yields text as it comes

A request that takes longer than REQUEST_TIMEOUT_SEC continues as a job if the route gives a `JobForm`; the error then
names the job. A server holds at most MAX_QUEUE inputs. While its models load it refuses requests at once instead of
keeping clients waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import threading
from collections.abc import AsyncGenerator, Mapping
from concurrent.futures import Future
from typing import Any, BinaryIO

from fastapi.requests import HTTPConnection
from fastapi.requests import Request as HttpRequest
from typing_extensions import Unpack

from worker import catalog
from worker.config import Settings
from worker.engine.engine import Engine
from worker.entrypoints.http.callers import caller_of
from worker.entrypoints.http.job_queue import JobForm, JobQueue
from worker.entrypoints.http.metrics import Metrics
from worker.entrypoints.tasks import Tasks
from worker.errors import AviaryError, Cancelled, DeadlineExceeded, QueueFull, StillLoading
from worker.jobs.progress_log import ProgressLog
from worker.protocol.request import is_light
from worker.protocol.strict import Fields
from worker.protocol.work import Json, Work
from worker.types import Clip, Listeners, Live, OnResult, Options, Progress, Transcript

log = logging.getLogger(__name__)

LOADING_SEC = 5.0


class Service:
    """One engine behind HTTP. The event loop calls its methods. `jobs`: what late requests continue in."""

    def __init__(self, settings: Settings, engine: Engine, metrics: Metrics, tasks: Tasks | None = None) -> None:
        self.settings, self.engine, self.metrics = settings, engine, metrics
        self.tasks = tasks or Tasks(settings, engine)
        self.jobs: JobQueue | None = None
        self._loads: dict[str, Future[None]] = {}
        self._in_flight, self._counting = 0, threading.Lock()
        self._cannot_score = False

    def load(self) -> None:
        """Start to load MODEL and MODELS, and return at once."""
        for name in self.settings.start_models:
            model = catalog.find(name, self.settings.places).id
            self._loads[model] = self.engine.load(model)
            self._loads[model].add_done_callback(_log_failure)
            self._loads[model].add_done_callback(_settle)
        if self.settings.audio_score_config is not None:
            self.tasks.scorer.ready.add_done_callback(_log_failure)
            self.tasks.scorer.ready.add_done_callback(self._note_scoring)

    def _note_scoring(self, ready: Future[None]) -> None:
        self._cannot_score = ready.cancelled() or ready.exception() is not None

    def close(self) -> None:
        """Close the tasks. Call it before the engine's `close`."""
        self.tasks.close()

    @functools.cached_property
    def default(self) -> str:
        """The id of the model that runs requests without a model."""
        return catalog.find(self.settings.default_model, self.settings.places).id

    @property
    def scoring_models(self) -> list[str]:
        """The keys of the models that score; empty if scoring is not configured, or none of them can be loaded."""
        if self.settings.audio_score_config is None:
            return []
        models = self.tasks.scorer.progress.models
        return [key for key, state in models.items() if state in ("loading", "loaded")]

    @property
    def state(self) -> str:
        """`loading`, `ready`, or `unhealthy`: the last device, the default model or all scoring models are missing."""
        if self.engine.lost is not None or self._cannot_score:
            return "unhealthy"
        load = self._loads.get(self.default)
        if load is None or self.engine.models.get(self.default) == "ready":
            return "ready"
        if not load.done():
            return "loading"
        return "unhealthy" if load.exception() else "ready"

    async def prepare(self, http: HTTPConnection, fields: Fields, files: Mapping[str, BinaryIO] | None = None) -> Work:
        """Check a request. Raises RequestError."""
        owner = caller_of(http).owner
        if is_light(fields):
            return self.tasks.prepare(fields, files=files, owner=owner)
        return await asyncio.to_thread(self.tasks.prepare, fields, files=files, owner=owner)

    async def run(
        self,
        http: HttpRequest,
        fields: Fields,
        files: Mapping[str, BinaryIO] | None = None,
        *,
        on_result: OnResult | None = None,
        job: JobForm | None = None,
    ) -> Any:
        """Return the answer to a request of any task. Raises AviaryError for the request as a whole.

        job: the job that the request becomes if it is late.
        """
        work = await self.prepare(http, fields, files)
        return await self._finish(work, await self._outcome(http, work, on_result=on_result, job=job))

    async def one(
        self,
        http: HttpRequest,
        fields: Fields,
        files: Mapping[str, BinaryIO] | None = None,
        *,
        job: JobForm | None = None,
    ) -> Any:
        """Return the answer to a request of one input. Raises AviaryError, that of the input among them.

        job: the job that the request becomes if it is late.
        """
        return await self.complete(http, await self.prepare(http, fields, files), job=job)

    async def complete(self, http: HttpRequest, work: Work, *, job: JobForm | None = None) -> Any:
        """Return the answer of checked work of one input. Raises AviaryError, that of the input among them."""
        outcome = await self._outcome(http, work, job=job)
        _raise(work.error(outcome))
        return await self._finish(work, outcome)

    async def stream(self, work: Work) -> AsyncGenerator[str | Progress | Json, None]:
        """Yield the text of the only input piece by piece, and at last the answer. Raises AviaryError.

        Between the windows of a long clip, also yield the progress. Closing the generator drops the work.
        """
        loop, pieces = asyncio.get_running_loop(), asyncio.Queue[str | Progress | None]()

        def send(piece: str | Progress | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(pieces.put_nowait, piece)

        def on_progress(progress: Progress) -> None:
            if progress.audio_sec_done and not progress.inputs_done:
                send(progress)

        future = self._start(work, on_text=lambda _index, text: send(text), on_progress=on_progress)
        future.add_done_callback(lambda _future: send(None))
        deadline = loop.time() + self.settings.request_timeout_sec
        try:
            while (piece := await asyncio.wait_for(pieces.get(), deadline - loop.time())) is not None:
                yield piece
        except asyncio.TimeoutError:
            raise self._late() from None
        finally:
            future.cancel()
        outcome = future.result()
        _raise(work.error(outcome))
        yield await self._finish(work, outcome)

    async def advance(self, http: HTTPConnection, options: Options, clip: Clip, live: Live) -> Transcript:
        """Run the next piece of a stream of live audio, and return the text so far. Raises AviaryError."""
        self._refuse_while_loading(options.model)
        self.admit(1)
        try:
            future = self.engine.advance(options, clip, live, caller_of(http).owner)
        except BaseException:
            self.leave(1)
            raise
        future.add_done_callback(lambda _future: self.leave(1))
        try:
            output = await asyncio.wait_for(asyncio.wrap_future(future), self.settings.request_timeout_sec)
        except asyncio.TimeoutError:
            raise self._late() from None
        assert isinstance(output, Transcript)  # the task of a session is always to transcribe
        return output

    def _start(self, work: Work, **listeners: Unpack[Listeners]) -> Future[Any]:
        """Start the work if there is room. Raises StillLoading, QueueFull."""
        self._refuse_while_loading(work.model)
        self.admit(work.size)
        try:
            future = work.start(**listeners)
        except BaseException:
            self.leave(work.size)
            raise
        future.add_done_callback(lambda _future: self.leave(work.size))
        return future

    async def _finish(self, work: Work, outcome: Any) -> Any:
        return work.finish(outcome) if work.is_light else await asyncio.to_thread(work.finish, outcome)

    def admit(self, inputs: int) -> None:
        """Count inputs in, until `leave`. A request larger than the queue runs alone. Raises QueueFull."""
        with self._counting:
            if self._in_flight and self._in_flight + inputs > self.settings.max_queue:
                raise QueueFull(
                    f"{self._in_flight} inputs are being worked on, {self.settings.max_queue} at most (MAX_QUEUE)",
                    retry_after_sec=1 + self._in_flight // 64,
                )
            self._in_flight += inputs
            self.metrics.in_flight(self._in_flight)

    def leave(self, inputs: int) -> None:
        """Count inputs out. Any thread may call it."""
        with self._counting:
            self._in_flight -= inputs
            self.metrics.in_flight(self._in_flight)

    async def _outcome(
        self, http: HttpRequest, work: Work, *, on_result: OnResult | None = None, job: JobForm | None = None
    ) -> Any:
        """Run the work and return its outcome. Drop the work if the client hangs up.

        If REQUEST_TIMEOUT_SEC passes, the work continues as the job, or is dropped. Raises DeadlineExceeded.
        """
        progress = None if job is None else ProgressLog()
        future = self._start(work, on_result=on_result, on_progress=progress.add if progress else None)
        answer, continues = asyncio.wrap_future(future), False
        gone = asyncio.ensure_future(hung_up(http))
        try:
            await asyncio.wait(
                {answer, gone}, timeout=self.settings.request_timeout_sec, return_when=asyncio.FIRST_COMPLETED
            )
            if answer.done():
                return answer.result()
            if gone.done():
                raise Cancelled("the client hung up")
            if job is None or progress is None:
                raise self._late()
            error = await self._continue(job, work, future, progress, caller_of(http).owner)
            continues = error.job_id is not None
            raise error
        finally:
            gone.cancel()
            if not continues:
                answer.cancel()
                future.cancel()

    async def _continue(
        self, form: JobForm, work: Work, future: Future[Any], progress: ProgressLog, owner: str | None
    ) -> DeadlineExceeded:
        """Let late work continue as a job. Return the error for the client, which names the job if it is stored."""
        assert self.jobs is not None  # every application has jobs
        try:
            job = await self.jobs.adopt(form, work, future, progress, owner)
        except AviaryError as error:
            return self._late(f"it cannot continue as a job, because {error.message}; send it again as a job")
        return self._late(
            f"it continues as the job {job.id}. Do not send it again: GET /jobs/{job.id}/status until the job is "
            f"completed, then GET /jobs/{job.id}/result",
            job.id,
        )

    def _refuse_while_loading(self, model: str | None) -> None:
        load = self._loads.get(model or "")
        if load is not None and not load.done() and self.engine.models.get(model or "") != "ready":
            raise StillLoading(f"{model} is being loaded", retry_after_sec=LOADING_SEC)

    def _late(
        self, advice: str = "send it as a job (/run, /transcribe/async)", job_id: str | None = None
    ) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"not done within {self.settings.request_timeout_sec:g} s (REQUEST_TIMEOUT_SEC): {advice}", job_id=job_id
        )


async def hung_up(http: HttpRequest) -> None:
    """Return when the client has closed its connection. Call it after the body has been read."""
    while (await http.receive())["type"] != "http.disconnect":
        pass


def _raise(error: AviaryError | None) -> None:
    if error is not None:
        raise error.with_traceback(None)  # a shared error would keep the frames of every raise


def _settle(_load: Future[None]) -> None:
    """Keep loaded models out of garbage collection, which would stop the event loop for 0.1 s each time."""
    gc.collect()
    gc.freeze()


def _log_failure(load: Future[None]) -> None:
    error = load.exception()
    if isinstance(error, AviaryError) and not isinstance(error, Cancelled):
        log.error("%s", error.message)
