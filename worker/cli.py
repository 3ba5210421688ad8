"""The command line: `python -m worker COMMAND`. It trusts the paths it is given; what it prints is what was asked for.

    serve     the HTTP server
    models    the catalog

Exit codes: 0, 1 (some inputs failed), 2 (usage or configuration).
"""
from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from worker.config import ConfigError, Settings
from worker.errors import AviaryError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code."""
    parser = _parser()
    given = parser.parse_args(arguments)
    try:
        code: int = given.run(given)
    except (ConfigError, AviaryError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="aviary", description="One worker for NVIDIA's speech and audio models.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for add in (_serve, _models):
        add(commands)
    return parser


def _serve(commands: Any) -> None:
    command = commands.add_parser("serve", help="start the HTTP server")
    command.add_argument("--host", help="address to bind to (HOST)")
    command.add_argument("--port", type=int, help="port (PORT)")
    command.add_argument("--model", help="default model (MODEL)")
    command.add_argument("--model-dir", type=Path, help="folder with checkpoints (MODEL_DIR)")
    command.add_argument("--config", type=Path, metavar="FILE.yaml", help="settings, below the environment and the flags")
    command.add_argument("--workers", type=int, help="server processes (WORKERS); 0: one a GPU")
    command.set_defaults(run=_run_serve)


def _run_serve(given: argparse.Namespace) -> int:
    from worker.server import serve

    settings = Settings.of(given.config, host=given.host, port=given.port, model=given.model, model_dir=given.model_dir,
                           workers=given.workers)
    return serve.run(settings)


def _models(commands: Any) -> None:
    command = commands.add_parser("models", help="list the catalog")
    command.set_defaults(run=_run_models)


def _run_models(_given: argparse.Namespace) -> int:
    from worker import catalog

    for model in catalog.MODELS:
        print(f"{model.name:28} {model.id:48} {', '.join(model.tasks)}")
    return 0
