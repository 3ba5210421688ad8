"""A .nemo file is read within bounds, whoever made it: real ones pass, bombs, links and odd names do not."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import FIXTURES

from worker.catalog import find, nemo_file
from worker.catalog.nemo_file import Archive
from worker.errors import ModelUnavailable

GIB = 1 << 30


def entry(name: str, content: bytes = b"x", **fields) -> tuple[tarfile.TarInfo, bytes]:
    made = tarfile.TarInfo(name)
    made.size = len(content)
    for field, value in fields.items():
        setattr(made, field, value)
    return made, content


def write(path: Path, *entries: tuple[tarfile.TarInfo, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode, format=tarfile.PAX_FORMAT) as archive:
        for made, content in entries:
            archive.addfile(made, io.BytesIO(content))
    return path


def names(path: Path) -> list[str]:
    with Archive(path) as archive:
        return [member.name for member in archive]


def bomb(path: Path, name: str = "model_config.yaml", size: int = GIB) -> Path:
    """A gzip file of about a thousandth of what it expands to: one member of zeros."""
    made, _ = entry(f"./{name}", b"")
    made.size = size
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(made.tobuf())
        for _ in range(size >> 20):
            file.write(bytes(1 << 20))
        file.write(bytes(1024))
    return path


@pytest.mark.parametrize("name", ["parakeet-digits", "canary-digits", "ctc-digits"])
def test_the_files_that_nemo_saves_are_read(name, tmp_path):
    path = FIXTURES / f"{name}.nemo"
    with tarfile.open(path) as archive:
        expected = {m.name.removeprefix("./"): archive.extractfile(m).read() for m in archive if m.isfile()}
    with Archive(path) as archive:
        for member in archive:
            archive.copy(member, tmp_path / member.name)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == expected
    assert nemo_file.config_text(path).encode() == expected["model_config.yaml"]


def test_a_compressed_file_as_old_versions_of_nemo_save_it_is_read_too(tmp_path):
    path = write(
        tmp_path / "old.nemo", entry("model_config.yaml", b"a: 1\n"), entry("w", os.urandom(5000)), mode="w:gz"
    )
    assert names(path) == ["model_config.yaml", "w"]
    assert nemo_file.config_text(path) == "a: 1\n"


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (entry("../escape"), "would leave the folder: '../escape'"),
        (entry("./a/../../escape"), "would leave the folder"),
        (entry("/etc/passwd"), "would leave the folder"),
        (entry("..\\escape"), "would leave the folder"),
        (entry("./link", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "is not a regular file: './link'"),
        (entry("link", b"", type=tarfile.LNKTYPE, linkname="model_config.yaml"), "is not a regular file"),
        (entry("fifo", b"", type=tarfile.FIFOTYPE), "is not a regular file"),
        (entry("device", b"", type=tarfile.CHRTYPE), "is not a regular file"),
        (entry("sub/link", b"", type=tarfile.SYMTYPE, linkname=".."), "is not a regular file"),
        (entry("./model_config.yaml"), "two members named 'model_config.yaml'"),
        (
            entry("s", bytes(512), pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}),
            "is not a regular file|cannot be read",
        ),
    ],
    ids=lambda value: value[0].name if isinstance(value, tuple) else "",
)
def test_odd_members_are_refused_with_the_reason(tmp_path, made, reason):
    path = write(tmp_path / "x.nemo", entry("model_config.yaml"), made)
    with pytest.raises(ModelUnavailable, match=reason) as caught:
        names(path)
    assert str(path) in caught.value.message


def test_files_in_folders_are_left_out(tmp_path):
    folder, _ = entry("./sub", b"", type=tarfile.DIRTYPE)
    path = write(tmp_path / "x.nemo", entry("./a"), (folder, b""), entry("./sub/a"), entry("sub/model_config.yaml"))
    assert names(path) == ["a"]
    assert nemo_file.config_text(path) == ""


def test_the_number_of_members_is_bounded(tmp_path):
    path = write(tmp_path / "x.nemo", *(entry(f"{i}") for i in range(nemo_file.MAX_MEMBERS + 1)))
    with pytest.raises(ModelUnavailable, match="more than 1000 members"):
        names(path)


@pytest.fixture
def within():
    """`within(megabytes)` fails if that much more memory was in use at once, or a second of this process's time."""
    started = time.process_time()
    tracemalloc.start()

    def check(megabytes: int) -> None:
        assert tracemalloc.get_traced_memory()[1] < megabytes << 20
        assert time.process_time() - started < 1

    yield check
    tracemalloc.stop()


@pytest.fixture(scope="module")
def gigabyte(tmp_path_factory) -> Path:
    path = bomb(tmp_path_factory.mktemp("bomb") / "parakeet-bomb.nemo")
    assert path.stat().st_size < 8 << 20
    return path


@pytest.mark.parametrize("read", [names, nemo_file.config_text])
def test_a_small_file_that_expands_to_a_gigabyte_is_refused_in_little_memory_and_time(gigabyte, within, read):
    with pytest.raises(ModelUnavailable, match="expands to more than"):
        read(gigabyte)
    within(32)


def test_looking_it_up_in_the_catalog_costs_little_too(gigabyte, within):
    assert find(str(gigabyte)).backend == "parakeet"  # by its name: loading reports the reason
    within(32)


def test_a_configuration_of_many_bytes_is_refused(tmp_path):
    path = write(tmp_path / "x.nemo", entry("model_config.yaml", bytes(nemo_file.MAX_CONFIG_BYTES + 1)))
    with pytest.raises(ModelUnavailable, match=r"'model_config\.yaml' of 8388609 bytes; the limit is 8388608"):
        nemo_file.config_text(path)
    assert find(str(path)).backend == "parakeet"


def long_header(path: Path, compress: bool) -> Path:
    """A header that promises a gigabyte of further headers. The compressed file holds the first 32 MiB of it."""
    made, _ = entry("x", b"", type=tarfile.XHDTYPE)
    made.size = GIB
    with (gzip.open if compress else open)(path, "wb") as file:
        file.write(made.tobuf())
        if compress:
            file.write(bytes(32 << 20))
        else:
            file.truncate(GIB + 4096)  # a hole: it takes no room on the disk
    return path


def nested_headers(path: Path) -> Path:
    """Headers that announce headers, deeper than Python recurses."""
    made, _ = entry("x", b"", type=tarfile.XHDTYPE)
    path.write_bytes(made.tobuf() * 3000)
    return path


def negative_size(path: Path) -> Path:
    """A header whose size would send the reader back to its beginning, for ever."""
    block = bytearray(entry("x")[0].tobuf(tarfile.GNU_FORMAT))
    block[124:136] = (-512).to_bytes(12, "big", signed=True)
    block[148:156] = b"        "
    block[148:156] = b"%06o\0 " % sum(block)
    path.write_bytes(bytes(block) * 4)
    return path


def content(path: Path, of: bytes) -> Path:
    path.write_bytes(of)
    return path


@pytest.mark.parametrize(
    "make",
    [
        lambda path: long_header(path, compress=False),
        lambda path: long_header(path, compress=True),
        nested_headers,
        negative_size,
        lambda path: content(path, b""),
        lambda path: content(path, b"PK\3\4" + bytes(2000)),
        lambda path: content(path, b"\x1f\x8b" + bytes(2000)),
        lambda path: content(path, (FIXTURES / "ctc-digits.nemo").read_bytes()[:900_000]),
    ],
    ids=["long header", "long header, compressed", "nested", "negative", "empty", "zip", "bad gzip", "cut short"],
)
def test_a_damaged_file_is_refused_at_once(tmp_path, make: Callable[[Path], Path]):
    path, started = make(tmp_path / "x.nemo"), time.process_time()
    with pytest.raises(ModelUnavailable, match=r"x\.nemo"):
        names(path)
    assert time.process_time() - started < 2


def test_a_member_that_the_file_cuts_short_is_refused(tmp_path):
    path = write(tmp_path / "x.nemo", entry("model_config.yaml", os.urandom(30_000)), mode="w:gz")
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(ModelUnavailable, match=r"cannot be read|ends within"):
        nemo_file.config_text(path)


def test_walking_through_gigabytes_of_weights_reads_the_headers_only(tmp_path):
    path, size = tmp_path / "big.nemo", 3 * GIB
    weights, _ = entry("./model_weights.ckpt", b"")
    weights.size = size
    with path.open("wb") as file:
        file.write(weights.tobuf())
        file.truncate(size + 512)  # a hole: it takes no room on the disk
        file.seek(0, os.SEEK_END)
        config, content = entry("./model_config.yaml", b"target: x\n")
        file.write(config.tobuf() + content.ljust(512, b"\0") + bytes(1024))
    started = time.process_time()
    assert names(path) == ["model_weights.ckpt", "model_config.yaml"]
    assert nemo_file.config_text(path) == "target: x\n"
    assert time.process_time() - started < 0.2
