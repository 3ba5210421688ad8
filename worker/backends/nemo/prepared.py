"""The weights of a .nemo file in bfloat16, kept beside it: a start on a GPU reads half the bytes and casts nothing.

    python -m worker.backends.nemo.prepared OWNER/NAME     writes NAME.nemo.bfloat16, for BAKE_MODEL of the Dockerfile
    find(path, dtype)                                      the prepared file if it fits, else the .nemo file itself

A prepared file is a .nemo archive too, so it is read within the same bounds, and its configuration and weights are
vetted like those of any other file. One more member, SOURCE, has the fingerprint of the .nemo file that it was made of.
A prepared file of another .nemo file is ignored.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import IO, Any

from worker import catalog
from worker.backends.common import checkpoints
from worker.backends.nemo.restore import WEIGHTS, tensors
from worker.catalog.nemo_file import Archive, Member
from worker.config import Settings
from worker.errors import AviaryError, ModelUnavailable

SUFFIX = ".bfloat16"
SOURCE = "source.txt"
FLOAT32 = "preprocessor."  # the module whose tensors keep their precision
_SAMPLE = 1 << 20

log = logging.getLogger(__name__)


def find(path: Path, dtype: Any) -> Path:
    """Return the file to restore `path` from, for weights of the number type `dtype`."""
    prepared = path.with_name(path.name + SUFFIX)
    if not str(dtype).endswith(SUFFIX) or not prepared.is_file():
        return path
    try:
        if _source(prepared) == fingerprint(path):
            return prepared
        reason = "it was made of another file"
    except ModelUnavailable as error:
        reason = error.message
    log.warning("%s is not used: %s", prepared, reason)
    return path


def fingerprint(path: Path) -> str:
    """Return a hash of the names and sizes of a .nemo file's members, and of the last MiB of each.

    A checkpoint ends with the checksums of all its tensors, so the hash stands for them although they are not read.
    """
    digest = hashlib.sha256()
    with Archive(path) as archive:
        for member in archive:
            sample = Member(member.name, min(member.size, _SAMPLE), member.offset + max(0, member.size - _SAMPLE))
            digest.update(f"{member.name} {member.size}\0".encode())
            digest.update(archive.read(sample))
    return digest.hexdigest()


def prepare(path: Path) -> Path:
    """Write the prepared file of a .nemo file, and return its path.

    Raises: ModelUnavailable if the weights are not what NeMo saves; OSError if the file cannot be written.
    """
    import torch

    prepared = path.with_name(path.name + SUFFIX)
    made_of = fingerprint(path)
    with (
        tempfile.TemporaryDirectory(prefix=".prepared-", dir=path.parent) as folder,
        Archive(path) as archive,
        tarfile.open(Path(folder) / "archive", "w") as made,
    ):
        _add(made, SOURCE, io.BytesIO(made_of.encode()))
        for member in list(archive):
            file = Path(folder) / "member"
            archive.copy(member, file)
            if member.name == WEIGHTS:
                with file.open("rb") as weights:
                    state = tensors(weights)
                for name, value in state.items():
                    if value.is_floating_point() and not name.startswith(FLOAT32):
                        state[name] = value.to(torch.bfloat16)
                torch.save(state, file)
            with file.open("rb") as content:
                _add(made, member.name, content)
            file.unlink()
        made.close()
        os.replace(Path(folder) / "archive", prepared)
    return prepared


def _add(made: tarfile.TarFile, name: str, content: IO[bytes]) -> None:
    member = tarfile.TarInfo(f"./{name}")
    member.size = content.seek(0, os.SEEK_END)
    content.seek(0)
    made.addfile(member, content)


def _source(prepared: Path) -> str | None:
    """Return the fingerprint of the file that a prepared file was made of."""
    with Archive(prepared) as archive:
        for member in archive:
            if member.name == SOURCE:
                return archive.read(member, 1000).decode("ascii", "replace")
    return None


def main(name: str) -> None:
    """Prepare the weights of a model that is named as MODEL is, unless its weights are not a .nemo file."""
    try:
        settings = Settings()
        row = catalog.find(name, settings.places)
        if row.weights != "nemo":
            print(f"{name} needs no preparation: its weights are no .nemo file.")
            return
        path = prepare(checkpoints.nemo_file(row.checkpoint, settings))
    except (AviaryError, OSError) as error:
        sys.exit(f"{name} could not be prepared: {error}")
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m worker.backends.nemo.prepared OWNER/NAME")
    main(sys.argv[1])
