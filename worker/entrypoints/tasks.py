"""Any payload, of any task → Work. Every entry point that takes payloads comes through here.

tasks = Tasks(settings, engine)
work = tasks.prepare(fields)     checked, nothing begun; see `worker.protocol.work`
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, BinaryIO

from typing_extensions import Unpack, override

from worker.config import Settings
from worker.engine.engine import Engine
from worker.errors import AviaryError, Unsupported
from worker.net.s3 import Bucket
from worker.protocol import openai
from worker.protocol.request import parse
from worker.protocol.strict import Fields
from worker.protocol.work import Inference, Json, Work
from worker.types import Listeners, S3Access

if TYPE_CHECKING:
    from worker.scoring.scorer import Scorer


class Tasks:
    """Every task on one engine. Thread-safe."""

    def __init__(self, settings: Settings, engine: Engine) -> None:
        self._settings, self._engine = settings, engine
        self._scorer: Scorer | None = None
        self._lock = threading.Lock()

    def prepare(
        self,
        fields: Fields,
        *,
        s3: S3Access | None = None,
        files: Mapping[str, BinaryIO] | None = None,
        background: bool = False,
        owner: str | None = None,
    ) -> Work:
        """Return the work that a request (unwrapped) asks for. Raises RequestError if the request as a whole is wrong.

        s3: the job's own bucket. files: as in `worker.protocol.request.parse`. background, owner: as in
        `Request`.
        """
        if "openai_route" in fields:
            return self._routed(fields, s3=s3, files=files, background=background, owner=owner)
        task = fields.get("task")
        if task == "score":
            from worker.scoring import task as scoring

            return scoring.prepare(fields, self._settings, self.scorer, s3=s3, files=files or {})
        if task == "evaluate":
            from worker.evaluation import task as evaluation

            return evaluation.prepare(fields, self._settings, self._engine, s3=s3, background=background, owner=owner)
        request = parse(fields, self._settings, s3=s3, files=files)
        request = dataclasses.replace(request, background=background, owner=owner)
        return Inference(request, self._engine, Bucket(self._settings, s3).put)

    @property
    def scorer(self) -> Scorer:
        """The scorer of AUDIO_SCORE_CONFIG, opened on first use.

        Raises Unsupported if scoring is not configured, ConfigError if its file is wrong.
        """
        if self._settings.audio_score_config is None:
            raise Unsupported(
                "this worker has no reference clips to score against: set AUDIO_SCORE_CONFIG to a config.json",
                param="task",
            )
        with self._lock:
            if self._scorer is None:
                from worker.scoring.scorer import Scorer

                self._scorer = Scorer.open(self._settings.audio_score_config, self._engine, self._settings)
            return self._scorer

    def close(self) -> None:
        """Close the scorer. Call it before the engine's `close`."""
        with self._lock:
            if self._scorer is not None:
                self._scorer.close()

    def _routed(self, fields: Fields, **options: Any) -> Work:
        """A route's body that came through Runpod's OpenAI proxy, answered in the shape of that route."""
        route = str(fields["openai_route"])
        if route == "/v1/models":
            return _ModelList(self._settings)
        payload, shape = openai.translate(route, fields.get("openai_input"))
        return Routed(self.prepare(payload, **options), shape)


class _ModelList(Work):
    """The list of models: nothing to run."""

    size, model, task = 0, None, None

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def start(self, **listeners: Unpack[Listeners]) -> Future[None]:
        listed: Future[None] = Future()
        listed.set_result(None)
        return listed

    def finish(self, outcome: None) -> Json:
        return openai.models(self._settings)


class Routed(Work):
    """Work whose answer takes the shape of an OpenAI route; an answer with an error keeps its own."""

    def __init__(self, work: Work, shape: openai.Shape) -> None:
        self._work, self._shape = work, shape
        self.size, self.model, self.task = work.size, work.model, work.task

    @override
    def start(self, **listeners: Unpack[Listeners]) -> Future[Any]:
        return self._work.start(**listeners)

    @override
    def finish(self, outcome: Any) -> Any:
        answer = self._work.finish(outcome)
        return answer if "error" in answer else self._shape(answer)

    @override
    def error(self, outcome: Any) -> AviaryError | None:
        return self._work.error(outcome)
