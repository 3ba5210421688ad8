"""Response → JSON, and each result's text, srt, vtt or verbose_json: the only place that knows what users read.

`to_json` gives plain dicts of str, int, float, bool, None and lists, nothing else: strict JSON (RFC 8259) comes of it.
Times are rounded to milliseconds, like those of subtitles.
"""

from __future__ import annotations

import base64
import io
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from worker.errors import AviaryError
from worker.types import Analysis, Caption, Embedding, Failure, Level, Reply, Response, Result, Span, Transcript, View

Json = dict[str, Any]
# put(name, data, content type) -> URL. Raises AviaryError when there is no bucket.
Put = Callable[[str, bytes, str], str]

LINE_CHARS = 42  # two such lines are what a subtitle may hold
CUE_CHARS = 2 * LINE_CHARS
CUE_SEC = 7.0
SHORTEST_SEC = 0.5  # of a word that a model gives no length, which players would never show


def to_json(response: Response, put: Put) -> Json:
    """The answer's public shape. `error` is added when every input failed. `put` stores what was asked for in S3."""
    results = [_result(one, put) for one in response.results]
    failed = [one for one in results if "error" in one]
    timing = response.timing
    answer: Json = {
        "model": response.model,
        "results": results,
        "usage": {
            "inputs": len(results),
            "failed": len(failed),
            "audio_sec": round(sum(one.get("duration_sec", 0.0) for one in results), 3),
        },
        "timing": {
            name: round(getattr(timing, name), 4)
            for name in ("fetch_sec", "decode_sec", "queue_sec", "model_sec", "total_sec")
        },
    }
    if len(failed) == len(results):
        first = failed[0]["error"]["message"]
        answer["error"] = first if len(failed) == 1 else f"all {len(failed)} inputs failed; the first: {first}"
    return answer


def error_json(error: AviaryError) -> Json:
    """An error as it stands in a result."""
    shape = {"code": error.code, "message": _text(error.message), "retryable": error.retryable}
    return shape | {"param": error.param} if error.param else shape


def timestamps(spans: Mapping[Level, Sequence[Span]]) -> Json:
    """Times as they stand in a result."""
    return {level: [_span(level, span) for span in spans[level]] for level in spans}


def subtitles(transcript: Transcript, duration_sec: float, *, vtt: bool = False) -> str:
    """SubRip or WebVTT text: cues of at most two lines and seven seconds, cut between words and at segment ends.
    Between words stands what stands there in the text: nothing, in a language that is written without spaces."""
    cues = _cues(transcript, duration_sec)
    clock = _vtt_clock if vtt else _srt_clock
    blocks = ["WEBVTT\n"] if vtt else []
    for number, cue in enumerate(cues, 1):
        head = "" if vtt else f"{number}\n"
        text = cue.text
        if vtt:
            text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        else:
            text = text.replace("-->", "->")
        blocks.append(f"{head}{clock(cue.start)} --> {clock(cue.end)}\n{text}\n")
    return "\n".join(blocks)


def _result(one: Result | Failure, put: Put) -> Json:
    if isinstance(one, Failure):
        return {"index": one.index, "id": one.id, "error": error_json(one.error)}
    shape: Json = {"index": one.index, "id": one.item.id}
    try:
        shape |= _output(one, put)
    except AviaryError as error:
        return shape | {"error": error_json(error)}
    shape["duration_sec"] = round(one.duration_sec, 3)
    if one.warning:
        shape["warning"] = _text(one.warning)
    return shape


def _output(one: Result, put: Put) -> Json:
    output, view = one.output, one.item.view
    if isinstance(output, Transcript):
        shape = _transcript(output, view.timestamps)
    elif isinstance(output, Caption):
        shape = _caption(output)
    elif isinstance(output, Reply):
        total = output.prompt_tokens + output.completion_tokens
        shape = {
            "text": _text(output.text),
            "finish_reason": output.finish_reason,
            "usage": {
                "prompt_tokens": output.prompt_tokens,
                "completion_tokens": output.completion_tokens,
                "total_tokens": total,
            },
            **_thinking(output),
        }
    elif isinstance(output, Analysis):
        shape = {**_caption(output.caption), **_embedding(output.embedding, view, put)}
    else:
        shape = _embedding(output, view, put)
    formatted = _formatted(one, shape)
    return shape if formatted is None else shape | {"formatted": formatted}


def _caption(caption: Caption) -> Json:
    shape: Json = {"caption": _text(caption.text)} | _thinking(caption)
    return shape if caption.tokens_generated is None else shape | {"tokens_generated": caption.tokens_generated}


def _thinking(output: Caption | Reply) -> Json:
    return {"thinking": _text(output.thinking)} if output.thinking else {}


def _transcript(transcript: Transcript, levels: tuple[Level, ...]) -> Json:
    shape: Json = {"text": _text(transcript.text), "language": transcript.language}
    if transcript.tokens_generated is not None:
        shape["tokens_generated"] = transcript.tokens_generated
    if levels:
        spans: dict[Level, tuple[Span, ...]] = {
            "word": transcript.words,
            "segment": transcript.segments,
            "char": transcript.chars,
        }
        shape["timestamps"] = timestamps({level: spans[level] for level in levels})
    return shape


def _span(name: str, span: Span) -> Json:
    return {name: _text(span.text), "start": round(span.start, 3), "end": round(span.end, 3)}


def _embedding(embedding: Embedding, view: View, put: Put) -> Json:
    values = np.ascontiguousarray(embedding.values, dtype="<f4")
    if view.encoding == "base64":
        data: Any = base64.b64encode(values.tobytes()).decode()
    elif view.encoding == "s3":
        buffer = io.BytesIO()
        np.save(buffer, values, allow_pickle=False)
        data = put("embedding.npy", buffer.getvalue(), "application/octet-stream")
    else:
        data = [float(v) for v in values] if values.ndim == 1 else values.tolist()
    return {
        "embedding": data,
        "shape": list(values.shape),
        "frame_rate": float(embedding.frame_rate),
        "pooling": embedding.pooling,
        "encoding": view.encoding,
    }


def _formatted(one: Result, shape: Json) -> Any:
    form, output = one.item.view.format, one.output
    if form == "json":
        return None
    if form == "text" or not isinstance(output, Transcript):
        return shape.get("text", shape.get("caption"))
    if form == "verbose_json":
        return _verbose(one, output)
    return subtitles(output, one.duration_sec, vtt=form == "vtt")


def _verbose(one: Result, transcript: Transcript) -> Json:
    """OpenAI's verbose_json; what these models do not tell (tokens, log probabilities) has OpenAI's empty values."""
    segments = [
        {
            "id": i,
            "seek": 0,
            "start": round(s.start, 3),
            "end": round(s.end, 3),
            "text": _text(s.text),
            "tokens": [],
            "temperature": 0.0,
            "avg_logprob": 0.0,
            "compression_ratio": 0.0,
            "no_speech_prob": 0.0,
        }
        for i, s in enumerate(transcript.segments)
    ]
    return {
        "task": one.item.options.task,
        "language": transcript.language,
        "duration": round(one.duration_sec, 3),
        "text": _text(transcript.text),
        "segments": segments,
        "words": [_span("word", s) for s in transcript.words],
        "usage": {"type": "duration", "seconds": round(one.duration_sec, 3)},
        **({"warning": _text(one.warning)} if one.warning else {}),
    }


def _cues(transcript: Transcript, duration_sec: float) -> list[Span]:
    """The cues, their lines broken."""
    if not transcript.text:
        return []
    if not transcript.words:
        spans = transcript.segments or (Span(transcript.text, 0.0, duration_sec),)
        return [_cue([f" {word}" for word in span.text.split()], span.start, span.end) for span in spans]
    ends = set(itertools.accumulate(_letters(segment.text) for segment in transcript.segments))
    cues: list[tuple[list[str], float, float]] = []
    letters, open_cue = 0, False
    for word, text in zip(transcript.words, _spaced(transcript), strict=True):
        texts, start, end = cues[-1] if open_cue else ([], 0.0, 0.0)
        if texts and len("".join(texts).lstrip(" ")) + len(text) <= CUE_CHARS and word.end - start <= CUE_SEC:
            cues[-1] = ([*texts, text], start, max(end, word.end))
        else:
            cues.append(([text], word.start, word.end))
        letters += _letters(word.text)
        open_cue = letters not in ends
    return [_cue(*cue) for cue in cues]


def _letters(text: str) -> int:
    """By these, not by times, words are found in segments: a model may time both in ways of their own."""
    return sum(map(len, text.split()))


def _spaced(transcript: Transcript) -> list[str]:
    """The words, a space before each but those that follow the last without one in the text."""
    found, at = [], 0
    for word in transcript.words:
        place = transcript.text.find(word.text, at, at + len(word.text) + CUE_CHARS)
        found.append(word.text if place == at else f" {word.text}")
        at = at if place < 0 else place + len(word.text)
    return found


def _cue(texts: Sequence[str], start: float, end: float) -> Span:
    """On two lines, broken between words near the middle, where one line would be too long."""
    text = "".join(texts).lstrip(" ")
    places = list(itertools.accumulate(map(len, (texts[0].lstrip(" "), *texts[1:-1])))) if len(texts) > 1 else []
    if len(text) > LINE_CHARS and places:
        middle = min(places, key=lambda at: abs(at - len(text) // 2))
        text = f"{text[:middle]}\n{text[middle:].lstrip(' ')}"
    return Span(text, start, end if round(end * 1000) > round(start * 1000) else start + SHORTEST_SEC)


def _srt_clock(seconds: float) -> str:
    return _vtt_clock(seconds).replace(".", ",")


def _vtt_clock(seconds: float) -> str:
    millis = round(seconds * 1000)
    return f"{millis // 3_600_000:02d}:{millis // 60_000 % 60:02d}:{millis // 1000 % 60:02d}.{millis % 1000:03d}"


def _text(text: str) -> str:
    """The text without lone surrogates, which no JSON over a wire can carry."""
    return text.encode("utf-8", "replace").decode("utf-8")
