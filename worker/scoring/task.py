"""The task `score`: a payload that names recordings and reference clips → Work.

    {"uid", "cid", "audio"}                          one recording
    {"inputs": [{"source", "uid", "cid", "id"}]}     several

`model` is a key of config.json's models; by default the first one that loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Annotated, BinaryIO

from pydantic import Field
from typing_extensions import Unpack, override

from worker.config import Settings
from worker.errors import AviaryError, RequestError, TooManyInputs
from worker.futures import all_of, count_done
from worker.protocol import render
from worker.protocol.request import LONGEST_ID, InputId, source_of
from worker.protocol.strict import Fields, FirstError, Strict, validated
from worker.protocol.work import Json, Work
from worker.scoring.scorer import Score, Scorer
from worker.types import Listeners, Progress, S3Access, Source


class _Recording(Strict):
    source: str = Field(min_length=1)
    uid: str = Field(max_length=LONGEST_ID)
    cid: str = Field(max_length=LONGEST_ID)
    id: InputId | None = None


class _ScorePayload(Strict):
    task: str = "score"
    model: str | None = None
    inputs: Annotated[list[_Recording], FirstError()] | None = Field(None, min_length=1)
    audio: str | None = Field(None, min_length=1)
    uid: str | None = Field(None, max_length=LONGEST_ID)
    cid: str | None = Field(None, max_length=LONGEST_ID)


def prepare(
    fields: Fields, settings: Settings, scorer: Scorer, *, s3: S3Access | None, files: Mapping[str, BinaryIO]
) -> Scoring:
    """Return the work that the fields describe. Raises RequestError, and ClipNotFound for a single unknown clip."""
    body = validated(_ScorePayload, fields)
    recordings = body.inputs or [_single(body)]
    if len(recordings) > settings.max_inputs:
        raise TooManyInputs(
            f"inputs has {len(recordings)} items; at most {settings.max_inputs} (MAX_INPUTS) are allowed",
            param="inputs",
        )
    if len(recordings) == 1:
        scorer.check(recordings[0].uid, recordings[0].cid, body.model)
    sources = tuple(
        Source("file", one.source, file=files[one.source]) if one.source in files else source_of(one.source, s3=s3)
        for one in recordings
    )
    return Scoring(scorer, body.model, tuple(recordings), sources)


def _single(body: _ScorePayload) -> _Recording:
    if body.audio is None or body.uid is None or body.cid is None:
        missing = next(name for name in ("audio", "uid", "cid") if getattr(body, name) is None)
        raise RequestError(f"{missing} is missing: a score needs uid, cid and audio", param=missing)
    return _Recording(source=body.audio, uid=body.uid, cid=body.cid)


@dataclass(frozen=True)
class Scoring(Work):
    """Recordings to compare with reference clips. The outcome is a Score or an error for each, in order."""

    scorer: Scorer
    model: str | None
    recordings: tuple[_Recording, ...]
    sources: tuple[Source, ...]
    task = "score"

    @override
    @property
    def size(self) -> int:  # type: ignore[override]
        return len(self.recordings)

    @override
    def start(self, **listeners: Unpack[Listeners]) -> Future[list[Score | AviaryError]]:
        scores = [self._score(one, source) for one, source in zip(self.recordings, self.sources, strict=True)]
        on_progress = listeners.get("on_progress")
        if on_progress is not None:
            count_done(scores, lambda done: on_progress(Progress(done, len(scores))))
        return all_of(scores)

    @override
    def finish(self, outcome: list[Score | AviaryError]) -> Json:
        results: list[Json] = []
        for index, (one, score) in enumerate(zip(self.recordings, outcome, strict=True)):
            shape = {"error": render.error_json(score)} if isinstance(score, AviaryError) else dict(score)
            results.append({"index": index, "id": one.id, "uid": one.uid, "cid": one.cid, **shape})
        failed = [one for one in results if "error" in one]
        answer: Json = {
            "model": next((one["model"] for one in results if "model" in one), None),
            "results": results,
            "usage": {"inputs": len(results), "failed": len(failed)},
        }
        if len(failed) == len(results):
            answer["error"] = failed[0]["error"]["message"]
        return answer

    @override
    def error(self, outcome: list[Score | AviaryError]) -> AviaryError | None:
        first = outcome[0] if len(outcome) == 1 else None
        return first if isinstance(first, AviaryError) else None

    def _score(self, recording: _Recording, source: Source) -> Future[Score]:
        try:
            return self.scorer.score(recording.uid, recording.cid, source, self.model)
        except AviaryError as error:
            failed: Future[Score] = Future()
            failed.set_exception(error)
            return failed
