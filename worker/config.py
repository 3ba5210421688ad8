"""Settings: the only reader of the environment. Every setting is declared, documented and checked here.

`Settings()` reads the process's environment; `Settings(**values)` takes what a test or an embedding program gives.
A value that is not allowed raises ConfigError with the variable, the value and what is allowed.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from worker.errors import ConfigError, ModelNotFound

VOLUME = Path("/runpod-volume")


class Settings(BaseSettings):
    """The worker's settings; a field's name in capitals is its environment variable."""

    model_config = SettingsConfigDict(extra="ignore", env_ignore_empty=True, frozen=True)

    # Models
    model: str | None = Field(
        None,
        description="Default model: an alias or id of the catalog, a .nemo file or a folder; falls back to `MODEL_NAME`, then `PARAKEET_MODEL`",
    )
    model_name: str | None = Field(None, description="Another name for `MODEL`")
    parakeet_model: str = Field("nvidia/parakeet-tdt-0.6b-v3", description="Default model where `MODEL` is not set")
    model_dir: Path | None = Field(
        None,
        description="Folder with checkpoints, looked into before any cache; one that is a checkpoint itself is the default model, where none is named",
    )
    skip_model_load: bool = Field(False, description="`1`: dry run, everything is real but the model")
    device: str = Field(
        "auto",
        pattern=r"^(auto|cuda|cpu(, ?cpu)*|cuda:\d+(, ?cuda:\d+)*)$",
        description="`auto` (every GPU that is visible, without one the CPU), `cpu`, `cuda` (the first) or `cuda:N`; several, separated by commas, have a process each",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="`auto` is bfloat16 on a GPU that has it, else float32"
    )
    compile: bool = Field(
        False,
        description="`1`: torch.compile the audio encoders of Whisper and the Flamingos (slower start; needs a C++ compiler)",
    )
    models: Annotated[tuple[str, ...], NoDecode] = Field(
        default_factory=tuple,
        description="Models loaded at start beside the default, separated by commas; others load on first use",
    )
    models_memory_gb: float | None = Field(
        None, gt=0, description="GiB that the weights of all loaded models may take; unset: 80% of the device's memory"
    )
    model_idle_sec: float = Field(0, ge=0, description="Models unused this long are unloaded; `0`: never")
    hf_home: Path | None = Field(None, description="Hugging Face's cache folder")
    transformers_cache: Path | None = Field(None, description="Older name of the same cache's `hub` folder")
    hf_hub_offline: bool = Field(False, description="`1`: never ask the hub, use what is on disk")

    # Batching
    short_max_sec: float = Field(
        600, gt=0, description="Clips up to this length are batched; longer ones run one at a time"
    )
    batch_max_items: int = Field(16, ge=1, description="Most clips in a batch")
    batch_max_total_sec: float = Field(1200, gt=0, description="Most seconds in a batch, counted with padding")
    batch_wait_sec: float = Field(
        0.05,
        ge=0,
        le=5,
        description="Longest an idle device waits for clips still being fetched and decoded, to fill a batch",
    )
    local_attention_after_sec: float = Field(1440, gt=0, description="Parakeet hears longer clips with local attention")

    # Limits
    max_inputs: int = Field(1000, ge=1, description="Most inputs in one request")
    max_concurrency: int = Field(32, ge=1, description="Most jobs one Runpod worker takes at a time")
    max_audio_bytes: int = Field(2 * 1024**3, ge=1, description="Largest file read")
    max_audio_sec: float = Field(4 * 3600, gt=0, description="Longest audio decoded")
    max_result_bytes: int = Field(
        9_000_000, ge=1_000, description="Larger results go to the bucket (Runpod loses them above 10 MB)"
    )
    fetch_timeout_sec: float = Field(300, gt=0, description="Longest one download may take, retries included")
    decode_timeout_sec: float = Field(300, gt=0, description="Longest one file may take to decode")
    decode_workers: int = Field(
        default_factory=lambda: max(2, min(8, os.cpu_count() or 2)),
        ge=1,
        le=64,
        description="Files fetched and decoded at a time",
    )
    read_ahead_sec: float = Field(
        7200, gt=0, description="Decoded audio held ahead of the device (16 kHz float32: 64 kB a second)"
    )

    # Safety
    allowed_paths: Annotated[tuple[Path, ...], NoDecode] = Field(
        default_factory=lambda: (Path.cwd(), VOLUME),
        description="Folders whose files a payload may name, separated by `:`",
    )
    allow_private_urls: bool = Field(
        False, description="`1`: also fetch from private, loopback and link-local addresses"
    )

    # Server
    host: str = Field("127.0.0.1", description="Address the HTTP server binds to; any but loopback needs `API_KEY`")
    port: int = Field(8000, ge=0, le=65_535, description="Its port")
    api_key: str | None = Field(
        None,
        repr=False,
        description="Bearer keys that the HTTP server takes, separated by commas; `off`: none is asked for, wherever it binds",
    )
    workers: int = Field(1, ge=0, description="Server processes behind one port; `auto`, or `0`: one a GPU")
    rate_limit: str | None = Field(
        None, description="Requests that one key (or, without keys, one address) may send: `60/minute`, `1000/hour` …"
    )
    max_queue: int = Field(512, ge=1, description="Inputs the HTTP server holds unanswered; more are answered 429")
    request_timeout_sec: float = Field(
        600, gt=0, description="Longest the HTTP server works on one request that somebody waits for"
    )
    max_json_bytes: int = Field(64 * 1024**2, ge=1, description="Largest JSON body; uploads may have `MAX_AUDIO_BYTES`")
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        default_factory=tuple, description="Origins whose pages may call the HTTP server, separated by commas"
    )
    allowed_models: Annotated[tuple[str, ...], NoDecode] = Field(
        default_factory=tuple,
        description="Models that HTTP requests may name, separated by commas, `*`: any; unset: the catalog's, `MODEL` and `MODELS`",
    )

    # Storage
    data_dir: Path = Field(
        default_factory=lambda: Path(tempfile.gettempdir()) / "aviary",
        description="Jobs, uploads and what processes share; downloads pass through it (unlinked at once)",
    )
    bucket_endpoint_url: str | None = Field(None, description="S3 endpoint for large results and s3:// inputs")
    bucket_access_key_id: str | None = Field(None, description="Its key")
    bucket_secret_access_key: str | None = Field(None, repr=False, description="Its secret")
    bucket_name: str | None = Field(None, description="The bucket large results are put into")

    # Scoring
    audio_score_config: Path | None = Field(
        None, description="Scoring: the config.json that names models and reference clips; unset: nothing is scored"
    )
    audio_score_model_keys: Annotated[tuple[str, ...], NoDecode] = Field(
        default_factory=tuple,
        description="Scoring: the keys of config.json whose models load, separated by commas; unset: all",
    )
    audio_score_model_key: Annotated[tuple[str, ...], NoDecode] = Field(
        default_factory=tuple, description="Another name for `AUDIO_SCORE_MODEL_KEYS`"
    )
    audio_score_max_batch_size: int = Field(
        8,
        ge=1,
        description="Scoring: accepted and without effect, as recordings share batches with all else (`BATCH_MAX_ITEMS`)",
    )
    audio_score_max_batch_wait_ms: float = Field(
        10, ge=0, le=5000, description="Scoring: accepted and without effect (`BATCH_WAIT_SEC`)"
    )
    audio_score_disable_cache_flush: bool = Field(
        False, description="Scoring: accepted and without effect, as the cache is never flushed"
    )
    audio_score_server_socket: Path | None = Field(
        None, description="Scoring: the Unix socket to serve on, in place of a port"
    )
    audio_score_server_host: str | None = Field(None, description="Scoring: the address to serve on")
    audio_score_server_port: int | None = Field(None, ge=0, le=65535, description="Scoring: the port to serve on")

    # Jobs
    jobs_url: str | None = Field(
        None,
        repr=False,
        description="Where jobs are kept: `sqlite:////path/jobs.db` or `postgresql://user@host/name`; unset: `jobs.db` in `DATA_DIR`",
    )
    jobs_in_flight: int = Field(64, ge=1, description="Most stored jobs that one process runs at a time")
    job_max_attempts: int = Field(
        3, ge=1, description="How often a job is begun before it fails, where the process that runs it dies"
    )
    job_lease_sec: float = Field(
        30, ge=1, description="A process not heard of for so long has lost its jobs to the others"
    )
    jobs_keep_sec: float = Field(7 * 86400, gt=0, description="Finished jobs are kept for so long")
    jobs_max_bytes: int = Field(
        10 * 1024**3, ge=0, description="Most bytes of payloads and results of finished jobs; the oldest leave first"
    )
    webhook_secret: str | None = Field(
        None, repr=False, description="Signs webhooks (`X-Aviary-Signature`); unset: unsigned"
    )

    # Runpod
    runpod_serverless: bool | None = Field(
        None, description="`1` starts the Runpod worker, `0` never does; unset: on Runpod only"
    )
    runpod_webhook_get_job: str | None = Field(None, description="Set by Runpod")
    runpod_endpoint_id: str | None = Field(None, description="Set by Runpod; switches logs to JSON")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="Never shows transcripts above DEBUG"
    )

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError("; ".join(_explain(e) for e in error.errors())) from None
        if self.model_dir is not None and not (self.skip_model_load or self.model_dir.is_dir()):
            raise ConfigError(f"MODEL_DIR={str(self.model_dir)!r} is not allowed: there is no such folder")

    @classmethod
    def of(cls, file: Path | None = None, **flags: Any) -> Settings:
        """Flags over the environment over the file over the defaults; a flag that is None was not given.

        Raises ConfigError for a file that cannot be read, or holds what is no setting.
        """
        below = _from_file(file) if file is not None else {}
        unset = {name: value for name, value in below.items() if not os.environ.get(name.upper())}
        given = {name: value for name, value in flags.items() if value is not None}
        return cls(**unset | _own_model(given) | given)

    @model_validator(mode="before")
    @classmethod
    def _checkpoint_alone(cls, values: dict[str, Any]) -> dict[str, Any]:
        named = any(values.get(name) for name in ("model", "model_name", "parakeet_model"))
        return values if named else values | _own_model(values)

    @field_validator(
        "models", "cors_origins", "allowed_models", "audio_score_model_keys", "audio_score_model_key", mode="before"
    )
    @classmethod
    def _split_list(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("workers", mode="before")
    @classmethod
    def _one_a_gpu(cls, value: Any) -> Any:
        return 0 if value == "auto" else value

    @field_validator("allowed_paths", mode="before")
    @classmethod
    def _split_paths(cls, value: Any) -> Any:
        return tuple(Path(part) for part in value.split(os.pathsep) if part) if isinstance(value, str) else value

    @property
    def default_model(self) -> str:
        return self.model or self.model_name or self.parakeet_model

    @property
    def devices(self) -> tuple[str, ...]:
        """What DEVICE names."""
        return tuple(name.strip() for name in self.device.split(","))

    @property
    def on_runpod(self) -> bool:
        """Whether the Runpod worker loop is to be started."""
        if self.runpod_serverless is None:
            return self.runpod_webhook_get_job is not None
        return self.runpod_serverless


def _own_model(values: Mapping[str, Any]) -> dict[str, Any]:
    """The model that a `model_dir` is itself, if it is a checkpoint and not a folder of them."""
    folder = values.get("model_dir")
    if not isinstance(folder, str | os.PathLike):
        return {}
    from worker import catalog

    try:
        return {"model": catalog.find(str(Path(folder).expanduser().absolute())).id}
    except ModelNotFound:
        return {}


# The sections that configuration files of Music Flamingo servers have, and what their keys are called here.
_SECTIONS: dict[str, dict[str, str | None]] = {
    "model": {"model_id": "model", "device": "device", "dtype": "dtype", "compile": "compile"},
    "audio": {"max_duration": "max_audio_sec", "sample_rate": None},
    "executor": {"num_workers": "workers", "multiprocessing": None},
    "scheduler": {"max_batch_size": "batch_max_items", "max_waiting_time": "batch_wait_sec"},
    "server": {"host": "host", "port": "port"},
}


def _from_file(path: Path) -> dict[str, Any]:
    """A YAML file's settings by their names here: sections, or names of settings in lower case."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold settings by name")
    found: dict[str, Any] = {}
    for name, value in content.items():
        if name in _SECTIONS and isinstance(value, dict):
            for key, inner in value.items():
                if key not in _SECTIONS[name]:
                    raise ConfigError(f"{path}: {name}.{key} is not a setting; {name} has {', '.join(_SECTIONS[name])}")
                target = _SECTIONS[name][key]
                if target is not None:
                    found[target] = inner
                elif key == "sample_rate" and inner != 16_000:
                    raise ConfigError(f"{path}: audio.sample_rate is 16000, what every model hears")
        elif name in Settings.model_fields:
            found[name] = value
        else:
            known = ", ".join([*_SECTIONS, *Settings.model_fields])
            raise ConfigError(f"{path}: {name} is not a setting; known are {known}")
    return found


def _explain(error: Any) -> str:
    name = "_".join(str(part) for part in error["loc"]).upper()
    return f"{name}={error.get('input')!r} is not allowed: {error['msg']}"


def quiet_runpod_sdk() -> None:
    """The SDK's default level logs each result, i.e. people's transcripts: lower it before the SDK is imported."""
    os.environ.setdefault("RUNPOD_LOG_LEVEL", "INFO")


def keep_ray_here() -> None:
    """A cluster that Ray starts in this process listens on loopback alone, and tells nobody that it is used. To be called
    before Ray is imported."""
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # off those systems too: node addresses are 127.0.0.1
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
