"""The documentation site builds without a warning, and its reference has every public name."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import worker

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site, built as `make docs` builds it: a broken link or an unknown name fails."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_reference_has_every_public_name(site):
    page = (site / "docs" / "reference" / "index.html").read_text(encoding="utf-8")
    documented = {anchor.rpartition(".")[2] for anchor in re.findall(r'<h\d id="(worker\.[\w.]+)"', page)}
    assert set(worker.__all__) <= documented


def test_the_home_page_is_the_readme(site):
    title = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
    assert re.search(rf"<h1[^>]*>{re.escape(title)}<", (site / "index.html").read_text(encoding="utf-8"))


def test_the_pages_load_nothing_from_the_network(site):
    remote = re.compile(r'<(?:script|img)[^>]+src="https?:|<link[^>]+rel="stylesheet"[^>]+href="https?:')
    for page in site.rglob("*.html"):
        assert not remote.findall(page.read_text(encoding="utf-8")), page
