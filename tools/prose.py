"""Check the words of this project against `.style/words.yaml`: `python -m tools.prose [PATH ...]`.

    Markdown ── paragraphs, list items, table cells ──┐
    Python ──── docstrings, comments, messages ───────┴──▶ Passage ── rules ──▶ file:line: text: advice

Messages are the strings that people read: arguments of exceptions, of `log.…` and of `print`, and the values of `help=`
and `description=`. Without a PATH, the paths of the style are checked. The exit code is 1 if anything is found.
"""

from __future__ import annotations

import ast
import io
import os
import re
import sys
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

ROOT = Path(__file__).resolve().parent.parent
STYLE = ROOT / ".style" / "words.yaml"

CODE = "\x1a"  # This sign replaces each letter of what is not prose: it is neither a space nor part of a word.
_NOT_PROSE = re.compile(r"(`+).+?\1|\b\w+://\S+|\]\([^)\s]*\)|<[^<>\s][^<>]*>|\b\w{2,}(?:[._/]\w+)+\b", re.DOTALL)
_MARKDOWN_CODE = re.compile(r"^ *(```+|~~~+).*?^ *\1[`~]* *$|<!--.*?-->", re.DOTALL | re.MULTILINE)
_ITEM = re.compile(r" *(?:[-*+]|\d+\.|#+|>) ")
_SENTENCE = re.compile(r".+?(?:[.!?](?=[\s\"')*]|$)|\Z)", re.DOTALL)
_WORD = re.compile(rf"[^\W\d_][\w'’-]*|{CODE}+(?:,\s+{CODE}+)*")  # An enumeration of code is one word.


class Passage(NamedTuple):
    """Text that is checked as a unit, and the number of its first line."""

    line: int
    text: str


class Finding(NamedTuple):
    """Words that break a rule, the number of their line, and what to write instead."""

    line: int
    text: str
    instead: str


def markdown(text: str) -> Iterator[Passage]:
    """Yield paragraphs, list items, headings and table cells, without code blocks and HTML comments."""
    text = _MARKDOWN_CODE.sub(lambda match: "\n" * match[0].count("\n"), text)
    yield from _paragraphs(re.sub(r"^ +", "", text, flags=re.MULTILINE), 1)


def python(source: str) -> Iterator[Passage]:
    """Yield docstrings, comments and messages."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield from _paragraphs(node.value.value, node.lineno, node.col_offset)
        elif isinstance(node, ast.Call):
            for message in _messages(node):
                yield from _strings(message)
    yield from _comments(source)


def check(passage: Passage, style: dict[str, Any], kind: str) -> Iterator[Finding]:
    """Yield what breaks the style in a passage. `kind` is "markdown" or "python"."""
    text = _NOT_PROSE.sub(lambda match: re.sub(r"[^\n]", CODE, match[0]), passage.text)
    rules = [rule for rule in style["rules"] if rule.get("in", kind) == kind]
    found = [(m.start(), m[0], rule["instead"]) for rule in rules for m in re.finditer(rule["pattern"], text, re.I)]
    for sentence in _SENTENCE.finditer(text):
        words, most = len(_WORD.findall(sentence[0])), style["max_sentence_words"]
        if words > most:
            beginning = " ".join(passage.text[slice(*sentence.span())].split()[:6])
            found.append((sentence.start(), f"{beginning} …", f"split the sentence: {words} words, not {most}"))
    for start, shown, instead in found:
        yield Finding(passage.line + text.count("\n", 0, start), " ".join(shown.split()), instead)


def findings(path: Path, style: dict[str, Any]) -> list[Finding]:
    """Return what breaks the style in a Markdown or Python file, in the order of lines."""
    kind, passages = ("markdown", markdown) if path.suffix == ".md" else ("python", python)
    every = passages(path.read_text(encoding="utf-8"))
    return sorted({finding for passage in every for finding in check(passage, style, kind)})


def main(arguments: Sequence[str]) -> int:
    """Print the findings in the given paths, or in the style's paths, and return the exit code."""
    style = yaml.safe_load(STYLE.read_text(encoding="utf-8"))
    code = 0
    for path in list(map(Path, arguments)) or [ROOT / name for name in style["paths"]]:
        files = path.rglob("*") if path.is_dir() else [path]
        for file in sorted(file for file in files if file.suffix in (".md", ".py")):
            for line, text, instead in findings(file, style):
                print(f"{os.path.relpath(file)}:{line}: {text}: {instead}")
                code = 1
    return code


def _paragraphs(text: str, line: int, margin: int = 0) -> Iterator[Passage]:
    """Split at blank lines and before list items. Table rows and indented lines, such as diagrams, stand alone."""
    lines = [*text.split("\n"), ""]
    start = 0
    for number, row in enumerate(lines):
        alone = row.lstrip().startswith("|") or (number > 0 and row.startswith(" " * (margin + 2)))
        if alone or not row.strip() or _ITEM.match(row):
            yield Passage(line + start, "\n".join(lines[start:number]))
            start = number
        if alone or not row.strip():
            yield from (Passage(line + number, cell) for cell in row.split("|"))
            start = number + 1


def _comments(source: str) -> Iterator[Passage]:
    """Yield comments. Comments on consecutive lines of their own are one text."""
    blocks: list[tuple[int, list[str]]] = []
    following = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            if token.start[0] != following:
                blocks.append((token.start[0], []))
            blocks[-1][1].append(token.string.removeprefix("#").removeprefix(" "))
            following = token.end[0] + 1 if token.line.strip() == token.string else 0
    for line, rows in blocks:
        yield from _paragraphs("\n".join(rows), line)


def _messages(call: ast.Call) -> list[ast.expr]:
    """Return the arguments of a call that people read."""
    name = ast.unparse(call.func)
    speaks = name.rpartition(".")[2][:1].isupper() or name == "print" or name.startswith(("log.", "logger."))
    return [*(call.args if speaks else ()), *(k.value for k in call.keywords if k.arg in ("help", "description"))]


def _strings(node: ast.AST) -> Iterator[Passage]:
    """Yield the strings of an expression. The sign for code replaces each value of an f-string."""
    if isinstance(node, ast.JoinedStr):
        parts = [part.value if isinstance(part, ast.Constant) else CODE for part in node.values]
        yield Passage(node.lineno, "".join(map(str, parts)))
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield Passage(node.lineno, node.value)
    else:
        for child in ast.iter_child_nodes(node):
            yield from _strings(child)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
