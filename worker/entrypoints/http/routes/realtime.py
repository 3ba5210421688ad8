"""/v1/realtime: OpenAI's realtime transcription, over WebSocket. See `worker.entrypoints.http.realtime`."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.websockets import WebSocket

from worker.entrypoints.http import responses
from worker.entrypoints.http.realtime.sessions import Sessions
from worker.entrypoints.http.service import Service
from worker.errors import AviaryError


def router(service: Service) -> APIRouter:
    """Return the route on one service."""
    routes, sessions = APIRouter(tags=["OpenAI"]), Sessions(service)

    @routes.websocket("/v1/realtime")
    async def realtime(socket: WebSocket) -> None:
        try:
            await sessions.serve(socket)
        except AviaryError as error:  # before the connection is accepted
            await socket.send_denial_response(responses.response(error))

    return routes
