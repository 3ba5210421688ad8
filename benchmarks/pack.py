"""Pack the wheels for a machine that has torch and transformers but no network: `python -m benchmarks.pack OUT`.

    requirements.lock ── what ROOTS need ── less what is installed there, and LEFT_OUT ──▶ OUT/*.whl

Copy the tree and OUT to that machine, and run there, in the tree: `sh benchmarks/gpu/run.sh OUT`.

The machine needs Python 3.12 on x86-64 Linux. `benchmarks/gpu/installed.txt` lists the packages that are expected to be
there. If others are, save the output of `pip list --format=freeze` there, and pass the file as --installed.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
INSTALLED = ROOT / "benchmarks" / "gpu" / "installed.txt"
ROOTS = ("nemo-toolkit", "py3langid", "pydantic-settings", "requests", "silero-vad", "soundfile", "soxr", "tenacity")
LEFT_OUT = ("aistore", "wandb")  # a store of training data, and a tracker of training
PYTHON = "3.12"  # that of the lock file
GLIBC = (39, 38, 36, 35, 34, 31, 28, 27, 24, 17)  # minor versions of glibc that wheels name, up to Ubuntu 24.04's
MIB = 2**20


class Locked(NamedTuple):
    """A package in the lock file."""

    pin: str
    """Its lines: the version and the hashes."""
    needed_by: frozenset[str]


def main() -> None:
    """Download the wheels, and report their size. Exit with a message if the pack is too large."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pack", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the wheels")
    parser.add_argument("--installed", type=Path, default=INSTALLED, help="file with the packages that are there")
    parser.add_argument("--limit-mib", type=float, default=64, help="most MiB of wheels and tree (default: 64)")
    arguments = parser.parse_args()
    locked = parse((ROOT / "requirements.lock").read_text())
    names = missing(locked, ROOTS, {*installed(arguments.installed.read_text()), *LEFT_OUT})
    download([locked[name].pin for name in names], arguments.out)
    wheels = sum(file.stat().st_size for file in arguments.out.glob("*.whl")) / MIB
    tree = sum((ROOT / name).stat().st_size for name in _tracked()) / MIB
    print(f"{len(names)} packages: {wheels:.1f} MiB of wheels, and {tree:.1f} MiB of tree")
    if wheels + tree > arguments.limit_mib:
        sys.exit(f"The pack exceeds {arguments.limit_mib:g} MiB. Raise --limit-mib, or install more there.")


def parse(lock: str) -> dict[str, Locked]:
    """Return the packages of a lock file by their names."""
    packages = {}
    for block in re.split(r"\n(?=[a-z0-9])", lock):
        if found := re.match(r"([a-z0-9._-]+)(?:\[.*?\])?==", block):
            lines = block.splitlines()
            notes = (re.sub(r"^\s*#\s*(via\b)?", "", line).strip() for line in lines if line.lstrip().startswith("#"))
            pin = "\n".join(line for line in lines if line.strip() and not line.lstrip().startswith("#"))
            packages[found[1]] = Locked(pin, frozenset(filter(None, notes)))
    return packages


def installed(listing: str) -> set[str]:
    """Return the names in a list of packages, one a line, with or without versions."""
    names = (re.split(r"[=<>@ ;\[]", line, maxsplit=1)[0] for line in listing.splitlines())
    return {re.sub(r"[-_.]+", "-", name).lower() for name in names if name and not name.startswith("#")}


def missing(locked: dict[str, Locked], roots: Iterable[str], without: set[str]) -> list[str]:
    """Return the names of all packages that the roots need, sorted, except `without` and what only those need."""
    found: set[str] = set()
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        if name not in found and name not in without:
            found.add(name)
            waiting += [other for other, package in locked.items() if name in package.needed_by]
    return sorted(found)


def download(pins: list[str], out: Path) -> None:
    """Download the wheels into an empty folder, checked by their hashes. A package that has no wheel is built here."""
    if out.is_dir() and any(out.iterdir()):
        sys.exit(f"{out} is not empty. Name a new folder.")
    platforms = [f"--platform=manylinux_2_{minor}_x86_64" for minor in GLIBC]
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder) / "requirements.txt"
        requirements.write_text("\n".join(pins) + "\n")
        where = ["--python-version", PYTHON, "--implementation", "cp", *platforms, "--platform=manylinux2014_x86_64"]
        _pip("download", "--no-deps", "--require-hashes", *where, "-d", str(out), "-r", str(requirements))
    for source in [file for file in out.iterdir() if file.suffix != ".whl"]:
        _pip("wheel", "--no-deps", "-w", str(out), str(source))
        source.unlink()
        if not list(out.glob(f"{re.split(r'-[0-9]', source.name)[0].replace('-', '_')}-*-none-any.whl")):
            sys.exit(f"{source.name} has no wheel, and the wheel that was built here runs on machines like this only.")


def _pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *arguments], check=True)


def _tracked() -> list[str]:
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], check=True, capture_output=True, text=True)
    return [name for name in listed.stdout.split("\0") if (ROOT / name).is_file()]


if __name__ == "__main__":
    main()
