"""What the files of a checkpoint say about it, one function a format. `rows.py` makes rows of these facts.

    .nemo file   model_config.yaml                                            ── of_nemo ──▶ NemoFacts
    folder       config.json, generation_config.json, the tokenizer's files   ── of_folder ──▶ FolderFacts
    folder       README.md: the header of the model card                      ── of_card ──▶ Card

A fact that the files do not state is None or empty. The author of the files may be hostile: nothing in them runs, and
each file is read within a bound.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker.catalog import nemo_file
from worker.catalog.languages import language_code
from worker.catalog.model_config import ModelConfig
from worker.errors import ModelUnavailable

Json = dict[str, Any]

CARD = "README.md"
# The files that `of_folder` reads, and those that hold a tokenizer's added tokens, in the order of the search.
_CONFIG, _GENERATION = "config.json", "generation_config.json"
_TOKENIZERS = ("added_tokens.json", "tokenizer_config.json", "tokenizer.json")
FILES = (CARD, _CONFIG, _GENERATION, *_TOKENIZERS)
"""The names of the files of a folder that are read."""
_MAX_BYTES = 32 << 20  # tokenizer.json of a vocabulary of 256,000 tokens has 17 MB
_LANGUAGE_TOKEN = re.compile(r"<\|([a-z]{2,3})\|>")


@dataclass(frozen=True, slots=True)
class NemoFacts:
    """What model_config.yaml says."""

    target: str | None
    """The name of the model's class, without its module."""

    encoder: str | None
    """The name of the encoder's class, without its module."""

    languages: tuple[str, ...]
    """The codes of the languages that have a tokenizer of their own. Empty if one tokenizer writes all languages."""

    prompt_format: str | None
    """The name of the prompt's format, for a model with a prompt."""

    ignores_prompt_loss: bool
    """Whether training left out the loss of the prompt, and with it the prediction of the spoken language."""

    trained_sec: float | None
    """The longest clip of the training data, in seconds. None, too, for less than a second, which is no length."""

    limited_context: bool
    """Whether the encoder attends to some seconds around each frame only, as that of a streaming model does."""

    streams: bool = False
    """Whether the model takes audio of any length chunk by chunk, as a streaming Sortformer does."""


@dataclass(frozen=True, slots=True)
class FolderFacts:
    """What the configuration files of a checkpoint's folder say."""

    architecture: str | None
    """The first of `architectures` in config.json; `SALM` for NeMo's speech language models, which name none."""

    config: Mapping[str, Any]
    """The content of config.json."""

    generation: Mapping[str, Any]
    """The content of generation_config.json, or {}."""

    languages: tuple[str, ...]
    """The codes of the languages that have a control token, such as <|de|>."""


@dataclass(frozen=True, slots=True)
class Card:
    """What the header of a model card says."""

    languages: tuple[str, ...] = ()
    """The codes of the languages, or () if one of the entries is no language."""

    licence: str | None = None
    """The license, by its name if it has one of its own."""


def of_nemo(path: Path) -> NemoFacts:
    """Return what the configuration in a .nemo file says. Raises ModelUnavailable if it cannot be read."""
    config = ModelConfig(nemo_file.config_text(path).encode(), f"{nemo_file.CONFIG} in {path}")
    tokenizers = config.peek("tokenizer", "langs")
    trained = config.peek("train_ds", "max_duration")
    return NemoFacts(
        target=_class_name(config.peek("target")),
        encoder=_class_name(config.peek("encoder", "_target_")),
        languages=_codes_of(tokenizers) if isinstance(tokenizers, dict) else (),
        prompt_format=_text(config.peek("prompt_format")),
        ignores_prompt_loss=config.peek("use_loss_mask_for_prompt") is True,
        trained_sec=float(trained) if type(trained) in (int, float) and trained >= 1 else None,
        limited_context=config.peek("encoder", "att_context_style") not in (None, "regular"),
        streams=config.peek("streaming_mode") is True,
    )


def of_folder(folder: Path) -> FolderFacts | None:
    """Return what the configuration files of a folder say, or None if it has no config.json.

    Raises ModelUnavailable if config.json cannot be read.
    """
    if not (folder / _CONFIG).is_file():
        return None
    config, generation = _json(folder / _CONFIG), {}
    if (folder / _GENERATION).is_file():
        generation = _json(folder / _GENERATION)
    languages = _languages_of(_entries(generation.get("lang_to_id")))
    for name in _TOKENIZERS:
        if not languages and (folder / name).is_file():
            languages = _languages_of(_added_tokens(_json(folder / name)))
    return FolderFacts(_architecture(config), config, generation, languages)


def of_card(folder: Path) -> Card:
    """Return what the header of the model card in a folder says. An unreadable card says nothing."""
    path = folder / CARD
    try:
        with path.open("rb") as file:
            match = re.match(rb"---\r?\n(.*?\n)---", file.read(nemo_file.MAX_CONFIG_BYTES), re.DOTALL)
        header = ModelConfig(match[1], str(path)) if match else None
    except (OSError, ModelUnavailable):
        return Card()
    if header is None:
        return Card()
    languages = header.peek("language")
    entries = languages if isinstance(languages, list) else [languages]
    entries = ["no" if entry is False else entry for entry in entries]  # YAML reads the code of Norwegian as false
    codes = [language_code(entry) if isinstance(entry, str) else None for entry in entries]
    return Card(
        tuple(dict.fromkeys(code for code in codes if code)) if all(codes) else (),
        _text(header.peek("license_name")) or _text(header.peek("license")),
    )


def _architecture(config: Json) -> str | None:
    names = config.get("architectures")
    if isinstance(names, list) and names and isinstance(names[0], str):
        return names[0]
    return "SALM" if {"pretrained_llm", "perception"} <= config.keys() else None


def _languages_of(tokens: Iterable[Any]) -> tuple[str, ...]:
    matches = (_LANGUAGE_TOKEN.fullmatch(token) for token in tokens if isinstance(token, str))
    return tuple(match[1] for match in matches if match)


def _added_tokens(content: Json) -> Iterator[Any]:
    """Yield the added tokens of a tokenizer's file: of tokenizer.json, tokenizer_config.json or added_tokens.json."""
    added = content.get("added_tokens") or content.get("added_tokens_decoder")
    if added is None:
        yield from content
        return
    for entry in _entries(added.values() if isinstance(added, dict) else added):
        yield entry.get("content") if isinstance(entry, dict) else entry


def _entries(value: Any) -> Iterable[Any]:
    """Return what a collection in a file consists of, or nothing if the file has something else in its place."""
    return value if isinstance(value, Iterable) else ()


def _json(path: Path) -> Json:
    """Return the object in a JSON file. Raises ModelUnavailable."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ModelUnavailable(f"{path} has more than {_MAX_BYTES} bytes. Copy or download it again.")
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelUnavailable(f"{path} cannot be read ({error}). Copy or download it again.") from error
    if not isinstance(content, dict):
        raise ModelUnavailable(f"{path} holds no JSON object. Copy or download it again.")
    return content


def _class_name(value: Any) -> str | None:
    return value.rsplit(".", maxsplit=1)[-1] if isinstance(value, str) else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _codes_of(keys: Iterable[Any]) -> tuple[str, ...]:
    """Return the language codes among the keys, such as `de` and `pt-BR`, without their regions."""
    matches = (re.fullmatch(r"([a-z]{2})(?:-[A-Za-z]{2,4})?", key) for key in keys if isinstance(key, str))
    return tuple(dict.fromkeys(match[1] for match in matches if match))
