"""Which files of a folder are audio, by their names.

Names that begin with a dot are left out. Links are followed; a folder that is reached twice is read once, and under
its own name if that is below the folder too.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

# What the decoders read goes by content, and is more than this; only what is in a folder must be told apart by name.
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
    return path.suffix.lower() in SUFFIXES


def below(folder: Path, unreadable: Callable[[OSError], None]) -> list[Path]:
    """Every file below the folder, sorted. `unreadable` is told of each folder that cannot be read, and may raise."""
    seen: set[str] = set()
    files: list[Path] = []
    tops = [folder]
    for top in tops:  # grows by the links that are found
        for where, folders, names in os.walk(top, onerror=unreadable):
            real = os.path.realpath(where)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            tops += [Path(where, name) for name in folders if os.path.islink(os.path.join(where, name))]
            files += [Path(where, name) for name in names if not name.startswith(".")]
    return sorted(files)
