"""Whether a model can do what a request's options ask, by its row. Refusals name the models that can.

Options that only the checkpoint can judge, such as the languages of one without a row, pass here; its backend checks
them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

from worker.catalog.model import Model
from worker.catalog.rows import MODELS
from worker.errors import Unsupported
from worker.types import Options

# The options that a row lists by name, with the values that mean "not set". A row has a field of its own for task,
# timestamps and long_audio, pooling changes the form of an embedding only, and the engine splits channels.
_DEFAULTS = {field.name: field.default for field in fields(Options)}
# A transcript gets its speakers from another model, whose row has these.
OF_THE_DIARIZER = ("num_speakers", "max_speakers", "known_speaker_names", "known_speaker_references")
_UNSET = {
    name: default
    for name, default in _DEFAULTS.items()
    if name not in ("model", "task", "timestamps", "long_audio", "pooling", "channels", "diarize", *OF_THE_DIARIZER)
}
# The options that decide what the result is. The result without one of the others is still a result of the request.
_ESSENTIAL = ("target_language", "messages")
# Values that change nothing for a model without the option: such a model always takes the most likely token.
_NEUTRAL = {"temperature": 0, "top_p": 1}


def check(model: Model, options: Options) -> None:
    """Return if the model can do what the options ask.

    Raises: Unsupported, with the option as `param` and the models that can, if it cannot.
    """
    _check_task(model, options)
    for refusal in _refusals(model, options):
        raise refusal
    _check_languages(model, options)
    _check_control_tokens(model, options)


def honored(model: Model, options: Options) -> tuple[Options, list[str]]:
    """Return the options without those that the model cannot honor, and a message for each that is left out.

    The options that decide what the result is stay, for `check` to refuse.
    """
    refused = [refusal for refusal in _refusals(model, options) if refusal.param not in _ESSENTIAL]
    unset: dict[str, Any] = {name: _DEFAULTS[name] for refusal in refused if (name := refusal.param)}
    return replace(options, **unset), [refusal.message for refusal in refused]


def changes_nothing(model: Model, name: str, value: object) -> bool:
    """Return whether an option has no effect, because the model, which does not have the option, does so anyway.

    `languages` rules nothing out if it contains every language of the model.
    """
    if name in model.options:
        return False
    if name == "languages" and isinstance(value, list):
        return bool(model.languages) and set(model.languages) <= set(value)
    return name in _NEUTRAL and value == _NEUTRAL[name]


def _refusals(model: Model, options: Options) -> Iterator[Unsupported]:
    """Yield an error for each option that the model does not have, or cannot honor with any value."""
    for find in (_diarize_refused, _timestamps_refused, _long_audio_refused):
        if refusal := find(model, options):
            yield refusal
    for name, unset in _UNSET.items():
        if getattr(options, name) != unset and (refusal := _option_refused(model, name, name)):
            yield refusal
    for name in OF_THE_DIARIZER if options.task == "diarize" else ():
        if getattr(options, name) != _DEFAULTS[name] and (refusal := _option_refused(model, name, name)):
            yield refusal


def check_option(model: Model, name: str, *, called: str = "") -> None:
    """Return if the model has the option, which the request calls `called`. Raises Unsupported."""
    if refusal := _option_refused(model, name, called or name):
        raise refusal


def lacking(model: Model, what: str, can: Callable[[Model], bool], *, param: str) -> Unsupported:
    """Return the error for a model that cannot do something, such as "detect the spoken language"."""
    return Unsupported(f"{model.id} cannot {what}. Models that can: {_names(can)}.", param=param)


def _option_refused(model: Model, name: str, called: str) -> Unsupported | None:
    if name in model.options:
        return None
    return Unsupported(
        f"{model.id} does not accept {called}. Models that do: {_names(lambda other: name in other.options)}.",
        param=called,
    )


def _check_task(model: Model, options: Options) -> None:
    task = options.task
    if task not in model.tasks:
        raise Unsupported(
            f"{model.id} cannot {task}; it supports {' and '.join(model.tasks)}. "
            f"Models that can: {_names(lambda other: task in other.tasks)}.",
            param="task",
        )


def _timestamps_refused(model: Model, options: Options) -> Unsupported | None:
    if not options.timestamps or model.timestamps:
        return None
    return Unsupported(
        f"{model.id} cannot return timestamps. Models that can: {_names(lambda other: other.timestamps)}.",
        param="timestamps",
    )


def _diarize_refused(model: Model, options: Options) -> Unsupported | None:
    if not options.diarize or model.timestamps:
        return None
    return Unsupported(
        f"{model.id} cannot diarize a transcript, because it returns no times of words. "
        f"Models that can: {_names(lambda other: other.timestamps)}.",
        param="diarize",
    )


def _long_audio_refused(model: Model, options: Options) -> Unsupported | None:
    if options.long_audio != "whole" or not model.window_sec:
        return None
    can = _names(lambda other: other.window_sec is None and "transcribe" in other.tasks)
    return Unsupported(
        f"{model.id} transcribes at most {model.window_sec:g} s at once. Set long_audio to windows, or leave it "
        f"out. Models that transcribe long audio whole: {can}.",
        param="long_audio",
    )


def _check_languages(model: Model, options: Options) -> None:
    spoken, target = options.language, options.target_language
    for name, codes in (("language", [spoken] if spoken else []), ("languages", options.languages)):
        for code in codes:
            _check_spoken(model, name, code)
    if options.task == "translate" and model.default_language and not (spoken or target):
        raise Unsupported(
            f"{model.id} does not detect the spoken language. Set language, or target_language.", param="language"
        )
    if target and target != spoken:
        _check_translation(model, spoken or model.default_language, target)


def _check_spoken(model: Model, name: str, code: str) -> None:
    if model.languages and code not in model.languages:
        raise Unsupported(
            f"unsupported language {code!r}; {model.id} supports {', '.join(model.languages)}. "
            f"Models that support it: {_names(lambda other: code in other.languages)}.",
            param=name,
        )


def _check_translation(model: Model, spoken: str | None, target: str) -> None:
    if model.target_languages and target not in model.target_languages:
        raise Unsupported(
            f"unsupported target_language {target!r}; {model.id} translates into {', '.join(model.target_languages)}. "
            f"Models that translate into it: {_names(lambda other: target in other.target_languages)}.",
            param="target_language",
        )
    pivot = model.pivot_language
    if pivot and spoken and pivot not in (spoken, target):
        raise Unsupported(
            f"unsupported target_language {target!r} for language {spoken!r}; {model.id} translates only from or into "
            f"{pivot}. Set one of them to {pivot}.",
            param="target_language",
        )


def _check_control_tokens(model: Model, options: Options) -> None:
    texts = [("prompt", "The prompt", options.prompt or "")]
    texts += [("messages", "A message", message.content) for message in options.messages]
    for field, place, text in texts:
        if token := next((token for token in model.control_tokens if token in text), None):
            raise Unsupported(f"{place} contains {token}, a control token of {model.id}. Remove it.", param=field)


def _names(can: Callable[[Model], bool]) -> str:
    """Return the names of the catalog's models that can, for the end of a message."""
    return ", ".join(model.name for model in MODELS if can(model)) or "none in this version"
