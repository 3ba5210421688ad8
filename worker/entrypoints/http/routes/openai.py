"""OpenAI's routes and their relatives: /v1/audio/..., /v1/chat/completions.

A body is a form with `file`, or JSON with `audio`; `worker.protocol.openai` translates it, as it does for Runpod's
proxy. Streams are server-sent events in OpenAI's words; see `worker.entrypoints.http.events`.
"""

from __future__ import annotations

import urllib.parse
from typing import Any

from fastapi import APIRouter
from fastapi.requests import Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from worker.entrypoints.http import events
from worker.entrypoints.http.body import Body, RequestBody, is_form
from worker.entrypoints.http.job_queue import UPLOAD, JobForm
from worker.entrypoints.http.openapi import (
    EVENTS,
    OPENAI_WORK,
    PLAIN_TEXT,
    also,
    audio_body,
    chat_body,
    failures,
    speech_body,
)
from worker.entrypoints.http.response_models import ChatCompletion, Features, SpeakerTurns, SpeechSpan, Transcription
from worker.entrypoints.http.responses import large_json
from worker.entrypoints.http.service import Service
from worker.errors import RequestError
from worker.protocol import openai, speech_timestamps
from worker.protocol.openai_fields import AUDIO

Json = dict[str, Any]

MODEL_HEADER = "OpenAI-Model"  # as on OpenAI's API: a transcription does not name its model. Percent-encoded

_SPEECH = {"transcriptions": "Speech to text", "translations": "Speech to English text"}
_FEATURES = {
    "captions": "Describe a sound or a song",
    "embeddings": "Features of the audio encoder",
    "analyze": "A caption and features from one pass",
}


def router(service: Service) -> APIRouter:
    """Return the routes on one service."""
    routes = APIRouter(tags=["OpenAI"])

    async def speech(http: Request, sent: RequestBody) -> Response:
        stream = _stream_options(sent)
        _require_audio(http, sent)
        payload, shape = openai.translate(http.scope["path"], sent.fields)
        if stream is not None:
            form = "diarized_json" if payload.get("format") == "diarized_json" else "verbose_json"
            work = await service.prepare(http, payload | {"format": form}, sent.files)
            return await events.respond(http, events.transcription(service, work, payload), _named(work.model))
        answer = await service.one(http, payload, sent.files, job=_job(http, sent, shape))
        shaped = shape(answer)
        kind = PlainTextResponse if isinstance(shaped, str) else JSONResponse
        return kind(shaped, headers=_named(answer["model"]))

    async def features(http: Request, sent: RequestBody) -> Response:
        if _stream_options(sent) is not None:
            raise RequestError("stream is not a field of this route", param="stream")
        _require_audio(http, sent)
        payload, shape = openai.translate(http.scope["path"], sent.fields)
        answer = await service.one(http, payload, sent.files)
        return await large_json(lambda: shape(answer))

    async def diarization(http: Request, sent: RequestBody) -> Response:
        if _stream_options(sent) is not None:
            raise RequestError("stream is not a field of this route", param="stream")
        _require_audio(http, sent)
        payload, shape = openai.translate(http.scope["path"], sent.fields)
        answer = await service.one(http, payload, sent.files, job=_job(http, sent, shape))
        shaped = shape(answer)
        return (PlainTextResponse if isinstance(shaped, str) else JSONResponse)(shaped)

    for name, summary in _SPEECH.items():
        routes.add_api_route(
            f"/v1/audio/{name}",
            speech,
            methods=["POST"],
            name=name,
            summary=summary,
            response_model=Transcription,
            responses=also(PLAIN_TEXT | EVENTS, *OPENAI_WORK),
            openapi_extra=audio_body(name),
        )
    for name, summary in _FEATURES.items():
        routes.add_api_route(
            f"/v1/audio/{name}",
            features,
            methods=["POST"],
            name=name,
            summary=summary,
            response_model=Features,
            responses=failures(*OPENAI_WORK),
            openapi_extra=audio_body(name),
        )

    routes.add_api_route(
        "/v1/audio/diarizations",
        diarization,
        methods=["POST"],
        name="diarizations",
        summary="Who speaks when",
        response_model=SpeakerTurns,
        responses=also(PLAIN_TEXT, *OPENAI_WORK),
        openapi_extra=audio_body("diarizations"),
    )

    @routes.post(
        "/v1/audio/speech/timestamps",
        summary="The times of speech",
        response_model=list[SpeechSpan],
        responses=failures(*OPENAI_WORK),
        openapi_extra=speech_body(),
    )
    async def speech_spans(http: Request, sent: RequestBody) -> Response:
        _require_audio(http, sent)
        work = speech_timestamps.prepare(sent.fields, service.engine, sent.files)
        return JSONResponse(await service.complete(http, work))

    @routes.post(
        "/v1/chat/completions",
        summary="Ask about a clip",
        response_model=ChatCompletion,
        responses=also(EVENTS, *OPENAI_WORK),
        openapi_extra=chat_body(),
    )
    async def chat(http: Request, sent: RequestBody) -> Response:
        stream = _stream_options(sent)
        payload, shape = openai.translate(http.scope["path"], sent.fields)
        if stream is not None:
            include_usage = bool(stream.get("include_usage"))
            return await events.respond(http, events.chat(service, http, payload, include_usage=include_usage))
        return JSONResponse(shape(await service.one(http, payload)))

    return routes


def _named(model: str | None) -> dict[str, str]:
    """Return the header that names the model that ran."""
    return {MODEL_HEADER: urllib.parse.quote(model)} if model else {}


def _require_audio(http: Request, sent: Body) -> None:
    """Raise RequestError, in the words of the route, if a body has no audio."""
    if sent.fields.keys() & set(AUDIO):
        return
    if is_form(http):
        raise RequestError("file is missing: send the audio as a file in the form field file", param="file")
    raise RequestError("audio is missing: send a source, or an object with url or data", param="audio")


def _job(http: Request, sent: Body, shape: openai.Shape) -> JobForm:
    """Return the job that a request becomes if it is late: a payload as Runpod's OpenAI proxy sends it."""
    fields = {
        name: UPLOAD if isinstance(value, str) and value in sent.files else value for name, value in sent.fields.items()
    }
    return JobForm("run", {"openai_route": http.scope["path"], "openai_input": fields}, sent, shape)


def _stream_options(sent: Body) -> Json | None:
    """Take `stream` and `stream_options` out of the fields. Return the options, or None if no stream is wanted."""
    stream = sent.fields.pop("stream", None) or None
    options = sent.fields.pop("stream_options", None) or {}
    if stream not in (None, True, False, "true", "false", "True", "False"):
        raise RequestError("stream must be true or false", param="stream")
    if not isinstance(options, dict) or options.keys() - {"include_usage", "include_obfuscation"}:
        raise RequestError("stream_options may only have include_usage", param="stream_options")
    return options if stream in (True, "true", "True") else None
