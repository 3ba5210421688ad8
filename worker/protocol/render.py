"""A response of the engine as JSON: the only place that knows the shape that users receive.

    Response ──▶ to_json ──▶ {"model", "results": [{"index", "id", "text", "formatted", …}], "usage", "timing"}

`to_json` returns plain dicts of str, int, float, bool, None and lists: strict JSON (RFC 8259). Times are seconds, in
whole milliseconds as the engine returns them. Each result may carry its transcript in another format in `formatted`
(see `worker.protocol.subtitles` and `worker.protocol.corpus_formats`).
"""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from worker.errors import AviaryError
from worker.protocol import corpus_formats, subtitles, voices
from worker.types import (
    Analysis,
    Caption,
    Diarization,
    Embedding,
    Failure,
    Format,
    Item,
    Level,
    Reply,
    Response,
    Result,
    Segment,
    Span,
    Token,
    Transcript,
    View,
)

Json = dict[str, Any]
# put(name, data, content type) stores the data and returns a URL. Raises AviaryError if it cannot be stored.
Put = Callable[[str, bytes, str], str]
UNDETERMINED = "und"  # ISO 639's code of a language that is not known


def to_json(response: Response, put: Put) -> Json:
    """Return the public shape of a response, with `error` at its top if every input failed.

    `put` stores the embeddings that the request asked to have in S3; an error that it raises becomes the error of
    that result.
    """
    results = [_result(result, put) for result in response.results]
    failed = [result for result in results if "error" in result]
    timing = response.timing
    shape: Json = {
        "model": response.model,
        "results": results,
        "usage": {
            "inputs": len(results),
            "failed": len(failed),
            "audio_sec": round(sum(audio_sec(result) for result in results), 3),
        },
        "timing": {
            name: round(getattr(timing, name), 4)
            for name in ("fetch_sec", "decode_sec", "queue_sec", "model_sec", "total_sec")
        },
    }
    if len(failed) == len(results):
        first = failed[0]["error"]["message"]
        shape["error"] = first if len(failed) == 1 else f"all {len(failed)} inputs failed; the first: {first}"
    return shape


def audio_sec(result: Json) -> float:
    """Return the seconds of audio of a result in its public shape, which count all channels; 0 if it failed."""
    return float(round(result.get("duration_sec", 0.0) * result.get("channels", 1), 3))


def error_json(error: AviaryError) -> Json:
    """Return an error as a result's `error`: code, message, retryable, and param if the error names a field."""
    shape = {"code": error.code, "message": _text(error.message), "retryable": error.retryable}
    return shape | {"param": error.param} if error.param else shape


def timestamps(spans: Mapping[Level, Sequence[Span]], *, confidence: bool = False) -> Json:
    """Return a result's `timestamps`: for each level, a list of {<level>: text, "start", "end"}, in seconds.

    `confidence` adds the confidence of each span, or null if it is unknown.
    """
    return {level: [_span(level, span, confidence) for span in spans[level]] for level in spans}


def rounded(confidence: float | None) -> float | None:
    """Return a confidence with the four digits that are rendered. None: unknown."""
    return None if confidence is None else round(confidence, 4)


def formatted(result: Result, shape: Json, form: Format) -> Any:
    """Return the output in a format, None if that is the plain JSON. `shape` is the result's."""
    view, output = result.item.view, result.output
    if form == "json":
        return None
    if isinstance(output, Diarization):
        return _text(corpus_formats.rttm(output, _name(result.item))) if form == "rttm" else None
    if not isinstance(output, Transcript):
        return shape.get("text", shape.get("caption"))
    if form == "verbose_json":
        return _verbose(result, output)
    if form == "diarized_json":
        return _diarized(result, output)
    duration, name = result.duration_sec, _name(result.item)
    write: dict[Format, Callable[[], str]] = {
        "text": lambda: voices.text(output),
        "srt": lambda: subtitles.srt(output, duration, view),
        "vtt": lambda: subtitles.vtt(output, duration, view),
        "lrc": lambda: subtitles.lrc(output, duration, view),
        "tsv": lambda: corpus_formats.tsv(output, duration),
        "ctm": lambda: corpus_formats.ctm(output, name),
        "stm": lambda: corpus_formats.stm(output, duration, name),
        "rttm": lambda: corpus_formats.rttm(output, name),
        "textgrid": lambda: corpus_formats.textgrid(output, duration),
    }
    return _text(write[form]())


def _name(item: Item) -> str:
    """Return what names the recording of an input: its id, or the name of its file without the suffix."""
    if item.id is not None:
        return str(item.id)
    kind, location = item.source.kind, item.source.location
    path = urlsplit(location).path if kind in ("url", "s3") else location if kind == "path" else ""
    return PurePosixPath(path).stem or "audio"


def _result(result: Result | Failure, put: Put) -> Json:
    if isinstance(result, Failure):
        return {"index": result.index, "id": result.id, "error": error_json(result.error)}
    shape: Json = {"index": result.index, "id": result.item.id}
    try:
        shape |= _output(result, put)
    except AviaryError as error:
        return shape | {"error": error_json(error)}
    shape["duration_sec"] = result.duration_sec
    if result.item.options.channels == "split":
        shape["channels"] = result.channels
    if result.warning:
        shape["warning"] = _text(result.warning)
    return shape


def _output(result: Result, put: Put) -> Json:
    output, view = result.output, result.item.view
    if isinstance(output, Transcript):
        shape = _transcript(output, view)
    elif isinstance(output, Caption):
        shape = _caption(output)
    elif isinstance(output, Reply):
        shape = _reply(output)
    elif isinstance(output, Analysis):
        shape = {**_caption(output.caption), **_embedding(output.embedding, view, put)}
    elif isinstance(output, Diarization):
        shape = {"turns": [dataclasses.asdict(turn) for turn in output.turns]}
    else:
        shape = _embedding(output, view, put)
    text = formatted(result, shape, view.format)
    return shape if text is None else shape | {"formatted": text}


def _reply(reply: Reply) -> Json:
    return {
        "text": _text(reply.text),
        "finish_reason": reply.finish_reason,
        "usage": {
            "prompt_tokens": reply.prompt_tokens,
            "completion_tokens": reply.completion_tokens,
            "total_tokens": reply.prompt_tokens + reply.completion_tokens,
        },
        **_thinking(reply),
    }


def _caption(caption: Caption) -> Json:
    shape: Json = {"caption": _text(caption.text)} | _thinking(caption) | _finish_reason(caption)
    return shape if caption.tokens_generated is None else shape | {"tokens_generated": caption.tokens_generated}


def _finish_reason(output: Caption | Transcript) -> Json:
    return {"finish_reason": output.finish_reason} if output.finish_reason else {}


def _thinking(output: Caption | Reply) -> Json:
    return {"thinking": _text(output.thinking)} if output.thinking else {}


def _transcript(transcript: Transcript, view: View) -> Json:
    shape: Json = {"text": _text(transcript.text), "language": transcript.language} | _finish_reason(transcript)
    if transcript.tokens_generated is not None:
        shape["tokens_generated"] = transcript.tokens_generated
    shape |= _probabilities(transcript, view)
    if view.timestamps:
        spans: dict[Level, tuple[Span, ...]] = {
            "word": transcript.words,
            "segment": transcript.segments,
            "char": transcript.chars,
        }
        levels = {level: spans[level] for level in view.timestamps}
        shape["timestamps"] = timestamps(levels, confidence=view.confidence)
    return shape


def _probabilities(transcript: Transcript, view: View) -> Json:
    """Return the `confidence` of the whole text and the `logprobs` of its tokens, if the view has them."""
    shape: Json = {"confidence": rounded(transcript.confidence)} if view.confidence else {}
    if "logprobs" in view.include:
        shape["logprobs"] = logprobs(transcript.tokens)
    return shape


def logprobs(tokens: Sequence[Token], *, skip: int = 0) -> list[Json]:
    """Return the log probabilities of a text's tokens, in OpenAI's shape, without those of the first `skip` tokens."""
    texts = [_text(token.text) for token in tokens]
    texts[:1] = [text.lstrip(" ") for text in texts[:1]]
    return [
        {"token": text, "logprob": round(token.logprob, 6), "bytes": list(text.encode())}
        for text, token in [*zip(texts, tokens, strict=True)][skip:]
    ]


def _span(name: str, span: Span, confidence: bool) -> Json:
    shape: Json = {name: _text(span.text), "start": span.start, "end": span.end} | _voice(span)
    return shape | {"confidence": rounded(span.confidence)} if confidence else shape


def _voice(span: Span) -> Json:
    """Return the speaker and the channel of a span, if they are known."""
    speaker = {} if span.speaker is None else {"speaker": _text(span.speaker)}
    return speaker if span.channel is None else {**speaker, "channel": span.channel}


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


def _verbose(result: Result, transcript: Transcript) -> Json:
    """Return OpenAI's verbose_json (OpenAI API reference, "The transcription object").

    `language` is never null, because typed clients expect a string: if unknown, it is UNDETERMINED. All else that the
    model does not report is null.
    """
    view = result.item.view
    return {
        "task": result.item.options.task,
        "language": transcript.language or UNDETERMINED,
        "duration": result.duration_sec,
        "text": _text(transcript.text),
        **_finish_reason(transcript),
        **_probabilities(transcript, view),
        "segments": [_segment(i, span, view.confidence) for i, span in enumerate(transcript.segments)],
        "words": [_span("word", s, view.confidence) for s in transcript.words],
        "usage": {"type": "duration", "seconds": result.audio_sec},
        **({"warning": _text(result.warning)} if result.warning else {}),
    }


def _diarized(result: Result, transcript: Transcript) -> Json:
    """Return OpenAI's diarized_json (OpenAI API reference, "Transcription Object (Diarized JSON)").

    A segment has the name of its speaker as all formats have it. If only the channel is known, that is the name.
    """
    return {
        "task": result.item.options.task,
        "duration": result.duration_sec,
        "text": _text(transcript.text),
        "segments": [
            {
                "type": "transcript.text.segment",
                "id": f"seg_{number:03d}",
                "start": span.start,
                "end": span.end,
                "text": _text(span.text),
                "speaker": _text(voices.label(span)) or "Unknown",
            }
            for number, span in enumerate(transcript.segments)
        ],
        "usage": {"type": "duration", "seconds": result.audio_sec},
        **({"warning": _text(result.warning)} if result.warning else {}),
    }


def _segment(number: int, span: Span, confidence: bool) -> Json:
    """Return a segment of verbose_json. `seek` is where it begins, in frames of 10 ms as Whisper counts them.

    Typed clients require `seek`. OpenAI's is where the window of 30 s begins; the engine cuts at pauses instead.
    """
    known = span if isinstance(span, Segment) else Segment(span.text, span.start, span.end, span.confidence)
    return {
        "id": number,
        "seek": round(100 * span.start),
        "start": span.start,
        "end": span.end,
        "text": _text(span.text),
        "tokens": None if known.tokens is None else list(known.tokens),
        "temperature": known.temperature,
        "avg_logprob": known.avg_logprob,
        "compression_ratio": known.compression_ratio,
        "no_speech_prob": known.no_speech_prob,
        **_voice(span),
        **({"confidence": rounded(span.confidence)} if confidence else {}),
    }


def _text(text: str) -> str:
    """Return the text with "?" in place of lone surrogates, which UTF-8 cannot encode."""
    return text.encode("utf-8", "replace").decode("utf-8")
