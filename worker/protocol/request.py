"""Payload → Request: the only validator.

Takes the JSON that a user sent, bare or under `input`, and gives a Request whose every field is known, typed and within
limits. What is wrong with the request as a whole raises RequestError, naming the field and the values allowed. What is
wrong with one input becomes a Failure in its place: one bad input never spoils the others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, BinaryIO, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from worker import catalog
from worker.config import Settings
from worker.errors import AviaryError, InputError, RequestError, TooManyInputs, Unsupported
from worker.types import Failure, Item, Level, Message, Options, Request, S3Access, Source, Task, View

MOST_TOKENS = 32_768  # that may be asked for

_Model = TypeVar("_Model", bound=BaseModel)
_SCHEME = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]*):(?=//|)")


class _Turn(BaseModel):
    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "user", "assistant"]
    content: str
    audio: bool = False


class _PerItem(BaseModel):
    """Options that may stand on the request and on each item; the item's win."""

    model_config = ConfigDict(extra="forbid")

    timestamps: bool | Level | list[Level] | None = Field(
        None, description="Levels of times to return: `true` is word and segment; or one level, or a list of levels"
    )
    language: str | None = Field(
        None,
        min_length=2,
        max_length=16,
        description="ISO 639-1 code of the spoken language. Unsupported codes are rejected",
    )
    target_language: str | None = Field(
        None,
        min_length=2,
        max_length=16,
        description="Language of the text. If it differs from the spoken language, the model translates",
    )
    prompt: str | None = Field(
        None,
        description="Flamingo: the instruction, in place of the style's. Whisper: words to expect",
    )
    style: Literal["detailed", "brief", "technical"] | None = Field(
        None, description="Style of a caption. Default: `detailed`"
    )
    messages: list[_Turn] | None = Field(
        None,
        description="Conversation for `chat`: turns of `role` (`system`, `user`, `assistant`) and `content`, the last "
        'one the user\'s. `"audio": true` marks the turn that the audio belongs to; default: the first user turn.',
    )
    max_new_tokens: int | None = Field(
        None, ge=1, le=MOST_TOKENS, description="Maximum number of tokens that the model generates"
    )
    temperature: float | None = Field(
        None, ge=0, le=2, description="Sampling temperature. Default: `0`, which always gives the same text"
    )
    top_p: float | None = Field(None, gt=0, le=1, description="Nucleus sampling: share of probability to sample from")
    punctuation: bool | None = Field(
        None, description="Canary: `false` leaves out punctuation and capital letters. Default: `true`"
    )
    format: Literal["json", "verbose_json", "text", "srt", "vtt"] | None = Field(
        None, description="Every format except `json`, the default, adds `formatted` to each result"
    )
    pooling: Literal["none", "mean"] | None = Field(
        None, description="Embeddings: one vector a frame (`none`, the default) or the mean of all frames"
    )
    encoding: Literal["float", "base64", "s3"] | None = Field(
        None,
        description="Embeddings: numbers (`float`, the default), little-endian float32 in `base64`, or the URL of an "
        "`.npy` file in the bucket (`s3`)",
    )


class _Input(_PerItem):
    source: str = Field(min_length=1, description="URL, path, or `data:` URI of the audio")
    id: str | int | None = Field(None, description="Your name for the input, returned with its result")


class _Payload(_PerItem):
    task: Task = Field("transcribe", description="Task to run")
    model: str | None = Field(
        None,
        min_length=1,
        description="Alias or id of the catalog, repository (`owner/name`), or path of a checkpoint. Default: `MODEL`",
    )
    inputs: list[Any] | None = Field(
        None,
        description="1 to `MAX_INPUTS` inputs: a source, or an object with `source` and optional `id` and options",
    )
    audio: Any = Field(None, description="One input, in place of `inputs`")
    audio_base64: str | None = Field(
        None, min_length=1, description="One input as base64, in place of `inputs`, with or without a `data:` prefix"
    )
    id: str | int | None = Field(None, description="Your name for the input of `audio` or `audio_base64`")


def parse(
    payload: Any,
    settings: Settings,
    *,
    s3: S3Access | None = None,
    trusted: bool = False,
    files: Mapping[str, BinaryIO] | None = None,
) -> Request:
    """The Request that a payload asks for.

    s3: the job's own bucket, for its s3:// inputs. trusted: paths were typed by the person who runs the worker. files:
    what a door holds open, by the names under which the payload's sources mention them.
    Raises RequestError (or a subclass) when the request as a whole is wrong.
    """
    body = validated(_Payload, unwrapped(payload))
    inputs = _inputs(body)
    if len(inputs) > settings.max_inputs:
        raise TooManyInputs(
            f"inputs has {len(inputs)} items; at most {settings.max_inputs} (MAX_INPUTS) are allowed", param="inputs"
        )
    name = body.model or settings.default_model
    model = catalog.find(name)
    checked = None if settings.skip_model_load and body.model is None else model
    _options(body, body, checked, model.id)

    items: list[Item] = []
    alike: dict[Any, Any] = {}  # equal options and views are one object: there may be ten thousand items
    rejected: list[Failure] = []
    for index, raw in enumerate(inputs):
        try:
            item = _item(index, raw, body, checked, model.id, s3=s3, trusted=trusted, files=files or {})
            options, view = alike.setdefault(item.options, item.options), alike.setdefault(item.view, item.view)
            items.append(Item(index, item.source, options, view, item.id))
        except AviaryError as error:
            name_of = raw.get("id") if isinstance(raw, Mapping) else None
            rejected.append(Failure(index, error, name_of if isinstance(name_of, str | int) else None))
    return Request(model=model.id, items=tuple(items), rejected=tuple(rejected))


def unwrapped(payload: Any) -> Mapping[str, Any]:
    """The request itself: bare, or what stands under `input`, however deep. Raises RequestError."""
    if not isinstance(payload, Mapping):
        raise RequestError(f"the payload must be a JSON object, not {type(payload).__name__}")
    while "input" in payload:
        payload = payload["input"]
        if not isinstance(payload, Mapping):
            raise RequestError("input must be a JSON object that holds the request", param="input")
    return payload


def validated(model: type[_Model], payload: Mapping[str, Any]) -> _Model:
    """The payload as a model of pydantic's. Raises RequestError for its first mistake, in words that name the field."""
    try:
        return model.model_validate(payload)
    except ValidationError as error:
        message, param = _explain(error, model)
        raise RequestError(message, param=param) from None


def source_of(text: str, *, s3: S3Access | None = None, trusted: bool = False) -> Source:
    """The Source a string names. Raises InputError for a scheme nobody reads."""
    match = _SCHEME.match(text)
    scheme = match.group(1).lower() if match else ""
    if scheme in ("http", "https"):
        return Source("url", text)
    if scheme == "s3":
        return Source("s3", text, s3=s3)
    if scheme == "data":
        return Source("data", text)
    if scheme == "file":
        return Source("path", text, trusted=trusted)
    if scheme and text[match.end() :].startswith("//"):  # type: ignore[union-attr]
        raise InputError(f"scheme {scheme!r} is not read: use http, https, s3, data, file or a path", param="source")
    return Source("path", text, trusted=trusted)


def _inputs(body: _Payload) -> list[Any]:
    given = [name for name in ("inputs", "audio", "audio_base64") if getattr(body, name) is not None]
    if len(given) != 1:
        found = f"got {' and '.join(given)}" if given else "got none"
        raise RequestError(f"give exactly one of inputs, audio, audio_base64; {found}", param="inputs")
    if body.inputs is not None:
        if not body.inputs:
            raise RequestError("inputs is empty: give at least one", param="inputs")
        return body.inputs
    if body.audio_base64 is not None:
        text = body.audio_base64
        return [{"source": text if text.startswith("data:") else f"data:;base64,{text}", "id": body.id}]
    return [body.audio if isinstance(body.audio, Mapping) else {"source": body.audio, "id": body.id}]


def _item(
    index: int,
    raw: Any,
    body: _Payload,
    checked: catalog.Model | None,
    model_id: str,
    *,
    s3: S3Access | None,
    trusted: bool,
    files: Mapping[str, BinaryIO],
) -> Item:
    where = f"inputs[{index}]"
    if isinstance(raw, str):
        raw = {"source": raw}
    if not isinstance(raw, Mapping):
        raise InputError(f"{where} must be a source (a string) or an object with a source", param=where)
    try:
        given = _Input.model_validate(raw)
    except ValidationError as error:
        message, param = _explain(error, _Input)
        raise InputError(f"{where}: {message}", param=f"{where}.{param}") from None
    options, view = _options(given, body, checked, model_id)
    source = (
        Source("file", given.source, file=files[given.source])
        if given.source in files
        else source_of(given.source, s3=s3, trusted=trusted)
    )
    return Item(index, source, options, view, given.id)


def _options(given: _PerItem, body: _Payload, checked: catalog.Model | None, model_id: str) -> tuple[Options, View]:
    """The item's options over the request's; refused when the model cannot do them."""

    def pick(name: str) -> Any:
        value = getattr(given, name)
        return getattr(body, name) if value is None else value

    levels = _levels(pick("timestamps"))
    form: Any = pick("format") or "json"
    subtitles = form in ("srt", "vtt")
    speech = body.task in ("transcribe", "translate")
    timed = form == "verbose_json" and speech and (checked is None or checked.timestamps)
    options = Options(
        model=model_id,
        task=body.task,
        timestamps=bool(levels) or subtitles or timed,
        language=pick("language"),
        target_language=pick("target_language"),
        prompt=pick("prompt"),
        style=pick("style"),
        messages=_messages(pick("messages") or []),
        max_new_tokens=pick("max_new_tokens"),
        temperature=pick("temperature"),
        top_p=pick("top_p"),
        punctuation=pick("punctuation") is not False,
        pooling=pick("pooling") or "none",
    )
    if checked is not None:
        catalog.check(checked, options)
    if subtitles and not speech:
        raise Unsupported(f"format {form} is for transcribe and translate, not {options.task}", param="format")
    return options, View(levels, form, pick("encoding") or "float")


def _messages(turns: list[_Turn]) -> tuple[Message, ...]:
    """A conversation that ends with the user, who asks, and holds the input's audio once."""
    if not turns:
        return ()
    if turns[-1].role != "user":
        raise RequestError("the last of messages must be the user's", param="messages")
    if sum(turn.audio for turn in turns) > 1:
        raise RequestError("only one of messages can hold the audio", param="messages")
    if any(turn.audio and turn.role != "user" for turn in turns):
        raise RequestError("the audio belongs to a message of the user's", param="messages")
    return tuple(Message(turn.role, turn.content, turn.audio) for turn in turns)


def _levels(value: bool | str | list[Level] | None) -> tuple[Level, ...]:
    if value is True:
        return ("word", "segment")
    if isinstance(value, str):
        return (value,)  # type: ignore[return-value]
    return tuple(dict.fromkeys(value)) if value else ()


def _explain(error: ValidationError, model: type[BaseModel]) -> tuple[str, str]:
    """The first mistake as (message, field), in words that name the field and what is allowed."""
    first = error.errors()[0]
    place = first["loc"]
    field = ".".join(
        str(part)
        for before, part in zip(("", *place), place, strict=False)
        if part in model.model_fields or isinstance(part, int) or isinstance(before, int)
    ) or ".".join(map(str, place))
    if first["type"] == "extra_forbidden":
        known = f"; the fields are {', '.join(sorted(model.model_fields))}" if len(place) == 1 else ""
        return f"{field} is not a field{known}", field
    if field.startswith("timestamps"):
        return "timestamps must be true, false, or a list out of word, segment, char", "timestamps"
    message = first["msg"][0].lower() + first["msg"][1:]
    return f"{field}: {message}", field
