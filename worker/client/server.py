"""Calls to Aviary's HTTP server: a form with the file, or JSON with a URL, to the route of the task."""

from __future__ import annotations

from typing import Any

from worker.client.audio import Upload
from worker.client.transport import Json, Send, Steps, exchange
from worker.errors import InternalError

_ROUTES = {
    "transcribe": "/v1/audio/transcriptions",
    "caption": "/v1/audio/captions",
    "embed": "/v1/audio/embeddings",
    "analyze": "/v1/audio/analyze",
    "diarize": "/v1/audio/diarizations",
    "chat": "/v1/chat/completions",
    "score": "/score",
}
_RENAMED = {"encoding": "encoding_format"}


class Server:
    """One HTTP server. `base_url` has no path, or OpenAI's /v1. `retries` is as in `exchange`."""

    def __init__(self, base_url: str, retries: int) -> None:
        self.base, self._retries = base_url.rstrip("/").removesuffix("/v1"), retries

    def call(self, task: str, source: Upload | str, fields: Json) -> Steps[Json]:
        """Send one input, and return its result in the shape of `worker.protocol.render`, with the model's id.

        Raises: AviaryError, as `exchange` does.
        """
        response = yield from exchange(self._request(task, source, fields), self._retries)
        if task == "transcribe":
            return _from_openai_speech(response)
        if task == "diarize":
            return {**response, "turns": response.get("segments"), "duration_sec": response.get("duration")}
        return _from_openai_chat(response) if task == "chat" else response

    def _request(self, task: str, source: Upload | str, fields: Json) -> Send:
        url = self.base + _ROUTES[task]
        if task == "chat":
            return Send("POST", url, json={**fields, "messages": _messages(fields["messages"], source)})
        body = {_RENAMED.get(name, name): value for name, value in fields.items()}
        if task == "transcribe":
            with_times = body.pop("timestamps", False) or body.get("diarize", False)
            # A model without times splits channels, too: verbose_json has the times that there are.
            body["response_format"] = "verbose_json" if with_times or body.get("channels") == "split" else "json"
            if with_times:
                body["timestamp_granularities"] = ["word", "segment"]
        if isinstance(source, Upload):
            return Send("POST", url, form=_form(body), file=("audio" if task == "score" else "file", source))
        return Send("POST", url, json=body | {"audio": source})


def _form(body: Json) -> dict[str, str | list[str]]:
    """Return the fields as text. As in OpenAI's form, the name of a list's field ends in []."""
    form: dict[str, str | list[str]] = {}
    for name, value in body.items():
        if isinstance(value, list):
            form[f"{name}[]"] = value
        else:
            form[name] = str(value).lower() if isinstance(value, bool) else str(value)
    return form


def _messages(turns: list[Json], source: Upload | str) -> list[Json]:
    """Return OpenAI's messages, with the audio as a part of the turn marked `audio`, else of the first user turn."""
    position = next((i for i, turn in enumerate(turns) if turn.get("audio")), None)
    if position is None:
        position = next((i for i, turn in enumerate(turns) if turn.get("role") == "user"), 0)
    audio: Json = {"type": "audio", "audio": {"data": source} if isinstance(source, Upload) else {"url": source}}
    return [
        {"role": turn.get("role"), "content": [audio, _text(turn)] if i == position else [_text(turn)]}
        for i, turn in enumerate(turns)
    ]


def _text(turn: Json) -> Json:
    return {"type": "text", "text": turn.get("content")}


def _from_openai_speech(response: Json) -> Json:
    """Return a result from OpenAI's json or verbose_json."""
    spans: dict[str, Any] = {"word": response["words"]} if "words" in response else {}
    if "segments" in response:
        spans["segment"] = [{**segment, "segment": segment["text"]} for segment in response["segments"]]
    seconds = (response.get("usage") or {}).get("seconds")
    return {**response, "timestamps": spans, "duration_sec": response.get("duration", seconds)}


def _from_openai_chat(response: Json) -> Json:
    """Return a result from OpenAI's chat completion."""
    try:
        choice: Any = response["choices"][0]
        return {
            "model": response.get("model"),
            "warning": response.get("warning"),
            "text": choice["message"]["content"],
            "finish_reason": choice["finish_reason"],
            "usage": response["usage"],
        }
    except (KeyError, IndexError, TypeError) as error:
        raise InternalError("the server's response is not a chat completion") from error
