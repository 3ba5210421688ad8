"""Folders and manifests → a Corpus: which audio has which label, and what is left over on either side.

    folder       audio/a/b.wav ↔ labels/a/b.txt, or in one folder: the label is the `.txt` of the same relative
                 path and stem, of one line or several. LibriSpeech: a/1-2.trans.txt with lines
                 `1-2-0001 words` ↔ a/1-2-0001.flac
    manifest     NeMo's: a JSON object a line, `audio_filepath` (a URL, or a path, relative to the manifest's folder),
                 `text`, and optionally `lang` or `source_lang`

Labels are UTF-8. Which files are looked at, and which are audio, is in `worker.audio.files`. Two audio files of one
stem (a.wav,
a.mp3) share its label, and both are evaluated; two labels for one audio are an error. Nothing is opened but labels
that have audio, and no path is checked: that is the caller's, and for audio the engine's.
"""

from __future__ import annotations

import json
import os
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker.audio.files import below, is_audio
from worker.errors import RequestError

_TRANSCRIPTS = ".trans.txt"


@dataclass(frozen=True, slots=True)
class Pair:
    """Audio and what is said in it. `file`: its name in the answer; `source`: a path or URL; `language`: an ISO code,
    if the label tells."""

    file: str
    source: str
    text: str
    language: str | None = None


@dataclass(frozen=True, slots=True)
class Corpus:
    """Labelled audio, in order, and the names of audio without a label and of labels without audio."""

    pairs: tuple[Pair, ...]
    unlabelled: tuple[str, ...] = ()
    missing_audio: tuple[str, ...] = ()


def read_folder(audio_dir: str | Path, gt_dir: str | Path | None = None) -> Corpus:
    """The audio of a folder and all its subfolders, sorted by path, with the labels of another (by default the same).

    Raises RequestError for a folder that is not there, and for a label that cannot be read or stands twice.
    """
    audio, labels = _folder(audio_dir, "audio_dir"), _folder(gt_dir or audio_dir, "gt_dir")
    found = _labels(labels)
    pairs: list[Pair] = []
    unlabelled, used = [], set()
    for path in _files(audio, "audio_dir"):
        if not is_audio(path):
            continue
        name, key = _legible(path.relative_to(audio).as_posix()), _key(path, audio)
        if key not in found:
            unlabelled.append(name)
            continue
        used.add(key)
        pairs.append(Pair(name, str(path), found[key].read()))
    left = [label for key, label in found.items() if key not in used]
    return Corpus(tuple(pairs), tuple(unlabelled), tuple(_legible(label.name) for label in left))


def read_manifest(path: str | Path) -> Corpus:
    """What a manifest of NeMo's lists, in its order. A row without `text`, or with null, is audio without a label.

    Raises RequestError, with the line, for a row that cannot be read, for audio that stands twice, and for `offset`: a
    part of a file is not evaluated as if it were the whole.
    """
    path = Path(path).absolute()
    pairs: list[Pair] = []
    unlabelled, missing = [], []
    lines: dict[str, int] = {}
    for number, line in enumerate(
        _text(path, "manifest").split("\n"), 1
    ):  # not splitlines: a string of JSON may hold U+2028
        if not line.strip():
            continue
        where = f"{_legible(path.name)}, line {number}"
        row = _row(line, where)
        name, text = row["audio_filepath"], row["text"]
        source = name if "://" in name else os.path.normpath(path.parent / name)
        if source in lines:
            raise RequestError(f"{where}: {_legible(name)} stands in line {lines[source]} already", param="manifest")
        lines[source] = number
        if "://" not in name and not os.path.isfile(source):
            missing.append(_legible(name))
        elif text is None:
            unlabelled.append(_legible(name))
        else:
            pairs.append(Pair(_legible(name), source, _joined(text), row["language"]))
    return Corpus(tuple(pairs), tuple(unlabelled), tuple(missing))


@dataclass(frozen=True, slots=True)
class _Label:
    """A label of a folder. `line`: what a file of several labels says; None where the whole file is the label."""

    name: str
    path: Path
    line: str | None = None

    def read(self) -> str:
        return _joined(_text(self.path, "gt_dir") if self.line is None else self.line)


def _labels(folder: Path) -> dict[str, _Label]:
    """Each label by its audio's relative path without suffix."""
    found: dict[str, _Label] = {}
    for path in _files(folder, "gt_dir"):
        name, parent = path.relative_to(folder).as_posix(), path.parent.relative_to(folder)
        if name.lower().endswith(_TRANSCRIPTS):
            lines = [line.split(maxsplit=1) for line in _text(path, "gt_dir").split("\n") if line.strip()]
            made = [
                (_composed((parent / id_).as_posix()), _Label(f"{name}: {id_}", path, "".join(text)))
                for id_, *text in lines
            ]
        elif path.suffix.lower() == ".txt":
            made = [(_key(path, folder), _Label(name, path))]
        else:
            continue
        for key, label in made:
            if key in found:
                raise RequestError(
                    f"{_legible(key)} has two labels, {_legible(found[key].name)} and {_legible(label.name)}",
                    param="gt_dir",
                )
            found[key] = label
    return found


def _folder(path: str | Path, param: str) -> Path:
    if not os.path.isdir(path):
        raise RequestError(f"{param} is not a folder: {_legible(str(path))}", param=param)
    return Path(path).absolute()


def _files(folder: Path, param: str) -> list[Path]:
    """Every file below the folder, sorted."""

    def fail(error: OSError) -> None:
        raise RequestError(f"cannot read {_legible(str(error.filename))}: {error.strerror}", param=param) from error

    return below(folder, fail)


def _key(path: Path, folder: Path) -> str:
    """The relative path without its suffix."""
    return _composed(path.relative_to(folder).with_suffix("").as_posix())


def _composed(name: str) -> str:
    """The name in one spelling: a file system may have é in two."""
    return unicodedata.normalize("NFC", name)


def _row(line: str, where: str) -> dict[str, Any]:
    """audio_filepath, text and language of a line, the last two None where they are not given."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{where}: not JSON ({error})", param="manifest") from error
    if not isinstance(row, dict) or not isinstance(row.get("audio_filepath"), str) or not row["audio_filepath"]:
        raise RequestError(f"{where}: must be an object with audio_filepath, a path or URL", param="manifest")
    text, language = row.get("text"), row.get("lang") or row.get("source_lang")
    for field, value in (("text", text), ("lang", language)):
        if not isinstance(value, str | None):
            raise RequestError(f"{where}: {field} must be a string", param="manifest")
    if row.get("offset"):
        raise RequestError(f"{where}: offset is not read; cut the part out into a file of its own", param="manifest")
    return {"audio_filepath": row["audio_filepath"], "text": text, "language": language}


def _text(path: Path, param: str) -> str:
    """The file's text, without a byte order mark."""
    name = _legible(str(path))
    if not os.path.isfile(path):
        raise RequestError(f"not a file: {name}", param=param)
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"{name} is not UTF-8: byte {error.start} is {error.object[error.start]:#04x}", param=param
        ) from error
    except OSError as error:
        raise RequestError(f"cannot read {name}: {error.strerror}", param=param) from error


def _joined(text: str) -> str:
    """The lines of a label as one."""
    return _legible(" ".join(text.split()))


def _legible(text: str) -> str:
    """The text without lone surrogates: bytes of a name that are not UTF-8, which no JSON can carry."""
    return text.encode("utf-8", "replace").decode("utf-8")
