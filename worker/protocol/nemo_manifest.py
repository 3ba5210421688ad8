"""What a line of a NeMo manifest asks for: options of a transcription, and a segment of its file.

    {"source_lang": "de", "pnc": "no", "offset": 1.5} ──┬── options ──▶ {"language": "de", "punctuation": False}
                                                        └── segment ──▶ (1.5, None)

A field that has no meaning here is an error that names the field. Empty and null fields count as absent.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from worker import catalog
from worker.errors import InputError, RequestError
from worker.types import Part

Json = Mapping[str, Any]

TRANSCRIBE = ("asr", "transcribe")
TRANSLATE = ("ast", "s2t_translation", "translate")
_PUNCTUATION = {"yes": True, "true": True, "1": True, "pnc": True, "no": False, "false": False, "0": False}
_PUNCTUATION |= {"nopnc": False}


def options(fields: Json) -> dict[str, Any]:
    """Return the options that a line sets: language, target_language, punctuation.

    `source_lang` is the spoken language, and `target_lang` that of the text. `lang` is the spoken language of a line
    without `source_lang`. Raises InputError.
    """
    lang, source, target = (_language(fields, name) for name in ("lang", "source_lang", "target_lang"))
    spoken, task = source or lang, _text(fields, "taskname")
    if lang and source and lang not in (source, target):
        raise InputError(f"lang {lang!r} contradicts source_lang {source!r}. Remove one of them.", param="lang")
    if task and task not in (*TRANSCRIBE, *TRANSLATE):
        names = ", ".join((*TRANSCRIBE, *TRANSLATE))
        raise InputError(f"unsupported taskname {task!r}; use one of {names}", param="taskname")
    if task in TRANSCRIBE and target and target != spoken:
        raise InputError(
            f"taskname {task!r} contradicts target_lang {target!r}, which is not the spoken language. Set taskname to "
            "ast, or remove target_lang.",
            param="taskname",
        )
    if task in TRANSLATE and (not target or target == spoken):
        raise InputError(
            f"taskname {task!r} requires target_lang, a language other than the spoken one", param="taskname"
        )
    target = target or (spoken if task in TRANSCRIBE else None)
    found = {"language": spoken, "target_language": target, "punctuation": _punctuation(fields)}
    return {name: value for name, value in found.items() if value is not None}


def override(chosen: Json, own: Json) -> dict[str, Any]:
    """Return the options of a run with those of a line, which win.

    An option of the line that only names the default is left out, so that a model without the option accepts the line.
    """
    needless = {
        "target_language": own.get("target_language") == own.get("language"),
        "punctuation": own.get("punctuation") is True,
    }
    return {**chosen, **{name: own[name] for name in own if name in chosen or not needless.get(name)}}


@contextlib.contextmanager
def naming(own: Json) -> Iterator[None]:
    """Raise InputError in place of a RequestError for an option of the line, which does not concern other lines."""
    try:
        yield
    except RequestError as error:
        if error.param is None or error.param not in own:
            raise
        fields = {"language": "lang or source_lang", "target_language": "target_lang", "punctuation": "pnc"}
        raise InputError(f"{fields[error.param]} of the line: {error.message}", param=error.param) from error


def segment(fields: Json) -> Part | None:
    """Return where the segment starts in the file, and how long it is or None for the rest, in seconds.

    Return None if the line has neither `offset` nor `duration`. Raises InputError.
    """
    offset, duration = fields.get("offset"), fields.get("duration")
    if offset is not None and (not _is_number(offset) or offset < 0):
        raise InputError(f"offset must be a number of seconds from the start, not {offset!r}", param="offset")
    if duration is not None and (not _is_number(duration) or duration <= 0):
        raise InputError(f"duration must be a number of seconds above 0, not {duration!r}", param="duration")
    return None if offset is None and duration is None else (offset or 0.0, duration)


def _text(fields: Json, name: str) -> str | None:
    value = fields.get(name)
    if not isinstance(value, str | None):
        raise InputError(f"{name} must be a string", param=name)
    return value or None


def _language(fields: Json, name: str) -> str | None:
    """Return the code of a language, or the text itself, which the model's row or checkpoint judges."""
    text = _text(fields, name)
    return text and (catalog.language_code(text) or text)


def _punctuation(fields: Json) -> bool | None:
    value = fields.get("pnc")
    if value is None or value == "":
        return None
    known = _PUNCTUATION.get(str(value).lower())
    if known is None:
        raise InputError(f"pnc must be yes or no, not {value!r}", param="pnc")
    return known


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
