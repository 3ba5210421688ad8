"""What can be asked, as steps: the core under both clients. Options are the request's fields (README), checked by the
worker."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar

import httpx

from worker.client.audio import Audio, take
from worker.client.results import Analyzed, Answer, Captioned, Embedded, Replied, Scored, Transcribed, read
from worker.client.runpod import Endpoint
from worker.client.server import Server
from worker.client.wire import Steps
from worker.errors import RequestError

if TYPE_CHECKING:
    from typing_extensions import Unpack

A = TypeVar("A", bound=Answer)
Turns = str | Sequence[Mapping[str, Any]]


class RequestOptions(TypedDict, total=False):
    """`model`: an alias or id, else the worker's default. `sample_rate`: of an array, which needs it."""

    model: str
    sample_rate: int


class Generation(RequestOptions, total=False):
    """Of models that write token by token."""

    prompt: str
    max_new_tokens: int
    temperature: float
    top_p: float


class Transcribing(Generation, total=False):
    """`timestamps`: words and segments with their times. `target_language`: what to write, where it is not what is
    spoken."""

    timestamps: bool
    language: str
    target_language: str
    punctuation: bool


class Captioning(Generation, total=False):
    style: Literal["detailed", "brief", "technical"]


class EmbedOptions(RequestOptions, total=False):
    pooling: Literal["none", "mean"]


class Analyzing(Captioning, EmbedOptions, total=False):
    pass


class Chatting(RequestOptions, total=False):
    max_new_tokens: int
    temperature: float
    top_p: float


class Calls:
    """The calls to one address; a path that ends in /v2/<id> is a Runpod endpoint's.

    Each gives the steps to its result. Raises InputError for audio that cannot be sent, AviaryError for what the
    worker says.
    """

    def __init__(self, base_url: str, timeout: float, retries: int) -> None:
        url = httpx.URL(base_url)
        if url.scheme not in ("http", "https") or not url.host:
            raise RequestError(f"base_url is http(s)://host..., not {base_url!r}", param="base_url")
        endpoint = re.search(r"/v2/[^/]+/?$", url.path)
        self._wire: Server | Endpoint = Endpoint(base_url, retries, timeout) if endpoint else Server(base_url, retries)

    def transcribe(self, audio: Audio, **options: Unpack[Transcribing]) -> Steps[Transcribed]:
        return self._ask(Transcribed, "transcribe", audio, options)

    def caption(self, audio: Audio, **options: Unpack[Captioning]) -> Steps[Captioned]:
        return self._ask(Captioned, "caption", audio, options)

    def embed(self, audio: Audio, **options: Unpack[EmbedOptions]) -> Steps[Embedded]:
        return self._ask(Embedded, "embed", audio, {**options, "encoding": "base64"})

    def analyze(self, audio: Audio, **options: Unpack[Analyzing]) -> Steps[Analyzed]:
        return self._ask(Analyzed, "analyze", audio, {**options, "encoding": "base64"})

    def chat(self, audio: Audio, messages: Turns, **options: Unpack[Chatting]) -> Steps[Replied]:
        turns = (
            [{"role": "user", "content": messages}] if isinstance(messages, str) else [dict(turn) for turn in messages]
        )
        return self._ask(Replied, "chat", audio, {**options, "messages": turns})

    def score(self, audio: Audio, *, uid: str, cid: str, **options: Unpack[RequestOptions]) -> Steps[Scored]:
        return self._ask(Scored, "score", audio, {**options, "uid": uid, "cid": cid})

    def _ask(self, kind: type[A], task: str, audio: Audio, options: Mapping[str, Any]) -> Steps[A]:
        given = {name: value for name, value in options.items() if value is not None}
        source = take(audio, given.pop("sample_rate", None))
        answer = yield from self._wire.ask(task, source, given)
        return read(kind, answer)
