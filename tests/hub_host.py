"""A small Hugging Face Hub on loopback: weight files, downloads in ranges, and connections that break."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".nemo", ".safetensors")  # the endings of the files that the hub does not keep in git
BLOCK = 1 << 16


class Hub:
    """`sent` has the ranges of weight files that were asked for: (name of the file, first byte). `break_at`: the byte
    of a weight file after which the next connection breaks. `gate`: what must be set before a weight file goes on
    after its first block; `began` is set once that block is sent."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.sent: list[tuple[str, int]] = []
        self.break_at: list[int] = []
        self.gate, self.began = threading.Event(), threading.Event()
        self.gate.set()
        self.lies = False  # whether what it sends has another hash
        self.status: int | None = None
        self.redirect: str | None = None  # the server that weight files are read from
        self.tokens: set[str | None] = set()  # the Authorization headers of all requests
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                hub._answer(self)

            def do_GET(self) -> None:
                hub._answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def add(self, name: str, **files: bytes) -> None:
        """`files`: contents by name, in which __ is a dot."""
        self.repositories[name] = {file.replace("__", "."): content for file, content in files.items()}

    def _answer(self, http: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(http.path).path)
        self.tokens.add(http.headers.get("Authorization"))
        name = next((name for name in self.repositories if f"/{name}/" in f"{path}/"), None)
        if self.status or name is None:
            status = self.status or 404
            _json(http, {"error": "no"}, status, {"X-Error-Code": "RepoNotFound"} if status == 404 else {})
        elif path.startswith(f"/api/models/{name}/tree/"):
            _json(http, [_tree(file, content) for file, content in self.repositories[name].items()])
        elif path.startswith("/api/models/"):
            siblings = [_sibling(file, content) for file, content in self.repositories[name].items()]
            _json(http, {"id": name, "sha": COMMIT, "siblings": siblings, "private": False})
        else:
            self._file(http, path.rpartition("/")[2], self.repositories[name])

    def _file(self, http: BaseHTTPRequestHandler, file: str, files: dict[str, bytes]) -> None:
        if file not in files:
            _json(http, {"error": "no"}, 404, {"X-Error-Code": "EntryNotFound"})
            return
        content = files[file]
        if self.redirect and file.endswith(LARGE) and http.command == "GET":
            _json(http, {}, 302, {"Location": self.redirect + http.path})
            return
        begin = int((re.match(r"bytes=(\d+)-", http.headers.get("Range", "")) or [0, "0"])[1])
        http.send_response(206 if begin else 200)
        http.send_header("X-Repo-Commit", COMMIT)
        http.send_header("ETag", f'"{_etag(file, content)}"')
        http.send_header("X-Linked-Etag", f'"{_etag(file, content)}"')
        http.send_header("X-Linked-Size", str(len(content)))
        http.send_header("Accept-Ranges", "bytes")
        http.send_header("Content-Length", str(len(content) - begin))
        http.end_headers()
        if http.command == "HEAD":
            return
        if file.endswith(LARGE):
            self.sent.append((file, begin))
            self._weights(http, content, begin)
        else:
            http.wfile.write(content)

    def _weights(self, http: BaseHTTPRequestHandler, content: bytes, begin: int) -> None:
        end = self.break_at.pop(0) if self.break_at else len(content)
        if self.lies:
            content = bytes(len(content))
        with contextlib.suppress(OSError):
            for at in range(begin, end, BLOCK):
                http.wfile.write(content[at : min(at + BLOCK, end)])
                http.wfile.flush()
                self.began.set()
                self.gate.wait(30)
        if end < len(content):
            http.close_connection = True


def _json(
    http: BaseHTTPRequestHandler, content: object, status: int = 200, headers: dict[str, str] | None = None
) -> None:
    body = json.dumps(content).encode()
    http.send_response(status)
    for name, value in (headers or {}).items():
        http.send_header(name, value)
    http.send_header("Content-Type", "application/json")
    http.send_header("Content-Length", str(len(body)))
    http.end_headers()
    if http.command != "HEAD":
        http.wfile.write(body)


def _etag(file: str, content: bytes) -> str:
    if file.endswith(LARGE):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _lfs(file: str, content: bytes, key: str) -> dict[str, object]:
    if not file.endswith(LARGE):
        return {}
    return {"lfs": {key: _etag(file, content), "size": len(content), "pointerSize": 130}}


def _sibling(file: str, content: bytes) -> dict[str, object]:
    return {"rfilename": file, "size": len(content), "blobId": "b" * 40} | _lfs(file, content, "sha256")


def _tree(file: str, content: bytes) -> dict[str, object]:
    return {"type": "file", "path": file, "size": len(content), "oid": _etag(file, content)[:40]} | _lfs(
        file, content, "oid"
    )


@contextlib.contextmanager
def hub_on_loopback(patch: pytest.MonkeyPatch | None = None) -> Iterator[Hub]:
    """The hub during the block; huggingface_hub of this process uses it if `patch` is given."""
    hub = Hub()
    if patch is not None:
        from huggingface_hub import constants

        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "ENDPOINT", hub.url)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    thread = threading.Thread(target=hub.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.gate.set()
        hub.server.shutdown()
        thread.join()
        hub.server.server_close()
