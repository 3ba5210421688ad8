"""What contributors read and run agrees with the code: the guide, the commit hooks, the templates."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from worker.config import Settings

ROOT = Path(__file__).resolve().parent.parent
GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
HOOKS = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]


def test_the_guide_names_every_target_of_make():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^(\w+):.*  ## ", makefile, re.MULTILINE)) - {"help"}  # `make` alone is help
    assert set(re.findall(r"^\| `make (\w+)` \|", GUIDE, re.MULTILINE)) == targets


def test_the_guide_has_a_place_for_every_package_and_module():
    table = GUIDE.split("## Where code belongs")[1].split("\n## ")[0]
    named = set(re.findall(r"`(\w+)(?:/|\.py)`", table)) - {"worker"}
    package = ROOT / "worker"
    modules = {path.stem for path in package.glob("*.py") if not path.stem.startswith("__")}
    packages = {path.parent.name for path in package.glob("*/__init__.py")}
    assert modules | packages <= named
    inside = {path.stem for path in (package / "entrypoints").iterdir()}
    assert named <= modules | packages | inside


def test_hooks_run_the_tools_of_the_project_and_download_nothing():
    hooks = [hook for repo in HOOKS for hook in repo["hooks"]]
    assert [repo["repo"] for repo in HOOKS] == ["local"]
    assert {hook["language"] for hook in hooks} == {"system"}
    assert {hook["id"] for hook in hooks} == {"ruff", "ruff-format", "import-linter", "cog", "prose"}
    for hook in hooks:
        words = shlex.split(hook["entry"])
        (tool, *arguments) = shlex.split(words[2]) if words[0] == "bash" else words
        assert tool.startswith(".venv/bin/")
        shown = subprocess.run(
            [Path(sys.executable).parent / Path(tool).name, *arguments[:2], "--help"],
            cwd=ROOT,
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert "No module named" not in shown.stderr, hook["id"]


def test_the_threat_model_covers_every_door():
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    table = text.split("### Doors")[1].split("\n### ")[0]
    named = " ".join(re.findall(r"^\| ([^|]+) \|(?: [^|]*\|){3}$", table, re.MULTILINE))
    http = ("without `API_KEY`", "with `API_KEY`", "Gateway", "Job store")
    for door in ("handler", "--rp_serve_api", *http, "Command line", "Python API", "Clients", "Ray"):
        assert door in named
    assert {"Checkpoints", "Configuration"} <= set(re.findall(r"\w+", named))


def test_the_threat_model_names_settings_that_exist():
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    named = {name for span in re.findall(r"`([^`]+)`", text) for name in re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", span)}
    assert len(named) > 6
    assert {name.lower() for name in named} - {"run_as"} <= set(Settings.model_fields)


@pytest.mark.parametrize("name", ["bug", "feature"])
def test_an_issue_form_is_complete(name):
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / f"{name}.yml").read_text(encoding="utf-8"))
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert {"name", "description", "body"} <= set(form)
    assert all(field["attributes"]["label"] for field in fields)
    assert len({field["id"] for field in fields}) == len(fields)
    assert any(field.get("validations", {}).get("required") for field in fields)


def test_every_exception_from_a_security_rule_has_a_reason():
    found = [
        (path.name, number, line)
        for place in ("worker", "tools", "examples", "handler.py")
        for path in ([ROOT / place] if (ROOT / place).is_file() else sorted((ROOT / place).rglob("*.py")))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(r"# noqa: (?:\w+, ?)*S\d", line)
    ]
    assert len(found) > 5
    assert not [one for one in found if not re.search(r"# noqa: [A-Z0-9, ]+?  \w", one[2])]


def test_no_security_rule_is_switched_off_for_the_code():
    lint = (ROOT / "pyproject.toml").read_text(encoding="utf-8").split("[tool.ruff.lint]")[1].split("[tool.mypy]")[0]
    everywhere, _, places = lint.partition("[tool.ruff.lint.per-file-ignores]")
    selected, _, ignored = everywhere.partition("ignore = [")
    assert '"S"' in selected
    assert re.findall(r'"(S\d*)"', ignored) == ["S101"]
    assert re.findall(r'^"([^"]+)" = .*"S\d*"', places, re.MULTILINE) == ["tests/**", "benchmarks/**", "samples/**"]
