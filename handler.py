"""The entry point of Aviary on Runpod serverless.

    python handler.py                        runs test_input.json
    python handler.py --test_input '{...}'   runs this payload
    python handler.py --rp_serve_api         serves the SDK's local API
    RUNPOD_SERVERLESS=1 python handler.py    starts the worker, as Runpod does
    RUNPOD_MODE=http python handler.py       starts the HTTP server, as a load-balancing endpoint of Runpod does

Importing this module starts nothing, and does not load torch, nemo, or transformers.
"""

from __future__ import annotations

from typing import Any

from worker.config import quiet_runpod_sdk

quiet_runpod_sdk()

from worker.entrypoints.runpod import RunpodWorker  # noqa: E402

_worker = RunpodWorker()


async def handler(job: dict[str, Any]) -> dict[str, Any]:
    """Return the result of a Runpod job. docs/payload.md describes the input of a job and its result."""
    answer: dict[str, Any] = await _worker.handle(job)
    return answer


if __name__ == "__main__":
    _worker.start()
