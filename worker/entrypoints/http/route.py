"""The class of our routes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.requests import Request
from fastapi.responses import Response
from fastapi.routing import APIRoute


class Route(APIRoute):
    """A function that takes the request alone reads it itself and gives a Response: nothing has to be worked out for
    it, which takes a tenth of a short request's time. Others are FastAPI's as usual."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        if list(inspect.signature(self.endpoint).parameters) == ["http"]:
            handler: Callable[[Request], Coroutine[Any, Any, Response]] = self.endpoint
            return handler
        return super().get_route_handler()
