"""The clips for measurements: spoken digits of the test fixtures, joined with pauses and encoded by ffmpeg."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path

import numpy as np
import soundfile

from worker.audio import ffmpeg

FIXTURES = Path(__file__).parent.parent / "tests" / "fixtures"
MODEL = FIXTURES / "parakeet-digits.nemo"
RATE = 16_000
ENCODINGS = {
    "mp3": ("-b:a", "64k"),
    "m4a": ("-c:a", "aac", "-b:a", "64k"),
    "ogg": ("-c:a", "libvorbis"),
    "flac": (),
    "wav": ("-ar", "44100", "-ac", "2"),
}


def readings() -> list[tuple[np.ndarray, str]]:
    """Return the committed recordings of digits as (samples, text); the samples are float32 at 16 kHz."""
    labels: dict[str, str] = json.loads((FIXTURES / "digits" / "labels.json").read_text())
    return [(soundfile.read(FIXTURES / "digits" / name, dtype="float32")[0], text) for name, text in labels.items()]


def mixed(folder: Path, count: int = 120, seconds: float = 460.0) -> list[tuple[Path, str]]:
    """Make `count` short files in five formats, in no order of length, and return them with their texts.

    The files have some `seconds` of audio in all.
    """
    rng, spoken = random.Random(0), readings()
    files: list[tuple[Path, str]] = []
    mean = seconds / count
    for i in range(count):
        target = rng.uniform(0.4, 1.6) * mean
        parts: list[tuple[np.ndarray, str]] = []
        while not parts or sum(len(audio) for audio, _ in parts) < (target - mean / 3) * RATE:
            parts.append(rng.choice(spoken))
        audio = np.concatenate([audio for audio, _ in parts])
        suffix = list(ENCODINGS)[i % len(ENCODINGS)]
        files.append((encode(audio, folder / f"{i:03d}.{suffix}"), " ".join(text for _, text in parts)))
    return files


def mp3s(folder: Path, count: int = 200, seconds: float = 5.0) -> list[Path]:
    """Make `count` mp3 files of `seconds` each."""
    rng, spoken = random.Random(1), readings()
    paths = []
    for i in range(count):
        audio = np.concatenate([rng.choice(spoken)[0] for _ in range(12)])[: round(seconds * RATE)]
        paths.append(encode(audio, folder / f"m{i:03d}.mp3"))
    return paths


def encode(audio: np.ndarray, path: Path) -> Path:
    """Write the samples to `path`, in the format of its suffix, and return the path."""
    source = path.with_suffix(".source.wav")
    soundfile.write(source, audio, RATE)
    options = ENCODINGS[path.suffix[1:]]
    subprocess.run([ffmpeg.executable(), "-v", "error", "-y", "-i", str(source), *options, str(path)], check=True)
    source.unlink()
    return path
