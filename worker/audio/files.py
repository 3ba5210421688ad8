"""The audio files below a folder, recognized by their names.

Names that begin with a dot are skipped. Links are followed; a folder that can be reached in two ways is read once, by
its own path if that is below the folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

# The decoders recognize audio by its content, and more formats than these. Only the files of a folder are selected by
# name.
SUFFIXES = frozenset(
    (
        ".3gp",
        ".aac",
        ".ac3",
        ".aif",
        ".aiff",
        ".amr",
        ".au",
        ".avi",
        ".caf",
        ".flac",
        ".flv",
        ".m4a",
        ".m4b",
        ".m4v",
        ".mka",
        ".mkv",
        ".mov",
        ".mp2",
        ".mp3",
        ".mp4",
        ".mpeg",
        ".mpg",
        ".mpga",
        ".oga",
        ".ogg",
        ".opus",
        ".sph",
        ".ts",
        ".wav",
        ".weba",
        ".webm",
        ".wma",
        ".wmv",
    )
)


def is_audio(path: Path) -> bool:
    """Return whether the path has one of the SUFFIXES, in any case."""
    return path.suffix.lower() in SUFFIXES


def _ignore(_path: Path) -> None:
    pass


def below(
    folder: Path,
    unreadable: Callable[[OSError], None],
    follow: Callable[[Path], None] = _ignore,
    hidden: Callable[[Path], None] = _ignore,
) -> list[Path]:
    """Return every file below the folder, sorted.

    `unreadable` is called with the OSError of each folder that cannot be read, and may raise. `follow` is called with
    each link to a folder before the link is followed, and may raise. `hidden` is called with each file and folder that
    is skipped because its name begins with a dot.
    """
    seen: set[str] = set()
    files: list[Path] = []
    tops = [folder]
    for top in tops:  # the loop appends the links that it finds
        if top is not folder:
            follow(top)
        for where, folders, names in os.walk(top, onerror=unreadable):
            real = os.path.realpath(where)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            for name in sorted(name for name in (*folders, *names) if name.startswith(".")):
                hidden(Path(where, name))
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            tops += [Path(where, name) for name in folders if os.path.islink(os.path.join(where, name))]
            files += [Path(where, name) for name in names if not name.startswith(".")]
    return sorted(files)
