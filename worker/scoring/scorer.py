"""Scores a recording against a reference clip: how alike they sound, and how alike what is said in them.

    Scorer.open(config.json, engine, settings)    returns at once; models load and references are computed behind it
    check(uid, cid, model)                        what is unknown is told before any audio is read
    score(uid, cid, source, model)                Future of {"model", "sim_score", "audio_sim_score", "text_sim_score"}

audio_sim_score is the cosine of the masked, mean-pooled encoder states, -1 to 1 and as it is; text_sim_score goes from
0 to 1
(worker.scoring.similarity); sim_score is their average. A score that needs a reference which is not there yet has it
computed ahead of the others.

A model that cannot be loaded is logged and left out; `ready` fails if none is left. A reference that cannot be read is
logged, stands in `progress`, and is the error of the scores that need it. The cache is never flushed, whatever
AUDIO_SCORE_DISABLE_CACHE_FLUSH says.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

from worker.config import Settings
from worker.engine.engine import Engine
from worker.errors import AviaryError, Cancelled, ClipNotFound, ModelUnavailable, RequestError
from worker.faults import report
from worker.futures import fail, into, settle
from worker.scoring.config import ModelEntry, ScoreConfig
from worker.scoring.models import ClipFeatures, ScoringModel
from worker.scoring.references import References
from worker.scoring.similarity import audio_similarity, text_similarity
from worker.types import Response, Source

log = logging.getLogger(__name__)

AT_ONCE = 16  # references under way: enough to fill a batch, few enough for a score to be among the next


class Score(TypedDict):
    model: str
    sim_score: float
    audio_sim_score: float
    text_sim_score: float


@dataclass(frozen=True, slots=True)
class Progress:
    """Of the start. models: the keys of config.json, each `loading`, `loaded` or why it was left out. references: how
    many there are, of all models, or those that may still load; done: how many were looked at; failed: why, by
    `<model>/<file>`."""

    models: dict[str, str]
    references: int
    done: int
    failed: dict[str, str] = field(default_factory=dict)


class Scorer:
    """Thread-safe. `ready` is done when every reference is there or has failed; it fails where no model could be
    loaded."""

    def __init__(self, config: ScoreConfig, engine: Engine) -> None:
        self.ready: Future[None] = Future()
        self._engine = engine
        self._references = References(config.video_clip_dir, config.cache_dir, engine)
        if not self._references.clips:
            log.warning("no reference clips in %s", config.video_clip_dir)
        self._models: dict[str, Future[ScoringModel]] = {entry.key: Future() for entry in config.models}
        self._done, self._failed = 0, dict[str, str]()
        self._lock = threading.Lock()
        self._closing: Future[None] = Future()
        self._thread = threading.Thread(target=self._start, args=(config.models,), name="scoring", daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, config: Path, engine: Engine, settings: Settings) -> Scorer:
        """Scoring as config.json describes it. Raises ConfigError, naming the file and the field."""
        return cls(ScoreConfig.read(config, settings), engine)

    def known(self, uid: str, cid: str) -> bool:
        """Whether there is such a reference clip."""
        return self._references.find(uid, cid) is not None

    def check(self, uid: str, cid: str, model: str | None = None) -> None:
        """Raises ClipNotFound, or RequestError for a model that is not in config.json, or why it was left out."""
        self._clip(uid, cid)
        self._candidates(model)

    def score(self, uid: str, cid: str, source: Source, model: str | None = None) -> Future[Score]:
        """Scores a recording by one model, or by the first that could be loaded. Raises what `check` does; the future
        fails
        with what is wrong with the recording (InputError), the reference (ReferenceFailed) or the model. The source
        must last until it is done; cancelling it drops what is not yet on the device."""
        clip, candidates = self._clip(uid, cid), self._candidates(model)
        future: Future[Score] = Future()
        self._try(future, candidates, clip, source)
        return future

    @property
    def progress(self) -> Progress:
        models = {key: _state(model) for key, model in self._models.items()}
        left = sum(state in ("loading", "loaded") for state in models.values())
        with self._lock:
            return Progress(models, left * len(self._references.clips), self._done, dict(self._failed))

    def close(self) -> None:
        """Before the engine's. What is under way for the references is cancelled; what is in the cache stays."""
        settle(self._closing, None)
        self._references.close()
        self._thread.join(timeout=30)

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # A score

    def _clip(self, uid: str, cid: str) -> Path:
        clip = self._references.find(uid, cid)
        if clip is None:
            raise ClipNotFound(f"there is no reference clip {cid!r} of video {uid!r}", param="cid")
        return clip

    def _candidates(self, model: str | None) -> Sequence[Future[ScoringModel]]:
        if model is None:
            return list(self._models.values())
        chosen = self._models.get(model)
        if chosen is None:
            there = ", ".join(key for key, one in self._models.items() if not _left_out(one))
            raise RequestError(f"model {model!r} does not score: use one of {there}", param="model")
        if error := _left_out(chosen):
            raise error
        return [chosen]

    def _try(
        self, future: Future[Score], candidates: Sequence[Future[ScoringModel]], clip: Path, source: Source
    ) -> None:
        """By the first of the candidates that loads."""
        first, *rest = candidates

        def compare(model: ScoringModel) -> None:
            self._compare(future, model, clip, source)

        def loaded(model: Future[ScoringModel]) -> None:
            if rest and _left_out(model):
                self._try(future, rest, clip, source)
            else:
                into(future, compare)(model)

        first.add_done_callback(loaded)

    def _compare(self, future: Future[Score], model: ScoringModel, clip: Path, source: Source) -> None:
        def upload(reference: ClipFeatures) -> None:
            running = self._engine.submit(model.request(source))
            future.add_done_callback(lambda _: running.cancel())
            running.add_done_callback(into(future, lambda response: settle(future, _score(model, reference, response))))

        self._references.get(model, clip).add_done_callback(into(future, upload))

    # The start

    def _start(self, entries: Sequence[ModelEntry]) -> None:
        try:
            for entry in entries:
                self._load(entry)
            there = [model.result() for model in self._models.values() if not _left_out(model)]
            if not there:
                raise ModelUnavailable(
                    "no model that scores could be loaded: "
                    + "; ".join(f"{key}: {_state(model)}" for key, model in self._models.items())
                )
            for model in there:
                self._fill(model)
            if self._closing.done():
                raise Cancelled("the worker is shutting down")
        except Exception as error:  # noqa: BLE001  whoever waits is told
            fail(self.ready, report(error))
        else:
            settle(self.ready, None)

    def _load(self, entry: ModelEntry) -> None:
        future = self._models[entry.key]
        try:
            model = ScoringModel.of(entry)
            for name in dict.fromkeys((model.embedder, model.transcriber)):
                loading = self._engine.load(name)
                wait((loading, self._closing), return_when=FIRST_COMPLETED)
                if not loading.done():
                    raise Cancelled("the worker is shutting down")
                loading.result()
        except Exception as error:  # noqa: BLE001  the other models go on
            if not isinstance(error, Cancelled):
                log.error("model %s is left out: %s", entry.key, error)  # noqa: TRY400  the message says it all
            fail(future, report(error))
        else:
            settle(future, model)

    def _fill(self, model: ScoringModel) -> None:
        """Has every reference computed, a few at a time."""
        pending: set[Future[ClipFeatures]] = set()
        for clip in self._references.clips:
            if self._closing.done():
                return
            future = self._references.get(model, clip)
            future.add_done_callback(self._counted(model, clip))
            pending.add(future)
            if len(pending) >= AT_ONCE:
                pending = wait(pending, return_when=FIRST_COMPLETED).not_done
        wait(pending)

    def _counted(self, model: ScoringModel, clip: Path) -> Callable[[Future[ClipFeatures]], None]:
        def count(done: Future[ClipFeatures]) -> None:
            error = done.exception()
            with self._lock:
                self._done += 1
                if error:
                    self._failed[f"{model.key}/{clip.relative_to(self._references.folder)}"] = str(error)
            if error and not isinstance(error, Cancelled):
                log.error("%s by model %s", error, model.key)

        return count


def _score(model: ScoringModel, reference: ClipFeatures, response: Response) -> Score:
    heard = model.read(response)
    audio = audio_similarity(reference.features, heard.features)
    text = text_similarity(reference.text, heard.text)
    return {"model": model.key, "sim_score": (audio + text) / 2, "audio_sim_score": audio, "text_sim_score": text}


def _left_out(model: Future[ScoringModel]) -> AviaryError | None:
    """Why, if it is settled that the model could not be loaded."""
    error = model.exception() if model.done() else None
    return error if isinstance(error, AviaryError) else None


def _state(model: Future[ScoringModel]) -> str:
    if not model.done():
        return "loading"
    error = _left_out(model)
    return error.message if error else "loaded"
