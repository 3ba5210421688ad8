"""The measurement of loading runs, here on a tiny checkpoint."""

from __future__ import annotations

import pytest
from conftest import FIXTURES

pytest.importorskip("nemo.collections.asr", reason="nemo_toolkit is not installed")
from benchmarks import loading


def test_both_sides_load_the_file_in_fresh_processes(monkeypatch):
    monkeypatch.setattr(loading, "TIMES", 1)
    rows = loading.compare(FIXTURES / "ctc-digits.nemo")
    assert [row.name for row in rows] == ["loading a full-size Parakeet on a CPU", "peak memory of that load"]
    assert rows[1].kept is not None
    ours, theirs = (loading._load(FIXTURES / "ctc-digits.nemo", code) for code in (loading._OURS, loading._THEIRS))
    assert 0.05 < ours.peak_gib < theirs.peak_gib
    assert ours.seconds > 0
