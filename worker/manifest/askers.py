"""Who is asked about a manifest's lines: a server, a Runpod endpoint, or the engine of this process."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from worker.errors import Cancelled, RequestError
from worker.manifest.lines import Line
from worker.manifest.run import Asker, LineResult, Summary, process
from worker.protocol import render

if TYPE_CHECKING:
    import numpy as np

    from worker.engine.engine import Engine
    from worker.types import Level, Span

Task = Literal["transcribe", "caption", "embed", "analyze"]

RETRIES = 8  # some two minutes: a server may be restarted meanwhile


async def process_manifest(
    manifest_path: str | Path,
    output_dir: str | Path,
    server_url: str = "http://localhost:8000",
    concurrency: int = 16,
    *,
    task: Task = "analyze",
    api_key: str | None = None,
    retry_failed: bool = False,
    progress: Callable[[Summary], None] = lambda summary: None,
    **options: Any,
) -> Path:
    """Asks a server, or a Runpod endpoint, about every line; gives the output's path:
    <output_dir>/<manifest>.<task>.jsonl.

    `options`: the client's for this task (model, style, ...). Otherwise as `process`, whose errors it raises.
    """
    from worker.client import AsyncClient, Transcribed

    output = output_path(manifest_path, output_dir, task)
    loop, stop = asyncio.get_running_loop(), threading.Event()
    asked: set[Future[Any]] = set()
    async with AsyncClient(server_url, api_key, retries=RETRIES) as client:

        def ask(line: Line) -> LineResult:
            future = asyncio.run_coroutine_threadsafe(getattr(client, task)(line.audio(), **options), loop)
            asked.add(future)
            try:
                result = future.result()
            except concurrent.futures.CancelledError:
                raise Cancelled("stopped") from None
            finally:
                asked.discard(future)
            if isinstance(result, Transcribed):
                return _said(
                    result.text,
                    {"word": result.words, "segment": result.segments} if options.get("timestamps") else {},
                    result.warning,
                )
            return _heard(getattr(result, "caption", None), getattr(result, "embedding", None), result.warning)

        work = asyncio.ensure_future(
            asyncio.to_thread(
                process,
                manifest_path,
                output,
                ask,
                concurrency=concurrency,
                stop=stop,
                retry_failed=retry_failed,
                progress=progress,
                options=options,
            )
        )
        try:
            summary = await asyncio.shield(work)
        except asyncio.CancelledError:
            stop.set()
            for future in list(asked):
                future.cancel()
            await asyncio.wait([work])
            raise
    return summary.output


def output_path(manifest: str | Path, folder: str | Path, task: Task) -> Path:
    """Where a task's output goes: each task has its own."""
    if task not in get_args(Task):
        raise RequestError(f"task {task!r} is none of {', '.join(get_args(Task))}", param="task")
    return Path(folder) / f"{Path(manifest).stem}.{task}.jsonl"


def with_engine(engine: Engine, task: Task, **options: Any) -> Asker:
    """Asks the engine of this process, which may read any path. `options`: the request's fields (model, style, ...)."""
    import tempfile

    from worker.protocol.request import parse
    from worker.types import Analysis, Caption, Embedding, Failure, Transcript

    def ask(line: Line) -> LineResult:
        audio = line.audio()
        with contextlib.ExitStack() as stack:
            files = {}
            if isinstance(audio, bytes):
                files["segment"] = stack.enter_context(tempfile.TemporaryFile())
                files["segment"].write(audio)
                files["segment"].flush()
            source = "segment" if files else audio
            request = parse({"task": task, **options, "inputs": [source]}, engine.settings, trusted=True, files=files)
            (outcome,) = engine.submit(request).result().results
        if isinstance(outcome, Failure):
            raise outcome.error
        output, warning = outcome.output, outcome.warning
        if isinstance(output, Analysis):
            return _heard(output.caption.text, output.embedding.values, warning)
        if isinstance(output, Embedding):
            return _heard(None, output.values, warning)
        if isinstance(output, Caption):
            return _heard(output.text, None, warning)
        spans = (
            {"word": output.words, "segment": output.segments, "char": output.chars}
            if isinstance(output, Transcript)
            else {}
        )
        return _said(output.text, {level: spans[level] for level in outcome.item.view.timestamps}, warning)

    return ask


def _said(text: str, spans: Mapping[Level, Sequence[Span]], warning: str | None) -> LineResult:
    return LineResult(
        {"pred_text": text} | ({"timestamps": render.timestamps(spans)} if spans else {}) | _warned(warning)
    )


def _heard(caption: str | None, embedding: np.ndarray | None, warning: str | None) -> LineResult:
    return LineResult(({} if caption is None else {"caption": caption}) | _warned(warning), embedding)


def _warned(warning: str | None) -> dict[str, str]:
    return {"warning": warning} if warning else {}
