"""The options of a request as keyword arguments, for editors and type checkers.

`worker.protocol.request.OptionFields` is the list of options. A test compares these classes with it.
"""

from __future__ import annotations

from typing import Literal, TypedDict

from worker.types import Level


class GenerationOptions(TypedDict, total=False):
    """Options of models that generate text token by token."""

    max_new_tokens: int
    """The most tokens to generate."""
    temperature: float
    """The temperature of sampling. Unset or 0 always generates the same text."""
    top_p: float
    """Sampling takes the most likely tokens up to this total probability."""


class SpeechOptions(GenerationOptions, total=False):
    """Options of `transcribe` and `translate`."""

    timestamps: bool | list[Level]
    """Whether the transcript has the times of words and segments; or a list of the levels that it has."""
    language: str
    """Spoken language: an ISO 639-1 code or an English name. "auto": the model detects it, or takes its default."""
    target_language: str
    """Language of the text: an ISO 639-1 code or an English name."""
    prompt: str
    """An instruction or words to expect, depending on the model."""
    punctuation: bool
    """Whether the text has punctuation and capital letters."""
    confidence: bool
    """Whether the transcript says how sure the model is of its words and segments."""
    condition_on_previous_text: bool
    """Whether the text of each 30 s is the prompt of the next 30 s, which then wait for it."""
    long_audio: Literal["whole", "windows"]
    """Whether a model that accepts any length transcribes long audio at once or in windows of 30 s."""


class CaptionOptions(GenerationOptions, total=False):
    """Options of `caption`."""

    prompt: str
    """The instruction, in place of the style's."""
    style: Literal["detailed", "brief", "technical"]
    """The style of the caption."""


class EmbedOptions(TypedDict, total=False):
    """Options of `embed`."""

    pooling: Literal["none", "mean"]
    """Whether the embedding is one vector per frame, or their mean."""


class ChatOptions(GenerationOptions, total=False):
    """Options of `chat`, besides its messages."""


class AnalyzeOptions(CaptionOptions, EmbedOptions, total=False):
    """Options of `analyze`: those of `caption` and `embed`."""
