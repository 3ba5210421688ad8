"""The inputs of a command, expanded to sources in their order.

file or URL    itself
folder         its audio files, with all subfolders
pattern        the matches of a pattern that the shell did not expand, each file once
-              a list on stdin, one input per line

As in rsync, `/./` in the path of a file marks where its place in a folder of results begins: the place of in/./a/b.wav
is a/b.wav, and that of in/a/b.wav is b.wav. `Input.listed` writes the mark, so that a list of files that were found in
folders keeps their places.
"""

from __future__ import annotations

import glob
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import NamedTuple
from urllib.parse import urlsplit

from worker.audio.files import below, is_audio
from worker.errors import RequestError

_NAME_BYTES = 255  # the longest file name that file systems allow
_MARK = "/./"

LeaveOut = Callable[[str, str], None]
"""Called with the path of a file of a folder that is no input, and the reason in words that follow a number."""


class Input(NamedTuple):
    """A source, and `place`, the path of its result in a folder of results, with the input's own suffix."""

    source: str
    place: PurePath

    @property
    def listed(self) -> str:
        """The text that `expand` turns into this input."""
        folder = self.source.removesuffix(str(self.place))
        if len(self.place.parts) < 2 or folder == self.source or folder.endswith(_MARK):
            return self.source
        return f"{folder or './'}./{self.place}"


def expand(texts: Sequence[str], leave_out: LeaveOut = lambda _path, _reason: None) -> list[Input]:
    """Return the inputs.

    Raises RequestError for a folder or pattern without audio, for a folder that cannot be read, and if there are no
    inputs.
    """
    inputs = [found for text in texts for found in _expand(text, leave_out)]
    if not inputs:
        raise RequestError("no inputs; specify files, folders or URLs")
    return inputs


def places(inputs: Sequence[Input], suffix: str, taken: set[str] | None = None) -> list[PurePath]:
    """Return the path of each input's result in a folder of results, without duplicates.

    `taken` holds the paths of results in other formats, in lower case. The paths of these results are added.

    The result of a/b.wav is a/b.srt. If another input is called a/b.mp3, it is a/b.wav.srt, and if that is taken,
    a/b.wav-2.srt. Names that are too long for a file system are truncated.
    """
    short = [source.place.with_suffix(suffix) for source in inputs]
    shared = {place for place, count in Counter(short).items() if count > 1}
    taken = set() if taken is None else taken
    chosen: list[PurePath] = []
    for source, place in zip(inputs, short, strict=True):
        name = source.place.name if place in shared else source.place.stem
        number, free = 1, place.with_name(_truncate(name, suffix))
        while str(free).casefold() in taken:
            number += 1
            free = place.with_name(_truncate(name, f"-{number}{suffix}"))
        taken.add(str(free).casefold())
        chosen.append(free)
    return chosen


def _truncate(name: str, suffix: str) -> str:
    """Return the name and the suffix, in at most _NAME_BYTES bytes."""
    room = _NAME_BYTES - len(suffix)
    return (name if len(os.fsencode(name)) <= room else os.fsencode(name)[:room].decode("utf-8", "ignore")) + suffix


def _expand(text: str, leave_out: LeaveOut) -> Iterator[Input]:
    if text == "-":
        for line in sys.stdin.buffer:  # a file name need not be text
            if line.strip():
                yield from _expand(os.fsdecode(line.rstrip(b"\r\n")), leave_out)
    elif "://" in text or text.startswith("data:"):
        last = urlsplit(text).path.rsplit("/", maxsplit=1)[-1] if "://" in text else ""
        yield Input(text, PurePath(re.sub(r"[^\w.-]", "_", last).strip(".") or "input"))
    elif os.path.isdir(text):
        yield from _some(_folder(Path(text), leave_out), text)
    elif glob.has_magic(text) and not os.path.exists(text):
        yield from _some(_pattern(text, leave_out), text)
    else:
        yield _file(text)


def _file(text: str) -> Input:
    place = PurePath(text.rpartition(_MARK)[2])
    if _MARK in text and place.name and not place.is_absolute() and ".." not in place.parts:
        return Input(text, place)
    return Input(text, PurePath(PurePath(text).name or "input"))


def _folder(folder: Path, leave_out: LeaveOut) -> list[Input]:
    """Return the audio files of the folder and its subfolders. Raises RequestError if a folder cannot be read."""

    def fail(error: OSError) -> None:
        raise RequestError(f"cannot read {error.filename}: {error.strerror}") from error

    found: list[Input] = []
    for path in below(folder, fail, hidden=lambda path: leave_out(str(path), "hidden")):
        if is_audio(path):
            found.append(Input(str(path), path.relative_to(folder)))
        else:
            leave_out(str(path), "without a suffix of audio")
    return found


def _pattern(text: str, leave_out: LeaveOut) -> list[Input]:
    """Return the files that match a pattern, and the audio files of the folders that match. Raises RequestError.

    `**` matches both a folder and its files, so a file may match twice. Two matches are the same file if they have the
    same name in the same folder, after links to folders are resolved.
    """
    matches = sorted(glob.glob(text, recursive=True))
    if not matches:
        raise RequestError(f"nothing matches {text}")
    found: dict[tuple[str, str], Input] = {}
    for match in matches:
        for source in _folder(Path(match), leave_out) if os.path.isdir(match) else [_file(match)]:
            folder, name = os.path.split(source.source)
            found.setdefault((os.path.realpath(folder), name), source)
    return list(found.values())


def _some(found: list[Input], text: str) -> list[Input]:
    """Return the inputs. Raises RequestError if there are none."""
    if not found:
        raise RequestError(f"there is no audio in {text}")
    return found
