"""What `make lint` cannot see of the structure: who reads the environment, and what an import loads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_only_config_reads_the_environment():
    for path in [ROOT / "handler.py", *(ROOT / "worker").rglob("*.py")]:
        if path.name not in ("config.py", "child.py"):  # child.py passes it on, unread
            text = path.read_text()
            assert "os.environ" not in text, path
            assert "getenv" not in text, path


def test_importing_an_entry_point_loads_nothing_heavy_and_starts_nothing():
    code = (
        "import sys, threading, handler, worker, worker.entrypoints.cli, worker.manifest; "
        "heavy = {'torch', 'nemo', 'transformers', 'fastapi', 'boto3', 'soundfile', 'pocketsphinx', 'ray'}; "
        "heavy &= set(sys.modules); assert not heavy, heavy; assert threading.active_count() == 1"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def test_the_package_has_few_files_at_its_root():
    assert len(list((ROOT / "worker").glob("*.py"))) <= 13
