"""The Python API. Blocking calls, no asyncio; safe to call from several threads and as often as one likes.

    import worker as runner

    with runner.load_model(model="whisper") as bundle:          # or model_dir="/path/to/checkpoint"
        bundle.transcribe("a.wav", timestamps=True).output.words
        bundle.transcribe(samples, sample_rate=48_000)          # an array, as worker.audio.arrays has it
        for one in bundle.as_completed("caption", paths): ...

Audio is a path, an http(s), s3, file or data URL, the bytes of a file, or an array with its `sample_rate`; a list or
tuple of
them is many. Of one, what is wrong raises an AviaryError; of many, it stands as a Failure in the place of the answer,
and only
what is wrong with the call as a whole raises. Paths are trusted. Many share batches: one call with many is faster than
many calls. `worker.entrypoints.functions` has functions that answer in plain dicts.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import queue
import time
import weakref
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Generic, Literal, TypedDict, TypeVar, overload

from worker import catalog
from worker.config import Settings
from worker.errors import ModelUnavailable, RequestError
from worker.types import Analysis, Caption, Embedding, Failure, Level, Output, Reply, Request, Result, Task, Transcript

if TYPE_CHECKING:
    import numpy as np
    from typing_extensions import Unpack

    from worker.audio.arrays import MemoryFiles
    from worker.engine.engine import Engine
    from worker.scoring.scorer import Score

    Audio = str | os.PathLike[str] | bytes | np.ndarray
    Many = list[Any] | tuple[Any, ...]

Json = dict[str, Any]
T = TypeVar("T", bound=Output)

LOOK_SEC = 0.05  # how often a load looks whether a first device is ready


@dataclass(frozen=True, slots=True, eq=False)
class Answer(Generic[T]):
    """What a model made of one input. index: its place in the call; file: its path or URL, or `input N` for what has
    none; elapsed_sec: from the call until it was done; warning: what the decoder complained of, where it went on."""

    index: int
    file: str
    output: T
    duration_sec: float
    elapsed_sec: float
    warning: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class FinishedInput:
    """An input that is done. `elapsed_sec`: since the request was sent."""

    outcome: Result | Failure
    elapsed_sec: float


class _Given(TypedDict, total=False):
    """sample_rate: of arrays, in Hz. progress: shows a bar on stderr, or in the notebook."""

    sample_rate: int
    progress: bool


class Writing(_Given, total=False):
    """Of models that write token by token. Without a temperature, or at 0, they always write the same."""

    max_new_tokens: int
    temperature: float
    top_p: float


class SpeechOptions(Writing, total=False):
    timestamps: bool | list[Level]
    language: str
    target_language: str
    prompt: str
    punctuation: bool


class CaptionOptions(Writing, total=False):
    prompt: str
    style: Literal["detailed", "brief", "technical"]


class EmbedOptions(_Given, total=False):
    pooling: Literal["none", "mean"]


class AnalyzeOptions(CaptionOptions, total=False):
    pooling: Literal["none", "mean"]


class ModelBundle:
    """A model that is loaded. Closing it twice is fine; one that is dropped is closed too.

    `named`: the name by which the caller chose the model; None where settings did.
    """

    def __init__(self, engine: Engine, named: str | None = None) -> None:
        self.engine, self.settings = engine, engine.settings
        self.row = catalog.find(named or self.settings.default_model)
        self._named = named
        self._close = weakref.finalize(self, engine.close)

    @property
    def model(self) -> str:
        """The model's id."""
        return self.row.id

    @overload
    def transcribe(self, audio: Audio, **options: Unpack[SpeechOptions]) -> Answer[Transcript]: ...
    @overload
    def transcribe(self, audio: Many, **options: Unpack[SpeechOptions]) -> list[Answer[Transcript] | Failure]: ...
    def transcribe(self, audio: Any, **options: Any) -> Any:
        """What is said. Spans are there where `timestamps` asks for them."""
        return self._ask("transcribe", audio, options)

    @overload
    def translate(self, audio: Audio, **options: Unpack[SpeechOptions]) -> Answer[Transcript]: ...
    @overload
    def translate(self, audio: Many, **options: Unpack[SpeechOptions]) -> list[Answer[Transcript] | Failure]: ...
    def translate(self, audio: Any, **options: Any) -> Any:
        """What is said, in another language: `target_language`, by default English."""
        return self._ask("translate", audio, options)

    @overload
    def caption(self, audio: Audio, **options: Unpack[CaptionOptions]) -> Answer[Caption]: ...
    @overload
    def caption(self, audio: Many, **options: Unpack[CaptionOptions]) -> list[Answer[Caption] | Failure]: ...
    def caption(self, audio: Any, **options: Any) -> Any:
        """What is to be heard, in words."""
        return self._ask("caption", audio, options)

    @overload
    def embed(self, audio: Audio, **options: Unpack[EmbedOptions]) -> Answer[Embedding]: ...
    @overload
    def embed(self, audio: Many, **options: Unpack[EmbedOptions]) -> list[Answer[Embedding] | Failure]: ...
    def embed(self, audio: Any, **options: Any) -> Any:
        """Vectors: (frames, width), or (width,) with pooling="mean"."""
        return self._ask("embed", audio, options)

    @overload
    def chat(
        self, audio: Audio, messages: str | Sequence[Mapping[str, Any]], **options: Unpack[Writing]
    ) -> Answer[Reply]: ...
    @overload
    def chat(
        self, audio: Many, messages: str | Sequence[Mapping[str, Any]], **options: Unpack[Writing]
    ) -> list[Answer[Reply] | Failure]: ...
    def chat(self, audio: Any, messages: str | Sequence[Mapping[str, Any]], **options: Any) -> Any:
        """The reply to a question, or to turns of `role` and `content`, the last the user's."""
        turns = (
            [{"role": "user", "content": messages}] if isinstance(messages, str) else [dict(turn) for turn in messages]
        )
        return self._ask("chat", audio, {**options, "messages": turns})

    @overload
    def analyze(self, audio: Audio, **options: Unpack[AnalyzeOptions]) -> Answer[Analysis]: ...
    @overload
    def analyze(self, audio: Many, **options: Unpack[AnalyzeOptions]) -> list[Answer[Analysis] | Failure]: ...
    def analyze(self, audio: Any, **options: Any) -> Any:
        """A caption and an embedding, from one pass."""
        return self._ask("analyze", audio, options)

    @overload
    def score(self, audio: Audio, reference: Audio, **options: Unpack[_Given]) -> Score: ...
    @overload
    def score(self, audio: Many, reference: Audio, **options: Unpack[_Given]) -> list[Score | Failure]: ...
    def score(self, audio: Any, reference: Any, **options: Any) -> Any:
        """How alike recordings and a reference sound, and what is said in them: `model`, `sim_score`,
        `audio_sim_score`,
        `text_sim_score`, as worker.scoring has them. The model must both transcribe and embed; what is wrong with the
        reference raises."""
        from worker.scoring import compare

        many = isinstance(audio, list | tuple)
        shown = options.pop("progress", False)
        with self._request({"inputs": [reference, *(audio if many else [audio])], **options}) as given:
            for failure in given.rejected:
                raise failure.error
            asked = compare.request(self.row, [item.source for item in given.items])
            outcomes = [done.outcome for done in self._run(asked, shown=shown)]
        scores = compare.scores(self.row, sorted(outcomes, key=lambda one: one.index))
        if many:
            return scores
        (one,) = scores
        if isinstance(one, Failure):
            raise one.error
        return one

    def as_completed(self, task: Task, audio: Sequence[Any], **options: Any) -> Iterator[Answer[Any] | Failure]:
        """Each answer as it is done, in any order; `index` says whose it is. The options are those of the task's own
        method. Ending early drops what is left to do."""
        names = [_name(index, one) for index, one in enumerate(audio)]
        with contextlib.closing(self.outcomes({"task": task, "inputs": list(audio), **options})) as running:
            for done in running:
                yield _answer(done, names)

    def outcomes(self, payload: Mapping[str, Any]) -> Generator[FinishedInput, None, None]:
        """Runs a payload whose `inputs` are any audio; gives each outcome as it is done. Closing it drops what is left
        to do. Raises RequestError before anything is begun."""
        fields = dict(payload)
        shown = fields.pop("progress", False)
        with self._request(fields) as request:
            yield from self._run(request, shown=shown)

    def naming(self, options: Mapping[str, Any]) -> Json:
        """The options that are not None, as a payload for this model."""
        given = {name: value for name, value in options.items() if value is not None}
        return {"model": self._named, **given} if self._named else given

    def close(self) -> None:
        """Ends the engine. What is under way is answered as cancelled."""
        self._close()

    def __enter__(self) -> ModelBundle:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _ask(self, task: Task, audio: Any, options: Mapping[str, Any]) -> Any:
        if not isinstance(audio, list | tuple):
            (one,) = self._ask(task, [audio], options)
            if isinstance(one, Failure):
                raise one.error
            return one
        answers = self.as_completed(task, audio, **options) if audio else iter(())
        return sorted(answers, key=lambda answer: answer.index)

    @contextlib.contextmanager
    def _request(self, payload: Mapping[str, Any]) -> Iterator[Request]:
        """The payload's request, whose audio lasts until the end of the block."""
        from worker.audio.arrays import MemoryFiles
        from worker.protocol.request import parse

        fields = self.naming(payload)
        audio, rate = fields.pop("inputs"), fields.pop("sample_rate", None)
        settings = self.settings.model_copy(update={"max_inputs": max(self.settings.max_inputs, len(audio))})
        files: dict[str, BinaryIO] = {}
        with contextlib.closing(MemoryFiles(settings.data_dir)) as shelf:
            inputs = [_source(index, one, rate, shelf, files) for index, one in enumerate(audio)]
            yield parse({**fields, "inputs": inputs}, settings, trusted=True, files=files)

    def _run(self, request: Request, *, shown: bool) -> Generator[FinishedInput, None, None]:
        from worker.entrypoints.progress import bar

        if not self._close.alive:
            raise ModelUnavailable("this bundle is closed")
        finished: queue.SimpleQueue[FinishedInput | None] = queue.SimpleQueue()
        started = time.monotonic()
        with bar(request.size, shown=shown) as add:
            future = self.engine.submit(
                request, on_result=lambda one: finished.put(FinishedInput(one, time.monotonic() - started))
            )
            future.add_done_callback(lambda _future: finished.put(None))
            try:
                while (done := finished.get()) is not None:
                    add(done.outcome)
                    yield done
            finally:
                future.cancel()


def load_model(
    model_dir: str | os.PathLike[str] | None = None,
    model: str | None = None,
    *,
    device: str | None = None,
    dtype: str | None = None,
) -> ModelBundle:
    """Loads a model and waits until it is ready; the rest are the environment's settings.

    model_dir: a checkpoint's own folder, which then is the model unless one is named, or a folder of checkpoints.
    model: an
    alias or id of the catalog, a repository, a .nemo file or a folder; by default MODEL. device, dtype: as DEVICE and
    DTYPE. Raises ModelNotFound, ModelUnavailable (missing, gated, too big: the message says what to do), ConfigError.
    """
    return load(Settings.of(model=model, model_dir=model_dir, device=device, dtype=dtype), named=model)


def load(settings: Settings, named: str | None = None) -> ModelBundle:
    """The default model of the settings, loaded. `named`: what the caller called it, if they did. Raises as
    `load_model`."""
    from worker.engine.engine import Engine

    row = catalog.find(settings.default_model)
    engine = Engine(settings)
    try:
        loading = engine.load(row.id)
        while engine.models.get(row.id) != "ready" and not concurrent.futures.wait([loading], timeout=LOOK_SEC).done:
            pass  # of several devices the first that is ready may begin
        if loading.done():
            loading.result()
    except BaseException:
        engine.close()
        raise
    return ModelBundle(engine, named)


def _source(index: int, audio: Any, rate: int | None, shelf: MemoryFiles, files: dict[str, BinaryIO]) -> str:
    """What stands in the payload for an input: its path or URL, or a name that no path can have."""
    name = f"\0{index}"
    if isinstance(audio, str | os.PathLike):
        path = os.fsdecode(audio)
        if path.isascii() or path.encode("utf-8", "replace").decode() == path:
            return path
        files[name] = shelf.copy(path)
    elif isinstance(audio, bytes | bytearray | memoryview) or hasattr(audio, "__array__"):
        files[name] = shelf.hold(audio, rate)
    else:
        raise RequestError(
            f"{_name(index, audio)} must be a path, a URL, bytes or an array, not {type(audio).__name__}",
            param="inputs",
        )
    return name


def _name(index: int, audio: Any) -> str:
    return os.fsdecode(audio) if isinstance(audio, str | os.PathLike) else f"input {index}"


def _answer(done: FinishedInput, names: Sequence[str]) -> Answer[Any] | Failure:
    one = done.outcome
    if isinstance(one, Failure):
        return one
    return Answer(one.index, names[one.index], one.output, one.duration_sec, done.elapsed_sec, one.warning)
