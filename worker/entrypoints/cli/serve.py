"""serve: the HTTP server, in this process or in several."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from worker.config import Settings


def run(args: argparse.Namespace) -> int:
    """Serve until a signal ends the server, and return the exit code. Raises ConfigError for unusable settings."""
    from worker.config import Settings

    return serve(
        Settings.of(
            args.config,
            model=args.model,
            model_dir=args.model_dir,
            device=args.device,
            host=args.host,
            port=args.port,
            workers=args.workers,
        )
    )


def serve(settings: Settings) -> int:
    """Serve in this process or, if WORKERS selects several, in processes behind the gateway. Return the exit code.

    Raises ConfigError for unusable settings.
    """
    from worker import logs
    from worker.entrypoints.http.auth import check_address
    from worker.errors import ConfigError

    settings = _with_legacy_address(settings)
    if settings.audio_score_server_socket is None:
        check_address(settings)
    logs.configure(settings)
    settings.make_data_dir()
    if settings.workers != 1:
        from worker.engine.placement import placements
        from worker.entrypoints.http.gateway import nginx, supervisor

        several = placements(settings)
        if len(several) > 1:
            if settings.port_health not in (None, settings.port):
                raise ConfigError("WORKERS above 1 requires one port: set PORT_HEALTH to PORT, or WORKERS=1.")
            return supervisor.run(settings, several, nginx.find())
    from worker.entrypoints.http.serve import serve as serve_here

    return serve_here(settings, uds=settings.audio_score_server_socket)


def _with_legacy_address(settings: Settings) -> Settings:
    """Return the settings, with AUDIO_SCORE_SERVER_HOST and _PORT as HOST and PORT if those are not set."""
    others = {"host": settings.audio_score_server_host, "port": settings.audio_score_server_port}
    return settings.model_copy(
        update={
            name: value for name, value in others.items() if value is not None and name not in settings.model_fields_set
        }
    )
