"""Canary through NeMo: any .nemo of the family (canary-1b, -1b-flash, -180m-flash, -1b-v2).

The prompt always names both the spoken and the written language, for with one of them missing NeMo translates. Where
nothing is
said of either, English is meant. Word times come as the checkpoint has them: as tokens of the text (the flash models),
or by aligning the text with the small CTC model that the checkpoint carries (1b-v2); canary-1b has none.

The model hears 40 s at a time. The engine cuts what is longer where it is quiet; NeMo's own chunking is not used.
"""

from __future__ import annotations

import re
from typing import Any

from worker.backends.base import Backend
from worker.backends.common import timestamps
from worker.backends.common.silence import is_silent
from worker.backends.nemo.encoder import NemoModel, weight_bytes
from worker.catalog import Model
from worker.config import Settings
from worker.errors import Unsupported
from worker.types import Batch, Options, Output, Piece, Span, Transcript

_TIMED = re.compile(r"<\|(\d+)\|>(.*?)<\|(\d+)\|>")
_SIGN = re.compile(r"<\|[^|]*\|>")


class Canary(Backend):
    def __init__(self, model: Model, settings: Settings) -> None:
        self._row, self._settings = model, settings

    def weight_bytes(self) -> int:
        return weight_bytes(self._row.id, self._settings)

    def load(self) -> None:
        self._nemo = NemoModel(
            self._row.id,
            self._settings,
            ("encoder", "encoder_decoder_proj", "transf_encoder", "transf_decoder", "log_softmax"),
        )
        from omegaconf import OmegaConf

        self._torch, self._model, self._device = self._nemo.torch, self._nemo.model, self._nemo.device
        if self._device.type == "cpu":
            self.overhead_sec = 16.0
        tokenizer = self._model.tokenizer  # one of several, with signs of its own; or, from 1b-v2 on, a single one
        self._signs = set(getattr(tokenizer, "special_tokens", None) or tokenizer.vocab)
        self._aligner = self._nemo.aligner
        # Greedy, whatever the checkpoint says, and up to what the decoder holds: NeMo's max_generation_delta is a
        # limit that
        # grows with the longest clip of the batch. Settings that are not given become NeMo's defaults.
        self._model.change_decoding_strategy(
            OmegaConf.create({"strategy": "greedy", "greedy": {"max_generation_delta": -1}})
        )

    def infer(self, batch: Batch) -> list[Output]:
        spoken, written = languages(batch.options)
        prompt = self._prompt(batch.options, spoken, written)
        outputs: list[Output] = [Transcript("", language=written) for _ in batch.pieces]
        heard = [i for i, piece in enumerate(batch.pieces) if not is_silent(piece.clip.samples)]
        if heard:
            for i, transcript in zip(heard, self._hear([batch.pieces[i] for i in heard], prompt, written), strict=True):
                outputs[i] = transcript
        return outputs

    def close(self) -> None:
        self._model = self._nemo.model = self._aligner = self._nemo.aligner = None
        if self._device.type == "cuda":
            self._torch.cuda.empty_cache()

    def _prompt(self, options: Options, spoken: str, written: str) -> list[int]:
        """The ids of the prompt. Raises Unsupported for a language, or for times, that this checkpoint has no sign
        for."""
        for name, code in (("language", spoken), ("target_language", written)):
            if f"<|{code}|>" not in self._signs:
                known = sorted(sign[2:-2] for sign in self._signs if re.fullmatch(r"<\|[a-z]{2}\|>", sign))
                raise Unsupported(f"{self._row.id} does not know {name} {code!r}, only {', '.join(known)}", param=name)
        slots = {
            "source_lang": f"<|{spoken}|>",
            "target_lang": f"<|{written}|>",
            "pnc": "<|pnc|>" if options.punctuation else "<|nopnc|>",
        }
        if self._model.prompt_format == "canary":
            slots["task"] = "<|transcribe|>" if spoken == written else "<|translate|>"
        else:
            timed = options.timestamps and self._aligner is None
            if timed and "<|timestamp|>" not in self._signs:
                raise Unsupported(f"{self._row.id} gives no timestamps", param="timestamps")
            slots |= {
                "decodercontext": "",
                "emotion": "<|emo:undefined|>",
                "itn": "<|noitn|>",
                "diarize": "<|nodiarize|>",
                "timestamp": "<|timestamp|>" if timed else "<|notimestamp|>",
            }
        formatter = self._model.prompt
        turn = {"role": "user", "slots": slots | {formatter.PROMPT_LANGUAGE_SLOT: "spl_tokens"}}
        ids: list[int] = formatter.encode_dialog([turn])["context_ids"].tolist()
        return ids

    def _hear(self, pieces: list[Piece], prompt: list[int], written: str) -> list[Transcript]:
        torch, model = self._torch, self._model
        with torch.inference_mode():
            encoded, frames = self._nemo.encode(pieces)
            states = model.encoder_decoder_proj(encoded.permute(0, 2, 1))
            mask = (torch.arange(states.shape[1], device=self._device) < frames[:, None]).to(states.dtype)
            if model.use_transf_encoder:
                states = model.transf_encoder(encoder_states=states, encoder_mask=mask)
            ids = torch.tensor([prompt] * len(pieces), device=self._device)
            hypotheses = model.decoding.decode_predictions_tensor(
                encoder_hidden_states=states, encoder_input_mask=mask, decoder_input_ids=ids, return_hypotheses=True
            )
            timed = pieces[0].options.timestamps
            if timed and self._aligner is not None:
                return self._aligned(pieces, hypotheses, written)
        return [
            self._transcript(piece, hypothesis, written) for piece, hypothesis in zip(pieces, hypotheses, strict=True)
        ]

    def _transcript(self, piece: Piece, hypothesis: Any, written: str) -> Transcript:
        """The text, and its words where time tokens stand on both sides of them."""
        end, frame = piece.duration_sec, self._nemo.frame_sec
        words = tuple(
            Span(word.strip(), min(int(start) * frame, end), min(max(int(start), int(stop)) * frame, end))
            for start, word, stop in _TIMED.findall(hypothesis.text)
            if word.strip()
        )
        return self._made(piece, _bare(hypothesis.text), words, hypothesis, written)

    def _aligned(self, pieces: list[Piece], hypotheses: list[Any], written: str) -> list[Transcript]:
        from nemo.collections.asr.parts.utils.timestamp_utils import get_forced_aligned_timestamps_with_external_model

        for hypothesis in hypotheses:
            hypothesis.text = _bare(hypothesis.text)
        said = [i for i, hypothesis in enumerate(hypotheses) if hypothesis.text]
        if said:
            get_forced_aligned_timestamps_with_external_model(
                audio=[pieces[i].clip.samples for i in said],
                external_ctc_model=self._aligner,
                batch_size=len(said),
                main_model_predictions=[hypotheses[i] for i in said],
                viterbi_device=self._device,
                timestamp_type="word",
                verbose=False,
            )
        transcripts = []
        for i, (piece, hypothesis) in enumerate(zip(pieces, hypotheses, strict=True)):
            end = piece.duration_sec
            found = hypothesis.timestamp["word"] if i in said else []
            words = tuple(
                Span(one["word"], min(max(one["start"], 0.0), end), min(max(one["start"], one["end"], 0.0), end))
                for one in found
            )
            transcripts.append(self._made(piece, hypothesis.text, words, hypothesis, written))
        return transcripts

    def _made(self, piece: Piece, text: str, words: tuple[Span, ...], hypothesis: Any, written: str) -> Transcript:
        segments = timestamps.segments(words)
        if text and not words and piece.options.timestamps:
            segments = (Span(text, 0.0, piece.duration_sec),)  # the model told no times: this much is known
        tokens = self._model.tokenizer.ids_to_tokens(hypothesis.y_sequence.tolist())
        count = sum(_SIGN.fullmatch(token) is None for token in tokens)
        return Transcript(text, words, segments, timestamps.chars(words), written, count)


def languages(options: Options) -> tuple[str, str]:
    """The spoken and the written language that the options mean: what is not given is English, or as spoken."""
    spoken = options.language or "en"
    written = options.target_language or ("en" if options.task == "translate" else spoken)
    return spoken, written


def _bare(text: str) -> str:
    """The text without signs and time tokens."""
    return " ".join(_SIGN.sub(" ", text).split())
