"""A realtime transcription session as a state machine: no clock, no threads, no input and output.

    start() ────────────────────▶ session.created
    receive(event of the client) ▶ events for the client, and utterances to transcribe
    transcribed(utterance, …) ──▶ events for the client

                 with turn detection                          without
    audio ──▶ frames ──▶ speech starts ──▶ turn opens         audio is held
                         pause ──▶ a phrase is cut
                         silence, or the limit ──▶ commit     the client's commit, or the limit ──▶ commit

A turn becomes an item when it is committed. A long turn is transcribed in phrases, cut where the speaker pauses, so
that text appears while the speaker talks. No audio belongs to two phrases. The text of an item is the text of its
phrases, joined. Each delta is a phrase, so that the deltas of an item are together exactly the transcript in its
`completed` event. What a phrase is depends on the audio alone, not on how the client splits it.

A streaming model gets a detected turn in chunks of equal length instead, while the speaker talks. The outcome of a
chunk is the text of the turn so far, and a delta is what the chunk adds to it.

Items end in their order, each with one `completed` or `failed`. What is held is bounded: an open turn by `limit_sec`,
audio outside of turns by the padding before a turn.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from worker.audio.arrays import write_wav
from worker.audio.live import LiveAudio
from worker.backends.common.vad import FRAME
from worker.engine.chunking import join
from worker.entrypoints.http.realtime.config import Config, Json, from_beta, to_json, updated
from worker.entrypoints.http.realtime.turns import START_FRAMES, TurnDetector
from worker.entrypoints.http.responses import to_json as error_json
from worker.errors import AviaryError, EmptyBuffer, RequestError, excerpt
from worker.types import SAMPLE_RATE

PHRASE_SEC = 4.0  # the shortest phrase that is cut off a turn: a model needs context
MIN_COMMIT_SEC = 0.1  # as on OpenAI's API
_LONGEST_ID = 512  # characters of the id of a client's event, as on OpenAI's API
_CLIENT_EVENTS = (
    "session.update",
    "input_audio_buffer.append",
    "input_audio_buffer.commit",
    "input_audio_buffer.clear",
)


class Detects(Protocol):
    """A detector of speech, such as `worker.backends.common.vad.Detector`."""

    def probabilities(self, samples: np.ndarray) -> list[float]:
        """Return the probability of speech in each frame."""


@dataclass(frozen=True, slots=True, eq=False)
class Utterance:
    """A phrase or a whole turn to transcribe."""

    item: str
    """The id of the item that the text belongs to."""
    number: int
    """The place of the phrase in the item, from 0."""
    samples: np.ndarray
    """int16 of shape (samples,), 16 kHz."""
    fields: Json
    """The fields of the payload, without the audio."""
    is_live: bool = False
    """Whether this is a chunk of a turn for a streaming model, which transcribes the chunks in their order."""
    ends: bool = True
    """Whether the turn ends with this chunk."""

    def wav(self) -> bytes:
        """Return the samples as a WAV file."""
        file = io.BytesIO()
        write_wav(file, self.samples, SAMPLE_RATE)
        return file.getvalue()


Output = Json | Utterance
Result = Mapping[str, Any] | AviaryError
"""A result of a transcription as payloads' answers have it, or why there is none."""


@dataclass(slots=True)
class _Item:
    """A turn that is open, or committed and not yet transcribed."""

    id: str
    begin: int  # samples since the start of the session
    results: list[Result | None] = field(default_factory=list)  # of its phrases
    samples: int = 0
    shown: int = 0  # results whose deltas were sent
    text: str = ""
    is_committed: bool = False
    is_live: bool = False  # whether a streaming model gets the turn in chunks

    @property
    def error(self) -> AviaryError | None:
        return next((result for result in self.results if isinstance(result, AviaryError)), None)


class Session:
    """One session. For one thread at a time.

    name: makes the ids of the session, its events and its items. check: raises RequestError for fields of a payload
    that the server rejects. detector: makes a detector of speech; raises ModelUnavailable. limit_sec: the longest turn.
    chunk_sec: returns the length of the chunks for such fields, or None if their model does not stream.
    """

    def __init__(
        self,
        name: str,
        config: Config,
        *,
        check: Callable[[Json], None],
        detector: Callable[[], Detects],
        limit_sec: float,
        chunk_sec: Callable[[Json], float | None] = lambda fields: None,
    ) -> None:
        self._name, self._config, self._check, self._make_detector = name, config, check, detector
        self._limit, self._chunk_sec = round(limit_sec * SAMPLE_RATE), chunk_sec
        self._chunk = 0  # samples of the open turn's chunks; 0 if its model does not stream
        self._events = self._made = 0
        self._items: deque[_Item] = deque()  # open or not yet transcribed, in order
        self._open: _Item | None = None  # the turn in which the speaker speaks
        self._last_id: str | None = None  # of the last committed item
        self._held: deque[np.ndarray] = deque()  # audio that belongs to no phrase yet
        self._held_samples = self._position = 0  # samples held, and samples since the start of the session
        self._detector: Detects | None = None
        self._begin_stream()

    @property
    def config(self) -> Config:
        """The configuration in effect."""
        return self._config

    def start(self) -> list[Output]:
        """Return the first event."""
        return [self._event("session.created", session=to_json(self._config, f"sess_{self._name}"))]

    def receive(self, message: str) -> list[Output]:
        """Return what follows from an event of the client. A wrong event changes nothing but gets an `error` event."""
        event: Mapping[str, Any] = {}
        try:
            event = _parsed(message)
            return list(self._handle(event))
        except AviaryError as error:
            name = event.get("event_id")
            return [self.failure(error, name if isinstance(name, str) and len(name) <= _LONGEST_ID else None)]

    def failure(self, error: AviaryError, cause: str | None = None) -> Json:
        """Return the `error` event. `cause`: the id of the client's event that is at fault."""
        return self._event("error", error=error_json(error)["error"] | {"event_id": cause})

    def transcribed(self, utterance: Utterance, result: Result) -> list[Json]:
        """Return the events that the outcome of an utterance allows. Outcomes may come in any order."""
        for item in self._items:
            if item.id == utterance.item:
                item.results[utterance.number] = result
        return list(self._progress())

    # Events of the client

    def _handle(self, event: Mapping[str, Any]) -> Iterator[Output]:
        kind = event.get("type")
        if kind == "input_audio_buffer.append":
            return self._take(self._audio.feed(_audio_bytes(event)))
        if kind == "input_audio_buffer.commit":
            return self._commit_now()
        if kind == "input_audio_buffer.clear":
            return self._clear()
        if kind == "session.update":
            return self._update(event.get("session"), "session.updated")
        if kind == "transcription_session.update":
            return self._update(from_beta(event.get("session")), "transcription_session.updated")
        raise RequestError(
            f"{excerpt(repr(kind))} is no event of a transcription session: send one of {', '.join(_CLIENT_EVENTS)}",
            param="type",
        )

    def _update(self, change: Any, answer: str) -> Iterator[Output]:
        config = updated(self._config, change)
        self._check(config.fields)
        before, after = self._config.input, config.input
        if (before.format, before.turn_detection) != (after.format, after.turn_detection):
            detector = self._make_detector() if after.turn_detection else None
            self._hold_rest()
            if self._open is not None:
                yield from self._commit()
            self._config = config
            self._begin_stream()
            self._detector = detector
        self._config = config
        yield self._event(answer, session=to_json(config, f"sess_{self._name}"))

    def _commit_now(self) -> Iterator[Output]:
        manual = self._config.input.turn_detection is None
        held_sec = round(self._held_samples / SAMPLE_RATE + self._audio.kept_sec, 6)
        if self._open is None and not (manual and held_sec >= MIN_COMMIT_SEC):
            raise EmptyBuffer(
                f"the buffer holds {1000 * held_sec:.0f} ms of audio outside of a turn: commit at least 100 ms"
                if manual
                else "no speech was detected since the last commit: append speech, or set turn_detection to null to "
                "commit any audio"
            )
        self._hold_rest()
        self._turns.reset()
        yield from self._commit()

    def _clear(self) -> Iterator[Output]:
        self._hold_rest()
        self._held.clear()
        self._held_samples = 0
        if self._open is not None:
            self._items.remove(self._open)
            if self._open.is_live:
                yield self._utterance(self._open, np.zeros(0, np.int16), ends=True)
            self._open = None
        self._begin_stream()
        yield self._event("input_audio_buffer.cleared")

    # Audio

    def _begin_stream(self) -> None:
        """Make what decodes audio and detects turns anew, for the configuration in effect."""
        audio = self._config.input
        self._audio = LiveAudio(audio.format.encoding, audio.format.sample_rate)
        turns = audio.turn_detection
        self._turns = TurnDetector(turns.threshold, turns.silence_duration_ms) if turns else TurnDetector(1, 0)
        padding = turns.prefix_padding_ms * SAMPLE_RATE // 1000 if turns else 0
        self._padding = padding + START_FRAMES * FRAME
        self._detector = None
        self._rest = np.zeros(0, np.float32)  # less than a frame
        self._is_spoken = False  # whether what is held contains speech

    def _hold_rest(self) -> None:
        """Hold what the decoder and the detector still keep."""
        self._hold(np.concatenate((self._rest, self._audio.flush())))
        self._rest = self._rest[:0]

    def _hold(self, samples: np.ndarray) -> None:
        if not len(samples):
            return
        self._held.append((np.clip(samples, -1, 1 - 2**-15) * 2**15).round().astype(np.int16))
        self._held_samples += len(samples)
        self._position += len(samples)

    def _take(self, samples: np.ndarray) -> Iterator[Output]:
        if self._config.input.turn_detection is None:
            yield from self._take_manual(samples)
            return
        if self._detector is None:
            self._detector = self._make_detector()
        samples = np.concatenate((self._rest, samples))
        whole = len(samples) - len(samples) % FRAME
        self._rest = samples[whole:]
        probabilities = self._detector.probabilities(samples[:whole])
        for at, probability in zip(range(0, whole, FRAME), probabilities, strict=True):
            yield from self._frame(samples[at : at + FRAME], probability)

    def _take_manual(self, samples: np.ndarray) -> Iterator[Output]:
        while len(samples):
            room = max(0, self._limit - self._held_samples)
            self._hold(samples[:room])
            samples = samples[room:]
            if self._held_samples >= self._limit:
                yield from self._commit()

    def _frame(self, frame: np.ndarray, probability: float) -> Iterator[Output]:
        self._hold(frame)
        self._is_spoken |= not self._turns.is_silence(probability)
        mark = self._turns.step(probability)
        if mark == "start":
            yield self._begin_turn()
        if self._open is None:
            self._forget_old()
        elif mark == "stop" or self._position + FRAME - self._open.begin > self._limit:
            self._turns.reset()
            end_ms = 1000 * self._position // SAMPLE_RATE
            yield self._event("input_audio_buffer.speech_stopped", audio_end_ms=end_ms, item_id=self._open.id)
            yield from self._commit()
        elif self._open.is_live:
            yield from self._chunks(self._open)
        elif mark == "pause" and self._held_samples >= PHRASE_SEC * SAMPLE_RATE:
            yield from self._cut(self._open)

    def _forget_old(self) -> None:
        """Forget audio that is further back than a turn reaches."""
        while self._held and self._held_samples - len(self._held[0]) >= self._padding:
            self._held_samples -= len(self._held.popleft())

    # Turns and items

    def _begin_turn(self) -> Json:
        self._forget_old()
        self._open = self._new_item()
        self._chunk = round((self._chunk_sec(self._config.fields) or 0) * SAMPLE_RATE)
        self._open.is_live = self._chunk > 0
        start_ms = 1000 * self._open.begin // SAMPLE_RATE
        return self._event("input_audio_buffer.speech_started", audio_start_ms=start_ms, item_id=self._open.id)

    def _new_item(self) -> _Item:
        self._made += 1
        item = _Item(f"item_{self._name}_{self._made}", self._position - self._held_samples)
        self._items.append(item)
        return item

    def _commit(self) -> Iterator[Output]:
        """Make an item of the turn, and end it."""
        item = self._open or self._new_item()
        before, self._last_id, self._open = self._last_id, item.id, None
        shape = {
            "id": item.id,
            "object": "realtime.item",
            "type": "message",
            "status": "completed",
            "role": "user",
            "content": [{"type": "input_audio", "transcript": None}],
        }
        yield self._event("input_audio_buffer.committed", item_id=item.id, previous_item_id=before)
        yield self._event("conversation.item.added", item=shape, previous_item_id=before)
        yield self._event("conversation.item.done", item=shape, previous_item_id=before)
        yield from self._cut(item)
        item.is_committed = True
        yield from self._progress()

    def _cut(self, item: _Item) -> Iterator[Utterance]:
        """Make a phrase of what is held. What follows the last phrase of a turn may be silence, which is none."""
        samples = np.concatenate((np.zeros(0, np.int16), *self._held))
        self._held.clear()
        self._held_samples = 0
        item.samples += len(samples)
        if item.is_live or self._is_spoken or self._config.input.turn_detection is None:
            yield self._utterance(item, samples, ends=True)
        self._is_spoken = False

    def _chunks(self, item: _Item) -> Iterator[Utterance]:
        """Make chunks of what is held, as far as it fills them."""
        while self._held_samples >= self._chunk:
            held = np.concatenate(self._held)
            chunk, rest = held[: self._chunk], held[self._chunk :]
            self._held = deque([rest] if len(rest) else [])
            self._held_samples = len(rest)
            item.samples += len(chunk)
            yield self._utterance(item, chunk, ends=False)

    def _utterance(self, item: _Item, samples: np.ndarray, *, ends: bool) -> Utterance:
        item.results.append(None)
        return Utterance(item.id, len(item.results) - 1, samples, self._config.fields, item.is_live, ends)

    def _progress(self) -> Iterator[Json]:
        """Yield the events of the items in their order, as far as the outcomes are known."""
        while self._items:
            item = self._items[0]
            yield from self._deltas(item)
            if not item.is_committed or (item.error is None and item.shown < len(item.results)):
                return
            self._items.popleft()
            yield self._failed(item, item.error) if item.error is not None else self._completed(item)

    def _deltas(self, item: _Item) -> Iterator[Json]:
        for result in item.results[item.shown :]:
            if result is None or isinstance(result, AviaryError):
                return
            item.shown += 1
            text = result["text"] if item.is_live else join([item.text, result["text"]])
            delta, item.text = text[len(item.text) :], text
            if delta:
                scores = _logprobs([result])
                yield self._item_event("delta", item, delta=delta, **scores)

    def _completed(self, item: _Item) -> Json:
        seconds = round(item.samples / SAMPLE_RATE, 3)
        results = [result for result in item.results if isinstance(result, Mapping)]
        warnings = dict.fromkeys(result["warning"] for result in results if result.get("warning"))
        more = _logprobs(results) | ({"warning": "; ".join(warnings)} if warnings else {})
        return self._item_event(
            "completed", item, transcript=item.text, usage={"type": "duration", "seconds": seconds}, **more
        )

    def _failed(self, item: _Item, error: AviaryError) -> Json:
        return self._item_event("failed", item, error=error_json(error)["error"])

    def _item_event(self, kind: str, item: _Item, **fields: Any) -> Json:
        name = f"conversation.item.input_audio_transcription.{kind}"
        return self._event(name, item_id=item.id, content_index=0, **fields)

    def _event(self, kind: str, **fields: Any) -> Json:
        self._events += 1
        return {"type": kind, "event_id": f"event_{self._name}_{self._events}", **fields}


def _parsed(message: str) -> Mapping[str, Any]:
    """Return the event in a message. Raises RequestError."""
    try:
        event = json.loads(message)
    except (ValueError, RecursionError):
        raise RequestError("a message must be an event as JSON") from None
    if not isinstance(event, dict):
        raise RequestError("an event must be a JSON object with type")
    return event


def _audio_bytes(event: Mapping[str, Any]) -> bytes:
    """Return the audio in an event. Raises RequestError."""
    audio = event.get("audio")
    if not isinstance(audio, str):
        raise RequestError("audio must be a string of base64", param="audio")
    try:
        return base64.b64decode(audio, validate=True)
    except (binascii.Error, ValueError):
        raise RequestError("audio must be a string of base64", param="audio") from None


def _logprobs(results: list[Mapping[str, Any]]) -> Json:
    """Return the log probabilities of results as a field, if they have any."""
    found = [token for result in results for token in result.get("logprobs") or ()]
    return {"logprobs": found} if found else {}
