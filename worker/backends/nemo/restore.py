"""A .nemo file → a NeMo model, with none of the file author's code run.

    .nemo ── walk headers ──▶ configurations ── vet ──▶ constructor ◀── tokenizer files ┐
          └─ unpack, into a private folder that is removed at the end ─────────────────┼─ weights: tensors only

This replaces NeMo's `restore_from`, which instantiates the classes that the configuration names, opens the files that
it names, and changes the working folder of the whole process meanwhile. A Canary archive may hold a second model, the
aligner, which is restored in the same way.
"""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from worker.backends.nemo.model_config import ModelConfig
from worker.backends.nemo.vetting import has_aligner, vet
from worker.catalog.nemo_file import CONFIG, Archive
from worker.errors import ModelUnavailable

WEIGHTS = "model_weights.ckpt"
ALIGNER = "timestamps_asr_"  # the prefix of the aligner's two files


def restore(path: Path, device: Any) -> tuple[Any, Any]:
    """Return the model and its aligner, or None for the latter, on the device and in the precision of the file.

    Raises ModelUnavailable if the archive, the configuration or the weights are not what NeMo saves.
    """
    configs, files = _contents(path)
    if CONFIG not in configs or WEIGHTS not in files:
        raise ModelUnavailable(f"{path} is not a .nemo file: it requires a {CONFIG} and a {WEIGHTS}.")
    vetted = {name: vet(config, files) for name, config in configs.items()}  # before anything is unpacked
    with tempfile.TemporaryDirectory(prefix="aviary-nemo-") as name:  # only this user can enter it
        folder = Path(name)
        _unpack(path, folder)
        aligned = ALIGNER + CONFIG in configs and ALIGNER + WEIGHTS in files and has_aligner(configs[CONFIG])
        with _restoring(path, folder):
            model = _build(vetted[CONFIG], folder / WEIGHTS, device)
            aligner = _build(vetted[ALIGNER + CONFIG], folder / f"{ALIGNER}{WEIGHTS}", device) if aligned else None
    return model, aligner


def _contents(path: Path) -> tuple[dict[str, ModelConfig], set[str]]:
    """Return the configurations by their names, and the names of all files. The weights are not read."""
    configs, files = {}, set()
    with Archive(path) as archive:
        for member in archive:
            files.add(member.name)
            if member.name in (CONFIG, ALIGNER + CONFIG):
                configs[member.name] = ModelConfig(archive.read(member), f"{member.name} in {path}")
    return configs, files


def _unpack(path: Path, folder: Path) -> None:
    with Archive(path) as archive:
        for member in archive:
            archive.copy(member, folder / member.name)


def _build(sections: dict[str, Any], weights: Path, device: Any) -> Any:
    """Return a model made of vetted sections, with its weights, for inference on the device."""
    import torch
    from nemo.utils.model_utils import import_class_by_path
    from omegaconf import OmegaConf

    model = import_class_by_path(sections["target"])(cfg=OmegaConf.create(sections)).to(device)
    try:
        state = torch.load(weights, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelUnavailable(
            f"{weights.name} holds more than tensors, and loading it could run code. Use a checkpoint of Parakeet or "
            "Canary as NeMo's save_to() writes it."
        ) from error
    model.load_state_dict(state, strict=True)
    return model.eval().requires_grad_(False)


@contextmanager
def _restoring(path: Path, folder: Path) -> Iterator[None]:
    """Make NeMo's constructors find the tokenizer's files in the folder, and leave out the training data.

    NeMo keeps the path, from which `save_to` of the model copies these files.
    """
    from nemo.core.classes import ModelPT
    from nemo.utils.app_state import AppState

    AppState().model_restore_path = str(path)
    ModelPT._set_model_restore_state(is_being_restored=True, folder=str(folder))
    try:
        yield
    finally:
        ModelPT._set_model_restore_state(is_being_restored=False)
