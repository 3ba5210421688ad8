"""What more than one test file needs: ffmpeg's encodings, the digits and their labels, errors between texts,
embeddings. It also makes every process of a test run alike, however the run was started."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from databases import clock, fresh, postgres  # noqa: F401  fixtures
from hypothesis import settings

from worker.audio import ffmpeg
from worker.types import Clip, Embedding

# Tests run beside each other, one process a core, and the models are tiny: more threads would only fight for the cores.
# Child processes inherit the value; torch reads it when it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell starts background jobs with SIGINT ignored, and so would be every process that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests beside each other, and programs beside the tests, make any example slow at times.
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")

SLOW = "\npytestmark = pytest.mark.slow\n"
FIXTURES = Path(__file__).parent / "fixtures"
DIGITS = FIXTURES / "digits"
MODEL = FIXTURES / "parakeet-digits.nemo"
LABELS: dict[str, str] = json.loads((DIGITS / "labels.json").read_text())


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out files that are slow as a whole, without importing them: the libraries of the models take seconds."""
    fast = config.option.markexpr == "not slow" and collection_path.suffix == ".py"
    return True if fast and SLOW in collection_path.read_text(encoding="utf-8") else None


def pytest_runtest_setup() -> None:
    """Let the package's records reach caplog, whatever a command that ran in this process has made of its logger.

    pytest adds its handlers to loggers that do not propagate, such as NeMo's, and NeMo's transcribe() sets their level.
    """
    for handler in logging.root.handlers:
        handler.setLevel(logging.NOTSET)
    logger = logging.getLogger("worker")
    logger.handlers.clear()
    logger.propagate = True
    logger.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def whisper_tiny_en() -> Path:
    """The folder of OpenAI's whisper-tiny.en with its published weights, converted once on a machine."""
    pytest.importorskip("transformers", reason="transformers is not installed")
    from fixtures import real_whisper

    try:
        return real_whisper.cached()
    except real_whisper.NotInstalled as error:
        pytest.skip(str(error))


def state_flac_samples(path: Path, samples: int) -> Path:
    """Let the header of a FLAC file state another number of samples, 0 for unknown, and return the path."""
    data = bytearray(path.read_bytes())
    data[21:26] = (int.from_bytes(data[21:26], "big") >> 36 << 36 | samples).to_bytes(5, "big")
    path.write_bytes(data)
    return path


def encode(source: Path, target: Path, *options: str) -> Path:
    """Runs ffmpeg: the target's suffix names the format."""
    command = [ffmpeg.executable(), "-v", "error", "-y", "-i", str(source), *options, str(target)]
    subprocess.run(command, check=True, timeout=60)
    return target


def tone(path: Path, seconds: float, rate: int = 16_000, channels: int = 1, subtype: str | None = None) -> Path:
    """A 440 Hz tone of amplitude 0.5."""
    wave = 0.5 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)
    soundfile.write(path, np.repeat(wave[:, None], channels, axis=1), rate, subtype=subtype)
    return path


def edits(a: list[str], b: list[str]) -> int:
    """How many words must be put in, left out or changed to make `b` of `a`."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        old, row = row, [i, *[0] * len(b)]
        for j, y in enumerate(b, 1):
            row[j] = min(old[j] + 1, row[j - 1] + 1, old[j - 1] + (x != y))
    return row[-1]


def alike(one: object, other: object) -> bool:
    """Whether two results are equal, but for the last digits of numbers: these depend on the size of a batch."""
    if isinstance(one, float) and isinstance(other, float):
        return one == pytest.approx(other, abs=1e-4)
    if dataclasses.is_dataclass(one):
        return type(one) is type(other) and all(
            alike(getattr(one, field.name), getattr(other, field.name)) for field in dataclasses.fields(one)
        )
    if isinstance(one, (tuple, list)):
        return type(one) is type(other) and len(one) == len(other) and all(map(alike, one, other))
    return one == other


def check_embeddings(embed: Callable[..., list], clips: list[Clip], *, width: int, frame_rate: float) -> None:
    """`embed(clips, **options)` gives each clip's own states, whatever clips are around it and however much it is
    padded."""
    for clip, embedding in zip(clips, embed(clips), strict=True):
        (alone,), (pooled,) = embed([clip]), embed([clip], pooling="mean")
        assert isinstance(embedding, Embedding)
        assert embedding.values.dtype == np.float32
        assert embedding.values.shape == alone.values.shape
        assert embedding.values.shape[0] == pytest.approx(clip.duration_sec * frame_rate, abs=1.5)
        assert (embedding.values.shape[1], embedding.frame_rate) == (width, frame_rate)
        assert np.allclose(embedding.values, alone.values, atol=1e-4)
        assert np.allclose(pooled.values, embedding.values.mean(axis=0), atol=1e-4)
