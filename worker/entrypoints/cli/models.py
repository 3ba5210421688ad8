"""models: the models of the catalog."""

from __future__ import annotations

import argparse

from worker import catalog


def run(_args: argparse.Namespace) -> int:
    """Print the name, id and tasks of each model, one per line, and return the exit code."""
    for model in catalog.MODELS:
        print(f"{model.name:28} {model.id:48} {', '.join(model.tasks)}")
    return 0
