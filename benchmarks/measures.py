"""Measurements of the engine and its parts, one function each. A Row holds what was measured, what is promised, and
whether the promise is kept.
"""

from __future__ import annotations

import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import corpus, naive
from worker.audio.decode import Decoder
from worker.backends import create
from worker.catalog import find
from worker.config import Settings
from worker.engine.batching import Limits, next_batch, plan
from worker.engine.engine import Engine
from worker.protocol.request import parse
from worker.types import Batch, Clip, Options, Piece

ROOT = Path(__file__).parent.parent
NAME = str(corpus.MODEL)


class Row(NamedTuple):
    """A row of the table. `kept` says whether the promise is kept; None if the value is reported, not promised."""

    name: str
    measured: str
    promised: str
    kept: bool | None


def seconds(work: Callable[[], Any], times: int = 1) -> float:
    """Return the median wall time of `times` calls of `work`, in seconds."""
    elapsed = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        elapsed.append(time.perf_counter() - started)
    return statistics.median(elapsed)


def plain_model() -> Any:
    """Return the model as users of NeMo's `transcribe()` load it."""
    from nemo.collections.asr.models import ASRModel
    from nemo.utils import logging

    logging.setLevel(logging.ERROR)
    return ASRModel.restore_from(NAME, map_location="cpu").eval()


def ask(engine: Engine, paths: list[Path]) -> list[str]:
    """Transcribe the files as one request, and return their texts."""
    response = engine.submit(parse({"inputs": [str(path) for path in paths]}, engine.settings)).result()
    return [result.output.text for result in response.results]


def mix() -> list[Row]:
    """Compare the engine with the naive worker on 120 short files, end to end."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = corpus.mixed(folder)
        paths, texts = [path for path, _ in files], [text for _, text in files]
        settings = Settings(model=NAME, device="cpu", allowed_paths=(folder,))
        model = plain_model()
        with Engine(settings) as engine:
            engine.load(NAME).result()
            ask(engine, paths[:16])
            naive.transcribe(model, paths[:2], folder)
            ours, theirs, answers = [], [], ([], [])
            for _ in range(3):
                ours.append(seconds(lambda: answers[0].append(ask(engine, paths))))
                theirs.append(seconds(lambda: answers[1].append(naive.transcribe(model, paths, folder))))
        ratio = statistics.median(theirs) / statistics.median(ours)
        right = [sum(a == b for a, b in zip(found[-1], texts, strict=True)) for found in answers]
        audio = sum(naive.duration(folder / f"{path.name}.wav") for path in paths)
    shown = (
        f"{ratio:.1f} x ({statistics.median(ours):.2f} s against {statistics.median(theirs):.2f} s for {audio:.0f} s "
        f"of audio; {right[0]} and {right[1]} of {len(texts)} texts right)"
    )
    return [Row("120 mixed files end to end", shown, "at least 6 x the naive worker's rate", ratio >= 6)]


def decoding() -> list[Row]:
    """Compare the decoding processes with one ffmpeg and one probe per file, on 200 mp3 files of 5 s."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = corpus.mp3s(folder)
        settings = Settings()
        decoder = Decoder(settings)

        def decode(path: Path) -> None:
            with path.open("rb") as file:
                decoder.decode(file)

        with ThreadPoolExecutor(settings.decode_workers) as pool:
            list(pool.map(decode, paths[:20]))
            ours = seconds(lambda: list(pool.map(decode, paths)), 5)
        theirs = seconds(lambda: [naive.duration(naive.to_wav(path, folder)) for path in paths])
        decoder.close()
    shown = f"{theirs / ours:.1f} x ({1000 / ours:.0f} against {1000 / theirs:.0f} audio-seconds a second)"
    return [Row("decoding 200 mp3 of 5 s", shown, "at least 15 x the naive conversion", theirs / ours >= 15)]


def padding() -> list[Row]:
    """Measure the padding of 2,000 clips of lognormal length, batched as the scheduler does."""
    limits = Limits.of(Settings())
    lengths = np.exp(np.random.default_rng(0).normal(math.log(6), 1, 2000))
    waiting = [
        Piece(Clip(np.broadcast_to(np.float32(0), (round(s * 16_000),))), Options("m"), i)
        for i, s in enumerate(lengths)
    ]
    real, padded, largest = sum(piece.duration_sec for piece in waiting), 0.0, 0.0
    planned = sum(batch.padded_sec for batch in plan(waiting, limits))
    while waiting:
        batch = next_batch(waiting, limits)
        padded, largest = padded + batch.padded_sec, max(largest, batch.padded_sec)
        batched = set(map(id, batch.pieces))
        waiting = [piece for piece in waiting if id(piece) not in batched]
    shown = f"{padded / real - 1:.1%} (largest batch {largest:.0f} padded s)"
    kept = padded <= 1.1 * real and planned <= 1.1 * real and largest <= limits.max_padded_sec
    return [Row("padding of 2,000 lognormal clips", shown, "at most 10%, no batch over 1,200 padded s", kept)]


def batches() -> list[Row]:
    """Compare a batch of arrays with transcribe(paths) on the same clips, each on its own copy of the model."""
    import soundfile

    spoken = [audio for audio, _ in corpus.readings()]
    backend = create(find(NAME), Settings(device="cpu"))
    backend.load()
    model = plain_model()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size in (1, 4, 16):
            clips = sorted(spoken, key=len)[8 : 8 + size]  # of similar length, as in the planner's batches
            paths = []
            for i, audio in enumerate(clips):
                paths.append(f"{folder}/{i}.wav")
                soundfile.write(paths[-1], audio, 16_000)
            batch = Batch(tuple(Piece(Clip(audio), Options(NAME)) for audio in clips))
            ours, theirs = [], []
            for _ in range(16):
                ours.append(seconds(lambda batch=batch: backend.infer(batch)))
                theirs.append(seconds(lambda p=paths, n=size: model.transcribe(p, batch_size=n, verbose=False)))
            mine, other = statistics.median(ours[1:]) * 1000, statistics.median(theirs[1:]) * 1000
            ratio = mine / other
            shown = f"{ratio:.2f} ({mine:.0f} against {other:.0f} ms)"
            rows.append(
                Row(f"a batch of {size} on ready arrays", shown, "at most 0.55 of transcribe(paths)", ratio <= 0.55)
            )
    return rows


def jobs() -> list[Row]:
    """Compare 32 concurrent jobs of one clip with one job of the same 32 clips."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = [path for path, _ in corpus.mixed(folder, 32, 120)]
        with Engine(Settings(model=NAME, device="cpu", allowed_paths=(folder,))) as engine:
            engine.load(NAME).result()
            ask(engine, paths)

            def apart() -> None:
                futures = [engine.submit(parse({"inputs": [str(path)]}, engine.settings)) for path in paths]
                for future in futures:
                    future.result()

            together, single = [], []
            for _ in range(9):
                together.append(seconds(lambda: ask(engine, paths)))
                single.append(seconds(apart))
    ratio = statistics.median(single) / statistics.median(together)
    shown = f"{ratio:.2f} ({statistics.median(single):.2f} s against {statistics.median(together):.2f} s)"
    return [Row("32 one-clip jobs at once", shown, "at most 1.2 of one job of 32", ratio <= 1.2)]


_MEMORY = """
import re, sys
from pathlib import Path
from worker.config import Settings
from worker.engine.engine import Engine
from worker.protocol.request import parse
count, folder = int(sys.argv[1]), sys.argv[2]
settings = Settings(skip_model_load=True, max_inputs=10_000, allowed_paths=(folder,))
with Engine(settings) as engine:
    request = parse({"inputs": [f"{folder}/{i}.wav" for i in range(count)]}, settings)
    response = engine.submit(request).result()
    assert len(response.results) == count and not any(hasattr(outcome, "error") for outcome in response.results)
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])  # ru_maxrss: the parent's
"""


def memory() -> list[Row]:
    """Compare the worker's peak memory for 10,000 inputs with that for 100, in the dry run.

    Each input is a 5 s file with a name of its own.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first = folder / "0.wav"
        import soundfile

        soundfile.write(first, np.concatenate([audio for audio, _ in corpus.readings()])[: 5 * 16_000], 16_000)
        for i in range(1, 10_000):
            os.link(first, folder / f"{i}.wav")
        peaks = {}
        for count in (100, 10_000):
            command = [sys.executable, "-c", _MEMORY, str(count), name]
            done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
            peaks[count] = int(done.stdout.split()[-1]) / 1024
    ratio = peaks[10_000] / peaks[100]
    shown = f"{ratio:.2f} ({peaks[10_000]:.0f} against {peaks[100]:.0f} MiB)"
    return [Row("peak memory with 10,000 inputs", shown, "at most 1.2 of that with 100", ratio <= 1.2)]


def imports() -> list[Row]:
    """Compare the time of `import handler` with that of `import runpod`, in alternating fresh processes."""

    def start(module: str) -> float:
        return seconds(lambda: subprocess.run([sys.executable, "-c", f"import {module}"], cwd=ROOT, check=True))

    pairs = [(start("handler"), start("runpod")) for _ in range(6)][1:]
    ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    return [
        Row(
            "import handler",
            f"{ours / theirs:.2f} ({ours:.2f} s against {theirs:.2f} s)",
            "at most 1.2 of import runpod",
            ours <= 1.2 * theirs,
        )
    ]


ALL = {measure.__name__: measure for measure in (mix, decoding, padding, batches, jobs, memory, imports)}
