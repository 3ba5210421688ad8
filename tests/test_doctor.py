"""The doctor: what it finds on a machine that is well, and what it says to do where one is not."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from conftest import MODEL

from worker.entrypoints.cli import doctor
from worker.entrypoints.cli.doctor import finding, machine, weights

ROOT = Path(__file__).resolve().parent.parent
OFF = {"MODEL": "pocketsphinx", "HF_HUB_OFFLINE": "1"}


@pytest.fixture
def find(monkeypatch) -> Callable[..., dict[str, doctor.Finding]]:
    """The findings in an environment, by what they are about; of several the last."""

    def look(model: str | None = None, **environment: str) -> dict[str, doctor.Finding]:
        for name, value in {**OFF, **environment}.items():
            monkeypatch.setenv(name, value)
        return {found.subject: found for found in doctor.findings(model)}

    return look


def aviary(*typed: str, before: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """`aviary doctor` in a process where `before` is run first."""
    code = f"import sys; {before}\nfrom worker.entrypoints.cli import main; sys.exit(main(['doctor', *sys.argv[1:]]))"
    return subprocess.run(
        [sys.executable, "-c", code, *typed],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", **OFF, **environment},
    )


def test_a_machine_that_is_well(find):
    found = find()
    assert list(found) == ["Python", "packages", "settings", "ffmpeg", "device", "disk", "model", "hashes", "S3"]
    assert all(one.ok for one in found.values()), found
    assert found["ffmpeg"].state.startswith("ffmpeg version")
    assert "GiB free" in found["disk"].state


def test_the_command_works_without_torch_and_finds_no_problems():
    done = aviary(
        before="sys.modules['torch'] = None; sys.meta_path.insert(0, type('No', (), {'find_spec': staticmethod("
        "lambda name, *_: (_ for _ in ()).throw(ImportError(name)) if name == 'torch' else None)}))"
    )
    assert "torch" not in done.stderr
    lines = done.stdout.splitlines()
    assert (done.returncode, lines[-1]) == (0, "No problems found"), done.stdout
    assert sum(line.startswith("ok ") for line in lines) == 9


def test_the_command_ends_with_1_where_there_is_a_problem_and_says_what_to_do():
    done = aviary("--model", "parakeet", DTYPE="float8")
    assert done.returncode == 1
    assert "problem  settings  DTYPE='float8' is not allowed" in done.stdout
    assert "-> Correct the setting" in done.stdout
    assert done.stdout.endswith("1 problem found\n")


def test_a_missing_package_is_named_not_raised():
    done = aviary(before="sys.modules['pydantic_settings'] = None")
    assert done.returncode == 1
    assert done.stderr == ""
    assert "problem  settings" in done.stdout


def test_packages_that_are_missing_or_of_another_version(monkeypatch):
    real = machine.metadata.version
    monkeypatch.setattr(
        machine.metadata,
        "version",
        lambda name: {"numpy": "1.26.4"}.get(name) or real("nonesuch" if name == "soxr" else name),
    )
    (found,) = machine.packages()
    assert found.state == "numpy (1.26.4, not <2.6,>=2.0), soxr (missing, not <2,>=0.5)"
    assert "requirements-base.txt" in found.advice


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """The package as pip installs it: with its metadata, without the requirements files of a checkout."""
    listed = [*requirements("requirements-base.txt"), 'nemo_toolkit[asr]==1.0; extra == "nemo"']
    monkeypatch.setattr(machine.metadata, "requires", lambda name: listed)
    monkeypatch.setattr(finding.child, "ROOT", tmp_path)


def requirements(name: str) -> list[str]:
    lines = (ROOT / name).read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_packages_of_an_installed_package(monkeypatch, installed):
    (found,) = machine.packages()
    assert found.ok, found
    assert found.state.endswith("of aviary-worker")
    monkeypatch.setattr(machine, "_version", lambda name: None)
    (found,) = machine.packages()
    assert found.advice == "Run pip install --upgrade aviary-worker"
    assert "nemo" not in found.state


@pytest.mark.parametrize(("model", "extra"), [("parakeet", "nemo"), ("canary", "nemo"), ("whisper", "transformers")])
def test_what_a_model_lacks_is_installed_by_file_or_by_extra(find, monkeypatch, request, tmp_path, model, extra):
    home = {"HF_HOME": str(tmp_path), "HOME": str(tmp_path)}
    for module in (machine, weights):
        monkeypatch.setattr(module, "importable", lambda name: False)
    findings = list(doctor.findings(model)) if find(model, **home) else []
    assert [one.advice for one in findings if one.advice and "equirements" in one.advice] == [
        "Install requirements.txt (for a CUDA GPU) or requirements-cpu.txt"
    ] * 2
    request.getfixturevalue("installed")
    said = [one.advice for one in doctor.findings(model) if one.advice]
    assert said[:2] == [f'Run pip install "aviary-worker[{extra}]"'] * 2
    assert not [one for one in said if "requirements" in one]


@pytest.mark.parametrize(
    ("model", "environment", "says"),
    [
        (str(MODEL), {}, f"weights in {MODEL}"),
        ("/nowhere/a.nemo", {}, "no such file: /nowhere/a.nemo"),
        ("parakeet", {}, "HF_HUB_OFFLINE forbids"),
        ("whisper", {"SKIP_MODEL_LOAD": "1"}, "a dry run"),
        ("nonesuch", {}, "unknown model"),
    ],
)
def test_the_model_s_weights(find, tmp_path, model, environment, says):
    found = find(model, HF_HOME=str(tmp_path), HOME=str(tmp_path), **environment)["model"]
    assert says in found.state
    assert found.ok == (model == str(MODEL) or "SKIP_MODEL_LOAD" in environment)


def test_a_model_that_is_not_known_is_nothing_to_install(find):
    found = find("nonesuch")["model"]
    assert found.state.startswith("unknown model 'nonesuch'")
    assert found.advice.startswith("Correct the setting")


def test_weights_in_model_dir(find, tmp_path):
    folder = tmp_path / "whisper-tiny"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    assert not find("whisper-tiny", MODEL_DIR=str(tmp_path), HF_HOME=str(tmp_path), HOME=str(tmp_path))["model"].ok
    (folder / "model.safetensors").touch()
    assert find("whisper-tiny", MODEL_DIR=str(tmp_path))["model"].state.endswith(f"weights in {folder}")


@pytest.mark.parametrize(
    ("code", "sign", "says", "advice"),
    [
        (403, "GatedRepo", "is gated", "Accept its license"),
        (401, "RepoNotFound", "is not on the hub, or is private", "HF_TOKEN"),
        (200, "", "it is downloaded from the hub at the first start", None),
        (None, "", "the hub cannot be reached", "MODEL_DIR"),
    ],
)
def test_what_the_hub_says_of_weights_that_are_not_here(tmp_path, code, sign, says, advice):
    class Hub(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(code)
            if sign:
                self.send_header("X-Error-Code", sign)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Hub) as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        port = hub.server_address[1] if code else 9
        try:
            done = aviary(
                "--model",
                "openai/whisper-tiny",
                HF_HUB_OFFLINE="0",
                HF_ENDPOINT=f"http://127.0.0.1:{port}",
                HF_HOME=str(tmp_path),
                before="sys.modules['torch'] = None",
            )
        finally:
            hub.shutdown()
            thread.join()
    at = next(number for number, line in enumerate(done.stdout.splitlines()) if " model " in line and says in line)
    assert advice is None or advice in done.stdout.splitlines()[at + 1]


def test_half_a_bucket_and_a_full_disk(find):
    found = find(BUCKET_NAME="clips", DATA_DIR="/dev/null/data", MAX_AUDIO_BYTES="1000")
    assert found["S3"].state == "BUCKET_ACCESS_KEY_ID and BUCKET_SECRET_ACCESS_KEY not set, but others are"
    assert not found["disk"].ok
    full = find(
        BUCKET_ACCESS_KEY_ID="a",
        BUCKET_SECRET_ACCESS_KEY="hidden",
        BUCKET_ENDPOINT_URL="http://127.0.0.1:9",
        DATA_DIR="/tmp",
        MAX_AUDIO_BYTES=str(10**18),
    )
    assert full["S3"].state == "bucket clips at http://127.0.0.1:9: the bucket cannot be used: ConnectionError"
    assert "404" in full["S3"].advice
    assert "hidden" not in str(full["S3"])
    assert "Free some space" in full["disk"].advice


@pytest.mark.slow
def test_a_device_that_is_not_there(find):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    found = find(DEVICE="cuda")["device"]
    assert "finds no CUDA device" in found.state
    assert not found.ok


@pytest.mark.slow
def test_a_gpu_that_torch_cannot_use(find, monkeypatch, tmp_path):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    smi = tmp_path / "nvidia-smi"
    smi.touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    found = find()["device"]
    assert found.state.startswith(f"torch {torch.__version__} cannot use this machine's GPU: ")
    assert "580 series" in found.advice
    assert find(DEVICE="cpu")["device"].ok


@pytest.mark.slow
def test_several_devices_are_counted(find):
    pytest.importorskip("torch")
    assert find(DEVICE="cpu,cpu")["device"].state.startswith("2 processes on the CPU")


def test_a_bucket_that_answers(find):
    import boto3
    from moto.server import ThreadedMotoServer

    store = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    store.start()
    try:
        url = "http://{}:{}".format(*store.get_host_and_port())
        boto3.client(
            "s3", endpoint_url=url, aws_access_key_id="k", aws_secret_access_key="s", region_name="us-east-1"
        ).create_bucket(Bucket="clips")
        keys = {"BUCKET_ENDPOINT_URL": url, "BUCKET_ACCESS_KEY_ID": "k", "BUCKET_SECRET_ACCESS_KEY": "s"}
        assert find(BUCKET_NAME="clips", **keys)["S3"] == doctor.Finding("S3", f"bucket clips at {url} responds")
        assert not find(BUCKET_NAME="others", **keys)["S3"].ok
    finally:
        store.stop()
