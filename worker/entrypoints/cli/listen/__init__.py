"""listen: transcribe a microphone or stdin while the audio comes in.

    microphone, stdin ── audio.py ──▶ Feeder ──▶ session ── events ──▶ Captions ──▶ Screen
                                                 sessions.py           captions.py

A session has the events of `/v1/realtime`: one in this process, or one on a server. A line of text is a turn of the
speaker. On a terminal, the text of the open turn is shown too. The first Ctrl-C ends the audio, and the command still
prints the text of the open turn; the second one ends the command.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any, TextIO

from worker.config import Settings
from worker.entrypoints.cli import session as command
from worker.entrypoints.cli.listen import audio
from worker.entrypoints.cli.listen.captions import Captions, Screen
from worker.entrypoints.cli.listen.sessions import Interrupt, Json, LiveSession, local, remote
from worker.errors import AviaryError, RequestError, ServerUnreachable
from worker.faults import report

STDIN = "-"


def run(given: argparse.Namespace) -> int:
    """Transcribe until the audio ends, and return the exit code.

    Raises, before any audio is read: ConfigError, RequestError, ModelUnavailable, ServerUnreachable.
    """
    out = sys.stdout
    blocks = _blocks(given)
    options = {"language": given.language, "prompt": given.prompt}
    transcription = {name: value for name, value in options.items() if value is not None}
    with command.quiet_stdout(), contextlib.ExitStack() as stack:
        if given.server is not None:
            link = stack.enter_context(remote(given.server, given.api_key, given.model))
        else:
            settings = Settings.of(model=given.model, model_dir=given.model_dir, device=given.device)
            link = stack.enter_context(local(settings, given.model, transcription))
        return _listen(link, blocks, transcription, Screen(out), events_to=out if given.json else None)


def _blocks(given: argparse.Namespace) -> Iterator[bytes]:
    """Return the audio: little-endian PCM16 of 16 kHz, mono. Raises ConfigError, RequestError."""
    if given.input == STDIN:
        return audio.stdin(given.rate)
    if given.input is not None:
        raise RequestError(
            f"listen reads a microphone or stdin, not {given.input!r}: use `aviary listen - < FILE`, or `aviary "
            "transcribe` for files",
            param="input",
        )
    if given.rate is not None:
        raise RequestError("--rate is for raw audio on stdin: add -, or remove --rate", param="rate")
    return audio.microphone()


def _listen(
    link: LiveSession, blocks: Iterator[bytes], transcription: Json, screen: Screen, *, events_to: TextIO | None
) -> int:
    """Feed the audio to the session, and print the events or the text. Return the exit code."""
    link.send(_update(transcription))
    captions, feeder = Captions(), Feeder(link, blocks)
    code, is_ready = 0, False
    with _interrupts(link):
        while not captions.is_done:
            event = link.events.get()
            if isinstance(event, Interrupt):
                code = command.INTERRUPTED
                feeder.end()
                continue
            if isinstance(event, ServerUnreachable):
                screen.clear()
                command.say(f"{event.code}: {event}")
                return 1
            if events_to is not None:
                print(json.dumps(event, ensure_ascii=False), file=events_to, flush=True)
            lines = captions.apply(event)
            if events_to is None:
                screen.show(lines, captions.partial)
            if captions.problem is not None:
                raise RequestError(captions.problem)
            if event["type"] == "session.updated" and not is_ready:
                is_ready = True
                feeder.start()
    screen.clear()
    failures = [*captions.failures, *([f"{feeder.error.code}: {feeder.error}"] if feeder.error else [])]
    for failure in failures:
        command.say(failure)
    return code or (1 if failures else 0)


class Feeder:
    """A thread that sends the audio to a session, and then ends the last turn."""

    def __init__(self, link: LiveSession, blocks: Iterator[bytes]) -> None:
        self._link, self._blocks = link, blocks
        self._lock, self._is_ended = threading.Lock(), False
        self.error: AviaryError | None = None
        """Why the audio ended early, if it did."""

    def start(self) -> None:
        """Start the thread. The thread does not keep the process alive."""
        threading.Thread(target=self._run, name="listen", daemon=True).start()

    def end(self) -> None:
        """End the audio. Later blocks are discarded."""
        with self._lock:
            if not self._is_ended:
                self._is_ended = True
                self._link.finish()

    def _run(self) -> None:
        try:
            for block in self._blocks:
                with self._lock:
                    if self._is_ended:
                        return
                    self._link.append(block)
            self.end()
        except ServerUnreachable:
            return  # the session reports the same error as an event
        except Exception as error:  # noqa: BLE001  the session ends in any case, or the command would wait forever
            self.error = report(error, during="listening")
            self.end()


def _update(transcription: Json) -> Json:
    """Return the event that configures a session."""
    settings: dict[str, Any] = {
        "format": {"type": "audio/pcm", "rate": audio.RATE},
        "turn_detection": {"type": "server_vad"},
        "transcription": transcription,
    }
    return {"type": "session.update", "session": {"type": "transcription", "audio": {"input": settings}}}


@contextlib.contextmanager
def _interrupts(link: LiveSession) -> Iterator[None]:
    """Turn the first Ctrl-C into an event of the session. The second one raises KeyboardInterrupt."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)

    def interrupt(_number: int, _frame: object) -> None:
        signal.signal(signal.SIGINT, before)
        link.events.put(Interrupt())

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
