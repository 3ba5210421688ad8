"""The tables of README.md and docs/ that the code knows: each function returns Markdown, which cog writes into a page.

    settings()         worker.config.Settings            docs/settings.md
    models()           worker.catalog.MODELS             docs/models.md
    model_options()    worker.catalog.MODELS             docs/models.md
    language_codes()   worker.catalog.MODELS             docs/models.md
    errors()           worker.errors                     docs/errors.md
    request_fields()   worker.protocol.request           docs/payload.md
    openai_fields()    worker.protocol.openai_fields     docs/http.md
    commands()         worker.entrypoints.cli.arguments  docs/cli.md

Run `python -m cogapp -r README.md docs/*.md` in the repository's root to write the tables anew. `make lint` fails if a
table is stale.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import json
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from worker.catalog import MODELS, Model
from worker.config import Settings
from worker.entrypoints.cli import arguments
from worker.entrypoints.http.responses import OPENAI, status_of
from worker.errors import AviaryError
from worker.protocol.openai_fields import IGNORED, NEUTRAL, VAD_DEFAULTS
from worker.protocol.request import _Payload

HELP_COLUMNS = 100
FEW_LANGUAGES = 4  # a table shows so many language codes; of more codes it shows the number

# Defaults that depend on the machine, in words.
COMPUTED = {
    "decode_workers": "number of cores, 2 to 8",
    "max_connections": "from `ulimit -n`: 720 of 1024, 4096 at most",
    "allowed_paths": "working folder, `/runpod-volume`",
    "data_dir": "`aviary-UID` in the temporary folder",
}
SET_BY_RUNPOD = ("runpod_webhook_get_job", "runpod_endpoint_id", "runpod_gpu_count")


def settings() -> str:
    """Return one table a group of settings; the groups are the comments in the class."""
    parts: list[str] = []
    for group, names in _setting_groups():
        rows = [
            (f"`{name.upper()}`", _default(name, field), f"{field.description}{_choices(field)}")
            for name, field in ((name, Settings.model_fields[name]) for name in names)
        ]
        parts.append(f"## {group}\n\n{_table(('Variable', 'Default', 'Meaning'), rows)}")
    return _block("\n".join(parts))


def models() -> str:
    """Return the catalog, one row a model."""
    rows = [
        (_codes(model.aliases or (model.id,)), f"`{model.id}`", ", ".join(model.tasks), _spoken(model), model.licence)
        for model in MODELS
    ]
    return _block(_table(("Alias", "Id", "Tasks", "Languages", "License of the weights"), rows))


def model_options() -> str:
    """Return the options and times of each group of models that have them in common."""
    groups: dict[tuple[tuple[str, ...], bool], list[str]] = {}
    for model in MODELS:
        groups.setdefault((model.options, model.timestamps), []).append(model.name)
    rows = [
        (_codes(names), "yes" if timestamps else "no", _codes(options) or "none")
        for (options, timestamps), names in groups.items()
    ]
    return _block(_table(("Models", "Timestamps", "Options"), rows))


def language_codes() -> str:
    """Return the codes of each set of languages that the table of models shows as a number."""
    sets = {model.languages: None for model in MODELS if len(model.languages) > FEW_LANGUAGES}
    lists = [
        f"{len(codes)} languages:\n\n```text\n{textwrap.fill(' '.join(codes), HELP_COLUMNS)}\n```\n" for codes in sets
    ]
    return _block("\n".join(lists))


def errors() -> str:
    """Return every error that has a code or a status of its own, with the first line of its docstring."""
    rows = [
        (f"`{kind.code}`", _status(kind), "yes" if kind.retryable else "no", _first_line(kind), f"`{kind.__name__}`")
        for kind in _subclasses(AviaryError)
        if "code" in vars(kind) or ("status" in vars(kind) and not kind.__subclasses__())
    ]
    return _block(_table(("Code", "HTTP status", "Retryable", "Meaning", "Python class"), rows))


def _status(kind: type[AviaryError]) -> str:
    """Return the HTTP status of an error, and the one on /v1 if it differs."""
    on_v1 = status_of(kind(""), OPENAI)
    return str(kind.status) if on_v1 in (kind.status, status_of(kind(""))) else f"{kind.status}; on `/v1`, {on_v1}"


def request_fields() -> str:
    """Return the fields of a request, with the values that each accepts."""
    schema = _Payload.model_json_schema()["properties"]
    fields = sorted(_Payload.model_fields.items(), key=lambda item: item[0] in _shared_fields())
    rows = [(f"`{name}`", _accepted(schema[name]), field.description or "") for name, field in fields]
    return _block(_table(("Field", "Values", "Meaning"), rows))


def openai_fields() -> str:
    """Return the fields of OpenAI's routes that Aviary accepts without effect, with the values that it accepts."""
    vad = {"type": "server_vad"} | VAD_DEFAULTS
    only = {**NEUTRAL, "chunking_strategy": ("auto", vad)}
    rows = [(f"`{name}`", "any") for name in IGNORED]
    rows += [(f"`{name}`", " or ".join(f"`{json.dumps(value)}`" for value in values)) for name, values in only.items()]
    return _block(_table(("Field", "Values"), rows))


def commands() -> str:
    """Return the help text of the command line and of each of its commands."""
    return _block("\n".join(map(_help, _parsers(arguments.parser()))))


def _parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yield the parser, and those of its commands and their actions."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _parsers(command)


def _setting_groups() -> Iterator[tuple[str, list[str]]]:
    """Yield each group's title and the names of its settings, in the order of the class."""
    groups: dict[str, list[str]] = {}
    title = ""
    for line in inspect.getsource(Settings).splitlines():
        if heading := re.fullmatch(r"    # ([A-Z]\w+)", line):
            title = heading[1]
        elif field := re.match(r"    (\w+): ", line):
            groups.setdefault(title, []).append(field[1])
    for title, names in groups.items():
        yield title, [name for name in names if name in Settings.model_fields and name not in SET_BY_RUNPOD]


def _default(name: str, field: FieldInfo) -> str:
    if name in COMPUTED:
        return COMPUTED[name]
    value = field.get_default(call_default_factory=True)
    if value is None or value == ():
        return "unset"
    if isinstance(value, dict):
        return f"`{','.join(f'{key}={item}' for key, item in value.items())}`"
    if isinstance(value, bool):
        return "`1`" if value else "`0`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _choices(field: FieldInfo) -> str:
    """Return the end of a setting's meaning: the values to choose from, if there are few."""
    values = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    return f" ({_codes(values)})" if values else ""


def _spoken(model: Model) -> str:
    if not model.languages:
        return "as trained"
    return _codes(model.languages) if len(model.languages) <= FEW_LANGUAGES else str(len(model.languages))


def _shared_fields() -> frozenset[str]:
    """Return the options that may also stand on an input: the table lists them after the request's own fields."""
    parents = _Payload.__mro__[1:]
    return frozenset(name for parent in parents for name in getattr(parent, "model_fields", {}))


def _accepted(schema: dict[str, Any]) -> str:
    """Return the accepted values of a field in words, from its JSON schema."""
    choices = [one for one in schema.get("anyOf", [schema]) if one.get("type") != "null"]
    return ", ".join(filter(None, map(_kind, choices))) or "source, or an object as in `inputs`"


def _kind(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return _codes(schema["enum"])
    if schema.get("type") == "array":
        return "list"
    if schema.get("type") in ("integer", "number"):
        return _range(schema)
    return {"boolean": "`true`, `false`", "string": "string"}.get(schema.get("type", ""), "")


def _range(schema: dict[str, Any]) -> str:
    if not {"minimum", "exclusiveMinimum", "maximum"} & schema.keys():
        return str(schema["type"])
    low = schema["minimum"] if "minimum" in schema else f"above {schema['exclusiveMinimum']}"
    return f"{schema['type']}, {low} to {schema['maximum']}"


def _help(parser: argparse.ArgumentParser) -> str:
    """Return a command's section. The usage line is ours: argparse wraps it differently from one Python to the next."""
    parser.usage = " ".join(["%(prog)s", *_required(parser), "[OPTIONS]", *_positional(parser)])
    parser.formatter_class = functools.partial(argparse.HelpFormatter, width=HELP_COLUMNS)
    return f"## {parser.prog}\n\n```text\n{parser.format_help()}```\n"


def _required(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        if action.option_strings and action.required:
            yield f"{action.option_strings[0]} {action.metavar or action.dest.upper()}"


def _positional(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        if action.option_strings:
            continue
        if isinstance(action, argparse._SubParsersAction) and not action.required:
            yield f"[{action.metavar}]"
        else:
            yield f"[{action.metavar} ...]" if action.nargs == "*" else str(action.metavar)


def _subclasses(kind: type[AviaryError]) -> Iterator[type[AviaryError]]:
    for sub in kind.__subclasses__():
        if sub.__module__ == AviaryError.__module__:
            yield sub
            yield from _subclasses(sub)


def _first_line(kind: type) -> str:
    return (inspect.getdoc(kind) or "").split("\n", 1)[0]


def _codes(values: Iterable[object]) -> str:
    return ", ".join(f"`{value}`" for value in values)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def _block(text: str) -> str:
    """Return the text between blank lines, which Markdown needs after the comment that holds the generator."""
    return f"\n{text}\n"
