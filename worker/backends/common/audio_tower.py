"""The audio tower of a checkpoint, alone: an AudioFlamingo3Encoder, of which only the `audio_tower.*` tensors are read.

That is some 640 million of Audio Flamingo 3's 8.3 billion parameters; the rest of its files is not touched.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from worker.backends.common import checkpoints
from worker.errors import ModelUnavailable
from worker.types import SAMPLE_RATE

WINDOW = 30 * SAMPLE_RATE
WINDOWS_AT_ONCE = 16
_PREFIXES = ("audio_tower.", "model.audio_tower.")


def load_tower(folder: Path, config: Any, dtype: Any, device: Any) -> Any:
    """The encoder that `config` (an AudioFlamingo3EncoderConfig) describes, with the checkpoint's weights."""
    import torch
    from safetensors import safe_open
    from transformers import AudioFlamingo3Encoder

    config._attn_implementation = "sdpa"
    with torch.device("meta"):
        tower = AudioFlamingo3Encoder(config)
    state: dict[str, Any] = {}
    for file, names in _files(folder):
        with safe_open(file, framework="pt") as opened:
            state |= {bare: opened.get_tensor(name).to(dtype) for name, bare in names.items()}
    try:
        tower.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise ModelUnavailable(f"{folder.name} has no audio tower of the kind that is known: {error}") from error
    return tower.to(device).eval().requires_grad_(False)


def tower_bytes(folder: Path) -> int:
    """Bytes of the tower's tensors, as the files' headers tell."""
    total = 0
    for file, names in _files(folder):
        header = _header(file)
        for name in names:
            begin, end = header[name]["data_offsets"]
            total += end - begin
    return total


def shapes(folder: Path) -> dict[str, list[int]]:
    """The shapes of the tower's tensors, by the encoder's names for them."""
    return {bare: _header(file)[name]["shape"] for file, names in _files(folder) for name, bare in names.items()}


def states(tower: Any, features: Any, clips: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The tower's states of whole clips, without padding: float32 of shape (frames, width) each. The windows of all
    clips share batches."""
    weight = tower.conv1.weight
    cuts = [[clip[at : at + WINDOW] for at in range(0, max(1, len(clip)), WINDOW)] for clip in clips]
    windows = [window for cut in cuts for window in cut]
    rows: list[np.ndarray] = []
    for at in range(0, len(windows), WINDOWS_AT_ONCE):
        made = features(
            windows[at : at + WINDOWS_AT_ONCE],
            sampling_rate=SAMPLE_RATE,
            return_attention_mask=True,
            padding="max_length",
            return_tensors="pt",
            device=str(weight.device),
        )
        mask = made["attention_mask"].to(weight.device)
        heard = tower(made["input_features"].to(weight.device, weight.dtype), input_features_mask=mask)
        rows += valid(tower, heard.last_hidden_state, mask)
    return joined(rows, [len(cut) for cut in cuts])


def joined(windows: Sequence[np.ndarray], counts: Sequence[int]) -> list[np.ndarray]:
    """The states of clips from those of their windows, of which each clip has so many. No clip is without a frame."""
    remaining = iter(windows)
    clips = [np.concatenate([next(remaining) for _ in range(count)]) for count in counts]
    return [clip if len(clip) else np.zeros((1, clip.shape[1]), np.float32) for clip in clips]


def valid(tower: Any, states: Any, mask: Any) -> list[np.ndarray]:
    """The states of each window without its padding: float32 of shape (frames, width). `mask` is that of the mel
    frames."""
    _, counts = tower._get_feat_extract_output_lengths(mask.sum(dim=-1).long())
    return [rows[: max(0, count)] for rows, count in zip(states.float().cpu().numpy(), counts.tolist(), strict=True)]


def _files(folder: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """The files that hold tensors of the tower, each with their names, as they stand there and as the encoder has
    them."""
    held = {
        folder / file: [name for name in _header(folder / file) if name.startswith(_PREFIXES)]
        for file in checkpoints.weight_files(folder, "audio_tower.")
    }
    if not any(held.values()):
        raise ModelUnavailable(f"{folder.name} holds no audio tower")
    for file, names in held.items():
        yield file, {name: name.split("audio_tower.", 1)[1] for name in names}


def _header(file: Path) -> dict[str, Any]:
    """What a safetensors file says of its tensors: their places and shapes."""
    try:
        with file.open("rb") as opened:
            header: dict[str, Any] = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    except OSError as error:
        raise ModelUnavailable(f"{file.name} is missing in {file.parent.name}") from error
    return {name: entry for name, entry in header.items() if name != "__metadata__"}
