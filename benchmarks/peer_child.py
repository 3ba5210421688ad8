"""Transcribe with faster-whisper what each line of the standard input asks for, and print one line of JSON for each.

    python peer_child.py MODEL THREADS        in the environment that peer.py makes

A line has `path` (an .npy of float32 samples at 16 kHz), `batched` and `words`. The answer has `seconds`, `text` and
`words`: [text, start, end].
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
from faster_whisper import BatchedInferencePipeline, WhisperModel


def main() -> None:
    """Answer every line of the standard input."""
    model = WhisperModel(sys.argv[1], device="cpu", compute_type="float32", cpu_threads=int(sys.argv[2]))
    batched = BatchedInferencePipeline(model)
    for line in sys.stdin:
        request = json.loads(line)
        samples = np.load(request["path"])
        options = {"language": "en", "beam_size": 1, "temperature": 0.0, "word_timestamps": request["words"]}
        started = time.perf_counter()
        if request["batched"]:
            segments, _ = batched.transcribe(samples, batch_size=16, **options)
        else:
            segments, _ = model.transcribe(samples, condition_on_previous_text=False, **options)
        segments = list(segments)
        answer = {
            "seconds": time.perf_counter() - started,
            "text": " ".join(segment.text.strip() for segment in segments),
            "words": [[word.word, word.start, word.end] for segment in segments for word in segment.words or ()],
        }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
