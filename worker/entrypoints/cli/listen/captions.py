"""The events of a realtime session → lines of text, and the open turn. `Captions` is pure; `Screen` prints.

    speech_started ─▶ the open turn     delta ─▶ more of it     completed ─▶ a line     failed ─▶ a failure

A session completes its turns in their order. It is done once it has confirmed the end of the audio (`cleared`) and all
committed turns have an outcome.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

NO_SPEECH = "input_audio_buffer_commit_empty"  # what a session replies if no turn is open at the end
_MORE = "…"
_CLEAR, _DIM, _PLAIN = "\r\x1b[K", "\x1b[2m", "\x1b[0m"


class Captions:
    """The turns of one session."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}  # of the turns without an outcome, in their order
        self._is_ended = False
        self.failures: list[str] = []
        """Why turns have no text."""
        self.problem: str | None = None
        """Why the session cannot transcribe the audio at all."""

    @property
    def partial(self) -> str:
        """The text so far of the turns without an outcome. A turn without text is shown as an ellipsis."""
        return " ".join(text.strip() or _MORE for text in self._texts.values())

    @property
    def is_done(self) -> bool:
        """Whether no more text follows."""
        return self._is_ended and not self._texts

    def apply(self, event: Mapping[str, Any]) -> list[str]:
        """Return the lines that the event completes."""
        kind, item = event["type"].rpartition(".")[2], event.get("item_id", "")
        if kind in ("speech_started", "committed"):
            self._texts.setdefault(item, "")
        elif kind == "delta":
            self._texts[item] = self._texts.get(item, "") + event["delta"]
        elif kind == "completed":
            self._texts.pop(item, None)
            return [text] if (text := event["transcript"].strip()) else []
        elif kind == "failed":
            self._texts.pop(item, None)
            self.failures.append(f"{event['error']['code']}: {event['error']['message']}")
        elif kind == "cleared":
            self._is_ended = True
        elif kind == "error" and event["error"].get("code") != NO_SPEECH:
            self.problem = event["error"]["message"]
        return []


class Screen:
    """The output: lines, and on a terminal the open turn below them."""

    def __init__(self, out: TextIO) -> None:
        self._out, self._is_terminal, self._partial = out, out.isatty(), ""

    def show(self, lines: Sequence[str], partial: str) -> None:
        """Print the lines, and on a terminal the end of the open turn, as much as one line of it has room for."""
        if not self._is_terminal:
            partial = ""
        if not lines and partial == self._partial:
            return
        self.clear()
        for line in lines:
            print(line, file=self._out)
        if partial:
            print(f"{_DIM}{tail(partial, self._columns() - 1)}{_PLAIN}", end="", file=self._out)
        self._partial = partial
        self._out.flush()

    def clear(self) -> None:
        """Remove the open turn from the terminal."""
        if self._partial:
            print(_CLEAR, end="", file=self._out, flush=True)
            self._partial = ""

    def _columns(self) -> int:
        return os.get_terminal_size(self._out.fileno()).columns or 80


def tail(text: str, columns: int) -> str:
    """Return the end of a text that fits into the columns of a terminal, where wide characters take two columns."""
    if sum(map(_columns_of, text)) <= columns:
        return text
    room, at = columns - 1, len(text)
    while at and room >= _columns_of(text[at - 1]):
        at -= 1
        room -= _columns_of(text[at])
    return _MORE + text[at:]


def _columns_of(char: str) -> int:
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1
