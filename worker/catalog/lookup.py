"""Name → row: by the catalog, by the configuration of a checkpoint on this machine, or by the family's name in it.

    name ── a row's? ── a part or a processor of a row? ── a path? ── a repository in MODEL_DIR or a cache? ── a hint?

A name is a hint about a checkpoint that is not on this machine yet. Once it is, its configuration decides, and is read
again when it changes. A checkpoint that cannot be read counts as absent; loading it reports the reason.
"""

from __future__ import annotations

import contextlib
import functools
import re
from dataclasses import replace
from pathlib import Path

from worker.catalog import facts, rows
from worker.catalog.model import Model
from worker.catalog.places import Places, nemo_in
from worker.catalog.rows import MODELS
from worker.errors import ModelNotFound, ModelUnavailable, excerpt

_TOWER = ":audio_tower"
NOWHERE = Places()


def find(name: str, places: Places = NOWHERE) -> Model:
    """Return the row for an alias, an id, a path or a repository. `places` are where repositories may be on this disk.

    Raises: ModelNotFound, with the names that can be used, if there is none; with what the checkpoint is and what is
    supported, if its configuration is of no known family.
    """
    if model := _listed(name) or _with_processor(name):
        return model
    if name.endswith(_TOWER):
        return rows.audio_tower(find(name.removesuffix(_TOWER), places))
    # A name may be too long for a file or begin with an unknown user's home, and refs/main of a cache may be damaged.
    with contextlib.suppress(OSError, RuntimeError, UnicodeDecodeError):
        if model := _on_disk(name, places):
            return model
    if model := _by_name(name):
        return model
    names = ", ".join(model.name for model in MODELS)
    raise ModelNotFound(
        f"unknown model {excerpt(name)!r}. Use one of {names}; an id from the catalog; a repository (owner/name) of "
        "one of these families; or the path of a .nemo file or of a checkpoint's folder.",
        param="model",
    )


def _listed(name: str) -> Model | None:
    return next((model for model in MODELS if name == model.id or name in model.aliases), None)


def _with_processor(name: str) -> Model | None:
    """Return the row for NAME:PROCESSOR, if NAME is a model that uses the processor of another one."""
    whole, _, processor = name.partition(":")
    model = _listed(whole) if processor else None
    if model is None or model.processor is None:
        return None
    return replace(model, id=f"{model.id}:{processor}", aliases=(), processor=processor)


def _on_disk(name: str, places: Places) -> Model | None:
    """Return the row for a .nemo file, a folder or a repository by its configuration, or None if it is not here."""
    if _is_nemo(name):
        file = places.file(name)
        return _inspect_nemo(name, file, _changed(file.parent, file.name)) if file else None
    path = Path(name).expanduser()
    if path.is_dir():
        return _inspect_folder(name, path)
    if not is_repository(name):
        return None
    return next(filter(None, (_inspect_folder(name, folder) for folder in places.folders(name))), None)


def _by_name(name: str) -> Model | None:
    """Return the row for a repository or a .nemo file that is not on this disk, by the family's name in it."""
    if _is_nemo(name):
        return rows.of_name(name) or rows.of_absent_file(name)
    return rows.of_name(name) if is_repository(name) else None


def is_repository(name: str) -> bool:
    """Return whether the name has the form owner/name. Neither part begins with a dot: `../name` is a path."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) is not None


def _is_nemo(name: str) -> bool:
    return name.endswith(".nemo")


def _inspect_folder(name: str, folder: Path) -> Model | None:
    """Return the row for a folder by its .nemo file, or by its config.json if it has none that can run.

    Raises: ModelNotFound if neither can run.
    """
    file = nemo_in(folder, name)
    if file is None:
        return _inspect_config(name, folder, _changed(folder))
    try:
        return _inspect_nemo(name, file, _changed(folder, file.name))
    except ModelNotFound:
        with contextlib.suppress(ModelNotFound):
            if model := _inspect_config(name, folder, _changed(folder)):
                return model
        raise


def _changed(folder: Path, *more: str) -> tuple[int, ...]:
    """Return the times of the last change of the files that decide about the folder; 0 for a file that is absent."""
    paths = (folder / name for name in (*facts.FILES, *more))
    return tuple(path.stat().st_mtime_ns if path.is_file() else 0 for path in paths)


@functools.lru_cache(maxsize=256)
def _inspect_nemo(name: str, file: Path, _changed: tuple[int, ...]) -> Model | None:
    """Return the row for a .nemo file, or None if it cannot be read. A change of the files makes it be read again.

    A model card beside it is about it if it is the folder's only .nemo file.
    """
    is_alone = len(list(file.parent.glob("*.nemo"))) == 1
    try:
        return rows.of_nemo(name, facts.of_nemo(file), facts.of_card(file.parent) if is_alone else facts.Card())
    except (OSError, ModelUnavailable):
        return None


@functools.lru_cache(maxsize=256)
def _inspect_config(name: str, folder: Path, _changed: tuple[int, ...]) -> Model | None:
    """Return the row for a folder without a .nemo file, or None if it has no config.json that can be read.

    A Parakeet of transformers in a repository says nothing: the repository also holds the .nemo file that runs.
    """
    try:
        found = facts.of_folder(folder)
    except (OSError, ModelUnavailable):
        return None
    if found is None or (is_repository(name) and rows.has_nemo_twin(found)):
        return None
    return rows.of_folder(name, found, facts.of_card(folder))
