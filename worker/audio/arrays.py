"""Audio in memory: arrays as WAV files, and the bytes of files, as the engine and the client read them.

    memory_source(audio, rate, name)   a Source of kind "memory", which writes its audio when the engine reads it
    frames(array)                      any array as (samples,) or (samples, channels)
    mono(array)                        any array as (samples,)
    is_several(audio)                  whether a value is several inputs, such as a list, rather than one
    write_wav(file, samples, rate)     the writer of WAV files, for the engine and the client

The engine gives a memory source an unnamed file when it reads the source, and closes the file when it has decoded it:
ten thousand arrays need no more open files, nor disk space, than the engine has readers.

An array is (samples,), (samples, channels) as soundfile returns it, or (channels, samples) as torchaudio does: of two
axes, the shorter one is the channels. Its values are floats, nominally in [-1, 1], or integers of 16 or 32 bits, which
use the whole range.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO

from worker.errors import EmptyAudio, InputError, RequestError
from worker.types import SAMPLE_RATE, Source

if TYPE_CHECKING:
    import numpy as np

CHANNELS = 64  # the most channels of an array: a longer axis is not one of channels
RATES = (1_000, 768_000)  # the lowest and the highest sample rate, in Hz
_SUBTYPES = {"int16": "PCM_16", "int32": "PCM_32", "float32": "FLOAT"}


def memory_source(audio: Any, sample_rate: int | None, name: str, *, split: bool = False) -> Source:
    """Return the source of an array, or of the bytes of a file.

    sample_rate: of an array, in Hz. name: names the source for people. split: whether an array keeps its channels.
    Raises RequestError for an array with no sample rate or one that is out of range. Reading the source raises
    InputError for an array that is not audio.
    """
    if isinstance(audio, bytes | bytearray | memoryview):
        return Source("memory", name, write=functools.partial(_write_bytes, audio))
    if sample_rate is None:
        raise RequestError("an array needs its sample_rate", param="sample_rate")
    if not RATES[0] <= sample_rate <= RATES[1]:
        raise RequestError(
            f"sample_rate is in Hz, from {RATES[0]} to {RATES[1]}, not {sample_rate}", param="sample_rate"
        )
    return Source("memory", name, write=functools.partial(_write_array, audio, sample_rate, split))


def is_several(audio: Any) -> bool:
    """Return whether a value is several inputs: anything to iterate over, a Series or an array of paths included.

    One input is a path, bytes, or an array of numbers. An open file is no input, nor several.
    """
    if isinstance(audio, str | os.PathLike | bytes | bytearray | memoryview | Mapping) or hasattr(audio, "read"):
        return False
    if hasattr(audio, "__array__"):
        return getattr(getattr(audio, "dtype", None), "kind", None) in ("O", "U")  # Python objects, or strings
    return isinstance(audio, Iterable)


def frames(audio: Any) -> np.ndarray:
    """Return the array as float32, int16 or int32 of shape (samples,) or (samples, channels).

    Raises InputError for an array that is not audio, EmptyAudio for one without samples.
    """
    import numpy as np

    try:
        array = np.asarray(audio)
    except Exception as error:  # a tensor on another device, or one that requires a gradient
        raise InputError(f"cannot be read as an array: {error}", param="audio") from error
    if array.dtype.kind == "f":
        array = array.astype(np.float32, copy=False)
    if array.dtype.name not in _SUBTYPES:
        raise InputError(f"an array of audio holds floats, int16 or int32, not {array.dtype}", param="audio")
    array = array.astype(array.dtype.name, copy=False)  # in the byte order of this machine
    if not array.size:
        raise EmptyAudio("the array holds no samples")
    if array.ndim == 2 and 1 in array.shape:
        array = array.reshape(-1)
    if array.ndim == 1:
        return array
    if array.ndim != 2 or array.shape[0] == array.shape[1] or min(array.shape) > CHANNELS:
        raise InputError(
            f"an array of audio is (samples,), (samples, channels) or (channels, samples), not {array.shape}",
            param="audio",
        )
    return array if array.shape[0] > array.shape[1] else array.T


def mono(audio: Any) -> np.ndarray:
    """Return the array with its channels mixed by their mean, of shape (samples,). Raises as `frames`.

    The result is float32, or integers if the array holds integers in one channel.
    """
    import numpy as np

    array = frames(audio)
    if array.ndim == 1:
        return array
    mixed: np.ndarray = array.mean(axis=1, dtype=np.float32)
    return mixed / _full_scale(array)


def write_wav(file: BinaryIO, samples: np.ndarray, sample_rate: int) -> None:
    """Write samples, as `frames` returns them, into an empty file as WAV, without changing a value."""
    import soundfile

    channels = 1 if samples.ndim == 1 else samples.shape[1]
    subtype = _SUBTYPES[samples.dtype.name]
    with soundfile.SoundFile(file, "w", sample_rate, channels, subtype, format="WAV") as wav:
        wav.write(samples)


def _full_scale(array: np.ndarray) -> int:
    """Return the value that stands for 1.0."""
    return 1 if array.dtype.kind == "f" else 1 << (8 * array.dtype.itemsize - 1)


def _write_bytes(data: bytes | bytearray | memoryview, file: BinaryIO) -> None:
    file.write(data)


def _write_array(audio: Any, sample_rate: int, split: bool, file: BinaryIO) -> None:
    samples = frames(audio) if split else mono(audio)
    resampled = None if sample_rate == SAMPLE_RATE else _resample_on_gpu(samples, sample_rate)
    if resampled is None:
        write_wav(file, samples, sample_rate)
    else:
        write_wav(file, resampled, SAMPLE_RATE)


def _resample_on_gpu(samples: np.ndarray, sample_rate: int) -> np.ndarray | None:
    """Return the samples at 16 kHz, or None without a GPU or torchaudio: the decoder then resamples them.

    Both are as `frames` returns them. torch is used only if a model has imported it already.
    """
    import numpy as np

    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    try:
        from torchaudio.functional import resample
    except (ImportError, OSError):  # torchaudio loads only beside the version of torch that it was built for
        return None
    floats = samples.astype(np.float32) / _full_scale(samples)
    channels = torch.from_numpy(np.ascontiguousarray(floats.T)).cuda()
    resampled: np.ndarray = resample(channels, sample_rate, SAMPLE_RATE).cpu().numpy()
    return resampled.T
