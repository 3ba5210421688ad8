"""faster-whisper, in an environment and a process of its own, with the weights that ours has.

    FasterWhisper ── JSON lines: audio, options ──▶ peer_child.py ── seconds, text, words ──▶ Answer

The environment is made once in DATA_DIR, with the versions of `peer.txt`, and needs the package index then.
Aviary itself does not need faster-whisper.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.fixtures.spoken import Word
from worker.config import Settings

HERE = Path(__file__).parent
REQUIREMENTS = HERE / "peer.txt"


class Answer(NamedTuple):
    """What the child measured and transcribed. `words` is empty unless times were requested."""

    seconds: float
    text: str
    words: list[Word]


def environment() -> Path:
    """Return the environment's interpreter. The environment is made if there is none for these requirements."""
    key = hashlib.sha256(REQUIREMENTS.read_bytes() + sys.version.encode()).hexdigest()[:16]
    folder = Settings().make_data_dir() / "benchmarks" / f"faster-whisper-{key}"
    python = folder / "bin" / "python"
    done = folder / "installed"
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-qq", "-r", str(REQUIREMENTS)], check=True)
        done.touch()
    return python


class FasterWhisper:
    """A child process with the model loaded, in float32. A context manager."""

    def __init__(self, model: Path, threads: int) -> None:
        self._process = subprocess.Popen(
            [str(environment()), str(HERE / "peer_child.py"), str(model), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads)},
        )

    def __enter__(self) -> FasterWhisper:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def transcribe(self, samples: np.ndarray, folder: Path, *, batched: bool = False, words: bool = False) -> Answer:
        """Transcribe float32 samples at 16 kHz greedily. The seconds do not include reading the samples.

        `batched` selects the batched pipeline, with 16 windows a batch.
        """
        path = folder / "faster-whisper.npy"
        np.save(path, samples)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request: dict[str, Any] = {"path": str(path), "batched": batched, "words": words}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"faster-whisper exited with code {self._process.wait()}")
        answer = json.loads(line)
        return Answer(answer["seconds"], answer["text"], [Word(*word) for word in answer["words"]])
