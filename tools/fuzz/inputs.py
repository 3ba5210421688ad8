"""What the fuzzer damages: small audio files in many containers, payloads of every task, forms."""

from __future__ import annotations

import base64
import functools
import io
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from worker.audio import ffmpeg

ROOT = Path(__file__).resolve().parent.parent.parent
INTACT = ROOT / "samples" / "week.wav"
INTACT_TEXT = "[dry-run] transcribe of 1.27 s"

_RATE, _SECONDS = 16_000, 0.4
# Container and subtype of libsndfile.
_SNDFILE = """WAV:PCM_16 WAV:FLOAT WAV:ULAW WAV:IMA_ADPCM W64:PCM_24 AIFF:PCM_16 FLAC:PCM_16 OGG:VORBIS CAF:ALAC_16
    AU:PCM_16 MP3:MPEG_LAYER_III"""
# Container and codec of ffmpeg: its own encoders only, which every build has.
_FFMPEG = """matroska:flac mp4:aac mov:alac avi:mp2 mpegts:mp2 adts:aac asf:wmav2 nut:pcm_s16le ac3:ac3 flv:aac 3gp:aac
    tta:tta"""


@functools.cache
def audio_files() -> tuple[bytes, ...]:
    """Return one small file for each container, and the samples of the repository that are not WAV."""
    generator = np.random.default_rng(0)
    times = np.arange(round(_RATE * _SECONDS)) / _RATE
    wave = 0.4 * np.sin(2 * np.pi * 440 * times) + 0.05 * generator.standard_normal(len(times))
    files = [_by_sndfile(wave, *kind.split(":")) for kind in _SNDFILE.split()]
    files += [_by_sndfile(np.stack([wave, -wave], axis=1), "FLAC", "PCM_16")]
    files += [_by_ffmpeg(files[0], *kind.split(":")) for kind in _FFMPEG.split()]
    samples = sorted(
        path for path in INTACT.parent.iterdir() if path.suffix in (".mp3", ".m4a", ".ogg", ".flac", ".mp4")
    )
    return tuple(files + [path.read_bytes() for path in samples])


def data_uri(data: bytes) -> str:
    """Return the bytes as a data: URI."""
    return f"data:audio/wav;base64,{base64.b64encode(data).decode()}"


def payloads(audio: bytes) -> list[dict[str, Any]]:
    """Return well-formed payloads: every task, every option, one and several inputs."""
    source = data_uri(audio)
    speech = {"timestamps": ["word", "segment"], "language": "en", "format": "verbose_json", "max_new_tokens": 5}
    turns = [{"role": "user", "content": "What is this?", "audio": True}]
    sampling = {"temperature": 0.5, "top_p": 0.9, "prompt": "words", "style": "brief"}
    return [
        {"inputs": [{"source": source, "id": 7}, str(INTACT)], **speech},
        {"input": {"audio": source, "id": "a", "timestamps": True, "format": "srt"}},
        {"inputs": [source, str(INTACT)], "channels": "split", "format": "diarized_json", "timestamps": True},
        {"audio": source, "channels": "split", "format": "vtt", "max_chars_per_sec": 17},
        {"audio_base64": source.partition(",")[2], "task": "translate", "model": "canary", "target_language": "de"},
        {"task": "caption", "audio": {"source": str(INTACT)}, "model": "audio-flamingo-3", **sampling},
        {"task": "chat", "audio": source, "model": "audio-flamingo-3", "messages": turns},
        {"task": "embed", "inputs": [source] * 3, "model": "whisper", "pooling": "mean", "encoding": "base64"},
        {"task": "analyze", "audio": source, "model": "audio-flamingo-3", "pooling": "mean"},
        {"task": "evaluate", "audio_dir": str(INTACT.parent), "gt_dir": str(INTACT.parent)},
        {"task": "score", "uid": "u", "cid": "c", "audio": source},
        {"openai_route": "/v1/audio/transcriptions", "openai_input": {"file": source, "response_format": "srt"}},
        {"openai_route": "/v1/chat/completions", "openai_input": {"messages": _openai_messages(audio)}},
    ]


def bodies(audio: bytes) -> list[tuple[str, dict[str, Any]]]:
    """Return the path of a route and a well-formed JSON body for it. No route here stores a job."""
    source = data_uri(audio)
    speech = {"audio": source, "response_format": "verbose_json", "timestamp_granularities": ["word"], "language": "en"}
    chat = {"model": "audio-flamingo-3", "messages": _openai_messages(audio), "stream": True, "max_tokens": 4}
    return [
        *(("/runsync", {"input": payload}) for payload in payloads(audio)),
        ("/v1/audio/transcriptions", speech),
        ("/v1/audio/transcriptions", {"audio": source, "stream": True, "temperature": 0}),
        ("/v1/audio/translations", {"audio": source, "model": "whisper"}),
        ("/v1/audio/captions", {"audio": source, "model": "audio-flamingo-3", "style": "brief"}),
        ("/v1/audio/embeddings", {"audio": source, "model": "whisper", "encoding": "base64"}),
        ("/v1/chat/completions", chat),
        ("/transcribe", {"paths": [str(INTACT)], "prompt": None, "max_new_tokens": 4}),
        ("/evaluate", {"audio_dir": str(INTACT.parent), "gt_dir": str(INTACT.parent), "match_mode": "exact"}),
    ]


Field = tuple[str, str | None, bytes]  # the name, the file's name if it is a file, the content


def forms(audio: bytes) -> list[tuple[str, list[Field]]]:
    """Return the path of a route and the fields of a well-formed form for it."""
    file: Field = ("file", "week.wav", audio)
    return [
        ("/v1/audio/transcriptions", [file, ("model", None, b"whisper"), ("response_format", None, b"srt")]),
        ("/v1/audio/transcriptions", [("timestamp_granularities[]", None, b"word"), file, ("stream", None, b"true")]),
        ("/v1/audio/translations", [file, ("temperature", None, b"0.2"), ("prompt", None, "ä\u202e".encode())]),
        ("/v1/audio/embeddings", [("model", None, b"whisper"), file]),
        ("/transcribe", [file, ("language", None, b"en"), ("include_timestamps", None, b"true")]),
        ("/score", [("uid", None, b"u"), ("cid", None, b"c"), ("audio", "a.mp3", audio)]),
    ]


def encoded(fields: list[Field], boundary: bytes) -> bytes:
    """Return a multipart form."""
    parts = []
    for name, filename, content in fields:
        head = f'Content-Disposition: form-data; name="{name}"' + (f'; filename="{filename}"' if filename else "")
        parts.append(b"--" + boundary + b"\r\n" + head.encode() + b"\r\n\r\n" + content + b"\r\n")
    return b"".join(parts) + b"--" + boundary + b"--\r\n"


def _openai_messages(audio: bytes) -> list[dict[str, Any]]:
    sound = {"type": "input_audio", "input_audio": {"data": base64.b64encode(audio).decode(), "format": "wav"}}
    return [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, sound]}]


def _by_sndfile(wave: np.ndarray[Any, Any], container: str, subtype: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, wave, _RATE, format=container, subtype=subtype)
    return file.getvalue()


def _by_ffmpeg(wav: bytes, container: str, codec: str) -> bytes:
    command = [ffmpeg.executable(), "-v", "error", "-f", "wav", "-i", "pipe:0", "-c:a", codec, "-fflags", "+bitexact"]
    command += ["-movflags", "frag_keyframe+empty_moov"] if container in ("mp4", "mov", "3gp") else []
    done = subprocess.run(  # noqa: S603  ffmpeg, with arguments of this file
        [*command, "-flags", "+bitexact", "-f", container, "pipe:1"],
        input=wav,
        check=True,
        capture_output=True,
        timeout=60,
    )
    return done.stdout
