"""The HTTP application: `create_app(settings)` puts the routes on one engine.

    /v1/...                      routes/openai.py   OpenAI's routes, captions, embeddings, analyze
    /v1/models                   routes/models.py   the models: list, download and remove them
    /transcribe, /evaluate ...   routes/legacy.py   the routes of the servers that Aviary replaces
    /asr, /detect-language       routes/asr_webservice.py   the routes of whisper-asr-webservice
    /v1/files, /v1/batches       routes/batches.py  OpenAI's files and batches
    /transcribe/async, /jobs...  routes/jobs.py     jobs that outlive a restart
    /v1/realtime                 routes/realtime.py realtime transcription, over WebSocket
    /run, /runsync, /status...   routes/runpod.py   the same, as Runpod's API, also below /v2/{endpoint}/
    /health..., /ping, /metrics  routes/health.py   health and metrics
    /ui, /docs, /redoc           html_pages.py     the page, and the documentation of the routes

Requests pass, from outside in: CORS, metrics, origin, authentication (key, rate, size), routes. The application
responds at once while models load in the background; it closes the engine that it made.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from starlette.middleware.cors import CORSMiddleware

from worker import __version__
from worker.config import Settings
from worker.engine.engine import Engine
from worker.entrypoints.http import html_pages, responses
from worker.entrypoints.http.auth import AuthMiddleware
from worker.entrypoints.http.job_queue import JobQueue
from worker.entrypoints.http.metrics import Metrics, MetricsMiddleware
from worker.entrypoints.http.origins import OriginMiddleware
from worker.entrypoints.http.routes import (
    asr_webservice,
    batches,
    health,
    jobs,
    legacy,
    models,
    openai,
    realtime,
    runpod,
)
from worker.entrypoints.http.service import Service
from worker.entrypoints.tasks import Tasks


def create_app(settings: Settings, engine: Engine | None = None, tasks: Tasks | None = None) -> FastAPI:
    """Return the application on `engine`, or on an engine of its own that it makes from the settings and closes.

    tasks: those of the engine, if the caller runs requests too. Both then share the models and references of scoring.
    """
    metrics = Metrics()
    ours = engine is None
    running = engine or Engine(settings, on_batch=metrics.batch, on_response=metrics.response)
    metrics.watch(running)
    service = Service(settings, running, metrics, tasks)
    service.jobs = queue = JobQueue(settings, service.tasks, jobs.webhook_body)

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        service.load()
        queue.start()
        yield
        await asyncio.to_thread(queue.close)
        await asyncio.to_thread(service.close)
        if ours:
            await asyncio.to_thread(running.close)

    app = FastAPI(
        title="Aviary",
        summary="One worker for NVIDIA's speech and audio models",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    responses.install(app)
    app.add_middleware(AuthMiddleware, settings=settings)
    app.add_middleware(OriginMiddleware, settings=settings)
    app.add_middleware(MetricsMiddleware, metrics=metrics)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],  # OpenAI's clients send x-stainless-* headers, which change with their versions
            expose_headers=["OpenAI-Model", "Aviary-Warning", "Retry-After", "X-Should-Retry"],
        )
    for routes in (
        openai.router(service),
        models.router(service),
        realtime.router(service),
        batches.router(service, queue),
        runpod.router(service, queue),
        jobs.router(service, queue),
        legacy.router(service),
        asr_webservice.router(service),
        health.router(service),
    ):
        app.include_router(routes)

    @app.get("/", tags=["Health"])
    async def root() -> JSONResponse:
        """Return the server's name, its default model, and the paths of its documentation, page and health check."""
        return JSONResponse(
            {"name": "Aviary", "model": service.default, "docs": "/docs", "page": "/ui", "health": "/health"}
        )

    html_pages.add(app)
    return app
