"""Who speaks in a transcript: the label of a span, the channels of a transcript, and its text with a line a turn.

    Transcript ──▶ label(span)    "Speaker 1", "Channel 1", or "Channel 1, Speaker 1"; "" if neither is known
               ──▶ channels       one transcript for each channel
               ──▶ turns          stretches of one label, in the order of the text ──▶ text

A channel is numbered from 0 in data, and from 1 in a label, as speakers are.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

from worker.engine.chunking import join
from worker.types import Span, Transcript


def label(span: Span) -> str:
    """Return what names the voice of a span for people, "" if nothing does."""
    channel = "" if span.channel is None else f"Channel {span.channel + 1}"
    return ", ".join(filter(None, (channel, " ".join((span.speaker or "").split()))))


def segments(transcript: Transcript, duration_sec: float) -> Sequence[Span]:
    """Return the segments; the whole text as one, if it has no segments; or nothing, if there is no text."""
    if not transcript.text:
        return ()
    return transcript.segments or (Span(transcript.text, 0.0, duration_sec),)


def are_known(transcript: Transcript) -> bool:
    """Return whether any span of the transcript has a label."""
    return any(map(label, (*transcript.segments, *transcript.words)))


def channels(transcript: Transcript) -> list[Transcript]:
    """Return a transcript for each channel, in the channels' order: the transcript itself if its audio was mixed.

    The words of a channel follow each other in the channel's text, which they may not in the text of all channels.
    """
    found = {span.channel for span in (*transcript.segments, *transcript.words)}
    if found <= {None} or len(found) < 2:
        return [transcript]
    return [
        _channel(transcript, channel)
        for channel in sorted(found, key=lambda channel: -1 if channel is None else channel)
    ]


def _channel(transcript: Transcript, channel: int | None) -> Transcript:
    words, own = (
        tuple(span for span in spans if span.channel == channel) for spans in (transcript.words, transcript.segments)
    )
    return replace(transcript, text=join([span.text for span in own or words]), words=words, segments=own)


def turns(transcript: Transcript) -> list[Span]:
    """Return the stretches in which the label stays the same, each with its whole text."""
    found = []
    for _label, group in itertools.groupby(transcript.segments or transcript.words, label):
        spans = list(group)
        end = max(span.end for span in spans)
        found.append(replace(spans[0], text=join([span.text for span in spans]), end=end))
    return found


def text(transcript: Transcript) -> str:
    """Return the text of the transcript: with a line for each turn, after its label, if the spans have labels."""
    if not are_known(transcript):
        return transcript.text
    return "\n".join(prefixed(turn) for turn in turns(transcript))


def prefixed(span: Span) -> str:
    """Return the text of a span after its label, if it has one."""
    return f"{name}: {span.text}" if (name := label(span)) else span.text
