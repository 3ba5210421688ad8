"""The Python API as plain functions of paths, which answer in plain dicts: on a bundle that
`worker.entrypoints.python.load_model` gave.

    transcribe_file(path, bundle), transcribe_files(paths, bundle), evaluate_folder(audio_dir, gt_dir, bundle)
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from worker.types import Failure, Transcript

if TYPE_CHECKING:
    from worker.entrypoints.python import Answer, ModelBundle, SpeechOptions

Json = dict[str, Any]


def transcribe_file(
    path: str | os.PathLike[str], model_bundle: ModelBundle, prompt: str | None = None, max_new_tokens: int = 128
) -> Json:
    """{"file", "text", "tokens_generated", "elapsed_sec"}. Raises AviaryError, as a model that takes no prompt does
    for one.

    max_new_tokens is for models that write token by token; tokens_generated is theirs, and None for others.
    """
    answer = model_bundle.transcribe(path, **_options(model_bundle, prompt, max_new_tokens))
    return _file_json(os.fspath(path), answer)


def transcribe_files(
    paths: Sequence[str | os.PathLike[str]],
    model_bundle: ModelBundle,
    prompt: str | None = None,
    max_new_tokens: int = 128,
    *,
    progress: bool = False,
) -> list[Json]:
    """The same for many at once, in their order. A file that failed has `error` (`code`, `message`, `retryable`) in
    place of the rest. elapsed_sec counts from the call."""
    options = _options(model_bundle, prompt, max_new_tokens)
    options["progress"] = progress
    answers = model_bundle.transcribe(list(paths), **options)
    return [_file_json(os.fspath(path), answer) for path, answer in zip(paths, answers, strict=True)]


def evaluate_folder(
    audio_dir: str | os.PathLike[str],
    gt_dir: str | os.PathLike[str],
    model_bundle: ModelBundle,
    match_mode: str = "exact",
    prompt: str | None = None,
    max_new_tokens: int = 128,
    *,
    normalizer: str = "basic",
    progress: bool = False,
) -> Json:
    """{"summary", "details"}: what is heard in a folder's audio, against the .txt files of another; see
    worker.evaluation.

    Raises RequestError for folders that are not there, and where no audio has a label.
    """
    from worker.entrypoints.progress import bar
    from worker.evaluation import evaluate, read_folder

    corpus = read_folder(os.fspath(audio_dir), os.fspath(gt_dir))
    with bar(len(corpus.pairs), shown=progress) as add:
        return evaluate(
            model_bundle.engine,
            corpus,
            model_bundle.naming(_options(model_bundle, prompt, max_new_tokens)),
            match_mode=match_mode,
            normalizer=normalizer,
            trusted=True,
            on_result=add,
        )


def _options(bundle: ModelBundle, prompt: str | None, max_new_tokens: int | None) -> SpeechOptions:
    """The options that were given, but for a bound on new tokens where the model writes none."""
    options: SpeechOptions = {}
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
    return {
        "file": file,
        "text": transcript.text,
        "tokens_generated": transcript.tokens_generated,
        "elapsed_sec": round(answer.elapsed_sec, 3),
    }
