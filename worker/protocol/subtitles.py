"""A transcript as text that players show in time: SubRip (.srt), WebVTT (.vtt), and lyrics (.lrc).

    Transcript ── worker.protocol.cues ──▶ cues ──▶ srt, vtt or lrc

If the speakers or the channels are known, each cue names its own: as a voice in vtt, before the text in srt and lrc.
The limits on lines do not count the name.
"""

from __future__ import annotations

from dataclasses import replace

from worker.protocol.cues import cues
from worker.protocol.voices import label, prefixed
from worker.types import Transcript, View

_VIEW = View()


def srt(transcript: Transcript, duration_sec: float, view: View = _VIEW) -> str:
    """Return the transcript of a clip of `duration_sec` seconds as SubRip text; "" if nothing was said."""
    blocks = []
    for number, cue in enumerate(cues(transcript, duration_sec, view), 1):
        text = prefixed(cue).replace("-->", "->")  # a line with an arrow would be read as times
        times = f"{_clock(cue.start)} --> {_clock(cue.end)}".replace(".", ",")
        blocks.append(f"{number}\n{times}\n{text}\n")
    return "\n".join(blocks)


def vtt(transcript: Transcript, duration_sec: float, view: View = _VIEW) -> str:
    """Return the transcript of a clip of `duration_sec` seconds as WebVTT text; a header alone if nothing was said."""
    blocks = ["WEBVTT\n"]
    for cue in cues(transcript, duration_sec, view):
        voice = f"<v {_escaped(name)}>" if (name := label(cue)) else ""
        blocks.append(f"{_clock(cue.start)} --> {_clock(cue.end)}\n{voice}{_escaped(cue.text)}\n")
    return "\n".join(blocks)


def lrc(transcript: Transcript, duration_sec: float, view: View = _VIEW) -> str:
    """Return the transcript of a clip of `duration_sec` seconds as LRC text: a line of text after the time it starts.

    Each cue is one line, because players of lyrics show a line until the next one starts.
    """
    lines = []
    for cue in cues(transcript, duration_sec, replace(view, max_line_count=1)):
        centis = round(cue.start * 100)
        text = " ".join(prefixed(cue).split()).replace("[", "(").replace("]", ")")  # a bracket would be read as a time
        lines.append(f"[{centis // 6000:02d}:{centis // 100 % 60:02d}.{centis % 100:02d}]{text}\n")
    return "".join(lines)


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _clock(seconds: float) -> str:
    """Return HH:MM:SS.mmm."""
    millis = round(seconds * 1000)
    return f"{millis // 3_600_000:02d}:{millis // 60_000 % 60:02d}:{millis // 1000 % 60:02d}.{millis % 1000:03d}"
