"""Parakeet through NeMo: any .nemo of the family (TDT, RNNT, CTC, or a hybrid, whose transducer is used).

Token times come with greedy decoding at no cost, so words and segments are always there. Clips shorter than one encoder
frame, and digital silence, hold no words and are answered without the model.
"""

from __future__ import annotations

import contextlib
import logging
from typing import Any

import numpy as np

from worker.backends.base import Backend
from worker.backends.common import timestamps
from worker.backends.common.silence import is_silent
from worker.backends.nemo import greedy_transducer
from worker.backends.nemo.encoder import NemoModel, weight_bytes
from worker.backends.nemo.local_attention import LocalAttention
from worker.catalog import Model
from worker.config import Settings
from worker.errors import OutOfMemory
from worker.types import Batch, Output, Piece, Span, Transcript

log = logging.getLogger(__name__)


class Parakeet(Backend):
    overhead_sec = 100.0  # a GPU hears some 3,000 s a second and takes some 36 ms to start

    def __init__(self, model: Model, settings: Settings) -> None:
        self._row, self._settings = model, settings
        self._model: Any = None

    def load(self) -> None:
        self._nemo = NemoModel(self._row.id, self._settings, ("encoder", "decoder", "joint", "ctc_decoder"))
        self._torch, self._model, self._device = self._nemo.torch, self._nemo.model, self._nemo.device
        self._frame_sec, model = self._nemo.frame_sec, self._model
        if self._device.type == "cpu":
            self.overhead_sec = 8.0
        self._transducer = hasattr(model, "joint")
        if self._transducer:
            decoding = model.cfg.decoding
            self._tdt_durations = list(decoding.get("durations") or []) if model.joint.num_extra_outputs else []
            self._most = decoding.greedy.get("max_symbols", 10)
            model.joint.log_softmax = False  # the largest is the largest; on a CPU the logarithm costs a third
            self._windowed = self._device.type == "cpu" and len(self._tdt_durations) == model.joint.num_extra_outputs
            self._decoders = {False: _decoder(model), True: _decoder(model)}
        self._local = LocalAttention(model.encoder) if model.encoder.self_attention_model == "rel_pos" else None
        self._long_decoder_warm = False

    def weight_bytes(self) -> int:
        return weight_bytes(self._row.id, self._settings)

    def warm(self) -> None:
        if self._device.type == "cuda" and self._transducer:
            self._capture(False, self._settings.batch_max_items, self._settings.short_max_sec)

    def infer(self, batch: Batch) -> list[Output]:
        outputs: list[Output] = [Transcript("", language=self._language(piece)) for piece in batch.pieces]
        spoken = [i for i, piece in enumerate(batch.pieces) if not is_silent(piece.clip.samples)]
        if spoken:
            try:
                heard = self._hear([batch.pieces[i] for i in spoken], batch.long)
            except self._torch.OutOfMemoryError as error:
                self._torch.cuda.empty_cache()
                raise OutOfMemory("the device has not enough memory for this input") from error
            for i, transcript in zip(spoken, heard, strict=True):
                outputs[i] = transcript
        return outputs

    def close(self) -> None:
        self._model = self._nemo.model = self._local = None
        self._decoders = {}
        if self._device.type == "cuda":
            self._torch.cuda.empty_cache()

    def _hear(self, pieces: list[Piece], long: bool) -> list[Transcript]:
        with self._torch.inference_mode(), self._attention(pieces):
            encoded, frames = self._nemo.encode(pieces)
            if self._transducer:
                tokens = self._transduce(encoded, frames, long)
            else:
                tokens = _ctc(self._model, encoded, frames)
        return [self._transcript(piece, *row) for piece, row in zip(pieces, tokens, strict=True)]

    def _attention(self, pieces: list[Piece]) -> contextlib.AbstractContextManager[None]:
        longest = max(piece.duration_sec for piece in pieces)
        if self._local is not None and longest > self._settings.local_attention_after_sec:
            return self._local
        return contextlib.nullcontext()

    def _transduce(self, encoded: Any, frames: Any, long: bool) -> list[tuple[str, list[int], list[int], list[int]]]:
        """Text, token ids, first frames and frames of each row. Long clips have a decoder of their own, because a CUDA
        graph is captured again whenever a batch outgrows the one before."""
        if self._windowed:
            found = greedy_transducer.decode(
                self._model.decoder, self._model.joint, encoded, frames, self._tdt_durations, self._most
            )
            spell = self._model.decoding.decode_tokens_to_str_with_strip_punctuation
            return [(spell(row.ids), *row) for row in found]
        if long and self._device.type == "cuda" and not self._long_decoder_warm:
            self._capture(True, 1, self._settings.max_audio_sec)
            self._long_decoder_warm = True
        hypotheses = self._decoders[long].rnnt_decoder_predictions_tensor(encoded, frames, return_hypotheses=True)
        ids = [_list(hypothesis.y_sequence) for hypothesis in hypotheses]
        starts = [_list(hypothesis.timestamp) for hypothesis in hypotheses]
        lasts = self._durations(encoded, ids, starts)
        return [(h.text, *row) for h, *row in zip(hypotheses, ids, starts, lasts, strict=True)]

    def _durations(self, encoded: Any, ids: list[list[int]], starts: list[list[int]]) -> list[list[int]]:
        """Frames that each token lasts: for a TDT model what its duration head says, else one.

        NeMo 3.0.0 reports durations too, but while one row of a batch looks for its next token it overwrites those of
        the
        others. So the duration head is asked again, for all tokens at once: the prediction network runs over the text
        that was found, and the last layer of the joint is computed for the durations alone.
        """
        torch, joint = self._torch, self._model.joint
        count = len(self._tdt_durations)
        longest = max(map(len, ids))
        if not count or not longest:
            return [[1] * len(row) for row in ids]
        lengths = torch.tensor([len(row) for row in ids], device=self._device)
        targets, at = (
            torch.tensor([row + [0] * (longest - len(row)) for row in table], device=self._device)
            for table in (ids, starts)
        )
        before, _, _ = self._model.decoder(targets=targets, target_length=lengths)
        heard = encoded.transpose(1, 2).gather(1, at[:, :, None].expand(-1, -1, encoded.shape[1]))
        hidden = joint.project_encoder(heard) + joint.project_prednet(before.transpose(1, 2)[:, :longest])
        last = joint.joint_net[-1]
        logits = torch.nn.functional.linear(joint.joint_net[:-1](hidden), last.weight[-count:], last.bias[-count:])
        table = torch.tensor(self._tdt_durations, device=self._device)
        return [row[: len(own)] for row, own in zip(table[logits.argmax(dim=-1)].tolist(), ids, strict=True)]

    def _transcript(self, piece: Piece, text: str, ids: list[int], starts: list[int], lasts: list[int]) -> Transcript:
        end_sec = piece.duration_sec
        names = _names(self._model, ids)
        tokens = [
            Span(name, min(start * self._frame_sec, end_sec), min((start + max(1, last)) * self._frame_sec, end_sec))
            for name, start, last in zip(names, starts, lasts, strict=True)
        ]
        words = timestamps.words(tokens)
        return Transcript(
            text.strip(), words, timestamps.segments(words), timestamps.chars(tokens), self._language(piece)
        )

    def _language(self, piece: Piece) -> str | None:
        return piece.options.language or (self._row.languages[0] if len(self._row.languages) == 1 else None)

    def _capture(self, long: bool, items: int, seconds: float) -> None:
        """Captures a decoder's CUDA graph at the largest shape it will see."""
        torch = self._torch
        frames = int(seconds / self._frame_sec) + 2
        with torch.inference_mode():
            encoded = torch.zeros(
                items, self._model.encoder._feat_out, frames, device=self._device, dtype=self._nemo.dtype
            )
            one = torch.ones(items, dtype=torch.long, device=self._device)
            self._decoders[long].rnnt_decoder_predictions_tensor(encoded, one)


def _decoder(model: Any) -> Any:
    """A decoder of the model's own strategy made greedy and batched."""
    from copy import deepcopy

    from omegaconf import open_dict

    config = deepcopy(model.cfg.decoding)
    with open_dict(config):
        config.strategy = "greedy_batch"
        config.compute_timestamps = False
        config.preserve_alignments = False
    model.change_decoding_strategy(config, verbose=False)
    return model.decoding


def _ctc(model: Any, encoded: Any, frames: Any) -> list[tuple[str, list[int], list[int], list[int]]]:
    """Greedy CTC: the best label of each frame, repeats folded, blanks dropped."""
    best = model.decoder(encoder_output=encoded).argmax(dim=-1).cpu().numpy()
    blank = model.decoder.num_classes_with_blank - 1
    rows = []
    for row, length in zip(best, frames.tolist(), strict=True):
        labels = row[:length]
        changes = np.flatnonzero(np.diff(labels, prepend=-1))
        lasts = np.diff(np.append(changes, length))
        kept = labels[changes] != blank
        ids = labels[changes][kept].tolist()
        text = model.decoding.decode_ids_to_str(ids)
        rows.append((text, ids, changes[kept].tolist(), lasts[kept].tolist()))
    return rows


def _names(model: Any, ids: list[int]) -> list[str]:
    """The tokens as they are spelt; a word begins with ▁, or after a space where the vocabulary is of characters."""
    if hasattr(model, "tokenizer"):
        return list(model.tokenizer.ids_to_tokens(ids))
    labels = model.joint.vocabulary if hasattr(model, "joint") else model.decoder.vocabulary
    return [labels[i] for i in ids]


def _list(values: Any) -> list[int]:
    return [] if values is None else values.tolist() if hasattr(values, "tolist") else list(values)
