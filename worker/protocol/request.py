"""Payload → Request: the only validator.

    fields = unwrap(payload)            the request itself: bare, or what stands under `input`
    request = parse(fields, settings)   every field known, typed and within limits

A mistake in the request as a whole raises RequestError, which names the field and the values allowed. A mistake in one
input becomes a Failure in that input's place: one bad input never spoils the others.

The options are those of `worker.protocol.options`.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, BinaryIO

from pydantic import Field, ValidationError

from worker import catalog
from worker.config import Settings
from worker.engine.speakers import diarizer_options
from worker.errors import AviaryError, InputError, RequestError, TooManyInputs, Unsupported
from worker.protocol.model_names import find_model, means_diarize
from worker.protocol.openai_fields import NOT_SUPPORTED
from worker.protocol.options import (
    AUTO,
    OPTIONS,
    SPEAKER_OPTIONS,
    SPEECH,
    TIMED,
    WITH_SPEAKERS,
    ChatTurn,
    OptionFields,
    names_speakers,
)
from worker.protocol.strict import Fields, explain, validated
from worker.types import Failure, Item, Level, Message, Options, Request, S3Access, Source, Task, View

_SCHEME = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]{0,31}):(?=//|)")
LONGEST_NAME = 1 << 16  # characters of a URL or a path
LONGEST_ID = 1024  # characters
InputId = Annotated[str, Field(max_length=LONGEST_ID)] | int
_FEW = 100  # inputs
_IGNORED = "An option is ignored, because {}"
_KNOWN_SPEAKERS = ("known_speaker_names", "known_speaker_references")
_OF_THE_WORK = tuple(field.name for field in dataclasses.fields(Options) if field.name in OPTIONS)
_NO_SPEAKERS = "format {} requires speakers, which the request does not ask for. Set " + " or ".join(
    f"{name} to {json.dumps(value)}" for name, value in SPEAKER_OPTIONS.items()
)


class _Input(OptionFields):
    source: str = Field(min_length=1, description="URL, path, or `data:` URI of the audio")
    id: InputId | None = Field(None, description="Your name for the input, returned with its result")


class _Payload(OptionFields):
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
    id: InputId | None = Field(None, description="Your name for the input of `audio` or `audio_base64`")


def unwrap(payload: Any) -> Fields:
    """Return the request itself: the payload, or what stands under `input`, at any depth. Raises RequestError."""
    if not isinstance(payload, Mapping):
        raise RequestError(f"the payload must be a JSON object, not {type(payload).__name__}")
    while "input" in payload:
        payload = payload["input"]
        if not isinstance(payload, Mapping):
            raise RequestError("input must be a JSON object that holds the request", param="input")
    return payload


def is_light(fields: Fields) -> bool:
    """Whether checking the request is quick enough for an event loop: it reads no file and has few inputs."""
    if "openai_route" in fields or fields.get("task") in ("evaluate", "score"):
        return False
    inputs = fields.get("inputs")
    several = inputs if isinstance(inputs, list) else []
    return len(several) <= _FEW and not any(
        isinstance(one, Mapping) and "messages" in one for one in (fields, *several)
    )


def parse(
    fields: Fields,
    settings: Settings,
    *,
    s3: S3Access | None = None,
    trusted: bool = False,
    files: Mapping[str, BinaryIO] | None = None,
) -> Request:
    """Return the Request that the fields describe.

    s3: the job's own bucket, for its s3:// inputs. trusted: the worker's owner sent the request, so it may name any
    model and any path.
    files: open files, by the names under which the sources of the request mention them.
    Raises RequestError (or a subclass) if the request as a whole is wrong.
    """
    foreign = {name: value for name in NOT_SUPPORTED if (value := fields.get(name))}
    body = validated(_Payload, {name: value for name, value in fields.items() if name not in NOT_SUPPORTED})
    if body.diarize is None and body.task in SPEECH and means_diarize(body.model, settings):
        body = body.model_copy(update={"diarize": True})
    inputs = _inputs(body)
    if len(inputs) > settings.max_inputs:
        raise TooManyInputs(
            f"inputs has {len(inputs)} items; at most {settings.max_inputs} (MAX_INPUTS) are allowed", param="inputs"
        )
    if body.model is None and body.task == "diarize":
        model = catalog.find(settings.diarizer, settings.places)
    else:
        model = find_model(body.model, settings, trusted=trusted)
    checked = None if settings.skip_model_load and body.model is None else model
    lenient = settings.unsupported_options == "warn"
    warnings = _foreign_refused(foreign, model, lenient=lenient)
    of_all, _, _ = _options(body, body, checked, model.id, lenient=lenient)
    _for_diarizer(of_all, settings, lenient=lenient)

    items: list[Item] = []
    # Equal options and views are one object, because there may be ten thousand items.
    alike: dict[View, View] = {}
    diarized: dict[Options, tuple[Options, tuple[str, ...]]] = {}  # the results of `_for_diarizer`
    rejected: list[Failure] = []
    for index, raw in enumerate(inputs):
        try:
            item = _item(
                index, raw, body, checked, model.id, s3=s3, trusted=trusted, files=files or {}, lenient=lenient
            )
            if item.options not in diarized:
                diarized[item.options] = _for_diarizer(item.options, settings, lenient=lenient)
            options, ignored = diarized[item.options]
            warning = "; ".join(filter(None, (warnings, item.warning, *ignored))) or None
            view = alike.setdefault(item.view, item.view)
            items.append(Item(index, item.source, options, view, item.id, warning=warning))
        except AviaryError as error:
            named = raw.get("id") if isinstance(raw, Mapping) else None
            rejected.append(Failure(index, error, named if _is_id(named) else None))
    return Request(model=model.id, items=tuple(items), rejected=tuple(rejected))


def source_of(text: str, *, s3: S3Access | None = None, trusted: bool = False) -> Source:
    """Return the Source that a string names. Raises InputError for an unknown scheme."""
    match = _SCHEME.match(text)
    scheme = match.group(1).lower() if match else ""
    if scheme != "data" and len(text) > LONGEST_NAME:
        raise InputError(f"source has {len(text)} characters: a URL or a path may have {LONGEST_NAME}", param="source")
    if scheme in ("http", "https"):
        return Source("url", text)
    if scheme == "s3":
        return Source("s3", text, s3=s3)
    if scheme == "data":
        return Source("data", text)
    if scheme == "file":
        return Source("path", text, trusted=trusted)
    if match and scheme and text[match.end() :].startswith("//"):
        raise InputError(f"unsupported scheme {scheme!r}: use http, https, s3, data, file or a path", param="source")
    return Source("path", text, trusted=trusted)


def _inputs(body: _Payload) -> list[Any]:
    present = [name for name in ("inputs", "audio", "audio_base64") if getattr(body, name) is not None]
    if len(present) != 1:
        found = f"got {' and '.join(present)}" if present else "got none"
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
    lenient: bool,
) -> Item:
    where = f"inputs[{index}]"
    if isinstance(raw, str):
        raw = {"source": raw}
    if not isinstance(raw, Mapping):
        raise InputError(f"{where} must be a source (a string) or an object with a source", param=where)
    try:
        own = _Input.model_validate(raw)
    except ValidationError as error:
        message, param = explain(error, _Input)
        raise InputError(f"{where}: {message}", param=f"{where}.{param}") from None
    options, view, warning = _options(own, body, checked, model_id, lenient=lenient)
    source = (
        Source("file", own.source, file=files[own.source])
        if own.source in files
        else source_of(own.source, s3=s3, trusted=trusted)
    )
    return Item(index, source, options, view, own.id, warning=warning)


def _foreign_refused(foreign: Fields, model: catalog.Model, *, lenient: bool) -> str:
    """Return a warning for the fields of OpenAI that the model does not have, if requests are lenient.

    Raises Unsupported.
    """
    warnings: list[str] = []
    for name in foreign:
        try:
            catalog.check_option(model, name)
        except Unsupported as error:
            if not lenient:
                raise
            warnings.append(_IGNORED.format(error.message))
    return "; ".join(warnings)


def _options(
    own: OptionFields, body: _Payload, checked: catalog.Model | None, model_id: str, *, lenient: bool
) -> tuple[Options, View, str | None]:
    """Return the input's options, else the request's, and a warning that names the ignored ones.

    Raises Unsupported if the model cannot honor them. If `lenient`, only for those that decide what the result is.
    """
    values: dict[str, Any] = {}
    for name in OPTIONS:
        value = getattr(own, name)
        value = getattr(body, name) if value is None else value
        if value is None or (value == AUTO and name in ("language", "target_language")):
            continue
        if checked is None or not catalog.changes_nothing(checked, name, value):
            values[name] = value
    values |= _languages(values)
    speech = body.task in SPEECH
    split = values.get("channels") == "split"
    ordered = split and speech and (checked is None or checked.timestamps)  # by time
    diarize = speech and values.get("diarize", False)
    _check_speakers(values, required=speech and not diarize)
    _check_known_speakers(values, required=speech and not diarize)
    for name in _KNOWN_SPEAKERS:
        values[name] = tuple(values.get(name, ()))
    levels = _levels(values.get("timestamps", ["segment"] if ordered or diarize else None))
    include = tuple(
        dict.fromkeys([values["include"]] if values.get("include") == "logprobs" else values.get("include", []))
    )
    view = View(
        levels,
        values.get("format", "json"),
        values.get("encoding", "float"),
        confidence=values.get("confidence", False),
        include=include,
        max_line_width=values.get("max_line_width"),
        max_line_count=values.get("max_line_count"),
        max_words_per_line=values.get("max_words_per_line"),
        max_chars_per_sec=values.get("max_chars_per_sec"),
    )
    subtitles = view.format in TIMED and body.task != "diarize"
    timed = view.format == "verbose_json" and speech and (checked is None or checked.timestamps)
    work = {name: values[name] for name in _OF_THE_WORK if name in values}
    reported = view.format == "verbose_json" and speech and (checked is None or "confidence" in checked.options)
    work |= {
        "timestamps": bool(levels) or subtitles or timed or ordered or diarize,
        "diarize": diarize,
        "confidence": view.confidence or bool(include) or reported,
        "messages": _messages(values.get("messages", [])),
        "keywords": tuple(values.get("keywords", ())),
    }
    options, warning = Options(model=model_id, task=body.task, **work), None
    if checked is not None:
        if lenient and (checked.timestamps or not subtitles):
            options, view, warning = _honored(checked, options, view)
        if view.include and not view.confidence:
            catalog.check_option(checked, "confidence", called="include")
        catalog.check(checked, options)
    if split and not speech:
        raise Unsupported(f"channels can be split for transcribe and translate, not {options.task}", param="channels")
    if view.format in TIMED and not speech and (body.task, view.format) != ("diarize", "rttm"):
        raise Unsupported(f"format {view.format} is for transcribe and translate, not {options.task}", param="format")
    if view.format in WITH_SPEAKERS and speech and not names_speakers(values):
        raise Unsupported(_NO_SPEAKERS.format(view.format), param="format")
    return options, view, warning


def _honored(model: catalog.Model, options: Options, view: View) -> tuple[Options, View, str | None]:
    """Return the options and the view without those that the model cannot honor, and a warning that names them."""
    refused: list[str] = []
    if view.include:
        try:
            catalog.check_option(model, "confidence", called="include")
        except Unsupported as error:
            refused = [error.message]
            view = dataclasses.replace(view, include=())
            options = dataclasses.replace(options, confidence=view.confidence)
    options, others = catalog.honored(model, options)
    if not options.diarize and options.task in SPEECH:
        options = dataclasses.replace(
            options, num_speakers=None, max_speakers=None, known_speaker_names=(), known_speaker_references=()
        )
    view = dataclasses.replace(
        view,
        confidence=view.confidence and options.confidence,
        timestamps=view.timestamps if options.timestamps else (),
    )
    return options, view, "; ".join(_IGNORED.format(message) for message in (*refused, *others)) or None


def _check_speakers(values: Fields, *, required: bool) -> None:
    """Raise RequestError if the numbers of speakers contradict each other, or `diarize` is `required` for them."""
    least, most = values.get("num_speakers"), values.get("max_speakers")
    for name in ("num_speakers", "max_speakers"):
        if required and values.get(name) is not None:
            raise RequestError(f"{name} requires diarize. Set diarize to true.", param=name)
    if least and most and least > most:
        raise RequestError(
            f"num_speakers is {least}, and max_speakers is {most}. Leave one of them out.", param="num_speakers"
        )


def _check_known_speakers(values: Fields, *, required: bool) -> None:
    """Raise RequestError unless each name has a reference, or if `diarize` is `required` for them."""
    names, references = (values.get(name) or [] for name in _KNOWN_SPEAKERS)
    if not names and not references:
        return
    if required:
        raise RequestError("known_speaker_names requires diarize. Set diarize to true.", param="known_speaker_names")
    if len(names) != len(references):
        raise RequestError(
            f"known_speaker_names has {len(names)} items, and known_speaker_references has {len(references)}. Send one "
            "reference for each name.",
            param="known_speaker_references",
        )
    if len(set(names)) < len(names):
        raise RequestError("known_speaker_names has a name twice. Send each name once.", param="known_speaker_names")
    for number, reference in enumerate(references):
        if not reference[:5].lower() == "data:":
            raise RequestError(
                f"known_speaker_references[{number}] is no data: URI. Send the audio of the clip as one.",
                param="known_speaker_references",
            )


def _for_diarizer(options: Options, settings: Settings, *, lenient: bool) -> tuple[Options, tuple[str, ...]]:
    """Return the options of a transcript, and, if `lenient`, warnings about those that DIARIZER cannot honor.

    These options are then left out. Raises Unsupported for them if not `lenient`, and if DIARIZER cannot diarize.
    """
    if not options.diarize or settings.skip_model_load:
        return options, ()
    asked = diarizer_options(options, settings)
    row, refused = catalog.find(asked.model, settings.places), list[str]()
    if lenient:
        asked, refused = catalog.honored(row, asked)
        options = dataclasses.replace(options, **{name: getattr(asked, name) for name in catalog.OF_THE_DIARIZER})
    catalog.check(row, asked)
    return options, tuple(map(_IGNORED.format, refused))


def _languages(values: Fields) -> dict[str, Any]:
    """Return `language` and `languages` of an input, of which one at most is set."""
    codes = tuple(dict.fromkeys(code for code in values.get("languages", ()) if code and code != AUTO))
    if "language" in values or len(codes) == 1:
        return {"language": values.get("language", codes[0] if codes else None), "languages": ()}
    return {"languages": codes}


def _is_id(value: Any) -> bool:
    return isinstance(value, int) or (isinstance(value, str) and len(value) <= LONGEST_ID)


def _messages(turns: list[ChatTurn]) -> tuple[Message, ...]:
    """Return a conversation that ends with the user and holds the input's audio once. Raises RequestError."""
    if not turns:
        return ()
    if turns[-1].role != "user":
        raise RequestError("the last of messages must be the user's", param="messages")
    if sum(turn.audio for turn in turns) > 1:
        raise RequestError("only one of messages can hold the audio", param="messages")
    if any(turn.audio and turn.role != "user" for turn in turns):
        raise RequestError("the audio belongs to a message of the user's", param="messages")
    return tuple(Message(turn.role, turn.content, turn.audio) for turn in turns)


def _levels(value: bool | Level | list[Level] | None) -> tuple[Level, ...]:
    if value is True:
        return ("word", "segment")
    if isinstance(value, str):
        return (value,)
    return tuple(dict.fromkeys(value)) if value else ()
