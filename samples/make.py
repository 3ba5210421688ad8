"""Makes the sample clips beside this file: flite speaks, ffmpeg encodes, pocketsphinx must hear every word.

Takes nothing, gives one file a clip and `texts.json` {file name: words}; exits 1 when a clip is misheard.
    python samples/make.py          make, then check
    python samples/make.py --check  only check what is there
Needs flite with the voices slt and rms for making (a package of most distributions); checking needs only Python's.
Another version of flite or ffmpeg gives other bytes, and may give a clip that is misheard: change its sentence then.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import imageio_ffmpeg
import pocketsphinx
import soundfile

HERE = Path(__file__).resolve().parent
TEXTS = HERE / "texts.json"
MAX_BYTES = 60_000
RATE = 16_000


@dataclass(frozen=True)
class Sample:
    """One clip: its name, who says what, and how ffmpeg encodes it."""

    name: str
    voice: str
    text: str
    encoding: tuple[str, ...]
    picture: bool = False


CD = ("-ar", "44100", "-ac", "2")
AAC, MP3, OPUS = ("-c:a", "aac"), ("-c:a", "libmp3lame"), ("-c:a", "libopus")

SAMPLES = (
    Sample("doctor.flac", "slt", "the doctor will see you in twenty minutes", ("-c:a", "flac")),
    Sample("people.mp3", "rms", "there were more than two hundred people in the room", (*MP3, "-b:a", "40k")),
    Sample("monday.m4a", "slt", "we will meet again on monday at nine o'clock", (*CD, *AAC, "-b:a", "64k")),
    Sample("window.ogg", "rms", "she opened the window and looked out at the water", (*OPUS, "-b:a", "24k")),
    # ADPCM: the same as PCM would be four times the size.
    Sample("week.wav", "slt", "see you next week", (*CD, "-c:a", "adpcm_ima_wav")),
    Sample(
        "train.mp4",
        "slt",
        "the train to london leaves at seven thirty in the morning",
        (*AAC, "-b:a", "40k"),
        picture=True,
    ),
)


def ffmpeg() -> str:
    """The ffmpeg on PATH, else the one in imageio-ffmpeg's wheel."""
    return shutil.which("ffmpeg") or str(imageio_ffmpeg.get_ffmpeg_exe())


def make(sample: Sample, folder: Path) -> Path:
    """Writes the clip into the folder."""
    spoken, made = folder / "spoken.wav", folder / sample.name
    subprocess.run(["flite", "-voice", sample.voice, "-t", sample.text, "-o", str(spoken)], check=True)
    command = [ffmpeg(), "-v", "error", "-y", "-i", str(spoken)]
    if sample.picture:
        seconds = soundfile.info(spoken).duration
        command += ["-f", "lavfi", "-t", f"{seconds:.3f}", "-i", "color=c=navy:size=64x64:rate=5", "-c:v", "mpeg4"]
    command += ["-map_metadata", "-1", "-fflags", "+bitexact", "-flags", "+bitexact", *sample.encoding, str(made)]
    subprocess.run(command, check=True)
    return made


def heard(path: Path) -> str:
    """What pocketsphinx's own English model hears in the file, in one utterance."""
    command = [ffmpeg(), "-v", "error", "-i", str(path), "-ac", "1", "-ar", str(RATE), "-f", "s16le", "-"]
    pcm = subprocess.run(command, check=True, capture_output=True).stdout
    decoder = pocketsphinx.Decoder(loglevel="FATAL")
    decoder.start_utt()
    decoder.process_raw(pcm, full_utt=True)
    decoder.end_utt()
    best = decoder.hyp()
    return best.hypstr if best else ""


def check() -> int:
    """Compares every clip with its text; the number of faults, each told on stderr."""
    faults = 0
    for name, text in json.loads(TEXTS.read_text(encoding="utf-8")).items():
        path = HERE / name
        words, size = heard(path), path.stat().st_size
        fault = f"misheard as {words!r}" if words != text else f"over {MAX_BYTES} bytes" if size > MAX_BYTES else None
        sys.stderr.write(f"{name:12} {size:6} bytes  {text}: {fault or 'heard'}\n")
        faults += fault is not None
    return faults


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Make the sample clips and check that they are understood.")
    parser.add_argument("--check", action="store_true", help="only check the clips that are there")
    if not parser.parse_args().check:
        if shutil.which("flite") is None:
            parser.error("flite is not on PATH; only --check works without it")
        with tempfile.TemporaryDirectory() as folder:
            for sample in SAMPLES:
                shutil.copyfile(make(sample, Path(folder)), HERE / sample.name)
        TEXTS.write_text(json.dumps({s.name: s.text for s in SAMPLES}, indent=2) + "\n", encoding="utf-8")
    return 1 if check() else 0


if __name__ == "__main__":
    sys.exit(main())
