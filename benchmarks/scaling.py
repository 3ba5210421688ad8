"""Measurements of several workers, or several devices of one worker, on one machine: the gain of a second one, and the
cost of the gateway.

The machine must be idle otherwise: any other load takes from two workers what it leaves to one.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import soundfile

from benchmarks import corpus
from benchmarks.measures import NAME, ROOT, Row, seconds

WORKERS = 2
_SERVE = """
import sys
from worker.config import Settings
from worker.engine import placement
from worker.entrypoints.http.gateway import nginx, supervisor
settings = Settings()
sys.exit(supervisor.run(settings, placement.placements(settings)[:int(sys.argv[1])], nginx.find()))
"""

_MIX = """
import json, os, sys
from pathlib import Path
device, cores, folder, name = sys.argv[1:]
os.sched_setaffinity(0, json.loads(cores))
from benchmarks.measures import ask, seconds
from worker.config import Settings
from worker.engine.engine import Engine
texts = json.loads((Path(folder) / "texts.json").read_text())
paths = [Path(folder) / file for file in texts]
ran = {}
def note(batch, seconds, device):
    ran[device] = ran.get(device, 0) + len(batch.pieces)
with Engine(Settings(model=name, device=device, allowed_paths=(folder,)), on_batch=note) as engine:
    engine.load(name).result()
    hypotheses = ask(engine, paths)
    ran.clear()
    elapsed = seconds(lambda: ask(engine, paths), 5)
print(json.dumps({"seconds": elapsed, "right": sum(map(str.__eq__, hypotheses, texts.values())), "ran": ran}))
"""


@contextlib.contextmanager
def served(count: int) -> Iterator[tuple[httpx.Client, Path]]:
    """Yield a client of a gateway with `count` workers, each on half of the cores, and the folder of their sockets."""
    with tempfile.TemporaryDirectory() as name, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        values = {"MODEL": NAME, "DEVICE": "cpu", "WORKERS": str(WORKERS), "DATA_DIR": name, "PORT": str(port)}
        process = subprocess.Popen([sys.executable, "-c", _SERVE, str(count)], cwd=ROOT, env=os.environ | values)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=300) as client:
                _until_ready(client, process)
                (folder,) = Path(name).glob("gateway-*")
                yield client, folder
        finally:
            process.terminate()
            process.wait(60)


def _until_ready(client: httpx.Client, process: subprocess.Popen[bytes]) -> None:
    """Wait until all workers are ready. Raises RuntimeError if the server exits."""
    while process.poll() is None:
        with contextlib.suppress(httpx.HTTPError, KeyError, ValueError):
            if {worker["state"] for worker in client.get("/stats").json()["workers"]} == {"ready"}:
                return
        time.sleep(0.2)
    raise RuntimeError("the workers did not start")


def clip(sec: float, number: int) -> bytes:
    """Return a WAV file of `sec` seconds of speech, another one for each number."""
    spoken = [audio for audio, _ in corpus.readings()]
    readings = itertools.islice(itertools.cycle(spoken), number, None)
    parts: list[np.ndarray] = []
    while sum(map(len, parts)) < sec * 16_000:
        parts.append(next(readings))
    file = io.BytesIO()
    soundfile.write(file, np.concatenate(parts)[: round(sec * 16_000)], 16_000, format="WAV")
    return file.getvalue()


def ask(client: httpx.Client, audio: bytes) -> None:
    """Send a transcription request. Raises HTTPStatusError if it fails."""
    client.post("/v1/audio/transcriptions", files={"file": audio}, data={"model": NAME}).raise_for_status()


def _all(client: httpx.Client, clips: list[bytes], at_once: int) -> None:
    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(lambda audio: ask(client, audio), clips))


def scaling() -> list[Row]:
    """Compare one worker on half of the cores with two on both halves, for 64 clips of 20 s, 16 at a time."""
    clips = [clip(20, number) for number in range(64)]
    elapsed = {}
    for count in (1, WORKERS):
        with served(count) as (client, _):
            _all(client, clips[:16], 16)
            elapsed[count] = seconds(lambda client=client: _all(client, clips, 16), 3)
    ratio = elapsed[1] / elapsed[WORKERS]
    shown = f"{ratio:.2f} x ({elapsed[WORKERS]:.2f} s against {elapsed[1]:.2f} s for {20 * len(clips)} s of audio)"
    return [Row("two pinned workers against one, end to end", shown, "at least 1.7 x", ratio >= 1.7)]


def gateway() -> list[Row]:
    """Compare requests through nginx with requests on the worker's own socket, one at a time, for clips of 5 s."""
    clips = [clip(5, number) for number in range(40)]
    through, direct = [], []
    with served(1) as (client, folder):
        (worker,) = folder.glob("0-*")
        with httpx.Client(
            base_url="http://worker", transport=httpx.HTTPTransport(uds=str(worker)), timeout=300
        ) as without_gateway:
            for audio in [*clips[:5], *clips]:
                direct.append(seconds(lambda audio=audio: ask(without_gateway, audio)))
                through.append(seconds(lambda audio=audio: ask(client, audio)))
    mine, other = statistics.median(through[5:]) * 1000, statistics.median(direct[5:]) * 1000
    shown = f"{mine / other - 1:.1%} ({mine:.1f} against {other:.1f} ms a request of 5 s)"
    return [Row("what the gateway costs", shown, "under 5%", mine < 1.05 * other)]


def devices() -> list[Row]:
    """Compare three engines on the 120 mixed files.

    They have one device on one core, which also runs everything else; a device on each of two cores; and one device on
    both cores.
    """
    cores = sorted(os.sched_getaffinity(0))[:WORKERS]
    found = {}
    with tempfile.TemporaryDirectory() as name:
        texts = {path.name: text for path, text in corpus.mixed(Path(name))}
        (Path(name) / "texts.json").write_text(json.dumps(texts))
        for kind, device, own in (
            ("one", "cpu", cores[:1]),
            ("two", ",".join(["cpu"] * WORKERS), cores),
            ("wide", "cpu", cores),
        ):
            environment = os.environ | {"OMP_NUM_THREADS": str(len(own) if kind == "wide" else 1)}
            done = subprocess.run(
                [sys.executable, "-c", _MIX, device, json.dumps(own), name, NAME],
                cwd=ROOT,
                check=True,
                capture_output=True,
                text=True,
                env=environment,
            )
            found[kind] = json.loads(done.stdout.splitlines()[-1])
    one, two, wide = (found[kind] for kind in ("one", "two", "wide"))
    ratio = one["seconds"] / two["seconds"]
    share = max(two["ran"].values()) / sum(two["ran"].values())
    shown = (
        f"{ratio:.2f} x ({two['seconds']:.2f} s against {one['seconds']:.2f} s; {wide['seconds']:.2f} s for one device "
        f"with both cores; {two['right']} of {len(texts)} texts right, {share:.0%} by the busier one)"
    )
    return [Row("two devices of one engine against one, a core each", shown, "reported", None)]


ALL = {measure.__name__: measure for measure in (scaling, gateway, devices)}
