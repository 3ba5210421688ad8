"""The HTML pages of the server, each under a content security policy that keeps it on this server.

    /ui        ui/            files of this package
    /docs      Swagger UI ─┐  a document made here; scripts and styles at ASSETS come from the package fastapi-offline,
    /redoc     its twin ───┘  which carries both programs, and ui/docs/swagger.js starts Swagger UI

Every address on the pages is relative, so the pages also work behind a proxy that adds a path. No page can be framed,
because the page at /ui holds the API key of its visitor.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import HTMLResponse, RedirectResponse
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

UI = Path(__file__).parent / "ui"
ASSETS = "/ui/docs/assets"  # below /ui/, whose files need no API key

_LOCKED = "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
UI_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; media-src 'self' data: blob: http: https:; "
    f"connect-src 'self' data: blob:; {_LOCKED}"
)
DOCS_POLICY = f"default-src 'self'; img-src 'self' data:; {_LOCKED}"
# Redoc makes its styles while it runs, and searches in a worker that it makes of a blob.
REDOC_POLICY = f"{DOCS_POLICY}; style-src 'self' 'unsafe-inline'; worker-src 'self' blob:"

_DOCS = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Aviary - Swagger UI</title>
<link rel="icon" href="ui/icon.svg">
<link rel="stylesheet" href="ui/docs/assets/swagger-ui.css">
<div id="swagger-ui"></div>
<script src="ui/docs/assets/swagger-ui-bundle.js"></script>
<script src="ui/docs/swagger.js"></script>
"""
_REDOC = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Aviary - Redoc</title>
<link rel="icon" href="ui/icon.svg">
<body style="margin: 0">
<redoc spec-url="openapi.json"></redoc>
<script src="ui/docs/assets/redoc.standalone.js"></script>
"""


def add(app: FastAPI) -> None:
    """Add the pages to an application, which must not have FastAPI's own documentation pages."""
    assets = StaticFiles(directory=str(resources.files("fastapi_offline") / "static"))
    app.mount(ASSETS, _Guarded(assets, DOCS_POLICY), name="documentation assets")
    app.mount("/ui", _Guarded(StaticFiles(directory=UI, html=True), UI_POLICY), name="ui")

    @app.get("/ui", include_in_schema=False)
    async def ui() -> RedirectResponse:
        return RedirectResponse("/ui/")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(_DOCS, headers=_headers(DOCS_POLICY))

    @app.get("/redoc", include_in_schema=False)
    async def redoc() -> HTMLResponse:
        return HTMLResponse(_REDOC, headers=_headers(REDOC_POLICY))


class _Guarded:
    """Files that are served under a content security policy."""

    def __init__(self, files: ASGIApp, policy: str) -> None:
        self._files = files
        self._headers = [(name.encode(), value.encode()) for name, value in _headers(policy).items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *self._headers]
            await send(message)

        await self._files(scope, receive, guarded)


def _headers(policy: str) -> dict[str, str]:
    return {
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }
