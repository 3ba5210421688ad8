"""How large the head of a request may be: its URL and headers, and the trailers of a chunked body. And how many
requests may wait for the responses to earlier requests of their connection.

    bytes ──▶ httptools ─┬─ URL, header, trailer ──▶ counted for the message: HEAD_BYTES, HEADERS
                         ├─ body ──▶ not counted
                         ├─ nothing yet ──▶ counted until the parser calls back: HEAD_BYTES and one read
                         └─ complete head ──▶ a request that waits if another is in progress: PIPELINED

A message beyond the limits gets status 431, unless responses to earlier requests are due, and its connection is closed.
uvicorn itself has no such limits. httptools joins the pieces of a long header before it calls back, so that a head of
60 MB would stop the server for seconds. One read can hold thousands of requests, each of which takes kilobytes.
"""

from __future__ import annotations

from starlette.responses import Response
from typing_extensions import override
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from worker.entrypoints.http import responses
from worker.errors import HeadTooLarge

HEAD_BYTES = 64 * 1024
HEADERS = 128
PIPELINED = 32


class BoundedHeads(HttpToolsProtocol):
    """uvicorn's protocol with a limit on heads and trailers."""

    _head_bytes = 0  # of the message's URL, headers and trailers
    _unparsed_bytes = 0  # that came after the last callback; at least the part that the parser still collects
    _refused = False

    @override
    def data_received(self, data: bytes) -> None:
        self._unparsed_bytes += len(data)
        super().data_received(data)
        if self._unparsed_bytes > HEAD_BYTES and not self._refused:
            self._refuse_head()

    @override
    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes = self._unparsed_bytes = 0

    @override
    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._count(len(url))

    @override
    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._count(len(name) + len(value))

    @override
    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._unparsed_bytes = 0
        self._check(len(self.pipeline) <= PIPELINED)

    def on_chunk_header(self) -> None:
        """Note that a chunk of the body begins. httptools calls this."""
        self._unparsed_bytes = 0

    @override
    def on_body(self, body: bytes) -> None:
        self._unparsed_bytes = 0
        super().on_body(body)

    @override
    def send_400_response(self, msg: str) -> None:
        """Respond to a message that the parser rejects, or that `_check` rejects."""
        if self._refused:
            self._refuse_head()
        else:
            super().send_400_response(msg)

    def _count(self, size: int) -> None:
        """Count bytes of the head. Raises HeadTooLarge."""
        self._head_bytes += size
        self._check(self._head_bytes <= HEAD_BYTES and len(self.headers) <= HEADERS)

    def _check(self, within_limits: bool) -> None:
        """Raise HeadTooLarge, which stops the parser, if the message is beyond the limits."""
        if not within_limits:
            self._refused = True
            raise _error()

    def _refuse_head(self) -> None:
        """Close the connection, with status 431 if the client expects the response to this message next."""
        self._refused = True
        if self._is_next:
            self.transport.write(raw(responses.response(_error())))
        self.transport.close()

    @property
    def _is_next(self) -> bool:
        if self.cycle is None:
            return True
        if self.cycle.scope is self.scope:  # the head is complete, so these are trailers
            return not (self.cycle.response_started or self.pipeline)
        return self.cycle.response_complete


def _error() -> HeadTooLarge:
    return HeadTooLarge(
        f"The head of the request has more than {HEAD_BYTES} bytes or {HEADERS} headers. Send a shorter URL, and fewer "
        "or shorter headers."
    )


def raw(response: Response) -> bytes:
    """Return the response as it is on the wire."""
    headers = b"".join(b"%s: %s\r\n" % header for header in response.raw_headers)
    return STATUS_LINE[response.status_code] + headers + b"\r\n" + bytes(response.body)
