"""The models of a server: list them, and, as an operator, download and remove them.

    GET     /v1/models          OpenAI's list, with what each model can do and where its weights are
    GET     /v1/models/{name}   one of them; `download` has the progress while a process downloads it
    POST    /v1/models/{name}   201 once it is downloaded, 200 if it was there, 202 if the download takes longer;
                                with ?stream=true, the progress as server-sent events
    DELETE  /v1/models/{name}   OpenAI's confirmation; 409 if the model is loaded or being downloaded

A name may be percent-encoded or not: both `nvidia/parakeet-ctc-0.6b` and `nvidia%2Fparakeet-ctc-0.6b` work.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from concurrent.futures import Future
from typing import Any

from fastapi import APIRouter
from fastapi.requests import Request
from fastapi.responses import JSONResponse, Response

from worker import catalog
from worker.backends.common import hub_cache
from worker.entrypoints.http import events, model_list
from worker.entrypoints.http.callers import Caller, SentBy
from worker.entrypoints.http.model_downloads import Downloads
from worker.entrypoints.http.openapi import EVENTS, also, failures
from worker.entrypoints.http.response_models import ModelDeleted, ModelInfo, ModelPage
from worker.entrypoints.http.service import Service
from worker.errors import ModelInUse, NotPermitted, Unsupported
from worker.protocol.model_names import find_model

PROGRESS_SEC = 0.5  # between two events of a download

_Event = dict[str, Any] | str


def router(service: Service) -> APIRouter:
    """Return the routes on one service."""
    routes = APIRouter(tags=["OpenAI"])
    downloads = Downloads(service.settings)

    @routes.get(
        "/v1/models", summary="The models, and what each can do", response_model=ModelPage, responses=failures(401)
    )
    async def models() -> Response:
        rows = await asyncio.to_thread(model_list.listed, service)
        return JSONResponse({"object": "list", "data": rows, "scoring_models": service.scoring_models})

    @routes.get("/v1/models/{name:path}", summary="One model", response_model=ModelInfo, responses=failures(401, 404))
    async def model(name: str) -> Response:
        return JSONResponse(await asyncio.to_thread(model_list.entry, service, name))

    @routes.post(
        "/v1/models/{name:path}",
        summary="Download a model",
        response_model=ModelInfo,
        responses={
            **also(EVENTS, 400, 401, 404, 429, 503),
            201: {"description": "The model was downloaded", "model": ModelInfo},
            202: {"description": "The download continues", "model": ModelInfo},
        },
    )
    async def pull(http: Request, name: str, caller: SentBy, stream: bool = False) -> Response:
        row = await asyncio.to_thread(_row, service, caller, name)
        future = downloads.start(row)
        if stream:
            return await events.respond(http, _events(service, row, future))
        waiting = asyncio.wrap_future(future)
        done, _ = await asyncio.wait({waiting}, timeout=service.settings.request_timeout_sec)
        status = 202 if not done else 201 if waiting.result() else 200
        return JSONResponse(await asyncio.to_thread(model_list.entry, service, name), status)

    @routes.delete(
        "/v1/models/{name:path}",
        summary="Remove a model from the disk",
        response_model=ModelDeleted,
        responses=failures(400, 401, 404, 409, 503),
    )
    async def remove(name: str, caller: SentBy) -> Response:
        def delete() -> str:
            row = _row(service, caller, name)
            _refuse_loaded(service, row)
            hub_cache.remove(row, service.settings)
            return row.id

        return JSONResponse({"id": await asyncio.to_thread(delete), "object": "model", "deleted": True})

    return routes


def _row(service: Service, caller: Caller, name: str) -> catalog.Model:
    """Return the row of a model whose files the caller may change. Raises NotPermitted, ModelNotFound, Unsupported."""
    if not caller.is_operator:
        raise NotPermitted("Only an operator may download and remove models. Send a key of ADMIN_API_KEY.")
    row = find_model(name, service.settings)
    if service.settings.skip_model_load:
        raise Unsupported("A dry run has no models on disk. Start the server without SKIP_MODEL_LOAD.", param="model")
    return row


def _refuse_loaded(service: Service, row: catalog.Model) -> None:
    """Raise ModelInUse if this process has loaded a model that reads the repository of the row.

    The locks of `hub_cache` find this out too, and other processes, if the file system has locks.
    """
    for name, state in service.engine.models.items():
        if state != "failed" and row.checkpoint in hub_cache.repositories(catalog.find(name, service.settings.places)):
            raise ModelInUse(f"{row.checkpoint} is in use: {name} is {state}. Unload it first.", param="model")


async def _events(service: Service, row: catalog.Model, future: Future[bool]) -> AsyncGenerator[_Event, None]:
    """Yield the progress of a download, and at last whether files were downloaded. Raises the error of the download."""
    waiting, last = asyncio.wrap_future(future), None
    while not (await asyncio.wait({waiting}, timeout=PROGRESS_SEC))[0]:
        found = await asyncio.to_thread(hub_cache.progress, row, service.settings)
        if found is not None and found != last:
            yield {"type": "model.download.progress", "model": row.id} | model_list.download_json(found)
            last = found
    yield {"type": "model.download.done", "model": row.id, "downloaded": waiting.result()}
    yield "[DONE]"
