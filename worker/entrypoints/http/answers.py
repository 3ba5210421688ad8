"""Answers that may be large: rendered on a thread, piece by piece, so that the event loop and others come to their
turns."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from fastapi.responses import Response


async def of(make: Callable[[], Any]) -> Response:
    """The JSON of what `make` gives. `make` runs on a thread."""
    return Response(await asyncio.to_thread(lambda: _text(make())), media_type="application/json")


def _text(value: Any) -> str:
    """As json.dumps, which holds the interpreter until a value is whole; here that is a row of an embedding at most."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(name)}:{_text(one)}" for name, one in value.items()) + "}"
    if isinstance(value, list) and value and isinstance(value[0], list | dict):
        return "[" + ",".join(map(_text, value)) + "]"
    return json.dumps(value, allow_nan=False)
