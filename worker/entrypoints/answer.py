"""The answers of the Python API: what a model made of one input, with the file that it is from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from worker.display import Displayed, fields
from worker.types import Analysis, Failure, Output, Result, Span

Json = dict[str, Any]
T = TypeVar("T", bound=Output)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Answer(Displayed, Generic[T]):
    """The output of a model for one input.

    `text`, `words`, `segments` and `language` are those of the output. AttributeError: the task's output has none.
    """

    index: int
    """The input's place in the call, from 0."""
    file: str
    """The input's path or URL; `input N` for bytes and arrays."""
    output: T
    """What the model made of the audio."""
    duration_sec: float
    """The length of the audio."""
    elapsed_sec: float
    """Seconds from the call until the output was ready."""
    warning: str | None = None
    """What may be wrong: damaged audio, speech without words, or a text that the limit on new tokens cut off."""

    @property
    def text(self) -> str:
        """The transcript, caption or reply."""
        return str(self._of_output("text"))

    @property
    def words(self) -> tuple[Span, ...]:
        """The words of a transcript with their times, if requested."""
        return tuple(self._of_output("words"))

    @property
    def segments(self) -> tuple[Span, ...]:
        """The segments of a transcript with their times, if requested."""
        return tuple(self._of_output("segments"))

    @property
    def language(self) -> str | None:
        """ISO 639-1 code of the language of a transcript, if known."""
        code: str | None = self._of_output("language")
        return code

    def _of_output(self, name: str) -> Any:
        try:
            return _output_fields(self.output)[name]
        except KeyError:
            raise AttributeError(f"{type(self.output).__name__} has no {name}; see .output") from None

    def _fields(self) -> Json:
        own = fields(self)
        output = _output_fields(own.pop("output"))
        return {"index": self.index, "file": self.file, **output, **own}


@dataclass(frozen=True, slots=True, eq=False)
class FinishedInput:
    """The outcome of one input."""

    outcome: Result | Failure
    """The result, or the error."""
    elapsed_sec: float
    """Seconds from the call until the outcome was known."""


def answer_of(finished: FinishedInput, names: Sequence[str]) -> Answer[Any] | Failure:
    """Return the answer of an input, or its Failure. `names` are the files of all inputs of the call."""
    outcome = finished.outcome
    if isinstance(outcome, Failure):
        return outcome
    return Answer(
        outcome.index,
        names[outcome.index],
        outcome.output,
        round(outcome.duration_sec, 3),
        round(finished.elapsed_sec, 3),
        outcome.warning,
    )


def _output_fields(output: Output) -> Json:
    """Return the fields of an output by their names; of an Analysis, those of its caption and its embedding."""
    parts = (output.caption, output.embedding) if isinstance(output, Analysis) else (output,)
    return {name: value for part in parts for name, value in fields(part).items()}
