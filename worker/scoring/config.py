"""The config.json of scoring: which models score, and where the reference clips and their cache are.

`ScoreConfig.read(path)` gives it with folders that are relative to the file made absolute. A mistake raises
ConfigError, which names the file, the field and what is allowed. Whether a model can be loaded is not looked into here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from worker.config import Settings
from worker.errors import ConfigError
from worker.types import SAMPLE_RATE


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ModelEntry(_Strict):
    """One model that scores. type `model`: any of the catalog that both transcribes and embeds.

    processor_id, transcriber_id: what makes Higgs's features and its transcripts; of type `higgs_audio` alone, which
    needs both.
    """

    key: str = Field(pattern=r"^\w[^/\\]*$", description="Its name in requests, and its folder in the cache")
    type: Literal["whisper", "higgs_audio", "model"]
    model_id: str = Field(min_length=1)
    processor_id: str | None = Field(None, min_length=1)
    transcriber_id: str | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _parts(self) -> ModelEntry:
        for name in ("processor_id", "transcriber_id"):
            given, needed = getattr(self, name) is not None, self.type == "higgs_audio"
            if given != needed:
                raise ValueError(
                    f"{name} is needed by type higgs_audio" if needed else f"{name} is for type higgs_audio only"
                )
        return self


class ScoreConfig(_Strict):
    """The file. `cache_dir` is made when something is put there."""

    models: tuple[ModelEntry, ...] = Field(min_length=1)
    video_clip_dir: Path
    cache_dir: Path
    target_sampling_rate: int = SAMPLE_RATE

    @classmethod
    def read(cls, path: Path, settings: Settings) -> ScoreConfig:
        """The file's content, its models limited to those of AUDIO_SCORE_MODEL_KEYS. Raises ConfigError."""
        try:
            config = cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from error
        except ValidationError as error:
            raise ConfigError("; ".join(f"{path}: {_explain(one)}" for one in error.errors())) from None
        clips, cache = ((path.parent / folder).resolve() for folder in (config.video_clip_dir, config.cache_dir))
        if not clips.is_dir():
            raise ConfigError(f"{path}: video_clip_dir: no such folder: {clips}")
        wanted = settings.audio_score_model_keys or settings.audio_score_model_key
        known = [entry.key for entry in config.models]
        for key in wanted:
            if key not in known:
                raise ConfigError(
                    f"AUDIO_SCORE_MODEL_KEYS={key!r} is not allowed: the keys in {path} are {', '.join(known)}"
                )
        models = tuple(entry for entry in config.models if not wanted or entry.key in wanted)
        return config.model_copy(update={"models": models, "video_clip_dir": clips, "cache_dir": cache})

    @field_validator("models")
    @classmethod
    def _once(cls, models: tuple[ModelEntry, ...]) -> tuple[ModelEntry, ...]:
        keys = [entry.key for entry in models]
        if twice := sorted({key for key in keys if keys.count(key) > 1}):
            raise ValueError(f"key {twice[0]!r} stands twice")
        return models

    @field_validator("target_sampling_rate")
    @classmethod
    def _rate(cls, rate: int) -> int:
        if rate != SAMPLE_RATE:
            raise ValueError(f"{rate} is not allowed: every model here hears {SAMPLE_RATE} Hz")
        return rate


def _explain(error: Any) -> str:
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"]).lstrip(".")
    if error["type"] == "extra_forbidden":
        fields = ModelEntry.model_fields if place.startswith("models[") else ScoreConfig.model_fields
        return f"{place} is not a field; the fields are {', '.join(fields)}"
    return f"{place}: {error['msg'].removeprefix('Value error, ')}" if place else error["msg"]
