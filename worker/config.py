"""Settings: the only reader of the environment. Every setting is declared, documented and checked here.

`Settings()` reads the process's environment; `Settings(**values)` takes what a test or an embedding program gives.
A value that is not allowed raises ConfigError with the variable, the value and what is allowed.
"""
from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

VOLUME = Path("/runpod-volume")


class ConfigError(ValueError):
    """A setting has a value that is not allowed."""


class Settings(BaseSettings):
    """The worker's settings; a field's name in capitals is its environment variable."""

    model_config = SettingsConfigDict(extra="ignore", env_ignore_empty=True, frozen=True)

    # Models
    model: str | None = Field(None, description="Default model: an alias or id of the catalog, a .nemo file or a folder; falls back to `MODEL_NAME`, then `PARAKEET_MODEL`")
    model_name: str | None = Field(None, description="Another name for `MODEL`")
    parakeet_model: str = Field("nvidia/parakeet-tdt-0.6b-v3", description="Default model where `MODEL` is not set")
    model_dir: Path | None = Field(None, description="Folder with checkpoints, looked into before any cache")
    skip_model_load: bool = Field(False, description="`1`: dry run, everything is real but the model")
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="`auto`, `cpu`, `cuda` or `cuda:N`")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="`auto` is bfloat16 on a GPU that has it, else float32")
    compile: bool = Field(False, description="`1`: torch.compile the audio encoders of Whisper and the Flamingos (slower start; needs a C++ compiler)")
    models: Annotated[tuple[str, ...], NoDecode] = Field(default_factory=tuple, description="Models loaded at start beside the default, separated by commas; others load on first use")
    models_memory_gb: float | None = Field(None, gt=0, description="GiB that the weights of all loaded models may take; unset: 80% of the device's memory")
    model_idle_sec: float = Field(0, ge=0, description="Models unused this long are unloaded; `0`: never")
    hf_home: Path | None = Field(None, description="Hugging Face's cache folder")
    transformers_cache: Path | None = Field(None, description="Older name of the same cache's `hub` folder")
    hf_hub_offline: bool = Field(False, description="`1`: never ask the hub, use what is on disk")

    # Batching
    short_max_sec: float = Field(600, gt=0, description="Clips up to this length are batched; longer ones run one at a time")
    batch_max_items: int = Field(16, ge=1, description="Most clips in a batch")
    batch_max_total_sec: float = Field(1200, gt=0, description="Most seconds in a batch, counted with padding")
    batch_wait_sec: float = Field(0.05, ge=0, le=5, description="Longest an idle device waits for clips still being fetched and decoded, to fill a batch")
    local_attention_after_sec: float = Field(1440, gt=0, description="Parakeet hears longer clips with local attention")

    # Limits
    max_inputs: int = Field(1000, ge=1, description="Most inputs in one request")
    max_concurrency: int = Field(32, ge=1, description="Most jobs one Runpod worker takes at a time")
    max_audio_bytes: int = Field(2 * 1024**3, ge=1, description="Largest file read")
    max_audio_sec: float = Field(4 * 3600, gt=0, description="Longest audio decoded")
    max_result_bytes: int = Field(9_000_000, ge=1_000, description="Larger results go to the bucket (Runpod loses them above 10 MB)")
    fetch_timeout_sec: float = Field(300, gt=0, description="Longest one download may take, retries included")
    decode_timeout_sec: float = Field(300, gt=0, description="Longest one file may take to decode")
    decode_workers: int = Field(default_factory=lambda: max(2, min(8, os.cpu_count() or 2)), ge=1, le=64, description="Files fetched and decoded at a time")
    read_ahead_sec: float = Field(7200, gt=0, description="Decoded audio held ahead of the device (16 kHz float32: 64 kB a second)")

    # Safety
    allowed_paths: Annotated[tuple[Path, ...], NoDecode] = Field(default_factory=lambda: (Path.cwd(), VOLUME), description="Folders whose files a payload may name, separated by `:`")
    allow_private_urls: bool = Field(False, description="`1`: also fetch from private, loopback and link-local addresses")

    # Storage
    data_dir: Path = Field(default_factory=lambda: Path(tempfile.gettempdir()) / "aviary", description="Where downloads pass through (unlinked at once)")
    bucket_endpoint_url: str | None = Field(None, description="S3 endpoint for large results and s3:// inputs")
    bucket_access_key_id: str | None = Field(None, description="Its key")
    bucket_secret_access_key: str | None = Field(None, repr=False, description="Its secret")
    bucket_name: str | None = Field(None, description="The bucket large results are put into")

    # Runpod
    runpod_serverless: bool | None = Field(None, description="`1` starts the Runpod worker, `0` never does; unset: on Runpod only")
    runpod_webhook_get_job: str | None = Field(None, description="Set by Runpod")
    runpod_endpoint_id: str | None = Field(None, description="Set by Runpod; switches logs to JSON")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Never shows transcripts above DEBUG")

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError("; ".join(_explain(e) for e in error.errors())) from None

    @field_validator("models", mode="before")
    @classmethod
    def _split_models(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("allowed_paths", mode="before")
    @classmethod
    def _split_paths(cls, value: Any) -> Any:
        return tuple(Path(part) for part in value.split(os.pathsep) if part) if isinstance(value, str) else value

    @property
    def default_model(self) -> str:
        return self.model or self.model_name or self.parakeet_model

    @property
    def on_runpod(self) -> bool:
        """Whether the Runpod worker loop is to be started."""
        if self.runpod_serverless is None:
            return self.runpod_webhook_get_job is not None
        return self.runpod_serverless


def _explain(error: Any) -> str:
    name = "_".join(str(part) for part in error["loc"]).upper()
    return f"{name}={error.get('input')!r} is not allowed: {error['msg']}"


def quiet_runpod_sdk() -> None:
    """The SDK's default level logs each result, i.e. people's transcripts: lower it before the SDK is imported."""
    os.environ.setdefault("RUNPOD_LOG_LEVEL", "INFO")
