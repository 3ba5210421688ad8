"""The TCP connections of a server process: how many there are, and how long each may make the server wait.

    accepted ──▶ idle ── a request begins ──▶ busy ── the response is sent, or an error begins ──▶ idle
                  │                            │
                  ├─ CLIENT_TIMEOUT_SEC        └─ CLIENT_TIMEOUT_SEC in which the client reads nothing
                  │  without a head
                  └─ MAX_CONNECTIONS are open, and no
                     connection is idle for longer
                  ▼                            ▼
               close                         abort

Some of the MAX_CONNECTIONS are kept for clients that have not sent a head yet. Once the others are busy, a further
request gets status 503. Requests for open paths (health checks, the page) always get a response, and leave their
connection idle: clients without a key that read slowly can neither hold the places of others nor stay when these come.

A connection that becomes a WebSocket is busy until it is closed.

uvicorn limits none of this before the first request of a connection, so that a few hundred silent clients would take
every file that the process may open. Clients of a Unix socket are the gateway and its supervisor, and have no limit.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from starlette.types import Message, Receive, Scope, Send
from typing_extensions import override
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from worker.config import Settings
from worker.entrypoints.http import responses
from worker.entrypoints.http.auth import is_open
from worker.entrypoints.http.request_heads import BoundedHeads, raw
from worker.errors import TooManyConnections

log = logging.getLogger(__name__)


class Connections:
    """The connections of one server. For one event loop."""

    def __init__(self, settings: Settings) -> None:
        self.wait_sec = settings.client_timeout_sec
        self._most = settings.max_connections
        self._most_busy = self._most - max(1, self._most // 8)
        self._open: set[Connection] = set()
        self._idle: dict[Connection, None] = {}  # in the order in which they became idle, or began with an open path
        self._reported = False

    def protocol(self, **options: Any) -> Connection:
        """Return the protocol of a new connection: uvicorn calls this as it would call a class."""
        return Connection(self, **options)

    def add(self, connection: Connection) -> None:
        """Count a new connection. If there are too many, close the connection that is idle for longest."""
        self._open.add(connection)
        self._idle[connection] = None
        if len(self._open) > self._most:
            self._report()
            longest = next(iter(self._idle))
            self.remove(longest)
            longest.transport.abort()

    def remove(self, connection: Connection) -> None:
        """Forget a connection that is closed."""
        self._open.discard(connection)
        self._idle.pop(connection, None)
        self._reported = self._reported and len(self._open) > self._most // 2

    def occupy(self, connection: Connection) -> bool:
        """Note that the connection is busy with a request. Return False, and leave it idle, if there is no room."""
        self._idle.pop(connection, None)
        if len(self._open) - len(self._idle) <= self._most_busy:
            return True
        self.release(connection)
        self._report()
        return False

    def release(self, connection: Connection) -> None:
        """Note that the connection is idle from now on."""
        self._idle.pop(connection, None)
        if connection in self._open:
            self._idle[connection] = None

    def _report(self) -> None:
        if not self._reported:
            self._reported = True
            log.warning(
                "%d connections are open (MAX_CONNECTIONS): those idle for longest are closed, and requests "
                "beyond %d at a time get status 503",
                self._most,
                self._most_busy,
            )


class Socket(WebSocketsSansIOProtocol):
    """uvicorn's protocol of a WebSocket. `on_lost` is called when the connection is closed."""

    on_lost: Callable[[], None] | None = None

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.on_lost is not None:
            self.on_lost()

    @override
    def keepalive_timeout(self) -> None:
        """Close the connection, because no pong came. While the server reads nothing, the pong may wait to be read."""
        if self.read_paused:
            self.pong_timer = None
            self.schedule_ping()
        else:
            super().keepalive_timeout()


class Connection(BoundedHeads):
    """uvicorn's protocol, within the limits of `Connections` unless the client is on a Unix socket."""

    def __init__(self, connections: Connections, **options: Any) -> None:
        super().__init__(**options)
        self._limits, self._limited = connections, False
        self._timer: asyncio.TimerHandle | None = None
        self._is_socket = False
        self._unsent = 0  # bytes of responses that the client had not read at the last look

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._limited = self.client is not None
        if self._limited:
            self.app = self._run
            self._limits.add(self)
            self._wait()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._forget()

    @override
    def handle_websocket_upgrade(self) -> None:
        if not self._is_idle:  # the response to an earlier request would go into the WebSocket
            self.transport.close()
            return
        if self._limited and not self._limits.occupy(self):
            self.transport.write(raw(responses.response(_too_many())))
            self.transport.close()
            return
        self._is_socket = True
        super().handle_websocket_upgrade()
        socket = self.transport.get_protocol()
        if isinstance(socket, Socket):
            socket.on_lost = self._forget

    def _forget(self) -> None:
        self._limits.remove(self)
        if self._timer is not None:
            self._timer.cancel()

    @override
    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._limited and self._is_idle:
            self._limits.release(self)
            self._wait()

    @property
    def _is_idle(self) -> bool:
        return not self._is_socket and (self.cycle is None or self.cycle.response_complete)

    def _wait(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(self._limits.wait_sec, self._look)

    def _look(self) -> None:
        """Close the connection if the client kept the server waiting."""
        unsent = self.transport.get_write_buffer_size()
        if unsent and unsent == self._unsent:
            self.transport.abort()
        elif self._is_idle and not unsent:
            self.transport.close()
        else:
            self._unsent = unsent
            self._wait()

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application, if there is room.

        The connection is idle once an error response begins, such as that to a wrong key, because only the client can
        delay the rest.
        """

        async def release_and_send(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] >= 400:
                self._limits.release(self)
            await send(message)

        if is_open(scope["path"]):
            self._limits.release(self)
            await self.config.loaded_app(scope, receive, send)
        elif self._limits.occupy(self):
            await self.config.loaded_app(scope, receive, release_and_send)
        else:
            await responses.response(_too_many())(scope, receive, send)


def _too_many() -> TooManyConnections:
    return TooManyConnections(
        "The server has as many connections as MAX_CONNECTIONS allows. Try again later.", retry_after_sec=1
    )
