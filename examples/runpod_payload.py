"""Send a Runpod payload through the handler in this process, exactly as Runpod would.

Run this example from the root of the repository, with pocketsphinx in place of a GPU model:

    MODEL=pocketsphinx .venv/bin/python -m examples.runpod_payload

The same payload works on a deployed endpoint: POST it as JSON to https://api.runpod.ai/v2/<endpoint id>/runsync
with the header "Authorization: Bearer <Runpod API key>".
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from handler import handler

PAYLOAD: dict[str, Any] = {
    "input": {
        "task": "transcribe",
        "timestamps": ["word"],
        "inputs": [
            {"source": "samples/week.wav", "id": "week", "format": "srt"},
            "samples/missing.mp3",  # This input fails. The other inputs are transcribed all the same.
        ],
    }
}

if __name__ == "__main__":
    output = asyncio.run(handler({"id": "example", **PAYLOAD}))
    print(json.dumps(output, indent=2))
