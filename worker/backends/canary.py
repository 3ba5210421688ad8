"""Canary through NeMo: any .nemo file of the family (canary-1b, -1b-flash, -180m-flash, -1b-v2).

    pieces ── encoder ──▶ states ──┬── decoder, one step ──▶ spoken language, if the request names none
                                   └── decoder, after a prompt of control tokens ──▶ text, with or without time tokens

The prompt always names both the spoken and the written language, because NeMo translates if either is missing. If the
request does not name the spoken language, the decoder predicts it: the prompt is given up to the place of the language,
and the likeliest language that the model supports takes that place. NeMo trains this prediction along with the text
unless the checkpoint's configuration has `use_loss_mask_for_prompt`; with that setting, English is assumed. The written
language is by default the spoken one.

Word times come in the form that the checkpoint supports: as time tokens in the text (the flash models), or from an
alignment of the text by the small CTC model that the checkpoint carries (1b-v2). canary-1b has no word times.

The model accepts 40 s at a time. The engine splits longer clips at quiet places; NeMo's own chunking is not used.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from worker.backends.base import Backend
from worker.backends.common import generation, timestamps
from worker.backends.common.silence import is_silent
from worker.backends.nemo import keywords
from worker.backends.nemo.encoder import NemoModel, weight_bytes
from worker.catalog import Model
from worker.config import Settings
from worker.errors import Unsupported
from worker.types import Batch, FinishReason, Options, Output, Piece, Span, Transcript

_TIMED = re.compile(r"<\|(\d+)\|>(.*?)<\|(\d+)\|>")
_CONTROL = re.compile(r"<\|[^|]*\|>")


class Canary(Backend):
    """A Canary checkpoint: transcribes and translates speech."""

    def __init__(self, model: Model, settings: Settings) -> None:
        self._row, self._settings = model, settings

    def weight_bytes(self) -> int:
        """Return the bytes of the .nemo file. Raises ModelUnavailable if there is none."""
        return weight_bytes(self._row.id, self._settings)

    def load(self) -> None:
        """Restore the checkpoint, and its aligner if it has one. Raises ModelUnavailable."""
        self._nemo = NemoModel(
            self._row.id,
            self._settings,
            ("encoder", "encoder_decoder_proj", "transf_encoder", "transf_decoder", "log_softmax"),
        )
        from omegaconf import OmegaConf

        self._torch, self._model, self._device = self._nemo.torch, self._nemo.model, self._nemo.device
        if self._device.type == "cpu":
            self.overhead_sec = 16.0
        # The tokenizer is an aggregate with special tokens of its own or, from 1b-v2 on, a single one.
        tokenizer = self._model.tokenizer
        self._aggregate = bool(getattr(tokenizer, "special_tokens", None))
        self._control_tokens = set(tokenizer.special_tokens if self._aggregate else tokenizer.vocab)
        self._aligner = self._nemo.aligner
        self._logits = self._model.log_softmax.mlp.last_linear_layer
        self._trees = keywords.Trees(self._logits.out_features, keywords.CANARY_SCALING)
        controls = [self._id(token) for token in self._control_tokens]
        self._is_control = self._torch.zeros(self._logits.out_features, dtype=self._torch.bool, device=self._device)
        self._is_control[controls] = True
        self._detects = not self._model.cfg.get("use_loss_mask_for_prompt", False)
        # Decoding is greedy, even if the checkpoint's configuration selects another strategy, and may fill the
        # decoder's positions: NeMo's own max_generation_delta is a limit that grows with the longest clip of the batch.
        # All other settings get NeMo's defaults.
        self._model.change_decoding_strategy(
            OmegaConf.create({"strategy": "greedy", "greedy": {"max_generation_delta": -1}})
        )

    def infer(self, batch: Batch) -> list[Output]:
        """Transcribe or translate the pieces. Raises Unsupported for a language or for timestamps."""
        pairs = self._pairs(batch.options)
        self._prompt(batch.options, *pairs[0])  # fails for a language that the checkpoint lacks, even in silence
        written = pairs[0][1] if len({written for _, written in pairs}) == 1 else None
        outputs: list[Output] = [Transcript("", language=written) for _ in batch.pieces]
        rows = [i for i, piece in enumerate(batch.pieces) if not is_silent(piece.clip.samples)]
        if rows:
            pieces = [batch.pieces[i] for i in rows]
            with self._torch.inference_mode():
                states, mask = self._encode(pieces)
                chosen = self._choose(states, mask, pairs, batch.options)
                prompts = {pair: self._prompt(batch.options, *pair) for pair in set(chosen)}
                transcripts = self._transcribe(
                    pieces, states, mask, [prompts[pair] for pair in chosen], [written for _, written in chosen]
                )
            for i, transcript in zip(rows, transcripts, strict=True):
                outputs[i] = transcript
        return outputs

    def close(self) -> None:
        """Free the device's memory."""
        self._model = self._nemo.model = self._logits = self._aligner = self._nemo.aligner = None
        if self._device.type == "cuda":
            self._torch.cuda.empty_cache()

    def _pairs(self, options: Options) -> list[tuple[str, str]]:
        """Return the pairs of spoken and written language that a request allows: one, if it names the spoken language.

        If the request names only a target language, speech in the target language is transcribed.
        """
        if options.language or not self._detects:
            return [languages(options)]
        target = options.target_language or ("en" if options.task == "translate" else None)
        pivot = self._row.pivot_language
        spoken = (pivot, target) if pivot and target and target != pivot else self._row.languages or self._codes()
        return [(code, target or code) for code in spoken]

    def _codes(self) -> list[str]:
        """Return the codes of the languages that the checkpoint has control tokens for, in alphabetical order."""
        return sorted(token[2:-2] for token in self._control_tokens if re.fullmatch(r"<\|[a-z]{2}\|>", token))

    def _prompt(self, options: Options, spoken: str, written: str) -> list[int]:
        """Return the ids of the prompt.

        Raises Unsupported if this checkpoint has no control token for a language, or none for timestamps.
        """
        for name, code in (("language", spoken), ("target_language", written)):
            if f"<|{code}|>" not in self._control_tokens:
                raise Unsupported(
                    f"unsupported {name} {code!r}; {self._row.id} supports {', '.join(self._codes())}", param=name
                )
        slots = {
            "source_lang": f"<|{spoken}|>",
            "target_lang": f"<|{written}|>",
            "pnc": "<|pnc|>" if options.punctuation else "<|nopnc|>",
        }
        if self._model.prompt_format == "canary":
            slots["task"] = "<|transcribe|>" if spoken == written else "<|translate|>"
        else:
            timed = options.timestamps and self._aligner is None
            if timed and "<|timestamp|>" not in self._control_tokens:
                raise Unsupported(f"{self._row.id} does not support timestamps", param="timestamps")
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

    def _encode(self, pieces: list[Piece]) -> tuple[Any, Any]:
        """Return the states that the decoder attends to, of shape (pieces, frames, width), and the frames' mask."""
        torch, model = self._torch, self._model
        encoded, frames = self._nemo.encode(pieces)
        states = model.encoder_decoder_proj(encoded.permute(0, 2, 1))
        mask = (torch.arange(states.shape[1], device=self._device) < frames[:, None]).to(states.dtype)
        if model.use_transf_encoder:
            states = model.transf_encoder(encoder_states=states, encoder_mask=mask)
        return states, mask

    def _choose(self, states: Any, mask: Any, pairs: list[tuple[str, str]], options: Options) -> list[tuple[str, str]]:
        """Return the pair for each row of `states` whose spoken language is the likeliest to the decoder."""
        if len(pairs) == 1:
            return pairs * len(states)
        torch, model = self._torch, self._model
        numbers = [self._language_id(spoken) for spoken, _ in pairs]
        prompt = self._prompt(options, *pairs[0])
        before = prompt[: prompt.index(numbers[0])]
        ids = torch.tensor([before] * len(states), device=self._device)
        decoder = model.transf_decoder.eval()  # NeMo leaves the decoder in training mode
        hidden = decoder(
            input_ids=ids,
            decoder_mask=torch.ones_like(ids, dtype=mask.dtype),
            encoder_embeddings=states,
            encoder_mask=mask,
        )
        scores = model.log_softmax.eval()(hidden_states=hidden[:, -1:])[:, 0, numbers]
        return [pairs[best] for best in scores.argmax(dim=-1).tolist()]

    def _language_id(self, code: str) -> int:
        """Return the id of a language's control token."""
        return self._id(f"<|{code}|>")

    def _id(self, token: str) -> int:
        """Return the id of a control token."""
        tokenizer = self._model.tokenizer
        return int(tokenizer.special_tokens[token] if self._aggregate else tokenizer.token_to_id(token))

    def _follower(self, pieces: list[Piece], written: list[str]) -> keywords.Follower | None:
        """Return what follows the rows over their keywords, in the languages that they write; None without keywords."""
        rows = [
            keywords.row(self._trees, piece.options, partial(self._spell, language), language)
            for piece, language in zip(pieces, written, strict=True)
        ]
        return keywords.Follower(rows, self._logits.out_features, self._device) if any(rows) else None

    def _spell(self, language: str, text: str) -> list[int] | None:
        """Return the ids of a keyword, or None if the tokenizer cannot spell it without a control token."""
        tokenizer = self._model.tokenizer
        ids = tokenizer.text_to_ids(text, language) if self._aggregate else tokenizer.text_to_ids(text)
        if any(self._is_control[one] for one in ids):
            return None
        return keywords.spelled(ids, tokenizer)

    def _transcribe(
        self, pieces: list[Piece], states: Any, mask: Any, prompts: list[list[int]], written: list[str]
    ) -> list[Transcript]:
        """Return the transcript of each piece, whose encoder states, prompt and written language are given."""
        options = pieces[0].options
        follower = self._follower(pieces, written)
        with _steps(self._logits, options.confidence, follower, self._is_control) as steps:
            hypotheses = self._model.decoding.decode_predictions_tensor(
                encoder_hidden_states=states,
                encoder_input_mask=mask,
                decoder_input_ids=self._torch.tensor(prompts, device=self._device),
                return_hypotheses=True,
            )
        if options.timestamps and self._aligner is not None:
            transcripts = self._align(pieces, hypotheses, written)
        else:
            transcripts = [self._time_tokens(*row) for row in zip(pieces, hypotheses, written, strict=True)]
        limit = self._model.decoding.decoding.greedy_search.max_seq_length - len(prompts[0])
        transcripts = [
            _with_finish_reason(transcript, len(hypothesis.y_sequence), limit, options)
            for transcript, hypothesis in zip(transcripts, hypotheses, strict=True)
        ]
        if not options.confidence:
            return transcripts
        rows = self._torch.stack(steps, dim=1).tolist()
        return [self._with_confidence(*row) for row in zip(transcripts, hypotheses, rows, strict=True)]

    def _with_confidence(self, transcript: Transcript, hypothesis: Any, logprobs: list[float]) -> Transcript:
        """Return the transcript with the tokens of the text, and the confidence of each word.

        `logprobs` has a log probability for each step, of which the first ones are those of the hypothesis. A word has
        no confidence if the texts of the tokens do not spell the words.
        """
        ids = hypothesis.y_sequence.tolist()
        vocabulary = self._logits.out_features
        tokens = [
            timestamps.TimedToken(name, 0.0, 0.0, timestamps.confidence(logprob, vocabulary), number, logprob)
            for number, name, logprob in zip(ids, self._model.tokenizer.ids_to_tokens(ids), logprobs, strict=False)
            if _CONTROL.fullmatch(name) is None
        ]
        groups = timestamps.tokens_of(transcript.words, tokens)
        words = timestamps.with_confidence(transcript.words, groups)
        segments = timestamps.segments(words, groups)
        if not words:
            segments = tuple(timestamps.reporting(span, tokens) for span in transcript.segments)
        return replace(
            transcript,
            words=words,
            segments=segments,
            chars=timestamps.chars(words),
            tokens=timestamps.plain(tokens),
        )

    def _time_tokens(self, piece: Piece, hypothesis: Any, written: str) -> Transcript:
        """Return the transcript. Its words are those between two time tokens, if the text has any."""
        end, frame = piece.duration_sec, self._nemo.frame_sec
        words = tuple(
            Span(word.strip(), min(int(start) * frame, end), min(max(int(start), int(stop)) * frame, end))
            for start, word, stop in _TIMED.findall(hypothesis.text)
            if word.strip()
        )
        return self._transcript(piece, _strip_control_tokens(hypothesis.text), words, hypothesis, written)

    def _align(self, pieces: list[Piece], hypotheses: list[Any], written: list[str]) -> list[Transcript]:
        """Return the transcripts, with word times from the checkpoint's aligner."""
        from nemo.collections.asr.parts.utils.timestamp_utils import get_forced_aligned_timestamps_with_external_model

        for hypothesis in hypotheses:
            hypothesis.text = _strip_control_tokens(hypothesis.text)
        rows = [i for i, hypothesis in enumerate(hypotheses) if hypothesis.text]
        if rows:
            get_forced_aligned_timestamps_with_external_model(
                audio=[pieces[i].clip.samples for i in rows],
                external_ctc_model=self._aligner,
                batch_size=len(rows),
                main_model_predictions=[hypotheses[i] for i in rows],
                viterbi_device=self._device,
                timestamp_type="word",
                verbose=False,
            )
        transcripts = []
        for i, (piece, hypothesis, language) in enumerate(zip(pieces, hypotheses, written, strict=True)):
            end = piece.duration_sec
            times = hypothesis.timestamp["word"] if i in rows else []
            words = tuple(
                Span(word["word"], min(max(word["start"], 0.0), end), min(max(word["start"], word["end"], 0.0), end))
                for word in times
            )
            transcripts.append(self._transcript(piece, hypothesis.text, words, hypothesis, language))
        return transcripts

    def _transcript(
        self, piece: Piece, text: str, words: tuple[Span, ...], hypothesis: Any, written: str
    ) -> Transcript:
        segments = timestamps.segments(words)
        if text and not words and piece.options.timestamps:
            segments = (Span(text, 0.0, piece.duration_sec),)  # no word has a time, but the whole text does
        tokens = self._model.tokenizer.ids_to_tokens(hypothesis.y_sequence.tolist())
        count = sum(_CONTROL.fullmatch(token) is None for token in tokens)
        return Transcript(text, words, segments, timestamps.chars(words), language=written, tokens_generated=count)


@contextlib.contextmanager
def _steps(layer: Any, wanted: bool, follower: keywords.Follower | None, is_control: Any) -> Iterator[list[Any]]:
    """Let the decoder prefer the keywords that `follower` follows, if it is not None, at each step.

    Yield a list that receives, at each step, the log probability of the chosen token of each row, if `wanted`.

    `layer` makes the logits, of shape (rows, steps, vocabulary). Greedy decoding takes the likeliest token. NeMo's own
    switch makes confidences of the precision of the weights, which is too coarse in half precision. `is_control`, of
    shape (vocabulary,), is whether a token is a control token: keywords replace no such token, and are none.
    """
    steps: list[Any] = []

    def step(_module: Any, _inputs: Any, logits: Any) -> Any:
        last = logits[:, -1].float()
        chosen = last.argmax(dim=-1)
        if follower is not None:
            preferred = follower.prefer(last.masked_fill(is_control, -math.inf), chosen)
            controls = is_control[chosen]
            chosen = chosen.where(controls, preferred)
            labels = chosen.tolist()
            follower.advance({row: labels[row] for row, skip in enumerate(controls.tolist()) if not skip})
        if wanted:
            steps.append(last.gather(1, chosen[:, None])[:, 0] - last.logsumexp(dim=-1))
        if follower is None:
            return None
        # The decoder takes the likeliest token, so the chosen one gets a higher score than all others have.
        highest = logits[:, -1].amax(dim=-1, keepdim=True)
        logits[:, -1] = logits[:, -1].scatter(1, chosen[:, None], highest + highest.abs() + 1)
        return logits

    hook = layer.register_forward_hook(step) if wanted or follower is not None else None
    try:
        yield steps
    finally:
        if hook is not None:
            hook.remove()


def _with_finish_reason(transcript: Transcript, count: int, limit: int, options: Options) -> Transcript:
    """Return the transcript of `count` tokens, without the end token, of which the decoder has room for `limit`."""
    reason: FinishReason = "length" if count >= limit else "stop"
    return replace(transcript, finish_reason=reason, warning=generation.length_warning(reason, options, limit))


def languages(options: Options) -> tuple[str, str]:
    """Return the spoken and the written language, if the checkpoint does not detect the former.

    The default is English, and for the written language the spoken one.
    """
    spoken = options.language or "en"
    written = options.target_language or ("en" if options.task == "translate" else spoken)
    return spoken, written


def _strip_control_tokens(text: str) -> str:
    """Return the text without control tokens, which time tokens are too."""
    return " ".join(_CONTROL.sub(" ", text).split())
