"""The two realtime sessions of `listen`: in this process, and on a server. Both have the events of /v1/realtime.

local     send ──▶ Session ──▶ utterances ──▶ model ──▶ Session ──▶ events
remote    send ──▶ WebSocket ─────────────────────────────────────▶ events
"""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import json
import queue
import threading
import urllib.parse
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from worker.backends.common import vad
from worker.client.transport import error_from_body
from worker.config import Settings
from worker.entrypoints import python
from worker.entrypoints.http.realtime import config
from worker.entrypoints.http.realtime.session import Output, Result, Session, Utterance
from worker.errors import AviaryError, ConfigError, ServerUnreachable
from worker.faults import report
from worker.net.s3 import Bucket
from worker.protocol import render
from worker.protocol.request import parse
from worker.types import SAMPLE_RATE, Failure, Response, Timing

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

Json = dict[str, Any]

PENDING = 8  # utterances that wait for their transcript; the audio waits while there are as many


@dataclass(frozen=True, slots=True)
class Interrupt:
    """Ctrl-C."""


class LiveSession(Protocol):
    """A realtime session."""

    events: queue.SimpleQueue[Json | Interrupt | ServerUnreachable]
    """The session's events. The last one is the error that ended the session, if there is one."""

    def send(self, event: Json) -> None:
        """Send an event. Blocks while the session has too much to do. Raises ServerUnreachable."""

    def append(self, block: bytes) -> None:
        """Send audio."""

    def finish(self) -> None:
        """End the last turn. An event `input_audio_buffer.cleared` says that the session has no audio left."""


class _Events:
    """The events that both sessions send alike."""

    def __init__(self) -> None:
        self.events: queue.SimpleQueue[Json | Interrupt | ServerUnreachable] = queue.SimpleQueue()

    def send(self, event: Json) -> None:
        raise NotImplementedError

    def append(self, block: bytes) -> None:
        self.send({"type": "input_audio_buffer.append", "audio": base64.b64encode(block).decode()})

    def finish(self) -> None:
        self.send({"type": "input_audio_buffer.commit"})
        self.send({"type": "input_audio_buffer.clear"})


@contextlib.contextmanager
def local(settings: Settings, model: str | None, transcription: Json) -> Iterator[LiveSession]:
    """Yield a session of a model in this process.

    Raises, before the model loads: RequestError for what the model rejects, ModelUnavailable without the detector.
    """
    named = {"model": model} if model else {}
    parse({"task": "transcribe", **named, **transcription, "inputs": ["any"]}, settings, trusted=True)
    vad.Detector()
    with python.load(settings, model) as bundle:
        yield _Local(bundle, settings)


class _Local(_Events):
    """A session in this process. Threads of its own run the model."""

    def __init__(self, bundle: python.ModelBundle, settings: Settings) -> None:
        super().__init__()
        self._bundle, self._put = bundle, Bucket(settings).put
        self._session = Session(
            uuid.uuid4().hex,
            config.initial(None, detects_turns=True),
            check=self._check,
            detector=vad.Detector,
            limit_sec=min(settings.realtime_turn_sec, settings.max_audio_sec),
        )
        self._lock, self._room = threading.Lock(), threading.Semaphore(PENDING)
        self._pool = concurrent.futures.ThreadPoolExecutor(PENDING, "transcribe")

    def send(self, event: Json) -> None:
        with self._lock:
            outputs = self._session.receive(json.dumps(event))
            utterances = self._emit(outputs)
        for utterance in utterances:
            self._room.acquire()
            self._pool.submit(self._transcribe, utterance)

    def _emit(self, outputs: list[Output]) -> list[Utterance]:
        """Publish the events, and return the utterances."""
        for output in outputs:
            if not isinstance(output, Utterance):
                self.events.put(output)
        return [output for output in outputs if isinstance(output, Utterance)]

    def _transcribe(self, utterance: Utterance) -> None:
        try:
            result = self._result(utterance)
        except AviaryError as error:
            result = error
        except Exception as error:  # noqa: BLE001  every utterance has an outcome
            result = report(error, during="listening")
        self._room.release()
        with self._lock:
            for event in self._session.transcribed(utterance, result):
                self.events.put(event)

    def _result(self, utterance: Utterance) -> Result:
        payload = {**utterance.fields, "inputs": [utterance.samples], "sample_rate": SAMPLE_RATE}
        ((finished),) = self._bundle.outcomes(payload)
        if isinstance(finished.outcome, Failure):
            return finished.outcome.error
        answer = render.to_json(Response(self._bundle.model, (finished.outcome,), Timing()), self._put)
        result: Json = answer["results"][0]
        return result

    def _check(self, fields: Json) -> None:
        """Raise RequestError for fields of a payload that the model rejects."""
        parse({**self._bundle.naming(fields), "inputs": ["any"]}, self._bundle.settings, trusted=True)


@contextlib.contextmanager
def remote(url: str, key: str | None, model: str | None) -> Iterator[LiveSession]:
    """Yield a session of a server. Raises ConfigError for a wrong URL, ServerUnreachable, or the server's refusal."""
    from websockets.exceptions import InvalidHandshake, InvalidStatus, InvalidURI
    from websockets.sync.client import connect

    query = urllib.parse.urlencode({"intent": "transcription"} | ({"model": model} if model else {}))
    base = url.rstrip("/").removesuffix("/v1")
    if not base.startswith(("http://", "https://")):
        raise ConfigError(f"{url!r} is not the URL of a server: use http://HOST:PORT or https://HOST")
    headers = {"Authorization": f"Bearer {key}"} if key else None
    try:
        socket = connect(f"{base.replace('http', 'ws', 1)}/v1/realtime?{query}", additional_headers=headers)
    except InvalidStatus as error:
        raise _refusal(base, error.response.status_code, error.response.body) from None
    except InvalidURI:
        raise ConfigError(f"{url!r} is not the URL of a server: use http://HOST:PORT or https://HOST") from None
    except (OSError, InvalidHandshake) as error:
        raise ServerUnreachable(f"{base}: {error}. Check the URL, and that the server is running.") from None
    with socket:
        yield _Remote(base, socket)


class _Remote(_Events):
    """A session on a server. A thread of its own reads the events."""

    def __init__(self, base: str, socket: ClientConnection) -> None:
        super().__init__()
        self._base, self._socket = base, socket
        threading.Thread(target=self._receive, name="events", daemon=True).start()

    def send(self, event: Json) -> None:
        from websockets.exceptions import ConnectionClosed

        try:
            self._socket.send(json.dumps(event))
        except ConnectionClosed as error:
            raise self._lost(error) from None

    def _receive(self) -> None:
        from websockets.exceptions import ConnectionClosed

        try:
            while True:
                self.events.put(json.loads(self._socket.recv()))
        except ConnectionClosed as error:
            self.events.put(self._lost(error))

    def _lost(self, error: Exception) -> ServerUnreachable:
        return ServerUnreachable(f"{self._base} closed the connection: {error}. Start the command again.")


def _refusal(base: str, status: int, body: bytes | bytearray | None) -> AviaryError:
    """Return the error of a server that refuses the connection."""
    try:
        answer = json.loads(body or b"")
    except ValueError:
        answer = None
    if isinstance(answer, dict) and isinstance(answer.get("error"), dict):
        return error_from_body(answer["error"], status)
    return ServerUnreachable(f"{base} responded with status {status} to /v1/realtime. Check the URL.")
