"""Measurements of the models that generate text: captions in batches, analysis in one pass, the audio tower alone, and
long speech in windows.
"""

from __future__ import annotations

import json
import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import corpus
from benchmarks.measures import Row, seconds
from worker.backends import create
from worker.backends.common.audio_tower import load_tower, tower_bytes
from worker.catalog import find
from worker.config import Settings
from worker.engine.chunking import split
from worker.types import Batch, Clip, Options, Piece

CANARY = str(corpus.FIXTURES / "canary-digits.nemo")


def _flamingo(folder: str) -> Any:
    """Return the backend of a tiny Flamingo, loaded on the CPU."""
    from tests.fixtures import tiny_flamingo

    tiny_flamingo.save(Path(folder))
    backend = create(find(folder), Settings(device="cpu"))
    backend.load()
    return backend


def _pieces(count: int, task: Any, tokens: int = 64) -> list[Piece]:
    """Return `count` pieces of noise of 5 to 25 s."""
    rng = np.random.default_rng(0)
    options = Options("m", task, max_new_tokens=tokens)
    return [
        Piece(Clip(rng.standard_normal(int(length * 16_000), dtype=np.float32) * 0.1), options)
        for length in rng.uniform(5, 25, count)
    ]


def captions() -> list[Row]:
    """Compare eight captions in a batch with eight one by one.

    The captions have a typical length (200 tokens) or are short, so that the audio tower outweighs the generation.
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        backend = _flamingo(folder)
        for tokens in (200, 64):
            pieces = _pieces(8, "caption", tokens)
            backend.infer(Batch(tuple(pieces)))
            together = seconds(lambda pieces=pieces: backend.infer(Batch(tuple(pieces))), 5)
            apart = seconds(lambda pieces=pieces: [backend.infer(Batch((piece,))) for piece in pieces], 5)
            shown = f"{apart / together:.1f} x ({together:.2f} s against {apart:.2f} s)"
            promised = "at least 3 x one by one" if tokens == 200 else "reported"
            rows.append(
                Row(
                    f"8 captions of {tokens} tokens in one batch",
                    shown,
                    promised,
                    apart >= 3 * together if tokens == 200 else None,
                )
            )
    return rows


def analyze() -> list[Row]:
    """Compare a caption and an embedding from one pass with the caption alone."""
    with tempfile.TemporaryDirectory() as folder:
        backend = _flamingo(folder)
        batches = [Batch(tuple(_pieces(8, task))) for task in ("caption", "analyze")]
        for batch in batches:
            backend.infer(batch)
        pairs = [tuple(seconds(lambda batch=batch: backend.infer(batch)) for batch in batches) for _ in range(9)]
    caption, both = (float(np.median(column)) for column in zip(*pairs, strict=True))
    shown = f"{both / caption:.2f} ({both:.2f} s against {caption:.2f} s)"
    return [Row("analyze, 8 clips", shown, "at most 1.1 of caption alone", both <= 1.1 * caption)]


def tower() -> list[Row]:
    """Load the audio tower of a full-size checkpoint, whose sparse files have the real headers and no content."""
    import torch
    import transformers

    from tests.fixtures import tiny_flamingo

    config = tiny_flamingo.full_size()
    with torch.device("meta"):
        whole = transformers.AudioFlamingo3ForConditionalGeneration(config)
    shapes = {name.removeprefix("model."): tensor.shape for name, tensor in whole.state_dict().items()}
    everything = sum(shape.numel() for shape in shapes.values())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_sparse(folder, shapes)
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        read = tower_bytes(folder)
        alone = load_tower(folder, config.audio_config, torch.bfloat16, torch.device("cpu"))
        loaded = sum(parameter.numel() for parameter in alone.parameters())
    shown = (
        f"{loaded / everything:.1%} of {everything / 1e9:.2f} billion parameters held, {read / size:.1%} of "
        f"{size / 1e9:.1f} GB read"
    )
    return [
        Row(
            "the audio tower alone, full size",
            shown,
            "at most 10% of each",
            max(loaded / everything, read / size) <= 0.1,
        )
    ]


def write_sparse(folder: Path, shapes: dict[str, Any], shards: int = 4) -> None:
    """Write a sharded bfloat16 checkpoint of these shapes, all zeros, that takes no room on disk."""
    names, places = list(shapes), {}
    total = 2 * sum(shape.numel() for shape in shapes.values())
    for shard in range(shards):
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        at = 0
        for name in names[shard::shards]:
            length = 2 * shapes[name].numel()
            header[name] = {"dtype": "BF16", "shape": list(shapes[name]), "data_offsets": [at, at + length]}
            at, places[name] = at + length, f"model-{shard}.safetensors"
        text = json.dumps(header).encode()
        with (folder / f"model-{shard}.safetensors").open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + at)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": places})
    )


def long_canary() -> list[Row]:
    """Compare the windows of ten minutes of digits in batches with the same windows one by one."""
    spoken = [audio for audio, _ in corpus.readings()]
    rng = np.random.default_rng(0)
    pause = np.zeros(6400, np.float32)
    audio = np.concatenate([part for _ in range(300) for part in (spoken[rng.integers(len(spoken))], pause)])[
        : 600 * 16_000
    ]
    backend = create(find(CANARY), Settings(device="cpu"))
    backend.load()
    pieces = [
        Piece(Clip(audio[start:end]), Options(CANARY)) for start, end in split(audio, find(CANARY).window_sec or 40)
    ]
    backend.infer(Batch(tuple(pieces[:2])))
    together = seconds(lambda: backend.infer(Batch(tuple(pieces))), 3)
    apart = seconds(lambda: [backend.infer(Batch((piece,))) for piece in pieces], 3)
    shown = f"{apart / together:.1f} x ({len(pieces)} windows: {together:.2f} s against {apart:.2f} s)"
    name = "10 minutes through Canary in batched windows"
    return [Row(name, shown, "at least 1.5 x one after another", apart >= 1.5 * together)]


ALL = {measure.__name__: measure for measure in (captions, analyze, tower, long_canary)}
