"""What the routes respond with: OpenAI's error object for every error, and JSON that may be large.

    install(app)              every error becomes {"error": {"message", "type", "param", "code"}}
    status_of(error, path)    the HTTP status of an error on a route; on /v1, that of OpenAI's API
    await large_json(make)    JSON built and encoded on a thread, so that the event loop stays free

Clients see the log id of an unexpected error and nothing else of it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.requests import Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from worker.errors import AviaryError, Cancelled, DeadlineExceeded, InputError, ModelInUse, TooLarge
from worker.faults import report

OPENAI = "/v1/"  # how the paths begin that OpenAI's clients call
_CODES = {404: "not_found", 405: "method_not_allowed"}


async def large_json(make: Callable[[], Any]) -> JSONResponse:
    """Return the JSON of `make()`, which is called and encoded on a thread."""
    return await asyncio.to_thread(lambda: JSONResponse(make()))


def to_json(error: AviaryError) -> dict[str, Any]:
    """Return OpenAI's error object. If the request continues as a job, the object names the job."""
    detail = {"message": error.message, "type": type_of(error), "param": error.param, "code": error.code}
    if isinstance(error, DeadlineExceeded) and error.job_id is not None:
        detail |= {"job_id": error.job_id, "status_url": f"/jobs/{error.job_id}/status"}
    return {"error": detail}


def type_of(error: AviaryError) -> str:
    """Return the `type` that OpenAI's API gives an error of this status."""
    status = status_of(error)
    return "requests" if status == 429 else "server_error" if status >= 500 else "invalid_request_error"


def status_of(error: AviaryError, path: str = "") -> int:
    """Return the HTTP status of an error on a route.

    Cancelled is 503: a client that is still there sees a server that shuts down. On /v1, a file that cannot be
    transcribed is 400, as on OpenAI's API: its clients have no typed exception for 413 and 415, and take 404 for an
    unknown model. Only a file of too many bytes is 413 there too.
    """
    if path.startswith(OPENAI) and isinstance(error, InputError) and not isinstance(error, TooLarge):
        return 400
    return 503 if isinstance(error, Cancelled) else error.status


def response(error: AviaryError, path: str = "") -> JSONResponse:
    """Return the response for an error on a route, with WWW-Authenticate, Retry-After, X-Should-Retry and Connection
    where they apply.

    OpenAI's clients retry every status 409 and 503 unless X-Should-Retry forbids it. A request that was too slow would
    be as slow again, and a model that is loaded stays loaded.
    """
    headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
    if error.status in (408, 431):  # the rest of the request may come late
        headers["Connection"] = "close"
    if isinstance(error, DeadlineExceeded | ModelInUse):
        headers["X-Should-Retry"] = "false"
    if error.retry_after_sec is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after_sec))
    return JSONResponse(to_json(error), status_of(error, path), headers)


def install(app: FastAPI) -> None:
    """Handle every error of the application, expected or not."""
    app.add_exception_handler(AviaryError, _expected)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Exception, _unexpected)


async def _expected(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, AviaryError)
    return response(error, request.url.path)


async def _http(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = _CODES.get(error.status_code, "invalid_request")
    body = {"message": error.detail, "type": "invalid_request_error", "param": None, "code": code}
    return JSONResponse({"error": body}, error.status_code, error.headers)


async def _invalid(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"][1:]) or None
    body = {
        "message": f"{name or 'the request'}: {first['msg']}",
        "type": "invalid_request_error",
        "param": name,
        "code": "invalid_request",
    }
    return JSONResponse({"error": body}, 400)


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    return response(report(error, during=f"{request.method} {request.url.path}"))
