"""The calls of both clients, as steps: audio and options → a request → a typed result.

    Calls.transcribe(audio, …) ──▶ Server or Endpoint ──▶ steps (see worker.client.transport) ──▶ Transcribed

Options are the fields of a request's payload. Their names are checked here, their values by the worker.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypedDict, TypeVar, cast

import httpx

from worker.client.audio import Audio, Upload, take
from worker.client.results import (
    Analyzed,
    CallResult,
    Captioned,
    Diarized,
    Embedded,
    Replied,
    Scored,
    Transcribed,
    read,
)
from worker.client.runpod import Endpoint, is_endpoint
from worker.client.server import Server
from worker.client.transport import Json, Steps
from worker.errors import RequestError
from worker.keyword_options import (
    AnalyzeOptions,
    CaptionOptions,
    ChatOptions,
    EmbedOptions,
    SpeakerOptions,
    SpeechOptions,
    check,
)

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


class DiarizeFields(SpeakerOptions, CallFields, total=False):
    """The options of `diarize`."""


class AnalyzeFields(AnalyzeOptions, CallFields, total=False):
    """The options of `analyze`: those of `caption` and `embed`."""


class ChatFields(ChatOptions, CallFields, total=False):
    """The options of `chat`."""


# The results of the tasks: the task's name, the TypedDict of its options, and the fields of every request.
_TASKS: dict[type[CallResult], tuple[str, Any, Json]] = {
    Transcribed: ("transcribe", TranscribeFields, {}),
    Captioned: ("caption", CaptionFields, {}),
    Embedded: ("embed", EmbedFields, {"encoding": "base64"}),
    Analyzed: ("analyze", AnalyzeFields, {"encoding": "base64"}),
    Diarized: ("diarize", DiarizeFields, {}),
    Replied: ("chat", ChatFields, {}),
    Scored: ("score", CallFields, {}),
}


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
        self.retries = retries
        self.target: Server | Endpoint = (
            Endpoint(base_url, retries, timeout) if is_endpoint(base_url) else Server(base_url, retries)
        )

    def transcribe(self, audio: Audio, **options: Unpack[TranscribeFields]) -> Steps[Transcribed]:
        """Return the steps to a transcript."""
        return self._call(Transcribed, audio, options)

    def caption(self, audio: Audio, **options: Unpack[CaptionFields]) -> Steps[Captioned]:
        """Return the steps to a caption."""
        return self._call(Captioned, audio, options)

    def embed(self, audio: Audio, **options: Unpack[EmbedFields]) -> Steps[Embedded]:
        """Return the steps to an embedding."""
        return self._call(Embedded, audio, options)

    def analyze(self, audio: Audio, **options: Unpack[AnalyzeFields]) -> Steps[Analyzed]:
        """Return the steps to a caption and an embedding."""
        return self._call(Analyzed, audio, options)

    def diarize(self, audio: Audio, **options: Unpack[DiarizeFields]) -> Steps[Diarized]:
        """Return the steps to the turns of the speakers."""
        return self._call(Diarized, audio, options)

    def chat(self, audio: Audio, messages: Turns, **options: Unpack[ChatFields]) -> Steps[Replied]:
        """Return the steps to a chat model's reply; `messages` is a question or a list of turns."""
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        turns = [dict(turn) for turn in messages]
        return self._call(Replied, audio, options, messages=turns)

    def score(self, audio: Audio, *, uid: str, cid: str, **options: Unpack[CallFields]) -> Steps[Scored]:
        """Return the steps to a score against the reference clip `cid` of the video `uid`."""
        return self._call(Scored, audio, options, uid=uid, cid=cid)

    def job(self, kind: type[CallResult], audio: Audio, options: Json) -> Json:
        """Return the payload of a Runpod job with one input. The target is an Endpoint.

        Raises: InputError for audio that cannot be sent; RequestError for an option that the task does not have.
        """
        return cast("Endpoint", self.target).payload(*_request(kind, audio, options))

    def request(
        self, kind: type[CallResult], audio: Audio, options: Mapping[str, Any], **fixed: Any
    ) -> tuple[str, Upload | str, Json]:
        """Return the task, the source and the fields of a call. `fixed` are fields beside the options.

        Raises: InputError for audio that cannot be sent; RequestError for an option that the task does not have.
        """
        return _request(kind, audio, dict(options), **fixed)

    def _call(self, kind: type[R], audio: Audio, options: Any, **fixed: Any) -> Steps[R]:
        """Return the steps of a task. `fixed` are fields beside the options."""
        result = yield from self.target.call(*_request(kind, audio, options, **fixed))
        return read(kind, result)


def _request(kind: type[CallResult], audio: Audio, options: Any, **fixed: Any) -> tuple[str, Upload | str, Json]:
    """Return the task, the source and the fields of a request. Raises: InputError, RequestError."""
    task, known, always = _TASKS[kind]
    check(task, known, options)
    fields = {name: value for name, value in (options | always | fixed).items() if value is not None}
    source = take(audio, fields.pop("sample_rate", None))
    return task, source, fields
