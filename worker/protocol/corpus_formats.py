"""A transcript, or who speaks when, in the formats of tools for speech research, and as a table.

    tsv         one line a segment, as the command line of Whisper writes them
    ctm         NIST's time-marked conversation: one line a word
    stm         NIST's segment time marks: one line a segment, with its speaker
    rttm        NIST's rich transcription time marks: one line a segment or turn, with its speaker and without text
    textgrid    Praat's TextGrid: a tier of segments and a tier of words for each speaker and channel

`name` names the recording in formats whose lines do so. Names have no white space there. Channels count from 1.
"""

from __future__ import annotations

from collections.abc import Sequence

from worker.protocol.voices import label, segments
from worker.types import Diarization, Span, Transcript

SHORTEST_SEC = 0.001  # of an interval of a TextGrid, which must have a length
_UNKNOWN = "unknown"  # a speaker in a format that must name one


def tsv(transcript: Transcript, duration_sec: float) -> str:
    """Return the segments of the transcript, or its whole text: the start and the end in milliseconds, and the text.

    A column before the text names the speaker, or the channel, of each segment if any of them is known.
    """
    spans = segments(transcript, duration_sec)
    has_labels = any(map(label, spans))
    lines = ["start\tend\tspeaker\ttext\n" if has_labels else "start\tend\ttext\n"]
    for span in spans:
        columns = [str(round(span.start * 1000)), str(round(span.end * 1000))]
        columns += [label(span)] if has_labels else []
        lines.append("\t".join((*columns, _line(span.text))) + "\n")
    return "".join(lines)


def ctm(transcript: Transcript, name: str) -> str:
    """Return the words: recording, channel, start, seconds, word, and the confidence if it is known.

    A comment says so if a text has no times of words.
    """
    if transcript.text and not transcript.words:
        return f";; {_token(name)}: the times of the words are unknown\n"
    lines = []
    for word in sorted(transcript.words, key=lambda word: (word.channel or 0, word.start)):
        confidence = "" if word.confidence is None else f" {word.confidence:.4f}"
        times = f"{word.start:.3f} {word.end - word.start:.3f}"
        lines.append(f"{_token(name)} {_channel(word)} {times} {_token(word.text)}{confidence}\n")
    return "".join(lines)


def stm(transcript: Transcript, duration_sec: float, name: str) -> str:
    """Return the segments: recording, channel, speaker, start, end, and text."""
    spans = sorted(segments(transcript, duration_sec), key=lambda span: (span.channel or 0, span.start))
    return "".join(
        f"{_token(name)} {_channel(span)} {_token(span.speaker or label(span) or _UNKNOWN)} {span.start:.3f} "
        f"{span.end:.3f} {_line(span.text)}\n"
        for span in spans
    )


def rttm(output: Transcript | Diarization, name: str) -> str:
    """Return who speaks when: the segments of a transcript that have a speaker or a channel, or the turns."""
    if isinstance(output, Diarization):
        turns = [("1", turn.start, turn.end, turn.speaker) for turn in output.turns]
    else:
        named = [span for span in output.segments if label(span)]
        turns = [(_channel(span), span.start, span.end, span.speaker or label(span)) for span in named]
    return "".join(
        f"SPEAKER {_token(name)} {channel} {start:.3f} {end - start:.3f} <NA> <NA> {_token(speaker)} <NA> <NA>\n"
        for channel, start, end, speaker in turns
    )


def textgrid(transcript: Transcript, duration_sec: float) -> str:
    """Return the tiers of Praat, in its long format. Intervals of a tier neither overlap nor leave a gap."""
    spans = segments(transcript, duration_sec)
    tiers: list[tuple[str, list[Span]]] = []
    for voice in dict.fromkeys(map(label, (*spans, *transcript.words))):
        for level, own in (("segments", spans), ("words", transcript.words)):
            found = [span for span in own if label(span) == voice]
            if found:
                tiers.append((f"{voice} - {level}" if voice else level, _apart(found)))
    end = max([duration_sec, SHORTEST_SEC, *(tier[-1].end for _name, tier in tiers)])
    head = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "xmin = 0", f"xmax = {end:.3f}"]
    head += ["tiers? <exists>", f"size = {len(tiers)}", "item []:"]
    lines = [line for number, (name, tier) in enumerate(tiers, 1) for line in _tier(number, name, tier, end)]
    return "\n".join((*head, *lines)) + "\n"


def _tier(number: int, name: str, spans: Sequence[Span], end: float) -> list[str]:
    filled: list[Span] = []
    for span in (*spans, Span("", end, end)):
        last = filled[-1].end if filled else 0.0
        if span.start > last:
            filled.append(Span("", last, span.start))
        if span.text:
            filled.append(span)
    lines = [f"    item [{number}]:", '        class = "IntervalTier"', f"        name = {_quoted(name)}"]
    lines += ["        xmin = 0", f"        xmax = {end:.3f}", f"        intervals: size = {len(filled)}"]
    for at, span in enumerate(filled, 1):
        lines += [f"        intervals [{at}]:", f"            xmin = {span.start:.3f}"]
        lines += [f"            xmax = {span.end:.3f}", f"            text = {_quoted(_line(span.text))}"]
    return lines


def _apart(spans: Sequence[Span]) -> list[Span]:
    """Return the spans by their start, in whole milliseconds, each with a length and after the end of the last one."""
    found: list[Span] = []
    for span in sorted(spans, key=lambda span: span.start):
        start = max(round(span.start, 3), found[-1].end if found else 0.0)
        found.append(Span(span.text, start, round(max(span.end, start + SHORTEST_SEC), 3)))
    return found


def _channel(span: Span) -> str:
    return str((span.channel or 0) + 1)


def _line(text: str) -> str:
    return " ".join(text.split())


def _token(text: str) -> str:
    return "_".join(text.split()) or _UNKNOWN


def _quoted(text: str) -> str:
    return '"{}"'.format(text.replace('"', '""'))
