"""mcp: a server of the Model Context Protocol, on an engine of this process or on a server."""

from __future__ import annotations

import argparse
import functools

from worker import catalog, logs
from worker.config import Settings
from worker.errors import ConfigError


def run(args: argparse.Namespace) -> int:
    """Serve until the client ends the session, and return the exit code.

    Raises ConfigError without the package mcp, ModelNotFound, and RequestError for an address that is no URL.
    """
    try:
        from worker.entrypoints.mcp import server
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("mcp", "mcp_types"):
            raise
        raise ConfigError("aviary mcp requires the package mcp. Run: pip install 'aviary-worker[mcp]'") from error
    settings = Settings.of(model=args.model, model_dir=args.model_dir, device=args.device)
    logs.configure(settings)
    if args.url is None:
        from worker.entrypoints.mcp.local import LocalExecutor

        catalog.find(settings.meaning(settings.default_model), settings.places)
        server.serve(functools.partial(LocalExecutor, settings), args.http)
    else:
        from worker.client.calls import Calls
        from worker.entrypoints.mcp.remote import RemoteExecutor

        Calls(args.url, timeout=1, retries=0)  # checks the address before the server starts
        server.serve(functools.partial(RemoteExecutor, args.url, args.api_key, settings), args.http)
    return 0
