"""A checked payload that can be run: what every entry point does with a request of any task.

    work = tasks.prepare(fields)              everything checked, nothing begun
    future = work.start(on_result=show, ...)  begins; canceling the future drops the work
    answer = work.finish(outcome)             the future's result → the answer's JSON

`Inference` is the work of most tasks: one Request to the engine. Evaluation and scoring have kinds of their own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from typing_extensions import Unpack, override

from worker.errors import AviaryError
from worker.protocol import render
from worker.types import Failure, Listeners, Request, Response

if TYPE_CHECKING:
    from worker.engine.engine import Engine

Json = dict[str, Any]


class Work(ABC):
    """A checked payload.

    size: how many inputs it has. model: the id of the model that runs it, or None where no single model does. task: its
    task, or None if its inputs have different ones.
    """

    size: int
    model: str | None
    task: str | None

    @abstractmethod
    def start(self, **listeners: Unpack[Listeners]) -> Future[Any]:
        """Begin, and return a future of the outcome. The listeners are those of `Engine.submit`."""

    @abstractmethod
    def finish(self, outcome: Any) -> Any:
        """Return the answer: strict JSON, or text for a route that responds with text. May store results in S3."""

    def error(self, outcome: Any) -> AviaryError | None:
        """Return the error of the outcome's only input, if it has just one and that failed."""
        return None

    @property
    def is_light(self) -> bool:
        """Whether `finish` is quick enough for an event loop."""
        return False


@dataclass(frozen=True)
class Inference(Work):
    """One request to the engine. put: stores a large result, see `render.Put`."""

    request: Request
    engine: Engine
    put: render.Put

    @override
    @property
    def size(self) -> int:  # type: ignore[override]
        return self.request.size

    @override
    @property
    def model(self) -> str:  # type: ignore[override]
        return self.request.model

    @override
    @property
    def task(self) -> str | None:  # type: ignore[override]
        tasks = {item.options.task for item in self.request.items}
        return tasks.pop() if len(tasks) == 1 else None

    @override
    @property
    def is_light(self) -> bool:
        return self.size == 1 and all(item.options.task not in ("embed", "analyze") for item in self.request.items)

    @override
    def start(self, **listeners: Unpack[Listeners]) -> Future[Response]:
        return self.engine.submit(self.request, **listeners)

    @override
    def finish(self, outcome: Response) -> Json:
        return render.to_json(outcome, self.put)

    @override
    def error(self, outcome: Response) -> AviaryError | None:
        first = outcome.results[0] if len(outcome.results) == 1 else None
        return first.error if isinstance(first, Failure) else None
