"""`Client` and `AsyncClient`: the same calls, one blocking and usable from any thread, one awaited.

    with Client("http://localhost:8000") as client:
        print(client.caption("song.wav", style="detailed").caption)

`base_url` is the URL of a server, or of a Runpod endpoint (https://api.runpod.ai/v2/<id>). `api_key` is sent as a
bearer token. `timeout` is the most seconds to wait for a response, or for a Runpod job to end. `retries` is how often a
request is sent again after a lost connection, or while the server is busy (status 429, 502 or 503); the client then
waits at least as long as Retry-After asks.

Every call raises AviaryError (`worker.errors`), as the worker does. In a batch, an exception that one input raises (of
any type) is that input's result.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import httpx

from worker.client.audio import Audio
from worker.client.calls import (
    AnalyzeFields,
    CallFields,
    Calls,
    CaptionFields,
    ChatFields,
    DiarizeFields,
    EmbedFields,
    TranscribeFields,
)
from worker.client.embedding_files import EmbeddingFiles
from worker.client.results import Analyzed, CallResult, Captioned, Diarized, Embedded, Replied, Scored, Transcribed
from worker.client.runpod import API
from worker.client.transport import Send, Steps, Wait, build_request
from worker.keyword_options import takes

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self, Unpack

    from worker.client.calls import Turns

T = TypeVar("T")
R = TypeVar("R", bound=CallResult)
P = TypeVar("P", bound=Audio)

BASE_URL = "http://localhost:8000"
TIMEOUT_SEC = 600.0
CONNECT_SEC = 10.0
RETRIES = 3


def _settings(api_key: str | None, timeout: float) -> dict[str, Any]:
    """Return the arguments for an httpx client. The number of connections is unlimited: the caller bounds it."""
    return {
        "headers": {"Authorization": f"Bearer {api_key}"} if api_key else {},
        "timeout": httpx.Timeout(timeout, connect=min(CONNECT_SEC, timeout), pool=None),
        "limits": httpx.Limits(max_connections=None, max_keepalive_connections=64),
    }


def _check_concurrency(concurrency: int) -> None:
    if concurrency < 1:
        raise ValueError(f"concurrency must be at least 1, not {concurrency}")


class Client:
    """A blocking client. Many threads may use it at the same time.

    As a context manager, it closes its connections at the end.
    """

    def __init__(
        self,
        base_url: str = BASE_URL,
        api_key: str | None = None,
        *,
        timeout: float = TIMEOUT_SEC,
        retries: int = RETRIES,
    ) -> None:
        self._base_url = base_url
        self._calls = Calls(base_url, timeout, retries)
        self._http = httpx.Client(**_settings(api_key, timeout))

    @classmethod
    def runpod(cls, endpoint_id: str, api_key: str, **options: Any) -> Self:
        """Return the client of a Runpod endpoint. `options` are those of the constructor."""
        return cls(f"{API}/{endpoint_id}", api_key, **options)

    @takes(TranscribeFields)
    def transcribe(self, audio: Audio, **options: Unpack[TranscribeFields]) -> Transcribed:
        """Transcribe the audio; with `target_language`, translate it into that language."""
        return self._run(self._calls.transcribe(audio, **options))

    @takes(CaptionFields)
    def caption(self, audio: Audio, **options: Unpack[CaptionFields]) -> Captioned:
        """Describe the audio in words."""
        return self._run(self._calls.caption(audio, **options))

    @takes(EmbedFields)
    def embed(self, audio: Audio, **options: Unpack[EmbedFields]) -> Embedded:
        """Return the features of the audio encoder."""
        return self._run(self._calls.embed(audio, **options))

    @takes(AnalyzeFields)
    def analyze(self, audio: Audio, **options: Unpack[AnalyzeFields]) -> Analyzed:
        """Return a caption and the features of the audio encoder."""
        return self._run(self._calls.analyze(audio, **options))

    @takes(DiarizeFields)
    def diarize(self, audio: Audio, **options: Unpack[DiarizeFields]) -> Diarized:
        """Return who speaks when, by the worker's DIARIZER unless `model` is set."""
        return self._run(self._calls.diarize(audio, **options))

    @takes(ChatFields)
    def chat(self, audio: Audio, messages: Turns, **options: Unpack[ChatFields]) -> Replied:
        """Return a chat model's reply to a question about the audio, or to the turns of a conversation.

        A turn is a mapping with `role` and `content`, and with `audio`: True if the audio belongs to it (by default,
        the first user turn).
        """
        return self._run(self._calls.chat(audio, messages, **options))

    @takes(CallFields)
    def score(self, audio: Audio, *, uid: str, cid: str, **options: Unpack[CallFields]) -> Scored:
        """Return the similarity of the audio to the reference clip `cid` of the video `uid`."""
        return self._run(self._calls.score(audio, uid=uid, cid=cid, **options))

    @takes(AnalyzeFields)
    def batch_analyze(
        self,
        audios: Iterable[P],
        output_dir: str | Path | None = None,
        concurrency: int = 16,
        **options: Unpack[AnalyzeFields],
    ) -> Iterator[tuple[P, Analyzed | Exception]]:
        """Yield each audio with its result or its exception, in the order in which they finish.

        At most `concurrency` calls run at a time; audio is taken from `audios` as calls finish. With `output_dir`, each
        embedding is written there, as a .npy file with the name of its audio (and a number if the name is in use).

        Raises: ValueError if `concurrency` is less than 1.
        """
        return self._batch(
            lambda audio: self.analyze(audio, **options), audios, EmbeddingFiles(output_dir), concurrency
        )

    @takes(TranscribeFields)
    def batch_transcribe(
        self, audios: Iterable[P], concurrency: int = 16, **options: Unpack[TranscribeFields]
    ) -> Iterator[tuple[P, Transcribed | Exception]]:
        """Yield each audio with its transcript or its exception, as `batch_analyze` does."""
        return self._batch(lambda audio: self.transcribe(audio, **options), audios, EmbeddingFiles(None), concurrency)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({httpx.URL(self._base_url)!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, steps: Steps[T]) -> T:
        try:
            step = next(steps)
            while True:
                try:
                    response = self._do(step)
                except BaseException as error:  # noqa: BLE001  the steps handle it; they may cancel a job first
                    step = steps.throw(error)
                else:
                    step = steps.send(response)
        except StopIteration as end:
            result: T = end.value
            return result

    def _do(self, step: Send | Wait) -> httpx.Response | None:
        if isinstance(step, Wait):
            time.sleep(step.seconds)
            return None
        with build_request(self._http, step) as request:
            return self._http.send(request)

    @staticmethod
    def _batch(
        call: Callable[[P], R], audios: Iterable[P], files: EmbeddingFiles, concurrency: int
    ) -> Iterator[tuple[P, R | Exception]]:
        def run(audio: P, path: Path | None) -> R | Exception:
            try:
                return files.store(call(audio), path)
            except Exception as error:  # noqa: BLE001  one input's error must not cost the others their results
                return error

        _check_concurrency(concurrency)
        pool = ThreadPoolExecutor(concurrency, thread_name_prefix="aviary-client")
        running: dict[Future[R | Exception], P] = {}
        remaining = iter(audios)
        try:
            while True:
                for audio in itertools.islice(remaining, concurrency - len(running)):
                    running[pool.submit(run, audio, files.path_for(audio))] = audio
                if not running:
                    return
                for done in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(done), done.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


class AsyncClient:
    """An awaitable client. Canceling a call aborts its request, and cancels its Runpod job.

    As an async context manager, it closes its connections at the end.
    """

    def __init__(
        self,
        base_url: str = BASE_URL,
        api_key: str | None = None,
        *,
        timeout: float = TIMEOUT_SEC,
        retries: int = RETRIES,
    ) -> None:
        self._base_url = base_url
        self._calls = Calls(base_url, timeout, retries)
        self._http = httpx.AsyncClient(**_settings(api_key, timeout))

    @classmethod
    def runpod(cls, endpoint_id: str, api_key: str, **options: Any) -> Self:
        """Return the client of a Runpod endpoint. `options` are those of the constructor."""
        return cls(f"{API}/{endpoint_id}", api_key, **options)

    @takes(TranscribeFields)
    async def transcribe(self, audio: Audio, **options: Unpack[TranscribeFields]) -> Transcribed:
        """Do as `Client.transcribe` does."""
        return await self._run(self._calls.transcribe(audio, **options))

    @takes(CaptionFields)
    async def caption(self, audio: Audio, **options: Unpack[CaptionFields]) -> Captioned:
        """Do as `Client.caption` does."""
        return await self._run(self._calls.caption(audio, **options))

    @takes(EmbedFields)
    async def embed(self, audio: Audio, **options: Unpack[EmbedFields]) -> Embedded:
        """Do as `Client.embed` does."""
        return await self._run(self._calls.embed(audio, **options))

    @takes(AnalyzeFields)
    async def analyze(self, audio: Audio, **options: Unpack[AnalyzeFields]) -> Analyzed:
        """Do as `Client.analyze` does."""
        return await self._run(self._calls.analyze(audio, **options))

    @takes(DiarizeFields)
    async def diarize(self, audio: Audio, **options: Unpack[DiarizeFields]) -> Diarized:
        """Do as `Client.diarize` does."""
        return await self._run(self._calls.diarize(audio, **options))

    @takes(ChatFields)
    async def chat(self, audio: Audio, messages: Turns, **options: Unpack[ChatFields]) -> Replied:
        """Do as `Client.chat` does."""
        return await self._run(self._calls.chat(audio, messages, **options))

    @takes(CallFields)
    async def score(self, audio: Audio, *, uid: str, cid: str, **options: Unpack[CallFields]) -> Scored:
        """Do as `Client.score` does."""
        return await self._run(self._calls.score(audio, uid=uid, cid=cid, **options))

    @takes(AnalyzeFields)
    def batch_analyze(
        self,
        audios: Iterable[P],
        output_dir: str | Path | None = None,
        concurrency: int = 16,
        **options: Unpack[AnalyzeFields],
    ) -> AsyncIterator[tuple[P, Analyzed | Exception]]:
        """Do as `Client.batch_analyze` does."""
        return self._batch(
            lambda audio: self.analyze(audio, **options), audios, EmbeddingFiles(output_dir), concurrency
        )

    @takes(TranscribeFields)
    def batch_transcribe(
        self, audios: Iterable[P], concurrency: int = 16, **options: Unpack[TranscribeFields]
    ) -> AsyncIterator[tuple[P, Transcribed | Exception]]:
        """Do as `Client.batch_transcribe` does."""
        return self._batch(lambda audio: self.transcribe(audio, **options), audios, EmbeddingFiles(None), concurrency)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({httpx.URL(self._base_url)!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _run(self, steps: Steps[T]) -> T:
        try:
            step = next(steps)
            while True:
                try:
                    response = await self._do(step)
                except BaseException as error:  # noqa: BLE001  the steps handle it; they may cancel a job first
                    step = steps.throw(error)
                else:
                    step = steps.send(response)
        except StopIteration as end:
            result: T = end.value
            return result

    async def _do(self, step: Send | Wait) -> httpx.Response | None:
        if isinstance(step, Wait):
            await asyncio.sleep(step.seconds)
            return None
        with build_request(self._http, step) as request:
            return await self._http.send(request)

    @staticmethod
    async def _batch(
        call: Callable[[P], Awaitable[R]], audios: Iterable[P], files: EmbeddingFiles, concurrency: int
    ) -> AsyncIterator[tuple[P, R | Exception]]:
        async def run(audio: P, path: Path | None) -> R | Exception:
            try:
                result = await call(audio)
                return await asyncio.to_thread(files.store, result, path) if path else result
            except Exception as error:  # noqa: BLE001  one input's error must not cost the others their results
                return error

        _check_concurrency(concurrency)
        running: dict[asyncio.Task[R | Exception], P] = {}
        remaining = iter(audios)
        try:
            while True:
                for audio in itertools.islice(remaining, concurrency - len(running)):
                    running[asyncio.create_task(run(audio, files.path_for(audio)))] = audio
                if not running:
                    return
                done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    yield running.pop(task), task.result()
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
