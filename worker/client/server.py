"""A question to Aviary's HTTP server: a form with the file, or JSON with a URL, on the route of its task."""

from __future__ import annotations

from typing import Any

from worker.client.audio import Upload
from worker.client.wire import Json, Send, Steps, exchange
from worker.errors import InternalError

_ROUTES = {
    "transcribe": "/v1/audio/transcriptions",
    "caption": "/v1/audio/captions",
    "embed": "/v1/audio/embeddings",
    "analyze": "/v1/audio/analyze",
    "chat": "/v1/chat/completions",
    "score": "/score",
}
_RENAMED = {"encoding": "encoding_format"}


class Server:
    """`base_url`: without a path, or with OpenAI's /v1."""

    def __init__(self, base_url: str, retries: int) -> None:
        self._base, self._retries = base_url.rstrip("/").removesuffix("/v1"), retries

    def ask(self, task: str, source: Upload | str, fields: Json) -> Steps[Json]:
        """One result, as the worker writes it, with the model's name."""
        answer = yield from exchange(self._send(task, source, fields), self._retries)
        if task == "transcribe":
            return _speech(answer)
        return _chat(answer) if task == "chat" else answer

    def _send(self, task: str, source: Upload | str, fields: Json) -> Send:
        url = self._base + _ROUTES[task]
        if task == "chat":
            return Send("POST", url, json={**fields, "messages": _messages(fields["messages"], source)})
        body = {_RENAMED.get(name, name): value for name, value in fields.items()}
        if task == "transcribe":
            timed = body.pop("timestamps", False)
            body["response_format"] = "verbose_json" if timed else "json"
            if timed:
                body["timestamp_granularities"] = ["word", "segment"]
        if isinstance(source, Upload):
            return Send("POST", url, form=_form(body), file=("audio" if task == "score" else "file", source))
        return Send("POST", url, json=body | {"audio": source})


def _form(body: Json) -> dict[str, str | list[str]]:
    """Values as text: a list is a field whose name ends in [], as OpenAI has it."""
    return {
        f"{name}[]" if isinstance(value, list) else name: value
        if isinstance(value, list)
        else str(value).lower()
        if isinstance(value, bool)
        else str(value)
        for name, value in body.items()
    }


def _messages(turns: list[Json], source: Upload | str) -> list[Json]:
    """OpenAI's: the audio is a part of the turn that it belongs to."""
    place = next((i for i, turn in enumerate(turns) if turn.get("audio")), None)
    if place is None:
        place = next((i for i, turn in enumerate(turns) if turn.get("role") == "user"), 0)
    audio: Json = {"type": "audio", "audio": {"data": source} if isinstance(source, Upload) else {"url": source}}
    return [
        {"role": turn.get("role"), "content": [audio, _text(turn)] if i == place else [_text(turn)]}
        for i, turn in enumerate(turns)
    ]


def _text(turn: Json) -> Json:
    return {"type": "text", "text": turn.get("content")}


def _speech(answer: Json) -> Json:
    spans = {level: answer[f"{level}s"] for level in ("word",) if f"{level}s" in answer}
    if "segments" in answer:
        spans["segment"] = [{**one, "segment": one["text"]} for one in answer["segments"]]
    seconds = (answer.get("usage") or {}).get("seconds")
    return {**answer, "timestamps": spans, "duration_sec": answer.get("duration", seconds)}


def _chat(answer: Json) -> Json:
    try:
        choice: Any = answer["choices"][0]
        return {
            "model": answer.get("model"),
            "text": choice["message"]["content"],
            "finish_reason": choice["finish_reason"],
            "usage": answer["usage"],
        }
    except (KeyError, IndexError, TypeError) as error:
        raise InternalError("the answer is not a chat completion") from error
