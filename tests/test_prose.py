"""The prose check finds what each rule of `.style/words.yaml` is about, in prose only, and reports the right line."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tools import prose

STYLE: dict[str, Any] = yaml.safe_load(prose.STYLE.read_text(encoding="utf-8"))
RULES: list[dict[str, str]] = STYLE["rules"]
WORD = {"rules": [{"pattern": r"\bhears\b", "instead": "transcribe"}], "max_sentence_words": 45}


def lines(tmp_path: Path, name: str, text: str, style: dict[str, Any] = WORD) -> list[int]:
    """The lines of the findings in a file with this text."""
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return [finding.line for finding in prose.findings(path, style)]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["bad"])
def test_a_rule_finds_its_bad_example_and_not_its_good_one(rule):
    style = {"rules": [rule], "max_sentence_words": 45}
    kind = rule.get("in", "python")
    assert set(rule) <= {"pattern", "instead", "in", "bad", "good"}
    assert kind in ("markdown", "python")
    assert list(prose.check(prose.Passage(1, rule["bad"]), style, kind))
    assert not list(prose.check(prose.Passage(1, rule["good"]), style, kind))
    assert not list(prose.check(prose.Passage(1, rule["good"]), STYLE, kind)), "nor does another rule"


def test_a_rule_for_markdown_does_not_apply_to_python(tmp_path):
    text = "# Formats, e.g. srt, are listed.\n"
    assert lines(tmp_path, "a.md", text, STYLE) == [1]
    assert lines(tmp_path, "a.py", text, STYLE) == []


def test_every_path_of_the_style_exists():
    assert [name for name in STYLE["paths"] if not (prose.ROOT / name).exists()] == []


def test_markdown_is_prose_except_for_code_and_comments(tmp_path):
    text = """# It hears

A paragraph that
hears, with `hears` and [a link](hears.md) to https://example.org/hears and <hears>.

```python
hears = "hears"
```
- an item that hears

  ~~~
  hears
  ~~~
| cell | hears |
<!-- hears
hears -->
hears
"""
    assert lines(tmp_path, "a.md", text) == [1, 4, 9, 14, 17]


def test_docstrings_and_comments_are_prose(tmp_path):
    text = '''"""A module.

    a diagram ──▶ hears
"""

hears = "hears"  # It hears.
# A comment of
# two lines hears.


class Hears:
    """A class.

    It hears."""

    hears: int
    """A field that hears."""

    def hears(self):
        """It
        hears `hears` and worker.hears and hears_it."""
'''
    assert lines(tmp_path, "a.py", text) == [3, 6, 8, 14, 17, 21]


def test_messages_are_prose(tmp_path):
    text = """raise ValueError("it hears", param="hears")
raise worker.errors.InputError(
    f"{model} hears {count}")
log.warning("it hears %s", name)
print("it hears" if x else "no")
command.add_argument("--hears", help="it hears")
field = Field(None, description="it " "hears")
other("hears")
x = {"hears": "hears"}
Failure(1, errors.InputError("it hears"))
"""
    assert lines(tmp_path, "a.py", text) == [1, 3, 4, 5, 6, 7, 10]


def test_values_of_an_f_string_are_not_prose(tmp_path):
    assert lines(tmp_path, "a.py", "raise E(f'a {hears} b {x!r:>{hears}}')\n") == []


@pytest.mark.parametrize(("count", "found"), [(45, []), (46, [1])])
def test_a_sentence_has_at_most_45_words(tmp_path, count, found):
    sentence = f"{'word ' * (count - 2)}`some code` ends."
    assert lines(tmp_path, "a.md", f"Short one. {sentence} Short one.\n") == found


def test_an_enumeration_of_code_is_one_word(tmp_path):
    assert lines(tmp_path, "a.md", f"Languages: {', '.join(['`en`'] * 60)}.\n") == []
    assert lines(tmp_path, "a.md", f"Languages: {' in '.join(['`en`'] * 60)}.\n") == [1]


def test_a_long_sentence_is_reported_once_where_it_begins(tmp_path):
    half = "word " * 25
    text = f'"""A short one.\n\nAnother. Here\n{half}\n{half}end.\n"""\n'
    assert lines(tmp_path, "a.py", text) == [3]


def test_list_items_cells_and_indented_lines_are_sentences_of_their_own(tmp_path):
    half = "word " * 30
    assert lines(tmp_path, "a.md", f"{half}\n- {half}\n- {half}\n\n| {half} | {half} |\n") == []
    assert lines(tmp_path, "a.py", f'"""A list.\n\n    {half}\n    {half}\n"""\n') == []
    assert lines(tmp_path, "a.md", f"- {half}\n  {half}\n") == [1]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tools.prose", *arguments]
    return subprocess.run(command, cwd=prose.ROOT, check=False, capture_output=True, text=True, timeout=60)


def test_findings_are_printed_and_make_the_exit_code_1(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.md").write_text("Fine.\n\nThe model hears it.\n")
    (tmp_path / "b.py").write_text("# Fine.\n")
    (tmp_path / "c.txt").write_text("The model hears it.\n")
    done = run(str(tmp_path))
    assert done.returncode == 1
    assert re.fullmatch(r"\S*/sub/a\.md:3: hears: transcribe, .+\n", done.stdout)


def test_clean_files_exit_with_0(tmp_path):
    (tmp_path / "a.md").write_text("The model transcribes it.\n")
    done = run(str(tmp_path / "a.md"))
    assert (done.returncode, done.stdout) == (0, "")
