"""Parakeet through NeMo: any .nemo file of the family (TDT, RNNT, CTC, or a hybrid, whose transducer is used).

    pieces ── encoder ──▶ states ── greedy transducer or CTC ──▶ timed tokens ──▶ words, segments, chars

A model of several languages does not say which one it wrote, so the language is identified from the text, unless the
request names it.

Greedy decoding yields token times for free, so every transcript has words and segments. The model is not run on
silence, or on clips shorter than one encoder frame: their transcript is empty.

Clips for which full attention takes too much memory are encoded alone, with local attention. So is a clip for which the
device runs out of memory nevertheless.
"""

from __future__ import annotations

import contextlib
import logging
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from worker.backends.base import Backend
from worker.backends.common import text_language, timestamps
from worker.backends.common.silence import is_silent
from worker.backends.nemo import cuda_graphs, greedy_ctc, greedy_transducer, keywords
from worker.backends.nemo.encoder import NemoModel, weight_bytes
from worker.backends.nemo.local_attention import LocalAttention, longest_full_sec
from worker.catalog import Model
from worker.config import Settings
from worker.errors import OutOfMemory
from worker.faults import translate
from worker.types import Batch, Output, Piece, Transcript

log = logging.getLogger(__name__)

# The tokens with which a model for live audio marks the end of an utterance, and of a listener's brief reply.
MARKS = ("<EOU>", "<EOB>")
LOGITS_AT_ONCE = 1 << 25  # values: the outputs of the joint for all tokens of a batch do not have to fit in memory


class Row(NamedTuple):
    """The decoded tokens of one piece: its text, and for each token its id, first frame and length in frames.

    `logprobs` has the log probability of each token, or is empty if the request does not ask.
    """

    text: str
    ids: list[int]
    starts: list[int]
    lasts: list[int]
    logprobs: list[float]


class Parakeet(Backend):
    """A Parakeet checkpoint: transcribes speech, with times."""

    overhead_sec = 100.0  # a GPU transcribes some 3,000 s of audio a second, and a batch takes some 36 ms to start

    def __init__(self, model: Model, settings: Settings) -> None:
        self._row, self._settings = model, settings
        self._model: Any = None

    def load(self) -> None:
        """Restore the checkpoint, and make its decoders. Raises ModelUnavailable."""
        self._nemo = NemoModel(self._row.id, self._settings, ("encoder", "decoder", "joint", "ctc_decoder"))
        self._torch, self._model, self._device = self._nemo.torch, self._nemo.model, self._nemo.device
        self._frame_sec, model = self._nemo.frame_sec, self._model
        if self._device.type == "cpu":
            self.overhead_sec = 8.0
        self._transducer = hasattr(model, "joint")
        if self._transducer:
            decoding = model.cfg.decoding
            self._tdt_durations = list(decoding.get("durations") or []) if model.joint.num_extra_outputs else []
            self._max_symbols = decoding.greedy.get("max_symbols", 10)
            model.joint.log_softmax = False  # the argmax is the same; on a CPU the logarithm takes a third of the time
            self._windowed = self._device.type == "cpu" and len(self._tdt_durations) == model.joint.num_extra_outputs
            self._decoders = {
                long: cuda_graphs.make_decoder(model, self._settings.cuda_graphs) for long in (False, True)
            }
        self._local = LocalAttention(model.encoder) if model.encoder.self_attention_model == "rel_pos" else None
        self._full_attention_sec = math.inf
        if self._local is not None:
            self._full_attention_sec = self._settings.local_attention_after_sec or longest_full_sec(
                model.encoder, self._frame_sec
            )
        self._long_decoder_warm = False
        self._boosting: dict[bool, Any] = {}  # long or short → the decoder of batches with keywords
        self._graphs_work = True
        self._vocabulary = (model.joint if self._transducer else model.decoder).num_classes_with_blank
        if self._transducer:
            self._vocabulary -= model.joint.num_extra_outputs
        self._trees = keywords.Trees(self._vocabulary - 1, keywords.TRANSDUCER_SCALING)
        self._spell = keywords.speller(model)
        tokens = _names(model, list(range(self._vocabulary - 1)))  # the last one is the blank
        self._marks = frozenset(number for number, token in enumerate(tokens) if token in MARKS)
        if len(self._row.languages) != 1:
            text_language.load()

    def weight_bytes(self) -> int:
        """Return the bytes of the .nemo file. Raises ModelUnavailable if there is none."""
        return weight_bytes(self._row.id, self._settings)

    def warm(self) -> None:
        """Capture and prove the CUDA graph for batches of short clips."""
        if self._device.type == "cuda" and self._transducer:
            self._capture(self._decoders[False], *self._largest(False))

    def infer(self, batch: Batch) -> list[Output]:
        """Transcribe the pieces. Raises OutOfMemory."""
        outputs: list[Output] = [Transcript("", language=self._language(piece, "")) for piece in batch.pieces]
        try:
            for group in self._groups(batch.pieces):
                transcripts = self._transcribe([batch.pieces[i] for i in group], batch.long)
                for i, transcript in zip(group, transcripts, strict=True):
                    outputs[i] = transcript
        except self._torch.OutOfMemoryError as error:
            self._torch.cuda.empty_cache()
            raise OutOfMemory("the device does not have enough memory for this input") from error
        return outputs

    def close(self) -> None:
        """Free the device's memory."""
        self._model = self._nemo.model = self._local = None
        self._decoders, self._boosting = {}, {}
        if self._device.type == "cuda":
            self._torch.cuda.empty_cache()

    def _groups(self, pieces: Sequence[Piece]) -> list[list[int]]:
        """Return the indices of the pieces that run together, those with local attention alone. Silence is not run."""
        spoken = [i for i, piece in enumerate(pieces) if not is_silent(piece.clip.samples)]
        together = [i for i in spoken if pieces[i].duration_sec <= self._full_attention_sec]
        alone = [[i] for i in spoken if pieces[i].duration_sec > self._full_attention_sec]
        return [together, *alone] if together else alone

    def _transcribe(self, pieces: list[Piece], long: bool) -> list[Transcript]:
        with self._torch.inference_mode():
            encoded, frames = self._encode(pieces)
            logprobs = pieces[0].options.confidence
            wanted = [keywords.row(self._trees, piece.options, self._spell) for piece in pieces]
            if self._transducer:
                rows = self._transduce(encoded, frames, long, logprobs, wanted)
            else:
                scores = self._model.decoder(encoder_output=encoded)
                found = greedy_ctc.decode(scores, frames, logprobs=logprobs, keywords=self._follower(wanted))
                rows = [Row(self._model.decoding.decode_ids_to_str(row.ids), *row) for row in found]
        return [self._transcript(piece, _without(self._marks, row)) for piece, row in zip(pieces, rows, strict=True)]

    def _follower(self, wanted: Sequence[keywords.Row | None]) -> keywords.Follower | None:
        """Return what follows the rows of a batch over their keywords, or None if no row has any."""
        return keywords.Follower(wanted, self._vocabulary - 1) if any(wanted) else None

    def _encode(self, pieces: list[Piece]) -> tuple[Any, Any]:
        """Return the encoder's states and their lengths. A single clip that does not fit gets local attention."""
        local, attention = self._local, self._attention(pieces)
        try:
            with attention:
                return self._nemo.encode(pieces)
        except Exception as error:
            is_last_resort = len(pieces) > 1 or local is None or attention is local
            if is_last_resort or not isinstance(translate(error), OutOfMemory):
                raise
        assert local is not None
        self._torch.cuda.empty_cache()  # the tensors in the exception's traceback are released by now
        log.warning(
            "out of memory with full attention over %.0f s, so the clip is transcribed with local attention; "
            "set LOCAL_ATTENTION_AFTER_SEC below that length to avoid the failed attempt",
            pieces[0].duration_sec,
        )
        with local:
            return self._nemo.encode(pieces)

    def _attention(self, pieces: list[Piece]) -> contextlib.AbstractContextManager[None]:
        """Return the context to encode in: local attention if a piece is too long for full attention."""
        longest = max(piece.duration_sec for piece in pieces)
        if self._local is not None and longest > self._full_attention_sec:
            return self._local
        return contextlib.nullcontext()

    def _transduce(
        self, encoded: Any, frames: Any, long: bool, logprobs: bool, wanted: Sequence[keywords.Row | None] = ()
    ) -> list[Row]:
        """Return the tokens of each row.

        `encoded` has shape (rows, width, frames), and `frames`, of shape (rows,), is the length of each row. Long clips
        have a decoder of their own, because NeMo captures a decoder's CUDA graph again whenever a batch is larger than
        every batch before it. A batch with keywords has a decoder of its own too, so that all others run as before.
        """
        if self._windowed:
            rows = greedy_transducer.decode(
                self._model.decoder,
                self._model.joint,
                encoded,
                frames,
                self._tdt_durations,
                self._max_symbols,
                logprobs=logprobs,
                keywords=self._follower(wanted),
            )
            spell = self._model.decoding.decode_tokens_to_str_with_strip_punctuation
            return [Row(spell(row.ids), *row) for row in rows]
        if long and self._device.type == "cuda" and not self._long_decoder_warm:
            self._capture(self._decoders[True], *self._largest(True))
            self._long_decoder_warm = True
        if any(wanted):
            found = self._boosted(encoded, frames, long, wanted)
        else:
            hypotheses = self._decoders[long].rnnt_decoder_predictions_tensor(encoded, frames, return_hypotheses=True)
            found = [
                (hypothesis.text, _list(hypothesis.y_sequence), _list(hypothesis.timestamp))
                for hypothesis in hypotheses
            ]
        ids, starts = [row[1] for row in found], [row[2] for row in found]
        lasts, scores = self._rescore(encoded, ids, starts, logprobs)
        return [Row(*row, last, score) for row, last, score in zip(found, lasts, scores, strict=True)]

    def _boosted(
        self, encoded: Any, frames: Any, long: bool, wanted: Sequence[keywords.Row | None]
    ) -> list[tuple[str, list[int], list[int]]]:
        """Return the text of each row of a batch with keywords, its tokens, and the frame of each token.

        The decoder is made, and its CUDA graph captured, for the first such batch.
        """
        new = long not in self._boosting
        if new:
            self._boosting[long] = cuda_graphs.make_decoder(
                self._model, self._settings.cuda_graphs and self._graphs_work, boosting=True
            )
        decoder = self._boosting[long]
        computer = decoder.decoding.decoding_computer
        with keywords.in_decoder(computer, wanted, self._device) as trees:
            if new and self._device.type == "cuda":
                self._capture(decoder, *self._largest(long), trees)
            result = computer(x=encoded.transpose(1, 2), out_len=frames, multi_biasing_ids=trees)
        spell = decoder.decode_tokens_to_str_with_strip_punctuation
        return [(spell(ids), ids, starts) for ids, starts in cuda_graphs.tokens(result, len(wanted))]

    def _rescore(
        self, encoded: Any, ids: list[list[int]], starts: list[list[int]], logprobs: bool
    ) -> tuple[list[list[int]], list[list[float]]]:
        """Return the frames that each token lasts, and the log probability of each token if `logprobs` asks for it.

        A token of a TDT model lasts as long as the model's duration head predicts, else 1 frame. NeMo 3.0.0 reports
        durations too, but while one row of a batch searches for its next token, NeMo overwrites the durations of the
        other rows. So this method computes them again, for all tokens at once: the prediction network runs over the
        tokens, and the last layer of the joint is computed for the outputs that are needed only.
        """
        torch, joint = self._torch, self._model.joint
        count = len(self._tdt_durations)
        longest = max(map(len, ids))
        if not longest or not (count or logprobs):
            return [[1] * len(row) for row in ids], [[] for _ in ids]
        lengths = torch.tensor([len(row) for row in ids], device=self._device)
        targets, at = (
            torch.tensor([row + [0] * (longest - len(row)) for row in table], device=self._device)
            for table in (ids, starts)
        )
        before, _, _ = self._model.decoder(targets=targets, target_length=lengths)
        states = encoded.transpose(1, 2).gather(1, at[:, :, None].expand(-1, -1, encoded.shape[1]))
        hidden = joint.project_encoder(states) + joint.project_prednet(before.transpose(1, 2)[:, :longest])
        hidden, last = joint.joint_net[:-1](hidden), joint.joint_net[-1]
        labels = last.out_features - joint.num_extra_outputs
        lasts = [[1] * len(row) for row in ids]
        if count:
            logits = torch.nn.functional.linear(hidden, last.weight[-count:], last.bias[-count:])
            table = torch.tensor(self._tdt_durations, device=self._device)[logits.argmax(dim=-1)]
            lasts = [row[: len(own)] for row, own in zip(table.tolist(), ids, strict=True)]
        if not logprobs:
            return lasts, [[] for _ in ids]
        scores = []
        for part, own in zip(
            hidden.split(max(1, LOGITS_AT_ONCE // (len(ids) * labels)), dim=1),
            targets.split(max(1, LOGITS_AT_ONCE // (len(ids) * labels)), dim=1),
            strict=True,
        ):
            logits = torch.nn.functional.linear(part, last.weight[:labels], last.bias[:labels]).float()
            scores.append(logits.gather(2, own[:, :, None]).squeeze(2) - logits.logsumexp(dim=-1))
        joined = torch.cat(scores, dim=1).tolist()
        return lasts, [row[: len(own)] for row, own in zip(joined, ids, strict=True)]

    def _transcript(self, piece: Piece, row: Row) -> Transcript:
        end_sec, frame_sec = piece.duration_sec, self._frame_sec
        logprobs: list[float | None] = [*row.logprobs] if row.logprobs else [None] * len(row.ids)
        tokens = [
            timestamps.TimedToken(
                name,
                min(start * frame_sec, end_sec),
                min((start + max(1, last)) * frame_sec, end_sec),
                None if logprob is None else timestamps.confidence(logprob, self._vocabulary),
                number,
                logprob,
            )
            for name, number, start, last, logprob in zip(
                _names(self._model, row.ids), row.ids, row.starts, row.lasts, logprobs, strict=True
            )
        ]
        groups, words = timestamps.group(tokens), timestamps.words(tokens)
        return Transcript(
            row.text.strip(),
            words,
            timestamps.segments(words, groups if row.logprobs else ()),
            timestamps.chars(
                replace(token, confidence=word.confidence)
                for word, own in zip(words, groups, strict=True)
                for token in own
            ),
            self._language(piece, row.text),
            tokens=timestamps.plain(tokens),
        )

    def _language(self, piece: Piece, text: str) -> str | None:
        return piece.options.language or text_language.identify(text, self._row.languages)

    def _largest(self, long: bool) -> tuple[int, float]:
        """Return the largest shape of a batch: its clips, and their length in seconds."""
        if long:
            return 1, self._settings.max_audio_sec
        return self._settings.batch_max_items, self._settings.short_max_sec

    def _capture(self, decoder: Any, items: int, seconds: float, trees: Any = None) -> None:
        """Capture a decoder's CUDA graph at its largest shape, `items` clips of `seconds` each.

        `trees`, for a decoder of batches with keywords, has the number of the tree of each row of a batch.
        If the graph is wrong, no decoder of the model uses graphs any more.
        """
        with self._torch.inference_mode():
            frames = int(seconds / self._frame_sec) + 2
            problem = cuda_graphs.capture(decoder, self._model, items, frames, trees)
        if problem is not None:
            log.warning("%s decodes without CUDA graphs, which is slower, because %s", self._row.id, problem)
            self._graphs_work = False
            for other in (*self._decoders.values(), *self._boosting.values()):
                other.decoding.disable_cuda_graphs()


def _without(marks: frozenset[int], row: Row) -> Row:
    """Return the row without the tokens that only mark the end of an utterance."""
    if marks.isdisjoint(row.ids):
        return row
    kept = [i for i, number in enumerate(row.ids) if number not in marks]
    return Row(
        " ".join(re.sub("|".join(MARKS), " ", row.text).split()),
        [row.ids[i] for i in kept],
        [row.starts[i] for i in kept],
        [row.lasts[i] for i in kept],
        [row.logprobs[i] for i in kept] if row.logprobs else [],
    )


def _names(model: Any, ids: list[int]) -> list[str]:
    """Return the tokens as text. A word starts with ▁, or after a space if the vocabulary consists of characters."""
    if hasattr(model, "tokenizer"):
        return list(model.tokenizer.ids_to_tokens(ids))
    labels = model.joint.vocabulary if hasattr(model, "joint") else model.decoder.vocabulary
    return [labels[i] for i in ids]


def _list(values: Any) -> list[int]:
    return [] if values is None else values.tolist() if hasattr(values, "tolist") else list(values)
