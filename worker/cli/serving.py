"""serve: the HTTP server, in this process or in several."""
from __future__ import annotations

import argparse


def run(given: argparse.Namespace) -> int:
    """Serves until told to end. Raises ConfigError."""
    from worker.config import Settings
    from worker.server import serve

    return serve.run(Settings.of(given.config, model=given.model, model_dir=given.model_dir, device=given.device,
                                 host=given.host, port=given.port, workers=given.workers))
