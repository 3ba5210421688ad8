"""Load a model in this process and transcribe files, with no server.

Run this example from the root of the repository:

    .venv/bin/python -m examples.python_api
"""

from __future__ import annotations

import worker
from worker import Failure

CLIPS = ["samples/doctor.flac", "samples/people.mp3", "samples/missing.wav"]


def main() -> None:
    """Print the words of one clip with their times, then the transcripts of several clips as they finish."""
    with worker.load_model(model="pocketsphinx") as bundle:
        # One input: the call returns its answer, or raises an AviaryError.
        answer = bundle.transcribe("samples/week.wav", timestamps=True)
        for word in answer.output.words:
            print(f"{word.start:5.2f} s  {word.text}")

        # Several inputs share batches. An input that fails yields a Failure; the others are not affected.
        for result in bundle.as_completed("transcribe", CLIPS):
            if isinstance(result, Failure):
                print(f"{CLIPS[result.index]}: error {result.error.code}: {result.error}")
            else:
                print(f"{result.file}: {result.output.text}")


if __name__ == "__main__":
    main()
