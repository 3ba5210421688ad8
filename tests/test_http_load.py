"""Two hundred at once, of every kind: nothing lost, nothing mixed up, and the event loop never held up."""

from __future__ import annotations

import asyncio
import base64
import threading
import time

import httpx
import pytest
from conftest import tone
from serving import serving

from worker.config import Settings

pytestmark = pytest.mark.slow

LONGEST_SEC = 0.05


def test_two_hundred_mixed_requests_at_once(tmp_path, monkeypatch):
    longest, run = [0.0], asyncio.Handle._run

    def timed(handle):
        before = time.thread_time()
        run(handle)
        if threading.current_thread() is not threading.main_thread():  # there the clients are
            longest[0] = max(longest[0], time.thread_time() - before)

    clips = {seconds: tone(tmp_path / f"{seconds}.wav", seconds).read_bytes() for seconds in (1, 2, 3, 5, 8)}
    settings = Settings(skip_model_load=True, data_dir=tmp_path / "data", allowed_paths=(tmp_path,), max_queue=1000)

    async def one(http: httpx.AsyncClient, number: int) -> None:
        seconds = list(clips)[number % 5]
        file = {"file": (f"{number}.wav", clips[seconds])}
        kind = number % 6
        if kind == 0:
            answer = await http.post("/v1/audio/transcriptions", files=file, data={"response_format": "verbose_json"})
            assert answer.json()["duration"] == seconds
        elif kind == 1:
            answer = await http.post("/v1/audio/transcriptions", files=file, data={"stream": "true"})
            assert "[DONE]" in answer.text
            assert f"of {seconds}.00 s" in answer.text
        elif kind == 2:
            answer = await http.post("/transcribe", json={"paths": [str(tmp_path / f"{s}.wav") for s in clips]})
            assert [f"{s}.00 s" in one["text"] for s, one in zip(clips, answer.json()["results"], strict=True)] == [
                True
            ] * 5
        elif kind == 3:
            data = base64.b64encode(clips[seconds]).decode()
            answer = await http.post("/v1/audio/embeddings", json={"model": "music-flamingo", "audio": {"data": data}})
            assert answer.json()["duration_sec"] == seconds
        elif kind == 4:
            answer = await http.post("/transcribe", files=file)
            assert answer.json()["filename"] == f"{number}.wav"
            assert f"of {seconds}.00 s" in answer.json()["text"]
        else:
            answer = await http.post("/v1/audio/transcriptions", files={"file": (f"{number}.wav", b"noise" * 1000)})
            assert answer.json()["error"]["code"] == "decode_failed"

    async def all_at_once(url: str) -> list:
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as http:
            return await asyncio.gather(*(one(http, number) for number in range(200)), return_exceptions=True)

    with serving(settings, loop="asyncio") as url:
        monkeypatch.setattr(asyncio.Handle, "_run", timed)
        outcomes = asyncio.run(all_at_once(url))
        stats = httpx.get(f"{url}/stats").json()
    assert [outcome for outcome in outcomes if outcome is not None] == []
    assert stats["inputs"]["in_flight"] == 0
    assert stats["queue"] == {"pieces_waiting": 0, "decoded_sec_held": 0}
    assert {path.name.split("-")[0] for path in (tmp_path / "data").iterdir()} <= {"uploads", "jobs.db"}
    assert not list((tmp_path / "data" / "uploads").iterdir())
    assert 0 < longest[0] < LONGEST_SEC, "no callback of the server's loop takes as long"
