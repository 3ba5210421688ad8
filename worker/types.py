"""What flows through the worker, from the source of a payload to a response. Plain frozen records, without behavior.

    Source ── fetch, decode ──▶ Clip ──▶ Piece ──▶ Batch ── backend ──▶ Output ──▶ Result or Failure ──▶ Response

Times are seconds from the start of the input. Audio is float32, mono, 16 kHz, one-dimensional, nominally in [-1, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, BinaryIO, Literal, NamedTuple, TypedDict

from worker.display import Displayed

if TYPE_CHECKING:
    import numpy as np

    from worker.errors import AviaryError

SAMPLE_RATE = 16_000

Task = Literal["transcribe", "translate", "caption", "embed", "chat", "analyze", "diarize"]
Level = Literal["word", "segment", "char"]
Format = Literal[
    "json", "verbose_json", "diarized_json", "text", "srt", "vtt", "lrc", "tsv", "ctm", "stm", "rttm", "textgrid"
]


@dataclass(frozen=True, slots=True)
class S3Access:
    """Where a bucket is, and the credentials to open it."""

    endpoint: str | None = None
    """The URL of the S3 service. None: AWS."""
    key: str | None = None
    """The access key id."""
    secret: str | None = field(default=None, repr=False)
    """The secret access key."""
    bucket: str | None = None
    """The bucket that results are stored in."""
    trusted: bool = False
    """Whether the operator gave the endpoint, so that it may have a private address."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where audio is. Equal sources of a request are read once."""

    kind: Literal["url", "s3", "path", "data", "file", "memory"]
    """An http(s) URL, an s3:// URL, a path or file:// URL, a data: URI, an open file, or audio in memory."""
    location: str = field(repr=False)
    """The URL, path or URI. For an open file and for memory: a name for people."""
    s3: S3Access | None = None
    """The request's own access to S3."""
    trusted: bool = False
    """Whether a path outside ALLOWED_PATHS may be read."""
    file: BinaryIO | None = field(default=None, repr=False)
    """The open file of an entry point, which may close it when the request is done."""
    write: Callable[[BinaryIO], None] | None = field(default=None, repr=False)
    """Writes audio in memory into an empty file. It is called when the source is read. Raises InputError."""


Part = tuple[float, float | None]
"""Where a part of audio starts, and how long it is, in seconds. None: up to the end."""
FinishReason = Literal["stop", "length"]
"""Why a generated text ends: the model ended it, or the limit on new tokens did."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat."""

    role: Literal["system", "user", "assistant"]
    """Who speaks."""
    content: str
    """The text of the turn."""
    audio: bool = False
    """Whether the input's audio belongs to this turn: one turn at most. If no turn has it, the user's first does."""


@dataclass(frozen=True, slots=True)
class Options:
    """What a model must do. Two pieces may share a batch if their `kind` is equal."""

    model: str
    """The id of the model."""
    task: Task = "transcribe"
    """The kind of output."""
    timestamps: bool = False
    """Whether a transcript has the times of its words and segments, and of its characters if the model gives them."""
    language: str | None = None
    """ISO 639-1 code of the spoken language. None: the model detects it, or takes its default."""
    languages: tuple[str, ...] = ()
    """ISO 639-1 codes of the languages among which the model detects the spoken one. Empty: all that it knows."""
    target_language: str | None = None
    """ISO 639-1 code of the language of the text. None: the spoken language; for `translate`: English."""
    prompt: str | None = None
    """An instruction or words to expect, depending on the model."""
    keywords: tuple[str, ...] = ()
    """Words and phrases that a transcript is likely to contain, such as names."""
    keyword_weight: float | None = None
    """How strongly the model prefers the keywords. None: the default."""
    style: Literal["detailed", "brief", "technical"] | None = None
    """The style of a caption."""
    messages: tuple[Message, ...] = ()
    """The turns of a chat, of which the last is the user's."""
    max_new_tokens: int | None = None
    """The most tokens to generate. None: the model's default."""
    temperature: float | None = None
    """The temperature of sampling. None or 0: the most likely token, always the same text."""
    top_p: float | None = None
    """Sampling takes the most likely tokens up to this total probability. None: all tokens."""
    punctuation: bool = True
    """Whether a transcript has punctuation and capital letters, if the model can leave them out."""
    confidence: bool = False
    """Whether a transcript says how sure the model is of its words, segments and tokens."""
    condition_on_previous_text: bool = False
    """Whether the text of a window is the prompt of the next one, which then waits for it."""
    long_audio: Literal["whole", "windows"] | None = None
    """How a model that accepts any length transcribes long audio: at once or in windows. None: as LONG_AUDIO says."""
    pooling: Literal["none", "mean"] = "none"
    """Whether an embedding is the mean over all frames."""
    channels: Literal["mix", "split"] = "mix"
    """Whether the channels are mixed, or each is transcribed separately."""
    diarize: bool = False
    """Whether the words and segments of a transcript have speakers, which the engine adds. No backend sees it."""
    num_speakers: int | None = None
    """The number of speakers. None: the diarizer counts them."""
    max_speakers: int | None = None
    """The most speakers that the diarizer may find. None: any number."""
    known_speaker_names: tuple[str, ...] = ()
    """The names of speakers whose voices are known, which the engine gives to their turns. No backend sees them."""
    known_speaker_references: tuple[str, ...] = field(default=(), repr=False)
    """A clip of the voice of each known speaker, as a data: URI. No backend sees them."""

    @property
    def kind(self) -> Options:
        """The options without the texts (prompt, keywords, style, messages), in which a batch's pieces may differ."""
        if self.prompt or self.style or self.messages or self.keywords or self.keyword_weight is not None:
            return replace(self, prompt=None, style=None, messages=(), keywords=(), keyword_weight=None)
        return self


@dataclass(frozen=True, slots=True)
class View:
    """How one result is rendered. It does not affect what the model does."""

    timestamps: tuple[Level, ...] = ()
    """The levels of spans to render."""
    format: Format = "json"
    """The format of a transcript."""
    encoding: Literal["float", "base64", "s3"] = "float"
    """How the numbers of an embedding are rendered."""
    confidence: bool = False
    """Whether to render how sure the model is of a transcript, its words and its segments."""
    include: tuple[Literal["logprobs"], ...] = ()
    """What else to render of a transcript: the log probabilities of its tokens."""
    max_line_width: int | None = None
    """The most characters of a line of subtitles. None: two lines of some 42 characters, or 42 if a limit is set."""
    max_line_count: int | None = None
    """The most lines of a cue of subtitles. None: 2, or 1 if `max_words_per_line` is set."""
    max_words_per_line: int | None = None
    """The most words of a line of subtitles. None: any number."""
    max_chars_per_sec: float | None = None
    """The reading speed for which a cue of subtitles is shown longer than it is spoken. None: as it is spoken."""


@dataclass(frozen=True, slots=True)
class Item:
    """One input of a request."""

    index: int
    """The input's place in the request, from 0."""
    source: Source
    """Where its audio is."""
    options: Options
    """What to do with it."""
    view: View = View()
    """How to render its result."""
    id: str | int | None = None
    """The caller's own name for the input."""
    segment: Part | None = None
    """The part of the audio to run. None: all of it."""
    warning: str | None = None
    """The options that the model cannot honor, if they are ignored instead of refused."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Failure(Displayed):
    """An input without a result."""

    index: int
    """The input's place in the request, from 0."""
    error: AviaryError
    """Why there is no result."""
    id: str | int | None = None
    """The caller's own name for the input."""


@dataclass(frozen=True, slots=True)
class Request:
    """A validated request."""

    model: str
    """The id of the model, as the response reports it."""
    items: tuple[Item, ...]
    """The inputs to run."""
    rejected: tuple[Failure, ...] = ()
    """The inputs that failed validation."""
    background: bool = False
    """Whether no client waits for the response at present. Interactive requests are then served first."""
    owner: str | None = None
    """Names the API key that sent the request, or is None if none was required. Owners share the devices equally."""

    @property
    def size(self) -> int:
        """The number of inputs."""
        return len(self.items) + len(self.rejected)


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """Decoded audio."""

    samples: np.ndarray
    """float32 of shape (samples,), 16 kHz."""
    warning: str | None = None
    """An error after which the decoder could continue."""

    @property
    def duration_sec(self) -> float:
        """The length of the audio."""
        return len(self.samples) / SAMPLE_RATE


class Turn(NamedTuple):
    """Whom a piece is for. Owners take turns, and so do the requests of an owner."""

    owner: str | None = None
    """The owner of the request, as in `Request`."""
    request: int = 0
    """A number that no other request in this process has."""


_TURN = Turn()


def _never() -> bool:
    return False


def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True, eq=False)
class Live:
    """The place of a piece in a stream of live audio, whose pieces run one after another."""

    state: object | None
    """`Transcript.live_state` of the piece before it. None for the first piece of the stream."""
    ends: bool
    """Whether the stream ends with this piece."""


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """One clip, or one window of a clip, to be run with one set of options."""

    clip: Clip
    """The audio of the piece alone."""
    options: Options
    """What to do with it."""
    order: float = 0
    """Of the pieces of a request, the one of the lowest order is served first."""
    background: bool = False
    """Whether the piece is of a background request. Background and interactive pieces share no batch."""
    cancelled: Callable[[], bool] = _never
    """Whether the request was canceled. Backends call it while they generate text."""
    on_text: Callable[[str], None] | None = None
    """Called with each new part of a generated text."""
    begins: Callable[[], None] = _nothing
    """Called whenever the text is generated from its beginning: again, for example, after a batch has failed."""
    turn: Turn = _TURN
    """Whom the piece is for."""
    speech: tuple[tuple[float, float], ...] | None = None
    """The spans (start, end) in seconds that contain speech, in order. None if speech was not searched."""
    live: Live | None = None
    """The place of the piece in a stream of live audio. None: the piece is a whole of its own."""

    @property
    def duration_sec(self) -> float:
        """The length of the audio."""
        return self.clip.duration_sec


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Pieces that run together. Their options are of one kind."""

    pieces: tuple[Piece, ...]
    """At least one piece."""
    long: bool = False
    """Whether the batch is one long piece, which runs alone."""

    @property
    def options(self) -> Options:
        """The options that all pieces have in common."""
        return self.pieces[0].options.kind

    @property
    def padded_sec(self) -> float:
        """The length of the audio when all pieces are padded to the longest."""
        return len(self.pieces) * max(piece.duration_sec for piece in self.pieces)


@dataclass(frozen=True, slots=True)
class Span:
    """A character, word or segment, and when it is spoken."""

    text: str
    """The text of the span."""
    start: float
    """Seconds from the start of the input."""
    end: float
    """Seconds from the start of the input."""
    confidence: float | None = None
    """How sure the model is of the text, from 0 to 1. None: the model does not say, or the request does not ask."""
    speaker: str | None = field(default=None, kw_only=True)
    """The name of the speaker, such as "Speaker 1". None: speakers were not requested."""
    channel: int | None = field(default=None, kw_only=True)
    """The channel of the audio, from 0. None: the channels were mixed."""


@dataclass(frozen=True, slots=True)
class Segment(Span):
    """A segment, with what the decoder of a model such as Whisper reports of it. None: unknown."""

    tokens: tuple[int, ...] | None = None
    """The ids of the segment's tokens."""
    temperature: float | None = None
    """The temperature that the text was sampled at. 0: the most likely tokens."""
    avg_logprob: float | None = None
    """The mean natural logarithm of the probabilities of the tokens."""
    compression_ratio: float | None = None
    """The length of the text in UTF-8, divided by its length after zlib's compression. Loops have high ratios."""
    no_speech_prob: float | None = None
    """The probability that the audio has no speech."""
    language: str | None = None
    """ISO 639-1 code of the language of the segment."""


@dataclass(frozen=True, slots=True)
class Token:
    """A token of a transcript, and how likely the model found it."""

    text: str
    """The token's part of the text, with the space before it."""
    logprob: float
    """The natural logarithm of the token's probability."""


@dataclass(frozen=True, slots=True)
class Transcript:
    """What is said in the audio, in its own or in another language."""

    text: str
    """The whole text."""
    words: tuple[Span, ...] = ()
    """The words with their times, if requested and known to the model."""
    segments: tuple[Span, ...] = ()
    """Sentences or phrases with their times, if requested and known to the model."""
    chars: tuple[Span, ...] = ()
    """The characters with their times, if requested and known to the model."""
    language: str | None = None
    """ISO 639-1 code of the language of the text, if known."""
    tokens_generated: int | None = None
    """Tokens that a model generated one by one, without its prompt. None: another kind of model."""
    tokens: tuple[Token, ...] = ()
    """The tokens of the text and their probabilities, if `Options.confidence` is set and the model knows them."""
    temperature: float | None = None
    """The temperature that the text was sampled at, if the model chooses one by itself. 0: the most likely tokens."""
    warning: str | None = None
    """What may be wrong with the text, such as speech that has no words, with its times."""
    finish_reason: FinishReason | None = None
    """Why the generation of the text ended; "length" if that of any window was cut off. None: another kind of model."""
    live_state: object | None = field(default=None, repr=False, compare=False)
    """What the backend resumes from at the next piece of a stream. The text is then that of the whole stream so far."""

    @property
    def confidence(self) -> float | None:
        """How sure the model is of the whole text: the mean of the tokens' probabilities. None: they are unknown."""
        if not self.tokens:
            return None
        return sum(math.exp(token.logprob) for token in self.tokens) / len(self.tokens)


@dataclass(frozen=True, slots=True)
class Caption:
    """A description of the audio."""

    text: str
    """The description."""
    tokens_generated: int | None = None
    """Tokens that the model generated, without its prompt."""
    thinking: str | None = None
    """The reasoning that the model wrote before the description, if it did."""
    finish_reason: FinishReason | None = None
    """Why the generation of the text ended, if known."""
    warning: str | None = None
    """What may be wrong with the text: the limit on new tokens cut it off."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The model's turn in a chat about the audio."""

    text: str
    """The reply."""
    finish_reason: FinishReason
    """Why the reply ends: the model ended it, or the limit on new tokens did."""
    prompt_tokens: int
    """Tokens of the conversation, those of the audio included."""
    completion_tokens: int
    """Tokens that the model generated."""
    thinking: str | None = None
    """The reasoning that the model wrote before the reply, if it did."""
    warning: str | None = None
    """What may be wrong with the text: the limit on new tokens cut it off."""


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """Vectors that represent the audio."""

    values: np.ndarray
    """float32 of shape (frames, width), or (width,) if pooled."""
    frame_rate: float
    """Frames a second, before pooling."""
    pooling: Literal["none", "mean"]
    """Whether the values are the mean over all frames."""


@dataclass(frozen=True, slots=True, eq=False)
class Analysis:
    """A caption and an embedding of the same audio, computed in one pass."""

    caption: Caption
    """The description of the audio."""
    embedding: Embedding
    """The vectors of the audio."""


@dataclass(frozen=True, slots=True)
class SpeakerTurn:
    """A stretch of audio in which one speaker talks. Turns of different speakers may overlap."""

    start: float
    """Seconds from the start of the input."""
    end: float
    """Seconds from the start of the input."""
    speaker: str
    """The name of the speaker: a known name, or "Speaker 1", "Speaker 2", …, in the order in which they first talk."""


class Voice(NamedTuple):
    """What a speaker sounds like."""

    speaker: str
    """The name of the speaker in the turns."""
    vector: np.ndarray
    """The direction of the embedding: float32 of shape (width,) and length 1."""


@dataclass(frozen=True, slots=True)
class Diarization:
    """Who speaks when."""

    turns: tuple[SpeakerTurn, ...]
    """The turns, by their start."""
    voices: tuple[Voice, ...] = field(default=(), compare=False, repr=False)
    """The voices of speakers, for the engine, if the diarizer embeds them."""


Output = Transcript | Caption | Reply | Embedding | Analysis | Diarization


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """An input and its output."""

    item: Item
    """The input."""
    duration_sec: float
    """The length of the audio."""
    output: Output
    """What the model made of it."""
    warning: str | None = None
    """What may be wrong: ignored options, damaged audio, speech without words, or a text that the limit on new tokens
    cut off."""
    channels: int = 1
    """The channels of the audio, if they were split."""

    @property
    def audio_sec(self) -> float:
        """Seconds of audio, which count all channels."""
        return round(self.duration_sec * self.channels, 3)

    @property
    def index(self) -> int:
        """The input's place in the request, from 0."""
        return self.item.index


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds that a request took.

    The stages overlap. `fetch_sec`, `decode_sec`, `queue_sec` and `model_sec` are sums over the inputs, and may exceed
    `total_sec`.
    """

    fetch_sec: float = 0.0
    """Opening or downloading sources."""
    decode_sec: float = 0.0
    """Decoding audio."""
    queue_sec: float = 0.0
    """Waiting for a device, after decoding."""
    model_sec: float = 0.0
    """Running models. The seconds of a batch are shared out to its pieces by duration."""
    total_sec: float = 0.0
    """From the submission of the request to its response, by the clock."""


@dataclass(frozen=True, slots=True, eq=False)
class Response:
    """The outcome of a request."""

    model: str
    """The id of the model."""
    results: tuple[Result | Failure, ...]
    """One outcome per input, in the request's order."""
    timing: Timing
    """How long the request took."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a request has come."""

    inputs_done: int
    """The inputs that have an outcome."""
    inputs_total: int
    """The inputs of the request."""
    inputs_known: int = 0
    """The inputs of which the audio is decoded, or that failed before."""
    audio_sec_done: float | None = None
    """Seconds of audio that the model is done with. None: unknown for the task."""
    audio_sec_known: float = 0.0
    """Seconds of audio of the decoded inputs."""
    text: tuple[int, str] | None = None
    """The index of an input, and the text that follows its text so far. The final transcript may correct that text."""

    @property
    def audio_sec_total(self) -> float | None:
        """Seconds of audio of all inputs, or None while some of them are not decoded."""
        is_known = self.audio_sec_done is not None and self.inputs_known == self.inputs_total
        return self.audio_sec_known if is_known else None


OnResult = Callable[["Result | Failure"], None]
"""Called with the outcome of each input when it is done."""
OnText = Callable[[int, str], None]
"""Called with an input's index and each new part of its text."""
OnProgress = Callable[[Progress], None]
"""Called with each change of a request's progress. It must not block."""


class Listeners(TypedDict, total=False):
    """The functions to call while a request runs, as keyword arguments."""

    on_result: OnResult | None
    on_text: OnText | None
    on_progress: OnProgress | None
