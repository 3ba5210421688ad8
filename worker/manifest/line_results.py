"""A task for the lines of a manifest: the arguments of a call for a line, and the line's result from the call's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from worker.manifest.lines import Line
from worker.manifest.run import LineResult
from worker.protocol import nemo_manifest, render

if TYPE_CHECKING:
    import numpy as np

    from worker.client import CallResult
    from worker.types import Level, Span, SpeakerTurn

Json = dict[str, Any]
Task = Literal["transcribe", "caption", "embed", "analyze", "diarize"]


class ClientTask:
    """A task that a client's method does. `options` are those of the method, for every line."""

    def __init__(self, task: Task, options: Mapping[str, Any]) -> None:
        self._task, self._options, self._asked = task, options, with_words(options)

    def arguments(self, line: Line) -> tuple[str | bytes, Json]:
        """Return the audio and the options of the call for a line. Raises: as `Line.audio` and `Line.options`."""
        return line.audio(), nemo_manifest.override(self._asked, self._own(line))

    def ask(self, line: Line, call: Callable[..., CallResult]) -> LineResult:
        """Return the line's result, made of what `call(audio, **options)` returns."""
        from worker.client import Diarized, Transcribed

        audio, options = self.arguments(line)
        with nemo_manifest.naming(self._own(line)):
            result = call(audio, **options)
        if result.duration is not None:
            line.check_duration(result.duration)
        if isinstance(result, Transcribed):
            spans: dict[Level, Sequence[Span]] = {}
            if self._options.get("timestamps"):
                spans = {"word": result.words, "segment": result.segments}
            elif self._options.get("diarize"):
                spans = {"segment": result.segments}
            words = result.words if self._options.get("confidence") else None
            return of_text(result.text, spans, words, result.warning)
        if isinstance(result, Diarized):
            return of_turns(result.turns, result.warning)
        return of_audio(getattr(result, "caption", None), getattr(result, "embedding", None), result.warning)

    def _own(self, line: Line) -> Json:
        """Return the options that the line sets."""
        return line.options() if self._task == "transcribe" else {}


def with_words(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of the requests: confidences are those of words, which a transcript has with timestamps."""
    with_words = options.get("confidence") and not options.get("timestamps")
    return {**options, "timestamps": ["word"]} if with_words else dict(options)


def of_text(
    text: str, spans: Mapping[Level, Sequence[Span]], words: Sequence[Span] | None, warning: str | None
) -> LineResult:
    """Return the result of transcribe. `words` are the words whose confidences to report, or None."""
    fields: dict[str, Any] = {"pred_text": text}
    if spans:
        fields["timestamps"] = render.timestamps(spans, confidence=words is not None)
    if words is not None:
        fields["word_confidence"] = [render.rounded(word.confidence) for word in words]
        fields["words"] = [word.text for word in words]
    return LineResult(fields | _warning(warning))


def of_audio(caption: str | None, embedding: np.ndarray | None, warning: str | None) -> LineResult:
    """Return the result of caption, embed or analyze."""
    return LineResult(({} if caption is None else {"caption": caption}) | _warning(warning), embedding)


def of_turns(turns: Sequence[SpeakerTurn], warning: str | None) -> LineResult:
    """Return the result of diarize."""
    return LineResult({"turns": [dataclasses.asdict(turn) for turn in turns]} | _warning(warning))


def _warning(warning: str | None) -> dict[str, str]:
    return {"warning": warning} if warning else {}
