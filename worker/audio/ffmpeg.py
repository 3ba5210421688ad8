"""The ffmpeg program, and the command that decodes a file to 16 kHz mono float32 in isolation.

The input is a file descriptor, never a name. Of ffmpeg's protocols only `file` is allowed, which the descriptor
requires. Of its formats only those are allowed that contain the audio themselves: none that can refer to another file
(playlists, concat, DASH, images).
"""

from __future__ import annotations

import functools
import shutil
import struct

import numpy as np

from worker.errors import FfmpegMissing
from worker.types import SAMPLE_RATE

MOST_CHANNELS = 64  # that are split; ffmpeg converts no more
TOO_MANY = f"the audio has more than {MOST_CHANNELS} channels, so they cannot be split; set channels to mix"
_AU = struct.Struct(">4s5I")  # the header of an AU file, which says how many channels there are
AU_BYTES = 32  # of the header and of the annotation that follows it

# Demuxers of single files. hls, concat, dash, sdp, image2, lavfi and every other demuxer that opens further files are
# left out on purpose.
FORMATS = (
    "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,dsf,dts,dtshd,eac3,flac,flv,gsm,iff,loas,matroska,webm,mov,mp4,m4a,"
    "3gp,3g2,mp2,mp3,mpc,mpc8,mpeg,mpegts,mxf,nist,nut,ogg,oma,qcp,rm,sox,spdif,tak,truehd,tta,voc,w64,wav,wv,xwma"
)


@functools.cache
def executable() -> str:
    """Return the path of ffmpeg: the one on PATH, or the one in imageio-ffmpeg's wheel.

    Raises FfmpegMissing if there is neither.
    """
    path = shutil.which("ffmpeg")
    if path:
        return path
    try:
        import imageio_ffmpeg

        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, RuntimeError) as error:
        raise FfmpegMissing("ffmpeg was not found. Install ffmpeg, or run: pip install imageio-ffmpeg") from error


def command(descriptor: int, split: bool = False) -> list[str]:
    """Return the command that writes the file's first audio track to stdout as float32 of 16 kHz: see `samples`.

    The channels are mixed unless they are to be `split`. The downmix keeps the weights of the channel layout but scales
    them to a sum of 1 (rematrix_maxval), which prevents clipping.
    """
    import ffmpeg

    mixed = {"format": "f32le", "acodec": "pcm_f32le", "ac": 1, "af": "aresample=rematrix_maxval=1.0"}
    apart = {"format": "au", "acodec": "pcm_f32be"}
    stream = ffmpeg.input(f"/dev/fd/{descriptor}", protocol_whitelist="file", format_whitelist=FORMATS)
    stream = ffmpeg.output(stream["a:0"], "pipe:1", ar=SAMPLE_RATE, **(apart if split else mixed))
    stream = stream.global_args("-nostdin", "-hide_banner", "-v", "error", "-threads", "1")
    return [str(part) for part in ffmpeg.compile(stream, cmd=executable())]


def samples(written: bytes | bytearray, split: bool = False) -> np.ndarray:
    """Return the output of the command as float32 of shape (channels, samples).

    The output is little-endian samples of one channel, or, if `split`, an AU file.
    """
    if not split:
        return np.frombuffer(written, "<f4", count=len(written) // 4)[None]
    if len(written) < _AU.size:
        return np.empty((1, 0), np.float32)
    _magic, start, _size, _encoding, _rate, channels = _AU.unpack_from(written)
    frames = max(0, len(written) - start) // (4 * channels)
    audio = np.frombuffer(written, ">f4", count=frames * channels, offset=start if frames else 0)
    return np.ascontiguousarray(audio.reshape(frames, channels).T, np.float32)
