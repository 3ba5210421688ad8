"""The Python API: blocking calls, without asyncio. Any thread may call a bundle, as often as it likes.

    import worker as runner

    with runner.load_model(model="whisper") as bundle:          # or model_dir="/path/to/checkpoint"
        bundle.transcribe("a.wav", timestamps=True).words
        bundle.transcribe(samples, sample_rate=48_000)          # an array, as worker.audio.arrays describes it
        for answer in bundle.as_completed("caption", paths): ...

Audio is a path, an http(s), s3, file or data URL, the bytes of a file, or an array with its `sample_rate`. Anything to
iterate over, such as a list, a generator or a pandas Series, is several inputs. They share batches: one call with many
inputs is faster than many calls.

If a single input fails, the call raises its AviaryError. If one of several inputs fails, a Failure stands in the place
of its answer, and the call raises only for an error that concerns all of them. Any path may be read.
`worker.entrypoints.functions` has functions that return plain dicts.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import os
import queue
import time
import weakref
from collections.abc import Generator, Iterator, Mapping, Sequence, ValuesView
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypedDict, overload

from worker import catalog
from worker.audio.arrays import is_several
from worker.config import Settings
from worker.entrypoints.answer import Answer, FinishedInput, answer_of
from worker.errors import ModelUnavailable, RequestError
from worker.keyword_options import (
    AnalyzeOptions,
    CaptionOptions,
    ChatOptions,
    EmbedOptions,
    SpeakerOptions,
    SpeechOptions,
    check,
    takes,
)
from worker.types import (
    Analysis,
    Caption,
    Diarization,
    Embedding,
    Failure,
    Progress,
    Reply,
    Request,
    Result,
    Source,
    Task,
    Transcript,
)

if TYPE_CHECKING:
    import numpy as np
    from typing_extensions import Unpack

    from worker.engine.engine import Engine
    from worker.entrypoints.progress import ProgressBar
    from worker.scoring.scorer import Score

    Audio = str | os.PathLike[str] | bytes | np.ndarray

    class Column(Protocol):
        """A Series of pandas or polars."""

        def to_list(self) -> list[Any]: ...  # noqa: D102
        def __iter__(self) -> Iterator[Any]: ...

    Many = list[Any] | tuple[Any, ...] | Iterator[Any] | ValuesView[Any] | Column

Json = dict[str, Any]

SAY_SEC = 1.0  # how long `load` waits until it says which model loads
TICK_SEC = 0.5  # how often a bar shows the time that has passed
LOOK_SEC = 0.05  # how often `load` checks whether the first of several devices is ready


class CallOptions(TypedDict, total=False):
    """Options of every call."""

    sample_rate: Annotated[int, "The sample rate of all arrays of the call, in Hz."]
    progress: Annotated[bool, "Whether to show a progress bar, on stderr or in the notebook."]


class SpeechCall(SpeechOptions, CallOptions, total=False):
    """The keyword arguments of `transcribe` and `translate`."""


class CaptionCall(CaptionOptions, CallOptions, total=False):
    """The keyword arguments of `caption`."""


class EmbedCall(EmbedOptions, CallOptions, total=False):
    """The keyword arguments of `embed`."""


class DiarizeCall(SpeakerOptions, CallOptions, total=False):
    """The keyword arguments of `diarize`."""


class ChatCall(ChatOptions, CallOptions, total=False):
    """The keyword arguments of `chat`."""


class AnalyzeCall(AnalyzeOptions, CallOptions, total=False):
    """The keyword arguments of `analyze`."""


_CALLS: dict[Task, Any] = {
    "transcribe": SpeechCall,
    "translate": SpeechCall,
    "caption": CaptionCall,
    "embed": EmbedCall,
    "chat": ChatCall,
    "analyze": AnalyzeCall,
    "diarize": DiarizeCall,
}


class ModelBundle:
    """A loaded model. It closes when it is garbage-collected, at the latest; it may be closed more than once.

    named: the name by which the caller chose the model; None if the settings chose it.
    """

    def __init__(self, engine: Engine, named: str | None = None) -> None:
        self.engine, self.settings = engine, engine.settings
        self.row = catalog.find(self.settings.meaning(named or self.settings.default_model), self.settings.places)
        self._named = named
        self._close = weakref.finalize(self, engine.close)

    @property
    def model(self) -> str:
        """The id of the model."""
        return self.row.id

    @overload
    def transcribe(self, audio: Audio, **options: Unpack[SpeechCall]) -> Answer[Transcript]: ...
    @overload
    def transcribe(self, audio: Many, **options: Unpack[SpeechCall]) -> list[Answer[Transcript] | Failure]: ...
    @takes(SpeechCall)
    def transcribe(self, audio: Any, **options: Any) -> Any:
        """Return what is said, as an Answer whose output is a Transcript, with spans if `timestamps` is set.

        Audio is a path, a URL, the bytes of a file, or an array of samples with its `sample_rate`. Several inputs, such
        as a list, return a list in their order, with a Failure in the place of each input that failed.
        Raises AviaryError if the only input fails; RequestError for an unknown option.
        """
        return self._ask("transcribe", audio, options)

    @overload
    def translate(self, audio: Audio, **options: Unpack[SpeechCall]) -> Answer[Transcript]: ...
    @overload
    def translate(self, audio: Many, **options: Unpack[SpeechCall]) -> list[Answer[Transcript] | Failure]: ...
    @takes(SpeechCall)
    def translate(self, audio: Any, **options: Any) -> Any:
        """Return what is said in another language: `target_language`, by default English.

        The answer's output is a Transcript. Several inputs return and raise as in `transcribe`.
        """
        return self._ask("translate", audio, options)

    @overload
    def caption(self, audio: Audio, **options: Unpack[CaptionCall]) -> Answer[Caption]: ...
    @overload
    def caption(self, audio: Many, **options: Unpack[CaptionCall]) -> list[Answer[Caption] | Failure]: ...
    @takes(CaptionCall)
    def caption(self, audio: Any, **options: Any) -> Any:
        """Return a description of the audio.

        The answer's output is a Caption. Several inputs return and raise as in `transcribe`.
        """
        return self._ask("caption", audio, options)

    @overload
    def embed(self, audio: Audio, **options: Unpack[EmbedCall]) -> Answer[Embedding]: ...
    @overload
    def embed(self, audio: Many, **options: Unpack[EmbedCall]) -> list[Answer[Embedding] | Failure]: ...
    @takes(EmbedCall)
    def embed(self, audio: Any, **options: Any) -> Any:
        """Return vectors that represent the audio: (frames, width), or (width,) with pooling="mean".

        The answer's output is an Embedding. Several inputs return and raise as in `transcribe`.
        """
        return self._ask("embed", audio, options)

    @overload
    def chat(
        self, audio: Audio, messages: str | Sequence[Mapping[str, Any]], **options: Unpack[ChatCall]
    ) -> Answer[Reply]: ...
    @overload
    def chat(
        self, audio: Many, messages: str | Sequence[Mapping[str, Any]], **options: Unpack[ChatCall]
    ) -> list[Answer[Reply] | Failure]: ...
    @takes(ChatCall)
    def chat(self, audio: Any, messages: str | Sequence[Mapping[str, Any]], **options: Any) -> Any:
        """Return the reply to a question; or to turns with `role` and `content`, the last of which is the user's.

        The answer's output is a Reply. Several inputs return and raise as in `transcribe`.
        """
        return self._ask("chat", audio, {**options, "messages": messages})

    @overload
    def analyze(self, audio: Audio, **options: Unpack[AnalyzeCall]) -> Answer[Analysis]: ...
    @overload
    def analyze(self, audio: Many, **options: Unpack[AnalyzeCall]) -> list[Answer[Analysis] | Failure]: ...
    @takes(AnalyzeCall)
    def analyze(self, audio: Any, **options: Any) -> Any:
        """Return a caption and an embedding, computed in one pass.

        The answer's output is an Analysis. Several inputs return and raise as in `transcribe`.
        """
        return self._ask("analyze", audio, options)

    @overload
    def diarize(self, audio: Audio, **options: Unpack[DiarizeCall]) -> Answer[Diarization]: ...
    @overload
    def diarize(self, audio: Many, **options: Unpack[DiarizeCall]) -> list[Answer[Diarization] | Failure]: ...
    @takes(DiarizeCall)
    def diarize(self, audio: Any, **options: Any) -> Any:
        """Return who speaks when, without text, by this model or, if it cannot, by DIARIZER.

        The answer's output is a Diarization. Several inputs return and raise as in `transcribe`.
        """
        return self._ask("diarize", audio, options)

    @overload
    def score(self, audio: Audio, reference: Audio, **options: Unpack[CallOptions]) -> Score: ...
    @overload
    def score(self, audio: Many, reference: Audio, **options: Unpack[CallOptions]) -> list[Score | Failure]: ...
    @takes(CallOptions)
    def score(self, audio: Any, reference: Any, **options: Any) -> Any:
        """Return how similar recordings are to a reference, in sound and in words.

        A score has `model`, `sim_score`, `audio_sim_score` and `text_sim_score`, as worker.scoring describes them. The
        model must both transcribe and embed. Raises AviaryError if the reference fails.
        """
        from worker.scoring import compare

        check("score", CallOptions, options)
        is_single = not is_several(audio)
        show_progress = options.pop("progress", False)
        inputs = self._request({"inputs": [reference, *([audio] if is_single else audio)], **options})
        for failure in inputs.rejected:
            raise failure.error
        request = compare.request(self.row, [item.source for item in inputs.items])
        outcomes = [finished.outcome for finished in self._run(request, show_progress=show_progress)]
        scores = compare.scores(self.row, sorted(outcomes, key=lambda outcome: outcome.index))
        return _single(scores) if is_single else scores

    def as_completed(self, task: Task, audio: Many, **options: Any) -> Generator[Answer[Any] | Failure, None, None]:
        """Yield each answer when it is ready, in any order; its `index` is the input's place.

        The inputs are iterated over before the first is run. The options are those of the task's own method. Closing
        the iterator cancels the inputs that are not done.
        """
        inputs, call = list(audio) if is_several(audio) else [audio], dict(options)
        if task in _CALLS:
            check(task, _CALLS[task], [name for name in call if (task, name) != ("chat", "messages")])
        if isinstance(call.get("messages"), str):
            call["messages"] = [{"role": "user", "content": call["messages"]}]
        if not inputs:
            return
        names = [_name(index, entry) for index, entry in enumerate(inputs)]
        with contextlib.closing(self.outcomes({"task": task, "inputs": inputs, **call})) as running:
            for finished in running:
                yield answer_of(finished, names)

    def outcomes(self, payload: Mapping[str, Any]) -> Generator[FinishedInput, None, None]:
        """Run a payload whose `inputs` are any audio, and yield each outcome when it is known.

        Closing the generator cancels the inputs that are not done. Raises RequestError before any input is read.
        """
        fields = dict(payload)
        show_progress = fields.pop("progress", False)
        yield from self._run(self._request(fields), show_progress=show_progress)

    def naming(self, options: Mapping[str, Any]) -> Json:
        """Return the options that are not None, as a payload for this model."""
        fields = {name: value for name, value in options.items() if value is not None}
        if not self._named or (fields.get("task") == "diarize" and "diarize" not in self.row.tasks):
            return fields
        return {"model": self._named, **fields}

    def close(self, *, wait: bool = True) -> None:
        """End the engine. Inputs that are not done fail with Cancelled. `wait`: wait for the batch that runs."""
        if self._close.detach() is not None:
            self.engine.close(wait=wait)

    def __repr__(self) -> str:
        state = "" if self._close.alive else ", closed"
        return f"{type(self).__name__}(model={self.model!r}, device={self.settings.device!r}{state})"

    def __enter__(self) -> ModelBundle:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        self.close(wait=kind is not KeyboardInterrupt)

    def _ask(self, task: Task, audio: Any, options: Mapping[str, Any]) -> Any:
        with contextlib.closing(self.as_completed(task, audio, **options)) as running:
            answers = sorted(running, key=lambda answer: answer.index)
        return answers if is_several(audio) else _single(answers)

    def _request(self, payload: Mapping[str, Any]) -> Request:
        """Return the request of a payload whose `inputs` are any audio."""
        from worker.protocol.request import parse

        fields = self.naming(payload)
        audio, rate = fields.pop("inputs"), fields.pop("sample_rate", None)
        sources = {
            index: source
            for index, entry in enumerate(audio)
            if (source := _source(index, entry, rate, split=fields.get("channels") == "split")) is not None
        }
        # A payload holds strings alone: a name stands for each input that has its source already.
        names = [f"input {index}" if index in sources else os.fsdecode(entry) for index, entry in enumerate(audio)]
        settings = self.settings.model_copy(update={"max_inputs": max(self.settings.max_inputs, len(audio))})
        request = parse({**fields, "inputs": names}, settings, trusted=True)
        items = [dataclasses.replace(item, source=sources.get(item.index, item.source)) for item in request.items]
        return dataclasses.replace(request, items=tuple(items))

    def _run(self, request: Request, *, show_progress: bool) -> Generator[FinishedInput, None, None]:
        from worker.entrypoints.progress import bar

        if not self._close.alive:
            raise ModelUnavailable("this bundle is closed; load the model again")
        finished: queue.SimpleQueue[FinishedInput | Progress | None] = queue.SimpleQueue()
        started = time.monotonic()
        named = ("path", "url", "s3")
        names = {item.index: item.source.location for item in request.items if item.source.kind in named}

        def on_result(outcome: Result | Failure) -> None:
            finished.put(FinishedInput(outcome, time.monotonic() - started))

        def state() -> str | None:
            is_loading = self.engine.models.get(request.model) == "loading"
            return f"loading {request.model}" if is_loading else None

        labels = [names.get(index, f"input {index}") for index in range(request.size)]
        with bar(labels, shown=show_progress, state=state) as line:
            future = self.engine.submit(request, on_result=on_result, on_progress=finished.put if line else None)
            future.add_done_callback(lambda _future: finished.put(None))
            try:
                while (entry := _next(finished, line)) is not None:
                    yield entry
            finally:
                future.cancel()


def load_model(
    model_dir: str | os.PathLike[str] | None = None,
    model: str | None = None,
    *,
    device: str | None = None,
    dtype: str | None = None,
) -> ModelBundle:
    """Load a model and wait until it is ready. The environment holds the other settings.

    model_dir: the folder of a checkpoint, which is the default model; or a folder of checkpoints.
    model: an alias or id of the catalog, a repository, a .nemo file or a folder. By default: MODEL.
    device, dtype: as DEVICE and DTYPE.
    Raises ModelNotFound; ModelUnavailable for a model that is missing, gated or too large; ConfigError.
    """
    return load(Settings.of(model=model, model_dir=model_dir, device=device, dtype=dtype), named=model)


def load(settings: Settings, named: str | None = None, *, progress: bool = False) -> ModelBundle:
    """Load the default model of the settings. `named`: the name by which the caller chose it. Raises as `load_model`.

    Of several devices, the first that is ready is enough.
    progress: whether to print which model loads, if it takes more than a second. Downloads have bars of their own.
    """
    from worker.engine.engine import Engine
    from worker.entrypoints.progress import say

    row, started = catalog.find(settings.default_model, settings.places), time.monotonic()
    engine = Engine(settings)
    try:
        loading = engine.load(row.id)
        while engine.models.get(row.id) != "ready" and not loading.done():
            concurrent.futures.wait([loading], timeout=LOOK_SEC)
            if progress and time.monotonic() > started + SAY_SEC:
                say(f"loading {row.id}")
                progress = False
        if loading.done():
            loading.result()
    except BaseException as error:
        engine.close(wait=not isinstance(error, KeyboardInterrupt))
        raise
    return ModelBundle(engine, named)


def _next(events: queue.SimpleQueue[FinishedInput | Progress | None], line: ProgressBar | None) -> FinishedInput | None:
    """Return the next finished input, or None at the end. Keep the bar up to date meanwhile."""
    while True:
        try:
            event = events.get(timeout=TICK_SEC if line else None)
        except queue.Empty:
            assert line is not None
            line.refresh()
            continue
        if line is not None and isinstance(event, FinishedInput):
            line.add(event.outcome)
        if not isinstance(event, Progress):
            return event
        if line is not None:
            line.show(event)


def _source(index: int, audio: Any, rate: int | None, *, split: bool = False) -> Source | None:
    """Return the source of an input that no string of a payload can name, or None for a path or URL.

    Raises RequestError for a value that is not audio, and for an array without a sample rate.
    """
    from worker.audio.arrays import memory_source

    if isinstance(audio, str | os.PathLike):
        path = os.fsdecode(audio)
        is_text = path.isascii() or path.encode("utf-8", "replace").decode() == path
        return None if is_text else Source("path", path, trusted=True)  # bytes of the path are not UTF-8
    if isinstance(audio, bytes | bytearray | memoryview) or hasattr(audio, "__array__"):
        return memory_source(audio, rate, _name(index, audio), split=split)
    raise RequestError(
        f"{_name(index, audio)} must be a path, a URL, bytes or an array, not {type(audio).__name__}", param="inputs"
    )


def _name(index: int, audio: Any) -> str:
    return os.fsdecode(audio) if isinstance(audio, str | os.PathLike) else f"input {index}"


def _single(outcomes: Sequence[Any]) -> Any:
    """Return the only outcome, or raise its error."""
    (outcome,) = outcomes
    if isinstance(outcome, Failure):
        raise outcome.error
    return outcome
