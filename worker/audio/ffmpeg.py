"""The ffmpeg program, and the command that decodes a file to 16 kHz mono float32 in isolation.

The input is a file descriptor, never a name. Of ffmpeg's protocols only `file` is allowed, which the descriptor
requires. Of its formats only those are allowed that contain the audio themselves: none that can refer to another file
(playlists, concat, DASH, images).
"""

from __future__ import annotations

import functools
import shutil

from worker.errors import FfmpegMissing
from worker.types import SAMPLE_RATE

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


def command(descriptor: int) -> list[str]:
    """Return the command that writes the file's first audio track to stdout as little-endian float32, 16 kHz, mono.

    The downmix keeps the weights of the channel layout but scales them to a sum of 1 (rematrix_maxval), which prevents
    clipping.
    """
    import ffmpeg

    stream = ffmpeg.input(f"/dev/fd/{descriptor}", protocol_whitelist="file", format_whitelist=FORMATS)
    stream = ffmpeg.output(
        stream["a:0"],
        "pipe:1",
        format="f32le",
        acodec="pcm_f32le",
        ac=1,
        ar=SAMPLE_RATE,
        af="aresample=rematrix_maxval=1.0",
    )
    stream = stream.global_args("-nostdin", "-hide_banner", "-v", "error", "-threads", "1")
    return [str(part) for part in ffmpeg.compile(stream, cmd=executable())]
