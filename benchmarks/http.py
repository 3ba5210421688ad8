"""Measurements of the HTTP server against the engine. The server runs in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import aiohttp
import numpy as np
import soundfile

from benchmarks import corpus
from benchmarks.measures import NAME, Row
from worker.config import Settings
from worker.engine.engine import Engine
from worker.protocol.request import parse

_BARE = """
import shutil, sys, uuid, fastapi, uvicorn
app = fastapi.FastAPI()
@app.post("/store")
async def store(file: fastapi.UploadFile):
    with open(sys.argv[1] + "/" + uuid.uuid4().hex, "wb") as kept:
        shutil.copyfileobj(file.file, kept)
    return {"bytes": file.size}
@app.get("/ping")
async def ping(): return {}
uvicorn.run(app, port=int(sys.argv[2]), log_level="error", access_log=False)
"""
_OURS = ("-m", "worker", "serve")
Ask = Callable[[aiohttp.ClientSession, int], Awaitable[None]]


@contextlib.contextmanager
def served(folder: Path, *command: str, **environment: str) -> Iterator[str]:
    """Run a server and yield its base URL.

    `command` are the arguments for Python, in which `{port}` stands for the server's port; the default is Aviary's
    server. `environment` adds settings.
    """
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
    variables = (
        os.environ
        | {
            "DATA_DIR": str(folder / "data"),
            "ALLOWED_PATHS": str(folder),
            "LOG_LEVEL": "ERROR",
            "MAX_QUEUE": "100000",
            "PORT": str(port),
        }
        | environment
    )
    running = subprocess.Popen(
        [sys.executable, *(argument.replace("{port}", str(port)) for argument in command or _OURS)],
        env=variables,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        asyncio.run(_until_up(url))
        yield url
    finally:
        running.send_signal(signal.SIGTERM)
        running.wait(60)


async def _until_up(url: str) -> None:
    """Wait until the server responds. Raises TimeoutError after some 60 s."""
    async with aiohttp.ClientSession() as http:
        for _ in range(600):
            with contextlib.suppress(aiohttp.ClientError):
                async with http.get(f"{url}/ping") as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(0.1)
    raise TimeoutError(url)


async def ask_all(url: str, ask: Ask, count: int, at_once: int) -> float:
    """Return the seconds for `count` requests, `at_once` of them at a time."""
    numbers = iter(range(count))

    async def client(http: aiohttp.ClientSession) -> None:
        for number in numbers:
            await ask(http, number)

    async with aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=0)) as http:
        started = time.perf_counter()
        await asyncio.gather(*(client(http) for _ in range(at_once)))
        return time.perf_counter() - started


def upload(path: str, clips: list[bytes], field: str = "file", **fields: str) -> Ask:
    """Return an `Ask` that uploads the clips in turn, each in the form field `field`, with the other `fields`."""

    async def ask(http: aiohttp.ClientSession, number: int) -> None:
        form = aiohttp.FormData(fields)
        form.add_field(field, clips[number % len(clips)], filename=f"{number}.wav")
        async with http.post(path, data=form) as answer:
            assert answer.status == 200, await answer.text()
            await answer.read()

    return ask


def speech(folder: Path, count: int) -> list[Path]:
    """Make `count` WAV files of 5 s, each a recording of digits followed by silence."""
    rng, paths = np.random.default_rng(0), []
    digits = [soundfile.read(path, dtype="float32")[0] for path in sorted((corpus.FIXTURES / "digits").glob("*.flac"))]
    for number in range(count):
        samples = np.zeros(80_000, np.float32)
        spoken = digits[int(rng.integers(len(digits)))][:80_000]
        samples[: len(spoken)] = spoken
        paths.append(folder / f"{number}.wav")
        soundfile.write(paths[-1], samples, 16_000)
    return paths


def throughput() -> list[Row]:
    """Compare uploads of 5 s clips with calls of the same engine in process, on the tiny Parakeet.

    The result is the median of five fresh servers, because one process may run a model a fifth slower than another for
    its whole life.
    """
    count, pairs = 240, []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = speech(folder, count)
        clips = [path.read_bytes() for path in paths]
        ask = upload("/v1/audio/transcriptions", clips)
        settings = Settings(model=NAME, allowed_paths=(folder,), data_dir=folder / "engine")
        request = parse({"inputs": [str(path) for path in paths]}, settings)
        for _ in range(5):
            with Engine(settings) as engine, served(folder, MODEL=NAME) as url:
                engine.load(NAME).result()
                for measured in (False, True, True):
                    started = time.perf_counter()
                    engine.submit(request).result()
                    inside = count / (time.perf_counter() - started)
                    outside = count / asyncio.run(ask_all(url, ask, count, 64))
                    if measured:
                        pairs.append((outside / inside, outside, inside))
    ratio, outside, inside = (statistics.median(pair[i] for pair in pairs) for i in range(3))
    shown = f"{ratio:.2f} ({min(pairs)[0]:.2f} to {max(pairs)[0]:.2f}; {outside:.0f} against {inside:.0f} clips/s)"
    return [Row("240 clips of 5 s by upload", shown, "at least 0.9 of the engine's rate in process", ratio >= 0.9)]


def uploads() -> list[Row]:
    """Compare 200 concurrent dry-run uploads with a route that only stores the files, of 5 s and of 60 s."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "stored").mkdir()
        paths = speech(folder, 20)
        with (
            served(folder, SKIP_MODEL_LOAD="1") as ours,
            served(folder, "-c", _BARE, str(folder / "stored"), "{port}") as bare,
        ):
            for seconds, count in ((5, 400), (60, 200)):
                clips = [_longer(path, seconds) for path in paths]
                rates = []
                for _ in range(6):
                    mine = count / asyncio.run(ask_all(ours, upload("/v1/audio/transcriptions", clips), count, 200))
                    theirs = count / asyncio.run(ask_all(bare, upload("/store", clips), count, 200))
                    for stored in (folder / "stored").iterdir():
                        stored.unlink()
                    rates.append((mine, theirs))
                ratio = statistics.median(mine / theirs for mine, theirs in rates[1:])
                mine, theirs = (statistics.median(pair[i] for pair in rates[1:]) for i in (0, 1))
                shown = f"{ratio:.2f} ({mine:.0f} against {theirs:.0f} a second)"
                rows.append(
                    Row(
                        f"200 dry-run uploads of {seconds} s at once",
                        shown,
                        "at least 0.8 of a route that only stores them",
                        ratio >= 0.8,
                    )
                )
    return rows


def _longer(path: Path, seconds: int) -> bytes:
    """Return the 5 s clip, repeated to `seconds`, as a WAV file."""
    samples, rate = soundfile.read(path, dtype="int16")
    whole = io.BytesIO()
    soundfile.write(whole, np.tile(samples, seconds // 5), rate, format="WAV", subtype="PCM_16")
    return whole.getvalue()


def backlog() -> list[Row]:
    """Measure interactive requests beside 3,000 clips in the background.

    The background's batches are timed while no interactive request runs.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = speech(folder, 60)
        ask = upload("/v1/audio/transcriptions", [paths[0].read_bytes()])
        with served(folder, MODEL=NAME) as url:

            async def times(count: int) -> list[float]:
                return [await ask_all(url, ask, 1, 1) for _ in range(count)]

            async def measure() -> tuple[list[float], list[float], float, bool]:
                await times(10)
                idle = await times(60)
                async with aiohttp.ClientSession(url) as http:
                    sent = {"input": {"inputs": [str(path) for path in paths]}}
                    for _ in range(50):
                        await (await http.post("/run", json=sent)).read()
                    await asyncio.sleep(2)  # until the server has read ahead as much as it may
                    before = await (await http.get("/stats")).json()
                    await asyncio.sleep(2)
                    after = await (await http.get("/stats")).json()
                    busy = await times(60)
                    left = (await (await http.get("/jobs?limit=1")).json())["counts"]
                spent = [stats["batches"]["device_busy_sec"] for stats in (before, after)]
                batches = [stats["batches"]["count"] for stats in (before, after)]
                return (
                    idle,
                    busy,
                    (spent[1] - spent[0]) / (batches[1] - batches[0]),
                    left["pending"] + left["processing"] > 0,
                )

            idle, busy, batch, still = asyncio.run(measure())
    alone, beside = (float(np.percentile(times, 95)) for times in (idle, busy))
    limit = 1.5 * alone + batch
    shown = (
        f"{beside * 1000:.0f} ms against {alone * 1000:.0f} ms alone; a batch of the backlog took {batch * 1000:.0f} ms"
        + ("" if still else " (the backlog ended early)")
    )
    kept = beside <= limit and still
    return [Row("p95 of a request beside a backlog", shown, "at most 1.5 of its p95 alone, and a batch", kept)]


def stored_jobs() -> list[Row]:
    """Compare 1,000 stored dry-run jobs with 1,000 synchronous requests, and time requests for a job's status."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = speech(folder, 1)[0]
        body = {"input": {"inputs": [str(path)]}}

        def post(route: str) -> Ask:
            async def ask(http: aiohttp.ClientSession, _number: int) -> None:
                async with http.post(route, json=body) as answer:
                    assert answer.status == 200, await answer.text()
                    await answer.read()

            return ask

        async def finished(url: str, count: int) -> None:
            async with aiohttp.ClientSession(url) as http:
                while (await (await http.get("/jobs?limit=1")).json())["counts"]["completed"] < count:
                    await asyncio.sleep(0.02)

        async def status_times(url: str, job: str, for_sec: float) -> list[float]:
            times: list[float] = []
            until = time.perf_counter() + for_sec
            async with aiohttp.ClientSession(url) as http:
                while (started := time.perf_counter()) < until:
                    await (await http.get(f"/jobs/{job}/status")).read()
                    times.append(time.perf_counter() - started)
                    await asyncio.sleep(0.005)
            return times

        with served(folder, SKIP_MODEL_LOAD="1") as url:
            asyncio.run(ask_all(url, post("/runsync"), 200, 32))

            done, pairs = 0, []
            for _ in range(5):
                waited = asyncio.run(ask_all(url, post("/runsync"), 1000, 32))
                done += 1000
                started = time.perf_counter()
                asyncio.run(ask_all(url, post("/run"), 1000, 32))
                asyncio.run(finished(url, done))
                pairs.append((time.perf_counter() - started, waited))
        with served(folder, MODEL=NAME) as url:

            async def first() -> str:
                async with aiohttp.ClientSession(url) as http:
                    return str((await (await http.post("/run", json=body)).json())["id"])

            job = asyncio.run(first())
            asyncio.run(finished(url, 1))
            quiet = asyncio.run(status_times(url, job, 4))
            asyncio.run(ask_all(url, post("/run"), 1000, 32))
            busy = asyncio.run(status_times(url, job, 3))
            asyncio.run(finished(url, 1001))
    took, waited = sorted(pairs, key=lambda pair: pair[0] / pair[1])[2]
    idle, loaded = (float(np.percentile(times, 99)) * 1000 for times in (quiet, busy))
    return [
        Row(
            "1,000 jobs through HTTP",
            f"{took / waited:.2f} ({took:.2f} against {waited:.2f} s)",
            "at most 1.3 of the same sent synchronously",
            took / waited <= 1.3,
        ),
        Row(
            "p99 of a job's status while the device works off 1,000",
            f"{loaded:.1f} ms against {idle:.1f} ms idle",
            "at most 3 x its p99 idle",
            loaded <= 3 * idle,
        ),
    ]


ALL = {"http": throughput, "uploads": uploads, "backlog": backlog, "stored_jobs": stored_jobs}
