"""A manifest's lines, and the audio that each names. Nothing is held but the line that is read."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker.errors import DecodeFailed, EmptyAudio, InputError, SourceNotFound

Json = dict[str, Any]

SOURCES = ("audio_filepath", "audio", "source", "path", "url")


@dataclass(frozen=True)
class Line:
    """One line. `index`: its place among those that are not blank, from 0. `fields`: its object, or its text as `raw`
    if it is `broken`. `folder`: what its paths are relative to."""

    index: int
    fields: Json
    folder: Path
    broken: bool = False

    def audio(self) -> str | bytes:
        """The path or URL; a segment as the bytes of a WAV file. Raises InputError."""
        if self.broken:
            raise InputError("the line is not a JSON object")
        name = next((name for name in SOURCES if self.fields.get(name) is not None), None)
        if name is None:
            raise InputError(f"the line names no audio: give one of {', '.join(SOURCES)}")
        source = self.fields[name]
        if not isinstance(source, str) or not source:
            raise InputError(f"{name} must be a path or URL", param=name)
        remote = "://" in source or source.startswith("data:")
        place = source if remote else str(self.folder / source)
        if self.fields.get("offset") is None:
            return place
        if remote:
            raise InputError("offset is for files of this machine, not for URLs", param="offset")
        return _segment(place, self.fields["offset"], self.fields.get("duration"))


def read(manifest: Path) -> Iterator[tuple[Line, int]]:
    """Each line that is not blank, and where in the file it ends."""
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
    """NaN and infinities are no JSON: null."""
    value = float(text)
    return value if math.isfinite(value) else None


def _segment(path: str, offset: Any, duration: Any) -> bytes:
    """A part of a file as a WAV file. Raises InputError."""
    import soundfile

    from worker.client.audio import wav

    if not _is_number(offset) or offset < 0:
        raise InputError(f"offset must be seconds from the start, not {offset!r}", param="offset")
    if duration is not None and (not _is_number(duration) or duration <= 0):
        raise InputError(f"duration must be seconds above 0, not {duration!r}", param="duration")
    if not Path(path).is_file():
        raise SourceNotFound(f"no such file: {path}")
    try:
        with soundfile.SoundFile(path) as file:
            start = round(offset * file.samplerate)
            if start >= file.frames:
                raise EmptyAudio(f"offset {offset:g} s is behind the end, at {file.frames / file.samplerate:g} s")
            file.seek(start)
            count = -1 if duration is None else max(1, round(duration * file.samplerate))
            return wav(file.read(count, dtype="float32"), file.samplerate)
    except soundfile.LibsndfileError as error:
        raise DecodeFailed(f"offset is for files that libsndfile reads (wav, flac, ogg, mp3): {error}") from error


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
