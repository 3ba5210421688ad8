"""The HTTP server as a worker of one of Runpod's load-balancing endpoints.

    client ── Authorization: Bearer RUNPOD_KEY ──▶ Runpod's load balancer ─┬─ requests ─────▶ PORT
                                                                           └─ GET /ping ────▶ PORT_HEALTH

The load balancer rejects clients without a Runpod key, so a worker of an endpoint requires no key of its own unless
API_KEY is set. It sends requests to workers whose /ping returns 200; 204 means that the model is loading, and any other
status that the worker cannot serve.

Source of the limits and of the defaults: https://docs.runpod.io/serverless/load-balancing/overview
"""

from __future__ import annotations

from worker.config import Settings

PORT = 80  # of a worker whose endpoint sets no PORT
TIMEOUT_SEC = 300.0  # the load balancer gives up on a request after 330 s


def serve(settings: Settings) -> int:
    """Serve until a signal ends the server, and return the exit code. Raises ConfigError for unusable settings."""
    from worker.entrypoints.cli.serve import serve as serve_http

    return serve_http(with_defaults(settings))


def with_defaults(settings: Settings) -> Settings:
    """Return the settings with the platform's defaults for those that are not set.

    A worker outside an endpoint, which no load balancer guards, keeps the rule that an open address requires API_KEY.
    """
    defaults = {"host": "0.0.0.0", "port": PORT, "request_timeout_sec": TIMEOUT_SEC}  # noqa: S104  the load balancer's way in
    if settings.runpod_endpoint_id is not None:
        defaults["api_key"] = "off"
    return settings.model_copy(
        update={name: value for name, value in defaults.items() if name not in settings.model_fields_set}
    )
