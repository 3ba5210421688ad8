"""Streams of server-sent events, in OpenAI's words.

    response = await respond(http, transcription(service, work, payload))

An error before the first event is a response like any other. After that the status is sent, so an error becomes the
last event. A client that hangs up ends the work. Comments keep the connection alive while there is nothing to send, and
say how many seconds of a long clip are done.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from typing import Any

from fastapi.requests import Request
from fastapi.responses import Response, StreamingResponse

from worker.entrypoints.http import responses
from worker.entrypoints.http.service import Service, hung_up
from worker.errors import Cancelled
from worker.faults import report
from worker.protocol.work import Work
from worker.types import Progress

Json = dict[str, Any]
Event = Json | str | Progress  # progress becomes a comment, which OpenAI's clients ignore

KEEP_ALIVE_SEC = 15.0


async def respond(
    http: Request, events: AsyncGenerator[Event, None], headers: Mapping[str, str] | None = None
) -> Response:
    """Return the events as a response, once the first event is there or KEEP_ALIVE_SEC have passed."""
    first, gone = asyncio.ensure_future(anext(events)), asyncio.ensure_future(hung_up(http))
    try:
        await asyncio.wait({first, gone}, timeout=KEEP_ALIVE_SEC, return_when=asyncio.FIRST_COMPLETED)
        if gone.done() and not first.done():
            raise Cancelled("the client hung up")
        if first.done() and (error := first.exception()) is not None:
            raise error
    except BaseException:
        first.cancel()
        await asyncio.wait({first})
        await events.aclose()
        raise
    finally:
        gone.cancel()
    return StreamingResponse(
        _encoded(first, events),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", **(headers or {})},
    )


async def transcription(service: Service, work: Work, payload: Json) -> AsyncGenerator[Event, None]:
    """Yield the events of a transcription: deltas, then the whole text, with times for `verbose_json`.

    work: what `payload` asks for, prepared with the format `verbose_json`, or `diarized_json` if the payload has it.
    The segments of `diarized_json` are events of their own, after the deltas: the speakers are known at the end.
    With `include=logprobs`, there is one delta for each token. The deltas then follow the end of the transcription,
    because the log probabilities are known only then.
    """
    verbose, scored = payload.get("format") == "verbose_json", bool(payload.get("include"))
    text = ""
    stream = service.stream(work)
    try:
        async for piece in stream:
            if isinstance(piece, str):
                if not scored:
                    text += piece
                    yield {"type": "transcript.text.delta", "delta": piece}
                continue
            if isinstance(piece, Progress):
                yield piece
                continue
            result = piece["results"][0]
            done = result["formatted"]
            if scored:
                for event in _scored_deltas(done["text"], result["logprobs"]):
                    yield event
            elif rest := _rest(done["text"], text):
                yield {"type": "transcript.text.delta", "delta": rest}
            if payload.get("format") == "diarized_json":
                for segment in done["segments"]:
                    yield segment
            known = ("confidence", "logprobs", "finish_reason", "warning")
            yield {
                "type": "transcript.text.done",
                "text": done["text"],
                "languages": [{"code": result["language"]}] if result["language"] else [],
                **{name: done[name] for name in ("language", "duration", "segments", "words") if verbose},
                **{name: result[name] for name in known if name in result},
                "usage": done["usage"],
            }
    finally:
        await stream.aclose()
    yield "[DONE]"


def _scored_deltas(text: str, logprobs: list[Json]) -> Iterator[Json]:
    """Yield the deltas of a text with the log probabilities of its tokens: one delta if the tokens do not spell it."""
    if "".join(token["token"] for token in logprobs) == text:
        for token in logprobs:
            yield {"type": "transcript.text.delta", "delta": token["token"], "logprobs": [token]}
    elif text:
        yield {"type": "transcript.text.delta", "delta": text, "logprobs": logprobs}


async def chat(service: Service, http: Request, payload: Json, *, include_usage: bool) -> AsyncGenerator[Event, None]:
    """Yield the events of a chat completion."""
    work = await service.prepare(http, payload)
    head: Json = {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": work.model,
    }

    def chunk(delta: Json, reason: str | None = None) -> Json:
        return head | {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}

    text = ""
    stream = service.stream(work)
    try:
        async for piece in stream:
            role = {} if text else {"role": "assistant"}
            if isinstance(piece, str):
                text += piece
                yield chunk(role | {"content": piece})
                continue
            if isinstance(piece, Progress):
                continue
            reply = piece["results"][0]
            if rest := _rest(reply["text"], text):
                yield chunk(role | {"content": rest})
            yield chunk({}, reply["finish_reason"])
            if include_usage:
                yield head | {"choices": [], "usage": reply["usage"]}
    finally:
        await stream.aclose()
    yield "[DONE]"


async def _encoded(coming: asyncio.Future[Event], events: AsyncGenerator[Event, None]) -> AsyncIterator[str]:
    try:
        while True:
            done, _ = await asyncio.wait({coming}, timeout=KEEP_ALIVE_SEC)
            if not done:
                yield ": still working\n\n"
                continue
            try:
                event = coming.result()
            except StopAsyncIteration:
                return
            except Exception as error:  # noqa: BLE001  the status is sent: an event is what is left
                event = responses.to_json(report(error))
            if isinstance(event, Progress):
                yield f": transcribed {event.audio_sec_done:.3f} of {event.audio_sec_known:.3f} s\n\n"
                coming = asyncio.ensure_future(anext(events))
                continue
            yield f"data: {event if isinstance(event, str) else json.dumps(event, ensure_ascii=False)}\n\n"
            if isinstance(event, dict) and "error" in event:
                return
            coming = asyncio.ensure_future(anext(events))
    finally:
        coming.cancel()
        await asyncio.wait({coming})
        await events.aclose()


def _rest(whole: str, sent: str) -> str:
    """Return what follows the text that was sent, or nothing if the final text differs from it."""
    return whole.removeprefix(sent) if whole.startswith(sent) else ""
