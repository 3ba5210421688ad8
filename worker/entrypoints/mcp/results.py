"""A result of a request → what a tool returns: a text for the model, and the structured content.

The TypedDicts are the output schemas of the tools. What is unknown is null.
"""

from __future__ import annotations

from typing import Any

from typing_extensions import NotRequired, TypedDict

Json = dict[str, Any]


class TimedText(TypedDict):
    """A word or a segment, with its times in seconds."""

    text: str
    start: float
    end: float


class Transcription(TypedDict):
    """What is said. `language` is an ISO 639 code."""

    text: str
    language: str | None
    duration_sec: float | None
    model: str | None
    words: NotRequired[list[TimedText]]
    segments: NotRequired[list[TimedText]]
    warning: NotRequired[str]


class Description(TypedDict):
    """A description of the audio."""

    caption: str
    duration_sec: float | None
    model: str | None
    warning: NotRequired[str]


class Reply(TypedDict):
    """The answer to a question about the audio. `finish_reason` is `length` if it was cut off."""

    text: str
    finish_reason: str | None
    model: str | None
    warning: NotRequired[str]


class JobState(TypedDict):
    """How far a job has come: `pending`, `processing`, `completed`, `failed` or `cancelled`."""

    job_id: str
    status: str
    audio_sec_done: float | None
    audio_sec_total: float | None
    error: str | None


class JobAccepted(TypedDict):
    """The id of a job."""

    job_id: str


class JobResult(TypedDict):
    """The result of a completed job: that of the tool of the same task."""

    job_id: str
    result: Json


def transcription(result: Json) -> tuple[str, Json]:
    """Return the text and the structured content of a transcript."""
    shape = {"text": result["text"], "language": result.get("language")} | _common(result)
    for level in ("word", "segment"):
        if spans := (result.get("timestamps") or {}).get(level):
            shape[f"{level}s"] = [{"text": one[level], "start": one["start"], "end": one["end"]} for one in spans]
    return result["text"], shape


def description(result: Json) -> tuple[str, Json]:
    """Return the text and the structured content of a caption."""
    return result["caption"], {"caption": result["caption"]} | _common(result)


def reply(result: Json) -> tuple[str, Json]:
    """Return the text and the structured content of a chat's reply."""
    shape = {"text": result["text"], "finish_reason": result.get("finish_reason")} | _common(result)
    del shape["duration_sec"]
    return result["text"], shape


def of_any(result: Json) -> tuple[str, Json]:
    """Return the text and the structured content of a result of any task."""
    if "caption" in result:
        return description(result)
    return reply(result) if "usage" in result else transcription(result)


def _common(result: Json) -> Json:
    shape = {"duration_sec": result.get("duration_sec"), "model": result.get("model")}
    return shape | ({"warning": result["warning"]} if result.get("warning") else {})
