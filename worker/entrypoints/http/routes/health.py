"""The state of the server: for people, for Kubernetes, for Runpod's load balancer and for Prometheus."""

from __future__ import annotations

import dataclasses
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from worker.entrypoints.http.openapi import METRICS, failures
from worker.entrypoints.http.service import Service

Json = dict[str, Any]

_STATUS = {"ready": "healthy", "loading": "loading", "unhealthy": "unhealthy"}
_NOT_READY: dict[int | str, Json] = {503: {"description": "Not ready", "model": Json}}


def router(service: Service) -> APIRouter:
    """Return the routes on one service."""
    routes = APIRouter(tags=["Health"])

    def state() -> Json:
        return {
            "status": _STATUS[service.state],
            "model_loaded": service.state == "ready",
            "model_name": service.default,
            "device": service.settings.device,
            "devices": dataclasses.asdict(service.engine.devices),
            "models": service.engine.models,
        }

    @routes.get("/health", summary="The state of the server", response_model=Json)
    async def health() -> Response:
        return JSONResponse(state())

    @routes.get("/health/live", summary="Whether the process is alive", response_model=Json, responses=_NOT_READY)
    async def live() -> Response:
        return JSONResponse(state(), 503 if service.engine.lost else 200)

    @routes.get("/health/ready", summary="Whether the model is ready", response_model=Json, responses=_NOT_READY)
    async def ready() -> Response:
        return JSONResponse(state(), 200 if service.state == "ready" else 503)

    @routes.get("/healthz", summary="The state of the server, in short", response_model=Json)
    async def healthz() -> Response:
        status = "ok" if service.state == "ready" else service.state
        return JSONResponse({"status": status, "device": service.settings.device, "model": service.default})

    @routes.get(
        "/ping",
        summary="For Runpod's load balancer",
        response_class=Response,
        responses={204: {"description": "The model is loading"}, 503: {"description": "The device is lost"}},
    )
    async def ping() -> Response:
        return Response(status_code={"ready": 200, "loading": 204, "unhealthy": 503}[service.state])

    @routes.get("/stats", summary="Totals since the start", response_model=Json, responses=failures(401))
    async def stats() -> Response:
        return JSONResponse(service.metrics.stats(service.engine))

    @routes.get(
        "/metrics",
        summary="For Prometheus",
        response_class=Response,
        responses={200: {"content": METRICS}, **failures(401)},
    )
    async def metrics() -> Response:
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return routes
