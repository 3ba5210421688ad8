"""The files that a batch's embeddings are written to."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TypeVar

from worker.client.audio import Audio
from worker.client.results import Answer, Embedded, save

_LONGEST = 60  # letters of a name: at most 240 bytes

A = TypeVar("A", bound=Answer)


class Names:
    """A name for each audio in turn: its own with .npy, and with a number where another has it. No folder: no names."""

    def __init__(self, folder: str | Path | None) -> None:
        self._folder = Path(folder) if folder is not None else None
        self._numbers: dict[str, int] = {}  # of names that are taken: the last one tried for their next namesake

    def next(self, audio: Audio) -> Path | None:
        """Where the next audio's embedding goes."""
        if self._folder is None:
            return None
        named = isinstance(audio, str | os.PathLike) and not str(audio).startswith("data:")
        stem = Path(str(audio).partition("?")[0]).stem[:_LONGEST] if named else "audio"
        name = stem
        while name in self._numbers:
            self._numbers[stem] += 1
            name = f"{stem}-{self._numbers[stem]}"
        self._numbers[name] = 1
        return self._folder / f"{name}.npy"

    @staticmethod
    def kept(result: A, path: Path | None) -> A:
        """The result, its embedding written to the path if there is one."""
        if path is None or not isinstance(result, Embedded):
            return result
        save(path, result.embedding)
        return dataclasses.replace(result, embedding_path=path)
