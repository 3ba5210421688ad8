"""Whether the default model can load: its row says which libraries and which weights it needs."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from worker.entrypoints.cli.doctor.finding import Finding, install

if TYPE_CHECKING:
    from worker.catalog import Model
    from worker.config import Settings


def check(settings: Settings) -> Iterator[Finding]:
    """Yield whether the libraries of the default model are installed and its weights on this machine, or on the hub."""
    from worker import catalog

    row = catalog.find(settings.default_model, settings.places)
    if settings.skip_model_load:
        yield Finding("model", f"{row.id} is not loaded: SKIP_MODEL_LOAD=1 selects a dry run")
        return
    if missing := [name for name in row.needs if not importable(name)]:
        yield Finding("model", f"{row.id} needs {' and '.join(missing)}", install(row.needs))
    if row.weights == "embedded":
        yield Finding("model", f"{row.id}, weights in its package")
    else:
        yield _on_disk(row, settings)


def hashes(_settings: Settings) -> Iterator[Finding]:
    """Yield which models of the catalog load only with a file of a known hash."""
    from worker import catalog

    pinned = [model.name for model in catalog.MODELS if model.sha256]
    yield Finding("hashes", f"SHA-256 pinned for {', '.join(pinned) or 'no model of the catalog'}")


def needs(settings: Settings) -> tuple[str, ...]:
    """Return the modules that the default model needs beyond requirements-base.txt; none for a dry run."""
    from worker import catalog

    return () if settings.skip_model_load else catalog.find(settings.default_model, settings.places).needs


def importable(name: str) -> bool:
    """Return whether a top-level module is installed. The module is not imported."""
    return importlib.util.find_spec(name) is not None


def _on_disk(row: Model, settings: Settings) -> Finding:
    """Return where the weights are on this machine; if they are not, whether the hub has them."""
    from worker.backends.common import checkpoints
    from worker.errors import ModelUnavailable

    name = row.checkpoint
    try:
        found = checkpoints.on_disk(row, settings)
    except ModelUnavailable as error:
        if settings.hf_hub_offline or Path(name).is_dir() or name.endswith(".nemo"):
            return Finding("model", error.message, "Put the weights there, or set HF_HUB_OFFLINE=0 to download them")
        return _on_hub(name)
    return Finding("model", f"{row.id}, weights in {found}")


def _on_hub(name: str) -> Finding:
    """Return whether the hub lets this machine download the weights of a repository."""
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        huggingface_hub.auth_check(name)
    except GatedRepoError:
        return Finding(
            "model",
            f"{name} is gated and not on this machine",
            f"Accept its license on https://huggingface.co/{name} and set HF_TOKEN",
        )
    except RepositoryNotFoundError:
        return Finding("model", f"{name} is not on the hub, or is private", "Check the name, or set HF_TOKEN")
    except Exception as error:  # noqa: BLE001  errors of httpx, of requests or of the system: all mean the same here
        return Finding(
            "model",
            f"{name} is not on this machine, and the hub cannot be reached ({type(error).__name__})",
            "Put the weights into MODEL_DIR or the Hugging Face cache, or give this machine access to the hub",
        )
    return Finding("model", f"{name} is not on this machine; it is downloaded from the hub at the first start")
