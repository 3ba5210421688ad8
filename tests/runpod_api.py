"""A scripted HTTP server, and stand-ins for Runpod's API in front of the true handler.

with endpoint(Api(worker)) as server:        jobs: /run, /status, /cancel
    Client(server.url, "key")
with endpoint(BatchApi(worker)) as server:   Batch Jobs as well, as https://docs.runpod.io/serverless/batch-jobs says
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import struct
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Scripted(BaseHTTPRequestHandler):
    """Answers each request with what the server's `answer(method, path, headers, body)` gives: a status, headers and a
    value; None breaks the connection off."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        size = int(self.headers.get("content-length") or 0)
        body = b""
        while size > 0 and (block := self.rfile.read(min(size, 1 << 16))):
            size -= len(block)
            body = (body + block)[: 1 << 20]
        self.server.seen.append((self.command, self.path))
        told = self.server.answer(self.command, self.path, self.headers, body)
        if told is None:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
            return
        status, headers, value = told
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, text)
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(data)

    do_GET = do_POST

    def log_message(self, *_):
        pass

    def finish(self):
        with contextlib.suppress(OSError, ValueError):
            super().finish()


@contextlib.contextmanager
def scripted(answer):
    with ThreadingHTTPServer(("127.0.0.1", 0), Scripted) as server:
        server.answer, server.seen, server.daemon_threads = answer, [], True
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        server.url = f"http://127.0.0.1:{server.server_port}"
        yield server
        server.shutdown()
        thread.join()


class Api:
    """Runpod's API in front of the true handler. `states`: what a job is said to be, in turn, before its end."""

    def __init__(self, door, states=("IN_QUEUE", "IN_PROGRESS")):
        self.door, self.states = door, states
        self.jobs, self.cancelled, self.keys, self.lock = {}, [], [], threading.Lock()

    def __call__(self, method, path, headers, body):
        self.keys.append(headers.get("Authorization"))
        _, _, _, call, *name = path.split("/")
        if (method, call) == ("POST", "run"):
            with self.lock:
                name = f"job-{len(self.jobs)}-u1"
                self.jobs[name] = [iter(self.states), json.loads(body)]
            return 200, {}, {"id": name, "status": "IN_QUEUE"}
        job = self.jobs[name[0]]
        if (method, call) == ("POST", "cancel"):
            self.cancelled.append(name[0])
            return 200, {}, {"id": name[0], "status": "CANCELLED"}
        assert (method, call) == ("GET", "status")
        state = next(job[0], None)
        if state is not None:
            return 200, {}, {"id": name[0], "status": state}
        output = asyncio.run(self.door.handle({"id": name[0], **job[1]}))
        error = output.pop("error", None)  # as the SDK does
        return (
            200,
            {},
            {"id": name[0], "status": "FAILED" if error else "COMPLETED", "output": output}
            | ({"error": error} if error else {}),
        )


class BatchApi(Api):
    """Batch Jobs too. Each look at a batch runs `speed` of its requests; `fails(payload)` fails one of them as Runpod
    does, `lost` has the calls whose first response is lost, and `outputs` are replaced by what it returns."""

    def __init__(self, door, *, speed=1000, fails=lambda payload: False, lost=(), outputs=lambda output: output):
        super().__init__(door, states=())
        self.speed, self.fails, self.lost, self.outputs = speed, fails, list(lost), outputs
        self.batches: dict[str, dict] = {}
        self.sent: list[str] = []  # the sources of all requests in batches

    def __call__(self, method, path, headers, body):
        url = urllib.parse.urlsplit(path)
        parts = url.path.split("/")
        if parts[3] != "batch":
            return super().__call__(method, path, headers, body)
        self.keys.append(headers.get("Authorization"))
        with self.lock:
            return self._batch(method, parts[4:], dict(urllib.parse.parse_qsl(url.query)), body)

    def _batch(self, method, parts, query, body):
        if not parts:
            name = f"batch_{len(self.batches)}"
            self.batches[name] = {"status": "DRAFT", "requests": [{"job": one} for one in json.loads(body)]}
            return 200, {}, {"id": name, "status": "DRAFT"}
        batch, call = self.batches.get(parts[0]), (method, *parts[1:])
        if batch is None:
            return 404, {}, {"error": "batch not found"}
        if call == ("POST", "requests"):
            if batch["status"] != "DRAFT" or len(body) > 10 * 1024 * 1024:
                return 400, {}, {"error": "not accepted"}
            batch["requests"] += [{"job": one} for one in json.loads(body)["requests"]]
            self.sent += [one["input"]["inputs"][0]["id"] for one in json.loads(body)["requests"]]
            assert len(batch["requests"]) <= 5000
        elif call == ("POST", "finalize"):
            if batch["status"] != "DRAFT":
                return 409, {}, {"error": "not a draft"}
            batch["status"] = "FINALIZED"
        elif call == ("POST", "cancel"):
            batch["status"] = "CANCELLED"
            self.cancelled.append(parts[0])
        elif call == ("GET",):
            self._run(batch)
            status = [one.get("status") for one in batch["requests"]]
            counts = {"requestCompleted": status.count("COMPLETED"), "requestFailed": status.count("FAILED")}
            return 200, {}, {"id": parts[0], "status": batch["status"], "requestTotal": len(status), **counts}
        else:
            assert call == ("GET", "requests")
            ordered = sorted(batch["requests"], key=lambda one: one.get("status") != "FAILED")
            offset, limit = int(query["offset"]), int(query["limit"])
            page = [
                {name: one[name] for name in ("status", "output", "error") if name in one}
                for one in ordered[offset : offset + limit]
            ]
            return 200, {}, {"requests": page, "hasMore": offset + limit < len(ordered), "total": len(ordered)}
        if parts[-1] in self.lost:
            self.lost.remove(parts[-1])
            return None
        return 200, {}, b""  # the documentation shows no body

    def _run(self, batch):
        waiting = [one for one in batch["requests"] if "status" not in one]
        if batch["status"] != "FINALIZED":
            return
        for one in random.Random(0).sample(waiting, min(self.speed, len(waiting))):
            if self.fails(one["job"]["input"]):
                one.update(status="FAILED", error="the worker was lost")
                continue
            output = asyncio.run(self.door.handle({"id": "b", **one["job"]}))
            if error := output.pop("error", None):  # as the SDK does
                one.update(status="FAILED", error=error)
            else:
                one.update(status="COMPLETED", output=self.outputs(output))
        batch["requests"].sort(key=id)  # in no order


@contextlib.contextmanager
def endpoint(answer):
    with scripted(answer) as server:
        server.url += "/v2/ep1"
        yield server
