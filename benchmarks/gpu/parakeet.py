"""Parakeet: short form, long form through the engine, jobs, loads, and batches by size and length, next to NeMo."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu import bench, checkpoints, load, meters
from benchmarks.gpu.bench import Machine, Step
from benchmarks.gpu.report import Result, Values, attempt
from worker.backends import create
from worker.config import Settings
from worker.engine.engine import Engine
from worker.protocol.request import parse
from worker.types import SAMPLE_RATE, Options

RATE, LOAD_SEC, LOAD_GIB, WINDOWS, JOBS = 6000, 0.65, 0.6, 3, 1.2  # what is promised


class Parakeet:
    """The measurements of a model of the shape of parakeet-tdt-0.6b-v3."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._device, self._scale, folder = machine
        self._clips = folder / "clips"
        self._clips.mkdir()

    @property
    def steps(self) -> tuple[Step, ...]:
        """The measurements, the most valuable first."""
        return (self.checkpoint, self.short_form, self.long_form, self.jobs, self.loads, self.grid)

    def checkpoint(self) -> Iterator[Result]:
        """Make the checkpoint and load it, which all other rows need."""
        started = time.perf_counter()
        weights = self._checkpoint.weights
        made = time.perf_counter()
        captured = self._warm_up()
        yield Result(
            f"Parakeet: random weights, the bias of the blank set to yield some {checkpoints.TOKENS_PER_SEC} tokens a "
            f"second, each step {checkpoints.DURATION} frames",
            {
                "weights": weights,
                "making_sec": made - started,
                "loading_and_warming_sec": time.perf_counter() - made,
                "captures": captured,
                "graphs": self._graphs(),
            },
        )

    def short_form(self) -> Iterator[Result]:
        """Measure clips sorted by length, in batches, as the Open ASR Leaderboard counts, and through the engine."""
        clips = bench.short_clips(self._scale)
        for number, size in enumerate(self._scale.short_batches):
            promised = {"promised": f"at least {RATE} x real time", "keeps": lambda values: values["rtfx"] >= RATE}
            work = bench.batches(clips, size, self._options)
            what = f"Parakeet, {len(clips)} clips sorted by length, batches of {size}"
            yield attempt(what, lambda work=work: self._ours(work), **({} if number else promised))
            yield attempt(
                f"{what}, NeMo's transcribe", lambda size=size: bench.nemo(self._nemo, clips, size, self._device)
            )

        some = clips[::4]
        inputs = [{"source": str(self._save(samples, f"short-{i}"))} for i, samples in enumerate(some)]

        def through_the_engine() -> Values:
            self._ask(inputs)
            took = meters.seconds(lambda: self._ask(inputs), self._device)
            return {"rtfx": sum(map(len, some)) / SAMPLE_RATE / took}

        yield attempt(f"Parakeet, {len(some)} of them as WAV files in one job, through the engine", through_the_engine)

    def long_form(self) -> Iterator[Result]:
        """Measure a long file through the engine, in windows and whole, and the search for speech in it."""
        path = self._save(bench.noise(self._scale.long_sec), "long")
        took: dict[str, float] = {}

        def transcribe(way: str) -> Values:
            work = functools.partial(self._ask, [{"source": str(path), "long_audio": way}])
            work()
            took[way] = meters.seconds(work, self._device)
            return {"rtfx": self._scale.long_sec / took[way]}

        what = f"Parakeet, {self._scale.long_sec:g} s through the engine, without the search for speech"
        for way in ("windows", "whole"):
            yield attempt(f"{what}, {way}", functools.partial(transcribe, way))
        yield attempt(
            f"{what}, windows against whole",
            lambda: {"ratio": took["whole"] / took["windows"]},
            f"at least {WINDOWS} x",
            lambda values: values["ratio"] >= WINDOWS,
        )
        yield attempt(f"search for speech in {self._scale.long_sec:g} s, on one core", self._search)

    def jobs(self) -> Iterator[Result]:
        """Measure jobs of one clip at once against one job of all clips."""
        count, seconds = self._scale.jobs, self._scale.jobs_sec
        inputs = [{"source": str(self._save(bench.noise(seconds, i), f"job-{i}"))} for i in range(count)]

        def measure() -> Values:
            self._ask(inputs)
            self._ask(*([value] for value in inputs))
            pairs = [
                (
                    meters.seconds(lambda: self._ask(*([value] for value in inputs)), self._device),
                    meters.seconds(lambda: self._ask(inputs), self._device),
                )
                for _ in range(5)
            ]
            apart, together = (float(np.median(column)) for column in zip(*pairs, strict=True))
            return {"ratio": apart / together, "apart_sec": apart, "together_sec": together}

        yield attempt(
            f"Parakeet, {count} jobs of one clip of {seconds:g} s against one job of {count}, through the engine",
            measure,
            f"at most {JOBS} x",
            lambda values: values["ratio"] <= JOBS,
        )

    def grid(self) -> Iterator[Result]:
        """Measure batches of equal clips by size and length."""
        longest = bench.noise(self._scale.parakeet_grid[-1][0])
        for seconds, size in bench.grid(self._scale.parakeet_grid):
            clips = [longest[: round(seconds * SAMPLE_RATE)]] * size
            long = seconds > self._settings.short_max_sec
            work = bench.batches(clips, size, self._options, long=long)
            what = f"Parakeet, {size} x {seconds:g} s"
            yield attempt(what, lambda work=work: self._ours(work, times=3))
            if not long:
                yield attempt(
                    f"{what}, NeMo's transcribe",
                    lambda clips=clips: bench.nemo(self._nemo, clips, len(clips), self._device, times=3),
                )

    def loads(self) -> Iterator[Result]:
        """Measure loads, each in a process of its own."""
        loaded: dict[str, Values] = {}

        def measure(who: str) -> Values:
            loaded[who] = load.load(who, self._checkpoint.path, self._device)
            return loaded[who]

        yield attempt("Parakeet, load", lambda: measure("ours"))
        yield attempt("Parakeet, load, NeMo's restore_from", lambda: measure("nemo"))
        yield attempt(
            "Parakeet, load against NeMo's",
            lambda: {
                name: loaded["ours"][name] / loaded["nemo"][name] if loaded["nemo"][name] else None
                for name in ("sec", "host_gib", "device_gib")
            },
            f"at most {LOAD_SEC} of the seconds and {LOAD_GIB} of the memory",
            lambda values: (
                values["sec"] <= LOAD_SEC
                and all(values[name] is None or values[name] <= LOAD_GIB for name in ("host_gib", "device_gib"))
            ),
        )

    def close(self) -> None:
        """End the engine, if there is one."""
        if "_engine" in self.__dict__:
            self._engine.close()

    @functools.cached_property
    def _checkpoint(self) -> checkpoints.Checkpoint:
        return checkpoints.parakeet(self._machine.folder, self._scale, self._device)

    @functools.cached_property
    def _settings(self) -> Settings:
        return Settings(
            model=str(self._checkpoint.path),
            device=self._device,
            allowed_paths=(self._clips,),
            detect_speech=False,
            max_audio_sec=max(4 * 3600, self._scale.long_sec),
        )

    @functools.cached_property
    def _backend(self) -> Any:
        """The backend of the engine, which is measured without the engine too."""
        created: list[Any] = []

        def note(row: Any) -> Any:
            created.append(create(row, self._settings))
            return created[-1]

        self._engine = Engine(self._settings, create_backend=note)
        self._engine.load(self._options.model).result()
        return created[-1]

    @functools.cached_property
    def _nemo(self) -> Any:
        return bench.nemo_model(self._checkpoint.path, self._device, next(self._backend._model.parameters()).dtype)

    @property
    def _options(self) -> Options:
        return Options(str(self._checkpoint.path))

    def _warm_up(self) -> int:
        """Load the model, run a batch, and return how many graphs that captured."""
        with meters.captures() as captured:
            self._backend.infer(bench.batches([bench.noise(1)], 1, self._options)[0])
            return captured()

    def _graphs(self) -> str | None:
        """Return NeMo's name of the way that the decoder uses CUDA graphs, or None if it uses none."""
        mode = self._backend._decoders[False].decoding.decoding_computer.cuda_graphs_mode
        return mode and mode.name

    def _ours(self, work: Any, times: int = 1) -> Values:
        groups = bench.nemo_groups(self._backend._model)
        self._backend.infer(work[0])  # captures the graphs for the largest batch
        with meters.captures() as captured:
            values = bench.ours(self._backend, work, self._device, times=times, **groups)
        return {**values, "captures": captured()}

    def _ask(self, *requests: list[dict[str, Any]]) -> None:
        """Run the requests at once. Raises RuntimeError if an input fails."""
        self._backend  # noqa: B018  starts the engine
        futures: list[Future[Any]] = [
            self._engine.submit(parse({"inputs": inputs}, self._settings)) for inputs in requests
        ]
        for future in futures:
            for result in future.result().results:
                if getattr(result, "error", None) is not None:
                    raise RuntimeError(str(result.error))

    def _search(self) -> Values:
        from worker.backends.common import vad

        if not vad.is_available():
            return {"not run": "silero-vad or onnxruntime is not installed"}
        samples = bench.noise(self._scale.long_sec)
        vad.speech(samples[:SAMPLE_RATE])
        took = meters.seconds(lambda: vad.speech(samples), self._device)
        return {"sec": took, "rtfx": self._scale.long_sec / took}

    def _save(self, samples: np.ndarray, name: str) -> Path:
        import soundfile

        path = self._clips / f"{name}.wav"
        soundfile.write(path, samples, SAMPLE_RATE)
        return path
