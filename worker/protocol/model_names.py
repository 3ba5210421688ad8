"""The name of a model in a request → its row of the catalog: which names a request may use, and what aliases mean.

    name ── MODEL_ALIASES ──▶ name of a model ── the catalog, MODEL, MODELS, ALLOWED_MODELS ──▶ row, or ModelNotFound

Requests of every entry point name their models here, so an alias works in all of them.
"""

from __future__ import annotations

import contextlib

from worker import catalog
from worker.config import Settings
from worker.errors import ModelNotFound, excerpt

_DIARIZE = "-diarize"  # at the end of the names of OpenAI's models that distinguish speakers


def find_model(name: str | None, settings: Settings, *, trusted: bool = False) -> catalog.Model:
    """Return the row of the model that a request names, by default the worker's.

    Requests name the models of the catalog (of ALLOWED_MODELS, if that is set), MODEL and MODELS. Other names, such as
    paths and repositories, are looked up only for a trusted request, or if ALLOWED_MODELS contains them. An alias of
    MODEL_ALIASES is allowed if the model that it means is.
    Raises ModelNotFound.
    """
    own = set(settings.start_models)
    allowed, asked = settings.allowed_models, name
    name = settings.meaning(name) if name else None
    if name is None or trusted or name in own or name in allowed or "*" in allowed:
        return catalog.find(name or settings.default_model, settings.places)
    listed = [model for model in catalog.MODELS if not allowed or {model.id, *model.aliases} & set(allowed)]
    for model in listed:
        if name == model.id or name in model.aliases:
            return model
    names = ", ".join(dict.fromkeys([*sorted(own), *(model.name for model in listed)]))
    meant = "" if name == asked else f", which means {name!r},"
    raise ModelNotFound(
        f"model {excerpt(str(asked))!r}{meant} is not available here: use one of {names}, or add it to ALLOWED_MODELS",
        param="model",
    )


def means_diarize(name: str | None, settings: Settings) -> bool:
    """Return whether the name of a model asks for speakers too: an alias whose name ends as OpenAI's does."""
    return name is not None and name.endswith(_DIARIZE) and name in settings.model_aliases


def aliases(settings: Settings) -> dict[str, str]:
    """Return the aliases of MODEL_ALIASES that requests may use, each with the id of the model that it means."""
    found: dict[str, str] = {}
    for alias in settings.model_aliases:
        with contextlib.suppress(ModelNotFound):
            found[alias] = find_model(alias, settings).id
    return found
