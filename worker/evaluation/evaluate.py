"""A corpus and a model → a report: plain JSON, {"summary": …, "details": […]}.

    Corpus ──▶ prepare ──▶ Request ──▶ engine ──▶ Response ──▶ Evaluation.score ──▶ report

    summary   model; wer, substitutions, insertions, deletions, words; cer, characters; normalizer; plain_wer and
              plain_cer (the rates with the normalizer `plain`); failed; match_mode, count = tp + fp, tp, fp, fn,
              precision, recall, f1; unlabelled and missing_audio (names); audio_sec, total_sec, rtfx (audio_sec /
              total_sec)
    details   one for each labeled file, in the corpus's order: file, pred and gt (the texts as written), match (1 or
              0), wer, cer, words, substitutions, insertions, deletions, plain_wer, plain_cer, language, duration_sec;
              `warning` if the file is damaged, `error` if it failed

A file either matches its label or does not. A mismatch counts as one false positive (the text that the model wrote)
and one false negative (the text that it did not write), so precision, recall and f1 all equal the share of files that
match. A file that fails never matches, and all the words of its label count as deletions.

The error rates are micro-averages: all errors over all reference words. `worker.evaluation.metrics` defines the errors,
and how an empty label counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from worker import catalog
from worker.config import Settings
from worker.errors import RequestError
from worker.evaluation import metrics
from worker.evaluation.folders import Corpus, Pair
from worker.evaluation.metrics import Counts
from worker.protocol import nemo_manifest, render
from worker.protocol.model_names import find_model
from worker.protocol.request import parse
from worker.types import Failure, OnProgress, OnResult, Request, Response, Result, S3Access, Transcript

if TYPE_CHECKING:
    from worker.engine.engine import Engine

Json = dict[str, Any]

# Match mode → the normalizer after which a text must equal its label. "exact" ignores case and white space only;
# "normalized" also ignores punctuation, spelling variants and the notation of numbers.
MATCH_MODES = {"exact": "plain", "normalized": "whisper"}


@dataclass(frozen=True, slots=True)
class _Errors:
    """The counts of words and of characters under one normalizer."""

    words: Counts
    characters: Counts

    @classmethod
    def between(cls, label: str, transcript: str) -> _Errors:
        """Return the errors of a normalized transcript."""
        return cls(metrics.words(label, transcript), metrics.characters(label, transcript))

    def __add__(self, other: _Errors) -> _Errors:
        return _Errors(self.words + other.words, self.characters + other.characters)

    def rates(self, prefix: str = "") -> Json:
        return {f"{prefix}wer": self.words.rate, f"{prefix}cer": self.characters.rate}

    def json(self) -> Json:
        """Return the rates and the counts of words."""
        return {
            **self.rates(),
            "substitutions": self.words.substitutions,
            "insertions": self.words.insertions,
            "deletions": self.words.deletions,
            "words": self.words.reference,
        }


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A corpus, and the request that transcribes it with one input for each pair.

    `match_mode` is a key of MATCH_MODES. `normalizer` is one of `metrics.NORMALIZERS` and applies to the error rates
    `wer` and `cer`. `language` is that of texts whose language neither their pair nor their transcript states.
    """

    corpus: Corpus
    request: Request
    match_mode: str = "exact"
    normalizer: str = "whisper"
    language: str | None = None

    def score(self, response: Response) -> Json:
        """Return the report on the response to `request`.

        The alignments take up to two seconds for each hour of speech in a single file, so an event loop should call
        this method in a thread.
        """
        total = plain = _Errors(Counts(), Counts())
        details: list[Json] = []
        for pair, result in zip(self.corpus.pairs, response.results, strict=True):
            detail, errors, plain_errors = self._detail(pair, result)
            total, plain = total + errors, plain + plain_errors
            details.append(detail)
        total_sec = response.timing.total_sec
        audio_sec = sum(detail.get("duration_sec", 0.0) for detail in details)
        summary = {
            "model": response.model,
            **total.json(),
            "characters": total.characters.reference,
            "normalizer": self.normalizer,
            **plain.rates("plain_"),
            "failed": sum("error" in detail for detail in details),
            "match_mode": self.match_mode,
            **_matches(details),
            "unlabelled": list(self.corpus.unlabelled),
            "missing_audio": list(self.corpus.missing_audio),
            "audio_sec": round(audio_sec, 3),
            "total_sec": round(total_sec, 4),
            "rtfx": round(audio_sec / total_sec, 2) if total_sec else None,
        }
        return {"summary": summary, "details": details}

    def _detail(self, pair: Pair, result: Result | Failure) -> tuple[Json, _Errors, _Errors]:
        """Return the detail of one file, its errors, and its errors with the normalizer `plain`."""
        transcript = result.output if isinstance(result, Result) and isinstance(result.output, Transcript) else None
        spoken = (transcript.language if transcript else None) or pair.language or self.language
        language = spoken and catalog.language_code(spoken)
        pred = transcript.text if transcript else ""

        def normalize(normalizer: str) -> tuple[str, str]:
            return metrics.normalize(pair.text, normalizer, language), metrics.normalize(pred, normalizer, language)

        label, text = normalize(MATCH_MODES[self.match_mode])
        match = int(transcript is not None and label == text)
        errors = _Errors.between(*normalize(self.normalizer))
        plain = errors if self.normalizer in metrics.PLAIN else _Errors.between(*normalize("plain"))
        detail = {
            "file": pair.file,
            "pred": pred,
            "gt": pair.text,
            "match": match,
            **errors.json(),
            **plain.rates("plain_"),
            "language": language,
        }
        if isinstance(result, Failure):
            detail["error"] = render.error_json(result.error)
        else:
            detail["duration_sec"] = result.duration_sec
            if result.warning:
                detail["warning"] = result.warning
        return detail, errors, plain


def prepare(
    corpus: Corpus,
    settings: Settings,
    options: Mapping[str, Any] | None = None,
    *,
    match_mode: str = "exact",
    normalizer: str = "whisper",
    trusted: bool = False,
    s3: S3Access | None = None,
) -> Evaluation:
    """Return an evaluation whose request is ready to submit.

    `options` are the fields of a payload (model, language, prompt, max_new_tokens, …); the language of a pair overrides
    `language` if the model takes that option. `match_mode` and `normalizer` are as in Evaluation. Set `trusted` if the
    operator of the worker chose the corpus: its files may then lie in any folder and number more than MAX_INPUTS.

    Raises: RequestError if an option, `match_mode` or `normalizer` is unknown or not allowed, or if the corpus has no
    pair.
    """
    _check("match_mode", match_mode, tuple(MATCH_MODES))
    _check("normalizer", normalizer, metrics.NORMALIZERS)
    if not corpus.pairs:
        raise RequestError(
            f"the corpus has no audio with a label: {len(corpus.unlabelled)} audio files have no label, and "
            f"{len(corpus.missing_audio)} labels have no audio"
        )
    options = dict(options or {})
    takes_language = "language" in find_model(options.get("model"), settings, trusted=trusted).options
    inputs = [_input(pair, options, takes_language=takes_language) for pair in corpus.pairs]
    if trusted:
        settings = settings.model_copy(update={"max_inputs": max(settings.max_inputs, len(inputs))})
    request = parse({**options, "task": "transcribe", "inputs": inputs}, settings, s3=s3, trusted=trusted)
    items = tuple(replace(item, segment=corpus.pairs[item.index].segment) for item in request.items)
    return Evaluation(corpus, replace(request, items=items), match_mode, normalizer, options.get("language"))


def _input(pair: Pair, options: Mapping[str, Any], *, takes_language: bool) -> Json:
    """Return the input of a pair. A language that the model does not take only selects the normalizer."""
    own = {"language": pair.language, **pair.options} if pair.language else pair.options
    needed = nemo_manifest.override({name: None for name in own if name in options}, own)
    return {
        "source": pair.source,
        **{name: value for name, value in needed.items() if name != "language" or takes_language},
    }


def evaluate(
    engine: Engine,
    corpus: Corpus,
    options: Mapping[str, Any] | None = None,
    *,
    match_mode: str = "exact",
    normalizer: str = "whisper",
    trusted: bool = False,
    on_result: OnResult | None = None,
    on_progress: OnProgress | None = None,
) -> Json:
    """Transcribe a corpus, wait, and return the report. An interrupt while it waits cancels the remaining work.

    `on_result` and `on_progress` are as in `Engine.submit`. The other parameters, and the errors raised, are those of
    `prepare`.
    """
    evaluation = prepare(
        corpus, engine.settings, options, match_mode=match_mode, normalizer=normalizer, trusted=trusted
    )
    future = engine.submit(evaluation.request, on_result=on_result, on_progress=on_progress)
    try:
        response = future.result()
    finally:
        future.cancel()
    return evaluation.score(response)


def _check(name: str, value: str, supported: Sequence[str]) -> None:
    if value not in supported:
        raise RequestError(f"unsupported {name} {value!r}; use {' or '.join(supported)}", param=name)


def _matches(details: Sequence[Json]) -> Json:
    count, matches = len(details), sum(detail["match"] for detail in details)
    mismatches, share = count - matches, matches / count
    return {
        "count": count,
        "tp": matches,
        "fp": mismatches,
        "fn": mismatches,
        "precision": share,
        "recall": share,
        "f1": share,
    }
