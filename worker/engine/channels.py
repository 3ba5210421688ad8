"""The channels of a clip, each transcribed separately, and their transcripts → one transcript in the order of time.

    channels ── distinct ──▶ a clip for each, equal ones once ── ClipRun ──▶ transcripts ── merge ──▶ transcript

Words, segments and characters are merged by their start, and each has its channel. The text is that of the segments in
this order. Channels with the same samples are one: the transcript has their words once, with the first of the channels.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace

from worker.engine import chunking
from worker.faults import report
from worker.futures import fail, settle
from worker.types import Clip, Output, Span, Transcript


def distinct(clips: Sequence[Clip]) -> dict[int, Clip]:
    """Return the clips by their channels, without those whose samples are those of a channel before."""
    if len(clips) == 1:
        return {0: clips[0]}
    first: dict[bytes, int] = {}
    for channel, clip in enumerate(clips):
        first.setdefault(hashlib.blake2b(clip.samples.data).digest(), channel)
    return {channel: clips[channel] for channel in first.values()}


def settle_merged(parts: Mapping[int, Future[Output]], output: Future[Output], duration_sec: float) -> None:
    """Set `output` to the merged transcripts of all channels, or to the error of the first channel that failed."""
    error = next((error for part in parts.values() if (error := part.exception()) is not None), None)
    if error is not None:
        fail(output, report(error))
        return
    outputs = {channel: part.result() for channel, part in parts.items()}
    transcripts = {channel: found for channel, found in outputs.items() if isinstance(found, Transcript)}
    settle(output, merge(transcripts, duration_sec))


def merge(transcripts: Mapping[int, Transcript], duration_sec: float) -> Transcript:
    """Return one transcript of the transcripts of channels of `duration_sec` seconds."""
    if len(transcripts) == 1:
        (merged,) = transcripts.values()
    else:
        named = [replace(found, warning=_warning(channel, found)) for channel, found in transcripts.items()]
        merged = chunking.merge([(0.0, found) for found in named])
    segments = _by_time({channel: _segments(found, duration_sec) for channel, found in transcripts.items()})
    return replace(
        merged,
        text=merged.text if len(transcripts) == 1 else chunking.join([segment.text for segment in segments]),
        words=_by_time({channel: found.words for channel, found in transcripts.items()}),
        segments=segments,
        chars=_by_time({channel: found.chars for channel, found in transcripts.items()}),
    )


def _segments(transcript: Transcript, duration_sec: float) -> Sequence[Span]:
    """Return the segments, or the whole text as one if the segments do not have all of it."""
    if "".join(transcript.text.split()) == "".join("".join(span.text for span in transcript.segments).split()):
        return transcript.segments
    words = transcript.words
    return [Span(transcript.text, words[0].start if words else 0.0, words[-1].end if words else duration_sec)]


def _by_time(spans: Mapping[int, Sequence[Span]]) -> tuple[Span, ...]:
    """Return the spans of all channels by their start. Those of a channel keep their order."""
    named = [[replace(span, channel=channel) for span in own] for channel, own in spans.items()]
    return tuple(heapq.merge(*named, key=lambda span: span.start))


def _warning(channel: int, transcript: Transcript) -> str | None:
    return f"channel {channel}: {transcript.warning}" if transcript.warning else None
