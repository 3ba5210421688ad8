"""The fields of a catalog row. Code outside worker/backends/ branches on these facts, never on a backend's name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from worker.types import Task

Weights = Literal["nemo", "safetensors", "embedded"]
ScoringType = Literal["whisper", "higgs_audio"]


@dataclass(frozen=True, slots=True)
class Model:
    """One model: its names, the backend that runs it, its abilities and its terms of use."""

    id: str
    """The name in responses: `owner/name` on the Hugging Face Hub, or a path, with a `:` suffix for a part."""

    backend: str
    """The key of the backend class in `worker.backends`, which alone reads this field."""

    tasks: tuple[Task, ...]
    """The tasks that the model performs. Requests for another task are refused."""

    licence: str
    """The license of the weights, as the model card names it; `its own` if Aviary does not know it."""

    weights: Weights
    """The format of the weights: a .nemo file, a folder with safetensors, or a part of an installed package."""

    sha256: str | None = None
    """The SHA-256 of the .nemo file, in hexadecimal, that is compared before each load. None if it is not pinned."""

    parameters: int | None = None
    """The number of parameters, of a model that few devices can hold: the others refuse it before a download. None for
    every other model."""

    needs: tuple[str, ...] = ()
    """The modules that the backend imports and that requirements-base.txt does not install."""

    aliases: tuple[str, ...] = ()
    """Short names. The first one is the name that lists and messages use."""

    languages: tuple[str, ...] = ()
    """Codes of the languages that the model transcribes, ISO 639. Empty if only the checkpoint knows."""

    target_languages: tuple[str, ...] = ()
    """Codes of the languages that the model translates into. Empty if it does not translate, or only the checkpoint
    knows."""

    pivot_language: str | None = None
    """The language that every translation starts from or ends in. None if all pairs of languages work."""

    default_language: str | None = None
    """The language that the model assumes if the request names none. None if the model detects the language."""

    timestamps: bool = False
    """Whether transcripts have the times of words, segments and characters."""

    live: bool = False
    """Whether the model can transcribe live audio piece by piece, each piece once: see `Piece.live`."""

    options: tuple[str, ...] = ()
    """The fields of `Options` that the model accepts besides task, timestamps and pooling. The rest are refused."""

    window_sec: float | None = None
    """The longest audio, in seconds, that the model transcribes at once. Longer clips are split at quiet places and the
    transcripts merged. None if any length works."""

    cuts_pauses: bool = False
    """Whether the model is not run on long pauses and on audio without speech, if DETECT_SPEECH is on."""

    max_sec: float | None = None
    """The longest clip, in seconds, for caption, chat, analyze and diarize. Longer clips are refused. None for no
    limit."""

    control_tokens: tuple[str, ...] = ()
    """Texts that the tokenizer reads as control tokens. A prompt or message that contains one is refused."""

    music: bool = False
    """Whether captions are requested with prompts about music instead of prompts about sounds of any kind."""

    part: str | None = None
    """The module whose weights alone are loaded. None for the whole checkpoint."""

    processor: str | None = None
    """The model, as a repository or a path, whose feature extractor this model uses. None for its own."""

    transcriber: str | None = None
    """The name of the catalog's model that transcribes for this one. None if the model transcribes itself."""

    scores_as: ScoringType | None = None
    """The `type` in scoring's config.json that means this kind of model. The type `model` means every kind."""

    @property
    def name(self) -> str:
        """Return the first alias, or the id of a model without one."""
        return self.aliases[0] if self.aliases else self.id

    @property
    def detects_language(self) -> bool:
        """Whether transcripts say which of several languages is spoken, if the request does not name it."""
        return "transcribe" in self.tasks and self.default_language is None and len(self.languages) != 1

    @property
    def checkpoint(self) -> str:
        """Return the repository or path that holds the weights: the id without the suffix for a part or a processor."""
        for suffix in (self.part, self.processor):
            if suffix and self.id.endswith(f":{suffix}"):
                return self.id.removesuffix(f":{suffix}")
        return self.id
