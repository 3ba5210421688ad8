"""The process in which pocketsphinx hears: it holds Python's interpreter lock all the while, which a server cannot
spare.

Run with -m, it answers on stdout to what comes on stdin: first {"ready": true} or {"error": text}, then for each clip
(a little-endian uint32 of its bytes, and those: int16 at 16 kHz) a line of JSON, {"words": [[word, start, end] …]} in
seconds. It ends when stdin does.

Each clip is heard by a decoder in its first state, because the engine adapts its noise tracking and its mean
normalisation to what it heard before, and a text must not depend on that.
"""

from __future__ import annotations

import json
import os
import struct
import sys
from typing import Any

RATE = 16_000
FILLER = ("<", "[", "+")


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the engine prints is no answer
    try:
        import pocketsphinx

        decoder = pocketsphinx.Decoder(samprate=RATE, loglevel="FATAL")
    except Exception as error:  # noqa: BLE001  the other side tells it
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=answers, flush=True)
        return
    fresh_cmn = decoder.get_cmn(False)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    while head := sys.stdin.buffer.read(4):
        pcm = sys.stdin.buffer.read(struct.unpack("<I", head)[0])
        print(json.dumps({"words": hear(decoder, fresh_cmn, pcm)}), file=answers, flush=True)


def hear(decoder: Any, fresh_cmn: str, pcm: bytes) -> list[tuple[str, float, float]]:
    decoder.reinit_feat()  # noise tracking, which set_cmn leaves as the clip before left it
    decoder.set_cmn(fresh_cmn)
    decoder.start_utt()
    decoder.process_raw(pcm, full_utt=True)
    decoder.end_utt()
    if decoder.hyp() is None:
        return []
    frame_sec = 1 / decoder.config["frate"]
    # Without the number of its pronunciation: 'the(2)' is 'the'.
    return [
        (one.word.split("(", 1)[0], one.start_frame * frame_sec, (one.end_frame + 1) * frame_sec)
        for one in decoder.seg()
        if not one.word.startswith(FILLER)
    ]


if __name__ == "__main__":
    main()
