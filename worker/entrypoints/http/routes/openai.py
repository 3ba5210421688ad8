"""OpenAI's routes, and those of their kind: /v1/audio/..., /v1/chat/completions, /v1/models.

A body is a form with `file`, or JSON with `audio`; `worker.protocol.openai` translates it, as it does for Runpod's
proxy. Streams are server-sent events in OpenAI's words.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from fastapi import APIRouter
from fastapi.requests import Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from worker import catalog
from worker.entrypoints.http import answers, body, openapi, responses
from worker.entrypoints.http.body import Body
from worker.entrypoints.http.route import Route
from worker.entrypoints.http.service import Service, hung_up
from worker.errors import Cancelled, ModelNotFound, RequestError
from worker.faults import report
from worker.net.s3 import Bucket
from worker.protocol import openai, render
from worker.types import Embedding
from worker.types import Response as Answer

Json = dict[str, Any]
Event = Json | str
KEEP_ALIVE_SEC = 15.0


def router(service: Service) -> APIRouter:
    """The routes, on one service."""
    routes = APIRouter(tags=["OpenAI"], route_class=Route)

    async def speech(http: Request) -> Response:
        given, payload, shape, stream = await _read(http)
        if stream is not None:
            return await _transcription_stream(service, http, payload, given)
        try:
            answer = await _answer(service, http, payload, given)
        finally:
            given.close()
        shaped = shape(answer)
        return PlainTextResponse(shaped) if isinstance(shaped, str) else JSONResponse(shaped)

    async def sound(http: Request) -> Response:
        given, payload, shape, stream = await _read(http)
        try:
            if stream is not None:
                raise RequestError("stream is not a field of this route", param="stream")
            answer = await _answer(service, http, payload, given)
        finally:
            given.close()
        return await answers.of(lambda: shape(answer))

    for name in ("transcriptions", "translations"):
        routes.add_api_route(f"/v1/audio/{name}", speech, methods=["POST"], name=name, **openapi.speech(name))
    for name in ("captions", "embeddings", "analyze"):
        routes.add_api_route(f"/v1/audio/{name}", sound, methods=["POST"], name=name, **openapi.sound(name))

    @routes.post("/v1/chat/completions", **openapi.chat())
    async def chat(http: Request) -> Response:
        given, payload, shape, stream = await _read(http)
        given.close()
        if stream is not None:
            return await _events(http, _chat_events(service, payload, stream))
        return JSONResponse(shape(await _answer(service, http, payload, given)))

    @routes.get("/v1/models", **openapi.models())
    async def models() -> Response:
        listed = openai.models()
        states = service.engine.models
        listed["data"] = [
            one | {"loaded": states.get(one["id"]) == "ready", "default": one["id"] == service.default}
            for one in _with_own(listed["data"], service)
        ]
        return JSONResponse(listed)

    @routes.get("/v1/models/{name:path}", **openapi.model())
    async def model(name: str) -> Response:
        for one in _with_own(openai.models()["data"], service):
            if name == one["id"] or name in one["aliases"]:
                return JSONResponse(one)
        raise ModelNotFound(f"model {name!r} is not one of this server's", param="model")

    return routes


def _with_own(listed: list[Json], service: Service) -> list[Json]:
    """The catalog's models, and before them those of the settings that are not of the catalog."""
    settings = service.settings
    rows = [catalog.find(name) for name in (settings.default_model, *settings.models)]
    known = {one["id"] for one in listed}
    own = {row.id: openai.model_json(row) for row in rows if row.id not in known}
    return [*own.values(), *listed]


async def _read(http: Request) -> tuple[Body, Json, openai.Shape, Json | None]:
    """The body, the payload, what shapes the answer, and the stream's options if one is wanted."""
    given = await body.read(http)
    try:
        fields = given.fields
        stream = fields.pop("stream", None)
        options = fields.pop("stream_options", None) or {}
        if stream not in (None, True, False, "true", "false", "True", "False"):
            raise RequestError("stream must be true or false", param="stream")
        if not isinstance(options, dict) or options.keys() - {"include_usage", "include_obfuscation"}:
            raise RequestError("stream_options may have include_usage", param="stream_options")
        payload, shape = openai.translate(http.scope["path"], fields)
    except BaseException:
        given.close()
        raise
    return given, payload, shape, options if stream in (True, "true", "True") else None


async def _answer(service: Service, http: Request, payload: Json, given: Body) -> Json:
    response = await service.one(http, payload, given.files)
    put = Bucket(service.settings).put
    if isinstance(getattr(response.results[0], "output", None), Embedding) or payload["task"] in ("embed", "analyze"):
        return await asyncio.to_thread(render.to_json, response, put)
    return render.to_json(response, put)


# Streams


async def _events(http: Request, events: AsyncGenerator[Event, None]) -> Response:
    """The events as a stream. What goes wrong before the first one is an error like any other; a client waits for its
    headers no longer than KEEP_ALIVE_SEC, and need not wait for anything: when it hangs up, the work is given up."""
    first, gone = asyncio.ensure_future(anext(events)), asyncio.ensure_future(hung_up(http))
    try:
        await asyncio.wait({first, gone}, timeout=KEEP_ALIVE_SEC, return_when=asyncio.FIRST_COMPLETED)
        if gone.done() and not first.done():
            raise Cancelled("the client hung up")
        if first.done() and (error := first.exception()) is not None:
            raise error
    except BaseException:
        first.cancel()
        await asyncio.wait({first})
        await events.aclose()
        raise
    finally:
        gone.cancel()
    return StreamingResponse(
        _written(first, events), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
    )


async def _written(coming: asyncio.Future[Event], events: AsyncGenerator[Event, None]) -> AsyncIterator[str]:
    try:
        while True:
            done, _ = await asyncio.wait({coming}, timeout=KEEP_ALIVE_SEC)
            if not done:
                yield ": still working\n\n"
                continue
            try:
                event = coming.result()
            except StopAsyncIteration:
                return
            except Exception as error:  # noqa: BLE001  the status is long sent: an event is what is left
                event = responses.to_json(report(error))
            yield f"data: {event if isinstance(event, str) else json.dumps(event, ensure_ascii=False)}\n\n"
            if isinstance(event, dict) and "error" in event:
                return
            coming = asyncio.ensure_future(anext(events))
    finally:
        coming.cancel()
        await asyncio.wait({coming})
        await events.aclose()


async def _transcription_stream(service: Service, http: Request, payload: Json, given: Body) -> Response:
    """The upload stays open until the stream has ended: it may be read long after the answer has begun."""
    verbose = payload.get("format") == "verbose_json"
    try:
        return await _events(http, _transcription_events(service, payload | {"format": "verbose_json"}, given, verbose))
    except BaseException:
        given.close()
        raise


async def _transcription_events(
    service: Service, payload: Json, given: Body, verbose: bool
) -> AsyncGenerator[Event, None]:
    told = ""
    stream = service.stream(payload, given.files)
    try:
        async for bit in stream:
            if isinstance(bit, str):
                told += bit
                yield {"type": "transcript.text.delta", "delta": bit}
                continue
            done = render.to_json(bit, _no_bucket)["results"][0]["formatted"]
            if done["text"].startswith(told) and len(done["text"]) > len(told):
                yield {"type": "transcript.text.delta", "delta": done["text"][len(told) :]}
            more = {
                name: done[name] for name in ("language", "duration", "segments", "words") if verbose and name in done
            }
            yield {"type": "transcript.text.done", "text": done["text"], **more, "usage": done["usage"]}
    finally:
        await stream.aclose()
        given.close()
    yield "[DONE]"


async def _chat_events(service: Service, payload: Json, options: Json) -> AsyncGenerator[Event, None]:
    head: Json = {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": (await service.parse(payload)).model,
    }

    def chunk(delta: Json, reason: str | None = None) -> Json:
        return head | {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}

    told = ""
    stream = service.stream(payload)
    try:
        async for bit in stream:
            if isinstance(bit, str):
                yield chunk({"content": bit} if told else {"role": "assistant", "content": bit})
                told += bit
                continue
            one = _chat_result(bit)
            if one["text"].startswith(told) and len(one["text"]) > len(told):
                yield chunk({"content": one["text"][len(told) :]} | ({} if told else {"role": "assistant"}))
            yield chunk({}, one["finish_reason"])
            if options.get("include_usage"):
                yield head | {"choices": [], "usage": one["usage"]}
    finally:
        await stream.aclose()
    yield "[DONE]"


def _chat_result(response: Answer) -> Json:
    one: Json = render.to_json(response, _no_bucket)["results"][0]
    return one


def _no_bucket(_name: str, _data: bytes, _kind: str) -> str:
    raise AssertionError("a text is not stored in a bucket")
