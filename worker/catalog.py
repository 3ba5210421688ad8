"""The catalog: one row describes a model. Everything else that names models or what they can do is derived from it.

`find(name)` takes an alias, an id, a repository of a family that is known, or a path to a .nemo file or a checkpoint's
folder
(which is looked into), and gives its row. `:audio_tower` after a Flamingo's is its tower alone; `:` and a repository
or folder after Higgs's is whose features it takes. `check(model, options)` refuses what the model cannot do.
"""

from __future__ import annotations

import functools
import json
import re
import tarfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from worker.errors import ModelNotFound, Unsupported
from worker.types import Options, Task

# The languages of parakeet-tdt-0.6b-v3 and canary-1b-v2, from their model cards.
EUROPEAN = (
    "bg",
    "hr",
    "cs",
    "da",
    "nl",
    "en",
    "et",
    "fi",
    "fr",
    "de",
    "el",
    "hu",
    "it",
    "lv",
    "lt",
    "mt",
    "pl",
    "pt",
    "ro",
    "sk",
    "sl",
    "es",
    "sv",
    "ru",
    "uk",
)
# Those of Whisper large-v3; the smaller ones hear all but the last.
_WHISPER_LANGUAGES = """
    en zh de es ru ko fr ja pt tr pl ca nl ar sv it id hi fi vi he uk el ms cs ro da hu ta no th ur hr bg lt la mi ml
    cy sk te fa
    lv bn sr az sl kn et mk br eu is hy ne mn bs kk sq sw gl mr pa si km sn yo so af oc ka be tg sd gu am yi lo uz fo
    ht ps tk nn mt sa lb my bo tl mg as tt haw ln ha ba jw su yue"""
WHISPER = tuple(_WHISPER_LANGUAGES.split())
CANARY_SEC = 40.0  # what it was trained on; beyond that it leaves out speech
GENERATION = ("max_new_tokens", "temperature", "top_p")
# What a Flamingo's tokenizer takes for a sign of its own wherever it stands in a user's text.
FLAMINGO_SIGNS = ("<sound>", "<|sound_bos|>", "<|sound_eos|>", "<|im_start|>", "<|im_end|>", "<|endoftext|>")


@dataclass(frozen=True, slots=True)
class Model:
    """One model: what it is called, which backend runs it, what it can do, and on what terms it may be used.

    languages: what it hears; empty where only the checkpoint knows. options: the fields of Options that it understands
    beside
    the task; the rest are refused, not ignored. window_sec: longer clips are transcribed in windows, cut where it is
    quiet. max_sec: longer clips are refused for whatever else but embed. reserved: what a user's text may not hold.
    music: captions are asked for as one asks about music. part: the module that alone is loaded. processor,
    transcriber: models whose features and transcripts it uses.
    """

    id: str
    backend: str
    tasks: tuple[Task, ...]
    licence: str
    aliases: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    timestamps: bool = False
    options: tuple[str, ...] = ()
    window_sec: float | None = None
    max_sec: float | None = None
    reserved: tuple[str, ...] = ()
    music: bool = False
    part: str | None = None
    processor: str | None = None
    transcriber: str | None = None

    @property
    def name(self) -> str:
        """What people call it."""
        return self.aliases[0] if self.aliases else self.id


def _parakeet(name: str, *aliases: str, languages: tuple[str, ...] = ("en",), licence: str = "CC-BY-4.0") -> Model:
    return Model(
        id=name,
        backend="parakeet",
        tasks=("transcribe",),
        licence=licence,
        aliases=aliases,
        languages=languages,
        timestamps=True,
        options=("language",),
    )


def _canary(
    name: str,
    *aliases: str,
    languages: tuple[str, ...] = ("en", "de", "es", "fr"),
    timestamps: bool = True,
    licence: str = "CC-BY-4.0",
) -> Model:
    return Model(
        id=name,
        backend="canary",
        tasks=("transcribe", "translate"),
        licence=licence,
        aliases=aliases,
        languages=languages,
        timestamps=timestamps,
        options=("language", "target_language", "punctuation"),
        window_sec=CANARY_SEC,
    )


def _whisper(
    name: str,
    *aliases: str,
    languages: tuple[str, ...] = WHISPER[:-1],
    licence: str = "Apache-2.0",
    distilled: bool = False,
) -> Model:
    """Distilled ones, turbo among them, were taught transcription alone, and those named .en hear English alone."""
    distilled = distilled or re.search("turbo|distil", name.lower().rsplit("/", maxsplit=1)[-1]) is not None
    languages = ("en",) if name.endswith(".en") else languages
    row = Model(
        id=name,
        backend="whisper",
        tasks=("transcribe", "embed"),
        licence=licence,
        aliases=aliases,
        languages=languages,
        timestamps=True,
        window_sec=30,
        options=("language", "prompt", *GENERATION),
    )
    if distilled or languages == ("en",):
        return row
    return replace(row, tasks=("transcribe", "translate", "embed"), options=("target_language", *row.options))


def _flamingo(
    name: str, *aliases: str, max_sec: float, music: bool = False, licence: str = "NVIDIA OneWay Noncommercial"
) -> Model:
    return Model(
        id=name,
        backend="flamingo",
        tasks=("transcribe", "caption", "chat", "embed", "analyze"),
        licence=licence,
        aliases=aliases,
        window_sec=max_sec,
        max_sec=max_sec,
        reserved=FLAMINGO_SIGNS,
        music=music,
        options=("prompt", "style", "messages", *GENERATION),
    )


def _tower(whole: Model) -> Model:
    """A Flamingo's audio tower alone, for embeddings: a thirteenth of the weights."""
    return replace(
        whole,
        id=f"{whole.id}:audio_tower",
        tasks=("embed",),
        options=(),
        part="audio_tower",
        max_sec=None,
        window_sec=None,
        reserved=(),
        aliases=tuple(f"{alias}-embed" for alias in whole.aliases),
    )


def _higgs(name: str, *aliases: str) -> Model:
    return Model(
        id=name,
        backend="higgs",
        tasks=("transcribe", "embed"),
        licence="its own",
        aliases=aliases,
        languages=WHISPER,
        part="audio_tower",
        processor="openai/whisper-large-v3-turbo",
        transcriber="openai/whisper-small",
        window_sec=30,
        timestamps=True,
        options=("language", "prompt", *GENERATION),
    )


_FLAMINGOS = (
    _flamingo("nvidia/audio-flamingo-3-hf", "audio-flamingo", "audio-flamingo-3", max_sec=600),
    _flamingo("nvidia/music-flamingo-2601-hf", "music-flamingo", "music-flamingo-2601", max_sec=1200, music=True),
    _flamingo("nvidia/music-flamingo-hf", "music-flamingo-2511", max_sec=600, music=True),
    _flamingo("nvidia/audio-flamingo-next-hf", "audio-flamingo-next", max_sec=1800),
)

MODELS: tuple[Model, ...] = (
    _parakeet("nvidia/parakeet-tdt-0.6b-v3", "parakeet", "parakeet-v3", languages=EUROPEAN),
    _parakeet("nvidia/parakeet-tdt-0.6b-v2", "parakeet-v2"),
    _parakeet("nvidia/parakeet-tdt-1.1b", "parakeet-tdt-1.1b"),
    _parakeet("nvidia/parakeet-rnnt-1.1b", "parakeet-rnnt-1.1b"),
    _parakeet("nvidia/parakeet-rnnt-0.6b", "parakeet-rnnt-0.6b"),
    _parakeet("nvidia/parakeet-ctc-1.1b", "parakeet-ctc-1.1b"),
    _parakeet("nvidia/parakeet-ctc-0.6b", "parakeet-ctc-0.6b"),
    _parakeet("nvidia/parakeet-tdt_ctc-1.1b", "parakeet-tdt_ctc-1.1b"),
    _parakeet("nvidia/parakeet-tdt_ctc-110m", "parakeet-tdt_ctc-110m"),
    _canary("nvidia/canary-1b-v2", "canary", "canary-v2", languages=EUROPEAN),
    _canary("nvidia/canary-1b-flash", "canary-flash"),
    _canary("nvidia/canary-180m-flash", "canary-180m"),
    _canary("nvidia/canary-1b", "canary-1b", timestamps=False, licence="CC-BY-NC-4.0"),
    *_FLAMINGOS,
    *map(_tower, _FLAMINGOS),
    _whisper("openai/whisper-large-v3-turbo", "whisper", "whisper-turbo", languages=WHISPER, licence="MIT"),
    _whisper("openai/whisper-large-v3", "whisper-large", languages=WHISPER),
    _whisper("openai/whisper-medium", "whisper-medium"),
    _whisper("openai/whisper-small", "whisper-small"),
    _whisper("openai/whisper-base", "whisper-base"),
    _whisper("openai/whisper-tiny", "whisper-tiny"),
    _higgs("bosonai/higgs-audio-v2-understanding-3B", "higgs"),
    Model(
        id="pocketsphinx",
        backend="pocketsphinx",
        tasks=("transcribe",),
        licence="BSD-2-Clause",
        languages=("en",),
        timestamps=True,
        options=("language",),
    ),
)

_NEXT = "audio-flamingo-next"
_BY_NAME = (
    ("parakeet", _parakeet),
    ("canary", functools.partial(_canary, languages=())),
    ("whisper", functools.partial(_whisper, languages=())),
    ("music-flamingo", functools.partial(_flamingo, max_sec=600, music=True)),
    (_NEXT, functools.partial(_flamingo, max_sec=1800)),
    ("audio-flamingo", functools.partial(_flamingo, max_sec=600)),
)


def find(name: str) -> Model:
    """The row for an alias, an id, a path or a repository. Raises ModelNotFound, which lists what there is."""
    for model in MODELS:
        if name == model.id or name in model.aliases:
            return model
    if name.endswith(":audio_tower"):
        return _tower(find(name.removesuffix(":audio_tower")))
    whole, _, processor = name.partition(":")
    if processor and (row := next((one for one in MODELS if one.processor and whole in (one.id, *one.aliases)), None)):
        return replace(row, id=f"{row.id}:{processor}", aliases=(), processor=processor)
    found = _of_path(name) if name.endswith(".nemo") or Path(name).is_dir() else None
    if found is None and (name.endswith(".nemo") or re.fullmatch(r"[\w.-]+/[\w.-]+", name)):
        last = name.lower().rsplit("/", maxsplit=1)[-1]
        found = next((make(name, licence="its own") for sign, make in _BY_NAME if sign in last), None)
    if found is None and name.endswith(".nemo"):
        return _parakeet(name, licence="its own")
    if found is not None:
        return found
    known = ", ".join(model.name for model in MODELS)
    raise ModelNotFound(
        f"model {name!r} is not known: use one of {known}, an id of the catalog, a repository of one of these "
        "families (owner/name), a path to a .nemo file or to a checkpoint's folder",
        param="model",
    )


def check(model: Model, options: Options) -> None:
    """Raises Unsupported when the model cannot do what the options ask; the message says which models can."""
    if options.task not in model.tasks:
        raise Unsupported(
            f"{model.id} cannot {options.task}, only {' and '.join(model.tasks)}"
            + _able(lambda other: options.task in other.tasks),
            param="task",
        )
    if options.timestamps and not model.timestamps:
        raise Unsupported(f"{model.id} gives no timestamps" + _able(lambda other: other.timestamps), param="timestamps")
    unset: dict[str, Any] = {
        "language": None,
        "target_language": None,
        "prompt": None,
        "style": None,
        "messages": (),
        "max_new_tokens": None,
        "temperature": None,
        "top_p": None,
        "punctuation": True,
    }
    for name, empty in unset.items():
        if getattr(options, name) != empty and name not in model.options:
            raise Unsupported(
                f"{model.id} takes no {name}" + _able(lambda other, name=name: name in other.options), param=name
            )
    _check_languages(model, options)
    said = [options.prompt or "", *(message.content for message in options.messages)]
    for sign in model.reserved:
        if any(sign in text for text in said):
            raise Unsupported(
                f"a text for {model.id} cannot hold {sign}, which is a sign of its own",
                param="messages" if options.messages else "prompt",
            )


def _check_languages(model: Model, options: Options) -> None:
    spoken, target = options.language, options.target_language
    for name, code in (("language", spoken), ("target_language", target)):
        if code and model.languages and code not in model.languages:
            raise Unsupported(
                f"{model.id} does not know {name} {code!r}, only {', '.join(model.languages)}"
                + _able(lambda other, code=code: code in other.languages),
                param=name,
            )
    if target and target not in ("en", spoken) and model.backend == "whisper":
        raise Unsupported(
            f"{model.id} translates into en only" + _able(lambda other: other.backend == "canary"),
            param="target_language",
        )
    if model.backend == "canary":
        if options.task == "translate" and not (spoken or target):
            raise Unsupported(
                f"{model.id} does not tell languages apart: give language (what is spoken), or target_language",
                param="language",
            )
        if "en" not in (spoken or "en", target or "en") and target != spoken:
            raise Unsupported(f"{model.id} translates into and out of en only", param="target_language")


def _able(can: Any) -> str:
    """Which models can, for the end of a message."""
    able = [model.name for model in MODELS if can(model)]
    return f"; models that can: {', '.join(able)}" if able else "; no model of this version can"


def _of_path(name: str) -> Model | None:
    """The row for a checkpoint on disk, by what it says of itself; None if it is not there or says nothing that is
    known."""
    try:
        return _look_into(name, Path(name).expanduser().stat().st_mtime_ns)
    except OSError:
        return None


@functools.lru_cache(maxsize=256)
def _look_into(name: str, _changed: int) -> Model | None:
    path = Path(name).expanduser()
    try:
        if path.is_dir():
            nemo = sorted(path.glob("*.nemo"))
            if nemo:
                return replace(row, id=name) if (row := _of_path(str(nemo[0]))) else None
            return _of_config(name, json.loads((path / "config.json").read_text()))
        text = _nemo_config(path)
    except (OSError, ValueError, tarfile.TarError):
        return None
    if "EncDecMultiTaskModel" in text:
        row = _canary(
            name,
            languages=(),
            timestamps=re.search(r"^prompt_format: canary2$", text, re.MULTILINE) is not None,
            licence="its own",
        )
        trained = re.search(r"^train_ds:\n(?:[ \t].*\n)*?[ \t]+max_duration: ([\d.]+)", text, re.MULTILINE)
        return replace(row, window_sec=min(CANARY_SEC, float(trained[1]))) if trained else row
    return _parakeet(name, licence="its own")


def _of_config(name: str, config: dict[str, Any]) -> Model | None:
    """The row for a folder with this config.json. Audio Flamingo Next is of Music Flamingo's class: its name tells."""
    kind = (config.get("architectures") or [""])[0]
    if kind == "WhisperForConditionalGeneration":
        distilled = config.get("decoder_layers", 0) < config.get("encoder_layers", 0)
        return _whisper(name, languages=(), licence="its own", distilled=distilled)
    if kind == "AudioFlamingo3ForConditionalGeneration":
        return _flamingo(name, max_sec=600, licence="its own")
    if kind == "MusicFlamingoForConditionalGeneration":
        following = _NEXT in name.lower()
        return _flamingo(name, max_sec=1800 if following else 1200, music=not following, licence="its own")
    return None


def _nemo_config(path: Path) -> str:
    """The model_config.yaml in a .nemo file, which is a tar."""
    with tarfile.open(path) as archive:
        for member in archive:
            if member.name.rsplit("/", maxsplit=1)[-1] == "model_config.yaml" and (file := archive.extractfile(member)):
                return file.read().decode("utf-8", "replace")
    return ""
