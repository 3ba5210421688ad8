"""Measurements on a CUDA device: full-size Parakeet, Canary and Audio Flamingo with random weights.

The rows report speed, memory, and Parakeet's graph captures after the warm-up. Random weights emit unrealistic numbers
of tokens. So Parakeet's encoder is timed separately, and its figure is the one to compare; the other models generate a
fixed number of tokens. This file was written without access to a GPU and has not run yet.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from benchmarks.measures import Row


def measure() -> list[Row]:
    """Measure all models, or return one row that says that there is no CUDA device."""
    from benchmarks.measures import Row

    try:
        import torch
    except ImportError:
        torch = None
    if torch is None or not torch.cuda.is_available():
        return [Row("full-size models on a GPU", "not run: no CUDA device here", "reported", None)]
    return [*parakeet(), *canary(), *flamingo()]


def parakeet() -> list[Row]:
    """Measure batches of several sizes and lengths through a model of parakeet-tdt-0.6b's shape."""
    import torch

    from benchmarks.measures import Row
    from worker.backends import create
    from worker.catalog import find
    from worker.config import Settings
    from worker.types import Batch, Clip, Options, Piece

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = _full_size(Path(folder))
        backend: Any = create(find(path), Settings(device="cuda"))
        backend.load()
        backend.warm()
        captures = _count_captures(backend)
        noise = np.random.default_rng(0).standard_normal(4 * 3600 * 16_000, dtype=np.float32) * 0.1
        for seconds, sizes in ((5, (1, 4, 16)), (30, (1, 16)), (600, (1, 2)), (3600, (1,)), (3 * 3600, (1,))):
            for size in sizes:
                piece = Piece(Clip(noise[: seconds * 16_000]), Options(path))
                batch = Batch((piece,) * size, long=seconds > 600)
                backend.infer(batch)
                torch.cuda.reset_peak_memory_stats()
                before, started = captures(), time.perf_counter()
                for _ in range(3):
                    backend.infer(batch)
                torch.cuda.synchronize()
                took = (time.perf_counter() - started) / 3
                encoder = _encoder_sec(torch, backend, batch)
                shown = (
                    f"RTFx {size * seconds / took:.0f}, encoder alone {size * seconds / encoder:.0f}, peak "
                    f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB, {captures() - before} captures"
                )
                rows.append(Row(f"{size} x {seconds} s on {torch.cuda.get_device_name()}", shown, "reported", None))
    return rows


def canary() -> list[Row]:
    """Measure a model of canary-1b-flash's shape: 32 encoder layers of width 1024, four decoder layers."""
    from tests.fixtures import train_canary as tiny

    with tempfile.TemporaryDirectory() as folder:
        model = tiny.canary(Path(folder), d_model=1024, layers=4, encoder_layers=32)
        path = Path(folder) / "canary.nemo"
        model.save_to(str(path))
        return _generation("Canary", str(path), "transcribe", 30, (1, 16, 64))


def flamingo() -> list[Row]:
    """Measure a model of audio-flamingo-3's shape: 640 million parameters in the tower, 7.6 billion in the language
    model.
    """
    import torch
    import transformers

    from tests.fixtures import tiny_flamingo as tiny

    with tempfile.TemporaryDirectory() as folder:
        tiny.save(Path(folder))
        words, config = tiny.tokenizer(), tiny.full_size()
        config.audio_token_id = words.convert_tokens_to_ids("<sound>")
        torch.set_default_dtype(torch.bfloat16)
        try:
            with torch.device("cuda"):
                model = transformers.AudioFlamingo3ForConditionalGeneration(config)
        finally:
            torch.set_default_dtype(torch.float32)
        model.generation_config = transformers.GenerationConfig(
            eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id
        )
        model.save_pretrained(folder)
        del model
        torch.cuda.empty_cache()
        return _generation("Audio Flamingo", folder, "caption", 30, (1, 8, 32)) + _generation(
            "Audio Flamingo", folder, "caption", 300, (1, 8)
        )


def _generation(name: str, path: str, task: Any, seconds: int, sizes: tuple[int, ...], tokens: int = 128) -> list[Row]:
    """Measure the clips and tokens per second of a model that generates text, for each batch size."""
    import torch

    from benchmarks.measures import Row
    from worker.backends import create
    from worker.catalog import find
    from worker.config import Settings
    from worker.types import Batch, Clip, Options, Piece

    backend: Any = create(find(path), Settings(device="cuda"))
    backend.load()
    noise = Clip(np.random.default_rng(0).standard_normal(seconds * 16_000, dtype=np.float32) * 0.1)
    rows = []
    for size in sizes:
        batch = Batch((Piece(noise, Options(path, task, max_new_tokens=tokens)),) * size)
        backend.infer(batch)
        torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        outputs: list[Any] = backend.infer(batch)
        torch.cuda.synchronize()
        took, tokens_out = time.perf_counter() - started, sum(output.tokens_generated for output in outputs)
        peak = torch.cuda.max_memory_allocated() / 2**30
        shown = f"{size / took:.1f} clips/s, {tokens_out / took:.0f} tokens/s, peak {peak:.1f} GiB"
        rows.append(Row(f"{name}, {size} x {seconds} s on {torch.cuda.get_device_name()}", shown, "reported", None))
    backend.close()
    return rows


def _full_size(folder: Path) -> str:
    """Save a model of parakeet-tdt-0.6b's shape with random weights as a .nemo file, and return its path."""
    import nemo.collections.asr as nemo_asr

    from tests.fixtures import train_parakeet as tiny

    (folder / "tokenizer").mkdir()
    tiny.tokenizer(folder / "tokenizer", [" ".join(tiny.DIGITS)] * 20)
    config = tiny.config(d_model=1024, layers=24)
    config.tokenizer.dir = str(folder / "tokenizer")
    config.preprocessor.features = config.encoder.feat_in = 128
    config.encoder.subsampling_conv_channels, config.encoder.n_heads = 256, 8
    config.decoder.prednet.pred_hidden = config.joint.jointnet.joint_hidden = 640
    config.decoder.prednet.pred_rnn_layers = 2
    config.model_defaults.pred_hidden = config.model_defaults.joint_hidden = 640
    model = nemo_asr.models.EncDecRNNTBPEModel(cfg=config)
    path = folder / "full-size.nemo"
    model.save_to(str(path))
    return str(path)


def _count_captures(backend: Any) -> Any:
    """Return a function that returns how often the decoders have captured their graphs since this call."""
    count = 0
    for decoder in backend._decoders.values():
        computer = decoder.decoding.decoding_computer
        original = computer._graph_reinitialize

        def counting(*args: Any, original: Any = original, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            return original(*args, **kwargs)

        computer._graph_reinitialize = counting
    return lambda: count


def _encoder_sec(torch: Any, backend: Any, batch: Any) -> float:
    model = backend._model
    signal = torch.from_numpy(np.stack([piece.clip.samples for piece in batch.pieces])).to(backend._device)
    lengths = torch.full((len(batch.pieces),), signal.shape[1], device=backend._device)
    with torch.inference_mode(), backend._attention(list(batch.pieces)):
        mel, frames = model.preprocessor(input_signal=signal, length=lengths)
        torch.cuda.synchronize()
        started = time.perf_counter()
        model.encoder(audio_signal=mel.to(backend._nemo.dtype), length=frames)
        torch.cuda.synchronize()
    return time.perf_counter() - started
