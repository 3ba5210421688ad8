"""The models of a server: the catalog, and what only this server knows of each.

    listed(service)   the entries of GET /v1/models     catalog row + loaded, default, installed, on_disk, size_bytes

`on_disk` says whether the weights are on this machine, and `size_bytes` how large their files are. Both are null in a
dry run, which reads no weights; `size_bytes` is also null if the weights are in a package or must be downloaded.
"""

from __future__ import annotations

import importlib.util
from typing import Any

from worker import catalog
from worker.backends.common import checkpoints
from worker.config import Settings
from worker.entrypoints.http.service import Service
from worker.protocol import openai

Json = dict[str, Any]


def listed(service: Service) -> list[Json]:
    """Return the models of the settings that are not in the catalog, the catalog, and the aliases.

    Blocks on the disk.
    """
    settings, states = service.settings, service.engine.models
    own = map(catalog.find, settings.start_models)
    rows = {row.id: row for row in (*(row for row in own if row not in catalog.MODELS), *catalog.MODELS)}
    facts = (
        openai.model_json(row)
        | {"loaded": states.get(row.id) == "ready", "default": row.id == service.default}
        | _facts(row, settings)
        for row in rows.values()
    )
    return openai.with_aliases(facts, settings)


def _facts(row: catalog.Model, settings: Settings) -> Json:
    if settings.skip_model_load:
        return {"installed": True, "on_disk": None, "size_bytes": None}
    installed = all(importlib.util.find_spec(name) is not None for name in row.needs)
    if row.weights == "embedded":
        return {"installed": installed, "on_disk": True, "size_bytes": None}
    size = checkpoints.disk_bytes(row, settings)
    return {"installed": installed, "on_disk": size is not None, "size_bytes": size}
