"""A plain worker as many services have it, for comparison: correct, without any optimization.

It runs one ffmpeg to a temporary WAV and one probe per file, one after another. Batches of up to 16 clips and 1,200
seconds are packed in the order of arrival and passed to `model.transcribe(paths)` with its default batch size. Without
ffprobe, which imageio-ffmpeg does not contain, the probe is `ffmpeg -i`, which takes about as long.
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
    """Convert a file to 16 kHz mono WAV in the folder, and return the path."""
    target = folder / f"{source.name}.wav"
    command = [ffmpeg.executable(), "-v", "error", "-y", "-i", str(source), "-ar", "16000", "-ac", "1", str(target)]
    subprocess.run(command, check=True)
    return target


def duration(wav: Path) -> float:
    """Return the duration of a file in seconds, according to ffprobe or ffmpeg."""
    probe = shutil.which("ffprobe")
    if probe:
        command = [probe, "-v", "error", "-show_entries", "format=duration", "-of", "csv=p=0", str(wav)]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    output = subprocess.run([ffmpeg.executable(), "-i", str(wav)], check=False, capture_output=True, text=True).stderr
    hours, minutes, seconds = re.search(r"Duration: (\d+):(\d+):([\d.]+)", output).groups()
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def pack(wavs: list[tuple[Path, float]]) -> list[list[Path]]:
    """Pack files, given with their seconds, into batches of up to MAX_ITEMS files and MAX_SEC seconds."""
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
    """Return the texts of the files, in order."""
    wavs = [(wav, duration(wav)) for wav in (to_wav(source, folder) for source in sources)]
    return [
        hypothesis.text
        for batch in pack(wavs)
        for hypothesis in model.transcribe([str(path) for path in batch], verbose=False)
    ]
