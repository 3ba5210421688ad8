"""The routes of the servers that Aviary replaces, in their own shapes: a client of one of them works unchanged.

POST /transcribe     JSON {"paths", "prompt", "max_new_tokens"}, or `file`, `model`, `language`, `include_timestamps`:
                     as a form with an upload, or as JSON with a source
POST /evaluate       JSON {"audio_dir", "gt_dir", "match_mode", "max_new_tokens"}
POST /score          a form with `uid`, `cid`, `audio`, `model`; or JSON, whose `audio` is a source
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter
from fastapi.requests import Request
from fastapi.responses import JSONResponse, Response

from worker.audio.fetch import Fetcher
from worker.config import Settings
from worker.entrypoints.http.body import Body, RequestBody, is_form
from worker.entrypoints.http.job_queue import UPLOAD, JobForm
from worker.entrypoints.http.openapi import (
    BOOLEAN,
    FILE,
    MODEL,
    SOURCE,
    TEXT,
    UPLOAD_FORM,
    WORK,
    body,
    failures,
    option,
)
from worker.entrypoints.http.response_models import EvaluationReport, PathTranscripts, ScoreAnswer, UploadTranscript
from worker.entrypoints.http.responses import large_json
from worker.entrypoints.http.service import Service
from worker.errors import InputError, RequestError
from worker.evaluation import MATCH_MODES
from worker.evaluation.metrics import NORMALIZERS
from worker.protocol import legacy, openai
from worker.protocol.request import source_of
from worker.types import Failure, Result

Json = dict[str, Any]

_PATHS: Json = {
    "paths": {"type": "array", "items": TEXT, "minItems": 1},
    "model": MODEL,
    "prompt": {"anyOf": [option("prompt"), {"type": "null"}]},
    "max_new_tokens": {"anyOf": [option("max_new_tokens"), {"type": "null"}]},
}
_TRANSCRIBE = body(form=UPLOAD_FORM, json=_PATHS, required=("paths",))
_JSON = _TRANSCRIBE["requestBody"]["content"]["application/json"]
_SOURCE: Json = body(json={**UPLOAD_FORM, "file": SOURCE, "include_timestamps": BOOLEAN})
_JSON["schema"] = {"anyOf": [_JSON["schema"], _SOURCE["requestBody"]["content"]["application/json"]["schema"]]}
_EVALUATE: Json = {
    "audio_dir": TEXT,
    "gt_dir": TEXT,
    "manifest": TEXT,
    "match_mode": {"enum": list(MATCH_MODES)},
    "normalizer": {"enum": list(NORMALIZERS)},
    "model": MODEL,
    **{name: option(name) for name in ("prompt", "language", "max_new_tokens")},
}
_SCORE: Json = {"uid": TEXT, "cid": TEXT, "model": TEXT}


def router(service: Service) -> APIRouter:
    """Return the routes on one service."""
    routes = APIRouter(tags=["Earlier servers"])

    @routes.post(
        "/transcribe",
        summary="Transcribe an upload, or files of this machine",
        response_model=UploadTranscript | PathTranscripts,
        responses=failures(*WORK),
        openapi_extra=_TRANSCRIBE,
    )
    async def transcribe(http: Request, sent: RequestBody) -> Response:
        one = is_form(http) or "file" in sent.fields
        return await large_json(await (_file if one else _paths)(service, http, sent))

    @routes.post(
        "/evaluate",
        summary="Compare a model's transcripts with labels on this machine",
        response_model=EvaluationReport,
        responses=failures(*WORK),
        openapi_extra=body(json=_EVALUATE),
    )
    async def evaluate(http: Request, sent: RequestBody) -> Response:
        fields = legacy.without_unused_bound(sent.fields, service.settings)
        answer = await service.run(http, {**fields, "task": "evaluate"})
        return await large_json(lambda: answer)

    @routes.post(
        "/score",
        summary="Compare a recording with a reference clip",
        response_model=ScoreAnswer,
        responses=failures(*WORK),
        openapi_extra=body(
            form={"audio": FILE, **_SCORE}, json={"audio": SOURCE, **_SCORE}, required=("audio", "uid", "cid")
        ),
    )
    async def score(http: Request, sent: RequestBody) -> Response:
        unknown = sent.fields.keys() - {"uid", "cid", "audio", "model"}
        if unknown:
            raise RequestError(f"{min(unknown)} is not a field of this route", param=min(unknown))
        if "audio" not in sent.fields:
            raise RequestError("audio is missing: send the recording as a file, or its URL", param="audio")
        audio = openai.source(sent.fields["audio"], "audio")
        answer = await service.one(http, {**sent.fields, "audio": audio, "task": "score"}, sent.files)
        (result,) = answer["results"]
        names = ("model", "sim_score", "audio_sim_score", "text_sim_score")
        return JSONResponse({name: result[name] for name in names})

    return routes


async def _file(service: Service, http: Request, sent: Body) -> Callable[[], Json]:
    """Transcribe the upload, or the source of a JSON body, and return what makes its response."""
    if is_form(http):
        fields, filename = sent.fields, sent.upload("file")[1]
    else:
        source = openai.source(sent.fields["file"], "file")
        fields, filename = sent.fields | {"file": source}, legacy.filename(source)
    payload = legacy.upload_payload(fields, service.settings)
    job = JobForm("transcribe", payload | ({"audio": UPLOAD} if sent.files else {}), sent)
    answer = await service.one(http, payload, sent.files, job=job)
    done_at = time.time()
    return lambda: legacy.upload_json(answer["results"][0], filename, done_at)


async def _paths(service: Service, http: Request, sent: Body) -> Callable[[], Json]:
    """Transcribe the files, and return what makes the response."""
    payload = legacy.paths_payload(sent.fields, service.settings)
    paths = payload["inputs"]
    await asyncio.to_thread(_check_paths, service.settings, paths)
    started, took = time.monotonic(), dict[int, float]()

    def note(result: Result | Failure) -> None:
        took[result.index] = time.monotonic() - started

    answer = await service.run(http, payload, on_result=note)

    def make() -> Json:
        results = zip(paths, answer["results"], strict=True)
        return {"results": [legacy.file_json(path, one, took[one["index"]]) for path, one in results]}

    return make


def _check_paths(settings: Settings, paths: list[str]) -> None:
    """Raise RequestError for the first path that cannot be read, before anything is done."""
    fetcher = Fetcher(settings)
    for index, path in enumerate(paths):
        try:
            source = source_of(path)
            if source.kind != "path":
                raise RequestError(f"{path[:80]} is not a path", param=f"paths[{index}]")
            fetcher.open(source).close()
        except InputError as error:
            raise RequestError(error.message, param=f"paths[{index}]") from error
