r"""How large, how intricate and how slow a request's body may be, checked while the server receives it.

                        a multipart form               JSON, and every other body
    bytes               MAX_AUDIO_BYTES + FORM_BYTES   MAX_JSON_BYTES
    structure           the form's reader bounds it    structure(MAX_INPUTS) commas, colons and opening brackets
    a pause             CLIENT_TIMEOUT_SEC            CLIENT_TIMEOUT_SEC
    from begin to end   unlimited                      SLOWEST × CLIENT_TIMEOUT_SEC
    rate                MIN_RATE, averaged over each CLIENT_TIMEOUT_SEC of waiting for the client

The rate keeps clients that send a byte now and then from holding connections for as long as they like.

The interpreter stops for all requests while it parses JSON and checks the values, and a value takes up to a hundred
times the memory of its text. A body's values are therefore counted before it is parsed: each follows one of `,:[{`.
Such a character inside a string counts too, so no parser is needed here; base64 has none.

A string that has a character beyond Latin-1 takes two or four bytes for each of its characters in memory. The strings
with characters beyond ASCII, written as they are or as \u escapes, may therefore have WIDE_BYTES in all.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import anyio
from starlette.datastructures import Headers
from starlette.types import Message, Receive

from worker.config import Settings
from worker.errors import BodyTimeout, TooLarge

# The paths that accept a body: the gateway accepts none on the others. {endpoint} is any one segment. A test compares
# the paths with the application's.
ROUTES = (
    "/v1/audio/transcriptions",
    "/v1/audio/translations",
    "/v1/audio/captions",
    "/v1/audio/embeddings",
    "/v1/audio/analyze",
    "/v1/audio/diarizations",
    "/v1/audio/speech/timestamps",
    "/v1/chat/completions",
    "/v1/files",
    "/v1/batches",
    "/run",
    "/runsync",
    "/v2/{endpoint}/run",
    "/v2/{endpoint}/runsync",
    "/transcribe",
    "/transcribe/async",
    "/evaluate",
    "/score",
    "/asr",
    "/detect-language",
)
FORM_BYTES = 1 << 20  # of a form besides its file
SLOWEST = 10
WIDE_BYTES = 4 << 20
MIN_RATE = 1024  # bytes a second
_MARKS = (b",", b":", b"[", b"{")
_MARKS_AN_INPUT = 192  # for all options and a conversation of ten turns; a third is to spare
_MARKS_ELSEWHERE = 1 << 16  # a conversation of many turns


@dataclass(frozen=True)
class BodyLimits:
    """What one body may have. `marks` and `total_sec` are None if they are unlimited."""

    size: int
    marks: int | None
    pause_sec: float
    total_sec: float | None


def limits_of(headers: Headers, settings: Settings) -> BodyLimits:
    """Return the limits of a request's body. Raises TooLarge if the body's declared length is beyond them."""
    pause_sec = settings.client_timeout_sec
    if headers.get("content-type", "").partition(";")[0].strip().lower() == "multipart/form-data":
        limits = BodyLimits(settings.max_audio_bytes + FORM_BYTES, None, pause_sec, None)
    else:
        marks = structure(settings.max_inputs)
        limits = BodyLimits(settings.max_json_bytes, marks, pause_sec, SLOWEST * pause_sec)
    length = headers.get("content-length", "0")
    if length.isdecimal() and int(length) > limits.size:
        raise _too_large(limits.size)
    return limits


def structure(max_inputs: int) -> int:
    """Return how many commas, colons and opening brackets a JSON body may have."""
    return _MARKS_ELSEWHERE + _MARKS_AN_INPUT * max_inputs


def check_structure(data: bytes, max_inputs: int) -> None:
    """Return if a JSON text has as few commas, colons and brackets as a body may have. Raises TooLarge."""
    if sum(map(data.count, _MARKS)) > structure(max_inputs):
        raise _too_intricate(structure(max_inputs))


def check_wide(data: bytes) -> None:
    """Return if a JSON text has few enough bytes in strings that are not ASCII. Raises TooLarge."""
    if len(data) <= WIDE_BYTES or not _is_wide(data):
        return
    wide = begin = at = 0
    while (end := data.find(b'"', at)) >= 0:
        at = end + 1
        if _is_escaped(data, end):
            continue
        text = data[begin:end]  # a string, or what stands between two strings
        begin = at
        if _is_wide(text):
            wide += len(text)
            if wide > WIDE_BYTES:
                raise TooLarge(
                    f"The texts of the body that have characters beyond ASCII take more than {WIDE_BYTES} bytes. Send "
                    "fewer inputs in one request."
                )


def _is_wide(text: bytes) -> bool:
    return not text.isascii() or b"\\u" in text


def _is_escaped(data: bytes, at: int) -> bool:
    """Return whether an odd number of backslashes stands before a position."""
    before = at
    while before and data[before - 1] == 0x5C:
        before -= 1
    return (at - before) % 2 == 1


def limited(receive: Receive, limits: BodyLimits) -> Receive:
    """Return `receive` within the limits. It raises TooLarge or BodyTimeout; once the body is complete, it waits for
    the end of the connection without a limit.
    """
    size, marks, complete = 0, 0, False
    window_sec, window_bytes = 0.0, 0  # spent waiting, and received, since the last look at the rate
    end = time.monotonic() + limits.total_sec if limits.total_sec is not None else None

    async def within() -> Message:
        nonlocal size, marks, complete, window_sec, window_bytes
        if complete:
            return await receive()
        begin = time.monotonic()
        try:
            left = limits.pause_sec if end is None else min(limits.pause_sec, end - begin)
            with anyio.fail_after(max(0.0, left)):
                message = await receive()
        except TimeoutError:
            raise _too_slow(limits) from None
        piece = message.get("body", b"")
        complete = not message.get("more_body", False)
        size += len(piece)
        if size > limits.size:
            raise _too_large(limits.size)
        window_sec, window_bytes = window_sec + time.monotonic() - begin, window_bytes + len(piece)
        if window_sec >= limits.pause_sec and not complete:
            if window_bytes < MIN_RATE * window_sec:
                raise _too_slow(limits)
            window_sec, window_bytes = 0.0, 0
        if limits.marks is not None:
            marks += sum(map(piece.count, _MARKS))
            if marks > limits.marks:
                raise _too_intricate(limits.marks)
        return message

    return within


def _too_large(size: int) -> TooLarge:
    return TooLarge(
        f"The body is larger than the {size} bytes allowed (MAX_JSON_BYTES for JSON, MAX_AUDIO_BYTES for uploads)."
    )


def _too_intricate(marks: int) -> TooLarge:
    return TooLarge(
        f"The body has more than {marks} commas, colons and brackets. Send fewer inputs in one request, or raise "
        "MAX_INPUTS."
    )


def _too_slow(limits: BodyLimits) -> BodyTimeout:
    total = "" if limits.total_sec is None else f" and {limits.total_sec:g} s in all"
    return BodyTimeout(
        f"The body did not arrive in time: {limits.pause_sec:g} s without a byte{total} are allowed "
        f"(CLIENT_TIMEOUT_SEC), and {MIN_RATE} bytes a second are required. Send the request again."
    )
