"""Checkpoints of the published shapes, with random weights, saved as the published ones are.

Random weights emit unrealistic numbers of tokens, so the decoders' work is set, and the rows report the tokens that
came out for each second of audio:

- Parakeet: every step of the decoder advances by DURATION frames, and the bias of the blank is searched until some
  TOKENS_PER_SEC tokens come out of noise. Random layers give nearly the same state for every frame, and then a clip
  would yield a token at each step or none at all; so the layers change their input less, and the joint network
  normalizes the states. On a CPU in bfloat16, the full-size model yielded 2.5 to 4.5 tokens a second for clips of 2
  to 30 s.
- Canary: the decoder has so few positions that each text ends there.
- Audio Flamingo: the rows limit the new tokens.
"""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.gpu.scale import Scale
from worker.backends.common.device import dtype_of
from worker.config import Settings
from worker.types import SAMPLE_RATE

TOKENS_PER_SEC = 3.5  # as people speak English
FRAME_SEC = 0.08
DURATION = 2  # frames
SURE = 100.0  # a logit that no random weights reach


class Checkpoint(NamedTuple):
    """A file or folder, and the number of weights in it."""

    path: Path
    weights: int


def parakeet(folder: Path, scale: Scale, device: str) -> Checkpoint:
    """Save a model of the shape of parakeet-tdt-0.6b-v3, which emits some TOKENS_PER_SEC tokens a second."""
    import torch
    from nemo.collections.asr.models import EncDecRNNTBPEModel

    from tests.fixtures import train_parakeet as tiny

    (folder / "tokenizer").mkdir()
    tiny.tokenizer(folder / "tokenizer", _texts(), size=scale.parakeet_vocabulary)
    config = tiny.config(d_model=scale.width, layers=scale.parakeet_layers)
    config.tokenizer.dir = str(folder / "tokenizer")
    _widen(config, scale)
    layers, width = scale.prediction
    config.decoder.prednet.pred_rnn_layers = layers
    config.decoder.prednet.pred_hidden = config.joint.jointnet.joint_hidden = width
    config.model_defaults.pred_hidden = config.model_defaults.joint_hidden = width
    torch.manual_seed(0)
    model = EncDecRNNTBPEModel(cfg=config).eval()
    with torch.no_grad():
        _fix_duration(model)
        _let_frames_differ(model)
        model.to(device, dtype_of(Settings(device=device), torch.device(device)))  # rounding changes the tokens
        encoded, frames = states(model)
        _normalize(model, encoded)
        _calibrate(model, encoded, frames)
    return _save(model.float(), folder / "parakeet.nemo")


def canary(folder: Path, scale: Scale) -> Checkpoint:
    """Save a model of the shape of canary-1b-v2, without its aligner."""
    import torch
    from nemo.collections.asr.models import EncDecMultiTaskModel

    from tests.fixtures import train_canary as tiny

    encoder, decoder = scale.canary_layers
    config = tiny.config(
        folder,
        d_model=scale.width,
        encoder_layers=encoder,
        layers=decoder,
        single=True,
        texts=_texts(),
        size=scale.canary_vocabulary - len(tiny.SPECIAL),
    )
    _widen(config, scale)
    config.transf_decoder.config_dict.num_attention_heads = scale.heads
    config.transf_decoder.config_dict.max_sequence_length = scale.canary_positions
    torch.manual_seed(0)
    return _save(EncDecMultiTaskModel(cfg=config).eval(), folder / "canary.nemo")


def flamingo(folder: Path, scale: Scale) -> Checkpoint:
    """Save a checkpoint of the shape of audio-flamingo-3-hf, whose weights are zeros that take no room on disk."""
    import torch
    import transformers

    from benchmarks.models import write_sparse
    from tests.fixtures import tiny_flamingo as tiny

    tiny.save(folder)
    if scale.name == "full":
        config = tiny.full_size()
        config.audio_token_id = tiny.tokenizer().convert_tokens_to_ids("<sound>")
        config.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    config = transformers.AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = transformers.AudioFlamingo3ForConditionalGeneration(config)
    write_sparse(folder, {name: tensor.shape for name, tensor in model.state_dict().items()})
    return Checkpoint(folder, sum(parameter.numel() for parameter in model.parameters()))


def randomize(model: Any) -> None:
    """Fill a loaded model with random weights, in place."""
    import torch

    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.02)
            else:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)


def _texts() -> list[str]:
    """Return lines of invented words, which yield a vocabulary of any size that the models have."""
    rng = random.Random(0)
    syllables = [a + b + c for a in "bdfgklmnprstvz" for b in "aeiou" for c in ("", "n", "r", "s", "l")]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(30_000)]
    return [" ".join(words[i : i + 10]) for i in range(0, len(words), 10)]


def _widen(config: Any, scale: Scale) -> None:
    config.preprocessor.features = config.encoder.feat_in = scale.mels
    config.encoder.subsampling_conv_channels, config.encoder.n_heads = scale.channels, scale.heads


def _fix_duration(model: Any) -> None:
    """Make the duration head of a TDT model predict DURATION frames for every step."""
    durations = list(model.cfg.decoding.durations)
    last = model.joint.joint_net[-1]
    last.weight[-len(durations) :] = 0
    last.bias[-len(durations) :] = 0
    last.bias[durations.index(DURATION) - len(durations)] = SURE


def _let_frames_differ(model: Any) -> None:
    """Lower what each layer of the encoder adds to its input."""
    for layer in model.encoder.layers:
        for last in (
            layer.feed_forward1.linear2,
            layer.self_attn.linear_out,
            layer.conv.pointwise_conv2,
            layer.feed_forward2.linear2,
        ):
            last.weight *= 0.1


def _normalize(model: Any, encoded: Any) -> None:
    """Make the joint network's projection of the states have mean 0 and deviation 1 over all frames."""
    enc = model.joint.enc
    projected = enc(encoded.transpose(1, 2)).flatten(0, 1).float()
    deviation = projected.std(dim=0)
    enc.weight /= deviation[:, None]
    enc.bias.copy_((enc.bias - projected.mean(dim=0)) / deviation)


def _calibrate(model: Any, encoded: Any, frames: Any) -> None:
    """Search the bias of the blank, by halves, until noise yields some TOKENS_PER_SEC tokens a second."""
    bias = model.joint.joint_net[-1].bias
    blank = model.joint.num_classes_with_blank - 1 - model.joint.num_extra_outputs
    low, high = -16.0, 16.0
    for _ in range(24):
        bias[blank] = (low + high) / 2
        rate = tokens_per_sec(model, encoded, frames)
        if math.isclose(rate, TOKENS_PER_SEC, rel_tol=0.1):
            return
        if rate > TOKENS_PER_SEC:
            low = float(bias[blank])
        else:
            high = float(bias[blank])


def states(model: Any, clips: int = 4, seconds: int = 10) -> tuple[Any, Any]:
    """Return the encoder's states for noise, and the frames of each clip."""
    import torch

    signal = 0.1 * torch.randn(clips, seconds * SAMPLE_RATE, generator=torch.Generator().manual_seed(0))
    lengths = torch.full((clips,), signal.shape[1])
    states, frames = model.forward(input_signal=signal.to(model.device), input_signal_length=lengths.to(model.device))
    return states, frames


def tokens_per_sec(model: Any, encoded: Any, frames: Any) -> float:
    """Return how many tokens NeMo's decoder emits for a second of audio."""
    hypotheses = model.decoding.rnnt_decoder_predictions_tensor(encoded, frames, return_hypotheses=True)
    tokens = sum(len(hypothesis.y_sequence) for hypothesis in hypotheses)
    return tokens / (float(frames.sum()) * FRAME_SEC)


def _save(model: Any, path: Path) -> Checkpoint:
    model.save_to(str(path))
    return Checkpoint(path, sum(parameter.numel() for parameter in model.parameters()))
