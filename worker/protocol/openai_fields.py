"""The fields of OpenAI's routes that are no options of Aviary: a field that changes nothing is left out.

    meaningful(body)       the body without empty values, ignored fields, and values that are what happens anyway
    speech(fields)         the same for transcriptions and translations, whose other fields get the payload's names
    NOT_SUPPORTED          what `speech` may leave over: fields that no model here can honor

A request for something that this server cannot do is refused elsewhere, by `worker.protocol.request`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from pydantic_core import from_json

from worker.errors import RequestError

Json = dict[str, Any]

# What these fields mean to OpenAI concerns its accounts, its storage and its caches, and never the answer.
IGNORED = (
    "user",
    "store",
    "metadata",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
)
# Fields that are accepted with these values only, because the answer is then the one without the field.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "response_format": ({"type": "text"},),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
}
# OpenAI's defaults of `chunking_strategy` (API reference, "Create transcription").
VAD_DEFAULTS = {"threshold": 0.5, "prefix_padding_ms": 300, "silence_duration_ms": 200}
AUDIO = ("audio", "file", "input_audio")  # the fields that may carry the audio; input_audio as in a chat
_CHUNKING = "chunking_strategy"
NOT_SUPPORTED = (*(f"{_CHUNKING}.{name}" for name in VAD_DEFAULTS),)


def meaningful(body: Mapping[str, Any]) -> Json:
    """Return the fields of a body that may change the answer."""
    return {name: value for name, value in body.items() if name in AUDIO or not _changes_nothing(name, value)}


def _changes_nothing(name: str, value: Any) -> bool:
    return value is None or value == "" or name in IGNORED or value in NEUTRAL.get(name, ())


def speech(fields: Json) -> Json:
    """Return the meaningful fields of a transcription. Raises RequestError.

    - A `temperature` of 0 is left out: with it, OpenAI's model may choose a higher one, as Whisper does here if unset.
    - `chunking_strategy` is left out but for parameters that differ from OpenAI's defaults.
    """
    fields = dict(fields)
    if _number(fields.get("temperature")) == 0:
        del fields["temperature"]
    if (strategy := fields.pop(_CHUNKING, None)) is not None:
        fields |= _chunking(strategy)
    for name in ("languages", "keywords", "known_speaker_names", "known_speaker_references"):
        if values := _texts(name, fields.pop(name, [])):
            fields[name] = values
    return fields


def _texts(name: str, value: Any) -> list[str]:
    """Return a field's texts that are not empty. Raises RequestError."""
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in values):
        raise RequestError(f"{name} must be a list of texts", param=name)
    return [text for text in values if text.strip()]


def _chunking(strategy: Any) -> Json:
    """Return the parameters of a strategy that differ from the defaults. Raises RequestError.

    In a form, the strategy is an object of texts, or a text of JSON.
    """
    if isinstance(strategy, str):
        with contextlib.suppress(ValueError):
            strategy = from_json(strategy)
    if strategy == "auto":
        return {}
    known = isinstance(strategy, Mapping) and strategy.get("type") == "server_vad"
    if not known or strategy.keys() - {"type", *VAD_DEFAULTS}:
        raise RequestError(
            f"{_CHUNKING} must be auto, or an object whose type is server_vad, with {', '.join(VAD_DEFAULTS)}",
            param=_CHUNKING,
        )
    return {
        f"{_CHUNKING}.{name}": strategy[name]
        for name, default in VAD_DEFAULTS.items()
        if name in strategy and _number(strategy[name]) != default
    }


def _number(value: Any) -> float | None:
    """Return a number, which forms write as text, or None if the value is none."""
    try:
        return float(value)
    except (OverflowError, TypeError, ValueError):
        return None
