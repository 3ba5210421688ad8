"""Evaluation: what a model hears in labelled audio, counted against the labels.

    corpus = read_folder(audio_dir, gt_dir)  or  read_manifest(path)  or  Corpus(pairs)
    answer = evaluate(engine, corpus, {"model": "parakeet"})          waits for the answer
    page = to_html(answer)                                            the answer as one HTML page

A server submits the request itself, as it does any other, so that cancelling and progress are the engine's own:

    evaluation = prepare(corpus, settings, options)
    response = await asyncio.wrap_future(engine.submit(evaluation.request))
    answer = await asyncio.to_thread(evaluation.score, response)

An answer is plain JSON, {"summary": …, "details": […]}, with a detail for each labelled file, in the corpus's order:

    summary   count = tp + fp, tp, fp, fn, precision, recall, f1; failed; wer, substitutions, insertions, deletions,
              words; cer, characters; unlabelled and missing_audio (names); model, match_mode, normalizer;
              audio_sec, total_sec, rtfx
    details   file, pred, gt (as written), match (1 or 0), wer, cer, words, substitutions, insertions, deletions,
              language, duration_sec; for a damaged file `warning`, for a file that failed `error`

A file matches or does not; one that does not is a false positive (what was written) and a false negative (what was
not), so
precision, recall and f1 are all the share of files that match. A file that fails never matches, and all its words
count as
deletions. The rates are micro-averaged, all errors over all reference words; for what the errors are and how an empty
label counts, see `worker.evaluation.metrics`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from worker import catalog
from worker.config import Settings
from worker.errors import RequestError
from worker.evaluation import metrics
from worker.evaluation.folders import Corpus, Pair, read_folder, read_manifest
from worker.evaluation.metrics import Counts
from worker.evaluation.report import to_html
from worker.protocol import render
from worker.protocol.request import parse
from worker.types import Failure, Request, Response, Result, S3Access, Transcript

if TYPE_CHECKING:
    from worker.engine.engine import Engine
    from worker.engine.request_state import OnResult

__all__ = [
    "MATCH_MODES",
    "Corpus",
    "Evaluation",
    "Pair",
    "evaluate",
    "prepare",
    "read_folder",
    "read_manifest",
    "to_html",
]

Json = dict[str, Any]

# How a text must equal its label: but for case and white space, or after Whisper's normaliser, to which punctuation,
# spelling
# and the writing of numbers are alike too.
MATCH_MODES = {"exact": "basic", "normalized": "whisper"}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A corpus and the request that transcribes it, a result for each pair. `language`: what the texts are in where
    neither their pair nor their transcript tells."""

    corpus: Corpus
    request: Request
    match_mode: str = "exact"
    normalizer: str = "basic"
    language: str | None = None

    def score(self, response: Response) -> Json:
        """The answer, from the response to `request`. Takes up to a second for each hour of speech in a single file."""
        words, characters = Counts(), Counts()
        details: list[Json] = []
        for pair, one in zip(self.corpus.pairs, response.results, strict=True):
            detail, heard, spelt = self._detail(pair, one)
            words, characters = words + heard, characters + spelt
            details.append(detail)
        count, matched = len(details), sum(detail["match"] for detail in details)
        missed, share = count - matched, matched / count
        audio_sec, total_sec = sum(detail.get("duration_sec", 0.0) for detail in details), response.timing.total_sec
        summary = {
            "count": count,
            "tp": matched,
            "fp": missed,
            "fn": missed,
            "precision": share,
            "recall": share,
            "f1": share,
            "failed": sum("error" in detail for detail in details),
            "wer": words.rate,
            **_errors(words),
            "cer": characters.rate,
            "characters": characters.reference,
            "unlabelled": list(self.corpus.unlabelled),
            "missing_audio": list(self.corpus.missing_audio),
            "model": response.model,
            "match_mode": self.match_mode,
            "normalizer": self.normalizer,
            "audio_sec": round(audio_sec, 3),
            "total_sec": round(total_sec, 4),
            "rtfx": round(audio_sec / total_sec, 2) if total_sec else None,
        }
        return {"summary": summary, "details": details}

    def _detail(self, pair: Pair, one: Result | Failure) -> tuple[Json, Counts, Counts]:
        transcript = one.output if isinstance(one, Result) and isinstance(one.output, Transcript) else None
        language = (transcript.language if transcript else None) or pair.language or self.language
        pred = transcript.text if transcript else ""

        def alike(normalizer: str) -> tuple[str, str]:
            return metrics.normalize(pair.text, normalizer, language), metrics.normalize(pred, normalizer, language)

        label, said = alike(MATCH_MODES[self.match_mode])
        match = int(transcript is not None and label == said)
        reference, hypothesis = alike(self.normalizer)
        words, characters = metrics.words(reference, hypothesis), metrics.characters(reference, hypothesis)
        detail = {
            "file": pair.file,
            "pred": pred,
            "gt": pair.text,
            "match": match,
            "wer": words.rate,
            "cer": characters.rate,
            **_errors(words),
            "language": language,
        }
        if isinstance(one, Failure):
            detail["error"] = render.error_json(one.error)
        else:
            detail["duration_sec"] = round(one.duration_sec, 3)
            if one.warning:
                detail["warning"] = one.warning
        return detail, words, characters


def prepare(
    corpus: Corpus,
    settings: Settings,
    options: Mapping[str, Any] | None = None,
    *,
    match_mode: str = "exact",
    normalizer: str = "basic",
    trusted: bool = False,
    s3: S3Access | None = None,
) -> Evaluation:
    """An evaluation that is ready to be run.

    options: fields of a payload (model, language, prompt, max_new_tokens …); a language of a pair's own wins, where
    the model
    takes one. match_mode: a key of MATCH_MODES. normalizer: one of metrics.NORMALIZERS, for the error rates. trusted:
    the corpus was named by the person who runs the worker, so its files may lie anywhere and be more than MAX_INPUTS.
    Raises RequestError for what is not known or not allowed, and for a corpus without a single pair.
    """
    for name, value, known in (
        ("match_mode", match_mode, tuple(MATCH_MODES)),
        ("normalizer", normalizer, metrics.NORMALIZERS),
    ):
        if value not in known:
            raise RequestError(f"{name} {value!r} is not known: use {' or '.join(known)}", param=name)
    if not corpus.pairs:
        raise RequestError(
            f"there is no audio with a label: {len(corpus.unlabelled)} audio files have no label, and "
            f"{len(corpus.missing_audio)} labels no audio"
        )
    given = dict(options or {})
    takes_language = "language" in catalog.find(str(given.get("model") or settings.default_model)).options
    inputs = [
        {"source": pair.source, "language": pair.language} if pair.language and takes_language else pair.source
        for pair in corpus.pairs
    ]
    if trusted:
        settings = settings.model_copy(update={"max_inputs": max(settings.max_inputs, len(inputs))})
    request = parse({**given, "task": "transcribe", "inputs": inputs}, settings, s3=s3, trusted=trusted)
    return Evaluation(corpus, request, match_mode, normalizer, given.get("language"))


def evaluate(
    engine: Engine,
    corpus: Corpus,
    options: Mapping[str, Any] | None = None,
    *,
    match_mode: str = "exact",
    normalizer: str = "basic",
    trusted: bool = False,
    on_result: OnResult | None = None,
) -> Json:
    """Runs an evaluation and waits for its answer; interrupted while it waits, it drops what is left to do.

    on_result: as in `Engine.submit`. The rest is as in `prepare`, which says what is raised.
    """
    evaluation = prepare(
        corpus, engine.settings, options, match_mode=match_mode, normalizer=normalizer, trusted=trusted
    )
    future = engine.submit(evaluation.request, on_result=on_result)
    try:
        response = future.result()
    finally:
        future.cancel()
    return evaluation.score(response)


def _errors(words: Counts) -> Json:
    return {
        "substitutions": words.substitutions,
        "insertions": words.insertions,
        "deletions": words.deletions,
        "words": words.reference,
    }
