"""`Client` and `AsyncClient`: the same calls, one blocking and for any thread, one awaited.

    with Client("http://localhost:8000") as client:
        print(client.caption("song.wav", style="detailed").caption)

`base_url` is a server's, or a Runpod endpoint's (https://api.runpod.ai/v2/<id>). `timeout`: the longest to wait for an
answer, or
for a Runpod job to be done. `retries`: how often a request is sent again after a lost connection, or when the other
side is
busy (429, 502, 503; as late as it says). Every call raises AviaryError (`worker.errors`), as the worker itself does;
in a batch whatever an input raises, a TypeError or OSError too, is its result.
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
from worker.client.batch import Names
from worker.client.calls import Calls
from worker.client.results import Analyzed, Answer, Captioned, Embedded, Replied, Scored, Transcribed
from worker.client.runpod import API
from worker.client.wire import Send, Steps, Wait, prepared

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self, Unpack

    from worker.client.calls import Analyzing, Captioning, Chatting, EmbedOptions, RequestOptions, Transcribing, Turns

T = TypeVar("T")
A = TypeVar("A", bound=Answer)
P = TypeVar("P", bound=Audio)

BASE_URL = "http://localhost:8000"
TIMEOUT_SEC = 600.0
CONNECT_SEC = 10.0
RETRIES = 3


def _settings(api_key: str | None, timeout: float) -> dict[str, Any]:
    """What both of httpx's clients are made of. The caller bounds how many connections there are."""
    return {
        "headers": {"Authorization": f"Bearer {api_key}"} if api_key else {},
        "timeout": httpx.Timeout(timeout, connect=min(CONNECT_SEC, timeout), pool=None),
        "limits": httpx.Limits(max_connections=None, max_keepalive_connections=64),
    }


def _check(concurrency: int) -> None:
    if concurrency < 1:
        raise ValueError(f"concurrency must be at least 1, not {concurrency}")


class Client:
    """Blocking; may be used by many threads at a time."""

    def __init__(
        self,
        base_url: str = BASE_URL,
        api_key: str | None = None,
        *,
        timeout: float = TIMEOUT_SEC,
        retries: int = RETRIES,
    ) -> None:
        self._calls = Calls(base_url, timeout, retries)
        self._http = httpx.Client(**_settings(api_key, timeout))

    @classmethod
    def runpod(cls, endpoint_id: str, api_key: str, **options: Any) -> Self:
        """The client of a Runpod endpoint."""
        return cls(f"{API}/{endpoint_id}", api_key, **options)

    def transcribe(self, audio: Audio, **options: Unpack[Transcribing]) -> Transcribed:
        """What is said; with target_language, in that language."""
        return self._run(self._calls.transcribe(audio, **options))

    def caption(self, audio: Audio, **options: Unpack[Captioning]) -> Captioned:
        """A description in words."""
        return self._run(self._calls.caption(audio, **options))

    def embed(self, audio: Audio, **options: Unpack[EmbedOptions]) -> Embedded:
        """The audio encoder's features."""
        return self._run(self._calls.embed(audio, **options))

    def analyze(self, audio: Audio, **options: Unpack[Analyzing]) -> Analyzed:
        """Caption and features."""
        return self._run(self._calls.analyze(audio, **options))

    def chat(self, audio: Audio, messages: Turns, **options: Unpack[Chatting]) -> Replied:
        """The answer to a question about the audio, or to a conversation's turns (`role`, `content`, and `audio`: True
        on the one that the audio belongs to)."""
        return self._run(self._calls.chat(audio, messages, **options))

    def score(self, audio: Audio, *, uid: str, cid: str, **options: Unpack[RequestOptions]) -> Scored:
        """How like the reference clip `cid` of `uid` the audio is."""
        return self._run(self._calls.score(audio, uid=uid, cid=cid, **options))

    def batch_analyze(
        self,
        audios: Iterable[P],
        output_dir: str | Path | None = None,
        concurrency: int = 16,
        **options: Unpack[Analyzing],
    ) -> Iterator[tuple[P, Analyzed | Exception]]:
        """Each audio with its result or error, as they come. `output_dir`: where each embedding is written, under its
        audio's name with .npy, and a number where several have it."""
        return self._batch(lambda audio: self.analyze(audio, **options), audios, Names(output_dir), concurrency)

    def batch_transcribe(
        self, audios: Iterable[P], concurrency: int = 16, **options: Unpack[Transcribing]
    ) -> Iterator[tuple[P, Transcribed | Exception]]:
        """Each audio with its result or error, as they come."""
        return self._batch(lambda audio: self.transcribe(audio, **options), audios, Names(None), concurrency)

    def close(self) -> None:
        self._http.close()

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
                except BaseException as error:  # noqa: BLE001  the core decides; it may have a job to cancel first
                    step = steps.throw(error)
                else:
                    step = steps.send(response)
        except StopIteration as end:
            answer: T = end.value
            return answer

    def _do(self, step: Send | Wait) -> httpx.Response | None:
        if isinstance(step, Wait):
            time.sleep(step.seconds)
            return None
        with prepared(self._http, step) as request:
            return self._http.send(request)

    @staticmethod
    def _batch(
        ask: Callable[[P], A], audios: Iterable[P], names: Names, concurrency: int
    ) -> Iterator[tuple[P, A | Exception]]:
        def one(audio: P, path: Path | None) -> A | Exception:
            try:
                return names.kept(ask(audio), path)
            except Exception as error:  # noqa: BLE001  one input's, which must not cost the others their results
                return error

        _check(concurrency)
        pool = ThreadPoolExecutor(concurrency, thread_name_prefix="aviary-client")
        running: dict[Future[A | Exception], P] = {}
        rest = iter(audios)
        try:
            while True:
                for audio in itertools.islice(rest, concurrency - len(running)):
                    running[pool.submit(one, audio, names.next(audio))] = audio
                if not running:
                    return
                for done in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(done), done.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


class AsyncClient:
    """Awaited; cancelling a call gives its request up, and cancels its Runpod job."""

    def __init__(
        self,
        base_url: str = BASE_URL,
        api_key: str | None = None,
        *,
        timeout: float = TIMEOUT_SEC,
        retries: int = RETRIES,
    ) -> None:
        self._calls = Calls(base_url, timeout, retries)
        self._http = httpx.AsyncClient(**_settings(api_key, timeout))

    @classmethod
    def runpod(cls, endpoint_id: str, api_key: str, **options: Any) -> Self:
        """The client of a Runpod endpoint."""
        return cls(f"{API}/{endpoint_id}", api_key, **options)

    async def transcribe(self, audio: Audio, **options: Unpack[Transcribing]) -> Transcribed:
        """As Client's."""
        return await self._run(self._calls.transcribe(audio, **options))

    async def caption(self, audio: Audio, **options: Unpack[Captioning]) -> Captioned:
        """As Client's."""
        return await self._run(self._calls.caption(audio, **options))

    async def embed(self, audio: Audio, **options: Unpack[EmbedOptions]) -> Embedded:
        """As Client's."""
        return await self._run(self._calls.embed(audio, **options))

    async def analyze(self, audio: Audio, **options: Unpack[Analyzing]) -> Analyzed:
        """As Client's."""
        return await self._run(self._calls.analyze(audio, **options))

    async def chat(self, audio: Audio, messages: Turns, **options: Unpack[Chatting]) -> Replied:
        """As Client's."""
        return await self._run(self._calls.chat(audio, messages, **options))

    async def score(self, audio: Audio, *, uid: str, cid: str, **options: Unpack[RequestOptions]) -> Scored:
        """As Client's."""
        return await self._run(self._calls.score(audio, uid=uid, cid=cid, **options))

    def batch_analyze(
        self,
        audios: Iterable[P],
        output_dir: str | Path | None = None,
        concurrency: int = 16,
        **options: Unpack[Analyzing],
    ) -> AsyncIterator[tuple[P, Analyzed | Exception]]:
        """As Client's."""
        return self._batch(lambda audio: self.analyze(audio, **options), audios, Names(output_dir), concurrency)

    def batch_transcribe(
        self, audios: Iterable[P], concurrency: int = 16, **options: Unpack[Transcribing]
    ) -> AsyncIterator[tuple[P, Transcribed | Exception]]:
        """As Client's."""
        return self._batch(lambda audio: self.transcribe(audio, **options), audios, Names(None), concurrency)

    async def close(self) -> None:
        await self._http.aclose()

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
                except BaseException as error:  # noqa: BLE001  the core decides; it may have a job to cancel first
                    step = steps.throw(error)
                else:
                    step = steps.send(response)
        except StopIteration as end:
            answer: T = end.value
            return answer

    async def _do(self, step: Send | Wait) -> httpx.Response | None:
        if isinstance(step, Wait):
            await asyncio.sleep(step.seconds)
            return None
        with prepared(self._http, step) as request:
            return await self._http.send(request)

    @staticmethod
    async def _batch(
        ask: Callable[[P], Awaitable[A]], audios: Iterable[P], names: Names, concurrency: int
    ) -> AsyncIterator[tuple[P, A | Exception]]:
        async def one(audio: P, path: Path | None) -> A | Exception:
            try:
                result = await ask(audio)
                return await asyncio.to_thread(names.kept, result, path) if path else result
            except Exception as error:  # noqa: BLE001  one input's, which must not cost the others their results
                return error

        _check(concurrency)
        running: dict[asyncio.Task[A | Exception], P] = {}
        rest = iter(audios)
        try:
            while True:
                for audio in itertools.islice(rest, concurrency - len(running)):
                    running[asyncio.create_task(one(audio, names.next(audio)))] = audio
                if not running:
                    return
                done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    yield running.pop(task), task.result()
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
