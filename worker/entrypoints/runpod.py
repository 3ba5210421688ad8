"""The Runpod worker: a job in, a dict out, and the life of the worker around it.

    RunpodWorker().handle(job)   one job: raises nothing but CancelledError, and returns strict JSON
    RunpodWorker().start()       the SDK's loop on Runpod, the HTTP server behind Runpod's load balancer, the SDK's
                                 local API, or one run of test_input.json

Cancelling a job cancels its future: inputs that are not on a device yet are dropped. Progress is posted from here and
awaited before the result is returned, so that it cannot arrive after the result. When a device is lost, the worker asks
for a replacement, which ends this worker at once; while other devices work on, only the last running job asks.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from worker.config import Settings
from worker.errors import AviaryError, RequestError, ResultTooLarge
from worker.faults import report
from worker.types import Progress, S3Access

if TYPE_CHECKING:
    from worker.engine.engine import Engine
    from worker.entrypoints.runpod_routes import Routes
    from worker.entrypoints.tasks import Tasks
    from worker.protocol.strict import Fields
    from worker.protocol.work import Work

log = logging.getLogger(__name__)

PROGRESS_SEC = 2.0


class RunpodWorker:
    """One engine behind Runpod's SDK. Settings default to the environment's; the first job makes the engine."""

    def __init__(self, settings: Settings | None = None, engine: Engine | None = None) -> None:
        self._settings, self._engine = settings, engine
        self._tasks: Tasks | None = None
        self._routes: Routes | None = None
        self._lock, self._routes_lock = threading.RLock(), threading.Lock()
        self._running = 0

    @property
    def settings(self) -> Settings:
        """The settings, read on first use."""
        if self._settings is None:
            self._settings = Settings()
        return self._settings

    @property
    def engine(self) -> Engine:
        """The engine, made on first use."""
        with self._lock:
            if self._engine is None:
                from worker.engine.engine import Engine

                self._engine = Engine(self.settings)
            return self._engine

    @property
    def tasks(self) -> Tasks:
        """The tasks on the engine, made on first use."""
        with self._lock:
            if self._tasks is None:
                from worker.entrypoints.tasks import Tasks

                self._tasks = Tasks(self.settings, self.engine)
            return self._tasks

    @property
    def routes(self) -> Routes:
        """The routes of the HTTP server on the engine, made on first use, which takes a second. Not for event loops."""
        with self._routes_lock:
            if self._routes is None:
                from worker.entrypoints.runpod_routes import Routes

                self._routes = Routes(self.settings, self.engine, self.tasks)
            return self._routes

    async def handle(self, job: Mapping[str, Any]) -> Any:
        """Return the answer to a job: a dict, or the text of an OpenAI route. A top-level `error` fails the job."""
        name = str(job.get("id", ""))
        started = time.monotonic()
        self._running += 1
        size = 0
        try:
            answer, size = await self._answer(job)
        except Exception as caught:  # noqa: BLE001  every job gets an answer
            answer = _error_json(report(caught, during=f"job {name}"))
        finally:
            self._running -= 1
        fields = answer if isinstance(answer, dict) else {}
        if isinstance(answer, dict) and self._needs_replacement():
            answer["refresh_worker"] = True
        usage = fields.get("usage") or {}
        log.info(
            "job %s: %s inputs, %s failed, %s s of audio, %.2f s, %d bytes%s",
            name,
            usage.get("inputs", 1),
            usage.get("failed", 0),
            usage.get("audio_sec", "?"),
            time.monotonic() - started,
            size,
            f", rejected: {fields['code']}" if "code" in fields else "",
        )
        return answer

    def start(self) -> None:
        """Run as the environment and the arguments of the process say, until the SDK ends."""
        import sys

        from worker import logs

        logs.configure(self.settings)
        if self.settings.on_runpod and self.settings.behind_load_balancer:
            sys.exit(self._serve())
        import runpod

        config: dict[str, Any] = {
            "handler": self.handle,
            "concurrency_modifier": lambda _current: self.settings.max_concurrency,
        }
        if self.settings.on_runpod:
            for check in (self._check_ffmpeg, self._check_device, self._check_model):
                runpod.serverless.register_fitness_check(check)
        elif not any(argument.startswith("--rp_serve_api") for argument in sys.argv[1:]):
            config["handler"] = self._handle_and_print
        runpod.serverless.start(config)

    def _serve(self) -> int:
        """Serve behind Runpod's load balancer until a signal ends the server, and return the exit code.

        The model loads while the server responds, so that /ping reports 204 until then.
        """
        from worker.entrypoints import load_balancer

        self._check_ffmpeg()
        self._check_device()
        return load_balancer.serve(self.settings)

    def _needs_replacement(self) -> bool:
        """Whether a device is lost, and either no other is left or no job is running that a replacement would end."""
        engine = self._engine
        return engine is not None and bool(engine.devices.lost) and (engine.lost is not None or not self._running)

    async def _answer(self, job: Mapping[str, Any]) -> tuple[Any, int]:
        """Return the answer and the size of its JSON in bytes. Raises AviaryError."""
        from worker.protocol.request import unwrap

        own = _s3_access(job.get("s3Config"))
        fields = unwrap(job.get("input"))
        if "route" in fields:
            response = await self._call(fields)
            answer, data = await asyncio.to_thread(_strict, response)
        else:
            work = await asyncio.to_thread(self.tasks.prepare, fields, s3=own)
            outcome = await self._run(job, work)
            answer, data = await asyncio.to_thread(lambda: _strict(work.finish(outcome)))
        if len(data) > self.settings.max_result_bytes:
            answer = await asyncio.to_thread(self._store, answer, data, own)
        return answer, len(data)

    async def _call(self, fields: Fields) -> Any:
        """Return what a route of the HTTP server responds with. An error also has the status of the response."""
        routes = await asyncio.to_thread(lambda: self.routes)
        try:
            return await routes.call(fields)
        except AviaryError as error:
            return _error_json(error) | {"status": error.status}

    async def _run(self, job: Mapping[str, Any], work: Work) -> Any:
        if not self.settings.runpod_webhook_get_job:
            return await asyncio.wrap_future(work.start())
        last = Progress(0, work.size)

        def note(progress: Progress) -> None:
            nonlocal last
            last = progress

        future = asyncio.wrap_future(work.start(on_progress=note))
        progress = asyncio.create_task(self._progress(job, lambda: last))
        try:
            outcome = await future
        finally:
            progress.cancel()
            await asyncio.wait([progress])
            if not progress.cancelled() and (failure := progress.exception()):
                log.warning("job %s: progress could not be posted: %s", job.get("id", ""), type(failure).__name__)
        return outcome

    async def _progress(self, job: Mapping[str, Any], last: Callable[[], Progress]) -> None:
        """Post how much is done whenever that changes, until canceled. A post that has begun is finished."""
        from runpod.http_client import AsyncClientSession
        from runpod.serverless.modules.rp_progress import _async_progress_update

        posted = _progress_json(last())
        while True:
            await asyncio.sleep(PROGRESS_SEC)
            progress = last()
            now = _progress_json(progress)
            if now == posted or not (progress.inputs_done or progress.audio_sec_done):
                continue
            if progress.inputs_done == progress.inputs_total:
                continue
            posted = now
            async with AsyncClientSession() as session:
                post = asyncio.ensure_future(_async_progress_update(session, job, posted))
                try:
                    await asyncio.shield(post)
                except asyncio.CancelledError:
                    await asyncio.wait([post], timeout=10)
                    raise

    def _store(self, answer: Any, data: bytes, own: S3Access | None) -> dict[str, Any]:
        """Put the answer into the bucket and return a short one with its URL.

        Raises ResultTooLarge if there is no bucket.
        """
        from worker.net.s3 import Bucket

        size, limit = len(data), self.settings.max_result_bytes
        bucket = Bucket(self.settings, own)
        if not bucket.configured:
            raise ResultTooLarge(
                f"the result has {size} bytes and Runpod transports at most {limit} (MAX_RESULT_BYTES): send fewer "
                "inputs, ask for pooling or base64, or set BUCKET_NAME, BUCKET_ACCESS_KEY_ID, "
                "BUCKET_SECRET_ACCESS_KEY (and BUCKET_ENDPOINT_URL)"
            )
        url = bucket.put("result.json", data, "application/json")
        kept = answer if isinstance(answer, dict) and "results" in answer else {}  # an OpenAI shape is all result
        short = {key: value for key, value in kept.items() if key != "results"}
        return {**short, "result_url": url, "result_bytes": size}

    async def _handle_and_print(self, job: Mapping[str, Any]) -> Any:
        from worker.entrypoints.terminal import format_answer

        answer = await self.handle(job)
        print(format_answer(answer), flush=True)
        return answer

    def _check_ffmpeg(self) -> None:
        import subprocess

        from worker.audio import ffmpeg

        command = [ffmpeg.executable(), "-version"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=30)  # noqa: S603  the worker's own ffmpeg

    def _check_device(self) -> None:
        """Raise an error if the models would run on the CPU beside a GPU, or if the GPU does not work."""
        from worker import catalog
        from worker.backends.common.device import check_device

        settings = self.settings
        needs = [catalog.find(name, settings.places).needs for name in settings.start_models]
        if settings.skip_model_load or settings.devices[0] == "cpu" or not any("torch" in names for names in needs):
            return
        if len(settings.devices) == 1:  # several devices are checked by their own processes
            check_device(settings)

    def _check_model(self) -> None:
        from worker import catalog

        places = self.settings.places
        loads = [self.engine.load(catalog.find(name, places).id) for name in self.settings.start_models]
        for load in loads:
            load.result()
        if self.settings.audio_score_config is not None:
            self.tasks.scorer.ready.result()


def _progress_json(progress: Progress) -> dict[str, Any]:
    """Return the inputs and the seconds of audio that are done, null while they are unknown."""
    done_sec, total_sec = progress.audio_sec_done, progress.audio_sec_total
    return {
        "done": progress.inputs_done,
        "inputs": progress.inputs_total,
        "audio_sec_done": None if done_sec is None else round(done_sec, 3),
        "audio_sec_total": None if total_sec is None else round(total_sec, 3),
    }


def _error_json(error: AviaryError) -> dict[str, Any]:
    answer: dict[str, Any] = {"error": error.message, "code": error.code, "retryable": error.retryable}
    if error.param:
        answer["param"] = error.param
    strict: dict[str, Any] = _strict(answer)[0]
    return strict


_S3_FIELDS = ("endpointUrl", "accessId", "accessSecret", "bucketName")


def _s3_access(config: Any) -> S3Access | None:
    """Return the job's own s3Config. Its endpoint comes from the client, so it may not be a private address.

    Raises: RequestError if it is not an object, or if one of its fields is not a string.
    """
    if config is None:
        return None
    if not isinstance(config, Mapping):
        raise RequestError(f"s3Config must be an object with {', '.join(_S3_FIELDS)}", param="s3Config")
    for name in _S3_FIELDS:
        if not isinstance(config.get(name), str | None):
            raise RequestError(f"s3Config.{name} must be a string", param=f"s3Config.{name}")
    endpoint, key, secret, bucket = (config.get(name) for name in _S3_FIELDS)
    return S3Access(endpoint, key, secret, bucket)


def _strict(answer: Any) -> tuple[Any, bytes]:
    """Return the answer and its strict JSON, both without lone surrogates: the SDK would post nothing because of one.

    Raises ValueError for NaN, TypeError for a value that JSON cannot represent.
    """
    text = json.dumps(answer, allow_nan=False, ensure_ascii=False)
    try:
        return answer, text.encode("utf-8")
    except UnicodeEncodeError:
        data = text.encode("utf-8", "replace")
        return json.loads(data), data
