"""Recordings against a reference of the caller's own, by one model that both transcribes and embeds. No folder of
clips and no cache: for those there is worker.scoring, whose measures these are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from worker.catalog import Model
from worker.errors import AviaryError
from worker.scoring.config import ModelEntry
from worker.scoring.models import ClipFeatures, ScoringModel
from worker.scoring.scorer import Score
from worker.scoring.similarity import audio_similarity, text_similarity
from worker.types import Failure, Request, Response, Result, Source, Timing


def request(row: Model, sources: Sequence[Source]) -> Request:
    """What the engine is asked: two items for each source, of which the first is the reference. Raises Unsupported for
    a model that cannot do both."""
    scoring = _scoring(row)
    items = [
        dataclasses.replace(item, index=2 * place + item.index)
        for place, source in enumerate(sources)
        for item in scoring.request(source).items
    ]
    return Request(row.id, tuple(items))


def scores(row: Model, outcomes: Sequence[Result | Failure]) -> list[Score | Failure]:
    """The scores, or failures, of the recordings, from all outcomes of `request` in order. Raises the reference's
    error."""
    scoring = _scoring(row)
    pairs = [Response(row.id, tuple(outcomes[at : at + 2]), Timing()) for at in range(0, len(outcomes), 2)]
    reference = scoring.read(pairs[0])
    return [_score(scoring, reference, pair, place) for place, pair in enumerate(pairs[1:])]


def _score(scoring: ScoringModel, reference: ClipFeatures, pair: Response, place: int) -> Score | Failure:
    try:
        heard = scoring.read(pair)
    except AviaryError as error:
        return Failure(place, error)
    audio = audio_similarity(reference.features, heard.features)
    text = text_similarity(reference.text, heard.text)
    return {
        "model": scoring.embedder,
        "sim_score": (audio + text) / 2,
        "audio_sim_score": audio,
        "text_sim_score": text,
    }


def _scoring(row: Model) -> ScoringModel:
    return ScoringModel.of(ModelEntry(key="model", type="model", model_id=row.id))
