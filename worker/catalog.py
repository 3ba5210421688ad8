"""The catalog: one row describes a model. Everything else that names models or what they can do is derived from it.

`find(name)` takes an alias, an id, a repository of the Parakeet family, or a path to a .nemo file, and gives its row.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from worker.errors import ModelNotFound, Unsupported
from worker.types import Options, Task

# The languages of parakeet-tdt-0.6b-v3, from its model card.
EUROPEAN = ("bg", "hr", "cs", "da", "nl", "en", "et", "fi", "fr", "de", "el", "hu", "it", "lv", "lt", "mt", "pl", "pt", "ro",
            "sk", "sl", "es", "sv", "ru", "uk")


@dataclass(frozen=True, slots=True)
class Model:
    """One model: what it is called, which backend runs it, what it can do, and on what terms it may be used.

    `options` are the fields of Options that it understands beside the task; the rest are refused, not ignored.
    """

    id: str
    backend: str
    tasks: tuple[Task, ...]
    licence: str
    aliases: tuple[str, ...] = ()
    languages: tuple[str, ...] = ("en",)
    timestamps: bool = False
    options: tuple[str, ...] = ("language",)
    max_sec: float | None = None


def _parakeet(name: str, *aliases: str, languages: tuple[str, ...] = ("en",), licence: str = "CC-BY-4.0") -> Model:
    return Model(id=name, backend="nemo", tasks=("transcribe",), licence=licence, aliases=aliases,
                 languages=languages, timestamps=True)


MODELS: tuple[Model, ...] = (
    _parakeet("nvidia/parakeet-tdt-0.6b-v3", "parakeet", "parakeet-v3", languages=EUROPEAN),
    _parakeet("nvidia/parakeet-tdt-0.6b-v2", "parakeet-v2"),
    _parakeet("nvidia/parakeet-tdt-1.1b", "parakeet-tdt-1.1b"),
    _parakeet("nvidia/parakeet-rnnt-1.1b", "parakeet-rnnt-1.1b"),
    _parakeet("nvidia/parakeet-rnnt-0.6b", "parakeet-rnnt-0.6b"),
    _parakeet("nvidia/parakeet-ctc-1.1b", "parakeet-ctc-1.1b"),
    _parakeet("nvidia/parakeet-ctc-0.6b", "parakeet-ctc-0.6b"),
    _parakeet("nvidia/parakeet-tdt_ctc-1.1b", "parakeet-tdt_ctc-1.1b"),
    _parakeet("nvidia/parakeet-tdt_ctc-110m", "parakeet-tdt_ctc-110m"),
    Model(id="pocketsphinx", backend="pocketsphinx", tasks=("transcribe",), licence="BSD-2-Clause", timestamps=True),
)


def find(name: str) -> Model:
    """The row for an alias, an id, a path or a repository. Raises ModelNotFound, which lists what there is."""
    for model in MODELS:
        if name == model.id or name in model.aliases:
            return model
    if name.endswith(".nemo"):
        return _parakeet(name, licence="its own")
    if name.count("/") == 1 and "parakeet" in name.lower():
        return _parakeet(name, licence="its own")
    known = ", ".join(model.aliases[0] if model.aliases else model.id for model in MODELS)
    raise ModelNotFound(f"model {name!r} is not known: use one of {known}, an id of the catalog, a repository of the "
                        "Parakeet family (owner/name), or a path to a .nemo file", param="model")


def check(model: Model, options: Options) -> None:
    """Raises Unsupported when the model cannot do what the options ask; the message says which models can."""
    if options.task not in model.tasks:
        able = [m.aliases[0] if m.aliases else m.id for m in MODELS if options.task in m.tasks]
        instead = f"; models that can: {', '.join(able)}" if able else "; no model of this version can"
        raise Unsupported(f"{model.id} cannot {options.task}, only {' and '.join(model.tasks)}{instead}", param="task")
    if options.timestamps and not model.timestamps:
        raise Unsupported(f"{model.id} gives no timestamps", param="timestamps")
    if options.language and options.language not in model.languages:
        raise Unsupported(f"{model.id} does not hear language {options.language!r}, only {', '.join(model.languages)}",
                          param="language")
    unset: dict[str, Any] = {"prompt": None, "style": None, "messages": (), "max_new_tokens": None, "temperature": None,
                             "top_p": None, "target_language": None}
    for name, empty in unset.items():
        if getattr(options, name) != empty and name not in model.options:
            raise Unsupported(f"{model.id} takes no {name}", param=name)
