"""A model that scores: what it asks of the engine for a clip, and what it makes of the answer.

Both halves of a clip, its transcript and its features, are items of one request, so that it is fetched and decoded
once.
Features are the masked encoder states, pooled by their mean: padding has no part in them. Without that mask, every two
clips would be alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from worker import catalog
from worker.errors import ModelError, Unsupported
from worker.scoring.config import ModelEntry
from worker.types import Embedding, Failure, Item, Options, Request, Response, Source, Transcript

_BACKENDS = {"whisper": "whisper", "higgs_audio": "higgs"}


@dataclass(frozen=True, slots=True, eq=False)
class Heard:
    """What a model hears in a clip. features: float32 of shape (width,)."""

    text: str
    features: np.ndarray


@dataclass(frozen=True, slots=True)
class ScoringModel:
    """key: its name in requests. embedder, transcriber: the catalog's ids of what hears."""

    key: str
    embedder: str
    transcriber: str

    @classmethod
    def of(cls, entry: ModelEntry) -> ScoringModel:
        """The model of an entry. Raises ModelNotFound or Unsupported, naming the field."""
        row = catalog.find(entry.model_id)
        if row.backend != _BACKENDS.get(entry.type, row.backend):
            raise Unsupported(f"{row.id} is not of type {entry.type}", param="model_id")
        if entry.processor_id and entry.processor_id != row.processor:
            row = catalog.find(f"{row.id}:{entry.processor_id}")
        transcriber = row
        if entry.transcriber_id and catalog.find(entry.transcriber_id) != catalog.find(row.transcriber or ""):
            transcriber = catalog.find(entry.transcriber_id)
        catalog.check(row, Options(row.id, task="embed"))
        catalog.check(transcriber, Options(transcriber.id))
        return cls(entry.key, row.id, transcriber.id)

    def request(self, source: Source) -> Request:
        """What the engine is asked about a clip."""
        asked = (Options(self.transcriber), Options(self.embedder, task="embed", pooling="mean"))
        return Request(self.key, tuple(Item(index, source, options) for index, options in enumerate(asked)))

    @staticmethod
    def heard(response: Response) -> Heard:
        """The answer to `request`. Raises the error of the half that failed."""
        for one in response.results:
            if isinstance(one, Failure):
                raise one.error
        transcript, embedding = (one.output for one in response.results if not isinstance(one, Failure))
        assert isinstance(transcript, Transcript)
        assert isinstance(embedding, Embedding)
        if not np.isfinite(embedding.values).all():
            raise ModelError("the model gave features that are no numbers")
        return Heard(transcript.text, embedding.values)
