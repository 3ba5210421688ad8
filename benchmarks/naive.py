"""The plain worker that such services often are, for comparison: correct, and in no hurry.

One ffmpeg to a temporary WAV and one probe a file, one after another; batches packed in arrival order up to 16 clips
and
1,200 seconds; `model.transcribe(paths)` with its default batch size. Where there is no ffprobe, as with the ffmpeg of
imageio-ffmpeg, the probe is `ffmpeg -i`, which costs about the same.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from worker.audio import ffmpeg

MAX_ITEMS, MAX_SEC = 16, 1200.0


def to_wav(source: Path, folder: Path) -> Path:
    target = folder / f"{source.name}.wav"
    command = [ffmpeg.executable(), "-v", "error", "-y", "-i", str(source), "-ar", "16000", "-ac", "1", str(target)]
    subprocess.run(command, check=True)
    return target


def duration(wav: Path) -> float:
    probe = shutil.which("ffprobe")
    if probe:
        command = [probe, "-v", "error", "-show_entries", "format=duration", "-of", "csv=p=0", str(wav)]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    said = subprocess.run([ffmpeg.executable(), "-i", str(wav)], check=False, capture_output=True, text=True).stderr
    hours, minutes, seconds = re.search(r"Duration: (\d+):(\d+):([\d.]+)", said).groups()
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def pack(wavs: list[tuple[Path, float]]) -> list[list[Path]]:
    batches: list[list[Path]] = []
    total = 0.0
    for wav, seconds in wavs:
        if not batches or len(batches[-1]) == MAX_ITEMS or total + seconds > MAX_SEC:
            batches.append([])
            total = 0.0
        batches[-1].append(wav)
        total += seconds
    return batches


def transcribe(model: Any, sources: list[Path], folder: Path) -> list[str]:
    """The texts, in order."""
    wavs = [(wav, duration(wav)) for wav in (to_wav(source, folder) for source in sources)]
    return [
        hypothesis.text
        for batch in pack(wavs)
        for hypothesis in model.transcribe([str(path) for path in batch], verbose=False)
    ]
