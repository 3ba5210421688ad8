"""The routes of the servers that Aviary replaces, in their own shapes: a client written for one of them works
unchanged.

    POST /transcribe     JSON {"paths", "prompt", "max_new_tokens"}, or a form with `file`, `model`, `language`,
                         `include_timestamps`: told apart by the content type
    POST /evaluate       JSON {"audio_dir", "gt_dir", "match_mode", "max_new_tokens"}
    POST /score          a form with `uid`, `cid`, `audio`, `model`; JSON too, whose `audio` is a source

`max_new_tokens`, which those clients always send, changes nothing where the model does not write token by token.
"""

from __future__ import annotations

import asyncio
import datetime
import time
from typing import Any

from fastapi import APIRouter
from fastapi.requests import Request
from fastapi.responses import JSONResponse, Response

from worker import catalog
from worker.audio.fetch import Fetcher
from worker.entrypoints.http import body, openapi
from worker.entrypoints.http.body import Body
from worker.entrypoints.http.route import Route
from worker.entrypoints.http.service import Service
from worker.errors import InputError, RequestError
from worker.protocol import openai, render
from worker.protocol.request import MOST_TOKENS, source_of
from worker.types import Failure, Result, Transcript

Json = dict[str, Any]


def router(service: Service) -> APIRouter:
    """The routes, on one service."""
    routes = APIRouter(tags=["Earlier servers'"], route_class=Route)

    @routes.post("/transcribe", **openapi.transcribe())
    async def transcribe(http: Request) -> Response:
        given = await body.read(http)
        try:
            if body.is_form(http):
                return JSONResponse(await _upload(service, http, given))
            return JSONResponse(await _paths(service, http, given.fields))
        finally:
            given.close()

    @routes.post("/evaluate", **openapi.evaluate())
    async def evaluate(http: Request) -> Response:
        given = await body.read(http)
        given.close()
        if "input" in given.fields:
            raise RequestError("input is not a field of this route", param="input")
        answer = await service.run(http, {**_written(given.fields, service), "task": "evaluate"})
        return JSONResponse(answer)

    @routes.post("/score", **openapi.score())
    async def score(http: Request) -> Response:
        given = await body.read(http)
        try:
            unknown = given.fields.keys() - {"uid", "cid", "audio", "model"}
            if unknown:
                raise RequestError(f"{min(unknown)} is not a field of this route", param=min(unknown))
            if "audio" not in given.fields:
                raise RequestError("audio is missing: send the recording as a file, or its URL", param="audio")
            audio = openai.source(given.fields["audio"], "audio")
            answer = await service.run(http, {**given.fields, "audio": audio, "task": "score"}, given.files)
        finally:
            given.close()
        (one,) = answer["results"]
        return JSONResponse({name: one[name] for name in ("model", "sim_score", "audio_sim_score", "text_sim_score")})

    return routes


async def _upload(service: Service, http: Request, given: Body) -> Json:
    payload, filename = upload_payload(given, service)
    response = await service.one(http, payload, given.files)
    (one,) = response.results
    assert isinstance(one, Result)
    return upload_json(one, filename)


def upload_payload(given: Body, service: Service) -> tuple[Json, str]:
    """The payload of a form with one file, and the file's own name."""
    fields = given.fields
    unknown = fields.keys() - {"file", "model", "language", "include_timestamps"}
    if unknown:
        raise RequestError(f"{min(unknown)} is not a field of this route", param=min(unknown))
    if not given.is_file("file"):
        raise RequestError("file is missing: send the audio as a file", param="file")
    wanted = fields.get("include_timestamps")
    if wanted not in (None, "true", "false", "True", "False", "1", "0"):
        raise RequestError("include_timestamps must be true or false", param="include_timestamps")
    source: str = fields["file"]
    payload = {"audio": source} | {name: fields[name] for name in ("model", "language") if fields.get(name)}
    service.allow(payload)
    model = catalog.find(fields.get("model") or service.settings.default_model)
    if wanted in ("true", "True", "1") or (wanted is None and model.timestamps):
        payload["timestamps"] = ["segment"]
    return payload, given.names[source]


def upload_json(one: Result, filename: str) -> Json:
    """A result in the shape of the server with uploads."""
    transcript = one.output
    assert isinstance(transcript, Transcript)
    segments = [{"start": round(s.start, 3), "end": round(s.end, 3), "text": s.text} for s in transcript.segments]
    now = datetime.datetime.now(datetime.timezone.utc).replace(tzinfo=None)
    return {
        "text": transcript.text,
        "segments": segments,
        "filename": filename,
        "timestamp": now.isoformat(timespec="seconds"),
    }


async def _paths(service: Service, http: Request, fields: Json) -> Json:
    unknown = fields.keys() - {"paths", "prompt", "max_new_tokens", "model"}
    if unknown:
        raise RequestError(f"{min(unknown)} is not a field of this route", param=min(unknown))
    paths = fields.get("paths")
    if not isinstance(paths, list) or not paths or not all(isinstance(path, str) and path for path in paths):
        raise RequestError("paths must be a list of paths, one at least", param="paths")
    await asyncio.to_thread(_check_paths, service, paths)
    started, took = time.monotonic(), dict[int, float]()

    def note(one: Result | Failure) -> None:
        took[one.index] = time.monotonic() - started

    options = {name: fields[name] for name in fields if name != "paths" and fields[name] is not None}
    payload = {"inputs": paths, **_written(options, service)}
    response = await service.take(http, payload, on_result=note)
    return {
        "results": [_file_json(path, one, took[one.index]) for path, one in zip(paths, response.results, strict=True)]
    }


def _written(fields: Json, service: Service) -> Json:
    """The fields, without `max_new_tokens` where the model does not write token by token. A value that no model takes
    stays, to be refused."""
    most, name = fields.get("max_new_tokens"), fields.get("model") or service.settings.default_model
    if not isinstance(name, str) or type(most) is not int or not 1 <= most <= MOST_TOKENS:
        return fields
    service.allow(fields)
    if "max_new_tokens" in catalog.find(name).options:
        return fields
    return {field: value for field, value in fields.items() if field != "max_new_tokens"}


def _check_paths(service: Service, paths: list[str]) -> None:
    """Raises RequestError for the first that cannot be read: nothing is done then."""
    fetcher = Fetcher(service.settings)
    for index, path in enumerate(paths):
        try:
            source = source_of(path)
            if source.kind != "path":
                raise RequestError(f"{path[:80]} is not a path", param=f"paths[{index}]")
            fetcher.open(source).close()
        except InputError as error:
            raise RequestError(error.message, param=f"paths[{index}]") from error


def _file_json(path: str, one: Result | Failure, took: float) -> Json:
    if isinstance(one, Failure):
        return {"file": path, "error": render.error_json(one.error)}
    transcript = one.output
    assert isinstance(transcript, Transcript)
    return {
        "file": path,
        "text": transcript.text,
        "tokens_generated": transcript.tokens_generated,
        "elapsed_sec": round(took, 3),
    }
