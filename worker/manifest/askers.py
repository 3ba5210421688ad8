"""What processes the lines of a manifest: a server, a Runpod endpoint, or the engine of this process."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from worker.errors import Cancelled, RequestError
from worker.manifest.batches import process_in_batches
from worker.manifest.line_results import ClientTask, Task, of_audio, of_text, of_turns, with_words
from worker.manifest.lines import Line
from worker.manifest.run import Asker, LineResult, Summary, process
from worker.protocol import nemo_manifest

if TYPE_CHECKING:
    from worker.client import Audio, CallResult, Client
    from worker.engine.engine import Engine

RETRIES = 8  # about two minutes, in which a server may restart


async def process_manifest(
    manifest_path: str | Path,
    output_dir: str | Path,
    server_url: str = "http://localhost:8000",
    concurrency: int = 16,
    *,
    task: Task = "analyze",
    api_key: str | None = None,
    retry_failed: bool = False,
    batch: bool = False,
    progress: Callable[[Summary], None] = lambda summary: None,
    **options: Any,
) -> Path:
    """Process a manifest with a server or a Runpod endpoint, and return the path of the output.

    The output is <output_dir>/<manifest>.<task>.jsonl. `server_url` and `api_key` are those of AsyncClient, and
    `options` those of its method for the task (model, style, …). With `batch`, the lines are Batch Jobs of a Runpod
    endpoint, which may take hours to begin. The other parameters are as in `process`. Canceling
    the coroutine stops the run, and cancels its jobs on Runpod; the next run resumes.

    Raises: RequestError if the task is unknown; else the errors of `process`.
    """
    output = output_path(manifest_path, output_dir, task)
    shared: dict[str, Any] = {
        "concurrency": concurrency,
        "retry_failed": retry_failed,
        "progress": progress,
        "options": options,
    }
    if batch:
        return await _in_thread(
            lambda stop: process_in_batches(
                manifest_path, output, server_url, api_key, task, retries=RETRIES, stop=stop, **shared
            )
        )
    return await _by_client(manifest_path, output, server_url, api_key, task, **shared)


async def _by_client(
    manifest: str | Path, output: Path, url: str, api_key: str | None, task: Task, *, options: Any, **shared: Any
) -> Path:
    """Process a manifest with an AsyncClient. `shared` are parameters of `process`."""
    from worker.client import AsyncClient

    loop, calls = asyncio.get_running_loop(), set[Future[Any]]()
    async with AsyncClient(url, api_key, timeout=call_timeout(url), retries=RETRIES) as client:

        def wait(audio: Audio, **asked: Any) -> CallResult:
            call = asyncio.run_coroutine_threadsafe(getattr(client, task)(audio, **asked), loop)
            calls.add(call)
            try:
                result: CallResult = call.result()
            except concurrent.futures.CancelledError:
                raise Cancelled("the run was stopped") from None
            finally:
                calls.discard(call)
            return result

        def cancel() -> None:
            for call in list(calls):
                call.cancel()

        lines = ClientTask(task, options)
        return await _in_thread(
            lambda stop: process(
                manifest, output, lambda line: lines.ask(line, wait), stop=stop, options=options, **shared
            ),
            cancel,
        )


async def _in_thread(run: Callable[[threading.Event], Summary], cancel: Callable[[], None] = lambda: None) -> Path:
    """Run a manifest in a thread, and return its output. Canceling sets the event, calls `cancel`, and waits."""
    stop = threading.Event()
    running = asyncio.ensure_future(asyncio.to_thread(run, stop))
    try:
        return (await asyncio.shield(running)).output
    except asyncio.CancelledError:
        stop.set()
        cancel()
        await asyncio.wait([running])
        running.exception()  # marks the Cancelled of the run as seen
        raise


def call_timeout(url: str) -> float:
    """Return the most seconds that a line may take: as long as Runpod keeps a job, which may wait for a worker."""
    from worker.client import clients, runpod

    return runpod.JOB_SEC if runpod.is_endpoint(url) else clients.TIMEOUT_SEC


def with_client(client: Client, task: Task, **options: Any) -> Asker:
    """Return an Asker that uses a server or a Runpod endpoint. `options` are those of the client's method."""
    call, lines = getattr(client, task), ClientTask(task, options)
    return lambda line: lines.ask(line, call)


def output_path(manifest: str | Path, folder: str | Path, task: Task) -> Path:
    """Return the path of a task's output. Raises: RequestError if the task is unknown."""
    if task not in get_args(Task):
        raise RequestError(f"unsupported task {task!r}; use one of {', '.join(get_args(Task))}", param="task")
    return Path(folder) / f"{Path(manifest).stem}.{task}.jsonl"


def with_engine(engine: Engine, task: Task, **options: Any) -> Asker:
    """Return an Asker that uses the engine of this process, and that may read any path.

    `options` are the request's fields (model, style, …). The Asker raises the errors of `worker.protocol.request.parse`
    and of the input.
    """
    import tempfile

    from worker.protocol.request import parse
    from worker.types import Analysis, Caption, Diarization, Embedding, Failure, Transcript

    asked = with_words(options)

    def ask(line: Line) -> LineResult:
        audio, own = line.audio(), line.options() if task == "transcribe" else {}
        with contextlib.ExitStack() as stack:
            files = {}
            if isinstance(audio, bytes):
                files["segment"] = stack.enter_context(tempfile.TemporaryFile())
                files["segment"].write(audio)
                files["segment"].flush()
            source = "segment" if files else audio
            fields = {"task": task, **nemo_manifest.override(asked, own), "inputs": [source]}
            with nemo_manifest.naming(own):
                request = parse(fields, engine.settings, trusted=True, files=files)
                (outcome,) = engine.submit(request).result().results
                if isinstance(outcome, Failure):
                    raise outcome.error
        line.check_duration(outcome.duration_sec)
        output, warning = outcome.output, outcome.warning
        if isinstance(output, Analysis):
            return of_audio(output.caption.text, output.embedding.values, warning)
        if isinstance(output, Embedding):
            return of_audio(None, output.values, warning)
        if isinstance(output, Caption):
            return of_audio(output.text, None, warning)
        if isinstance(output, Diarization):
            return of_turns(output.turns, warning)
        spans = (
            {"word": output.words, "segment": output.segments, "char": output.chars}
            if isinstance(output, Transcript)
            else {}
        )
        levels = outcome.item.view.timestamps if options.get("timestamps") or options.get("diarize") else ()
        words = spans.get("word", ()) if options.get("confidence") else None
        return of_text(output.text, {level: spans[level] for level in levels}, words, warning)

    return ask
