"""How a result shows itself: to people on a line, to notebooks as HTML, to other programs as plain values.

repr(result)            one short line
result._repr_html_()    a table of the fields, with the times in tables of their own; notebooks call it
result.to_dict()        dicts, lists, str, int, float, bool and None, which json.dumps and pandas.DataFrame accept
"""

from __future__ import annotations

import dataclasses
import html
import reprlib
from typing import Any

from worker.errors import AviaryError

Json = dict[str, Any]

LONGEST_TEXT = 5_000  # characters of a text that a notebook shows
MOST_ROWS = 100  # words or segments that a notebook shows

_short = reprlib.Repr()
_short.maxstring = 80


class Displayed:
    """A dataclass that shows itself. It must be defined with repr=False."""

    __slots__ = ()

    def to_dict(self) -> Json:
        """Return the fields as plain values. Arrays become lists, an error its code and message."""
        return {name: _plain(value) for name, value in self._fields().items()}

    def _fields(self) -> Json:
        return fields(self)

    def _known(self) -> Json:
        return {name: value for name, value in self._fields().items() if value is not None and not _is_empty(value)}

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={_brief(value)}" for name, value in self._known().items())
        return f"{type(self).__name__}({shown})"

    def _repr_html_(self) -> str:
        rows = [f"<tr><th>{name}</th><td>{_html(value)}</td></tr>" for name, value in self._known().items()]
        return f'<table style="text-align: left">{"".join(rows)}</table>'


def fields(record: Any) -> Json:
    """Return the fields of a dataclass by their names."""
    return {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}


def _plain(value: Any) -> Any:
    if isinstance(value, AviaryError):
        return {"code": value.code, "message": value.message}
    if dataclasses.is_dataclass(value):
        return {name: _plain(one) for name, one in fields(value).items()}
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    if hasattr(value, "tolist"):  # an array
        return value.tolist()
    return str(value) if hasattr(value, "__fspath__") else value


def _is_empty(value: Any) -> bool:
    return isinstance(value, tuple) and not value


def _brief(value: Any) -> str:
    if isinstance(value, tuple):
        return f"<{len(value)}>"
    if hasattr(value, "tolist"):
        return f"<{value.dtype} {value.shape}>"
    return _short.repr(value) if isinstance(value, str) else repr(value)


def _html(value: Any) -> str:
    if isinstance(value, tuple):
        return f"<details><summary>{len(value)}</summary>{_spans(value)}</details>"
    if not isinstance(value, str):
        return html.escape(_brief(value))
    cut = f" … ({len(value)} characters)" if len(value) > LONGEST_TEXT else ""
    return f'<span style="white-space: pre-wrap">{html.escape(value[:LONGEST_TEXT] + cut)}</span>'


def _spans(spans: tuple[Any, ...]) -> str:
    """Return a table of records, such as words, without the columns that are empty."""
    rows = [fields(span) for span in spans[:MOST_ROWS]]
    names = [name for name in rows[0] if any(row.get(name) is not None for row in rows)]
    head = "".join(f"<th>{name}</th>" for name in names)
    body = "".join(
        f"<tr>{''.join(f'<td>{html.escape(str(row.get(name)))}</td>' for name in names)}</tr>" for row in rows
    )
    more = f"<p>… and {len(spans) - MOST_ROWS} more</p>" if len(spans) > MOST_ROWS else ""
    return f"<table><tr>{head}</tr>{body}</table>{more}"
