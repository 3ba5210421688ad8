"""The spans of speech in a file, in the words of the server speaches: fields → Work, without a model of the catalog.

    fields ── prepare ──▶ SpeechDetection ──▶ [{"start": 512, "end": 2048}, …], in milliseconds

The detector is that of `worker.backends.common.vad`. Fields of a form are texts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from pydantic import Field
from typing_extensions import Unpack, override

from worker.backends.common import vad
from worker.errors import ModelNotFound, RequestError
from worker.protocol import openai
from worker.protocol.openai_fields import AUDIO
from worker.protocol.request import source_of
from worker.protocol.strict import Fields, Strict, validated
from worker.protocol.work import Work
from worker.types import Listeners, Source

if TYPE_CHECKING:
    from worker.engine.engine import Engine

Json = dict[str, Any]
Spans = list[tuple[float, float]]

MODELS = ("silero_vad", "silero_vad_v5", "silero_vad_v6")  # names of the one detector, whichever a client sends
LONGEST_MS = 1 << 31


class DetectionFields(Strict):
    """The fields of a request, besides its audio. The defaults are those of speaches."""

    model: str = Field("silero_vad", description=f"The detector: {', '.join(MODELS)} mean the same one")
    threshold: float = Field(0.75, ge=0, le=1, description="Probability at which speech starts")
    neg_threshold: float | None = Field(
        None, ge=0, le=1, description="Probability below which speech ends. Default: `threshold` - 0.15"
    )
    min_speech_duration_ms: int = Field(0, ge=0, le=LONGEST_MS, description="Speech that is not longer is left out")
    max_speech_duration_s: float = Field(
        math.inf, gt=0, description="Longer speech is cut, at a silence if it has one. Default: no limit"
    )
    min_silence_duration_ms: int = Field(
        1000, ge=0, le=LONGEST_MS, description="Shorter silence belongs to the speech around it"
    )
    speech_pad_ms: int = Field(0, ge=0, le=LONGEST_MS, description="How much each span is longer at both ends")

    @property
    def rules(self) -> vad.Rules:
        """The rules of the detector."""
        ends = max(self.threshold - 0.15, 0.01) if self.neg_threshold is None else self.neg_threshold
        return vad.Rules(
            starts=self.threshold,
            ends=ends,
            min_speech_sec=self.min_speech_duration_ms / 1000,
            max_speech_sec=self.max_speech_duration_s,
            min_silence_sec=self.min_silence_duration_ms / 1000,
            pad_sec=self.speech_pad_ms / 1000,
        )


def prepare(fields: Fields, engine: Engine, files: Mapping[str, BinaryIO]) -> SpeechDetection:
    """Return the work that the fields describe. Raises RequestError, ModelNotFound and InputError."""
    options = {name: value for name, value in fields.items() if name not in AUDIO and value != ""}
    given = [name for name in AUDIO if name in fields]
    if len(given) != 1:
        raise RequestError("send the audio once: as file in a form, or as audio in JSON", param="file")
    checked = validated(DetectionFields, options)
    if checked.model not in MODELS:
        raise ModelNotFound(
            f"{checked.model} does not detect speech. Leave out model, or use {', '.join(MODELS)}.", param="model"
        )
    text = openai.source(fields[given[0]], given[0])
    source = Source("file", text, file=files[text]) if text in files else source_of(text)
    return SpeechDetection(engine, source, checked.rules)


@dataclass(frozen=True)
class SpeechDetection(Work):
    """The search for speech in one source. The outcome is the spans in seconds."""

    engine: Engine
    source: Source
    rules: vad.Rules
    size, model, task = 1, None, None

    @override
    @property
    def is_light(self) -> bool:
        return True

    @override
    def start(self, **listeners: Unpack[Listeners]) -> Future[Spans]:
        return self.engine.examine(self.source, lambda clip, cancelled: vad.speech(clip.samples, cancelled, self.rules))

    @override
    def finish(self, outcome: Spans) -> list[Json]:
        return [{"start": round(start * 1000), "end": round(end * 1000)} for start, end in outcome]
