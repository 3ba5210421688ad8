"""The CUDA graph of NeMo's greedy transducer decoder: captured at its largest shape, and proved before it is used.

    make_decoder(model, uses_graphs) ──▶ decoder
    capture(decoder, model, rows, frames) ── capture ──▶ decode noise with the graph ──▶ equal ──▶ None
                                                     └── and without it ───────────┘ └─▶ else ───▶ what is wrong

A graph that does not run raises no error: NeMo launches the loops of the graph without a check of the result, and their
condition starts as "do not enter", so every transcript would be empty. NeMo captures a graph again for a batch that is
larger than all batches before it. So each decoder is captured once, at the largest shape that its batches may have.

The proof needs no speech. The decoder gets noise, while the bias of the blank is lowered so that any model finds
tokens. With and without the graph, the same operations run in the same shapes, so the tokens and their frames must be
equal.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

from worker.errors import OutOfMemory
from worker.faults import translate

log = logging.getLogger(__name__)

FRAMES = 32  # of the noise: some hundred steps of the decoder
BLANKS = 0.25  # the part of the frames on which the first label is a blank


def make_decoder(model: Any, uses_graphs: bool, *, boosting: bool = False) -> Any:
    """Return a NeMo RNNTDecoding of the model's own strategy, made greedy and batched.

    `boosting` is whether each row of a batch may have keywords. NeMo's graph includes them if triton is installed;
    otherwise such a decoder runs without a graph.
    """
    from copy import deepcopy

    from omegaconf import open_dict

    config = deepcopy(model.cfg.decoding)
    with open_dict(config):
        config.strategy = "greedy_batch"
        config.compute_timestamps = False
        config.preserve_alignments = False
        config.greedy.use_cuda_graph_decoder = uses_graphs
        if boosting:
            config.greedy.enable_per_stream_biasing = True
    model.change_decoding_strategy(config, verbose=False)
    return model.decoding


def capture(decoder: Any, model: Any, rows: int, frames: int, trees: Any = None) -> str | None:
    """Capture the graph of a NeMo RNNTDecoding for `rows` clips of `frames` encoder frames, and prove it.

    Return what is wrong with the graph; None if nothing is wrong, or if the decoder uses no graph. Raises the exception
    of a device that runs out of memory. The caller must be in torch.inference_mode(). `trees`, for a decoder with
    keywords, has the numbers of the trees, which the rows take in turns.
    """
    import torch

    computer = getattr(decoder.decoding, "decoding_computer", None)
    if computer is None or computer.cuda_graphs_mode is None:
        return None
    weight = next(model.joint.parameters())
    width = model.encoder._feat_out
    noise = torch.randn(rows, FRAMES, width, generator=torch.Generator().manual_seed(0)).to(weight)
    lengths = FRAMES - torch.arange(rows, device=weight.device) % (FRAMES // 2)
    boosting = {} if trees is None else {"multi_biasing_ids": trees.repeat(-(-rows // len(trees)))[:rows]}
    with _few_blanks(model, noise):
        expected = tokens(computer.torch_impl(noise, lengths, **boosting), rows)
        try:
            computer(x=weight.new_zeros(rows, frames, width), out_len=torch.ones_like(lengths), **boosting)
            found = tokens(computer(x=noise, out_len=lengths, **boosting), rows)
        except Exception as error:
            if isinstance(translate(error), OutOfMemory):
                computer.reset_cuda_graphs_state()  # or the next call would replay a graph that was not captured
                raise
            return f"it failed with {type(error).__name__}: {error}"
    if wrong := sum(one != other for one, other in zip(found, expected, strict=True)):
        return f"{wrong} of {rows} texts were wrong, and {sum(not ids for ids, _frames in found)} were empty"
    log.info("captured the decoder for %d x %d frames (%s)", rows, frames, computer.cuda_graphs_mode)
    return None


@contextlib.contextmanager
def _few_blanks(model: Any, states: Any) -> Iterator[None]:
    """Lower the bias of the blank until it is the first label of a quarter of the states, and restore it at the end.

    `states` has shape (rows, frames, width).
    """
    decoder, joint = model.decoder, model.joint
    projected = joint.project_encoder(states)
    start = projected.new_full((len(states), 1), decoder.blank_idx, dtype=int)
    before, *_ = decoder.predict(start, decoder.initialize_state(projected), add_sos=False, batch_size=len(states))
    logits = joint.joint_after_projection(projected, joint.project_prednet(before)).squeeze(2).float()
    labels = logits[..., : decoder.blank_idx].amax(dim=-1)  # the blank follows the labels
    lead = (logits[..., decoder.blank_idx] - labels).flatten().quantile(1 - BLANKS)
    bias = joint.joint_net[-1].bias
    kept = bias.clone()
    bias[decoder.blank_idx] -= lead
    try:
        yield
    finally:
        bias.copy_(kept)


def tokens(result: tuple[Any, Any], rows: int) -> list[tuple[list[int], list[int]]]:
    """Return the tokens and their frames of each row, from what NeMo's decoding computer returns."""
    from nemo.collections.asr.parts.utils.rnnt_utils import batched_hyps_to_hypotheses

    hypotheses = batched_hyps_to_hypotheses(result[0], batch_size=rows)
    return [(hypothesis.y_sequence.tolist(), hypothesis.timestamp.tolist()) for hypothesis in hypotheses]
