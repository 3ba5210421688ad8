"""Name → row: by the catalog, by the configuration of a checkpoint on disk, or by the family's name in it.

The configuration is read again when the file or folder changes. A checkpoint that cannot be read counts as absent;
loading it reports the reason.
"""

from __future__ import annotations

import functools
import json
import re
from dataclasses import replace
from pathlib import Path

from worker.catalog import nemo_file, rows
from worker.catalog.model import Model
from worker.catalog.rows import MODELS
from worker.errors import ModelNotFound, ModelUnavailable, excerpt

_TOWER = ":audio_tower"


def find(name: str) -> Model:
    """Return the row for an alias, an id, a path or a repository.

    Raises: ModelNotFound, with the names that can be used, if there is none.
    """
    for step in (_listed, _tower_alone, _with_processor, _on_disk, _by_name):
        if model := step(name):
            return model
    names = ", ".join(model.name for model in MODELS)
    raise ModelNotFound(
        f"unknown model {excerpt(name)!r}. Use one of {names}; an id from the catalog; a repository (owner/name) of "
        "one of these families; or the path of a .nemo file or of a checkpoint's folder.",
        param="model",
    )


def _listed(name: str) -> Model | None:
    return next((model for model in MODELS if name == model.id or name in model.aliases), None)


def _tower_alone(name: str) -> Model | None:
    """Return the row for NAME:audio_tower. Raises: ModelNotFound if there is no row for NAME."""
    return rows.audio_tower(find(name.removesuffix(_TOWER))) if name.endswith(_TOWER) else None


def _with_processor(name: str) -> Model | None:
    """Return the row for NAME:PROCESSOR, if NAME is a model that uses the processor of another one."""
    whole, _, processor = name.partition(":")
    model = _listed(whole) if processor else None
    if model is None or model.processor is None:
        return None
    return replace(model, id=f"{model.id}:{processor}", aliases=(), processor=processor)


def _on_disk(name: str) -> Model | None:
    """Return the row for a .nemo file or a folder, or None if it is absent or its configuration is of no family."""
    path = Path(name)
    if not (_is_nemo(name) or path.is_dir()):
        return None
    try:
        return _inspect(name, path.expanduser().stat().st_mtime_ns)
    except OSError:
        return None


def _by_name(name: str) -> Model | None:
    """Return the row for a repository, or a .nemo file that is not on this disk, by the family's name in it."""
    if _is_nemo(name):
        return rows.of_name(name) or rows.of_nemo(name)
    return rows.of_name(name) if is_repository(name) else None


def is_repository(name: str) -> bool:
    """Return whether the name has the form owner/name. Neither part begins with a dot: `../name` is a path."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) is not None


def _is_nemo(name: str) -> bool:
    return name.endswith(".nemo")


@functools.lru_cache(maxsize=256)
def _inspect(name: str, _changed: int) -> Model | None:
    """Return the row for a checkpoint by its configuration. `_changed`, its time of change, makes it be read again."""
    path = Path(name).expanduser()
    try:
        if not path.is_dir():
            return rows.of_nemo(name, nemo_file.config_text(path))
        if files := sorted(path.glob("*.nemo")):
            model = _on_disk(str(files[0]))
            return replace(model, id=name) if model else None
        return rows.of_config(name, json.loads((path / "config.json").read_text()))
    except (OSError, ValueError, ModelUnavailable):
        return None
