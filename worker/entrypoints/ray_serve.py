"""The same routes on several machines: a Ray Serve application with an engine on each GPU. Ray is not among the
requirements.

    pip install "aviary-worker[ray]"
    serve run worker.entrypoints.ray_serve:app max_replicas=8          or deploy/ray-serve.yaml

A replica takes requests once its models have loaded, one whose device is lost is replaced, and replicas come and go
with the number of requests under way. Each checks keys and counts rates, jobs and metrics for itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from starlette.types import ASGIApp, Message

from worker import logs
from worker.config import Settings
from worker.entrypoints.http.app import create_app
from worker.entrypoints.http.auth import check_address


class Replica:
    """One engine and its routes. `values`: the settings as JSON."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._settings = Settings(**values)
        logs.configure(self._settings)
        self._settings.data_dir.mkdir(parents=True, exist_ok=True)
        self._app: ASGIApp = create_app(self._settings)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return self._app

    async def check_health(self) -> None:
        """Asked by Ray, at first before it sends requests: waits until the models have loaded. Raises RuntimeError
        when the device is lost."""
        while (status := await _status(self._app, "/ping")) == 204:
            await asyncio.sleep(0.2)
        if status != 200 and await _status(self._app, "/health/live") != 200:
            raise RuntimeError("the device is lost")


def app(options: Mapping[str, Any]) -> Any:
    """Return the application, with this process's settings. `options`: `min_replicas` (1), `max_replicas` (8), `gpus` a
    replica has (1; 0: none), `cpus` (1).

    Ray binds its own address, and HOST repeats that address. Raises ConfigError if HOST can be reached from outside and
    API_KEY is not set.
    """
    settings = Settings()
    check_address(settings)
    from ray import serve

    values = settings.model_dump(mode="json")
    most = 2 * settings.batch_max_items  # enough for a batch on the device and the next one decoded
    deployment = serve.deployment(
        serve.ingress()(Replica),
        name="aviary",
        max_ongoing_requests=most,
        graceful_shutdown_timeout_s=60,
        ray_actor_options={"num_gpus": float(options.get("gpus", 1)), "num_cpus": float(options.get("cpus", 1))},
        autoscaling_config={
            "min_replicas": int(options.get("min_replicas", 1)),
            "target_ongoing_requests": most / 2,
            "max_replicas": int(options.get("max_replicas", 8)),
        },
    )
    return deployment.bind(values)


async def _status(asked: ASGIApp, path: str) -> int:
    """The status of the application's answer to GET path."""
    got = 0

    async def send(message: Message) -> None:
        nonlocal got
        got = message.get("status", got)

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    await asked(
        {
            "type": "http",
            "method": "GET",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [],
            "http_version": "1.1",
            "scheme": "http",
            "root_path": "",
            "client": None,
            "server": None,
        },
        receive,
        send,
    )
    return got
