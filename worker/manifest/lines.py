"""The lines of a manifest, and the audio that each line names."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker.errors import DecodeFailed, EmptyAudio, InputError, SourceNotFound
from worker.protocol import nemo_manifest

Json = dict[str, Any]

TOLERANCE_SEC = 0.05  # manifests round durations
SOURCES = ("audio_filepath", "audio", "source", "path", "url")


@dataclass(frozen=True)
class Line:
    """One line of a manifest.

    `index` is its position, from 0, among the lines that are not blank. `fields` is its JSON object; a `broken` line
    has its text in the field `raw`. Relative paths start at `folder`.
    """

    index: int
    fields: Json
    folder: Path
    broken: bool = False

    def audio(self) -> str | bytes:
        """Return the path or URL of the audio, or a segment of a file as the bytes of a WAV file.

        Raises: InputError if the line names no audio or its fields are wrong; SourceNotFound, EmptyAudio or
        DecodeFailed if the segment cannot be read.
        """
        if self.broken:
            raise InputError("the line is not a JSON object")
        name = next((name for name in SOURCES if self.fields.get(name) is not None), None)
        if name is None:
            raise InputError(f"the line names no audio; add one of {', '.join(SOURCES)}")
        source = self.fields[name]
        if not isinstance(source, str) or not source:
            raise InputError(f"{name} must be a path or URL", param=name)
        remote = "://" in source or source.startswith("data:")
        location = source if remote else str(self.folder / source)
        segment = nemo_manifest.segment(self.fields)
        if segment is None:
            return location
        if self.fields.get("offset") is None:
            return location if remote or not _is_longer(location, segment[1]) else _segment(location, *segment)
        if remote:
            raise InputError("offset requires a local file, not a URL", param="offset")
        return _segment(location, *segment)

    def options(self) -> Json:
        """Return the options of a transcription that the line sets. Raises: InputError."""
        return nemo_manifest.options(self.fields)

    def check_duration(self, seconds: float) -> None:
        """Raise InputError if `seconds` of audio were read of a line whose `duration` is shorter.

        A line without `offset` may name audio whose length is unknown before it is read.
        """
        segment = nemo_manifest.segment(self.fields)
        longest = None if segment is None else segment[1]
        if longest is not None and seconds > longest + TOLERANCE_SEC:
            raise InputError(
                f"duration is {longest:g} s, but the audio has {seconds:g} s. A part of it requires a local file that "
                "libsndfile reads (wav, flac, ogg, mp3). Remove duration to transcribe the whole audio.",
                param="duration",
            )


def read(manifest: Path) -> Iterator[tuple[Line, int]]:
    """Yield each line that is not blank, and the offset in bytes at which it ends. Memory holds one line at a time."""
    position, index = 0, 0
    folder = manifest.parent
    with manifest.open("rb") as file:
        for raw in file:
            position += len(raw)
            if not raw.strip():
                continue
            try:
                text = raw.decode("utf-8-sig")
                fields = json.loads(text, parse_constant=lambda name: None, parse_float=_finite)
            except (ValueError, RecursionError):
                fields = None
            if isinstance(fields, dict):
                yield Line(index, fields, folder), position
            else:
                yield Line(index, {"raw": raw.decode("utf-8", "replace").strip()}, folder, broken=True), position
            index += 1


def _finite(text: str) -> float | None:
    """Return the number, or None for one too large for a float, which JSON cannot hold."""
    value = float(text)
    return value if math.isfinite(value) else None


def _is_longer(path: str, duration: float | None) -> bool:
    """Return whether a file that libsndfile reads is longer than `duration` seconds."""
    import soundfile

    try:
        return duration is not None and soundfile.info(path).duration > duration + TOLERANCE_SEC
    except (soundfile.LibsndfileError, OSError):
        return False


def _segment(path: str, offset: float, duration: float | None) -> bytes:
    """Return `duration` seconds of a file, from `offset` seconds, as a WAV file of float32 samples."""
    import soundfile

    from worker.client.audio import wav

    if not Path(path).is_file():
        raise SourceNotFound(f"no such file: {path}")
    try:
        with soundfile.SoundFile(path) as file:
            start = round(offset * file.samplerate)
            if start >= file.frames:
                raise EmptyAudio(
                    f"offset {offset:g} s is past the end of the file, at {file.frames / file.samplerate:g} s"
                )
            file.seek(start)
            count = -1 if duration is None else max(1, round(duration * file.samplerate))
            return wav(file.read(count, dtype="float32"), file.samplerate)
    except soundfile.LibsndfileError as error:
        raise DecodeFailed(f"offset requires a file that libsndfile reads (wav, flac, ogg, mp3): {error}") from error
