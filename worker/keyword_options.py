"""The options of a request as keyword arguments: for editors and type checkers, and for people in a notebook.

    takes(SpeechOptions)                       a decorator that shows the options in `help()` and behind Tab
    check("transcribe", SpeechOptions, names)  rejects other names, and proposes the nearest one

The text beside a type says what the option means. `worker.protocol.options.OptionFields` is the list of options. A test
compares these classes with it.
"""

from __future__ import annotations

import difflib
import inspect
import textwrap
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal, TypedDict, TypeVar, get_args, get_type_hints

from worker.errors import RequestError
from worker.types import Level

Function = TypeVar("Function", bound=Callable[..., Any])


class SpeakerOptions(TypedDict, total=False):
    """Options of `diarize`."""

    num_speakers: Annotated[int, "The number of speakers, if it is known."]
    max_speakers: Annotated[int, "The most speakers that may be found."]
    known_speaker_names: Annotated[list[str], "The names of up to four speakers whose voices are known."]
    known_speaker_references: Annotated[list[str], "For each name, 2 to 10 s of the voice, as a data: URI."]


class GenerationOptions(TypedDict, total=False):
    """Options of models that generate text token by token."""

    max_new_tokens: Annotated[int, "The most tokens to generate."]
    temperature: Annotated[float, "The temperature of sampling. Unset or 0 always generates the same text."]
    top_p: Annotated[float, "Sampling takes the most likely tokens up to this total probability."]


class SpeechOptions(GenerationOptions, SpeakerOptions, total=False):
    """Options of `transcribe` and `translate`."""

    timestamps: Annotated[
        bool | list[Level],
        "Whether the transcript has the times of words and segments; or a list of the levels that it has.",
    ]
    language: Annotated[
        str,
        'Spoken language: an ISO 639-1 code or an English name. "auto": the model detects it, or takes its default.',
    ]
    languages: Annotated[list[str], "Languages among which the model detects the spoken one."]
    target_language: Annotated[str, "Language of the text: an ISO 639-1 code or an English name."]
    prompt: Annotated[str, "An instruction or words to expect, depending on the model."]
    keywords: Annotated[list[str], "Words and phrases to expect, such as names, spelled as the text should have them."]
    keyword_weight: Annotated[float, "How strongly the model prefers the keywords; 1 if unset."]
    punctuation: Annotated[bool, "Whether the text has punctuation and capital letters."]
    confidence: Annotated[bool, "Whether the transcript says how sure the model is of its words and segments."]
    diarize: Annotated[bool, "Whether each word and segment has its speaker."]
    condition_on_previous_text: Annotated[
        bool, "Whether the text of each 30 s is the prompt of the next 30 s, which then wait for it."
    ]
    long_audio: Annotated[
        Literal["whole", "windows"],
        "Whether a model that accepts any length transcribes long audio at once or in windows of 30 s.",
    ]
    channels: Annotated[
        Literal["mix", "split"],
        "Whether the channels of the audio are mixed, or each is transcribed separately.",
    ]


class CaptionOptions(GenerationOptions, total=False):
    """Options of `caption`."""

    prompt: Annotated[str, "The instruction, in place of the style's."]
    style: Annotated[Literal["detailed", "brief", "technical"], "The style of the caption."]


class EmbedOptions(TypedDict, total=False):
    """Options of `embed`."""

    pooling: Annotated[Literal["none", "mean"], "Whether the embedding is one vector per frame, or their mean."]


class ChatOptions(GenerationOptions, total=False):
    """Options of `chat`, besides its messages."""


class AnalyzeOptions(CaptionOptions, EmbedOptions, total=False):
    """Options of `analyze`: those of `caption` and `embed`."""


def takes(options: Any) -> Callable[[Function], Function]:
    """Return a decorator that shows the keys of a TypedDict in place of `**options`, in signature and docstring.

    None is the default of every option: it leaves the option unset.
    """

    def show(function: Function) -> Function:
        hints = {name: get_args(hint) for name, hint in get_type_hints(options, include_extras=True).items()}
        signature = inspect.signature(function)
        fixed = [one for one in signature.parameters.values() if one.kind is not one.VAR_KEYWORD]
        keys = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind | None)
            for name, (kind, _) in hints.items()
        ]
        function.__dict__["__signature__"] = signature.replace(parameters=[*fixed, *keys])
        lines = [
            textwrap.fill(f"{name}: {meaning}", 100, initial_indent=" " * 4, subsequent_indent=" " * 8)
            for name, (_, meaning) in hints.items()
        ]
        function.__doc__ = "\n".join([inspect.cleandoc(function.__doc__ or ""), "", "Args:", *lines])
        return function

    return show


def check(method: str, options: Any, names: Iterable[str]) -> None:
    """Raise RequestError, which lists the keys from the nearest on, for a name that is not a key of the TypedDict."""
    known = list(get_type_hints(options))
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            others = ", ".join(near + [other for other in known if other not in near])
            question = f" Did you mean {near[0]}?" if near else ""
            raise RequestError(f"{method} has no option {name}.{question} Its options are {others}", param=name)
