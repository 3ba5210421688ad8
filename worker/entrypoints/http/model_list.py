"""The models of a server: the catalog, and what only this server knows of each.

    listed(service)        the entries of GET /v1/models     catalog row + what only this server knows
    entry(service, name)   one of them, or that of another model that requests may name

Only the server knows `loaded`, `default`, `installed`, `on_disk`, `size_bytes` and `download`. `on_disk` says whether
the weights are on this machine, and `size_bytes` how large their files are. Both are null in a dry run, which reads no
weights; `size_bytes` is also null if the weights are in a package or must be downloaded. `download` has the progress
while a process of this machine downloads the model, else it is null.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from typing import Any

from worker import catalog
from worker.backends.common import checkpoints, hub_cache
from worker.config import Settings
from worker.entrypoints.http.service import Service
from worker.errors import ModelNotFound
from worker.protocol import openai
from worker.protocol.model_names import find_model

Json = dict[str, Any]


def listed(service: Service) -> list[Json]:
    """Return the models of the settings that are not in the catalog, the catalog, and the aliases.

    The models of the settings are MODEL, MODELS and the names in ALLOWED_MODELS. Blocks on the disk.
    """
    rows = {row.id: row for row in (*_own(service.settings), *catalog.MODELS)}
    return openai.with_aliases((_entry(service, row) for row in rows.values()), service.settings)


def entry(service: Service, name: str) -> Json:
    """Return the entry of a model. Blocks on the disk. Raises ModelNotFound."""
    for one in listed(service):
        if name == one["id"] or name in one["aliases"]:
            return one
    return _entry(service, find_model(name, service.settings))


def download_json(download: hub_cache.Download) -> Json:
    """Return the progress of a download as JSON."""
    return {"bytes_done": download.bytes_done, "bytes_total": download.bytes_total}


def _entry(service: Service, row: catalog.Model) -> Json:
    return (
        openai.model_json(row)
        | {"loaded": service.engine.models.get(row.id) == "ready", "default": row.id == service.default}
        | _facts(row, service.settings)
    )


def _own(settings: Settings) -> Iterator[catalog.Model]:
    """Yield the rows of the settings' models that are not in the catalog. A model that cannot run is left out."""
    places = settings.places
    for name in (*settings.start_models, *settings.allowed_models):
        with contextlib.suppress(ModelNotFound):
            row = catalog.find(name, places)
            if row not in catalog.MODELS:
                yield row


def _facts(row: catalog.Model, settings: Settings) -> Json:
    if settings.skip_model_load:
        return {"installed": True, "on_disk": None, "size_bytes": None, "download": None}
    installed = all(importlib.util.find_spec(name) is not None for name in row.needs)
    if row.weights == "embedded":
        return {"installed": installed, "on_disk": True, "size_bytes": None, "download": None}
    size = checkpoints.disk_bytes(row, settings)
    running = hub_cache.progress(row, settings) if size is None else None
    return {
        "installed": installed,
        "on_disk": size is not None,
        "size_bytes": size,
        "download": None if running is None else download_json(running),
    }
