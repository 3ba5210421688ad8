"""Realtime sessions in a process of their own for the tests: `python realtime_clients.py URL COUNT TURNS WAV`.

Every session sends the recording TURNS times, in pieces of 200 ms and as fast as a microphone would, and writes a line
of JSON to stdout: its transcripts in order, and for each turn the seconds from the end of speech to its transcript.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
import sys
import time
from pathlib import Path

from websockets.asyncio.client import connect

PIECE_SEC = 0.2
RATE = 16_000
CHANGE = {"type": "transcription", "audio": {"input": {"format": {"type": "audio/pcm", "rate": RATE}}}}


async def session(url: str, turns: int, audio: bytes) -> None:
    await asyncio.sleep(random.uniform(0, 2))
    pieces = [audio[at : at + int(2 * RATE * PIECE_SEC)] for at in range(0, len(audio), int(2 * RATE * PIECE_SEC))]
    texts: list[str] = []
    stopped: dict[str, float] = {}
    waits: list[float] = []

    async with connect(url, max_queue=None, compression=None, open_timeout=60, ping_timeout=60) as socket:

        async def send() -> None:
            await socket.send(json.dumps({"type": "session.update", "session": CHANGE}))
            due = time.monotonic()
            for piece in turns * pieces:
                text = base64.b64encode(piece).decode()
                await socket.send(json.dumps({"type": "input_audio_buffer.append", "audio": text}))
                due += PIECE_SEC
                await asyncio.sleep(max(0.0, due - time.monotonic()))

        sending = asyncio.create_task(send())
        while len(texts) < turns:
            event = json.loads(await asyncio.wait_for(socket.recv(), 120))
            assert event["type"] != "error", event
            kind = event["type"].rpartition(".")[2]
            if kind == "speech_stopped":
                stopped[event["item_id"]] = time.monotonic()
            if kind == "completed":
                texts.append(event["transcript"])
                waits.append(time.monotonic() - stopped[event["item_id"]])
        await sending
    print(json.dumps({"texts": texts, "waits": waits}), flush=True)


async def main(url: str, count: int, turns: int, audio: bytes) -> None:
    await asyncio.gather(*(session(url, turns, audio) for _ in range(count)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]).read_bytes()))
