"""The Runpod door: a job in, a dict out, and the worker's life around it.

    Door().handle(job)   one job: never raises but for cancellation, always answers strict JSON
    Door().start()       the SDK's loop on Runpod, its local API, or one run of test_input.json

A job's cancellation (CancelledError) cancels its future: what is not yet on the device is dropped. Progress is posted
from
here and awaited before the result is returned, so that it cannot overtake it. A lost device asks for a fresh worker,
which ends this one at once: where others are left, only the last of the jobs under way asks.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from worker.config import Settings
from worker.errors import ResultTooLarge
from worker.faults import report
from worker.types import S3Access

if TYPE_CHECKING:
    from worker.engine.engine import Engine
    from worker.entrypoints.tasks import Tasks, Work

log = logging.getLogger(__name__)

PROGRESS_SEC = 2.0


class RunpodWorker:
    """`engine`: made of the settings on the first job, unless given."""

    def __init__(self, settings: Settings | None = None, engine: Engine | None = None) -> None:
        self._given, self._engine = settings, engine
        self._lock = threading.Lock()
        self._under_way = 0

    @property
    def settings(self) -> Settings:
        if self._given is None:
            self._given = Settings()
        return self._given

    @property
    def engine(self) -> Engine:
        with self._lock:
            if self._engine is None:
                from worker.engine.engine import Engine

                self._engine = Engine(self.settings)
            return self._engine

    @functools.cached_property
    def tasks(self) -> Tasks:
        from worker.entrypoints.tasks import Tasks

        return Tasks(self.settings, self.engine)

    async def handle(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to one job; `error` at its top is what makes Runpod call the job failed."""
        name = str(job.get("id", ""))
        started = time.monotonic()
        self._under_way += 1
        try:
            answer, data = await self._answer(job)
        except Exception as caught:  # noqa: BLE001  a job is answered whatever happens
            error = report(caught, during=f"job {name}")
            answer = {"error": error.message, "code": error.code, "retryable": error.retryable}
            if error.param:
                answer["param"] = error.param
            answer, data = _strict(answer)[0], b""
        finally:
            self._under_way -= 1
        if (
            self._engine is not None
            and isinstance(answer, dict)
            and self._engine.devices.lost
            and (self._engine.lost is not None or not self._under_way)
        ):
            answer["refresh_worker"] = True
        usage = answer.get("usage", {}) if isinstance(answer, dict) else {}
        log.info(
            "job %s: %s inputs, %s failed, %s s of audio, %.2f s, %d bytes%s",
            name,
            usage.get("inputs", 1),
            usage.get("failed", 0),
            usage.get("audio_sec", "?"),
            time.monotonic() - started,
            len(data),
            f", refused: {answer['code']}" if isinstance(answer, dict) and "code" in answer else "",
        )
        return answer

    def start(self) -> None:
        """Runs as the process's environment and arguments say. Ends when the SDK does."""
        import sys

        import runpod

        from worker import logs

        logs.configure(self.settings)
        config: dict[str, Any] = {
            "handler": self.handle,
            "concurrency_modifier": lambda _current: self.settings.max_concurrency,
        }
        if self.settings.on_runpod:
            for check in (self._check_ffmpeg, self._check_device, self._check_model):
                runpod.serverless.register_fitness_check(check)
        elif not any(argument.startswith("--rp_serve_api") for argument in sys.argv[1:]):
            config["handler"] = self._handle_and_show
        runpod.serverless.start(config)

    async def _answer(self, job: Mapping[str, Any]) -> tuple[dict[str, Any], bytes]:
        from worker.net.s3 import Bucket

        own = _s3_access(job.get("s3Config"))
        work = await asyncio.to_thread(self.tasks.prepare, job.get("input"), s3=own)
        answer = await asyncio.to_thread(work.finish, await self._run(job, work))
        bucket = Bucket(self.settings, own)
        answer, data = await asyncio.to_thread(_strict, answer)
        if len(data) > self.settings.max_result_bytes:
            answer = await asyncio.to_thread(self._elsewhere, answer, data, bucket)
        return answer, data

    async def _run(self, job: Mapping[str, Any], work: Work) -> Any:
        done = 0

        def count(_outcome: object) -> None:
            nonlocal done
            done += 1

        future = asyncio.wrap_future(work.start(count))
        if not self.settings.runpod_webhook_get_job:
            return await future
        progress = asyncio.create_task(self._progress(job, work.size, lambda: done))
        try:
            outcome = await future
        finally:
            progress.cancel()
            await asyncio.wait([progress])
            if not progress.cancelled() and (fault := progress.exception()):
                log.warning("job %s: its progress could not be posted: %s", job.get("id", ""), type(fault).__name__)
        return outcome

    async def _progress(self, job: Mapping[str, Any], total: int, done: Any) -> None:
        """Posts how many inputs are done, whenever that has changed, until cancelled; a post under way is finished."""
        from runpod.http_client import AsyncClientSession
        from runpod.serverless.modules.rp_progress import _async_progress_update

        told = 0
        while True:
            await asyncio.sleep(PROGRESS_SEC)
            if done() in (told, total):
                continue
            told = done()
            async with AsyncClientSession() as session:
                post = asyncio.ensure_future(_async_progress_update(session, job, {"done": told, "inputs": total}))
                try:
                    await asyncio.shield(post)
                except asyncio.CancelledError:
                    await asyncio.wait([post], timeout=10)
                    raise

    def _elsewhere(self, answer: dict[str, Any], data: bytes, bucket: Any) -> dict[str, Any]:
        """A short answer that points at the long one in the bucket. Raises ResultTooLarge when there is no bucket."""
        size, limit = len(data), self.settings.max_result_bytes
        if not bucket.configured:
            raise ResultTooLarge(
                f"the result has {size} bytes and Runpod carries {limit} (MAX_RESULT_BYTES): send fewer inputs, "
                "ask for pooling or base64, or set BUCKET_NAME, BUCKET_ACCESS_KEY_ID, BUCKET_SECRET_ACCESS_KEY "
                "(and BUCKET_ENDPOINT_URL)"
            )
        url = bucket.put("result.json", data, "application/json")
        kept = answer if isinstance(answer, dict) and "results" in answer else {}  # OpenAI's shapes are all result
        short = {key: value for key, value in kept.items() if key != "results"}
        return {**short, "result_url": url, "result_bytes": size}

    async def _handle_and_show(self, job: Mapping[str, Any]) -> dict[str, Any]:
        answer = await self.handle(job)
        print(_report(answer), flush=True)
        return answer

    def _check_ffmpeg(self) -> None:
        import subprocess

        from worker.audio import ffmpeg

        subprocess.run([ffmpeg.executable(), "-version"], check=True, stdout=subprocess.DEVNULL, timeout=30)  # noqa: S603

    def _check_device(self) -> None:
        if (
            self.settings.skip_model_load
            or not self.settings.device.startswith("cuda")
            or len(self.settings.devices) > 1
        ):
            return  # several are looked at by their own processes
        import torch

        torch.zeros(8, device=self.settings.device).sum().item()

    def _check_model(self) -> None:
        from worker import catalog

        loads = [
            self.engine.load(catalog.find(name).id) for name in (self.settings.default_model, *self.settings.models)
        ]
        for load in loads:
            load.result()
        if self.settings.audio_score_config is not None:
            self.tasks.scorer.ready.result()


def _s3_access(config: Any) -> S3Access | None:
    """The job's own s3Config; its endpoint comes from outside, so it is not trusted with private addresses."""
    if not isinstance(config, Mapping):
        return None
    return S3Access(
        config.get("endpointUrl"), config.get("accessId"), config.get("accessSecret"), config.get("bucketName")
    )


def _strict(answer: Any) -> tuple[Any, bytes]:
    """The answer and its strict JSON, both without lone surrogates, for which the SDK would post nothing at all.

    Raises ValueError for NaN, TypeError for anything that JSON has no word for.
    """
    text = json.dumps(answer, allow_nan=False, ensure_ascii=False)
    try:
        return answer, text.encode("utf-8")
    except UnicodeEncodeError:
        data = text.encode("utf-8", "replace")
        return json.loads(data), data


def _report(answer: Any) -> str:
    """The answer for a person at a terminal."""
    if not isinstance(answer, dict):  # a route of OpenAI's that answers with text
        return f"\n{answer}\n"
    lines = [f"\n{answer.get('model', '')}"]
    for one in answer.get("results", []):
        name = one["id"] if one["id"] is not None else f"input {one['index']}"
        if "error" in one:
            lines.append(f"  {name}: {one['error']['code']}: {one['error']['message']}")
            continue
        if "sim_score" in one:
            lines.append(f"  {name}: {one['sim_score']:.3f}")
            continue
        said = one.get("text", one.get("caption", f"embedding of shape {one.get('shape')}"))
        lines.append(f"  {name} ({one['duration_sec']:.2f} s): {said}")
        words = one.get("timestamps", {}).get("word", [])
        if words:
            lines.append("      " + " ".join(f"{w['word']}[{w['start']:.2f}-{w['end']:.2f}]" for w in words))
    if "summary" in answer:
        lines += [f"  {name}: {value}" for name, value in answer["summary"].items()]
    if "timing" in answer:
        spent = [f"{stage.removesuffix('_sec')} {seconds:.2f} s" for stage, seconds in answer["timing"].items()]
        lines.append("  " + ", ".join(spent))
    if "error" in answer:
        lines.append(f"  error: {answer['error']}")
    return "\n".join(lines) + "\n"
