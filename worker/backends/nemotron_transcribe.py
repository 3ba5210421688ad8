"""Nemotron 3.5 Transcribe through transformers: transcribes up to an hour of speech at once, and chats about audio.

    pieces ── processor ──▶ prompts and mel features ──▶ speech and speaker encoders ──┬──▶ language model ──▶ text
                                                                                       └── head ── align ──▶ word times

The language model is a mixture of experts with attention and Mamba layers. An instruction, the option `prompt`,
controls what a transcript contains; the checkpoint holds the default instruction. If the instruction asks for
speakers, the model writes a tag such as <spk:0> at the start of each turn, and the text keeps the tags. Thinking is
off. Word times are a forced alignment of the text, without its tags, to the head's CTC probabilities.

34 billion parameters require some 64 GiB in bfloat16. A device that cannot hold them is refused before the download.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from worker.backends.common import ctc_alignment, generation, pretrained, text_language, timestamps
from worker.backends.common.device import check_memory, device_of, dtype_of, libraries
from worker.backends.common.folder_backend import FolderBackend
from worker.backends.common.silence import is_silent
from worker.errors import ModelUnavailable
from worker.types import Batch, Options, Output, Piece, Reply, Span, Transcript

ARCHITECTURE = "Nemotron3_5TranscribeForConditionalGeneration"
LONGEST = {"transcribe": 16_384, "chat": 2048}  # new tokens; an hour of fast speech has some 15,000
WORD_SEC = 0.96  # the longest word; NVIDIA's aligner has the same limit
FRAMES_AT_ONCE = 1024  # of the head, whose output has a column for each of thousands of pieces

_TAG = re.compile(r"<(?:spk|ev|sty):[^<>]*>", re.IGNORECASE)
_SPOKEN_BY_CHARACTER = ("CJK UNIFIED", "CJK COMPATIBILITY", "HIRAGANA", "KATAKANA")


class NemotronTranscribe(FolderBackend):
    """A Nemotron 3.5 Transcribe checkpoint: transcribes speech, with times, and chats about audio."""

    overhead_sec = 600.0  # a batch generates its tokens in nearly the same time as a single clip

    def weight_bytes(self) -> int:
        """Return the bytes of the weight files. Raises ModelUnavailable if there are none or no room for them."""
        if self._row.parameters:
            check_memory(self._row.id, self._row.parameters, self._settings)
        return super().weight_bytes()

    def load(self) -> None:
        """Load the checkpoint. Raises ModelUnavailable."""
        folder = self._folder()
        self._torch, transformers = libraries(self._row.id)
        self._device = device_of(self._settings)
        self._check(folder, pretrained.load(transformers.AutoConfig, folder))
        self._model = pretrained.load_model(
            getattr(transformers, ARCHITECTURE),
            folder,
            device=self._device,
            dtype=dtype_of(self._settings, self._device),
        )
        self._processor = pretrained.load(transformers.AutoProcessor, folder)
        text_language.load()
        self._tokenizer, self._pieces = self._processor.tokenizer, self._processor.alignment_tokenizer
        ends = self._model.generation_config.eos_token_id
        self._ends = [*(ends if isinstance(ends, list | tuple) else [ends]), self._tokenizer.pad_token_id]
        self._control_ids = {
            number
            for token, number in zip(self._tokenizer.all_special_tokens, self._tokenizer.all_special_ids, strict=True)
            if not _TAG.fullmatch(token)
        }
        head = self._model.config.word_timestamp_config
        self._blank, self._frames_per_state = head.blank_token_id, head.upsampling_factor

    def infer(self, batch: Batch) -> list[Output]:
        """Transcribe the pieces, or reply to their messages."""
        if batch.options.task == "chat":
            return list(self._generate(batch))
        outputs: list[Output] = [Transcript("", finish_reason="stop", tokens_generated=0) for _ in batch.pieces]
        spoken = [i for i, piece in enumerate(batch.pieces) if not is_silent(piece.clip.samples)]
        if spoken:
            rows = self._generate(replace(batch, pieces=tuple(batch.pieces[i] for i in spoken)))
            for i, row in zip(spoken, rows, strict=True):
                outputs[i] = row
        return outputs

    def _check(self, folder: Path, config: Any) -> None:
        """Raise ModelUnavailable if the checkpoint is of another kind or has quantized weights."""
        if config.model_type != "nemo_speechlm":
            raise ModelUnavailable(f"{folder} is a checkpoint of {config.model_type}, not of {ARCHITECTURE}")
        if getattr(config, "quantization_config", None):
            raise ModelUnavailable(f"{folder} has quantized weights. Use the checkpoint in bfloat16.")

    def _generate(self, batch: Batch) -> list[Transcript | Reply]:
        options = batch.options
        arguments = generation.settings(options, longest=LONGEST[options.task])
        with self._torch.inference_mode():
            inputs = self._inputs(batch.pieces)
            start = inputs["input_ids"].shape[1]
            watch = generation.Watch(batch.pieces, start, lambda ids: self._read(ids).strip())
            with self._record_encoder() as encoded:
                ids = self._model.generate(**inputs, **arguments, stopping_criteria=[watch])
            outputs = [
                self._output(options, generation.hypothesis(row, self._ends, self._read), prompt, arguments)
                for row, prompt in zip(ids[:, start:].tolist(), inputs["attention_mask"].sum(-1).tolist(), strict=True)
            ]
            if options.timestamps:
                outputs = self._with_times(outputs, encoded[0], inputs["input_features_mask"])
        watch.finish([output.text for output in outputs])
        return outputs

    def _output(
        self, options: Options, row: generation.Hypothesis, prompt_tokens: int, arguments: Mapping[str, Any]
    ) -> Transcript | Reply:
        text = row.text.strip()
        warning = generation.length_warning(row.reason, options, arguments["max_new_tokens"])
        if options.task == "chat":
            return Reply(text, row.reason, prompt_tokens, len(row.tokens), None, warning)
        return Transcript(
            text,
            language=text_language.identify(_TAG.sub(" ", text), self._row.languages),
            tokens_generated=len(row.tokens),
            finish_reason=row.reason,
            warning=warning,
        )

    def _inputs(self, pieces: Sequence[Piece]) -> Any:
        return self._processor.apply_chat_template(
            [self._conversation(piece) for piece in pieces],
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
            enable_thinking=False,
            processor_kwargs={
                "text_kwargs": {"padding": True, "padding_side": "left"},
                "audio_kwargs": {"device": str(self._device)},
            },
        ).to(self._device)

    def _conversation(self, piece: Piece) -> list[dict[str, Any]]:
        """Return the piece's messages in the format of the chat template, with the audio in one user turn."""
        options = piece.options
        audio = {"type": "audio", "audio": piece.clip.samples}
        if not options.messages:
            default = self._processor.default_transcription_prompt if options.task == "transcribe" else ""
            return [{"role": "user", "content": [{"type": "text", "text": options.prompt or default}, audio]}]
        holder = generation.audio_turn(options.messages)
        return [
            {
                "role": message.role,
                "content": [{"type": "text", "text": message.content}, *([audio] if i == holder else [])],
            }
            for i, message in enumerate(options.messages)
        ]

    def _read(self, ids: list[int]) -> str:
        """Return the text of new tokens, which keeps the tags of speakers, events and styles."""
        kept = [number for number in ids if number not in self._control_ids]
        return str(self._tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    @contextlib.contextmanager
    def _record_encoder(self) -> Iterator[list[Any]]:
        """Record the states of the speech encoder: a tensor of shape (pieces, frames, width)."""
        states: list[Any] = []
        hook = self._model.model.audio_tower.register_forward_hook(
            lambda _module, _inputs, output: states.append(output.asr_last_hidden_state)
        )
        try:
            yield states
        finally:
            hook.remove()

    def _with_times(self, outputs: Sequence[Transcript | Reply], states: Any, mask: Any) -> list[Transcript | Reply]:
        """Return the outputs, and the transcripts among them with times.

        `states` has shape (pieces, frames, width). `mask` has shape (pieces, mel frames) and is 0 in the padding.
        """
        hidden = self._model.model.get_word_timestamp_hidden_states(states, mask)
        return [
            self._time_words(output, rows, count) if isinstance(output, Transcript) else output
            for output, rows, count in zip(outputs, hidden, mask.sum(dim=-1).tolist(), strict=True)
        ]

    def _time_words(self, transcript: Transcript, states: Any, mel_frames: int) -> Transcript:
        """Return the transcript with the times of its words, or with a warning if they cannot be aligned.

        `states` has shape (frames, width), with the frames of padding at the end. A CTC model marks where a word
        starts; the word lasts until the next one starts, or for WORD_SEC.
        """
        words = split_words(transcript.text)
        if not words:
            return transcript
        frames = -(-mel_frames // self._processor.subsampling_factor) * self._frames_per_state
        starts = self._align(words, states[:frames])
        if starts is None:
            message = "The words could not be aligned to the audio, so they have no times."
            return replace(transcript, warning=" ".join(filter(None, (transcript.warning, message))))
        extractor = self._processor.feature_extractor
        duration = mel_frames * extractor.hop_length / extractor.sampling_rate
        times = [start * duration / frames for start in starts]
        spans = tuple(
            Span(word, start, min(end, start + WORD_SEC))
            for word, start, end in zip(words, times, [*times[1:], duration], strict=True)
        )
        return replace(transcript, words=spans, segments=timestamps.segments(spans))

    def _align(self, words: Sequence[str], states: Any) -> list[int] | None:
        """Return the first frame of each word, or None if the words do not fit into the frames."""
        pieces = [self._pieces.encode(f" {word}", add_special_tokens=False) for word in words]
        tokens = [piece for own in pieces for piece in own]
        if not all(pieces) or max(tokens) >= self._blank:
            return None
        classes = sorted({*tokens, self._blank})
        places = {piece: place for place, piece in enumerate(classes)}
        starts = ctc_alignment.starts(
            self._logprobs(states, classes), [places[piece] for piece in tokens], places[self._blank]
        )
        if starts is None:
            return None
        return [starts[first] for first in itertools.accumulate(map(len, pieces[:-1]), initial=0)]

    def _logprobs(self, states: Any, classes: list[int]) -> Any:
        """Return the head's log probabilities of `classes`: an array of shape (frames, classes)."""
        head = self._model.word_timestamp_head
        chosen = self._torch.tensor(classes, device=states.device)
        chunks = [
            head(chunk.T).T.float().log_softmax(dim=-1)[:, chosen].cpu() for chunk in states.split(FRAMES_AT_ONCE)
        ]
        return self._torch.cat(chunks).numpy()


def split_words(text: str) -> list[str]:
    """Return the words of a text without its tags. Each character of Chinese and Japanese is a word."""
    words: list[str] = []
    for word in _TAG.sub(" ", text).split():
        if any(_spoken_alone(character) for character in word):
            words += [character for character in word if unicodedata.category(character)[0] in "LMN"]
        else:
            words.append(word)
    return words


def _spoken_alone(character: str) -> bool:
    return unicodedata.name(character, "").startswith(_SPOKEN_BY_CHARACTER)
