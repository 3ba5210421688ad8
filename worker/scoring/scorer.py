"""Score recordings against reference clips: the similarity of their sound and of their words.

    Scorer.open(config.json, engine, settings)    returns at once; models load and references are computed meanwhile
    check(uid, cid, model)                        raises for an unknown clip or model before any audio is read
    score(uid, cid, source, model)                Future of {"model", "sim_score", "audio_sim_score", "text_sim_score"}

audio_sim_score is the cosine similarity, from -1 to 1, of the masked and mean-pooled encoder states. text_sim_score
goes from 0 to 1 (see `worker.scoring.similarity`). sim_score is the mean of the two. If a score needs a reference that
is not computed yet, that reference is computed ahead of the others.

A model that cannot be loaded is logged and left out; `ready` fails if no model is left. A reference that cannot be
read is logged and listed in `progress`, and scores that need it fail with its error. The cache is never flushed,
whether or not AUDIO_SCORE_DISABLE_CACHE_FLUSH is set.
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

IN_FLIGHT = 16  # references that the engine works on: enough to fill a batch, few enough that a score waits briefly


class Score(TypedDict):
    """The similarity of a recording to a reference by one model; `sim_score` is the mean of the other two."""

    model: str
    sim_score: float
    audio_sim_score: float
    text_sim_score: float


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the start has come.

    `models` maps each key of config.json to "loading", "loaded", or the reason why the model was left out.
    `references` is the number of clips times the number of models that are loading or loaded, and `done` counts those
    that are computed or failed. `failed` maps `<model>/<file>` to the reason.
    """

    models: dict[str, str]
    references: int
    done: int
    failed: dict[str, str] = field(default_factory=dict)


class Scorer:
    """Scores recordings against the clips of a ScoreConfig. Thread-safe.

    The future `ready` is done when every reference is computed or has failed; it fails if no model could be loaded.
    """

    def __init__(self, config: ScoreConfig, engine: Engine) -> None:
        self.ready: Future[None] = Future()
        self._engine = engine
        self._references = References(config.video_clip_dir, config.cache_dir, engine)
        if not self._references.clips:
            log.warning("the folder %s has no reference clips", config.video_clip_dir)
        self._models: dict[str, Future[ScoringModel]] = {entry.key: Future() for entry in config.models}
        self._done, self._failed = 0, dict[str, str]()
        self._lock = threading.Lock()
        self._closing: Future[None] = Future()
        self._thread = threading.Thread(target=self._start, args=(config.models,), name="scoring", daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, config: Path, engine: Engine, settings: Settings) -> Scorer:
        """Return a scorer for a config.json. Raises: ConfigError, which names the file and the field."""
        return cls(ScoreConfig.read(config, settings), engine)

    def has_clip(self, uid: str, cid: str) -> bool:
        """Return whether the video `uid` has a reference clip `cid`."""
        return self._references.find(uid, cid) is not None

    def check(self, uid: str, cid: str, model: str | None = None) -> None:
        """Check that a score is possible.

        Raises: ClipNotFound if the clip does not exist; RequestError if `model` is not in config.json; the model's
        own error if it was left out.
        """
        self._clip(uid, cid)
        self._candidates(model)

    def score(self, uid: str, cid: str, source: Source, model: str | None = None) -> Future[Score]:
        """Score a recording by one model, or by the first of config.json that loads.

        The source must stay readable until the future is done. Canceling the future drops the work that is not on the
        device yet. The future fails with InputError if the recording is at fault, with ReferenceFailed if the reference
        clip is, else with the model's error.

        Raises: the errors of `check`.
        """
        clip, candidates = self._clip(uid, cid), self._candidates(model)
        future: Future[Score] = Future()
        self._try(future, candidates, clip, source)
        return future

    @property
    def progress(self) -> Progress:
        """Return how far loading and computing references have come."""
        models = {key: _state(model) for key, model in self._models.items()}
        usable = sum(state in ("loading", "loaded") for state in models.values())
        with self._lock:
            return Progress(models, usable * len(self._references.clips), self._done, dict(self._failed))

    def close(self) -> None:
        """Cancel unfinished references and stop. Close the scorer before the engine. The cache stays."""
        settle(self._closing, None)
        self._references.close()
        self._thread.join(timeout=30)

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # One score

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
            usable = ", ".join(key for key, future in self._models.items() if not _load_error(future))
            raise RequestError(f"model {model!r} does not score; use one of {usable}", param="model")
        if error := _load_error(chosen):
            raise error
        return [chosen]

    def _try(
        self, future: Future[Score], candidates: Sequence[Future[ScoringModel]], clip: Path, source: Source
    ) -> None:
        """Score by the first of the candidates that loads."""
        first, *rest = candidates

        def compare(model: ScoringModel) -> None:
            self._compare(future, model, clip, source)

        def on_load(model: Future[ScoringModel]) -> None:
            if rest and _load_error(model):
                self._try(future, rest, clip, source)
            else:
                into(future, compare)(model)

        first.add_done_callback(on_load)

    def _compare(self, future: Future[Score], model: ScoringModel, clip: Path, source: Source) -> None:
        def submit(reference: ClipFeatures) -> None:
            def finish(response: Response) -> None:
                settle(future, score_of(model.key, reference, model.read(response)))

            running = self._engine.submit(model.request(source))
            future.add_done_callback(lambda _: running.cancel())
            running.add_done_callback(into(future, finish))

        self._references.get(model, clip).add_done_callback(into(future, submit))

    # The start

    def _start(self, entries: Sequence[ModelEntry]) -> None:
        try:
            for entry in entries:
                self._load(entry)
            usable = [model.result() for model in self._models.values() if not _load_error(model)]
            if not usable:
                raise ModelUnavailable(
                    "no model that scores could be loaded: "
                    + "; ".join(f"{key}: {_state(model)}" for key, model in self._models.items())
                )
            for model in usable:
                self._compute_references(model)
            if self._closing.done():
                raise Cancelled("the worker is shutting down")
        except Exception as error:  # noqa: BLE001  `ready` reports any error
            fail(self.ready, report(error))
        else:
            settle(self.ready, None)

    def _load(self, entry: ModelEntry) -> None:
        future = self._models[entry.key]
        try:
            model = ScoringModel.of(entry, self._engine.settings.places)
            for name in dict.fromkeys((model.embedder, model.transcriber)):
                loading = self._engine.load(name)
                wait((loading, self._closing), return_when=FIRST_COMPLETED)
                if not loading.done():
                    raise Cancelled("the worker is shutting down")
                loading.result()
        except Exception as error:  # noqa: BLE001  the other models still load
            if not isinstance(error, Cancelled):
                log.error("the model %s is left out: %s", entry.key, error)  # noqa: TRY400  the message is enough
            fail(future, report(error))
        else:
            settle(future, model)

    def _compute_references(self, model: ScoringModel) -> None:
        """Compute every reference by one model, IN_FLIGHT at a time."""
        pending: set[Future[ClipFeatures]] = set()
        for clip in self._references.clips:
            if self._closing.done():
                return
            future = self._references.get(model, clip)
            future.add_done_callback(self._counter(model, clip))
            pending.add(future)
            if len(pending) >= IN_FLIGHT:
                pending = wait(pending, return_when=FIRST_COMPLETED).not_done
        wait(pending)

    def _counter(self, model: ScoringModel, clip: Path) -> Callable[[Future[ClipFeatures]], None]:
        """Return a done-callback that counts a reference and records its failure."""

        def count(done: Future[ClipFeatures]) -> None:
            error = done.exception()
            with self._lock:
                self._done += 1
                if error:
                    self._failed[f"{model.key}/{clip.relative_to(self._references.folder)}"] = str(error)
            if error and not isinstance(error, Cancelled):
                log.error("model %s: %s", model.key, error)

        return count


def score_of(model: str, reference: ClipFeatures, recording: ClipFeatures) -> Score:
    """Return the score of a recording against a reference; `model` is the name to report."""
    audio = audio_similarity(reference.features, recording.features)
    text = text_similarity(reference.text, recording.text)
    return {"model": model, "sim_score": (audio + text) / 2, "audio_sim_score": audio, "text_sim_score": text}


def _load_error(model: Future[ScoringModel]) -> AviaryError | None:
    """Return the error of a model that could not be loaded; None while it loads and once it is loaded."""
    error = model.exception() if model.done() else None
    return error if isinstance(error, AviaryError) else None


def _state(model: Future[ScoringModel]) -> str:
    if not model.done():
        return "loading"
    error = _load_error(model)
    return error.message if error else "loaded"
