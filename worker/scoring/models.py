"""One model that scores: the engine request for a clip, and the clip's features from the response.

Both features of a clip, its transcript and its embedding, are items of one request, so the clip is fetched and decoded
once. The embedding is the mean of the masked encoder states, without those of the padding. With them, every two short
clips would be alike.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from worker import catalog
from worker.catalog.places import Places
from worker.errors import ModelError, Unsupported
from worker.scoring.config import ModelEntry
from worker.types import Embedding, Failure, Item, Options, Request, Response, Source, Transcript


@dataclass(frozen=True, slots=True, eq=False)
class ClipFeatures:
    """The features of a clip that are compared with those of another clip."""

    text: str
    """The transcript."""

    features: np.ndarray
    """The pooled encoder states: float32 of shape (width,)."""


@dataclass(frozen=True, slots=True)
class ScoringModel:
    """A model of config.json, resolved to rows of the catalog."""

    key: str
    """The name of the model in requests."""

    embedder: str
    """The id of the row that embeds."""

    transcriber: str
    """The id of the row that transcribes; often the same."""

    @classmethod
    def of(cls, entry: ModelEntry, places: Places) -> ScoringModel:
        """Return the model that an entry of config.json describes. `places` are where repositories may be.

        Raises: ModelNotFound if a name is unknown; Unsupported, with the field as `param`, if the model is not of the
        entry's type, or cannot transcribe or embed.
        """
        find = functools.partial(catalog.find, places=places)
        embedder = find(entry.model_id)
        if entry.type not in ("model", embedder.scores_as):
            raise Unsupported(f"{embedder.id} is not of type {entry.type}", param="model_id")
        if entry.processor_id and entry.processor_id != embedder.processor:
            embedder = find(f"{embedder.id}:{entry.processor_id}")
        transcriber = embedder
        if entry.transcriber_id and find(entry.transcriber_id) != find(embedder.transcriber or ""):
            transcriber = find(entry.transcriber_id)
        return cls.of_rows(entry.key, embedder, transcriber)

    @classmethod
    def of_rows(cls, key: str, embedder: catalog.Model, transcriber: catalog.Model) -> ScoringModel:
        """Return the model of two rows. Raises: Unsupported if one of them cannot do its part."""
        catalog.check(embedder, Options(embedder.id, task="embed"))
        catalog.check(transcriber, Options(transcriber.id))
        return cls(key, embedder.id, transcriber.id)

    def request(self, source: Source) -> Request:
        """Return the engine request for the features of a clip: one item that transcribes, one that embeds."""
        tasks = (Options(self.transcriber), Options(self.embedder, task="embed", pooling="mean"))
        return Request(self.key, tuple(Item(index, source, options) for index, options in enumerate(tasks)))

    @staticmethod
    def read(response: Response) -> ClipFeatures:
        """Return the features from the response to `request`.

        Raises: the error of the item that failed; ModelError if the embedding is not finite.
        """
        for result in response.results:
            if isinstance(result, Failure):
                raise result.error
        transcript, embedding = (result.output for result in response.results if not isinstance(result, Failure))
        assert isinstance(transcript, Transcript)
        assert isinstance(embedding, Embedding)
        if not np.isfinite(embedding.values).all():
            raise ModelError("the model returned features that are not finite numbers")
        return ClipFeatures(transcript.text, embedding.values)
