"""The config.json of scoring: the models that score, the folder of reference clips, and the folder of their cache.

`ScoreConfig.read(path)` resolves folders relative to the file. A mistake raises ConfigError, which names the file, the
field and the allowed values. Whether a model can be loaded is checked later, when scoring starts.
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
    """One model that scores.

    Type `higgs_audio` requires `processor_id` and `transcriber_id`; the other types reject them.
    """

    key: str = Field(pattern=r"^\w[^/\\]*$", description="Name in requests, and folder in the cache")
    type: Literal["whisper", "higgs_audio", "model"] = Field(
        description="Family of the model; `model` is any model of the catalog that both transcribes and embeds"
    )
    model_id: str = Field(min_length=1, description="Alias or id of the catalog, or a path")
    processor_id: str | None = Field(None, min_length=1, description="Model whose processor makes the mel features")
    transcriber_id: str | None = Field(None, min_length=1, description="Model that transcribes")

    @model_validator(mode="after")
    def _check_parts(self) -> ModelEntry:
        for name in ("processor_id", "transcriber_id"):
            is_set, is_required = getattr(self, name) is not None, self.type == "higgs_audio"
            if is_required and not is_set:
                raise ValueError(f"{name} is required by type higgs_audio")
            if is_set and not is_required:
                raise ValueError(f"{name} is for type higgs_audio only")
        return self


class ScoreConfig(_Strict):
    """The contents of config.json. `cache_dir` is created when the first reference is stored there."""

    models: tuple[ModelEntry, ...] = Field(min_length=1)
    video_clip_dir: Path
    cache_dir: Path
    target_sampling_rate: int = SAMPLE_RATE

    @classmethod
    def read(cls, path: Path, settings: Settings) -> ScoreConfig:
        """Return the file's contents, with only the models that AUDIO_SCORE_MODEL_KEYS names, if it is set.

        Raises: ConfigError if the file cannot be read, a field is wrong, or a key is not in the file.
        """
        try:
            config = cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from error
        except ValidationError as error:
            raise ConfigError("; ".join(f"{path}: {_explain(mistake)}" for mistake in error.errors())) from None
        clips, cache = ((path.parent / folder).resolve() for folder in (config.video_clip_dir, config.cache_dir))
        if not clips.is_dir():
            raise ConfigError(f"{path}: video_clip_dir: no such folder: {clips}")
        selection = settings.audio_score_model_keys or settings.audio_score_model_key
        keys = [entry.key for entry in config.models]
        for key in selection:
            if key not in keys:
                raise ConfigError(
                    f"AUDIO_SCORE_MODEL_KEYS={key!r} is not allowed: the keys in {path} are {', '.join(keys)}"
                )
        models = tuple(entry for entry in config.models if not selection or entry.key in selection)
        return config.model_copy(update={"models": models, "video_clip_dir": clips, "cache_dir": cache})

    @field_validator("models")
    @classmethod
    def _check_keys(cls, models: tuple[ModelEntry, ...]) -> tuple[ModelEntry, ...]:
        keys = [entry.key for entry in models]
        if duplicates := sorted({key for key in keys if keys.count(key) > 1}):
            raise ValueError(f"key {duplicates[0]!r} occurs twice")
        return models

    @field_validator("target_sampling_rate")
    @classmethod
    def _check_rate(cls, rate: int) -> int:
        if rate != SAMPLE_RATE:
            raise ValueError(f"{rate} is not allowed: every model takes {SAMPLE_RATE} Hz")
        return rate


def _explain(error: Any) -> str:
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"]).lstrip(".")
    if error["type"] == "extra_forbidden":
        fields = ModelEntry.model_fields if place.startswith("models[") else ScoreConfig.model_fields
        return f"{place} is not a field; the fields are {', '.join(fields)}"
    return f"{place}: {error['msg'].removeprefix('Value error, ')}" if place else error["msg"]
