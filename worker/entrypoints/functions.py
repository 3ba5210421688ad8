"""The Python API as plain functions that take paths and return plain dicts.

    transcribe_file(path, bundle)                  one file
    transcribe_files(paths, bundle)                many files, which share batches
    evaluate_folder(audio_dir, gt_dir, bundle)     a folder of audio, against labels
    process_manifest_sync(manifest, output_dir)    every line of a JSONL manifest, by a server

A bundle is what `worker.load_model` returns.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worker.types import Failure, Transcript

if TYPE_CHECKING:
    from worker.entrypoints.answer import Answer
    from worker.entrypoints.python import ModelBundle, SpeechCall
    from worker.manifest.line_results import Task

Json = dict[str, Any]


def transcribe_file(
    path: str | os.PathLike[str],
    model_bundle: ModelBundle,
    prompt: str | None = None,
    max_new_tokens: int | None = None,
) -> Json:
    """Return the transcript of a file as {"file", "text", "tokens_generated", "elapsed_sec"}.

    max_new_tokens: the most tokens, for a model that generates text token by token. None: the model's own limit, which
        is far above the length of ordinary speech. For another kind of model it has no effect, and tokens_generated is
        None.
    elapsed_sec: seconds from the call until the text was ready.
    The result also has `finish_reason` ("stop", or "length" if a limit on new tokens cut off the text) if the model
    generates token by token, and `warning` if something may be wrong with the audio or the text.
    Raises AviaryError; for example, Unsupported if a prompt is given to a model that takes none.
    """
    answer = model_bundle.transcribe(path, **_options(model_bundle, prompt, max_new_tokens))
    return _file_json(os.fspath(path), answer)


def transcribe_files(
    paths: Iterable[str | os.PathLike[str]],
    model_bundle: ModelBundle,
    prompt: str | None = None,
    max_new_tokens: int | None = None,
    *,
    progress: bool = False,
) -> list[Json]:
    """Return the transcripts of many files, in the order of `paths`, each as `transcribe_file` returns it.

    A file that fails is {"file", "error"}; the error has `code`, `message` and `retryable`.
    progress: whether to show a progress bar.
    """
    options = _options(model_bundle, prompt, max_new_tokens)
    options["progress"] = progress
    files = list(paths)
    answers = model_bundle.transcribe(files, **options)
    return [_file_json(os.fspath(path), answer) for path, answer in zip(files, answers, strict=True)]


def evaluate_folder(
    audio_dir: str | os.PathLike[str],
    gt_dir: str | os.PathLike[str],
    model_bundle: ModelBundle,
    match_mode: str = "exact",
    prompt: str | None = None,
    max_new_tokens: int | None = None,
    *,
    normalizer: str = "whisper",
    progress: bool = False,
) -> Json:
    """Transcribe the audio of a folder, and compare the transcripts with the .txt files of another folder.

    Return {"summary", "details"}, as worker.evaluation describes them.
    progress: whether to show a progress bar.
    Raises RequestError for a folder that does not exist, and if no audio has a label.
    """
    from worker.entrypoints.progress import bar
    from worker.evaluation import evaluate, read_folder

    corpus = read_folder(os.fspath(audio_dir), os.fspath(gt_dir))
    with bar([pair.file for pair in corpus.pairs], shown=progress) as line:
        return evaluate(
            model_bundle.engine,
            corpus,
            model_bundle.naming(_options(model_bundle, prompt, max_new_tokens)),
            match_mode=match_mode,
            normalizer=normalizer,
            trusted=True,
            on_result=line.add if line else None,
            on_progress=line.show if line else None,
        )


def process_manifest_sync(
    manifest_path: str | Path,
    output_dir: str | Path,
    server_url: str = "http://localhost:8000",
    concurrency: int = 16,
    *,
    task: Task = "transcribe",
    api_key: str | None = None,
    retry_failed: bool = False,
    batch: bool = False,
    progress: bool = False,
    **options: Any,
) -> Path:
    """Process a manifest with a server or a Runpod endpoint, and return the path of the output.

    The parameters are those of `process_manifest`, which is the same for programs with an event loop, but for the
    default task and the bar. `options` are those of the Client's method for the task.
    progress: whether to show a progress bar. An interrupted call stops the run; the next call resumes.
    Raises RequestError if the task is unknown; else the errors of `worker.manifest.process`.
    """
    from worker.client import Client
    from worker.entrypoints.progress import manifest_bar
    from worker.manifest import askers, batches, process

    output = askers.output_path(manifest_path, output_dir, task)
    shared: dict[str, Any] = {"concurrency": concurrency, "retry_failed": retry_failed, "options": options}
    with manifest_bar(shown=progress) as show:
        shared["progress"] = show
        if batch:
            at = (manifest_path, output, server_url, api_key, task)
            return batches.process_in_batches(*at, retries=askers.RETRIES, stop=threading.Event(), **shared).output
        timeout = askers.call_timeout(server_url)
        with Client(server_url, api_key, timeout=timeout, retries=askers.RETRIES) as client:
            return process(manifest_path, output, askers.with_client(client, task, **options), **shared).output


def _options(bundle: ModelBundle, prompt: str | None, max_new_tokens: int | None) -> SpeechCall:
    """Return the options that are set. `max_new_tokens` is left out for a model without that option."""
    options: SpeechCall = {}
    if prompt is not None:
        options["prompt"] = prompt
    if max_new_tokens is not None and "max_new_tokens" in bundle.row.options:
        options["max_new_tokens"] = max_new_tokens
    return options


def _file_json(file: str, answer: Answer[Transcript] | Failure) -> Json:
    if isinstance(answer, Failure):
        from worker.protocol.render import error_json

        return {"file": file, "error": error_json(answer.error)}
    transcript = answer.output
    notes = {"finish_reason": transcript.finish_reason, "warning": answer.warning}
    return {
        "file": file,
        "text": transcript.text,
        "tokens_generated": transcript.tokens_generated,
        "elapsed_sec": round(answer.elapsed_sec, 3),
        **{name: value for name, value in notes.items() if value is not None},
    }
