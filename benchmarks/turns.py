"""Measurement of the turns between requests: a clip behind a long file and a backlog of jobs, on the tiny Canary."""

from __future__ import annotations

import dataclasses
import random
import tempfile
import time
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import soundfile

from benchmarks import corpus
from benchmarks.http import speech
from benchmarks.measures import Row
from benchmarks.models import CANARY
from worker.config import Settings
from worker.engine.engine import Engine
from worker.protocol.request import parse
from worker.types import Batch, Response

MINUTES, JOBS, CLIPS, RUNS = 40, 1000, 20, 10


def turns() -> list[Row]:
    """Send 5 s clips, one at a time, while a file of 40 minutes runs and a backlog of 1,000 jobs waits.

    The clips are spread over several runs of the file, because the tiny model transcribes it in seconds: more clips in
    one run would be a load of their own.
    """
    rng, batches = random.Random(0), list[float]()

    def on_batch(_batch: Batch, seconds: float, _device: str) -> None:
        batches.append(seconds)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clips, file = speech(folder, CLIPS), _long_file(folder / "long.wav")
        settings = Settings(model=CANARY, device="cpu", allowed_paths=(folder,))
        with Engine(settings, on_batch=on_batch) as engine:

            def start(path: Path, *, background: bool = False) -> Future[Response]:
                request = parse({"inputs": [str(path)]}, settings)
                return engine.submit(dataclasses.replace(request, background=background))

            def took(path: Path) -> float:
                started = time.perf_counter()
                start(path).result()
                return time.perf_counter() - started

            engine.load(CANARY).result()
            took(file)
            alone, file_alone = [took(clip) for clip in clips], [took(file) for _ in range(2)]
            beside, file_beside = list[float](), list[float]()
            batches.clear()
            jobs = [start(rng.choice(clips), background=True) for _ in range(JOBS)]
            for run in range(RUNS):
                started = time.perf_counter()
                running = start(file)
                for clip in clips[run::RUNS]:
                    time.sleep(rng.uniform(0.1, 0.35) * min(file_alone))
                    beside.append(took(clip))
                if running.done():
                    raise RuntimeError("the file ended before the clips did")
                running.result()
                file_beside.append(time.perf_counter() - started)
            waiting = sum(not job.done() for job in jobs)
            for job in jobs:
                job.cancel()
    late, slower = float(np.percentile(beside, 95)), np.median(file_beside) / np.median(file_alone)
    limit = max(batches) + 1.5 * float(np.median(alone))
    return [
        Row(
            f"p95 of {CLIPS} clips of 5 s behind a file of {MINUTES} minutes and {JOBS:,} jobs",
            f"{late * 1000:.0f} ms against {np.median(alone) * 1000:.0f} ms alone; a batch took "
            f"{max(batches) * 1000:.0f} ms at most, {np.median(batches) * 1000:.0f} ms in the median"
            + ("" if waiting else " (the jobs ended early)"),
            "at most one batch and 1.5 of its time alone",
            late <= limit and waiting > 0,
        ),
        Row(
            "the file beside them",
            f"{slower:.2f} ({np.median(file_beside):.1f} s against {np.median(file_alone):.1f} s; "
            f"{JOBS - waiting} jobs ended)",
            "at most 1.1 of its time alone",
            bool(slower <= 1.1),
        ),
    ]


def _long_file(path: Path) -> Path:
    """Write MINUTES of spoken digits with pauses, and return the path."""
    rng, spoken = np.random.default_rng(0), [audio for audio, _ in corpus.readings()]
    pause, parts, left = np.zeros(6400, np.float32), list[np.ndarray](), MINUTES * 60 * corpus.RATE
    while left > 0:
        parts += [spoken[int(rng.integers(len(spoken)))], pause]
        left -= len(parts[-2]) + len(pause)
    soundfile.write(path, np.concatenate(parts)[: MINUTES * 60 * corpus.RATE], corpus.RATE)
    return path


ALL = {"turns": turns}
