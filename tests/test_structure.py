"""The direction of imports, and what importing a door must not load."""
from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STAGES = ["worker.request", "worker.audio.fetch", "worker.audio.decode", "worker.batching", "worker.pool", "worker.lane",
          "worker.render"]


def imports(module: str, *, anywhere: bool = True) -> set[str]:
    path = ROOT / (module.replace(".", "/") + ".py")
    if not path.exists():
        path = ROOT / module.replace(".", "/") / "__init__.py"
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree) if anywhere else iter(tree.body)
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def modules() -> list[str]:
    files = [path for path in (ROOT / "worker").rglob("*.py") if path.name != "__init__.py"]
    return [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files]


def test_types_and_errors_import_nothing_of_ours_but_each_other():
    for module in ("worker.types", "worker.errors"):
        assert {name for name in imports(module) if name.startswith("worker")} <= {"worker.errors", "worker.errors.AviaryError"}


@pytest.mark.parametrize("stage", STAGES)
def test_stages_do_not_import_each_other_nor_what_is_above_them(stage):
    others = {other for other in STAGES if other != stage} | {"worker.engine", "worker.serverless"}
    allowed = {"worker.pool": {"worker.batching"}, "worker.lane": {"worker.batching", "worker.pool"}}   # they run batches
    assert not (imports(stage) & others) - allowed.get(stage, set())


def test_nobody_but_the_factory_names_a_backend():
    names = {f"worker.backends.{name}" for name in ("nemo", "canary", "flamingo", "whisper", "higgs", "pocketsphinx", "dry_run")}
    for module in modules():
        assert not imports(module) & names, module


def test_backends_know_no_stage_and_no_door():
    above = {*STAGES, "worker.engine", "worker.serverless"}
    for module in modules():
        if module.startswith("worker.backends."):
            assert not imports(module) & above, module


def test_only_config_reads_the_environment():
    for path in [ROOT / "handler.py", *(ROOT / "worker").rglob("*.py")]:
        if path.name != "config.py":
            text = path.read_text()
            assert "os.environ" not in text, path
            assert "getenv" not in text, path


def test_importing_a_door_loads_nothing_heavy_and_starts_nothing():
    code = ("import sys, threading, handler, worker, worker.cli, worker.manifest; "
            "heavy = {'torch', 'nemo', 'transformers', 'fastapi', 'boto3', 'soundfile', 'pocketsphinx', 'ray'}; "
            "heavy &= set(sys.modules); assert not heavy, heavy; assert threading.active_count() == 1")
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
