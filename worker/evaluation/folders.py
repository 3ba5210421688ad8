"""Folders and manifests → a Corpus: labeled audio, and the names of audio and labels without a counterpart.

    folder       audio/a/b.wav ↔ labels/a/b.txt, or both in one folder: a label is the `.txt` file with the relative
                 path and stem of its audio; its lines are joined. Alternatively, in the layout of LibriSpeech,
                 a/1-2.trans.txt holds lines such as `1-2-0001 the words`, which label a/1-2-0001.flac
    manifest     NeMo's format: one JSON object a line with `audio_filepath` (a URL, or a path relative to the
                 manifest's folder), `text`, and optionally `lang` or `source_lang`, `target_lang`, `taskname`, `pnc`,
                 and `offset` and `duration`, which select a segment of the file

Labels are UTF-8. `worker.audio.files` defines which files of a folder are read and which are audio. Two audio files
with one stem (a.wav, a.mp3) share a label, and both are evaluated; two labels for one audio file are an error. Only
labels that have audio are opened.

A caller who may not read every file passes `check`, which raises for a path that the caller may not read. It is called
for each file that is opened here and for each linked folder, but not for the folders that the caller names. The engine
checks the audio.
"""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from worker.audio.files import below, is_audio
from worker.errors import InputError, RequestError
from worker.protocol import nemo_manifest
from worker.types import Part

Check = Callable[[Path, str], None]  # check(path, field of the request), raises RequestError

_TRANSCRIPTS = ".trans.txt"
_FILES = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else None  # the open files by their numbers; Linux


def trust(_path: Path, _param: str) -> None:
    """Accept every path: the check for callers who own the machine."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Audio and its label.

    `file` is the name in the report, `source` a path or URL, and `language` the ISO code of the speech, or None.
    `options` are the line's other options. `segment` is as in Item.
    """

    file: str
    source: str
    text: str
    language: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    segment: Part | None = None


@dataclass(frozen=True, slots=True)
class Corpus:
    """Labeled audio in order, and the names of audio without a label and of labels without audio."""

    pairs: tuple[Pair, ...]
    unlabelled: tuple[str, ...] = ()
    missing_audio: tuple[str, ...] = ()


def read_folder(audio_dir: str | Path, gt_dir: str | Path | None = None, *, check: Check = trust) -> Corpus:
    """Return the audio of a folder and its subfolders, sorted by path, with the labels in `gt_dir`.

    `gt_dir` defaults to `audio_dir`. Raises: RequestError if a folder does not exist, or if a label cannot be read or
    occurs twice; the errors of `check`.
    """
    audio, gt = _folder(audio_dir, "audio_dir"), _folder(gt_dir or audio_dir, "gt_dir")
    labels = _labels(gt, check)
    pairs: list[Pair] = []
    unlabelled, used = [], set()
    for path in _files(audio, "audio_dir", check):
        if not is_audio(path):
            continue
        name, key = _legible(path.relative_to(audio).as_posix()), _key(path, audio)
        if key not in labels:
            unlabelled.append(name)
            continue
        used.add(key)
        pairs.append(Pair(name, str(path), labels[key].read(check)))
    missing = [_legible(label.name) for key, label in labels.items() if key not in used]
    return Corpus(tuple(pairs), tuple(unlabelled), tuple(missing))


def read_manifest(path: str | Path, *, check: Check = trust) -> Corpus:
    """Return the audio that a NeMo manifest lists, in its order. A row without `text` is audio without a label.

    Raises: RequestError, with the line number, if a row is malformed or if a segment of audio occurs twice; the errors
    of `check` for the manifest.
    """
    path = Path(path).absolute()
    pairs: list[Pair] = []
    unlabelled, missing = [], []
    lines: dict[Any, int] = {}
    text = _text(path, "manifest", check)
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: a JSON string may contain U+2028
        if not line.strip():
            continue
        where = f"{_legible(path.name)}, line {number}"
        row = _row(line, where)
        name, label, segment = row["audio_filepath"], row["text"], row["segment"]
        source = name if "://" in name else os.path.normpath(path.parent / name)
        start = segment[0] if segment else 0.0
        key = (source, segment if start else None)
        if key in lines:
            raise RequestError(f"{where}: {_legible(name)} is already in line {lines[key]}", param="manifest")
        lines[key] = number
        if "://" not in name and _is_missing(source, check):
            missing.append(_legible(name))
        elif label is None:
            unlabelled.append(_legible(name))
        else:
            file = f"{_legible(name)} at {start:g} s" if start else _legible(name)
            pairs.append(Pair(file, source, _one_line(label), row["language"], row["options"], segment))
    return Corpus(tuple(pairs), tuple(unlabelled), tuple(missing))


@dataclass(frozen=True, slots=True)
class _Label:
    """A label in a folder. `line` is its text in a file of several labels, or None if the whole file is the label."""

    name: str
    path: Path
    line: str | None = None

    def read(self, check: Check) -> str:
        return _one_line(_text(self.path, "gt_dir", check) if self.line is None else self.line)


def _labels(folder: Path, check: Check) -> dict[str, _Label]:
    """Return each label by the relative path, without suffix, of its audio."""
    labels: dict[str, _Label] = {}
    for path in _files(folder, "gt_dir", check):
        name, parent = path.relative_to(folder).as_posix(), path.parent.relative_to(folder)
        if name.lower().endswith(_TRANSCRIPTS):
            lines = [line.split(maxsplit=1) for line in _text(path, "gt_dir", check).split("\n") if line.strip()]
            entries = [
                (_composed((parent / id_).as_posix()), _Label(f"{name}: {id_}", path, "".join(text)))
                for id_, *text in lines
            ]
        elif path.suffix.lower() == ".txt":
            entries = [(_key(path, folder), _Label(name, path))]
        else:
            continue
        for key, label in entries:
            if key in labels:
                raise RequestError(
                    f"{_legible(key)} has two labels, {_legible(labels[key].name)} and {_legible(label.name)}; "
                    "remove one of them",
                    param="gt_dir",
                )
            labels[key] = label
    return labels


def _folder(path: str | Path, param: str) -> Path:
    if not os.path.isdir(path):
        raise RequestError(f"{param} is not a folder: {_legible(str(path))}", param=param)
    return Path(path).absolute()


def _files(folder: Path, param: str, check: Check) -> list[Path]:
    """Return every file in the folder and its subfolders, sorted."""

    def fail(error: OSError) -> None:
        raise RequestError(f"cannot read {_legible(str(error.filename))}: {error.strerror}", param=param) from error

    return below(folder, fail, lambda link: check(link, param))


def _is_missing(path: str, check: Check) -> bool:
    """Return whether audio that the caller may read does not exist. The engine refuses all other audio."""
    try:
        check(Path(path), "manifest")
    except RequestError:
        return False
    return not os.path.isfile(path)


def _key(path: Path, folder: Path) -> str:
    """Return the relative path without its suffix."""
    return _composed(path.relative_to(folder).with_suffix("").as_posix())


def _composed(name: str) -> str:
    """Return the name in Unicode's composed form, because a file system may hold "é" in two forms."""
    return unicodedata.normalize("NFC", name)


def _row(line: str, where: str) -> dict[str, Any]:
    """Return audio_filepath, text, language, options and segment of a line, None for what the line lacks."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{where}: not JSON ({error})", param="manifest") from error
    if not isinstance(row, dict) or not isinstance(row.get("audio_filepath"), str) or not row["audio_filepath"]:
        raise RequestError(
            f"{where}: must be an object with audio_filepath, which holds a path or URL", param="manifest"
        )
    text = row.get("text")
    if not isinstance(text, str | None):
        raise RequestError(f"{where}: text must be a string", param="manifest")
    try:
        options, segment = nemo_manifest.options(row), nemo_manifest.segment(row)
    except InputError as error:
        raise RequestError(f"{where}: {error.message}", param="manifest") from error
    language = options.pop("language", None)
    return {
        "audio_filepath": row["audio_filepath"],
        "text": text,
        "language": language,
        "options": options,
        "segment": segment,
    }


def _text(path: Path, param: str, check: Check) -> str:
    """Return the text of a UTF-8 file, without a byte order mark."""
    name = _legible(str(path))
    check(path, param)
    if not os.path.isfile(path):
        raise RequestError(f"not a file: {name}", param=param)
    try:
        with path.open(encoding="utf-8-sig") as file:
            if _FILES is not None:  # the path may lead elsewhere by now
                check(Path(os.readlink(f"{_FILES}/{file.fileno()}")), param)
            return file.read()
    except UnicodeDecodeError as error:
        raise RequestError(
            f"{name} is not UTF-8: byte {error.start} is {error.object[error.start]:#04x}", param=param
        ) from error
    except OSError as error:
        raise RequestError(f"cannot read {name}: {error.strerror}", param=param) from error


def _one_line(text: str) -> str:
    """Return a label's text on one line."""
    return _legible(" ".join(text.split()))


def _legible(text: str) -> str:
    """Return the text with "?" for lone surrogates, which stand for bytes of a file name that are not UTF-8."""
    return text.encode("utf-8", "replace").decode("utf-8")
