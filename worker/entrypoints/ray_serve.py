"""The HTTP routes on several machines: a Ray Serve application with one engine on each GPU. Ray is an optional package.

    pip install "aviary-worker[ray]"
    serve run worker.entrypoints.ray_serve:app max_replicas=8          or deploy/ray-serve.yaml

A replica receives requests once its models have loaded. Ray replaces a replica whose device is lost, and adds and
removes replicas with the number of running requests. Each replica checks keys and counts rates, jobs and metrics on its
own.
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
    """One engine and its HTTP routes. `values` are the settings as JSON."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._settings = Settings(**values)
        logs.configure(self._settings)
        self._settings.make_data_dir()
        self._app: ASGIApp = create_app(self._settings)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Return the application; Ray Serve calls this method in the replica."""
        return self._app

    async def check_health(self) -> None:
        """Wait until the models have loaded; Ray calls this method before it sends requests, and regularly after.

        Raises: RuntimeError if the device is lost, upon which Ray replaces the replica.
        """
        while (status := await _status(self._app, "/ping")) == 204:
            await asyncio.sleep(0.2)
        if status != 200 and await _status(self._app, "/health/live") != 200:
            raise RuntimeError("the device is lost")


def app(options: Mapping[str, Any]) -> Any:
    """Return the Ray Serve application, with the settings of this process.

    `options` are `min_replicas` (default 1), `max_replicas` (8), and for each replica `gpus` (1) and `cpus` (1). With
    `gpus` 0, replicas use the CPU. Ray binds its own address, which HOST must repeat.
    Raises ConfigError if HOST can be reached from outside and API_KEY is not set.
    """
    settings = Settings()
    check_address(settings)
    from ray import serve

    values = settings.model_dump(mode="json")
    most = 2 * settings.batch_max_items  # a batch on the device, and the next batch being decoded
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


async def _status(application: ASGIApp, path: str) -> int:
    """Return the status of the application's response to GET `path`."""
    status = 0

    async def send(message: Message) -> None:
        nonlocal status
        status = message.get("status", status)

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    await application(
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
    return status
