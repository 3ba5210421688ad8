"""The task `evaluate`: a payload that names labeled audio → Work.

    {"audio_dir", "gt_dir"}                            folders
    {"manifest"}                                       a NeMo manifest
    {"inputs": [{"source", "text", "language"}]}       sources with their labels

with `match_mode`, `normalizer` and the options of the transcription. Paths must be inside ALLOWED_PATHS.
"""

from __future__ import annotations

import dataclasses
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator
from typing_extensions import Unpack, override

from worker.audio.fetch import check_allowed
from worker.config import Settings
from worker.errors import Cancelled, DeviceLost, InputError, RequestError
from worker.evaluation import Corpus, Evaluation, Pair, read_folder, read_manifest
from worker.evaluation import prepare as prepare_evaluation
from worker.protocol.options import LONGEST_LANGUAGE, OPTIONS
from worker.protocol.request import LONGEST_NAME
from worker.protocol.strict import Fields, FirstError, Strict, validated
from worker.protocol.work import Json, Work
from worker.types import Failure, Listeners, Response, S3Access

if TYPE_CHECKING:
    from worker.engine.engine import Engine


LONGEST_LABEL = 1 << 16  # characters, some seven hours of speech
LONGEST_LABELS = 1 << 23  # characters of all labels of a request


class _Pair(Strict):
    source: str = Field(min_length=1)
    text: str = Field(max_length=LONGEST_LABEL)
    language: str | None = Field(None, max_length=LONGEST_LANGUAGE)


class _EvaluationPayload(BaseModel):
    """The extra fields are options of the transcription, which `protocol.request.parse` checks."""

    model_config = ConfigDict(extra="allow")

    audio_dir: Path | None = None
    gt_dir: Path | None = None
    manifest: Path | None = None
    inputs: Annotated[list[_Pair], FirstError()] | None = None
    match_mode: str = "exact"
    normalizer: str = "whisper"

    @field_validator("audio_dir", "gt_dir", "manifest", mode="before")
    @classmethod
    def _bounded(cls, value: Any) -> Any:
        if isinstance(value, str) and len(value) > LONGEST_NAME:
            raise ValueError(f"a path may have {LONGEST_NAME} characters")
        return value


def prepare(
    fields: Fields, settings: Settings, engine: Engine, *, s3: S3Access | None, background: bool, owner: str | None
) -> EvaluationWork:
    """Return the work that the fields describe. Reads the labels. Raises RequestError."""
    body = validated(_EvaluationPayload, fields)
    options = {name: value for name, value in (body.model_extra or {}).items() if name != "task"}
    if unknown := options.keys() - {"model", *OPTIONS}:
        raise RequestError(f"{min(unknown)} is not a field of an evaluation", param=min(unknown))
    evaluation = prepare_evaluation(
        _corpus(body, settings), settings, options, match_mode=body.match_mode, normalizer=body.normalizer, s3=s3
    )
    request = dataclasses.replace(evaluation.request, background=background, owner=owner)
    return EvaluationWork(dataclasses.replace(evaluation, request=request), engine)


@dataclasses.dataclass(frozen=True)
class EvaluationWork(Work):
    """A corpus to transcribe and to compare with its labels. The outcome is the engine's Response."""

    evaluation: Evaluation
    engine: Engine
    task = "evaluate"

    @override
    @property
    def size(self) -> int:  # type: ignore[override]
        return self.evaluation.request.size

    @override
    @property
    def model(self) -> str:  # type: ignore[override]
        return self.evaluation.request.model

    @override
    def start(self, **listeners: Unpack[Listeners]) -> Future[Response]:
        return self.engine.submit(self.evaluation.request, **listeners)

    @override
    def finish(self, outcome: Response) -> Json:
        """Raises DeviceLost or Cancelled if one ended the run: neither says anything about the model."""
        for one in outcome.results:
            if isinstance(one, Failure) and isinstance(one.error, DeviceLost | Cancelled):
                raise one.error.with_traceback(None)
        return {"model": outcome.model, **self.evaluation.score(outcome)}


def _corpus(body: _EvaluationPayload, settings: Settings) -> Corpus:
    present = [name for name in ("audio_dir", "manifest", "inputs") if getattr(body, name) is not None]
    if len(present) != 1:
        raise RequestError("give exactly one of audio_dir (with gt_dir), manifest, inputs", param="audio_dir")

    def check(path: Path, param: str) -> None:
        try:
            check_allowed(path, settings)
        except InputError as error:
            message = error.message.encode("utf-8", "replace").decode()  # a file's name may hold other bytes
            raise RequestError(message, param=param) from error

    for name in ("audio_dir", "gt_dir", "manifest"):
        path: Path | None = getattr(body, name)
        if path is not None:
            check(path, name)
    if body.manifest is not None:
        return _bounded(read_manifest(body.manifest, check=check))
    if body.audio_dir is not None:
        return _bounded(read_folder(body.audio_dir, body.gt_dir, check=check))
    return _bounded(_listed(body))


def _listed(body: _EvaluationPayload) -> Corpus:
    return Corpus(tuple(Pair(one.source, one.source, one.text, one.language) for one in body.inputs or ()))


def _bounded(corpus: Corpus) -> Corpus:
    """Return the corpus. Raises RequestError if its labels are so long that comparing them would stop the worker."""
    lengths = [len(pair.text) for pair in corpus.pairs]
    if max(lengths, default=0) > LONGEST_LABEL:
        raise RequestError(
            f"A label has {max(lengths)} characters, and at most {LONGEST_LABEL} are allowed. Split the recording, or "
            "evaluate it on the command line.",
            param="text",
        )
    if sum(lengths) > LONGEST_LABELS:
        raise RequestError(
            f"The labels have {sum(lengths)} characters together, and at most {LONGEST_LABELS} are allowed in one "
            "request. Send several requests, or evaluate on the command line.",
            param="text",
        )
    return corpus
