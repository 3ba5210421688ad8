"""The realtime sessions of a server: a `Session` for each WebSocket, with the service around it.

    client ──▶ backlog ──┐                          ┌──▶ events ──▶ client
                         ├──▶ inbox ──▶ Session ────┤
    transcripts ─────────┘    (a thread for events) └──▶ utterances ──▶ service ──▶ engine ──▶ transcripts

An utterance is an interactive request like any other: it shares batches and takes turns with the requests of all
clients. While the model loads or the queue is full, the utterance waits.

The turns of a streaming model are `_Turn`s: their chunks run one after another, and share batches with the chunks of
all sessions. Chunks that arrive while one runs are run together.

No further event is handled while PENDING utterances of the session wait for their transcript, nor while the client
does not read its events. The server still reads events until they take BACKLOG bytes, so that it responds to pings and
notices when the connection ends. Then it reads nothing, which slows down a client that sends faster than its audio is
transcribed.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import io
import json
import logging
import sys
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any

import numpy as np
from fastapi.websockets import WebSocket, WebSocketDisconnect

from worker.backends.common import vad
from worker.catalog import find
from worker.config import Settings
from worker.entrypoints.http.realtime import config
from worker.entrypoints.http.realtime.config import Json
from worker.entrypoints.http.realtime.session import Output, Result, Session, Utterance
from worker.entrypoints.http.service import Service
from worker.errors import AviaryError, QueueFull, StillLoading, TooManyConnections
from worker.faults import report
from worker.protocol.render import logprobs
from worker.protocol.request import parse
from worker.types import Clip, Item, Live

log = logging.getLogger(__name__)

PENDING = 8
BACKLOG = 4 << 20  # bytes: a minute of live audio
RETRY_SEC = 1.0  # the longest wait before an utterance asks again for its place in the queue
_SUBPROTOCOL = "realtime"
_INTERNAL_ERROR = 1011  # of RFC 6455


class Sessions:
    """All sessions of one server. For one event loop."""

    def __init__(self, service: Service) -> None:
        self._service, self._count = service, 0

    async def serve(self, socket: WebSocket) -> None:
        """Run a session until the client closes it.

        Raises, before it accepts the connection: TooManyConnections, ModelNotFound, Unsupported.
        """
        settings = self._service.settings
        first = config.initial(socket.query_params.get("model"), detects_turns=vad.is_available())
        self._check(first.fields)
        if self._count >= settings.realtime_sessions:
            raise TooManyConnections(
                f"{self._count} realtime sessions are open (REALTIME_SESSIONS): try again later", retry_after_sec=1
            )
        session = Session(
            uuid.uuid4().hex,
            first,
            check=self._check,
            detector=vad.Detector,
            limit_sec=min(settings.realtime_turn_sec, settings.max_audio_sec),
            chunk_sec=self._chunk_sec,
        )
        self._add(1)
        try:
            await socket.accept(subprotocol=_SUBPROTOCOL if _SUBPROTOCOL in socket.scope["subprotocols"] else None)
            await _Connection(self._service, socket, session).run()
        finally:
            self._add(-1)

    def _add(self, more: int) -> None:
        self._count += more
        self._service.metrics.realtime(self._count)

    def _check(self, fields: Json) -> None:
        """Raise RequestError for fields of a payload that the server rejects."""
        input_of(fields, self._service.settings)

    def _chunk_sec(self, fields: Json) -> float | None:
        """Return the length of the chunks for a streaming model, or None for another model."""
        settings = self._service.settings
        row = find(input_of(fields, settings).options.model, settings.places)
        return settings.realtime_chunk_ms / 1000 if self._service.engine.is_local and row.live else None


def input_of(fields: Json, settings: Settings) -> Item:
    """Return the input of a payload that has these fields, and no audio yet. Raises RequestError."""
    return parse(fields | {"audio": "turn"}, settings).items[0]


class _Turn:
    """A turn for a streaming model: its chunks, and what its model resumes from."""

    def __init__(self, item: Item) -> None:
        self.chunks = asyncio.Queue[Utterance]()
        self._item = item
        self._state: object | None = None
        self._tokens = 0

    async def next_chunks(self) -> list[Utterance]:
        """Wait for a chunk, and return it with all that have arrived."""
        found = [await self.chunks.get()]
        while not self.chunks.empty():
            found.append(self.chunks.get_nowait())
        return found

    async def advance(self, service: Service, http: WebSocket, chunks: Sequence[Utterance]) -> Result:
        """Return the text of the turn up to the chunks. Raises AviaryError."""
        samples = np.concatenate([chunk.samples for chunk in chunks]).astype(np.float32) / 2**15
        live = Live(self._state, chunks[-1].ends)
        transcript = await service.advance(http, self._item.options, Clip(samples), live)
        self._state = transcript.live_state
        result: Json = {"text": transcript.text}
        if self._item.warning:
            result["warning"] = self._item.warning
        if "logprobs" in self._item.view.include:
            result["logprobs"] = logprobs(transcript.tokens, skip=self._tokens)
            self._tokens = len(transcript.tokens)
        return result


class _Connection:
    """One session on its WebSocket."""

    def __init__(self, service: Service, socket: WebSocket, session: Session) -> None:
        self._service, self._socket, self._session = service, socket, session
        self._inbox = asyncio.Queue[str | tuple[Utterance, Result] | None](1)  # None: the connection is closed
        self._tasks: set[asyncio.Task[None]] = set()
        self._turns: dict[str, _Turn] = {}  # of streaming models, by item
        self._backlog = asyncio.Queue[str]()
        self._pending = self._backlog_bytes = 0
        self._has_room, self._has_space = asyncio.Event(), asyncio.Event()
        self._has_room.set()
        self._has_space.set()

    async def run(self) -> None:
        """Serve the session until the connection is closed."""
        self._start(self._read())
        self._start(self._feed())
        try:
            await self._give(self._session.start())
            while (message := await self._inbox.get()) is not None:
                if isinstance(message, str):
                    await self._give(await asyncio.to_thread(self._session.receive, message))
                else:
                    await self._give(self._session.transcribed(*message))
        except WebSocketDisconnect:
            log.debug("a realtime client closed its connection")
        except Exception as error:  # noqa: BLE001  the client gets the log id
            await self._fail(report(error, during="a realtime session"))
        finally:
            for task in self._tasks:
                task.cancel()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _read(self) -> None:
        """Put the client's events into the backlog, while it is small."""
        while True:
            await self._has_space.wait()
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                await self._inbox.put(None)
                return
            text = message.get("text")
            text = text if text is not None else message["bytes"].decode(errors="replace")
            self._hold(sys.getsizeof(text))
            self._backlog.put_nowait(text)

    async def _feed(self) -> None:
        """Move events from the backlog to the inbox, while few utterances wait."""
        while True:
            text = await self._backlog.get()
            await self._has_room.wait()
            await self._inbox.put(text)
            self._hold(-sys.getsizeof(text))

    async def _give(self, outputs: Iterable[Output]) -> None:
        """Send the events, and start to transcribe the utterances."""
        for output in outputs:
            if isinstance(output, Utterance):
                self._count(1)
                if output.is_live:
                    self._continue_turn(output)
                else:
                    self._start(self._transcribe(output))
            else:
                await self._socket.send_text(json.dumps(output))

    async def _transcribe(self, utterance: Utterance) -> None:
        await self._end([utterance], await self._outcome(functools.partial(self._result, utterance)))

    async def _result(self, utterance: Utterance) -> Result:
        """Return the transcript. Raises AviaryError."""
        wav = await asyncio.to_thread(utterance.wav)
        fields = utterance.fields | {"audio": "turn"}
        work = await self._service.prepare(self._socket, fields, {"turn": io.BytesIO(wav)})
        async with contextlib.aclosing(self._service.stream(work)) as pieces:
            answer = [piece async for piece in pieces if isinstance(piece, dict)][-1]
        result: Json = answer["results"][0]
        return result

    def _continue_turn(self, chunk: Utterance) -> None:
        """Pass the next chunk to the turn of a streaming model, which its first chunk begins."""
        turn = self._turns.get(chunk.item)
        if turn is None:
            turn = self._turns[chunk.item] = _Turn(input_of(chunk.fields, self._service.settings))
            self._start(self._stream(chunk.item, turn))
        turn.chunks.put_nowait(chunk)

    async def _stream(self, item: str, turn: _Turn) -> None:
        """Run the chunks of a turn in their order. After an error, the chunks that follow have the same outcome."""
        result: Result | None = None
        has_ended = False
        while not has_ended:
            chunks = await turn.next_chunks()
            if not isinstance(result, AviaryError):
                result = await self._outcome(functools.partial(turn.advance, self._service, self._socket, chunks))
            has_ended = chunks[-1].ends
            await self._end(chunks[:1], result)
            await self._end(chunks[1:], result if isinstance(result, AviaryError) else {"text": result["text"]})
        del self._turns[item]

    async def _outcome(self, transcribe: Callable[[], Awaitable[Result]]) -> Result:
        """Return the result or the error. While the model loads or the queue is full, try again."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._service.settings.request_timeout_sec
        try:
            while True:
                try:
                    return await transcribe()
                except (QueueFull, StillLoading) as error:
                    if loop.time() > deadline:
                        return error
                    await asyncio.sleep(min(error.retry_after_sec or RETRY_SEC, RETRY_SEC))
        except AviaryError as error:
            return error
        except Exception as error:  # noqa: BLE001  every utterance has an outcome
            return report(error, during="a realtime session")

    async def _end(self, utterances: Sequence[Utterance], result: Result) -> None:
        """Give the session the outcome of utterances."""
        for utterance in utterances:
            self._count(-1)
            await self._inbox.put((utterance, result))

    def _count(self, more: int) -> None:
        self._pending += more
        if self._pending < PENDING:
            self._has_room.set()
        else:
            self._has_room.clear()

    def _hold(self, more_bytes: int) -> None:
        self._backlog_bytes += more_bytes
        if self._backlog_bytes < BACKLOG:
            self._has_space.set()
        else:
            self._has_space.clear()

    async def _fail(self, error: AviaryError) -> None:
        """Send an unexpected error to the client, and close the connection."""
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            await self._socket.send_text(json.dumps(self._session.failure(error)))
            await self._socket.close(_INTERNAL_ERROR)
