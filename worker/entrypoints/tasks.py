"""Any payload, whatever its task → the answer's JSON. What a Runpod job, an HTTP job and /run have in common.

    work = tasks.prepare(payload)      checked, nothing begun; raises RequestError
    future = work.start()              of what the task comes to; cancelling it drops the work
    answer = work.finish(outcome)      strict JSON; may store results in S3, so not for an event loop

Most tasks are one Request to the engine. `evaluate` counts a request's transcripts against labels: {"audio_dir",
"gt_dir"},
{"manifest"} or {"inputs": [{"source", "text"}]}. `score` compares recordings with reference clips: {"uid", "cid",
"audio"}, or inputs that have uid and cid each.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from pydantic import BaseModel, ConfigDict, Field

from worker.audio.fetch import check_allowed
from worker.config import Settings
from worker.engine.engine import Engine
from worker.engine.request_state import OnResult
from worker.errors import AviaryError, Cancelled, DeviceLost, InputError, RequestError, TooManyInputs, Unsupported
from worker.faults import report
from worker.net.s3 import Bucket
from worker.protocol import openai, render
from worker.protocol.request import parse, source_of, unwrapped, validated
from worker.types import Failure, Response, S3Access, Source

if TYPE_CHECKING:
    from worker.evaluation import Corpus, Evaluation
    from worker.scoring.scorer import Score, Scorer

Json = dict[str, Any]

_FEW = 100  # inputs


@dataclasses.dataclass(frozen=True, slots=True)
class Work:
    """A checked payload. `size`: how many inputs it has; `model`: whose answer it is, where that is known."""

    size: int
    model: str | None
    start: Callable[[OnResult | None], Future[Any]]
    finish: Callable[[Any], Any]


class _Pair(BaseModel):
    model_config = ConfigDict(extra="forbid")

    source: str = Field(min_length=1)
    text: str
    language: str | None = None


class _Evaluate(BaseModel):
    """What is left of the payload are options, which `parse` checks."""

    model_config = ConfigDict(extra="allow")

    audio_dir: Path | None = None
    gt_dir: Path | None = None
    manifest: Path | None = None
    inputs: list[_Pair] | None = None
    match_mode: str = "exact"
    normalizer: str = "basic"


class _Recording(BaseModel):
    model_config = ConfigDict(extra="forbid")

    source: str = Field(min_length=1)
    uid: str
    cid: str
    id: str | int | None = None


class _Score(BaseModel):
    model_config = ConfigDict(extra="forbid")

    task: str = "score"
    model: str | None = None
    inputs: list[_Recording] | None = Field(None, min_length=1)
    audio: str | None = Field(None, min_length=1)
    uid: str | None = None
    cid: str | None = None


def is_light(payload: Any) -> bool:
    """Whether to prepare it reads no file, loads nothing, and is done before anybody notices."""
    body = unwrapped(payload)
    if "openai_route" in body or body.get("task") in ("evaluate", "score"):
        return False
    inputs = body.get("inputs")
    several = inputs if isinstance(inputs, list) else []
    return len(several) <= _FEW and not any(isinstance(one, Mapping) and "messages" in one for one in (body, *several))


class Tasks:
    """Every task on one engine. Thread-safe. `scorer` is made of AUDIO_SCORE_CONFIG, when it is first needed."""

    def __init__(self, settings: Settings, engine: Engine) -> None:
        self._settings, self._engine = settings, engine
        self._scorer: Scorer | None = None
        self._lock = threading.Lock()

    def prepare(
        self,
        payload: Any,
        *,
        s3: S3Access | None = None,
        files: Mapping[str, BinaryIO] | None = None,
        background: bool = False,
    ) -> Work:
        """The work that a payload asks for. Raises RequestError for what is wrong with it as a whole.

        s3: the job's own bucket. files: as in `worker.protocol.request.parse`. background: as in Request.
        """
        body = unwrapped(payload)
        if "openai_route" in body:
            return self._routed(body, s3=s3, files=files, background=background)
        task = body.get("task")
        if task == "score":
            return self._score(body, s3, files or {})
        if task == "evaluate":
            return self._evaluate(body, s3, background)
        request = dataclasses.replace(parse(body, self._settings, s3=s3, files=files), background=background)
        put = Bucket(self._settings, s3).put
        return Work(
            request.size,
            request.model,
            lambda on_result: self._engine.submit(request, on_result=on_result),
            lambda response: render.to_json(response, put),
        )

    def _routed(self, body: Mapping[str, Any], **options: Any) -> Work:
        """What came through Runpod's OpenAI proxy: a route's body, answered in that route's shape."""
        route = str(body["openai_route"])
        if route == "/v1/models":
            listed: Future[Any] = Future()
            listed.set_result(None)
            return Work(0, None, lambda _on_result: listed, lambda _outcome: openai.models())
        payload, shape = openai.translate(route, body.get("openai_input"))
        work = self.prepare(payload, **options)

        def finish(outcome: Any) -> Any:
            answer = work.finish(outcome)
            return answer if "error" in answer else shape(answer)

        return dataclasses.replace(work, finish=finish)

    @property
    def scorer(self) -> Scorer:
        """Raises Unsupported where scoring is not set up, ConfigError where its file is wrong."""
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
        """Before the engine's."""
        with self._lock:
            if self._scorer is not None:
                self._scorer.close()

    def _evaluate(self, body: Mapping[str, Any], s3: S3Access | None, background: bool) -> Work:
        from worker import evaluation

        given = validated(_Evaluate, body)
        options = {name: value for name, value in (given.model_extra or {}).items() if name != "task"}
        prepared = evaluation.prepare(
            self._corpus(given),
            self._settings,
            options,
            match_mode=given.match_mode,
            normalizer=given.normalizer,
            s3=s3,
        )
        request = dataclasses.replace(prepared.request, background=background)
        return Work(
            request.size,
            request.model,
            lambda on_result: self._engine.submit(request, on_result=on_result),
            lambda response: _counted(prepared, response),
        )

    def _corpus(self, given: _Evaluate) -> Corpus:
        from worker.evaluation import Corpus, Pair, read_folder, read_manifest

        named = [name for name in ("audio_dir", "manifest", "inputs") if getattr(given, name) is not None]
        if len(named) != 1:
            raise RequestError("give exactly one of audio_dir (with gt_dir), manifest, inputs", param="audio_dir")
        for name in ("audio_dir", "gt_dir", "manifest"):
            path: Path | None = getattr(given, name)
            if path is not None:
                try:
                    check_allowed(path, self._settings)
                except InputError as error:
                    raise RequestError(error.message, param=name) from error
        if given.manifest is not None:
            return read_manifest(given.manifest)
        if given.audio_dir is not None:
            return read_folder(given.audio_dir, given.gt_dir)
        return Corpus(tuple(Pair(one.source, one.source, one.text, one.language) for one in given.inputs or ()))

    def _score(self, body: Mapping[str, Any], s3: S3Access | None, files: Mapping[str, BinaryIO]) -> Work:
        given = validated(_Score, body)
        recordings = given.inputs
        if recordings is None:
            if given.audio is None or given.uid is None or given.cid is None:
                missing = next(name for name in ("audio", "uid", "cid") if getattr(given, name) is None)
                raise RequestError(f"{missing} is missing: a score needs uid, cid and audio", param=missing)
            recordings = [_Recording(source=given.audio, uid=given.uid, cid=given.cid)]
        if len(recordings) > self._settings.max_inputs:
            raise TooManyInputs(
                f"inputs has {len(recordings)} items; at most {self._settings.max_inputs} (MAX_INPUTS) are allowed",
                param="inputs",
            )
        scorer = self.scorer
        if len(recordings) == 1:
            scorer.check(recordings[0].uid, recordings[0].cid, given.model)
        sources = [
            Source("file", one.source, file=files[one.source]) if one.source in files else source_of(one.source, s3=s3)
            for one in recordings
        ]

        def start(_on_result: OnResult | None) -> Future[Any]:
            return _all(
                [_started(scorer, one, source, given.model) for one, source in zip(recordings, sources, strict=True)]
            )

        return Work(len(recordings), given.model, start, lambda outcomes: _score_json(recordings, outcomes))


def _counted(prepared: Evaluation, response: Response) -> Json:
    """Raises what took the worker from under the request: that says nothing about the model."""
    for one in response.results:
        if isinstance(one, Failure) and isinstance(one.error, DeviceLost | Cancelled):
            raise one.error.with_traceback(None)
    return {"model": response.model, **prepared.score(response)}


def _started(scorer: Scorer, one: _Recording, source: Source, model: str | None) -> Future[Score]:
    try:
        return scorer.score(one.uid, one.cid, source, model)
    except AviaryError as error:
        failed: Future[Score] = Future()
        failed.set_exception(error)
        return failed


def _all(futures: list[Future[Score]]) -> Future[list[Score | AviaryError]]:
    """Done when all are, with an error in the place of each that failed; cancelling it cancels them."""
    together: Future[list[Score | AviaryError]] = Future()
    left, lock = len(futures), threading.Lock()

    def count(_one: Future[Score]) -> None:
        nonlocal left
        with lock:
            left -= 1
            if left:
                return
        if together.set_running_or_notify_cancel():
            together.set_result([_outcome(one) for one in futures])

    def give_up(done: Future[Any]) -> None:
        if done.cancelled():
            for one in futures:
                one.cancel()

    together.add_done_callback(give_up)
    for one in futures:
        one.add_done_callback(count)
    return together


def _outcome(one: Future[Score]) -> Score | AviaryError:
    error = one.exception() if not one.cancelled() else InputError("cancelled")
    return one.result() if error is None else report(error)


def _score_json(recordings: list[_Recording], outcomes: list[Score | AviaryError]) -> Json:
    results: list[Json] = []
    for index, (one, outcome) in enumerate(zip(recordings, outcomes, strict=True)):
        told = {"error": render.error_json(outcome)} if isinstance(outcome, AviaryError) else dict(outcome)
        results.append({"index": index, "id": one.id, "uid": one.uid, "cid": one.cid, **told})
    failed = [one for one in results if "error" in one]
    answer: Json = {
        "model": next((one["model"] for one in results if "model" in one), None),
        "results": results,
        "usage": {"inputs": len(results), "failed": len(failed)},
    }
    if len(failed) == len(results):
        answer["error"] = failed[0]["error"]["message"]
    return answer
