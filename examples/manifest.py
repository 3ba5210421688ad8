"""Transcribe every line of a JSONL manifest with a server. A second run resumes where the first one stopped.

Start a server, then run this example from the root of the repository:

    MODEL=pocketsphinx .venv/bin/python -m worker serve
    .venv/bin/python -m examples.manifest FOLDER [http://127.0.0.1:8000]
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from worker import process_manifest

CLIPS = ["week.wav", "doctor.flac", "people.mp3"]


def main(folder: str, server: str = "http://127.0.0.1:8000") -> None:
    """Write a manifest of the samples to the folder, process it, and print the transcripts."""
    manifest = Path(folder, "samples.jsonl")
    lines = [{"audio_filepath": str(Path("samples", clip).resolve()), "clip": clip} for clip in CLIPS]
    manifest.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")

    # The output has every field of the input lines, and a `pred_text` or an `error` in each line.
    output = asyncio.run(process_manifest(manifest, folder, server, task="transcribe", model="pocketsphinx"))
    for line in output.read_text(encoding="utf-8").splitlines():
        result = json.loads(line)
        print(f"{result['clip']}: {result.get('pred_text', result.get('error'))}")


if __name__ == "__main__":
    main(*sys.argv[1:])
