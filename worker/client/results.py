"""What a client's calls give. Times are seconds; an embedding is float32 of shape (frames, width), or (width,) if
pooled.

`read` makes them of one result as the worker writes it (`worker.protocol.render`).
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from worker.errors import InternalError
from worker.types import Span

Json = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Answer:
    """`duration`: of the audio, where the answer tells. `warning`: the file was damaged, and this is of what could be
    read."""

    model: str | None = None
    duration: float | None = None
    warning: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Transcribed(Answer):
    """`words`, `segments`: with timestamps=True. `language`: what was heard, where the model tells it."""

    text: str
    language: str | None = None
    words: tuple[Span, ...] = ()
    segments: tuple[Span, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Captioned(Answer):
    """`thinking`: what the model said to itself before it, where it does."""

    caption: str
    thinking: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Embedded(Answer):
    """`frame_rate`: frames a second before pooling. `embedding_path`: where a batch wrote it."""

    embedding: np.ndarray
    frame_rate: float
    embedding_path: Path | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Analyzed(Captioned, Embedded):
    """A caption and an embedding, of one pass."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Replied(Answer):
    """A chat's next turn."""

    text: str
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored(Answer):
    """How like its reference clip a recording is: of 0 to 1 each."""

    sim_score: float
    audio_sim_score: float
    text_sim_score: float


A = TypeVar("A", bound=Answer)


def read(kind: type[A], one: Json) -> A:
    """The result of this kind. Raises InternalError for what no worker answers."""
    try:
        common = {"model": one.get("model"), "duration": one.get("duration_sec"), "warning": one.get("warning")}
        return kind(**common, **_FIELDS[kind](one))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InternalError(f"the answer is not one of Aviary's: {type(error).__name__}: {error}") from error


def save(path: Path, embedding: np.ndarray) -> None:
    """Writes the .npy so that the path never names half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.save(file, embedding, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _transcribed(one: Json) -> dict[str, Any]:
    spans = one.get("timestamps", {})
    return {
        "text": one["text"],
        "language": one.get("language"),
        **{
            f"{level}s": tuple(Span(s[level], s["start"], s["end"]) for s in spans.get(level, ()))
            for level in ("word", "segment")
        },
    }


def _captioned(one: Json) -> dict[str, Any]:
    return {"caption": one["caption"], "thinking": one.get("thinking")}


def _embedded(one: Json) -> dict[str, Any]:
    values = np.frombuffer(bytearray(base64.b64decode(one["embedding"])), "<f4").reshape(one["shape"])  # writable
    return {"embedding": values, "frame_rate": one["frame_rate"]}


def _replied(one: Json) -> dict[str, Any]:
    return {
        "text": one["text"],
        "finish_reason": one["finish_reason"],
        **{name: one["usage"][name] for name in ("prompt_tokens", "completion_tokens")},
    }


def _scored(one: Json) -> dict[str, Any]:
    return {name: float(one[name]) for name in ("sim_score", "audio_sim_score", "text_sim_score")}


_FIELDS: dict[type[Answer], Callable[[Json], dict[str, Any]]] = {
    Transcribed: _transcribed,
    Captioned: _captioned,
    Embedded: _embedded,
    Replied: _replied,
    Scored: _scored,
    Analyzed: lambda one: _captioned(one) | _embedded(one),
}
