"""No command that a person may copy publishes an API without a key beyond loopback; the image's health check."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from serving import serving

from worker.config import Settings
from worker.entrypoints.http import healthcheck

ROOT = Path(__file__).resolve().parent.parent
TEXTS = [
    path
    for pattern in (
        "*.md",
        "docs/*.md",
        "examples/*",
        "benchmarks/*.md",
        "deploy/*",
        "Dockerfile",
        "Makefile",
        ".runpod/*",
    )
    for path in sorted(ROOT.glob(pattern))
    if path.is_file()
] + sorted(path for path in (ROOT / "worker").rglob("*.py"))
PUBLISHED = re.compile(r"(?:-p|--publish)[ =](\S+)")


def commands(text: str) -> Iterator[str]:
    """The lines of a text, with continued lines joined and without the signs of comments."""
    joined = re.sub(r"\\\n[\s#]*", " ", text)
    yield from (line.strip(" #`") for line in joined.splitlines())


def offence(command: str) -> str | None:
    """Why a command publishes an API without a key, or None."""
    ports = PUBLISHED.findall(command) if "docker" in command else []
    wide = [port for port in ports if not re.match(r"127\.0\.0\.1:|\[::1\]:", port)]
    inside = "docker" in command
    if "--rp_serve_api" in command or "--rp_api_host" in command:
        if wide:
            return "publishes the SDK's API, which has no keys"
        if not inside and re.search(r"--rp_api_host[ =](?!127\.0\.0\.1|localhost)", command):
            return "binds the SDK's API, which has no keys"
    elif wide and not re.search(r"-e API_KEY\b", command):
        return "publishes the server without API_KEY"
    if re.search(r"API_KEY=off", command):
        return "switches keys off"
    return None


@pytest.mark.parametrize(
    ("command", "is_safe"),
    [
        ("docker run -p 8000:8000 aviary python handler.py --rp_serve_api --rp_api_host 0.0.0.0", False),
        ("docker run -p 8000:8000 -e API_KEY aviary python handler.py --rp_serve_api --rp_api_host 0.0.0.0", False),
        ("docker run -p 127.0.0.1:8000:8000 aviary python handler.py --rp_serve_api --rp_api_host 0.0.0.0", True),
        ("docker run -p 8000:8000 aviary python -m worker serve --host 0.0.0.0", False),
        ("docker run --publish=8000:8000 aviary python -m worker serve --host 0.0.0.0", False),
        ("docker run -p 8000:8000 -e API_KEY=off aviary python -m worker serve --host 0.0.0.0", False),
        ("docker run -p 8000:8000 -e API_KEY aviary python -m worker serve --host 0.0.0.0", True),
        ("python handler.py --rp_serve_api --rp_api_host 0.0.0.0", False),
        ("python handler.py --rp_serve_api", True),
    ],
)
def test_an_open_api_is_recognized(command, is_safe):
    assert (offence(command) is None) is is_safe


def test_no_documented_command_publishes_an_open_api():
    assert len(TEXTS) > 100
    found = {
        (str(path.relative_to(ROOT)), reason, command)
        for path in TEXTS
        for command in commands(path.read_text(encoding="utf-8"))
        if re.match(r"(?:[A-Z_]+=\S+ )*(?:docker|python|aviary|\.venv/bin/)", command) and (reason := offence(command))
    }
    assert not found


# The health check


@pytest.fixture
def port() -> Iterator[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        yield free.getsockname()[1]


def check(port: int) -> int:
    """Run the check as the image does, and return its exit code."""
    command = [sys.executable, "-I", str(ROOT / "worker/entrypoints/http/healthcheck.py"), str(port)]
    return subprocess.run(command, check=False, timeout=60).returncode


def test_a_container_without_a_server_is_healthy(port):
    assert check(port) == 0


def test_a_server_that_responds_is_healthy(tmp_path):
    with serving(Settings(skip_model_load=True, api_key="k", data_dir=tmp_path)) as url:
        assert check(int(url.rpartition(":")[2])) == 0


def test_a_server_that_hangs_is_not_healthy(monkeypatch):
    monkeypatch.setattr(healthcheck, "TIMEOUT_SEC", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert not healthcheck.healthy(silent.getsockname()[1])


@pytest.mark.parametrize(("status", "is_healthy"), [(200, True), (404, True), (503, False)])
def test_a_server_that_reports_a_fault_is_not_healthy(status, is_healthy):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path == "/health/live"
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Stay silent."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert healthcheck.healthy(server.server_port) is is_healthy
        server.shutdown()


def test_the_image_runs_the_check():
    text = re.sub(r"\\\n\s*", " ", (ROOT / "Dockerfile").read_text(encoding="utf-8"))
    (command,) = re.findall(r"^HEALTHCHECK .*CMD (.+)$", text, re.MULTILINE)
    assert command == 'python /app/worker/entrypoints/http/healthcheck.py "${PORT:-8000}"'
    assert Path(healthcheck.__file__).relative_to(ROOT).as_posix() in command


def test_the_code_in_the_image_belongs_to_root():
    text = re.sub(r"\\\n\s*", " ", (ROOT / "Dockerfile").read_text(encoding="utf-8"))
    copies = [line for line in text.splitlines() if line.startswith("COPY ")]
    assert copies
    assert not any("--chown" in line or "--chmod" in line for line in copies)
    assert re.search(r"^RUN .*chmod -R a\+rX,go-w /app$", text, re.MULTILINE)
    assert not re.search(r"chown[^&\n]*/app", text)
    assert text.index("chmod -R a+rX,go-w /app") > text.index(copies[-1])
