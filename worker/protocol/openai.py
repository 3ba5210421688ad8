"""OpenAI's JSON: the body of a route → our payload, and our answer → the shape of that route.

    /v1/models                                   the catalog, and MODEL_ALIASES
    /v1/chat/completions                         one audio (`input_audio` or `audio`), with text before and after it
    /v1/audio/transcriptions, /translations      JSON: `audio` {"url" | "data"}, `input_audio`, `file` (a source) …
    /v1/audio/captions, /embeddings, /analyze    JSON: `audio` {"url" | "data"}
    /v1/audio/diarizations                       the same

The HTTP routes and Runpod's OpenAI proxy (`openai_route`, `openai_input`) both translate here. A field that changes
nothing is left out (`worker.protocol.openai_fields`), and a field that a route does not have is an error, which names
the field. All else is validated by `worker.protocol.request`.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from worker import catalog
from worker.config import Settings
from worker.errors import RequestError, Unsupported
from worker.protocol.model_names import aliases
from worker.protocol.openai_fields import AUDIO, NOT_SUPPORTED, meaningful, speech
from worker.protocol.options import OPTIONS
from worker.protocol.render import audio_sec
from worker.types import Task

Json = dict[str, Any]
Shape = Callable[[Json], Any]

TASKS: dict[str, Task] = {
    "transcriptions": "transcribe",
    "translations": "translate",
    "captions": "caption",
    "embeddings": "embed",
    "analyze": "analyze",
    "diarizations": "diarize",
}
# OpenAI's names of our options; the others have the same name on both sides.
RENAMED = {"response_format": "format", "timestamp_granularities": "timestamps", "encoding_format": "encoding"}
_SAME = {"model", *OPTIONS} - {"messages", *RENAMED.values()}


def models(settings: Settings) -> Json:
    """Return the catalog and the aliases of the settings as OpenAI's list of models."""
    return {"object": "list", "data": with_aliases(map(model_json, catalog.MODELS), settings)}


def with_aliases(rows: Iterable[Json], settings: Settings) -> list[Json]:
    """Return entries of a list of models, and after them one for each alias. `root` is the id of the model it means."""
    roots = {row["id"]: row for row in rows}
    listed = [roots[root] | {"id": alias, "aliases": []} for alias, root in aliases(settings).items() if root in roots]
    return [*roots.values(), *listed]


def model_json(model: catalog.Model) -> Json:
    """Return a model as an entry of OpenAI's list of models, with its abilities as extra fields.

    `languages` and `target_languages` are empty if only the checkpoint knows them; `max_sec` is in seconds.
    """
    return {
        "id": model.id,
        "object": "model",
        "created": 0,
        "owned_by": model.id.split("/")[0],
        "root": model.id,
        "aliases": list(model.aliases),
        "license": model.licence,
        "tasks": list(model.tasks),
        "languages": list(model.languages),
        "target_languages": list(model.target_languages),
        "timestamps": ["word", "segment", "char"] if model.timestamps else [],
        "options": list(model.options),
        "max_sec": model.max_sec,
    }


def translate(route: str, body: Any) -> tuple[Json, Shape]:
    """Return the payload of a route's body, and the function that gives our answer the route's shape.

    Raises RequestError.
    """
    if not isinstance(body, Mapping):
        raise RequestError("openai_input must be a JSON object", param="openai_input")
    if route == "/v1/chat/completions":
        return _chat(body), _chat_shape
    name = route.removeprefix("/v1/audio/")
    if name not in TASKS:
        known = ", ".join(["/v1/models", "/v1/chat/completions", *(f"/v1/audio/{task}" for task in TASKS)])
        raise RequestError(f"unknown openai_route {route!r}: use one of {known}", param="openai_route")
    return _audio(TASKS[name], body), _SHAPES.get(name, _first)


def source(value: Any, name: str) -> str:
    """Return the source in a body: a string, or an object with url or data. Raises RequestError."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping) and isinstance(value.get("url"), str):
        return str(value["url"])
    if isinstance(value, Mapping) and isinstance(value.get("data"), str):
        data = str(value["data"])
        return data if data.startswith("data:") else f"data:;base64,{data}"
    raise RequestError(f"{name} must be a source, or an object with url or data", param=name)


def _audio(task: str, body: Mapping[str, Any]) -> Json:
    payload: Json = {"task": task}
    fields = meaningful(body)
    for name, value in (speech(fields) if task in ("transcribe", "translate") else fields).items():
        if name in AUDIO:
            if "audio" in payload:
                raise RequestError("give either audio or file", param=name)
            payload["audio"] = source(value, name)
        elif name in RENAMED:
            payload[RENAMED[name]] = value
        elif name in _SAME or name in NOT_SUPPORTED:
            payload[name] = value
        else:
            raise RequestError(f"{name} is not a field of this route", param=name)
    return payload


def _chat(body: Mapping[str, Any]) -> Json:
    payload: Json = {"task": "chat", "messages": []}
    for name, value in meaningful(body).items():
        if name == "messages":
            payload |= _turns(value)
        elif name in ("max_tokens", "max_completion_tokens"):
            payload["max_new_tokens"] = value
        elif name == "stream" and value:
            raise Unsupported(
                "Runpod's handler cannot stream: leave out stream, or use the HTTP server", param="stream"
            )
        elif name in _SAME:
            payload[name] = value
        elif name != "stream":
            raise RequestError(f"{name} is not a field of this route", param=name)
    return payload


def _turns(messages: Any) -> Json:
    """Return the only audio of the messages, and their turns as text. Raises RequestError."""
    if not isinstance(messages, list) or not messages:
        raise RequestError("messages must be a list with at least one message", param="messages")
    audios: list[str] = []
    turns: list[Json] = []
    for message in messages:
        if not isinstance(message, Mapping):
            raise RequestError("each of messages must be an object with role and content", param="messages")
        content = message.get("content")
        parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
        texts: list[str] = []
        before = len(audios)
        for part in parts:
            kind = str(part.get("type")) if isinstance(part, Mapping) else ""
            if kind == "text" and isinstance(part.get("text"), str):
                texts.append(str(part["text"]))
            elif kind in ("audio", "input_audio"):
                audios.append(source(part.get(kind), kind))
            else:
                raise RequestError("each content part must be text, input_audio or audio", param="messages")
        turns.append({"role": message.get("role"), "content": "\n".join(texts), "audio": len(audios) > before})
    if len(audios) != 1:
        raise RequestError(f"a chat requires exactly one audio; messages has {len(audios)}", param="messages")
    return {"messages": turns, "audio": audios[0]}


def _first(answer: Json) -> Json:
    return {"model": answer["model"], **answer["results"][0]}


def _speech_shape(answer: Json) -> Any:
    """Return `formatted` if the request asked for a format, else OpenAI's json, with the language if it is known.

    `languages` is OpenAI's field for the same: a list, empty if the language is unknown.
    """
    one = answer["results"][0]
    if "formatted" in one:
        return one["formatted"]
    told = {"language": one["language"]} if one["language"] else {}
    told |= {"languages": [{"code": one["language"]}] if one["language"] else []}
    told |= {name: one[name] for name in ("confidence", "logprobs", "finish_reason", "warning") if name in one}
    return {"text": one["text"], **told, "usage": {"type": "duration", "seconds": audio_sec(one)}}


def _diarization_shape(answer: Json) -> Any:
    """Return `formatted` if the request asked for a format, else the turns as speaches and others name them."""
    one = answer["results"][0]
    if "formatted" in one:
        return one["formatted"]
    warning = {"warning": one["warning"]} if "warning" in one else {}
    return {"model": answer["model"], "duration": one["duration_sec"], "segments": one["turns"], **warning}


# The functions that shape the answers of the routes below /v1/audio, other than `_first`.
_SHAPES: dict[str, Shape] = {
    "transcriptions": _speech_shape,
    "translations": _speech_shape,
    "diarizations": _diarization_shape,
}


def _chat_shape(answer: Json) -> Json:
    one = answer["results"][0]
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": one["text"]},
        "finish_reason": one["finish_reason"],
    }
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": answer["model"],
        "choices": [choice],
        "usage": one["usage"],
        **({"warning": one["warning"]} if "warning" in one else {}),
    }
