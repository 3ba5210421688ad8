"""Make the sample clips in this folder: flite speaks, ffmpeg encodes, and pocketsphinx must transcribe every word.

    python samples/make.py            make the clips and texts.json {file name: words}, then check them
    python samples/make.py --page     only join clips to the sample of the server's page, and check it
    python samples/make.py --check    only check the clips in the folder, and the sample of the page

The exit code is 1 if a clip is transcribed wrongly or is too large. Making clips requires flite with the voices slt and
rms, a package of most distributions; checking requires only Python packages. Another version of flite or ffmpeg yields
other bytes and may yield a clip that is transcribed wrongly: change its sentence then.
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
PAGE_SAMPLE = HERE.parent / "worker" / "entrypoints" / "http" / "ui" / "sample.mp3"
PAGE_CLIPS = ("people.mp3", "doctor.flac", "monday.m4a")
MAX_BYTES = 60_000
RATE = 16_000


@dataclass(frozen=True)
class Sample:
    """A clip: its file name, the voice and the text, ffmpeg's arguments, and whether it has a video track."""

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
    # ADPCM, because PCM would take four times the size.
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
    """Return the path of ffmpeg: the one on PATH, or the one in imageio-ffmpeg's wheel."""
    return shutil.which("ffmpeg") or str(imageio_ffmpeg.get_ffmpeg_exe())


def make(sample: Sample, folder: Path) -> Path:
    """Write the clip to the folder, and return its path."""
    spoken, clip = folder / "spoken.wav", folder / sample.name
    subprocess.run(["flite", "-voice", sample.voice, "-t", sample.text, "-o", str(spoken)], check=True)
    command = [ffmpeg(), "-v", "error", "-y", "-i", str(spoken)]
    if sample.picture:
        seconds = soundfile.info(spoken).duration
        command += ["-f", "lavfi", "-t", f"{seconds:.3f}", "-i", "color=c=navy:size=64x64:rate=5", "-c:v", "mpeg4"]
    command += ["-map_metadata", "-1", "-fflags", "+bitexact", "-flags", "+bitexact", *sample.encoding, str(clip)]
    subprocess.run(command, check=True)
    return clip


def join(names: tuple[str, ...], target: Path) -> None:
    """Write the clips, each with 2.2 s of silence after it, as one file."""
    inputs = [argument for name in names for argument in ("-i", str(HERE / name))]
    padded = "".join(
        f"[{i}:a]aresample={RATE},aformat=channel_layouts=mono,apad=pad_dur=2.2[{i}];" for i in range(len(names))
    )
    joined = "".join(f"[{i}]" for i in range(len(names))) + f"concat=n={len(names)}:v=0:a=1"
    command = [ffmpeg(), "-v", "error", "-y", *inputs, "-filter_complex", padded + joined]
    command += ["-map_metadata", "-1", "-fflags", "+bitexact", "-flags", "+bitexact", *MP3, "-b:a", "24k", str(target)]
    subprocess.run(command, check=True)


def transcribe(path: Path) -> str:
    """Return the text of the file, as one utterance, according to pocketsphinx's own English model."""
    command = [ffmpeg(), "-v", "error", "-i", str(path), "-ac", "1", "-ar", str(RATE), "-f", "s16le", "-"]
    pcm = subprocess.run(command, check=True, capture_output=True).stdout
    decoder = pocketsphinx.Decoder(loglevel="FATAL")
    decoder.start_utt()
    decoder.process_raw(pcm, full_utt=True)
    decoder.end_utt()
    best = decoder.hyp()
    return best.hypstr if best else ""


def check() -> int:
    """Compare every clip with its text, report each on stderr, and return the number of faults."""
    faults, texts = 0, json.loads(TEXTS.read_text(encoding="utf-8"))
    clips = {HERE / name: text for name, text in texts.items()}
    for path, text in {**clips, PAGE_SAMPLE: " ".join(texts[name] for name in PAGE_CLIPS)}.items():
        words, size = transcribe(path), path.stat().st_size
        fault = (
            f"transcribed as {words!r}" if words != text else f"over {MAX_BYTES} bytes" if size > MAX_BYTES else None
        )
        sys.stderr.write(f"{path.name:12} {size:6} bytes  {text}: {fault or 'ok'}\n")
        faults += fault is not None
    return faults


def main() -> int:
    """Run the command line, and return the exit code."""
    parser = argparse.ArgumentParser(description="Make the sample clips and check their transcripts.")
    parser.add_argument("--check", action="store_true", help="only check the clips in the folder")
    parser.add_argument("--page", action="store_true", help="only join clips to the sample of the page")
    typed = parser.parse_args()
    if not typed.check and not typed.page:
        if shutil.which("flite") is None:
            parser.error("flite is not on PATH; only --check works without it")
        with tempfile.TemporaryDirectory() as folder:
            for sample in SAMPLES:
                shutil.copyfile(make(sample, Path(folder)), HERE / sample.name)
        TEXTS.write_text(json.dumps({s.name: s.text for s in SAMPLES}, indent=2) + "\n", encoding="utf-8")
    if not typed.check:
        join(PAGE_CLIPS, PAGE_SAMPLE)
    return 1 if check() else 0


if __name__ == "__main__":
    sys.exit(main())
