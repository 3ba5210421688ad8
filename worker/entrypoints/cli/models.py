"""models: the catalog."""

from __future__ import annotations

import argparse

from worker import catalog


def run(_given: argparse.Namespace) -> int:
    """A line a model: what it is called, its id, its tasks."""
    for model in catalog.MODELS:
        print(f"{model.name:28} {model.id:48} {', '.join(model.tasks)}")
    return 0
