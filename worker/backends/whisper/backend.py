"""Whisper through transformers: transcribe, translate into English, and embed (the encoder's states).

    pieces ── encoder, once ──▶ states ──┬── language detection
                                         ├── decoding  ──▶ tokens ──▶ text, segments
                                         ├── alignment ──▶ the tokens' times ──▶ words
                                         └── without padding ──▶ embedding

The model accepts 30 s at a time. The engine splits longer clips at quiet places, and the pieces of all clips share
batches, in any order. The engine gives a window the text before it as its prompt if the request asks for it. Long
pauses are cut out before the model runs, and the model is not run on a piece without speech, for which it would invent
words. Generation is greedy, and falls back to sampling for pieces whose text is improbable or repeats itself, unless
the request sets a temperature. A checkpoint that does not name its alignment heads has no word times.
`tokens_generated` counts the tokens of the text, without control and time tokens.

An embedding covers the audio itself: the padding up to 30 s is stripped, before pooling too.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from worker.backends.common import generation, pretrained, timestamps
from worker.backends.common.device import check_compiler, device_of, dtype_of, libraries
from worker.backends.common.folder_backend import FolderBackend
from worker.backends.common.silence import is_silent
from worker.backends.whisper import alignment, decoding, speech, steps, words
from worker.backends.whisper.decoding import Decoded
from worker.backends.whisper.speech import Cut
from worker.errors import Unsupported
from worker.types import SAMPLE_RATE, Batch, Embedding, Options, Output, Piece, Segment, Span, Transcript

WINDOW = 30 * SAMPLE_RATE
WINDOWS_AT_ONCE = 16
CONTROL_TOKENS = 8  # ids before and after a text, rounded up
MULTILINGUAL = 51_865  # ids, or more; the vocabulary of a checkpoint for English only has one less
_LANGUAGE = re.compile(r"<\|[a-z]{2,3}\|>")
BY_LETTER = {"zh", "ja", "yue", "th", "lo", "my"}  # written without spaces: each character counts as a word


class Whisper(FolderBackend):
    """A Whisper checkpoint: transcribes speech, translates it into English, and embeds audio."""

    least_sec = 30.0

    def load(self) -> None:
        """Load the checkpoint. Raises ModelUnavailable."""
        folder = self._folder()
        self._torch, transformers = libraries(self._row.id)
        self._device = device_of(self._settings)
        if self._settings.compile:
            check_compiler(self._device)
        if self._device.type == "cpu":
            # The steps of the decoder take 1.5 s for each batch, and a window takes 0.43 s (whisper-tiny on two cores).
            self.overhead_sec = 100.0
        self._model = pretrained.load_model(
            transformers.WhisperForConditionalGeneration,
            folder,
            device=self._device,
            dtype=dtype_of(self._settings, self._device),
        )
        if self._device.type == "cpu":
            # The same values by columns: a step of the decoder reads all of them, and reads them faster in this order.
            vocabulary = self._model.proj_out.weight
            vocabulary.data = vocabulary.t().contiguous().t()
        processor = pretrained.load(transformers.AutoProcessor, folder)
        self._features, self._tokenizer = processor.feature_extractor, processor.tokenizer
        self._states_of = transformers.modeling_outputs.BaseModelOutput
        if self._settings.compile:
            self._model.model.encoder.compile(dynamic=True)
        config, sizes = self._model.generation_config, self._model.config
        _complete(config, self._tokenizer, sizes.vocab_size)
        self._multilingual: bool = config.is_multilingual
        self._languages = (
            {number: token[2:-2] for token, number in config.lang_to_id.items()} if self._multilingual else {}
        )
        self._heads = [
            (layer, head)
            for layer, head in getattr(config, "alignment_heads", None) or []
            if layer < sizes.decoder_layers and head < sizes.decoder_attention_heads
        ]
        self._ids = steps.Ids(
            config.decoder_start_token_id,
            config.eos_token_id,
            config.no_timestamps_token_id + 1,
            tuple(config.suppress_tokens or ()),
            tuple(config.begin_suppress_tokens or ()),
        )
        config.suppress_tokens = config.begin_suppress_tokens = None
        self._room = sizes.max_target_positions - CONTROL_TOKENS  # ids, for the prompt and the text
        self._frame_rate = SAMPLE_RATE / self._features.hop_length / 2  # one convolution strides by two

    def infer(self, batch: Batch) -> list[Output]:
        """Transcribe, translate or embed the pieces. Raises Unsupported for a language, a translation or a prompt."""
        with self._torch.inference_mode():
            if batch.options.task == "embed":
                return self._embeddings(batch.pieces)
            self._check(batch.options)
            language = "en" if _translates(batch.options) else batch.options.language
            empty = Transcript("", language=language, tokens_generated=0, finish_reason="stop")
            outputs: list[Output] = [empty] * len(batch.pieces)
            audible = [i for i, piece in enumerate(batch.pieces) if not is_silent(piece.clip.samples)]
            found = speech.cut_all([batch.pieces[i] for i in audible], self._settings.detect_speech)
            cuts = {i: cut for i, cut in zip(audible, found, strict=True) if cut is not None}
            texts = {i: (batch.pieces[i].options.keywords, batch.pieces[i].options.prompt) for i in cuts}
            prompts = {text: self._prompt_ids(*text) for text in dict.fromkeys(texts.values())}
            # `generate` accepts one prompt a call. All prompts are checked before the first call.
            for text, ids in prompts.items():
                rows = [i for i in cuts if texts[i] == text]
                transcripts = self._transcribe([batch.pieces[i] for i in rows], [cuts[i] for i in rows], ids)
                for i, transcript in zip(rows, transcripts, strict=True):
                    outputs[i] = transcript
            return outputs

    def _transcribe(self, pieces: list[Piece], cuts: list[Cut], prompt_ids: Any) -> list[Transcript]:
        """Return the transcripts of pieces with the same prompt. `prompt_ids` has shape (ids,), or is None.

        `cuts` are what is left of the pieces' audio.
        """
        options = pieces[0].options
        states, frames = self._encode([cut.samples for cut in cuts])
        spoken = self._spoken(options, states)
        task = {"task": "translate" if _translates(options) else "transcribe"} if self._multilingual else {}
        settings = generation.settings(options, longest=self._room)
        room = self._room - (0 if prompt_ids is None else len(prompt_ids))
        settings["max_new_tokens"] = min(settings["max_new_tokens"], room)
        windows = decoding.Windows(
            self._states_of(last_hidden_state=states),
            pieces,
            spoken if self._multilingual else None,
            {"prompt_ids": prompt_ids, "return_timestamps": options.timestamps and not self._heads, **task, **settings},
        )
        rows = decoding.decode(self._model, self._ids, self._text, windows)
        times = self._times(states, frames, rows, spoken, task) if options.timestamps else [None] * len(rows)
        languages = ["en"] * len(rows) if _translates(options) else spoken
        return [
            self._transcript(piece, cut, row, edges, language, settings["max_new_tokens"])
            for piece, cut, row, edges, language in zip(pieces, cuts, rows, times, languages, strict=True)
        ]

    def _encode(self, clips: Sequence[np.ndarray]) -> tuple[Any, list[int]]:
        """Return the encoder's states, of shape (clips, frames, width), and each clip's count of valid frames.

        `clips` are samples of shape (samples,), each of at most 30 s.
        """
        size = 1 if self._device.type == "cpu" else len(clips)
        states, counts = list[Any](), list[int]()
        for at in range(0, len(clips), size):
            features = self._features(
                list(clips[at : at + size]),
                sampling_rate=SAMPLE_RATE,
                return_attention_mask=True,
                return_tensors="pt",
                device=str(self._device),
            )
            mel = features["input_features"].to(self._device, self._model.dtype)
            states.append(self._model.model.encoder(mel).last_hidden_state)
            counts += ((features["attention_mask"].sum(dim=-1) - 1) // 2 + 1).tolist()
        return self._torch.cat(states), counts

    def _check(self, options: Options) -> None:
        """Raise Unsupported for options that this checkpoint does not support, although its row may allow them."""
        if not self._multilingual and _translates(options):
            raise Unsupported(
                f"{self._row.id} supports English only and does not translate",
                param="task" if options.task == "translate" else "target_language",
            )
        if not self._multilingual and (options.language or "en") != "en":
            raise Unsupported(f"{self._row.id} supports English only", param="language")
        if not self._multilingual and options.languages and "en" not in options.languages:
            raise Unsupported(f"{self._row.id} supports English only", param="languages")
        for name, code in (("language", options.language), *(("languages", code) for code in options.languages)):
            if self._multilingual and code and code not in self._languages.values():
                raise Unsupported(
                    f"unsupported language {code!r}; {self._row.id} supports "
                    f"{', '.join(sorted(self._languages.values()))}",
                    param=name,
                )

    def _spoken(self, options: Options, states: Any) -> list[str]:
        """Return the language of each row of `states`: the requested one, or the most likely one of `languages`."""
        if options.language or not self._multilingual:
            return [options.language or "en"] * len(states)
        config = copy.copy(self._model.generation_config)
        if options.languages:
            config.lang_to_id = {f"<|{code}|>": config.lang_to_id[f"<|{code}|>"] for code in options.languages}
        detected = self._model.detect_language(
            encoder_outputs=self._states_of(last_hidden_state=states), generation_config=config
        )
        return [self._languages[int(number)] for number in detected]

    def _prompt_ids(self, keywords: tuple[str, ...], prompt: str | None) -> Any:
        """Return the ids of the keywords and the prompt after them, or None without both.

        They may take half of the decoder's positions. The keywords, separated by commas, lose their end if they are too
        long, and the prompt loses its beginning if it does not fit beside them.
        Raises Unsupported if one of them contains a control token.
        """
        room = self._room // 2 - 1
        start, before = (
            self._ids_of("keywords", ", ".join(keywords) + ("." if prompt else "")) if keywords else ([], [])
        )
        before = before[:room]
        if prompt:
            start, after = self._ids_of("prompt", prompt)
            before += after[-(room - len(before)) :] if len(before) < room else []
        return self._torch.tensor([*start, *before], device=self._device) if start else None

    def _ids_of(self, field: str, text: str) -> tuple[list[int], list[int]]:
        """Return the id that starts a prompt, and the ids of the text. Raises Unsupported for a control token."""
        try:
            ids = self._tokenizer.get_prompt_ids(text).tolist()
        except ValueError as error:
            raise Unsupported(
                f"The {field} contain{'s' * (field == 'prompt')} a control token of {self._row.id}, such as "
                "<|endoftext|>. Remove it.",
                param=field,
            ) from error
        return ids[:1], ids[1:]

    def _text(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, clean_up_tokenization_spaces=False))

    def _times(
        self,
        states: Any,
        frames: list[int],
        rows: Sequence[Decoded],
        spoken: Sequence[str],
        task: dict[str, str],
    ) -> Sequence[list[tuple[float, float]] | None]:
        """Return the start and end of each row's text tokens, or None if the checkpoint has no alignment heads."""
        if not self._heads:
            return [None] * len(rows)
        id_of = self._tokenizer.convert_tokens_to_ids
        texts = [[token for token in row.tokens if token < self._ids.end] for row in rows]
        prefixes = [
            [
                self._ids.start,
                *([id_of(f"<|{language}|>"), id_of(f"<|{task['task']}|>")] if task else []),
                self._ids.first_time - 1,
            ]
            for language in spoken
        ]
        full = [[*prefix, *text, self._ids.end] for prefix, text in zip(prefixes, texts, strict=True)]
        return alignment.token_times(
            self._model, states, full, len(prefixes[0]), frames, self._heads, 1 / self._frame_rate
        )

    def _transcript(
        self,
        piece: Piece,
        cut: Cut,
        row: Decoded,
        edges: list[tuple[float, float]] | None,
        language: str,
        limit: int,
    ) -> Transcript:
        """Return the transcript of a piece, whose text has at most `limit` new tokens."""
        count = sum(token < self._ids.end for token in row.tokens)
        if row.is_silence:
            return Transcript("", language=language, tokens_generated=count, finish_reason="stop")
        parts = words.compose(
            row,
            edges,
            first_time=self._ids.first_time,
            read=self._text,
            duration_sec=len(cut.samples) / SAMPLE_RATE,
            language=language,
            by_letter=language in BY_LETTER,
            confidence=piece.options.confidence,
        )
        spoken = tuple(map(cut.restore_word, parts.words))
        return Transcript(
            parts.text,
            spoken,
            _restored(parts, spoken, cut) if piece.options.timestamps else (),
            timestamps.chars(spoken),
            language,
            count,
            tokens=parts.tokens,
            temperature=row.temperature,
            finish_reason=row.finish_reason,
            warning=generation.length_warning(row.finish_reason, piece.options, limit),
        )

    def _embeddings(self, pieces: Sequence[Piece]) -> list[Output]:
        """Return the embeddings. The windows of all clips share batches."""
        clips = [piece.clip.samples for piece in pieces]
        cuts = [[clip[at : at + WINDOW] for at in range(0, max(1, len(clip)), WINDOW)] for clip in clips]
        windows = [window for cut in cuts for window in cut]
        rows: list[np.ndarray] = []
        for at in range(0, len(windows), WINDOWS_AT_ONCE):
            states, counts = self._encode(windows[at : at + WINDOWS_AT_ONCE])
            rows += [row[: max(1, count)] for row, count in zip(states.float().cpu().numpy(), counts, strict=True)]
        remaining = iter(rows)
        whole = [np.concatenate([next(remaining) for _ in cut]) for cut in cuts]
        return [
            Embedding(
                values.mean(axis=0) if piece.options.pooling == "mean" else values,
                self._frame_rate,
                piece.options.pooling,
            )
            for piece, values in zip(pieces, whole, strict=True)
        ]


def _restored(parts: words.Composition, spoken: Sequence[Span], cut: Cut) -> tuple[Segment, ...]:
    """Return the segments with times in the window: those of their words. `spoken` are the words in the window."""
    segments = []
    for segment in parts.segments:
        own = [
            restored
            for word, restored in zip(parts.words, spoken, strict=True)
            if segment.start <= word.start and word.end <= segment.end
        ]
        found = cut.restore(segment)
        segments.append(replace(found, start=own[0].start, end=own[-1].end) if own else found)
    return tuple(segments)


def _translates(options: Options) -> bool:
    return options.task == "translate" or (options.target_language == "en" != options.language)


def _complete(config: Any, tokenizer: Any, vocabulary: int) -> None:
    """Add the settings that generation requires to the generation config of an old checkpoint."""
    if getattr(config, "is_multilingual", None) is None:
        config.is_multilingual = vocabulary >= MULTILINGUAL
    ids = tokenizer.convert_tokens_to_ids
    defaults: dict[str, Any] = {
        "no_timestamps_token_id": ids("<|notimestamps|>"),
        "prev_sot_token_id": ids("<|startofprev|>"),
    }
    if config.is_multilingual:
        defaults["lang_to_id"] = {
            token: number for token, number in tokenizer.get_added_vocab().items() if _LANGUAGE.fullmatch(token)
        }
        defaults["task_to_id"] = {task: ids(f"<|{task}|>") for task in ("transcribe", "translate")}
    for name, value in defaults.items():
        if getattr(config, name, None) is None:
            setattr(config, name, value)
