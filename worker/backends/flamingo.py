"""Audio Flamingo 3 and Music Flamingo through transformers: transcribe, caption, chat, embed, analyze.

    pieces ── processor ──▶ prompts and mel features ── audio tower, language model ──▶ text
                                                              └── states ──▶ embedding

A conversation holds one audio. The clips of a batch run together even if their prompts differ, and a row does not
depend on the other rows. The language of a transcript is identified from its text. Generation is greedy unless a
temperature is set. The checkpoint's own repetition penalty applies, its sampling settings do not. Embeddings are the
audio tower's states without padding; `analyze` takes them from the pass that writes the caption. A row with `part`
loads only the audio tower, which supports only embed.

The processor gets arrays, never a string, which it would open or fetch. It also truncates clips that are longer than
the model accepts, so the engine rejects those first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from worker.backends.base import Backend
from worker.backends.common import audio_tower, checkpoints, generation, pretrained, text_language
from worker.backends.common.device import check_compiler, device_of, dtype_of, libraries
from worker.catalog import Model
from worker.config import Settings
from worker.errors import ModelUnavailable
from worker.types import SAMPLE_RATE, Analysis, Batch, Caption, Embedding, Output, Piece, Reply, Transcript

ARCHITECTURES = ("AudioFlamingo3ForConditionalGeneration", "MusicFlamingoForConditionalGeneration")
TAIL = 320  # samples; a last window this short has no frame, and Music Flamingo fails on it

TRANSCRIBE = "Transcribe the input speech."
CAPTIONS = {
    "audio": {
        "detailed": "Please describe the audio in detail.",
        "brief": "Describe the audio in one short sentence.",
        "technical": (
            "Describe the audio like an engineer: its sources, acoustics, recording quality, levels and timing."
        ),
    },
    "music": {
        "detailed": "Describe this track in full detail - tell me the genre, tempo, and key, then dive into the "
        "instruments, production style, and overall mood it creates.",
        "brief": "Describe this track in one short sentence.",
        "technical": "Break the track down like a critic - list its tempo, key, and chordal motion, then explain the "
        "textures, dynamics, and emotional impact of the performance.",
    },
}
LONGEST = {"transcribe": 4096, "caption": 1024, "analyze": 1024, "chat": 2048}  # new tokens
PREAMBLES = (
    "The spoken content of the audio is",
    "The transcription of the audio is",
    "The content of the input audio is",
)


class Flamingo(Backend):
    """A Flamingo checkpoint, or its audio tower: transcribes, captions, chats about, embeds and analyzes audio."""

    overhead_sec = 600.0  # a batch generates its tokens in nearly the same time as a single clip
    least_sec = 30.0

    def __init__(self, model: Model, settings: Settings) -> None:
        self._row, self._settings = model, settings
        self._captions = CAPTIONS["music" if model.music else "audio"]

    def weight_bytes(self) -> int:
        """Return the bytes of the weights that the row loads. Raises ModelUnavailable if there are none."""
        return (
            audio_tower.tower_bytes(self._folder()) if self._row.part else checkpoints.checkpoint_bytes(self._folder())
        )

    def load(self) -> None:
        """Load the checkpoint, or only its audio tower. Raises ModelUnavailable."""
        folder = self._folder()
        self._torch, transformers = libraries(self._row.id)
        self._device = device_of(self._settings)
        if self._settings.compile:
            check_compiler(self._device)
        self._dtype = dtype_of(self._settings, self._device)
        config = pretrained.load(transformers.AutoConfig, folder)
        if self._row.part:
            self._tower = audio_tower.load_tower(folder, config.audio_config, self._dtype, self._device)
            self._features = pretrained.load(transformers.AutoFeatureExtractor, folder)
        else:
            kind = getattr(transformers, _architecture(folder, config))
            self._model = pretrained.load_model(kind, folder, device=self._device, dtype=self._dtype)
            self._processor = pretrained.load(transformers.AutoProcessor, folder)
            self._tower, self._features = self._model.model.audio_tower, self._processor.feature_extractor
            ends = self._model.generation_config.eos_token_id
            text_language.load()
            self._ends = [*(ends if isinstance(ends, list | tuple) else [ends]), self._processor.tokenizer.pad_token_id]
        if self._settings.compile:
            self._tower.compile(dynamic=True)
        # A strided convolution halves the mel frames, and a pooling layer halves them again.
        self._frame_rate = SAMPLE_RATE / self._features.hop_length / 4

    def infer(self, batch: Batch) -> list[Output]:
        """Run the task of the batch on its pieces."""
        with self._torch.inference_mode():
            if batch.options.task == "embed":
                rows = audio_tower.states(self._tower, self._features, [_samples(piece) for piece in batch.pieces])
                return [self._embedding(piece, states) for piece, states in zip(batch.pieces, rows, strict=True)]
            return self._generate(batch)

    def close(self) -> None:
        """Free the device's memory."""
        self._model = self._tower = None
        if self._device.type == "cuda":
            self._torch.cuda.empty_cache()

    def _folder(self) -> Path:
        return checkpoints.checkpoint(self._row.checkpoint, self._settings, part=self._row.part or "")

    def _generate(self, batch: Batch) -> list[Output]:
        pieces, options = batch.pieces, batch.options
        inputs = self._processor.apply_chat_template(
            [self._conversation(piece) for piece in pieces],
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
            processor_kwargs={"audio_kwargs": {"device": str(self._device)}},
        ).to(self._device, dtype=self._dtype)
        prompt = inputs["input_ids"].shape[1]
        watch = generation.Watch(pieces, prompt, lambda ids: self._visible(options.task, self._read(ids)))
        arguments = generation.settings(options, longest=LONGEST[options.task])
        with self._record_tower() as states:
            ids = self._model.generate(
                **inputs,
                **arguments,
                stopping_criteria=[watch],
                repetition_penalty=self._model.generation_config.repetition_penalty or 1.0,
            )
        rows = [generation.hypothesis(row, self._ends, self._read) for row in ids[:, prompt:].tolist()]
        prompts = inputs["attention_mask"].sum(dim=-1).tolist()
        outputs = [
            self._output(
                options.task, row, count, generation.length_warning(row.reason, options, arguments["max_new_tokens"])
            )
            for row, count in zip(rows, prompts, strict=True)
        ]
        watch.finish([output.text for output in outputs])
        if options.task != "analyze":
            return list(outputs)
        counts = [-(-len(_samples(piece)) // audio_tower.WINDOW) for piece in pieces]
        windows = audio_tower.strip_padding(self._tower, states[0], inputs["input_features_mask"])
        return [
            Analysis(caption, self._embedding(piece, states_of_clip))
            for piece, caption, states_of_clip in zip(
                pieces, outputs, audio_tower.join_windows(windows, counts), strict=True
            )
            if isinstance(caption, Caption)
        ]

    def _output(
        self, task: str, row: generation.Hypothesis, prompt_tokens: int, warning: str | None
    ) -> Transcript | Reply | Caption:
        text, thinking = generation.split_thinking(row.text)
        if task == "transcribe":
            transcript = _strip_preamble(text)
            language = text_language.identify(transcript, self._row.languages)
            return Transcript(
                transcript,
                language=language,
                tokens_generated=len(row.tokens),
                finish_reason=row.reason,
                warning=warning,
            )
        if task == "chat":
            return Reply(text, row.reason, prompt_tokens, len(row.tokens), thinking, warning)
        return Caption(text, len(row.tokens), thinking, row.reason, warning)

    @staticmethod
    def _visible(task: str, text: str) -> str:
        """Return the part of an unfinished text that may be streamed.

        Nothing of a transcript may, because its preamble can only be stripped once the text is complete.
        """
        return "" if task == "transcribe" else generation.split_thinking(text)[0]

    def _read(self, ids: list[int]) -> str:
        return str(self._processor.tokenizer.decode(ids, skip_special_tokens=True))

    def _conversation(self, piece: Piece) -> list[dict[str, Any]]:
        """Return the piece's messages in the format of the chat template, with the audio in one user turn."""
        options = piece.options
        audio = {"type": "audio", "audio": _samples(piece)}
        if not options.messages:
            text = options.prompt or (
                TRANSCRIBE
                if options.task == "transcribe"
                else ""
                if options.task == "chat"
                else self._captions[options.style or "detailed"]
            )
            return [{"role": "user", "content": [*_text(text), audio]}]
        holder = generation.audio_turn(options.messages)
        return [
            {"role": message.role, "content": [*_text(message.content), *([audio] if i == holder else [])]}
            for i, message in enumerate(options.messages)
        ]

    @contextlib.contextmanager
    def _record_tower(self) -> Iterator[list[Any]]:
        """Record the audio tower's states: a tensor of shape (windows, frames, width) for each forward pass."""
        states: list[Any] = []
        hook = self._tower.register_forward_hook(
            lambda _module, _inputs, output: states.append(output.last_hidden_state)
        )
        try:
            yield states
        finally:
            hook.remove()

    def _embedding(self, piece: Piece, states: np.ndarray) -> Embedding:
        pooling = piece.options.pooling
        return Embedding(states.mean(axis=0) if pooling == "mean" else states, self._frame_rate, pooling)


def _architecture(folder: Path, config: Any) -> str:
    """Return the class of the checkpoint. Raises ModelUnavailable if it is not a Flamingo's.

    transformers has classes that load more than tensors, and the checkpoint must not choose one.
    """
    names = config.architectures or ["no class"]
    if names[0] not in ARCHITECTURES:
        raise ModelUnavailable(f"{folder} is a checkpoint of {names[0]}, not of {' or '.join(ARCHITECTURES)}")
    return str(names[0])


def _samples(piece: Piece) -> np.ndarray:
    """Return the clip's samples without a last window that is too short to hold a frame."""
    samples = piece.clip.samples
    if len(samples) <= 2 * TAIL:
        return np.pad(samples, (0, 2 * TAIL - len(samples)))
    tail = len(samples) % audio_tower.WINDOW
    return samples[:-tail] if 0 < tail <= TAIL else samples


def _text(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}] if text else []


def _strip_preamble(text: str) -> str:
    """Return a transcript without the sentence and the quotes that the models are trained to put around it."""
    for preamble in PREAMBLES:
        if text.startswith(preamble):
            quoted = text.removeprefix(preamble).strip().removesuffix(".").strip()
            return (
                quoted[1:-1].strip() if len(quoted) > 1 and quoted[0] == quoted[-1] and quoted[0] in "'\"" else quoted
            )
    return text
