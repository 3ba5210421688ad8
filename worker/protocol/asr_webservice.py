"""The shapes of whisper-asr-webservice: the query of a request → our payload, our result → its text or JSON.

    transcription(query, row, settings)    the payload, and the options that are ignored
    text(result, query)                    the answer in the format that the query names: txt, vtt, srt, tsv or json
    detection(row)                         refuses a model that does not detect the language
    language(result)                       {"detected_language", "language_code", "confidence"}

Every answer of `/asr` is plain text there, JSON included, and its file is offered under the name of the upload.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any, Literal

from worker import catalog
from worker.backends.common import vad
from worker.catalog import Model
from worker.config import Settings
from worker.errors import Unsupported
from worker.protocol.work import Inference

Json = dict[str, Any]
Output = Literal["txt", "vtt", "srt", "tsv", "json"]
AsrTask = Literal["transcribe", "translate"]

DETECTION_SEC = 30.0  # of the audio, from which the language is detected


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """The query of `/asr`. None and empty texts mean that an option is not set."""

    task: AsrTask = "transcribe"
    language: str | None = None
    initial_prompt: str | None = None
    vad_filter: bool = False
    word_timestamps: bool = False
    diarize: bool = False
    min_speakers: int | None = None
    max_speakers: int | None = None
    output: Output = "txt"
    model: str | None = None


def transcription(query: Query, row: Model | None, settings: Settings) -> tuple[Json, list[str]]:
    """Return the payload without its audio, and a warning for each option that is ignored.

    row: the model; None in a dry run whose model is not named, which can do everything.
    Raises Unsupported for an option that the model cannot honor, unless UNSUPPORTED_OPTIONS is `warn`.
    """
    refused = [] if row is None else _refusals(query, row, settings)
    if refused and settings.unsupported_options != "warn":
        raise refused[0]
    payload: Json = {"task": query.task, "format": _format(query.output)}
    payload |= {"model": query.model} if query.model else {}
    payload |= {"language": query.language} if query.language else {}
    if query.initial_prompt and not any(error.param == "initial_prompt" for error in refused):
        payload["prompt"] = query.initial_prompt
    if query.output == "json" and query.word_timestamps:
        payload["timestamps"] = ["word", "segment"]
        payload |= {"confidence": True} if row is None or "confidence" in row.options else {}
    elif query.output == "txt" and (row is None or row.timestamps):
        payload["timestamps"] = ["segment"]
    if query.diarize and not any(error.param == "diarize" for error in refused):
        payload["diarize"] = True
        payload |= {"max_speakers": query.max_speakers} if query.max_speakers else {}
    return payload, [f"An option is ignored, because {error.message}" for error in refused]


def _format(output: Output) -> str:
    return {"txt": "json", "json": "verbose_json"}.get(output, output)


def _refusals(query: Query, row: Model, settings: Settings) -> list[Unsupported]:
    refused: list[Unsupported] = []
    if query.initial_prompt and not _continues_text(row):
        refused.append(catalog.lacking(row, "follow initial_prompt", _continues_text, param="initial_prompt"))
    if query.vad_filter and not row.cuts_pauses:
        refused.append(
            catalog.lacking(row, "leave out silence (vad_filter)", lambda other: other.cuts_pauses, param="vad_filter")
        )
    elif query.vad_filter and not (settings.detect_speech and vad.is_available()):
        refused.append(
            Unsupported(
                "this server does not search audio for speech: leave out vad_filter, or set DETECT_SPEECH=1 and "
                "install onnxruntime and silero-vad",
                param="vad_filter",
            )
        )
    if query.diarize and not row.timestamps:
        refused.append(catalog.lacking(row, "name speakers (diarize)", lambda other: other.timestamps, param="diarize"))
    if query.diarize and query.min_speakers:
        message = "the number of speakers has no lower limit: leave out min_speakers"
        refused.append(Unsupported(message, param="min_speakers"))
    return refused


def _continues_text(row: Model) -> bool:
    """Return whether the prompt of the model is text before the transcript. Elsewhere, a prompt is an instruction."""
    return "condition_on_previous_text" in row.options


def text(result: Json, query: Query) -> str:
    """Return a result as the text of an answer."""
    if query.output == "txt":
        return "".join(f"{line.strip()}\n" for line in _lines(result))
    if query.output == "json":
        return json.dumps(_whole(result["formatted"], words=query.word_timestamps), ensure_ascii=False)
    return str(result["formatted"])


def _lines(result: Json) -> list[str]:
    """Return the texts of the segments, each after its speaker if it is known, or the whole text of a model without
    times; nothing without text."""
    segments = [
        f"{one['speaker']}: {one['segment']}" if "speaker" in one else one["segment"]
        for one in result.get("timestamps", {}).get("segment", [])
    ]
    return segments or ([result["text"]] if result["text"] else [])


def _whole(verbose: Json, *, words: bool) -> Json:
    """Return the JSON of `/asr` from verbose_json. words: whether each segment has its words, which else are null."""
    groups = _words(verbose["segments"], verbose["words"] if words else [])
    segments = [
        {name: value for name, value in segment.items() if name != "confidence"} | {"words": own}
        for segment, own in zip(verbose["segments"], groups, strict=True)
    ]
    return {"language": verbose["language"], "segments": segments, "text": verbose["text"]}


def _words(segments: list[Json], words: list[Json]) -> list[list[Json] | None]:
    """Return the words of each segment; None for all segments if there are no words."""
    if not words:
        return [None] * len(segments)
    found: list[list[Json]] = [[] for _ in segments]
    at = 0
    for word in words:
        middle = (word["start"] + word["end"]) / 2
        while at < len(segments) - 1 and middle >= segments[at]["end"]:
            at += 1
        known = {"speaker": word["speaker"]} if "speaker" in word else {}
        found[at].append(
            {"start": word["start"], "end": word["end"], "word": word["word"], "probability": word.get("confidence")}
            | known
        )
    return [*found]


def detection(row: Model) -> None:
    """Return if the model detects the spoken language. Raises Unsupported, with the models that do."""
    if not row.detects_language:
        raise catalog.lacking(row, "detect the spoken language", lambda other: other.detects_language, param="model")


def first_seconds(work: Inference) -> Inference:
    """Return the work on the first DETECTION_SEC of its audio."""
    items = tuple(replace(item, segment=(0.0, DETECTION_SEC)) for item in work.request.items)
    return replace(work, request=replace(work.request, items=items))


def language(result: Json) -> Json:
    """Return the language of a result: null if unknown. No model of the catalog reports how sure it is: also null."""
    code = result["language"]
    return {
        "detected_language": None if code is None else catalog.language_name(code),
        "language_code": code,
        "confidence": None,
    }
