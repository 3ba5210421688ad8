"""The typed results of a client's calls. Times are seconds.

`read` builds them from one result in the shape of `worker.protocol.render`.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from worker.display import Displayed
from worker.errors import InternalError
from worker.types import FinishReason, Span, SpeakerTurn

Json = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class CallResult(Displayed):
    """The fields of every result.

    `model` is the id of the model, and `duration` the seconds of audio, if the response reports them. `warning` says
    what may be wrong: damage to the file, of which the result covers the part that could be read, or a cut text.
    """

    model: str | None = None
    duration: float | None = None
    warning: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Transcribed(CallResult):
    """A transcript. `words` and `segments` are filled with timestamps=True.

    `language` is the code of the spoken language, if the model reports it. `finish_reason` is "length" if a limit on
    new tokens cut off the text, and None if the model does not generate token by token. `confidence` and the
    confidences of the spans, from 0 to 1, are filled with confidence=True; the speakers of words and segments with
    diarize=True; their channels with channels="split".
    """

    text: str
    language: str | None = None
    words: tuple[Span, ...] = ()
    segments: tuple[Span, ...] = ()
    confidence: float | None = None
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Captioned(CallResult):
    """A description of the audio. `thinking` is the model's reasoning, if it writes any before the caption.

    `finish_reason` is "length" if a limit on new tokens cut off the text, and None if the response does not report it.
    """

    caption: str
    thinking: str | None = None
    finish_reason: FinishReason | None = None

    @property
    def text(self) -> str:
        """The caption, by the name that every text has."""
        return self.caption


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Embedded(CallResult):
    """Features of the audio encoder: float32 of shape (frames, width), or (width,) if pooled.

    `frame_rate` is the number of frames a second before pooling. `embedding_path` is the .npy file that a batch wrote.
    """

    embedding: np.ndarray
    frame_rate: float
    embedding_path: Path | None = None


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Analyzed(Captioned, Embedded):
    """A caption and an embedding, from one pass over the audio."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Diarized(CallResult):
    """Who speaks when: the turns of the speakers, by their start."""

    turns: tuple[SpeakerTurn, ...]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Replied(CallResult):
    """The next turn of a chat. `finish_reason` is "length" if the reply reached its token limit."""

    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Scored(CallResult):
    """The similarity of a recording to its reference clip: audio from -1 to 1, text from 0 to 1, and their mean."""

    sim_score: float
    audio_sim_score: float
    text_sim_score: float


R = TypeVar("R", bound=CallResult)


def read(kind: type[R], result: Json) -> R:
    """Return a result as `kind`. Raises: InternalError if a field is missing or malformed."""
    try:
        common = {
            "model": result.get("model"),
            "duration": result.get("duration_sec"),
            "warning": result.get("warning"),
        }
        return kind(**common, **_FIELDS[kind](result))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InternalError(f"the response is not one of Aviary's: {type(error).__name__}: {error}") from error


def save(path: Path, embedding: np.ndarray) -> None:
    """Write an embedding as .npy; the file appears whole or not at all. Raises: OSError if it cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.save(file, embedding, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _transcript(result: Json) -> dict[str, Any]:
    spans = result.get("timestamps", {})
    return {
        "text": result["text"],
        "language": result.get("language"),
        "confidence": result.get("confidence"),
        "finish_reason": result.get("finish_reason"),
        **{f"{level}s": tuple(_span(level, span) for span in spans.get(level, ())) for level in ("word", "segment")},
    }


def _span(level: str, span: Json) -> Span:
    return Span(
        span[level],
        span["start"],
        span["end"],
        span.get("confidence"),
        speaker=span.get("speaker"),
        channel=span.get("channel"),
    )


def _caption(result: Json) -> dict[str, Any]:
    return {
        "caption": result["caption"],
        "thinking": result.get("thinking"),
        "finish_reason": result.get("finish_reason"),
    }


def _embedding(result: Json) -> dict[str, Any]:
    data = bytearray(base64.b64decode(result["embedding"]))  # a bytearray makes the array writable
    return {"embedding": np.frombuffer(data, "<f4").reshape(result["shape"]), "frame_rate": result["frame_rate"]}


def _reply(result: Json) -> dict[str, Any]:
    return {
        "text": result["text"],
        "finish_reason": result["finish_reason"],
        **{name: result["usage"][name] for name in ("prompt_tokens", "completion_tokens")},
    }


def _turns(result: Json) -> dict[str, Any]:
    return {"turns": tuple(SpeakerTurn(turn["start"], turn["end"], turn["speaker"]) for turn in result["turns"])}


def _score(result: Json) -> dict[str, Any]:
    return {name: float(result[name]) for name in ("sim_score", "audio_sim_score", "text_sim_score")}


_FIELDS: dict[type[CallResult], Callable[[Json], dict[str, Any]]] = {
    Transcribed: _transcript,
    Captioned: _caption,
    Embedded: _embedding,
    Diarized: _turns,
    Replied: _reply,
    Scored: _score,
    Analyzed: lambda result: _caption(result) | _embedding(result),
}
