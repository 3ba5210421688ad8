"""ffmpeg: where it is, and the command that turns any file into 16 kHz mono float32 without letting it reach out.

The input is a file descriptor, never a name. Of ffmpeg's protocols only `file` is open, which the descriptor needs, and
of its formats only those that hold audio themselves: none that can point elsewhere (playlists, concat, DASH, images).
"""

from __future__ import annotations

import functools
import shutil

from worker.errors import FfmpegMissing
from worker.types import SAMPLE_RATE

# Demuxers of single files. Left out on purpose: hls, concat, dash, sdp, image2, lavfi and all else that opens further
# files.
FORMATS = (
    "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,dsf,dts,dtshd,eac3,flac,flv,gsm,iff,loas,matroska,webm,mov,mp4,m4a,"
    "3gp,3g2,mp2,mp3,mpc,mpc8,mpeg,mpegts,mxf,nist,nut,ogg,oma,qcp,rm,sox,spdif,tak,truehd,tta,voc,w64,wav,wv,xwma"
)


@functools.cache
def executable() -> str:
    """The ffmpeg to run: PATH's, else the one in imageio-ffmpeg's wheel. Raises FfmpegMissing."""
    found = shutil.which("ffmpeg")
    if found:
        return found
    try:
        import imageio_ffmpeg

        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, RuntimeError) as error:
        raise FfmpegMissing("no ffmpeg: install it, or `pip install imageio-ffmpeg`") from error


def command(descriptor: int) -> list[str]:
    """The command that writes the descriptor's first audio track to stdout as float32 little-endian, 16 kHz, mono.

    Downmixing keeps the layout's weights but scales them to sum to one (rematrix_maxval), so that nothing clips.
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
