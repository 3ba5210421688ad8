"""`python handler.py --test_input` for every task: in the dry run without torch, and with tiny models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import DIGITS, LABELS

REPO = Path(__file__).parent.parent
CLIP = next(iter(LABELS))


def run(payload: dict, **environment: str) -> str:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("RUNPOD_", "MODEL", "PARAKEET"))}
    env |= {"ALLOWED_PATHS": str(DIGITS), "RUNPOD_LOG_LEVEL": "ERROR", "DEVICE": "cpu", **environment}
    done = subprocess.run(
        [sys.executable, "handler.py", "--test_input", json.dumps({"input": payload})],
        cwd=REPO,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout


@pytest.mark.parametrize(
    ("task", "shown"),
    [
        ("transcribe", "[dry-run] transcribe of"),
        ("translate", "[dry-run] translate of"),
        ("caption", "[dry-run] caption of"),
        ("chat", "[dry-run] chat of"),
        ("embed", "embedding of shape"),
        ("analyze", "[dry-run] analyze of"),
    ],
)
def test_the_dry_run(task, shown):
    assert shown in run({"task": task, "inputs": [str(DIGITS / CLIP)]}, SKIP_MODEL_LOAD="1")


def test_tiny_models(tmp_path):
    pytest.importorskip("transformers", reason="transformers is not installed")
    from fixtures import tiny_flamingo, tiny_whisper

    audio, whisper = tiny_flamingo.save(tmp_path / "audio"), tiny_whisper.save(tmp_path / "whisper")
    asked = [
        (audio, "analyze", {"style": "brief"}),
        (audio, "chat", {"messages": [{"role": "user", "content": "?"}]}),
        (f"{audio}:audio_tower", "embed", {"pooling": "mean"}),
        (whisper, "translate", {"language": "de"}),
    ]
    for model, task, more in asked:
        limit = {} if task == "embed" else {"max_new_tokens": 4}
        said = run({"task": task, "model": str(model), "inputs": [str(DIGITS / CLIP)], **limit, **more})
        assert "error" not in said
        assert f"{Path(str(model)).name}\n" in said
