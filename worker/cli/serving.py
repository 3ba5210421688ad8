"""serve: the HTTP server, in this process or in several."""
from __future__ import annotations

import argparse


def run(given: argparse.Namespace) -> int:
    """Serves until told to end. Raises ConfigError."""
    from worker import api
    from worker.server import serve

    return serve.run(api.settings_of(given.model, given.model_dir, config=given.config, device=given.device, host=given.host,
                                     port=given.port, workers=given.workers))
