"""The child process that runs pocketsphinx.

Decoding holds Python's interpreter lock from start to end, so it must not run in the server's process.

Run with -m, the process writes a line of JSON to stdout for each message on stdin:

    at the start       {"ready": true} or {"error": text}
    for each clip      {"words": [[word, start, end, posterior] …]}, times in seconds

A clip is a little-endian uint32, the count of bytes, and that many bytes of int16 samples at 16 kHz. The process exits
at the end of stdin.

Each clip is decoded from the decoder's initial state, because the engine adapts its noise tracking and its mean
normalization to the clips before, and a transcript must not depend on those.
"""

from __future__ import annotations

import json
import os
import struct
import sys
from typing import Any

from worker import child

RATE = 16_000
FILLER = ("<", "[", "+")
LEAST = 1e-30  # the posterior that the engine rounds to 0, which has no logarithm


def main() -> None:
    """Transcribe the clips on stdin until it ends."""
    child.ignore_signals()
    messages = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the engine prints to stdout, which is for messages only
    try:
        import pocketsphinx

        decoder = pocketsphinx.Decoder(samprate=RATE, loglevel="FATAL")
    except Exception as error:  # noqa: BLE001  the parent process reports it
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=messages, flush=True)
        return
    initial_cmn = decoder.get_cmn(False)
    print(json.dumps({"ready": True}), file=messages, flush=True)
    while head := sys.stdin.buffer.read(4):
        pcm = sys.stdin.buffer.read(struct.unpack("<I", head)[0])
        print(json.dumps({"words": transcribe(decoder, initial_cmn, pcm)}), file=messages, flush=True)


def transcribe(decoder: Any, initial_cmn: str, pcm: bytes) -> list[tuple[str, float, float, float]]:
    """Return the words of a clip with their start and end in seconds, and their posterior probabilities.

    `pcm` are int16 samples at 16 kHz. `initial_cmn` is the decoder's cepstral mean before the first clip.
    """
    decoder.reinit_feat()  # resets the noise tracking, which set_cmn does not
    decoder.set_cmn(initial_cmn)
    decoder.start_utt()
    decoder.process_raw(pcm, full_utt=True)
    decoder.end_utt()
    if decoder.hyp() is None:
        return []
    frame_sec = 1 / decoder.config["frate"]
    # A word may carry the number of its pronunciation, which is dropped: 'the(2)' is 'the'.
    return [
        (
            segment.word.split("(", 1)[0],
            segment.start_frame * frame_sec,
            (segment.end_frame + 1) * frame_sec,
            min(max(segment.prob, LEAST), 1.0),  # the engine's sums in steps of 0.01% may exceed 1
        )
        for segment in decoder.seg()
        if not segment.word.startswith(FILLER)
    ]


if __name__ == "__main__":
    main()
