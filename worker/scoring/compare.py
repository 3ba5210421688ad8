"""Compare recordings with a reference that the caller supplies, by one model that both transcribes and embeds.

    request(row, [reference, *recordings]) ──▶ engine ──▶ scores(row, outcomes)

This module has no folder of clips and no cache; `worker.scoring.scorer` adds them to the same measures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from worker.catalog import Model
from worker.errors import AviaryError
from worker.scoring.models import ClipFeatures, ScoringModel
from worker.scoring.scorer import Score, score_of
from worker.types import Failure, Request, Response, Result, Source, Timing


def request(row: Model, sources: Sequence[Source]) -> Request:
    """Return the request for the engine: two items for each source, of which the first is the reference.

    Raises: Unsupported if the model cannot both transcribe and embed.
    """
    model = _scoring_model(row)
    items = [
        dataclasses.replace(item, index=2 * position + item.index)
        for position, source in enumerate(sources)
        for item in model.request(source).items
    ]
    return Request(row.id, tuple(items))


def scores(row: Model, outcomes: Sequence[Result | Failure]) -> list[Score | Failure]:
    """Return a score or failure for each recording, from all outcomes of `request` in their order.

    Raises: the error of the reference, if it failed.
    """
    model = _scoring_model(row)
    pairs = [Response(row.id, tuple(outcomes[start : start + 2]), Timing()) for start in range(0, len(outcomes), 2)]
    reference = model.read(pairs[0])
    return [_score(model, reference, pair, position) for position, pair in enumerate(pairs[1:])]


def _score(model: ScoringModel, reference: ClipFeatures, pair: Response, position: int) -> Score | Failure:
    try:
        return score_of(model.embedder, reference, model.read(pair))
    except AviaryError as error:
        return Failure(position, error)


def _scoring_model(row: Model) -> ScoringModel:
    return ScoringModel.of_rows("model", row, row)
