"""The rows of this benchmark: what each row holds, and the machine and the libraries that it was measured on."""

from __future__ import annotations

import datetime
import importlib.metadata
import shutil
import subprocess
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

Values = Mapping[str, Any]


class Result(NamedTuple):
    """A row. `kept` says whether the promise is kept; None if the values are reported, not promised."""

    what: str
    values: Values
    """Numbers by name, with the unit at the end of the name. A name with None is left out: it could not be measured."""
    promised: str = "reported"
    kept: bool | None = None


HEADING = "| what | measured | promised | kept |\n|---|---|---|---|"


def line(result: Result) -> str:
    """Return the row as a line of a Markdown table."""
    kept = "–" if result.kept is None else "yes" if result.kept else "no"
    return f"| {result.what} | {measured(result)} | {result.promised} | {kept} |"


def measured(result: Result) -> str:
    """Return the values as text."""
    return ", ".join(_text(name, value) for name, value in result.values.items() if value is not None)


def attempt(
    what: str,
    measure: Callable[[], Values],
    promised: str = "reported",
    keeps: Callable[[Values], bool] = lambda values: False,
) -> Result:
    """Return the row with the values that `measure` returns, or with the reason if it fails, so that others follow.

    promised: what `keeps` checks the values for, if they are promised.
    """
    try:
        values = measure()
    except Exception as error:
        return failure(what, error)
    return Result(what, values, promised, None if promised == "reported" else keeps(values))


def failure(what: str, error: Exception) -> Result:
    """Return the row of a measurement that failed."""
    reason = (str(error).strip().splitlines() or [""])[0][:200]
    return Result(what, {"failed": f"{type(error).__name__}: {reason}"})


def not_run(what: str, reason: str) -> Result:
    """Return the row of a measurement that did not run."""
    return Result(what, {"not run": reason})


def context(device: str) -> dict[str, Any]:
    """Return what a row must name so that it can be compared: the device, the libraries and the date."""
    import torch

    from worker.backends.common.device import dtype_of
    from worker.config import Settings

    on_gpu = device.startswith("cuda")
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "device": torch.cuda.get_device_name(device) if on_gpu else "cpu",
        "dtype": str(dtype_of(Settings(device=device), torch.device(device))).removeprefix("torch."),
        "driver": _driver() if on_gpu else None,
        "cuda": torch.version.cuda if on_gpu else None,
        **{name: _version(name) for name in ("torch", "nemo_toolkit", "transformers")},
    }


def _text(name: str, value: Any) -> str:
    if isinstance(value, str):
        return f"{name}: {value}"
    if isinstance(value, float):
        return f"{name} {value:,.0f}" if value >= 1000 else f"{name} {value:.3g}"
    return f"{name} {value:,}"


def _driver() -> str | None:
    """Return the version of the driver, or None if nvidia-smi is not there or fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    return done.stdout.split("\n")[0].strip() or None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
