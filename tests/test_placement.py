"""Seats: which process gets which GPU, or which cores, and how much memory."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.config import Settings
from worker.engine import placement
from worker.errors import ConfigError

GPUS = [placement.Gpu("GPU-a", 80 * 1024**3), placement.Gpu("GPU-b", 80 * 1024**3)]


@pytest.fixture
def machine(monkeypatch):
    """A machine with GPUS, of which torch is shown so many."""

    def make(seen: int = 2) -> None:
        monkeypatch.setattr(placement, "_nodes", lambda: 2)
        monkeypatch.setattr(placement, "_gpus", lambda: GPUS[:seen])

    return make


@given(st.integers(1, 12), st.lists(st.integers(0, 63), min_size=1, max_size=24, unique=True).map(sorted))
def test_cores_are_divided_without_overlap_where_they_suffice(count, cores):
    taken = placement.place(Settings(), count, [], cores)
    blocks = [seat.cores for seat in taken]
    assert len(blocks) == count
    if count <= len(cores):
        assert sorted(core for block in blocks for core in block) == cores
        assert max(map(len, blocks)) - min(map(len, blocks)) <= 1
    else:
        assert set(blocks) == {tuple(cores)}


def test_each_worker_sees_one_gpu_and_those_that_share_one_share_its_memory():
    taken = placement.place(Settings(device="cuda"), 3, GPUS, list(range(16)))
    assert [seat.environment["CUDA_VISIBLE_DEVICES"] for seat in taken] == ["GPU-a", "GPU-b", "GPU-a"]
    assert [seat.settings.models_memory_gb for seat in taken] == [32, 64, 32]
    assert {seat.settings.workers for seat in taken} == {1}
    assert {seat.settings.decode_workers for seat in taken} == {5}
    (one, other) = placement.place(Settings(device="cuda:1", decode_workers=3, models_memory_gb=7), 2, [GPUS[1]], [0])
    assert one.environment == other.environment == {"CUDA_VISIBLE_DEVICES": "GPU-b"}
    assert (one.settings.device, one.settings.decode_workers, one.settings.models_memory_gb) == ("cuda", 3, 7)


@pytest.mark.slow
def test_without_gpus_one_seat_is_enough_and_a_gpu_that_is_asked_for_is_missed():
    assert len(placement.placements(Settings(workers=0, device="cpu"))) == 1
    assert len(placement.placements(Settings(workers=4, skip_model_load=True))) == 4
    if not placement._gpus():
        with pytest.raises(ConfigError, match="torch sees 0 CUDA devices"):
            placement.placements(Settings(workers=0, device="cuda"))


def test_an_engine_has_a_seat_for_each_device_that_is_named_or_visible(machine):
    machine()
    for device in ("auto", "cuda:0,cuda:1", "cuda:0, cuda:1"):
        taken = placement.device_placements(Settings(device=device))
        assert [seat.environment for seat in taken] == [
            {"CUDA_VISIBLE_DEVICES": "GPU-a"},
            {"CUDA_VISIBLE_DEVICES": "GPU-b"},
        ]
        assert [(seat.settings.device, seat.settings.models_memory_gb) for seat in taken] == [
            ("cuda", 64),
            ("cuda", 64),
        ]
    one, other = placement.device_placements(Settings(device="cuda:1,cuda:1"))
    assert one.environment == other.environment == {"CUDA_VISIBLE_DEVICES": "GPU-b"}
    assert one.settings.models_memory_gb == other.settings.models_memory_gb == 32
    with pytest.raises(ConfigError, match="torch sees 2 CUDA devices"):
        placement.device_placements(Settings(device="cuda:1,cuda:2"))


def test_one_device_needs_no_process(machine, monkeypatch):
    machine(seen=1)  # CUDA_VISIBLE_DEVICES hides the other
    assert placement.device_placements(Settings()) == []
    machine()
    assert placement.device_placements(Settings(skip_model_load=True)) == []
    monkeypatch.setattr(placement, "_gpus", lambda: pytest.fail("torch is not asked"))
    for device in ("cpu", "cuda", "cuda:0"):
        assert placement.device_placements(Settings(device=device)) == []
    monkeypatch.setattr(placement, "_nodes", lambda: 1)
    assert placement.device_placements(Settings()) == []


def test_a_gpu_that_is_not_the_first_is_the_first_of_a_process_of_its_own(machine):
    """NeMo makes its streams on the current device of the thread, which is the first GPU in every new thread."""
    machine()
    (one,) = placement.device_placements(Settings(device="cuda:1"))
    assert one.environment == {"CUDA_VISIBLE_DEVICES": "GPU-b"}
    assert (one.settings.device, one.settings.models_memory_gb) == ("cuda", 64)
    assert placement.device_placements(one.settings) == []
    assert placement.device_placements(Settings(device="cuda:1", skip_model_load=True)) == []
    with pytest.raises(ConfigError, match="torch sees 2 CUDA devices"):
        placement.device_placements(Settings(device="cuda:2"))


CUDA = """
import os
from types import SimpleNamespace as S
HERE = {here!r}
shown = os.environ.get("CUDA_VISIBLE_DEVICES")
seen = HERE if shown is None else [one for one in HERE if one in shown.split(",")]
if any(one.startswith("MIG-") for one in seen):
    seen = seen[:1]  # CUDA shows a process one slice
cuda = S(
    device_count=lambda: len(seen),
    get_device_properties=lambda i: S(uuid=seen[i].partition("-")[2], total_memory=10 * 1024**3),
)
"""


@pytest.fixture
def cuda(monkeypatch, tmp_path):
    """A machine with GPUs and a torch that obeys CUDA_VISIBLE_DEVICES. `sees`: what a placement's process has."""

    def make(*here: str, shown: str | None = None):
        (tmp_path / "torch.py").write_text(CUDA.replace("{here!r}", repr(list(here))))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.setattr(placement, "_nodes", lambda: 1)
        if shown:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)

    def sees(taken: placement.Placement) -> list[str]:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in taken.environment.items():
                patch.setenv(name, value)
            return [gpu.uuid for gpu in placement._gpus()]

    make.sees = sees
    return make


@pytest.mark.parametrize("shown", [None, "MIG-b"])
def test_a_server_under_a_mig_slice_sees_it(cuda, shown):
    cuda("MIG-a", "MIG-b", shown=shown)
    for workers in (0, 2):
        taken = placement.placements(Settings(workers=workers))
        assert len(taken) == (workers or 1)
        for one in taken:
            assert one.settings.device == "cuda"
            assert cuda.sees(one) == [f"GPU-{'b' if shown else 'a'}"]
        assert taken[0].settings.models_memory_gb == 8 / (workers or 1)


def test_servers_on_whole_gpus_see_one_each(cuda):
    cuda("GPU-a", "GPU-b", "GPU-c", shown="GPU-a,GPU-c")
    assert [cuda.sees(one) for one in placement.placements(Settings(workers=0))] == [["GPU-a"], ["GPU-c"]]
    (one,) = placement.device_placements(Settings(device="cuda:1"))
    assert cuda.sees(one) == ["GPU-c"]


def test_devices_on_the_cpu_divide_its_cores_and_its_memory():
    one, other = placement.device_placements(Settings(device="cpu,cpu", skip_model_load=True))
    assert one.settings.device == other.settings.device == "cpu"
    assert (
        one.settings.models_memory_gb
        == other.settings.models_memory_gb
        < os.sysconf("SC_PHYS_PAGES") * 4096 / 2 / 1024**3
    )
    cores = os.sched_getaffinity(0)
    assert {*one.cores, *other.cores} == cores
    if len(cores) > 1:
        assert not {*one.cores} & {*other.cores}


def test_each_worker_has_one_device_whatever_is_named(machine):
    machine()
    for device, expected in (("auto", "ab"), ("cuda", "ab"), ("cuda:1", "b"), ("cuda:1,cuda:0", "ba")):
        taken = placement.placements(Settings(device=device, workers=0))
        assert [seat.environment["CUDA_VISIBLE_DEVICES"][-1] for seat in taken] == list(expected)
        for seat in taken:
            assert placement.device_placements(seat.settings) == [], "and starts no processes of its own"
    taken = placement.placements(Settings(device="cpu,cpu,cpu", workers=0))
    assert [seat.settings.device for seat in taken] == ["cpu"] * 3


@pytest.mark.parametrize("device", ["cpu,cuda:0", "auto,cpu", "cuda,cuda", "cuda:0,", ",", "cuda:"])
def test_what_does_not_go_together_is_refused(device):
    with pytest.raises(ConfigError, match="DEVICE"):
        Settings(device=device)
