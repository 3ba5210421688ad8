"""The files that the embeddings of a batch are written to."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TypeVar

from worker.client.audio import Audio
from worker.client.results import CallResult, Embedded, save

_LONGEST_STEM = 60  # characters: at most 240 bytes of the 255 that a file system allows

R = TypeVar("R", bound=CallResult)


class EmbeddingFiles:
    """Chooses a file for the embedding of each audio of a batch, and writes it. Without a folder, nothing is written.

    A file has the name of its audio with the suffix .npy, and a number if an earlier audio has the same name. Audio
    without a name (bytes, an array, a data: URI) is called "audio".
    """

    def __init__(self, folder: str | Path | None) -> None:
        self._folder = Path(folder) if folder is not None else None
        self._numbers: dict[str, int] = {}  # names in use → the last number tried for another audio of that name

    def path_for(self, audio: Audio) -> Path | None:
        """Return the file for the next audio, or None without a folder."""
        if self._folder is None:
            return None
        has_name = isinstance(audio, str | os.PathLike) and not str(audio).startswith("data:")
        stem = Path(str(audio).partition("?")[0]).stem[:_LONGEST_STEM] if has_name else "audio"
        name = stem
        while name in self._numbers:
            self._numbers[stem] += 1
            name = f"{stem}-{self._numbers[stem]}"
        self._numbers[name] = 1
        return self._folder / f"{name}.npy"

    @staticmethod
    def store(result: R, path: Path | None) -> R:
        """Write the result's embedding to the path, and return the result with `embedding_path` set.

        A result without an embedding, or a path of None, changes nothing. Raises: OSError if the file cannot be
        written.
        """
        if path is None or not isinstance(result, Embedded):
            return result
        save(path, result.embedding)
        return dataclasses.replace(result, embedding_path=path)
