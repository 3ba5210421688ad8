"""What is typed as inputs → the sources, in order: files, URLs, folders (their audio, with all subfolders), patterns
that the shell left alone (each file once), and `-` for a list on stdin, one a line.
"""

from __future__ import annotations

import glob
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import NamedTuple
from urllib.parse import urlsplit

from worker.audio.files import below, is_audio
from worker.errors import RequestError

_NAME_BYTES = 255  # the longest name that file systems take


class Input(NamedTuple):
    """`place`: where its result belongs in a folder of results, with the input's own suffix."""

    source: str
    place: PurePath


def expand(given: Sequence[str]) -> list[Input]:
    """The inputs. Raises RequestError for a folder or pattern that gives none, for a folder that cannot be read, and
    where there is nothing at all."""
    inputs = [found for text in given for found in _expand(text)]
    if not inputs:
        raise RequestError("no inputs: give files, folders or URLs")
    return inputs


def places(inputs: Sequence[Input], suffix: str) -> list[PurePath]:
    """A file for each input's result: a/b.wav → a/b.srt; b.wav.srt where b.mp3 is there too; b.wav-2.srt if that is
    taken. Names that would be too long for a file system lose their end."""
    short = [one.place.with_suffix(suffix) for one in inputs]
    shared = {place for place, count in Counter(short).items() if count > 1}
    taken: set[str] = set()
    chosen: list[PurePath] = []
    for one, place in zip(inputs, short, strict=True):
        name = one.place.name if place in shared else one.place.stem
        number, free = 1, place.with_name(_cut(name, suffix))
        while str(free).casefold() in taken:
            number += 1
            free = place.with_name(_cut(name, f"-{number}{suffix}"))
        taken.add(str(free).casefold())
        chosen.append(free)
    return chosen


def _cut(name: str, suffix: str) -> str:
    room = _NAME_BYTES - len(suffix)
    return (name if len(os.fsencode(name)) <= room else os.fsencode(name)[:room].decode("utf-8", "ignore")) + suffix


def _expand(text: str) -> Iterator[Input]:
    if text == "-":
        for line in sys.stdin:
            if line.strip():
                yield from _expand(line.rstrip("\r\n"))
    elif "://" in text or text.startswith("data:"):
        last = urlsplit(text).path.rsplit("/", maxsplit=1)[-1] if "://" in text else ""
        yield Input(text, PurePath(re.sub(r"[^\w.-]", "_", last).strip(".") or "input"))
    elif os.path.isdir(text):
        yield from _some(_folder(Path(text)), text)
    elif glob.has_magic(text) and not os.path.exists(text):
        yield from _some(_pattern(text), text)
    else:
        yield _file(text)


def _file(text: str) -> Input:
    return Input(text, PurePath(PurePath(text).name or "input"))


def _folder(folder: Path) -> list[Input]:
    def fail(error: OSError) -> None:
        raise RequestError(f"cannot read {error.filename}: {error.strerror}") from error

    return [Input(str(path), path.relative_to(folder)) for path in below(folder, fail) if is_audio(path)]


def _pattern(text: str) -> list[Input]:
    """`**` matches folders and what is in them: a file is what has one name in one folder, links to folders
    followed."""
    matches = sorted(glob.glob(text, recursive=True))
    if not matches:
        raise RequestError(f"nothing matches {text}")
    found: dict[tuple[str, str], Input] = {}
    for match in matches:
        for one in _folder(Path(match)) if os.path.isdir(match) else [_file(match)]:
            where, name = os.path.split(one.source)
            found.setdefault((os.path.realpath(where), name), one)
    return list(found.values())


def _some(found: list[Input], text: str) -> list[Input]:
    if not found:
        raise RequestError(f"there is no audio in {text}")
    return found
