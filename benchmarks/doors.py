"""Measurements of other entry points: the command line against the engine, scoring against the calls it consists of."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import corpus
from benchmarks.http import Ask, ask_all, served, speech, upload
from benchmarks.measures import NAME, ROOT, Row

_ENGINE = """
import sys, time
from worker.config import Settings
from worker.engine.engine import Engine
from worker.protocol.request import parse
settings = Settings()
with Engine(settings) as engine:
    engine.load(settings.default_model).result()
    started = time.monotonic()
    response = engine.submit(parse({"inputs": sys.argv[1:]}, settings, trusted=True)).result()
    elapsed = time.monotonic() - started
    assert not any(hasattr(outcome, "error") for outcome in response.results)
    print(elapsed)
"""


def command() -> list[Row]:
    """Compare `aviary transcribe` on 120 short files with direct calls of the engine, in alternating processes.

    In both, the time starts after the model is loaded, when the request is sent. The engine's process measures it; for
    the command it is the `elapsed_sec` of the input that finished last. Start-up (imports and loading) and the writing
    of the last line are excluded.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = [str(path) for path, _ in corpus.mixed(folder)]
        variables = os.environ | {"MODEL": NAME, "DEVICE": "cpu", "LOG_LEVEL": "ERROR"}

        def run(*arguments: str) -> str:
            return subprocess.run(
                [sys.executable, *arguments, *paths],
                cwd=ROOT,
                env=variables,
                check=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            ).stdout

        def by_command() -> float:
            return max(
                json.loads(line)["elapsed_sec"]
                for line in run("-m", "worker", "transcribe", "--format", "jsonl").splitlines()
            )

        def by_engine() -> float:
            return float(run("-c", _ENGINE).splitlines()[-1])

        pairs = [(by_command(), by_engine()) for _ in range(6)][1:]
    ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(mine / other for mine, other in pairs)
    return [
        Row(
            "120 files by `aviary transcribe`, start-up apart",
            f"{ratio:.2f} ({ours:.2f} against {theirs:.2f} s)",
            "at most 1.1 of the engine called directly",
            ratio <= 1.1,
        )
    ]


def scoring() -> list[Row]:
    """Compare a score against a cached reference with a transcription and an embedding of the same recording.

    The requests alternate on one server with the tests' tiny Whisper, which writes the same few words each time.
    """
    from tests.fixtures import tiny_whisper

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny_whisper.save(folder / "models" / "whisper-small", positions=40, seed=3)
        recording, reference = speech(folder, 2)
        (folder / "clips").mkdir()
        reference.rename(folder / "clips" / "video_clip.wav")
        (folder / "config.json").write_text(
            json.dumps(
                {
                    "models": [{"key": "whisper", "type": "whisper", "model_id": "openai/whisper-small"}],
                    "video_clip_dir": "clips",
                    "cache_dir": "cache",
                    "target_sampling_rate": 16_000,
                }
            )
        )
        clip = [recording.read_bytes()]
        score = upload("/score", clip, "audio", uid="video", cid="clip")
        transcribe = upload("/v1/audio/transcriptions", clip)
        embed = upload("/v1/audio/embeddings", clip, pooling="mean")
        with served(
            folder,
            MODEL="whisper-small",
            MODEL_DIR=str(folder / "models"),
            DEVICE="cpu",
            HF_HUB_OFFLINE="1",
            AUDIO_SCORE_CONFIG=str(folder / "config.json"),
        ) as url:

            def seconds(*asks: Ask) -> float:
                return sum(asyncio.run(ask_all(url, ask, 1, 1)) for ask in asks)

            pairs = [(seconds(score), seconds(transcribe, embed)) for _ in range(66)][6:]
    ratio = statistics.median(mine / other for mine, other in pairs)
    mine, other = (statistics.median(column) * 1000 for column in zip(*pairs, strict=True))
    return [
        Row(
            "a score with its reference cached",
            f"{ratio:.2f} ({mine:.0f} against {other:.0f} ms)",
            "at most 1.2 of a transcription and an embedding",
            ratio <= 1.2,
        )
    ]


ALL = {measure.__name__: measure for measure in (command, scoring)}
