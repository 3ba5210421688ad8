"""The one list of request options: their names, types, bounds, tasks and descriptions.

    OptionFields          the options, as a request and each of its inputs may have them
    option_schema(name)   an option as JSON schema, for the surfaces that are generated

The payload, the OpenAI routes, the OpenAPI document, the command line, manifests and the generated tables take the
options from it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from worker import catalog
from worker.protocol.strict import Fields, FirstError, Strict
from worker.types import Format, Level, Task

MAX_SPEAKERS = 100  # the largest number that a request may set
MAX_KNOWN_SPEAKERS = 4  # as OpenAI allows
LONGEST_SPEAKER = 100  # characters of a name
MAX_NEW_TOKENS = 32_768  # the largest value that a request may set

LONGEST_LANGUAGE = 32  # characters
MAX_KEYWORDS = 100
LONGEST_KEYWORD = 100  # characters
MAX_KEYWORD_WEIGHT = 100
AUTO = "auto"  # as the language of an input: that of the request does not apply
# The formats that require the times of a transcript, and those of them that require its speakers.
TIMED = tuple(form for form in get_args(Format) if form not in ("json", "verbose_json", "text"))
WITH_SPEAKERS = ("diarized_json", "rttm")
SPEAKER_OPTIONS: dict[str, Any] = {"diarize": True, "channels": "split"}  # the options that distinguish speakers

SPEECH: tuple[Task, ...] = ("transcribe", "translate")
_CAPTION: tuple[Task, ...] = ("caption", "analyze")
_EMBEDDING: tuple[Task, ...] = ("embed", "analyze")
_GENERATION: tuple[Task, ...] = (*SPEECH, *_CAPTION, "chat")


def _option(tasks: tuple[Task, ...], description: str, **bounds: Any) -> Any:
    """An option of these tasks: unset by default, on the request and on each input."""
    return Field(None, description=description, json_schema_extra={"tasks": list(tasks)}, **bounds)


class ChatTurn(Strict):
    """One turn of the option `messages`."""

    role: Literal["system", "user", "assistant"]
    content: str
    audio: bool = False


def _language(text: str) -> str | None:
    """Return the code of a language, AUTO, or None for an empty text, which clients send for an empty field."""
    if not text.strip() or text.strip().lower() == AUTO:
        return AUTO if text.strip() else None
    if code := catalog.language_code(text):
        return code
    raise PydanticCustomError(
        "language",
        "unknown language '{text}'; use auto, one of the codes {codes}, or the English name of a language",
        {"text": text, "codes": ", ".join(sorted(catalog.LANGUAGES))},
    )


def _speaker(text: str) -> str:
    """Return the name of a speaker, with single spaces, as lines of subtitles and of tables have it."""
    name = " ".join(text.split())
    if name and text.isprintable() and not _NUMBERED.fullmatch(name):
        return name
    raise PydanticCustomError(
        "speaker",
        "{text} is no name of a speaker; use printable characters, and no name such as Speaker 1",
        {"text": repr(text)},
    )


_NUMBERED = re.compile(r"speaker \d+", re.IGNORECASE)  # the names of unknown speakers
_Speaker = Annotated[str, Field(max_length=LONGEST_SPEAKER), AfterValidator(_speaker)]
_Language = Annotated[str, Field(max_length=LONGEST_LANGUAGE), AfterValidator(_language)]


def _keywords(texts: list[str]) -> list[str]:
    """Return the keywords, each once, with single spaces and without the empty ones."""
    return list(dict.fromkeys(text for text in (" ".join(text.split()) for text in texts) if text))


_Keywords = Annotated[
    list[Annotated[str, Field(max_length=LONGEST_KEYWORD)]],
    Field(max_length=MAX_KEYWORDS),
    FirstError(),
    AfterValidator(_keywords),
]


class OptionFields(Strict):
    """The options of a request. Each may stand on the request and on each input; the input's value wins.

    An empty text, which clients send for an empty field, counts as absent.
    """

    @model_validator(mode="before")
    @classmethod
    def _without_the_empty(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        empty = [name for name in values if name in _MAY_BE_EMPTY and values[name] in ("", [""])]
        return {name: value for name, value in values.items() if name not in empty} if empty else values

    timestamps: bool | Level | Annotated[list[Level], FirstError()] | None = _option(
        SPEECH, "Levels of times to return: `true` is word and segment; or one level, or a list of levels"
    )
    language: _Language | None = _option(
        SPEECH,
        "Spoken language: an ISO 639-1 code, such as `en`, or an English name. `auto`: the model detects it, or takes "
        "its default. Unsupported languages are rejected",
    )
    languages: Annotated[list[_Language], FirstError()] | None = _option(
        SPEECH,
        "Languages that may be spoken, of which the model detects one. One language is the same as `language`, beside "
        "which `languages` has no effect",
    )
    target_language: _Language | None = _option(
        SPEECH, "Language of the text. If it differs from the spoken language, the model translates"
    )
    punctuation: bool | None = _option(
        SPEECH, "Canary: `false` leaves out punctuation and capital letters. Default: `true`"
    )
    confidence: bool | None = _option(
        SPEECH, "How sure the model is, from 0 to 1, of the text and of each word and segment. Default: `false`"
    )
    include: Literal["logprobs"] | Annotated[list[Literal["logprobs"]], FirstError()] | None = _option(
        SPEECH, "`logprobs`: the tokens of the text, with the natural logarithms of their probabilities"
    )
    diarize: bool | None = _option(
        SPEECH,
        "Who speaks: adds `speaker` to each word and segment, and splits segments where the speaker changes. Default: "
        "`false`",
    )
    num_speakers: int | None = _option(
        (*SPEECH, "diarize"), "Number of speakers, if it is known", ge=1, le=MAX_SPEAKERS
    )
    max_speakers: int | None = _option((*SPEECH, "diarize"), "Most speakers that may be found", ge=1, le=MAX_SPEAKERS)
    known_speaker_names: Annotated[list[_Speaker], FirstError()] | None = _option(
        (*SPEECH, "diarize"),
        f"Names of up to {MAX_KNOWN_SPEAKERS} speakers whose voices are known",
        max_length=MAX_KNOWN_SPEAKERS,
    )
    known_speaker_references: Annotated[list[str], FirstError()] | None = _option(
        (*SPEECH, "diarize"),
        "For each name, a clip of the voice: 2 to 10 s, as a `data:` URI",
        max_length=MAX_KNOWN_SPEAKERS,
    )
    condition_on_previous_text: bool | None = _option(
        SPEECH,
        "Whisper: the text of each window is the prompt of the next one. This keeps names and style alike, and the "
        "windows of a clip share no batch. Default: `false`",
    )
    long_audio: Literal["whole", "windows"] | None = _option(
        SPEECH,
        "How audio longer than 30 s is transcribed: at once (`whole`) or in windows that share batches (`windows`). "
        "Models with a window of their own always use windows. Default: `LONG_AUDIO`",
    )
    channels: Literal["mix", "split"] | None = _option(
        SPEECH,
        "Whether the channels of the audio are mixed (`mix`, the default) or each is transcribed separately (`split`). "
        "Words and segments then have a `channel`, from 0, and `timestamps` is `segment` by default",
    )
    prompt: str | None = _option(
        (*SPEECH, *_CAPTION), "Flamingo: the instruction, in place of the style's. Whisper: words to expect"
    )
    keywords: _Keywords | None = _option(
        SPEECH,
        f"Words and phrases to expect, such as names, spelled as the text should have them: at most {MAX_KEYWORDS} of "
        f"{LONGEST_KEYWORD} characters",
    )
    keyword_weight: float | None = _option(
        SPEECH,
        "Parakeet, Canary: how strongly the model prefers the keywords. High weights add keywords that were not "
        "spoken. Default: `1`",
        gt=0,
        le=MAX_KEYWORD_WEIGHT,
    )
    style: Literal["detailed", "brief", "technical"] | None = _option(
        _CAPTION, "Style of a caption. Default: `detailed`"
    )
    messages: Annotated[list[ChatTurn], FirstError()] | None = _option(
        ("chat",),
        "Conversation: turns of `role` (`system`, `user`, `assistant`) and `content`, the last one the user's. "
        '`"audio": true` marks the turn that the audio belongs to; default: the first user turn',
    )
    max_new_tokens: int | None = _option(
        _GENERATION, "Maximum number of tokens that the model generates", ge=1, le=MAX_NEW_TOKENS
    )
    temperature: float | None = _option(
        _GENERATION, "Sampling temperature. Default: `0`, which always gives the same text", ge=0, le=2
    )
    top_p: float | None = _option(_GENERATION, "Nucleus sampling: share of probability to sample from", gt=0, le=1)
    format: Format | None = _option(
        (*_GENERATION, "diarize"),
        "Every format except `json`, the default, adds `formatted` to each result. `tsv`: the segments as a table, "
        "with times in milliseconds. `diarized_json` and `rttm` require speakers",
    )
    max_line_width: int | None = _option(
        SPEECH,
        "`srt`, `vtt`, `lrc`: most characters of a line. Default: 42, which two lines may exceed if no limit is set",
        ge=1,
        le=200,
    )
    max_line_count: int | None = _option(
        SPEECH, "`srt`, `vtt`: most lines of a cue. Default: 2, or 1 with `max_words_per_line`", ge=1, le=10
    )
    max_words_per_line: int | None = _option(SPEECH, "`srt`, `vtt`, `lrc`: most words of a line", ge=1, le=100)
    max_chars_per_sec: float | None = _option(
        SPEECH,
        "`srt`, `vtt`: reading speed. A cue with more characters a second is shown longer, up to the next cue",
        ge=1,
        le=100,
    )
    pooling: Literal["none", "mean"] | None = _option(
        _EMBEDDING, "Embeddings: one vector a frame (`none`, the default) or the mean of all frames"
    )
    encoding: Literal["float", "base64", "s3"] | None = _option(
        _EMBEDDING,
        "Embeddings: numbers (`float`, the default), little-endian float32 in `base64`, or the URL of an `.npy` file "
        "in the bucket (`s3`)",
    )


OPTIONS: tuple[str, ...] = tuple(OptionFields.model_fields)
_MAY_BE_EMPTY = frozenset((*OPTIONS, "model"))


def names_speakers(values: Fields) -> bool:
    """Return whether options ask for the speakers of a transcript, or for its channels."""
    return any(values.get(name) == value for name, value in SPEAKER_OPTIONS.items())


def options_of(task: Task) -> tuple[str, ...]:
    """Return the names of the options that mean something for the task."""
    return tuple(name for name in OPTIONS if task in option_schema(name)["tasks"])


def option_schema(name: str) -> dict[str, Any]:
    """Return the JSON schema of an option's value, without null, and its `tasks` and `description`."""
    schema = dict(_schemas()["properties"][name])
    choices = [choice for choice in schema.pop("anyOf") if choice.get("type") != "null"]
    meta = {key: schema[key] for key in ("description", "tasks")}
    return (choices[0] if len(choices) == 1 else {"anyOf": choices}) | meta


@functools.cache
def _schemas() -> dict[str, Any]:
    return OptionFields.model_json_schema()
