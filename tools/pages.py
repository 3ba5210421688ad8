"""A hook of MkDocs that lays the site out as the repository: README.md is its home page, docs/http.md is docs/http/.

A relative link then leads to the same file on the site, on a code host and in an editor, and `mkdocs build --strict`
reports a link that leads nowhere. Files that pages link to must match MIRRORED.
"""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
MIRRORED = (
    "*.md",
    "LICENSE",
    "Dockerfile",
    "handler.py",
    "benchmarks/*.md",
    "deploy/**/*",
    "docs/**/*",
    "examples/*.py",
    "samples/*.*",
    "tests/*.py",
    "worker/**/*.py",
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replace the files of docs/ by those of the repository that match MIRRORED; keep those of the theme."""
    theme = [file for file in files if file.src_dir != config.docs_dir]
    paths = sorted({path for pattern in MIRRORED for path in ROOT.glob(pattern) if path.is_file()})
    names = [path.relative_to(ROOT).as_posix() for path in paths]
    mirrored = [File(name, str(ROOT), config.site_dir, config.use_directory_urls) for name in names]
    return Files([*theme, *mirrored])
