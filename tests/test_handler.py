"""`python handler.py --test_input` for every task: in the dry run without torch, and with tiny models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import DIGITS, LABELS

pytestmark = pytest.mark.slow

REPO = Path(__file__).parent.parent
CLIP = next(iter(LABELS))
SHOWN = {
    "transcribe": "[dry-run] transcribe of",
    "translate": "[dry-run] translate of",
    "caption": "[dry-run] caption of",
    "chat": "[dry-run] chat of",
    "embed": "embedding of shape",
    "analyze": "[dry-run] analyze of",
}
END = "end of the run"
# handler.py as it is run by hand, once for each payload; libraries that take seconds to import are imported once.
RUNS = f"""
import json, runpy, sys
for payload in json.load(sys.stdin):
    sys.argv = ["handler.py", "--test_input", json.dumps({{"input": payload}})]
    try:
        runpy.run_path("handler.py", run_name="__main__")
    except SystemExit as end:
        assert not end.code, (payload, end.code)
    print("{END}")
"""


def run(payloads: list[dict], **environment: str) -> list[str]:
    """Return what `handler.py` prints on stdout for each payload."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("RUNPOD_", "MODEL", "PARAKEET"))}
    env |= {"ALLOWED_PATHS": str(DIGITS), "RUNPOD_LOG_LEVEL": "ERROR", "DEVICE": "cpu", **environment}
    done = subprocess.run(
        [sys.executable, "-c", RUNS],
        cwd=REPO,
        env=env,
        input=json.dumps(payloads),
        stdout=subprocess.PIPE,
        text=True,
        timeout=200,
        check=True,
    )
    *outputs, rest = done.stdout.split(END)
    assert (len(outputs), rest) == (len(payloads), "\n")
    return outputs


@pytest.fixture(scope="module")
def dry() -> dict[str, str]:
    payloads = [{"task": task, "inputs": [str(DIGITS / CLIP)]} for task in SHOWN]
    return dict(zip(SHOWN, run(payloads, SKIP_MODEL_LOAD="1"), strict=True))


@pytest.mark.parametrize(("task", "shown"), SHOWN.items())
def test_the_dry_run(dry, task, shown):
    assert shown in dry[task]


def test_tiny_models(tmp_path):
    pytest.importorskip("transformers", reason="transformers is not installed")
    from fixtures import tiny_flamingo, tiny_whisper

    audio, whisper = tiny_flamingo.save(tmp_path / "audio"), tiny_whisper.save(tmp_path / "whisper")
    asked = [
        (audio, "analyze", {"style": "brief", "max_new_tokens": 4}),
        (audio, "chat", {"messages": [{"role": "user", "content": "?"}], "max_new_tokens": 4}),
        (f"{audio}:audio_tower", "embed", {"pooling": "mean"}),
        (whisper, "translate", {"language": "de", "max_new_tokens": 4}),
    ]
    payloads = [
        {"task": task, "model": str(model), "inputs": [str(DIGITS / CLIP)], **more} for model, task, more in asked
    ]
    outputs = run(payloads, ALLOWED_MODELS="*")
    for (model, _, _), output in zip(asked, outputs, strict=True):
        assert "error" not in output
        assert f"{Path(str(model)).name}\n" in output
