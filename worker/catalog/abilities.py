"""Whether a model can do what a request's options ask, by its row. Refusals name the models that can.

Options that only the checkpoint can judge, such as the languages of one without a row, pass here; its backend checks
them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

from worker.catalog.model import Model
from worker.catalog.rows import MODELS
from worker.errors import Unsupported
from worker.types import Options

# The options that a row lists by name, with the values that mean "not set". A row has a field of its own for task,
# timestamps and long_audio, and pooling changes the form of an embedding only.
_UNSET = {
    field.name: field.default
    for field in fields(Options)
    if field.name not in ("model", "task", "timestamps", "long_audio", "pooling")
}


def check(model: Model, options: Options) -> None:
    """Return if the model can do what the options ask.

    Raises: Unsupported, with the option as `param` and the models that can, if it cannot.
    """
    _check_task(model, options)
    _check_timestamps(model, options)
    _check_long_audio(model, options)
    _check_accepted(model, options)
    _check_languages(model, options)
    _check_control_tokens(model, options)


def check_option(model: Model, name: str, *, called: str = "") -> None:
    """Return if the model has the option, which the request calls `called`. Raises Unsupported."""
    called = called or name
    if name not in model.options:
        raise Unsupported(
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


def _check_timestamps(model: Model, options: Options) -> None:
    if options.timestamps and not model.timestamps:
        raise Unsupported(
            f"{model.id} cannot return timestamps. Models that can: {_names(lambda other: other.timestamps)}.",
            param="timestamps",
        )


def _check_long_audio(model: Model, options: Options) -> None:
    if options.long_audio == "whole" and model.window_sec:
        can = _names(lambda other: other.window_sec is None and "transcribe" in other.tasks)
        raise Unsupported(
            f"{model.id} transcribes at most {model.window_sec:g} s at once. Set long_audio to windows, or leave it "
            f"out. Models that transcribe long audio whole: {can}.",
            param="long_audio",
        )


def _check_accepted(model: Model, options: Options) -> None:
    for name, unset in _UNSET.items():
        if getattr(options, name) != unset:
            check_option(model, name)


def _check_languages(model: Model, options: Options) -> None:
    spoken, target = options.language, options.target_language
    if spoken and model.languages and spoken not in model.languages:
        raise Unsupported(
            f"unsupported language {spoken!r}; {model.id} supports {', '.join(model.languages)}. "
            f"Models that support it: {_names(lambda other: spoken in other.languages)}.",
            param="language",
        )
    if options.task == "translate" and model.default_language and not (spoken or target):
        raise Unsupported(
            f"{model.id} does not detect the spoken language. Set language, or target_language.", param="language"
        )
    if target and target != spoken:
        _check_translation(model, spoken or model.default_language, target)


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
