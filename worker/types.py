"""What flows through the worker, from a payload's source to a response. Plain frozen records, no behaviour.

    Source ── fetch, decode ──▶ Clip ──▶ Piece ──▶ Batch ── backend ──▶ Output ──▶ Result or Failure ──▶ Response

Times are seconds from the start of the input. Audio is float32, mono, 16 kHz, one-dimensional, nominally in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, BinaryIO, Literal, TypedDict

if TYPE_CHECKING:
    import numpy as np

    from worker.errors import AviaryError

SAMPLE_RATE = 16_000

Task = Literal["transcribe", "translate", "caption", "embed", "chat", "analyze"]
Level = Literal["word", "segment", "char"]


@dataclass(frozen=True, slots=True)
class S3Access:
    """Where a bucket is and how to open it. `trusted`: given by the operator, so a private endpoint is meant."""

    endpoint: str | None = None
    key: str | None = None
    secret: str | None = field(default=None, repr=False)
    bucket: str | None = None
    trusted: bool = False


@dataclass(frozen=True, slots=True)
class Source:
    """Where audio is: an http(s) URL, an s3:// URL, a path, a data: URI, or a file that a door holds open (it may
    close it once the request is done). `trusted`: any path may be read."""

    kind: Literal["url", "s3", "path", "data", "file"]
    location: str = field(repr=False)
    s3: S3Access | None = None
    trusted: bool = False
    file: BinaryIO | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat. `audio`: the turn that the input's audio belongs to; one at most, else the first of the
    user's."""

    role: Literal["system", "user", "assistant"]
    content: str
    audio: bool = False


@dataclass(frozen=True, slots=True)
class Options:
    """What is asked of a model. Two pieces may share a batch if their `kind` is equal."""

    model: str
    task: Task = "transcribe"
    timestamps: bool = False
    language: str | None = None
    target_language: str | None = None
    prompt: str | None = None
    style: Literal["detailed", "brief", "technical"] | None = None
    messages: tuple[Message, ...] = ()
    max_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    punctuation: bool = True
    pooling: Literal["none", "mean"] = "none"

    @property
    def kind(self) -> Options:
        """The options without what each piece of a batch may have of its own: words said to the model."""
        return (
            replace(self, prompt=None, style=None, messages=()) if self.prompt or self.style or self.messages else self
        )


# The options of a request as keyword arguments, for editors and type checkers. A test compares them with the list of
# options in `worker.protocol.request`.


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
    """ISO 639-1 code of the spoken language."""
    target_language: str
    """ISO 639-1 code of the language of the text."""
    prompt: str
    """An instruction or words to expect, depending on the model."""
    punctuation: bool
    """Whether the text has punctuation and capital letters."""


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


@dataclass(frozen=True, slots=True)
class View:
    """How one result is shown; it changes nothing about the work."""

    timestamps: tuple[Level, ...] = ()
    format: Literal["json", "verbose_json", "text", "srt", "vtt"] = "json"
    encoding: Literal["float", "base64", "s3"] = "float"


@dataclass(frozen=True, slots=True)
class Item:
    """One input of a request. `index` is its place in the request, `id` the caller's own name for it."""

    index: int
    source: Source
    options: Options
    view: View = View()
    id: str | int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Failure:
    """An input that got no result, and why."""

    index: int
    error: AviaryError
    id: str | int | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """A validated request. `model` is the name the answer reports; `rejected` are inputs that were never any good.
    `background`: nobody waits for it at this moment, so requests that somebody waits for go first."""

    model: str
    items: tuple[Item, ...]
    rejected: tuple[Failure, ...] = ()
    background: bool = False

    @property
    def size(self) -> int:
        return len(self.items) + len(self.rejected)


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """Decoded audio: float32 of shape (samples,). `warning`: what the decoder complained of, where it went on."""

    samples: np.ndarray
    warning: str | None = None

    @property
    def duration_sec(self) -> float:
        return len(self.samples) / SAMPLE_RATE


def _never() -> bool:
    return False


def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """One clip, or a part of one, to be run with one set of options.

    `order`: the lower is served first; those of the background share no batch with the others. `cancelled` is asked
    while a text is generated. `on_text` is told each new bit of a generated text; `begins` is called whenever that is
    generated from its beginning, which is more than once where a batch fails.
    """

    clip: Clip
    options: Options
    order: float = 0
    background: bool = False
    cancelled: Callable[[], bool] = _never
    on_text: Callable[[str], None] | None = None
    begins: Callable[[], None] = _nothing

    @property
    def duration_sec(self) -> float:
        return self.clip.duration_sec


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Pieces that run together, all of one kind. `long`: exactly one piece, run alone."""

    pieces: tuple[Piece, ...]
    long: bool = False

    @property
    def options(self) -> Options:
        """What they have in common."""
        return self.pieces[0].options.kind

    @property
    def padded_sec(self) -> float:
        return len(self.pieces) * max(piece.duration_sec for piece in self.pieces)


@dataclass(frozen=True, slots=True)
class Span:
    """A char, word or segment with its start and end in seconds."""

    text: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Transcript:
    """Text, and where the model gives them the spans of its chars, words and segments. `tokens_generated`: of a model
    that writes token by token, without its prompt."""

    text: str
    words: tuple[Span, ...] = ()
    segments: tuple[Span, ...] = ()
    chars: tuple[Span, ...] = ()
    language: str | None = None
    tokens_generated: int | None = None


@dataclass(frozen=True, slots=True)
class Caption:
    """`thinking`: what the model said to itself before it, where it does."""

    text: str
    tokens_generated: int | None = None
    thinking: str | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    text: str
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int
    thinking: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """float32 of shape (frames, width), or (width,) when pooled; `frame_rate` in frames a second before pooling."""

    values: np.ndarray
    frame_rate: float
    pooling: Literal["none", "mean"]


@dataclass(frozen=True, slots=True, eq=False)
class Analysis:
    caption: Caption
    embedding: Embedding


Output = Transcript | Caption | Reply | Embedding | Analysis


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    item: Item
    duration_sec: float
    output: Output
    warning: str | None = None

    @property
    def index(self) -> int:
        return self.item.index


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds. The stages overlap, so that fetch, decode, queue and model are each the sum over the inputs' own waits
    (a batch's model time is shared out by duration) and may exceed total, which is the wall clock of the request."""

    fetch_sec: float = 0.0
    decode_sec: float = 0.0
    queue_sec: float = 0.0
    model_sec: float = 0.0
    total_sec: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Response:
    """What a request came to: one Result or Failure per item, in the request's order."""

    model: str
    results: tuple[Result | Failure, ...]
    timing: Timing
