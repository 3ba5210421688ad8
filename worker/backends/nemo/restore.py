"""A .nemo file → a NeMo model, with none of the file author's code run.

    .nemo ── walk headers ──▶ configurations ── vet ──▶ constructor, without random values ──┐
          ├─ unpack, into a private folder that is removed at the end ── tokenizer files ────┤
          └─ read in place ── tensors only ── cast ──────────────────────────────────────────┴──▶ model ──▶ device

This replaces NeMo's `restore_from`, which instantiates the classes that the configuration names, opens the files that
it names, and changes the working folder of the whole process meanwhile. A Canary archive may hold a second model, the
aligner, which is restored in the same way.

The weights are read once, from the archive into the tensors that become the parameters. They are cast one after another
in the host's memory, so neither the host nor the device ever holds them twice. The constructor's random values, which
take half of the time of NeMo's `restore_from`, are not computed.
"""

from __future__ import annotations

import contextlib
import pickle
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from worker.backends.common import disk, memory
from worker.backends.nemo.vetting import has_aligner, vet
from worker.catalog.model_config import ModelConfig
from worker.catalog.nemo_file import CONFIG, Archive, Member
from worker.errors import AviaryError, ModelError, ModelUnavailable
from worker.faults import translate

WEIGHTS = "model_weights.ckpt"
ALIGNER = "timestamps_asr_"  # the prefix of the aligner's two files


def restore(path: Path, device: Any, dtype: Any = None, parts: Collection[str] = ()) -> tuple[Any, Any]:
    """Return the model and its aligner, or None for the latter, on the device.

    The modules of the model that `parts` names get the `dtype`; all others keep the precision that NeMo gives them.
    Raises ModelUnavailable if the archive, the configuration or the weights are not what NeMo saves.
    """
    configs, members = _contents(path)
    if CONFIG not in configs or WEIGHTS not in members:
        raise ModelUnavailable(f"{path} is not a .nemo file: it requires a {CONFIG} and a {WEIGHTS}.")
    vetted = {name: vet(config, members) for name, config in configs.items()}  # before anything is unpacked
    aligned = ALIGNER + CONFIG in configs and ALIGNER + WEIGHTS in members and has_aligner(configs[CONFIG])
    with Archive(path) as archive, tempfile.TemporaryDirectory(prefix="aviary-nemo-") as name:
        folder = Path(name)  # only this user can enter it

        def build(prefix: str, dtype: Any = None, parts: Collection[str] = ()) -> Any:
            weights = members[prefix + WEIGHTS]
            opened = (folder / weights.name).open("rb") if archive.compressed else archive.open(weights)
            with opened as file, _explained(path, configs[prefix + CONFIG].nemo_version):
                return _build(vetted[prefix + CONFIG], file, dtype, parts)

        in_place = () if archive.compressed else (WEIGHTS, ALIGNER + WEIGHTS)
        _unpack(archive, [member for member in members.values() if member.name not in in_place], folder)
        with _restoring(path, folder):
            model = build("", dtype, parts).to(device)
            aligner = build(ALIGNER).to(device) if aligned else None
    memory.release()
    return model, aligner


def _contents(path: Path) -> tuple[dict[str, ModelConfig], dict[str, Member]]:
    """Return the configurations and all members by their names. The weights are not read."""
    configs, members = {}, {}
    with Archive(path) as archive:
        for member in archive:
            members[member.name] = member
            if member.name in (CONFIG, ALIGNER + CONFIG):
                configs[member.name] = ModelConfig(archive.read(member), f"{member.name} in {path}")
    return configs, members


def _unpack(archive: Archive, members: Iterable[Member], folder: Path) -> None:
    needed = sum(member.size for member in members)
    with disk.writing("the content of the .nemo file", folder.parent, lambda: needed, setting="TMPDIR"):
        for member in members:
            archive.copy(member, folder / member.name)


def _build(sections: dict[str, Any], weights: IO[bytes], dtype: Any, parts: Collection[str]) -> Any:
    """Return a model made of vetted sections, with its weights, for inference on the CPU."""
    import torch
    from nemo.utils.model_utils import import_class_by_path
    from omegaconf import OmegaConf

    with memory.many_objects(), without_random_values():
        model = import_class_by_path(sections["target"])(cfg=OmegaConf.create(sections))
    state = tensors(weights)
    _cast(model, state, dtype, parts)
    model.load_state_dict(state, strict=True, assign=True)
    for part in parts:
        if isinstance(module := getattr(model, part, None), torch.nn.Module):
            module.to(dtype)  # the buffers that a state does not hold, such as positional encodings
    return model.eval().requires_grad_(False)


def tensors(weights: IO[bytes]) -> dict[str, Any]:
    """Return the tensors of a checkpoint by their names, on the CPU.

    Raises ModelUnavailable if the file holds anything else.
    """
    import torch

    try:
        state: dict[str, Any] = torch.load(weights, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelUnavailable(
            f"{WEIGHTS} holds more than tensors, and loading it could run code. Use a checkpoint of Parakeet or Canary "
            "as NeMo's save_to() writes it."
        ) from error
    return state


def _cast(model: Any, state: dict[str, Any], dtype: Any, parts: Collection[str]) -> None:
    """Replace each tensor of the state by a parameter or buffer of the number type that it has in the model.

    A parameter with several names, such as an embedding that is also the output layer, remains one parameter.
    """
    import torch

    parameters: dict[int, Any] = {}
    for name, old in model.state_dict(keep_vars=True).items():
        if name in state:
            is_cast = name.split(".", 1)[0] in parts and old.is_floating_point()
            value = state[name].to(dtype if is_cast else old.dtype)
            if isinstance(old, torch.nn.Parameter):
                value = parameters.setdefault(id(old), torch.nn.Parameter(value, requires_grad=False))
            state[name] = value


def without_random_values() -> contextlib.AbstractContextManager[Any]:
    """Return a context in which this thread fills no tensor with random values: the tensor keeps what is in it.

    Only a call whose whole result is random is left out, so every other tensor gets its usual values. Other threads are
    not affected, because torch keeps its function modes for each thread.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    init, tensor = torch.nn.init, torch.Tensor
    random = {init.uniform_, init.normal_, init.kaiming_uniform_, tensor.uniform_, tensor.normal_}

    class WithoutRandomValues(TorchFunctionMode):  # type: ignore[misc]
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if function in random:
                return args[0] if args else kwargs["tensor"]
            return function(*args, **kwargs)

    return WithoutRandomValues()


@contextmanager
def _explained(path: Path, version: str | None) -> Iterator[None]:
    """Raise ModelUnavailable, with the file's version of NeMo and this one, in place of a foreign exception.

    An exception that is the fault of the device or of the host's memory is raised as it is.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, AviaryError) or type(translate(error)) is not ModelError:
            raise
        from nemo import __version__

        reason = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        saved = f"NeMo {version} saved it" if version else "the file does not say which version of NeMo saved it"
        raise ModelUnavailable(
            f"{path} does not load in NeMo {__version__}; {saved}. The reason is {reason}. Use a checkpoint of "
            "Parakeet or Canary as NeMo's save_to() writes it."
        ) from error


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
