"""What every backend must keep, on a tiny real checkpoint of each family, through the real engine.

Nothing depends on neighbors, on order or on what ran before; a bad item fails alone; out of memory halves the batch.
pocketsphinx has no batches, and a test of its own.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import soundfile
from conftest import DIGITS, FIXTURES, LABELS, alike

from worker.backends import create
from worker.backends.base import Backend
from worker.config import Settings
from worker.engine.engine import Engine
from worker.protocol.request import parse
from worker.types import Analysis, Batch, Embedding, Output

pytestmark = pytest.mark.slow

FILES = [str(DIGITS / name) for name in list(LABELS)[:6]]


class Case(NamedTuple):
    model: str
    payload: dict


# A tiny checkpoint of each family: saved in a new folder, or one of the fixtures. A test that makes one is skipped if a
# library that the family needs is not installed.


def parakeet(_folder: Path) -> Path:
    pytest.importorskip("nemo.collections.asr", reason="nemo_toolkit is not installed")
    return FIXTURES / "parakeet-digits.nemo"


def canary(_folder: Path) -> Path:
    pytest.importorskip("nemo.collections.asr", reason="nemo_toolkit is not installed")
    return FIXTURES / "canary-digits.nemo"


def whisper(folder: Path) -> Path:
    pytest.importorskip("transformers", reason="transformers is not installed")
    from fixtures import tiny_whisper

    return tiny_whisper.save(folder)


def audio_flamingo(folder: Path) -> Path:
    pytest.importorskip("transformers", reason="transformers is not installed")
    from fixtures import tiny_flamingo

    return tiny_flamingo.save(folder)


def music_flamingo(folder: Path) -> Path:
    pytest.importorskip("transformers", reason="transformers is not installed")
    from fixtures import tiny_flamingo

    return tiny_flamingo.save(folder, music=True)


def nemotron_asr(folder: Path) -> Path:
    pytest.importorskip("transformers", reason="transformers is not installed")
    from fixtures import tiny_nemotron

    return tiny_nemotron.save(folder)


def nemotron_languages(folder: Path) -> Path:
    pytest.importorskip("transformers", reason="transformers is not installed")
    from fixtures import tiny_nemotron

    return tiny_nemotron.save(folder, multilingual=True)


def canary_qwen(folder: Path) -> Path:
    pytest.importorskip("nemo.collections.asr", reason="nemo_toolkit is not installed")
    from fixtures import tiny_canary_qwen

    return tiny_canary_qwen.save(folder)


def nemotron_transcribe(folder: Path) -> Path:
    pytest.importorskip("transformers", reason="transformers is not installed")
    from fixtures import tiny_transcribe

    return tiny_transcribe.save(folder)


def nemotron_diarization(folder: Path) -> Path:
    pytest.importorskip("transformers", reason="transformers is not installed")
    from fixtures import tiny_nemotron_diarization

    return tiny_nemotron_diarization.save(folder)


def sortformer(folder: Path) -> Path:
    pytest.importorskip("nemo.collections.asr", reason="nemo_toolkit is not installed")
    from fixtures import tiny_sortformer

    return tiny_sortformer.save(folder / "whole.nemo", streaming=False)


def streaming_sortformer(folder: Path) -> Path:
    pytest.importorskip("nemo.collections.asr", reason="nemo_toolkit is not installed")
    from fixtures import tiny_sortformer

    return tiny_sortformer.save(folder / "streaming.nemo", streaming=True)


CASES = {
    "parakeet": (parakeet, {"timestamps": ["word", "segment", "char"], "confidence": True}),
    "canary": (canary, {"timestamps": ["word", "segment", "char"], "confidence": True}),
    "canary qwen": (canary_qwen, {"max_new_tokens": 12}),
    "nemotron": (nemotron_asr, {"timestamps": ["word", "segment", "char"], "confidence": True}),
    "nemotron languages": (nemotron_languages, {"timestamps": True, "language": "de"}),
    "nemotron transcribe": (nemotron_transcribe, {"timestamps": ["word", "segment"], "max_new_tokens": 12}),
    "nemotron chat": (nemotron_transcribe, {"task": "chat", "prompt": "what?", "max_new_tokens": 8}),
    "whisper": (whisper, {"timestamps": True, "max_new_tokens": 12}),
    "whisper embed": (whisper, {"task": "embed", "pooling": "mean"}),
    "audio caption": (audio_flamingo, {"task": "caption", "max_new_tokens": 8}),
    "audio analyze": (audio_flamingo, {"task": "analyze", "max_new_tokens": 8}),
    "nemotron diarize": (nemotron_diarization, {"task": "diarize"}),
    "sortformer diarize": (sortformer, {"task": "diarize"}),
    "streaming sortformer diarize": (streaming_sortformer, {"task": "diarize"}),
    "music chat": (music_flamingo, {"task": "chat", "prompt": "what?", "max_new_tokens": 8}),
}

Family = Callable[[Path], Path]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Callable[[Family], str]:
    """The path of a family's checkpoint, made at its first use."""
    made: dict[Family, str] = {}

    def of(family: Family) -> str:
        if family not in made:
            made[family] = str(family(tmp_path_factory.mktemp("checkpoint")))
        return made[family]

    return of


@pytest.fixture(params=CASES)
def case(request, checkpoint) -> Case:
    family, payload = CASES[request.param]
    return Case(checkpoint(family), payload)


class Watched(Backend):
    """The real backend, whose batches can be counted and made to fail."""

    def __init__(self, row, settings) -> None:
        self._real = create(row, settings)
        self.sizes: list[int] = []
        self.fails = lambda batch: None

    def load(self) -> None:
        self._real.load()
        self.overhead_sec = self._real.overhead_sec

    def warm(self) -> None:
        self._real.warm()

    def infer(self, batch: Batch) -> list[Output]:
        self.sizes.append(len(batch.pieces))
        if error := self.fails(batch):
            raise error
        return self._real.infer(batch)

    def close(self) -> None:
        self._real.close()


@pytest.fixture
def engine(case, tmp_path):
    settings = Settings(
        model=case.model, device="cpu", allowed_paths=(DIGITS, tmp_path), data_dir=tmp_path / "data", batch_wait_sec=2.0
    )
    made: list[Watched] = []
    with Engine(settings, create_backend=lambda row: made.append(Watched(row, settings)) or made[0]) as engine:
        engine.load(case.model).result(60)
        engine.watched = made[0]
        yield engine
    assert not list((tmp_path / "data").glob("*"))


def ask(engine, case, files, **payload) -> list:
    request = parse({**case.payload, **payload, "inputs": files}, engine.settings)
    return [getattr(one, "output", None) or one.error for one in engine.submit(request).result(120).results]


def same(one, other) -> bool:
    if isinstance(one, Analysis):
        return one.caption == other.caption and same(one.embedding, other.embedding)
    if isinstance(one, Embedding):
        return one.values.shape == other.values.shape and np.allclose(one.values, other.values, atol=1e-4)
    return alike(one, other)


def out_of_memory() -> Exception:
    """The error that the libraries of the backend raise."""
    torch = sys.modules.get("torch")
    return torch.OutOfMemoryError("CUDA out of memory.") if torch else MemoryError("Unable to allocate 1 GiB")


def test_the_promises(engine, case, tmp_path):
    watched = engine.watched
    alone = [ask(engine, case, [file])[0] for file in FILES]
    assert not all(same(alone[0], other) for other in alone[1:])

    together = ask(engine, case, FILES)
    assert all(map(same, together, alone)), "together is not as alone"
    assert max(watched.sizes) > 1, "nothing was batched"

    backwards = ask(engine, case, FILES[::-1])
    assert all(map(same, backwards, alone[::-1])), "order matters"

    long = tmp_path / "long.wav"
    soundfile.write(long, np.concatenate([soundfile.read(file)[0] for file in FILES * 4]), 16_000)
    ask(engine, case, [str(long)])
    assert all(map(same, ask(engine, case, FILES), alone)), "what ran before matters"

    culprit = round(soundfile.info(FILES[2]).duration * 16_000)
    watched.fails = lambda batch: (
        ValueError("bad") if any(len(p.clip.samples) == culprit for p in batch.pieces) else None
    )
    outcomes = ask(engine, case, FILES)
    assert outcomes[2].code == "model_error"
    assert all(same(outcomes[i], alone[i]) for i in range(6) if i != 2), "a bad item cost others"

    watched.sizes.clear()
    watched.fails = lambda batch: out_of_memory() if len(batch.pieces) > 2 else None
    assert all(map(same, ask(engine, case, FILES), alone)), "out of memory cost an answer"
    assert max(watched.sizes) > 2
    watched.sizes.clear()
    assert all(map(same, ask(engine, case, FILES), alone))
    assert max(watched.sizes) <= 3, "the budget was not lowered"


def test_several_models_in_one_worker(checkpoint, tmp_path):
    """Two load while the first answers; one that cannot load has its own error and leaves the others serving."""
    settings = Settings(
        model=checkpoint(parakeet),
        device="cpu",
        allowed_models=("*",),
        allowed_paths=(DIGITS,),
        data_dir=tmp_path / "data",
        hf_hub_offline=True,
    )
    jobs = [
        (checkpoint(parakeet), {}),
        (checkpoint(whisper), {"max_new_tokens": 5}),
        ("canary", {}),
        (checkpoint(audio_flamingo), {"task": "caption", "max_new_tokens": 5}),
    ] * 3
    with Engine(settings) as engine:
        futures = [
            engine.submit(parse({"model": model, "inputs": FILES[:3], **payload}, settings)) for model, payload in jobs
        ]
        for (model, _), future in zip(jobs, futures, strict=True):
            results = future.result(120).results
            if model == "canary":
                assert [one.error.code for one in results] == ["model_unavailable"] * 3
                assert "nvidia/canary-1b-v2" in results[0].error.message
            else:
                assert all(hasattr(one, "output") for one in results)
        assert [one.output.text for one in futures[0].result().results] == [
            LABELS[Path(file).name] for file in FILES[:3]
        ]


def test_idle_models_leave_and_come_back(checkpoint, tmp_path):
    settings = Settings(
        model=checkpoint(whisper),
        device="cpu",
        allowed_paths=(DIGITS,),
        data_dir=tmp_path / "data",
        model_idle_sec=0.3,
    )
    with Engine(settings) as engine:

        def texts() -> list[str]:
            request = parse({"inputs": FILES[:2], "max_new_tokens": 8}, settings)
            return [one.output.text for one in engine.submit(request).result(60).results]

        before = texts()
        deadline = time.monotonic() + 10
        while engine.models and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not engine.models
        assert texts() == before
