"""The version stands in one place, `worker.__version__`, and everything that shows or repeats a version agrees."""

from __future__ import annotations

import datetime
import re
import subprocess
import sys
from pathlib import Path

import pytest
from setuptools.config.pyprojecttoml import read_configuration

import worker
from worker.config import Settings
from worker.entrypoints import cli
from worker.entrypoints.http.app import create_app

ROOT = Path(__file__).resolve().parent.parent
HEADING = re.compile(r"^## \[(\d+)\.(\d+)\.(\d+)\] - (Unreleased|\d{4}-\d\d-\d\d)$")


def releases() -> list[tuple[tuple[int, ...], str]]:
    """The versions of the changelog's headings from top to bottom, each with its date or `Unreleased`."""
    lines = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()
    headings = [line for line in lines if line.startswith("## ")]
    found = [HEADING.match(line) for line in headings]
    assert all(found), f"each heading must match {HEADING.pattern}: {headings}"
    return [(tuple(map(int, match.groups()[:3])), match[4]) for match in found if match]


def test_the_changelog_begins_with_this_version():
    newest, _ = releases()[0]
    assert ".".join(map(str, newest)) == worker.__version__


def test_releases_are_listed_from_the_newest_and_only_the_newest_may_lack_a_date():
    versions = [version for version, _ in releases()]
    assert versions == sorted(set(versions), reverse=True)
    dates = [date for _, date in releases()]
    assert "Unreleased" not in dates[1:]
    days = [datetime.date.fromisoformat(date) for date in dates if date != "Unreleased"]
    assert days == sorted(days, reverse=True)


def test_the_package_is_built_with_this_version():
    project = read_configuration(ROOT / "pyproject.toml", expand=True)["project"]
    assert project["version"] == worker.__version__


def test_setuptools_reads_the_version_without_importing_the_package():
    code = (
        "import sys; from setuptools.config.expand import read_attr; "
        f"print(read_attr('worker.__version__', root_dir={str(ROOT)!r})); assert 'worker' not in sys.modules"
    )
    # In a folder of its own: the interpreter must not find the package by accident.
    shown = subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=60, capture_output=True, text=True, cwd="/"
    )
    assert shown.stdout.strip() == worker.__version__


def test_the_command_line_prints_the_version(capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"aviary {worker.__version__}\n"


def test_the_module_prints_the_version():
    command = [sys.executable, "-m", "worker", "--version"]
    shown = subprocess.run(command, check=True, timeout=60, capture_output=True, text=True, cwd=ROOT)
    assert shown.stdout == f"aviary {worker.__version__}\n"


def test_the_server_reports_the_version(tmp_path):
    app = create_app(Settings(model="pocketsphinx", skip_model_load=True, data_dir=tmp_path))
    assert app.openapi()["info"]["version"] == worker.__version__
