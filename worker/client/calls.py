"""The calls of both clients, as steps: audio and options → a request → a typed result.

    Calls.transcribe(audio, …) ──▶ Server or Endpoint ──▶ steps (see worker.client.transport) ──▶ Transcribed

Options are the fields of a request's payload. The worker validates them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

import httpx

from worker.client.audio import Audio, take
from worker.client.results import Analyzed, CallResult, Captioned, Embedded, Replied, Scored, Transcribed, read
from worker.client.runpod import Endpoint
from worker.client.server import Server
from worker.client.transport import Steps
from worker.errors import RequestError
from worker.keyword_options import AnalyzeOptions, CaptionOptions, ChatOptions, EmbedOptions, SpeechOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack

R = TypeVar("R", bound=CallResult)
Turns = str | Sequence[Mapping[str, Any]]


class CallFields(TypedDict, total=False):
    """The options of every call.

    `model` is an alias or id of the catalog; by default the worker's default model. `sample_rate` in Hz is required
    for an array, and rejected for other audio.
    """

    model: str
    sample_rate: int


class TranscribeFields(SpeechOptions, CallFields, total=False):
    """The options of `transcribe`."""


class CaptionFields(CaptionOptions, CallFields, total=False):
    """The options of `caption`."""


class EmbedFields(EmbedOptions, CallFields, total=False):
    """The options of `embed`."""


class AnalyzeFields(AnalyzeOptions, CallFields, total=False):
    """The options of `analyze`: those of `caption` and `embed`."""


class ChatFields(ChatOptions, CallFields, total=False):
    """The options of `chat`."""


class Calls:
    """The calls to one address; a path that ends in /v2/<id> is a Runpod endpoint's.

    Each method returns the steps to its result. The steps raise InputError for audio that cannot be sent, and
    AviaryError for an error that the worker reports.
    """

    def __init__(self, base_url: str, timeout: float, retries: int) -> None:
        """`timeout` is the most seconds that a Runpod job may take. Raises: RequestError if `base_url` is not a URL."""
        url = httpx.URL(base_url)
        if url.scheme not in ("http", "https") or not url.host:
            raise RequestError(f"base_url must be an http(s) URL with a host, not {base_url!r}", param="base_url")
        is_endpoint = re.search(r"/v2/[^/]+/?$", url.path)
        self._target: Server | Endpoint = (
            Endpoint(base_url, retries, timeout) if is_endpoint else Server(base_url, retries)
        )

    def transcribe(self, audio: Audio, **options: Unpack[TranscribeFields]) -> Steps[Transcribed]:
        """Return the steps to a transcript."""
        return self._call(Transcribed, "transcribe", audio, options)

    def caption(self, audio: Audio, **options: Unpack[CaptionFields]) -> Steps[Captioned]:
        """Return the steps to a caption."""
        return self._call(Captioned, "caption", audio, options)

    def embed(self, audio: Audio, **options: Unpack[EmbedFields]) -> Steps[Embedded]:
        """Return the steps to an embedding."""
        return self._call(Embedded, "embed", audio, {**options, "encoding": "base64"})

    def analyze(self, audio: Audio, **options: Unpack[AnalyzeFields]) -> Steps[Analyzed]:
        """Return the steps to a caption and an embedding."""
        return self._call(Analyzed, "analyze", audio, {**options, "encoding": "base64"})

    def chat(self, audio: Audio, messages: Turns, **options: Unpack[ChatFields]) -> Steps[Replied]:
        """Return the steps to a chat model's reply; `messages` is a question or a list of turns."""
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        return self._call(Replied, "chat", audio, {**options, "messages": [dict(turn) for turn in messages]})

    def score(self, audio: Audio, *, uid: str, cid: str, **options: Unpack[CallFields]) -> Steps[Scored]:
        """Return the steps to a score against the reference clip `cid` of the video `uid`."""
        return self._call(Scored, "score", audio, {**options, "uid": uid, "cid": cid})

    def _call(self, kind: type[R], task: str, audio: Audio, options: Mapping[str, Any]) -> Steps[R]:
        fields = {name: value for name, value in options.items() if value is not None}
        source = take(audio, fields.pop("sample_rate", None))
        result = yield from self._target.call(task, source, fields)
        return read(kind, result)
