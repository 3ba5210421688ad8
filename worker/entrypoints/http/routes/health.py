"""How the server is: for people, for Kubernetes, for Runpod's load balancer, and in the shapes of the systems it
replaces."""

from __future__ import annotations

import dataclasses
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from worker.entrypoints.http import openapi
from worker.entrypoints.http.service import Service

_WORDS = {"ready": "healthy", "loading": "loading", "unhealthy": "unhealthy"}


def router(service: Service) -> APIRouter:
    """The routes, on one service."""
    routes = APIRouter(tags=["Health"])

    def state() -> dict[str, Any]:
        return {
            "status": _WORDS[service.state],
            "model_loaded": service.state == "ready",
            "model_name": service.default,
            "device": service.settings.device,
            "devices": dataclasses.asdict(service.engine.devices),
            "models": service.engine.models,
        }

    @routes.get("/health", **openapi.health())
    async def health() -> JSONResponse:
        return JSONResponse(state())

    @routes.get("/health/live", **openapi.health(503))
    async def live() -> JSONResponse:
        return JSONResponse(state(), 503 if service.engine.lost else 200)

    @routes.get("/health/ready", **openapi.health(503))
    async def ready() -> JSONResponse:
        return JSONResponse(state(), 200 if service.state == "ready" else 503)

    @routes.get("/healthz", **openapi.health())
    async def healthz() -> JSONResponse:
        return JSONResponse(
            {
                "status": "ok" if service.state == "ready" else service.state,
                "device": service.settings.device,
                "model": service.default,
            }
        )

    @routes.get("/ping", **openapi.ping())
    async def ping() -> Response:
        return Response(status_code={"ready": 200, "loading": 204, "unhealthy": 503}[service.state])

    @routes.get("/stats", **openapi.stats())
    async def stats() -> JSONResponse:
        return JSONResponse(service.meters.stats(service.engine))

    @routes.get("/metrics", **openapi.metrics())
    async def metrics() -> Response:
        return Response(generate_latest(service.meters.registry), media_type=CONTENT_TYPE_LATEST)

    return routes
