"""Fixtures of more than one test file: ffmpeg's encodings, the digits and their labels."""
from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import soundfile

from worker.audio import ffmpeg

FIXTURES = Path(__file__).parent / "fixtures"
DIGITS = FIXTURES / "digits"
MODEL = FIXTURES / "parakeet-digits.nemo"
LABELS: dict[str, str] = json.loads((DIGITS / "labels.json").read_text())


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
