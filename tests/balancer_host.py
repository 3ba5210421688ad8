"""A stand-in for one of Runpod's load-balancing endpoints on loopback, as Runpod documents it
(https://docs.runpod.io/serverless/load-balancing/overview), and the worker's process behind it.

    with Balancer() as balancer, balancer.worker(SKIP_MODEL_LOAD=1):
        balancer.until(200)
        httpx.post(f"{balancer.url}/v1/audio/transcriptions", headers=balancer.headers, ...)

It polls /ping on PORT_HEALTH all the time. A request requires the bearer token KEY. It is passed on to PORT while the
last poll found 200; else it gets 400. `forwards_key`: whether the worker sees the bearer token, which Runpod does not
document.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from runpod_host import Process, clean_env

KEY = "rpa_client"
POLL_SEC = 0.02
MOST_BYTES = 30_000_000


class Balancer:
    """The endpoint. `seen`: the statuses of /ping, repetitions left out; None while nothing listens."""

    def __init__(self, *, forwards_key: bool = True) -> None:
        self.forwards_key = forwards_key
        self.seen: list[int | None] = [None]
        self.headers = {"Authorization": f"Bearer {KEY}"}
        self.port, self.health_port = _free_port(), _free_port()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="balancer", daemon=True)

    def __enter__(self) -> Balancer:
        self._thread.start()
        self._do(self._begin())
        return self

    def __exit__(self, *exc: object) -> None:
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._own_port}"

    def worker(self, **values) -> Process:
        """The image's command, with the variables that Runpod sets on such an endpoint and these."""
        runpods = {"RUNPOD_ENDPOINT_ID": "ep", "RUNPOD_POD_ID": "w1", "PORT": self.port}
        return Process("handler.py", env=clean_env(**{**runpods, "PORT_HEALTH": self.health_port, **values}))

    def until(self, status: int | None, seconds: float = 30) -> None:
        """Waits until the last poll of /ping found this status."""
        deadline = time.monotonic() + seconds
        while self.seen[-1] != status:
            assert time.monotonic() < deadline, self.seen
            time.sleep(POLL_SEC)

    def _do(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(20)

    async def _begin(self) -> None:
        self._http = aiohttp.ClientSession(auto_decompress=False)
        app = web.Application(client_max_size=MOST_BYTES)
        app.router.add_route("*", "/{path:.*}", self._forward)
        self._runner = web.AppRunner(app, shutdown_timeout=1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self._own_port = self._runner.addresses[0][1]
        self._polling = asyncio.create_task(self._poll())

    async def _end(self) -> None:
        self._polling.cancel()
        await self._runner.cleanup()
        await self._http.close()

    async def _poll(self) -> None:
        while True:
            status = None
            with contextlib.suppress(aiohttp.ClientError, asyncio.TimeoutError):
                async with self._http.get(
                    f"http://127.0.0.1:{self.health_port}/ping", timeout=aiohttp.ClientTimeout(5)
                ) as response:
                    status = response.status
            if status != self.seen[-1]:
                self.seen.append(status)
            await asyncio.sleep(POLL_SEC)

    async def _connect(self, request: web.Request, url: str, headers: CIMultiDict[str]) -> web.StreamResponse:
        """Pass the messages of a WebSocket on, both ways, until either side closes it."""
        client = web.WebSocketResponse()
        for name in [name for name in headers if name.lower().startswith("sec-websocket")]:
            del headers[name]
        async with self._http.ws_connect(url, headers=headers) as worker:
            await client.prepare(request)
            passing = [asyncio.ensure_future(_pass_on(*ends)) for ends in ((client, worker), (worker, client))]
            await asyncio.wait(passing, return_when=asyncio.FIRST_COMPLETED)
            for task in passing:
                task.cancel()
            await client.close()
        return client

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("Authorization") != self.headers["Authorization"]:
            return web.json_response({"error": "unauthorized"}, status=401)
        if self.seen[-1] != 200:
            return web.json_response({"error": "no workers available"}, status=400)
        headers = request.headers.copy()
        headers["Host"] = "ep.api.runpod.ai"
        headers.pop("Transfer-Encoding", None)
        if not self.forwards_key:
            headers.pop("Authorization")
        url = f"http://127.0.0.1:{self.port}{request.path_qs}"
        if request.headers.get("Upgrade", "").lower() == "websocket":
            return await self._connect(request, url, headers)
        async with self._http.request(
            request.method, url, headers=headers, data=await request.read(), allow_redirects=False
        ) as response:
            answer = web.StreamResponse(status=response.status)
            for name in ("Content-Type", "OpenAI-Model", "Retry-After", "X-Should-Retry"):
                if name in response.headers:
                    answer.headers[name] = response.headers[name]
            answer.headers["X-Runpod-Worker-Id"] = "w1"
            await answer.prepare(request)
            async for chunk in response.content.iter_any():
                await answer.write(chunk)
            await answer.write_eof()
            return answer


async def _pass_on(
    source: web.WebSocketResponse | aiohttp.ClientWebSocketResponse,
    target: web.WebSocketResponse | aiohttp.ClientWebSocketResponse,
) -> None:
    async for message in source:
        if message.type is aiohttp.WSMsgType.TEXT:
            await target.send_str(message.data)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
