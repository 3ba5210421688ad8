"""What processes the lines of a manifest: a server, a Runpod endpoint, or the engine of this process."""

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
from worker.protocol import nemo_manifest, render

if TYPE_CHECKING:
    import numpy as np

    from worker.client import Audio, CallResult, Client
    from worker.engine.engine import Engine
    from worker.types import Level, Span

Task = Literal["transcribe", "caption", "embed", "analyze"]

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
    progress: Callable[[Summary], None] = lambda summary: None,
    **options: Any,
) -> Path:
    """Process a manifest with a server or a Runpod endpoint, and return the path of the output.

    The output is <output_dir>/<manifest>.<task>.jsonl. `server_url` and `api_key` are those of AsyncClient, and
    `options` those of its method for the task (model, style, …). The other parameters are as in `process`. Canceling
    the coroutine stops the run; the next run resumes.

    Raises: RequestError if the task is unknown; else the errors of `process`.
    """
    from worker.client import AsyncClient

    output = output_path(manifest_path, output_dir, task)
    loop, stop = asyncio.get_running_loop(), threading.Event()
    calls: set[Future[Any]] = set()
    async with AsyncClient(server_url, api_key, retries=RETRIES) as client:

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

        ask = _of_client(wait, task, options)
        run = asyncio.ensure_future(
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
            summary = await asyncio.shield(run)
        except asyncio.CancelledError:
            stop.set()
            for call in list(calls):
                call.cancel()
            await asyncio.wait([run])
            raise
    return summary.output


def with_client(client: Client, task: Task, **options: Any) -> Asker:
    """Return an Asker that uses a server or a Runpod endpoint. `options` are those of the client's method."""
    return _of_client(getattr(client, task), task, options)


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
    from worker.types import Analysis, Caption, Embedding, Failure, Transcript

    asked = _with_words(options)

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
            return _of_audio(output.caption.text, output.embedding.values, warning)
        if isinstance(output, Embedding):
            return _of_audio(None, output.values, warning)
        if isinstance(output, Caption):
            return _of_audio(output.text, None, warning)
        spans = (
            {"word": output.words, "segment": output.segments, "char": output.chars}
            if isinstance(output, Transcript)
            else {}
        )
        levels = outcome.item.view.timestamps if options.get("timestamps") else ()
        words = spans.get("word", ()) if options.get("confidence") else None
        return _of_text(output.text, {level: spans[level] for level in levels}, words, warning)

    return ask


def _of_client(call: Callable[..., CallResult], task: Task, options: Mapping[str, Any]) -> Asker:
    """Return an Asker that makes a line's result of what `call(audio, **options)` returns."""
    from worker.client import Transcribed

    asked = _with_words(options)

    def ask(line: Line) -> LineResult:
        audio, own = line.audio(), line.options() if task == "transcribe" else {}
        with nemo_manifest.naming(own):
            result = call(audio, **nemo_manifest.override(asked, own))
        if result.duration is not None:
            line.check_duration(result.duration)
        if isinstance(result, Transcribed):
            spans: dict[Level, Sequence[Span]] = (
                {"word": result.words, "segment": result.segments} if options.get("timestamps") else {}
            )
            words = result.words if options.get("confidence") else None
            return _of_text(result.text, spans, words, result.warning)
        return _of_audio(getattr(result, "caption", None), getattr(result, "embedding", None), result.warning)

    return ask


def _with_words(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of the requests: confidences are those of words, which a transcript has with timestamps."""
    with_words = options.get("confidence") and not options.get("timestamps")
    return {**options, "timestamps": ["word"]} if with_words else dict(options)


def _of_text(
    text: str, spans: Mapping[Level, Sequence[Span]], words: Sequence[Span] | None, warning: str | None
) -> LineResult:
    """Return the result of transcribe. `words` are the words whose confidences to report, or None."""
    fields: dict[str, Any] = {"pred_text": text}
    if spans:
        fields["timestamps"] = render.timestamps(spans, confidence=words is not None)
    if words is not None:
        fields["word_confidence"] = [render.rounded(word.confidence) for word in words]
        fields["words"] = [word.text for word in words]
    return LineResult(fields | _warning(warning))


def _of_audio(caption: str | None, embedding: np.ndarray | None, warning: str | None) -> LineResult:
    """Return the result of caption, embed or analyze."""
    return LineResult(({} if caption is None else {"caption": caption}) | _warning(warning), embedding)


def _warning(warning: str | None) -> dict[str, str]:
    return {"warning": warning} if warning else {}
