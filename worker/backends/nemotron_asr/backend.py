"""Nemotron ASR through transformers: transcribes clips with times, and live audio chunk by chunk.

    clips ──▶ features ──▶ encoder ──┬── projection (with the language, if the model has several) ──▶ greedy ──▶ tokens
    live  ──▶ StreamingEncoder ──────┘                                                                             │
                                                              text, words, segments, characters, language ◀────────┘

Two kinds of checkpoints: `NemotronAsrStreamingForRNNT` is for one language. `Nemotron3_5AsrForRNNT` is for many: it
takes the language of the request, or detects it and writes a tag such as <en-US>, which is not part of the text.

The encoder was trained with several lookaheads. Clips get the longest one, which is the most accurate;
REALTIME_CHUNK_MS selects the lookahead of live audio. A frame sees only some seconds of the past, so windows lose
nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from worker.backends.common import pretrained, text_language, timestamps
from worker.backends.common.device import device_of, dtype_of, libraries
from worker.backends.common.folder_backend import FolderBackend
from worker.backends.common.silence import is_silent
from worker.backends.nemotron_asr import greedy
from worker.backends.nemotron_asr.greedy import Tokens
from worker.backends.nemotron_asr.streaming import Stream, StreamingEncoder
from worker.errors import Unsupported
from worker.types import SAMPLE_RATE, Batch, Output, Piece, Transcript

_TAG = re.compile(r"<([a-z]{2,3})-[A-Za-z]{2,4}>")
_AUTO = "auto"
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # what a tokenizer writes for bytes that are no character


class NemotronAsr(FolderBackend):
    """A Nemotron ASR checkpoint: transcribes speech, with times."""

    overhead_sec = 100.0

    def load(self) -> None:
        """Load the checkpoint. Raises ModelUnavailable."""
        folder = self._folder()
        self._torch, transformers = libraries(self._row.id)
        self._device = device_of(self._settings)
        if self._device.type == "cpu":
            self.overhead_sec = 8.0
        self._model = pretrained.load_model(
            transformers.AutoModelForRNNT, folder, device=self._device, dtype=dtype_of(self._settings, self._device)
        )
        processor = pretrained.load(transformers.AutoProcessor, folder)
        self._extractor, self._tokenizer = processor.feature_extractor, processor.tokenizer
        self._prompts: dict[str, int] = getattr(processor, "prompt_dictionary", None) or {}
        self._lookahead = max(processor.supported_num_lookahead_tokens)
        encoder = self._model.config.encoder_config
        self._frame_sec = encoder.subsampling_factor * self._extractor.hop_length / SAMPLE_RATE
        self._tags = {
            number: match[1]
            for token, number in self._tokenizer.get_vocab().items()
            if (match := _TAG.fullmatch(token))
        }
        self._streaming = StreamingEncoder(
            self._model,
            self._extractor,
            _lookahead(
                processor.supported_num_lookahead_tokens, self._settings.realtime_chunk_ms / 1000 / self._frame_sec
            ),
        )
        if len(self._row.languages) != 1:
            text_language.load()

    def infer(self, batch: Batch) -> list[Output]:
        """Transcribe the pieces. Raises Unsupported for a language that the checkpoint does not know."""
        if batch.pieces[0].live is not None:
            return self._advance(batch)
        language, logprobs = batch.options.language, batch.options.confidence
        outputs: list[Output] = [Transcript("", language=language) for _ in batch.pieces]
        spoken = [i for i, piece in enumerate(batch.pieces) if not is_silent(piece.clip.samples)]
        with self._torch.inference_mode():
            prompts = self._prompt_ids(language, len(spoken))
            rows = self._transcribe([batch.pieces[i] for i in spoken], prompts, logprobs) if spoken else []
        for i, row in zip(spoken, rows, strict=True):
            outputs[i] = self._transcript(batch.pieces[i], row)
        return outputs

    def _advance(self, batch: Batch) -> list[Output]:
        """Run the next pieces of streams, and return what each stream says so far."""
        lives = [piece.live for piece in batch.pieces if piece.live is not None]
        with self._torch.inference_mode():
            streams = self._streaming.advance(
                [live.state if isinstance(live.state, Stream) else self._streaming.start() for live in lives],
                [piece.clip.samples for piece in batch.pieces],
                [live.ends for live in lives],
                self._prompt_ids(batch.options.language, len(lives)),
                logprobs=batch.options.confidence,
            )
        return [
            self._so_far(piece, stream, ends=live.ends)
            for piece, stream, live in zip(batch.pieces, streams, lives, strict=True)
        ]

    def _so_far(self, piece: Piece, stream: Stream, *, ends: bool) -> Transcript:
        """Return the text of a stream, without times. The text begins with the text of the stream's earlier pieces."""
        tokens, tagged = self._tokens(Tokens([*stream.ids], [*stream.starts], [*stream.logprobs]), math.inf)
        text = self._text(token.id for token in tokens)
        if not ends:  # a character of several tokens, each a byte of it, is not complete
            text = text.rstrip(_INCOMPLETE)
        return Transcript(
            text, language=piece.options.language or tagged, tokens=timestamps.plain(tokens), live_state=stream
        )

    def _prompt_ids(self, language: str | None, count: int) -> Any:
        """Return the language's number for each of `count` rows; None if the model has one language only."""
        if not self._prompts:
            return None
        code = language or _AUTO
        number = self._prompts.get(code)
        if number is None:
            number = next((self._prompts[name] for name in self._prompts if name.startswith(f"{code}-")), None)
        if number is None:
            known = sorted({name.partition("-")[0] for name in self._prompts} - {_AUTO})
            raise Unsupported(
                f"unsupported language {code!r}; {self._row.id} supports {', '.join(known)}.", param="language"
            )
        return self._torch.full((count,), number, device=self._device)

    def _transcribe(self, pieces: Sequence[Piece], prompts: Any, logprobs: bool) -> list[Tokens]:
        features = self._extractor(
            [piece.clip.samples for piece in pieces], sampling_rate=SAMPLE_RATE, return_tensors="pt"
        )
        mask = features.attention_mask.to(self._device)
        more = {} if prompts is None else {"prompt_ids": prompts}
        encoded = self._model.get_audio_features(
            input_features=features.input_features.to(self._device, self._model.dtype),
            attention_mask=mask,
            num_lookahead_tokens=self._lookahead,
            **more,
        )
        lengths = encoded.attention_mask.sum(-1).tolist()
        start = greedy.start(self._model, len(pieces))
        tokens, _ = greedy.decode(self._model, encoded.pooler_output, lengths, start, logprobs=logprobs)
        return tokens

    def _transcript(self, piece: Piece, row: Tokens) -> Transcript:
        tokens, tagged = self._tokens(row, piece.duration_sec)
        groups, words = timestamps.group(tokens), timestamps.words(tokens)
        text = self._text(token.id for token in tokens)
        return Transcript(
            text,
            words,
            timestamps.segments(words, groups if row.logprobs else ()),
            timestamps.chars(
                replace(token, confidence=word.confidence)
                for word, own in zip(words, groups, strict=True)
                for token in own
            ),
            piece.options.language or tagged or text_language.identify(text, self._row.languages),
            tokens=timestamps.plain(tokens),
        )

    def _tokens(self, row: Tokens, end_sec: float) -> tuple[list[timestamps.TimedToken], str | None]:
        """Return the tokens without the tags of languages, and the language of the first tag.

        A token lasts one frame. No time is after `end_sec`.
        """
        logprobs: Sequence[float | None] = row.logprobs or [None] * len(row.ids)
        found: list[timestamps.TimedToken] = []
        language: str | None = None
        names = self._tokenizer.convert_ids_to_tokens(row.ids)
        for name, number, start, logprob in zip(names, row.ids, row.starts, logprobs, strict=True):
            if number in self._tags:
                language = language or self._tags[number]
                continue
            found.append(
                timestamps.TimedToken(
                    name,
                    min(start * self._frame_sec, end_sec),
                    min((start + 1) * self._frame_sec, end_sec),
                    None if logprob is None else timestamps.confidence(logprob, self._model.config.vocab_size),
                    number,
                    logprob,
                )
            )
        return found, language

    def _text(self, ids: Iterable[int]) -> str:
        """Return the text of tokens, which begins with the text of the first of them."""
        text: str = self._tokenizer.decode(
            list(ids), skip_special_tokens=True, group_tokens=False, clean_up_tokenization_spaces=False
        )
        return text.strip()


def _lookahead(supported: Sequence[int], frames: float) -> int:
    """Return the longest lookahead whose chunk has at most so many frames, or the shortest one."""
    return max((number for number in supported if number + 1 <= frames + 1e-6), default=min(supported))
