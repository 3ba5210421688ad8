"""The audio tower of a checkpoint without the rest of the model: an AudioFlamingo3Encoder.

Only the `audio_tower.*` tensors are read. In Audio Flamingo 3 these are some 640 million of 8.3 billion parameters.

    load_tower(folder, config, dtype, device)    the encoder
    states(tower, features, clips)               clips of any length → states, in windows of 30 s that share batches
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
    """Load the encoder that `config` (an AudioFlamingo3EncoderConfig) describes, with the checkpoint's weights.

    Raises ModelUnavailable if the checkpoint has no audio tower, or one whose tensors do not match the encoder.
    """
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
        raise ModelUnavailable(f"the audio tower of {folder.name} is not an AudioFlamingo3Encoder: {error}") from error
    return tower.to(device).eval().requires_grad_(False)


def tower_bytes(folder: Path) -> int:
    """Return the bytes of the tower's tensors according to the headers of the files.

    Raises ModelUnavailable if the checkpoint has no audio tower.
    """
    total = 0
    for file, names in _files(folder):
        header = _header(file)
        for name in names:
            begin, end = header[name]["data_offsets"]
            total += end - begin
    return total


def shapes(folder: Path) -> dict[str, list[int]]:
    """Return the shapes of the tower's tensors by the names that the encoder has for them.

    Raises ModelUnavailable if the checkpoint has no audio tower.
    """
    return {bare: _header(file)[name]["shape"] for file, names in _files(folder) for name, bare in names.items()}


def states(tower: Any, features: Any, clips: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return the tower's states of each clip without padding: float32 of shape (frames, width).

    `clips` are samples of shape (samples,) and of any length; the windows of all clips share batches. `features` is the
    feature extractor of the checkpoint.
    """
    weight = tower.conv1.weight
    cuts = [[clip[at : at + WINDOW] for at in range(0, max(1, len(clip)), WINDOW)] for clip in clips]
    windows = [window for cut in cuts for window in cut]
    rows: list[np.ndarray] = []
    for at in range(0, len(windows), WINDOWS_AT_ONCE):
        inputs = features(
            windows[at : at + WINDOWS_AT_ONCE],
            sampling_rate=SAMPLE_RATE,
            return_attention_mask=True,
            padding="max_length",
            return_tensors="pt",
            device=str(weight.device),
        )
        mask = inputs["attention_mask"].to(weight.device)
        output = tower(inputs["input_features"].to(weight.device, weight.dtype), input_features_mask=mask)
        rows += strip_padding(tower, output.last_hidden_state, mask)
    return join_windows(rows, [len(cut) for cut in cuts])


def join_windows(windows: Sequence[np.ndarray], counts: Sequence[int]) -> list[np.ndarray]:
    """Join the states of windows into the states of clips: clip i consists of the next `counts[i]` windows.

    A clip without a frame gets one frame of zeros.
    """
    remaining = iter(windows)
    clips = [np.concatenate([next(remaining) for _ in range(count)]) for count in counts]
    return [clip if len(clip) else np.zeros((1, clip.shape[1]), np.float32) for clip in clips]


def strip_padding(tower: Any, states: Any, mask: Any) -> list[np.ndarray]:
    """Return the states of each window without its padding: float32 of shape (frames, width).

    `states` has shape (windows, frames, width). `mask` has shape (windows, mel frames) and is 0 in the padding.
    """
    _, counts = tower._get_feat_extract_output_lengths(mask.sum(dim=-1).long())
    return [rows[: max(0, count)] for rows, count in zip(states.float().cpu().numpy(), counts.tolist(), strict=True)]


def _files(folder: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """Yield each file that holds tensors of the tower, with the names of those tensors: in the file → in the encoder.

    Raises ModelUnavailable if there is no such file.
    """
    names_of = {
        folder / file: [name for name in _header(folder / file) if name.startswith(_PREFIXES)]
        for file in checkpoints.weight_files(folder, "audio_tower.")
    }
    if not any(names_of.values()):
        raise ModelUnavailable(f"{folder.name} holds no audio tower")
    for file, names in names_of.items():
        yield file, {name: name.split("audio_tower.", 1)[1] for name in names}


def _header(file: Path) -> dict[str, Any]:
    """Return the header of a safetensors file: the dtype, shape and data offsets of each tensor, by its name.

    The format: https://huggingface.co/docs/safetensors. Raises ModelUnavailable if the file is missing.
    """
    try:
        with file.open("rb") as opened:
            header: dict[str, Any] = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    except OSError as error:
        raise ModelUnavailable(f"{file.name} is missing in {file.parent.name}") from error
    return {name: entry for name, entry in header.items() if name != "__metadata__"}
