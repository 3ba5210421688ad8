"""The calls of both clients, as steps: audio and options → a request → a typed result.

    Calls.transcribe(audio, …) ──▶ Server or Endpoint ──▶ steps (see worker.client.transport) ──▶ Transcribed

Options are the fields of a request's payload. Their names are checked here, their values by the worker.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypedDict, TypeVar

import httpx

from worker.client.audio import Audio, take
from worker.client.results import Analyzed, CallResult, Captioned, Embedded, Replied, Scored, Transcribed, read
from worker.client.runpod import Endpoint
from worker.client.server import Server
from worker.client.transport import Steps
from worker.errors import RequestError
from worker.keyword_options import AnalyzeOptions, CaptionOptions, ChatOptions, EmbedOptions, SpeechOptions, check

if TYPE_CHECKING:
    from typing_extensions import Unpack

R = TypeVar("R", bound=CallResult)
Turns = str | Sequence[Mapping[str, Any]]


class CallFields(TypedDict, total=False):
    """The options of every call."""

    model: Annotated[str, "An alias or id of the catalog. By default the worker's default model."]
    sample_rate: Annotated[int, "The sample rate of an array in Hz, which an array requires."]


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
        return self._call(Transcribed, "transcribe", audio, TranscribeFields, options)

    def caption(self, audio: Audio, **options: Unpack[CaptionFields]) -> Steps[Captioned]:
        """Return the steps to a caption."""
        return self._call(Captioned, "caption", audio, CaptionFields, options)

    def embed(self, audio: Audio, **options: Unpack[EmbedFields]) -> Steps[Embedded]:
        """Return the steps to an embedding."""
        return self._call(Embedded, "embed", audio, EmbedFields, options, encoding="base64")

    def analyze(self, audio: Audio, **options: Unpack[AnalyzeFields]) -> Steps[Analyzed]:
        """Return the steps to a caption and an embedding."""
        return self._call(Analyzed, "analyze", audio, AnalyzeFields, options, encoding="base64")

    def chat(self, audio: Audio, messages: Turns, **options: Unpack[ChatFields]) -> Steps[Replied]:
        """Return the steps to a chat model's reply; `messages` is a question or a list of turns."""
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        turns = [dict(turn) for turn in messages]
        return self._call(Replied, "chat", audio, ChatFields, options, messages=turns)

    def score(self, audio: Audio, *, uid: str, cid: str, **options: Unpack[CallFields]) -> Steps[Scored]:
        """Return the steps to a score against the reference clip `cid` of the video `uid`."""
        return self._call(Scored, "score", audio, CallFields, options, uid=uid, cid=cid)

    def _call(self, kind: type[R], task: str, audio: Audio, known: Any, options: Any, **fixed: Any) -> Steps[R]:
        """Return the steps of a task. `known` is the TypedDict of its options; `fixed` are fields beside them."""
        check(task, known, options)
        fields = {name: value for name, value in (options | fixed).items() if value is not None}
        source = take(audio, fields.pop("sample_rate", None))
        result = yield from self._target.call(task, source, fields)
        return read(kind, result)
