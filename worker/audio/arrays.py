"""Audio in memory → files that the engine reads: arrays as WAV, bytes as they are, so that all of it is decoded one
way.

A file is written only when the engine asks for it, on the engine's own thread, and closed when that thread asks for
the next: ten thousand arrays need no more open files, nor disk, than the engine has readers.

An array is (samples,), (samples, channels) as soundfile reads it, or (channels, samples) as torchaudio loads it: of
two axes the
shorter is the channels, which are mixed down to one. Floats are nominally in [-1, 1], int16 in [-32768, 32767].
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from worker.errors import InputError, RequestError, SourceNotFound
from worker.types import SAMPLE_RATE

if TYPE_CHECKING:
    import numpy as np

CHANNELS = 64  # most that an array may have: more is an axis of something else
RATES = (1_000, 768_000)


class MemoryFiles:
    """What one request holds in memory. `folder`: where its files pass through. `close` when the request is done."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lent: dict[int, BinaryIO] = {}
        self._closed = False
        self._lock = threading.Lock()

    def hold(self, audio: Any, sample_rate: int | None) -> BinaryIO:
        """What the engine takes for an open file. Raises RequestError for an array without a sample rate."""
        if isinstance(audio, bytes | bytearray | memoryview):
            data = audio
            return cast(BinaryIO, _Held(lambda: self._lend(lambda file: file.write(data))))
        if sample_rate is None:
            raise RequestError("an array needs its sample_rate", param="sample_rate")
        if not RATES[0] <= sample_rate <= RATES[1]:
            raise RequestError(
                f"sample_rate is in Hz, from {RATES[0]} to {RATES[1]}, not {sample_rate}", param="sample_rate"
            )
        rate = sample_rate
        return cast(BinaryIO, _Held(lambda: self._lend(lambda file: _write(file, audio, rate))))

    def copy(self, path: str) -> BinaryIO:
        """The same for a file whose name no payload can hold: its bytes are not UTF-8."""
        return cast(BinaryIO, _Held(lambda: self._lend(lambda file: _copy(path, file))))

    def close(self) -> None:
        """Closes what is open; what the engine asks for afterwards is gone."""
        with self._lock:
            self._closed = True
            for file in self._lent.values():
                file.close()
            self._lent.clear()

    def _lend(self, write: Callable[[BinaryIO], Any]) -> int:
        """A descriptor that lasts until this thread asks for the next. Raises ValueError when the request is over."""
        self._folder.mkdir(parents=True, exist_ok=True)
        file = cast(BinaryIO, tempfile.TemporaryFile(dir=self._folder))  # noqa: SIM115  it outlasts this call
        try:
            write(file)
            file.flush()
        except BaseException:
            file.close()
            raise
        with self._lock:
            if self._closed:
                file.close()
                raise ValueError("the request is over")
            before = self._lent.get(threading.get_ident())
            self._lent[threading.get_ident()] = file
        if before is not None:
            before.close()
        return file.fileno()


class _Held:
    """The part of a file that the engine uses."""

    def __init__(self, fileno: Callable[[], int]) -> None:
        self.fileno = fileno


def mono(audio: Any) -> np.ndarray:
    """The array as (samples,) of float32, or of int16 where it was that and had one channel. Raises InputError."""
    import numpy as np

    try:
        array = np.asarray(audio)
    except Exception as error:  # a tensor on another device, or one that needs a gradient
        raise InputError(f"cannot be read as an array: {error}") from error
    if array.dtype != np.int16 and array.dtype.kind != "f":
        raise InputError(f"an array of audio holds floats or int16, not {array.dtype}")
    if array.ndim == 2 and 1 in array.shape:
        array = array.reshape(-1)
    if array.ndim == 1:
        return array if array.dtype == np.int16 else array.astype(np.float32, copy=False)
    if array.ndim != 2 or array.shape[0] == array.shape[1] or min(array.shape) > CHANNELS:
        raise InputError(
            f"an array of audio is (samples,), (samples, channels) or (channels, samples), not {array.shape}"
        )
    mixed: np.ndarray = array.mean(axis=int(np.argmin(array.shape)), dtype=np.float32)
    return mixed / 32_768 if array.dtype == np.int16 else mixed


def _copy(path: str, file: BinaryIO) -> None:
    try:
        with open(path, "rb") as original:
            shutil.copyfileobj(original, file)
    except OSError as error:
        raise SourceNotFound(f"cannot read {path.encode('utf-8', 'replace').decode()}: {error.strerror}") from error


def _write(file: BinaryIO, audio: Any, rate: int) -> None:
    """The array as a WAV file."""
    import soundfile

    samples = mono(audio)
    if rate != SAMPLE_RATE and (resampled := _by_torchaudio(samples, rate)) is not None:
        samples, rate = resampled, SAMPLE_RATE
    subtype = "PCM_16" if samples.dtype.kind == "i" else "FLOAT"
    with soundfile.SoundFile(file.fileno(), "w", rate, 1, subtype, format="WAV", closefd=False) as wav:
        wav.write(samples)


def _by_torchaudio(samples: np.ndarray, rate: int) -> np.ndarray | None:
    """The samples at 16 kHz, resampled on the GPU; None where there is none or no torchaudio, and the decoder does it.

    A model without torch brings none into the process for this.
    """
    import numpy as np

    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    try:
        from torchaudio.functional import resample
    except (ImportError, OSError):  # it loads only beside the torch it was built for
        return None
    floats = samples.astype(np.float32) / 32_768 if samples.dtype == np.int16 else samples
    done: np.ndarray = resample(torch.from_numpy(floats).cuda(), rate, SAMPLE_RATE).cpu().numpy()
    return done
