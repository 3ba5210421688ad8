"""Samples → the spans that contain speech, found by Silero's voice activity detector (VAD) on onnxruntime.

    samples ── frames of 32 ms ──▶ network ── probabilities ──▶ hysteresis, lengths, padding (Rules) ──▶ spans

`Detector` is the network alone, for audio that is still being spoken.

The weights are a file of the package `silero-vad`. This module reads the file without importing the package, which
requires torch. `is_available` says whether the file and onnxruntime are installed: requirements-cpu.txt and
requirements.txt contain both, requirements-base.txt contains neither.

The functions are thread-safe. The network is loaded once for each process, at its first use, and runs on the caller's
thread alone. Its memory does not grow with the length of the audio: the network takes 16 seconds at a time and keeps
its state between.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import math
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from worker.errors import Cancelled, ModelUnavailable
from worker.types import SAMPLE_RATE

# What the network was made for: frames of 512 samples, each after the last 64 samples of the frame before.
FRAME, CONTEXT, STATE = 512, 64, (1, 1, 128)
BLOCK = 512  # frames that the network takes at a time

# Silero's own defaults. Speech starts at the first probability and ends below the second.
STARTS, ENDS = 0.5, 0.35
MIN_SPEECH_SEC = 0.25  # shorter speech is left out
MIN_SILENCE_SEC = 0.1  # shorter silence belongs to the speech around it
PAD_SEC = 0.03  # spans begin and end this much outside of what the network reports; less than half of MIN_SILENCE_SEC
CUT_SEC = 0.098  # the shortest silence at which speech that is too long is cut

_WEIGHTS = Path("data", "silero_vad_16k_sequence.onnx")
_loading = threading.Lock()


@dataclass(frozen=True, slots=True)
class Rules:
    """What counts as one span of speech. Lengths are in seconds. The defaults are Silero's own."""

    starts: float = STARTS
    """The probability at which speech starts."""
    ends: float = ENDS
    """The probability below which speech ends."""
    min_speech_sec: float = MIN_SPEECH_SEC
    """Speech that is not longer is left out."""
    max_speech_sec: float = math.inf
    """Longer speech is cut at its last silence of CUT_SEC, or at this length if it has none. Padding counts."""
    min_silence_sec: float = MIN_SILENCE_SEC
    """Shorter silence belongs to the speech around it."""
    pad_sec: float = PAD_SEC
    """How much a span is longer at each end. Two spans share the silence between them if it is too short for both."""


_RULES = Rules()


def is_available() -> bool:
    """Return whether `speech` can run: whether onnxruntime and the weights are installed."""
    return importlib.util.find_spec("onnxruntime") is not None and _weights() is not None


def speech(
    samples: np.ndarray, cancelled: Callable[[], bool] = lambda: False, rules: Rules = _RULES
) -> list[tuple[float, float]]:
    """Return the spans (start, end) in seconds that contain speech, in order and without overlap.

    `samples` is float32 of shape (samples,), 16 kHz. `cancelled` is called every 16 seconds of audio.

    Raises: ModelUnavailable if onnxruntime or the weights are not installed; Cancelled once `cancelled` returns True.
    """
    length_sec = len(samples) / SAMPLE_RATE
    spans = list(_spans(probabilities(samples, cancelled), length_sec, rules))
    return _padded(spans, rules.pad_sec, length_sec)


def probabilities(samples: np.ndarray, cancelled: Callable[[], bool] = lambda: False) -> Iterator[float]:
    """Yield the probability of speech in each frame of FRAME samples. The last frame may be padded with zeros.

    Raises: ModelUnavailable if onnxruntime or the weights are not installed; Cancelled once `cancelled` returns True.
    """
    detector = Detector()
    for first in range(0, len(samples), BLOCK * FRAME):
        if cancelled():
            raise Cancelled("the request was canceled")
        part = samples[first : first + BLOCK * FRAME]
        yield from detector.probabilities(np.pad(part, (0, -len(part) % FRAME)))


class Detector:
    """The network with its state, for audio that arrives bit by bit. For one thread at a time.

    Raises ModelUnavailable if onnxruntime or the weights are not installed.
    """

    def __init__(self) -> None:
        self._network = _session()
        self._hidden = self._cell = np.zeros(STATE, np.float32)
        self._context = np.zeros(CONTEXT, np.float32)

    def probabilities(self, samples: np.ndarray) -> list[float]:
        """Return the probability of speech in each frame. `samples` are the next ones, in whole frames."""
        found: list[float] = []
        for first in range(0, len(samples), BLOCK * FRAME):
            padded = np.concatenate((self._context, samples[first : first + BLOCK * FRAME]))
            self._context = padded[-CONTEXT:]
            frames = np.lib.stride_tricks.sliding_window_view(padded, CONTEXT + FRAME)[::FRAME]
            values, self._hidden, self._cell = self._network.run(
                ["speech_probs", "hn", "cn"],
                {"input": np.ascontiguousarray(frames), "h": self._hidden, "c": self._cell},
            )
            found += values.ravel().tolist()
        return found


def _spans(probabilities: Iterable[float], length_sec: float, rules: Rules = _RULES) -> Iterator[tuple[float, float]]:
    """Yield the start and the end of each speech in seconds, without padding."""
    longest_sec = max(FRAME / SAMPLE_RATE, rules.max_speech_sec - 2 * rules.pad_sec)
    start: float | None = None
    silent_since: float | None = None
    cut: tuple[float, float] | None = None  # the last silence inside of the speech at which it may be cut
    for number, probability in enumerate(probabilities):
        now = number * FRAME / SAMPLE_RATE
        if start is not None and now + FRAME / SAMPLE_RATE - start > longest_sec:
            end, resumes = _cut(now, silent_since, cut)
            if end - start > rules.min_speech_sec:
                yield start, end
            start, cut = resumes, None
            silent_since = None if resumes is None else silent_since
        if probability >= rules.starts:
            if silent_since is not None and now - silent_since >= CUT_SEC:
                cut = silent_since, now
            start, silent_since = now if start is None else start, None
        elif probability < rules.ends and start is not None:
            silent_since = now if silent_since is None else silent_since
            if now - silent_since >= rules.min_silence_sec:
                if silent_since - start > rules.min_speech_sec:
                    yield start, silent_since
                start = silent_since = cut = None
    if start is not None and length_sec - start > rules.min_speech_sec:
        yield start, length_sec


def _cut(now: float, silent_since: float | None, cut: tuple[float, float] | None) -> tuple[float, float | None]:
    """Return where speech that is too long ends, and where it resumes. None: it is silent now."""
    if silent_since is not None and (cut is None or now - silent_since >= CUT_SEC):
        return silent_since, None
    return cut or (now, now)


def _padded(spans: list[tuple[float, float]], pad_sec: float, length_sec: float) -> list[tuple[float, float]]:
    """Return the spans with padding at both ends, half of the silence between two of them at most."""
    middles = [(end + start) / 2 for (_, end), (start, _) in itertools.pairwise(spans)]
    return [
        (max(before, start - pad_sec), min(after, end + pad_sec))
        for (start, end), before, after in zip(spans, [0.0, *middles], [*middles, length_sec], strict=False)
    ]


def _session() -> Any:
    with _loading:
        return _load()


@functools.cache
def _load() -> Any:
    """Return the network, which runs on the caller's thread."""
    weights = _weights()
    if not is_available() or weights is None:
        raise ModelUnavailable(
            "Detecting speech requires onnxruntime and the weights of silero-vad. Run pip install onnxruntime && "
            "pip install --no-deps silero-vad"
        )
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(weights), options, providers=["CPUExecutionProvider"])


def _weights() -> Path | None:
    """Return the file of the weights, or None if silero-vad is not installed."""
    package = importlib.util.find_spec("silero_vad")
    folders = (package.submodule_search_locations if package else None) or ()
    return next((path for folder in folders if (path := Path(folder) / _WEIGHTS).is_file()), None)
