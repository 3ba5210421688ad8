"""`aviary mcp` with the client of the package mcp: over stdio and HTTP, on an engine of its own and on a server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from mcp import Client, StdioServerParameters
from mcp.server.mcpserver import MCPServer
from mcp_types import TextContent
from serving import serving

from worker.backends.dry_run import DryRun
from worker.config import Settings
from worker.entrypoints.mcp import local
from worker.entrypoints.mcp.local import LocalExecutor
from worker.entrypoints.mcp.server import Tools
from worker.errors import JobNotFound, QueueFull, WrongJobState
from worker.types import Batch, Output, Transcript

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
WEEK = str(ROOT / "samples" / "week.wav")
TOOLS = {"transcribe", "caption", "chat", "submit_job", "job_status", "job_result"}


def parameters(data: Path, *args: str, **environment: str) -> StdioServerParameters:
    values = {"PATH": os.environ["PATH"], "DATA_DIR": str(data), "ALLOWED_PATHS": str(ROOT)} | environment
    return StdioServerParameters(command=sys.executable, args=["-m", "worker", "mcp", *args], env=values, cwd=str(ROOT))


def ask(server: Any, use: Callable[[Client], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        async with Client(server, read_timeout_seconds=60) as client:
            return await use(client)

    return asyncio.run(asyncio.wait_for(run(), 120))


def texts(result: Any) -> list[str]:
    assert all(isinstance(one, TextContent) for one in result.content)
    return [one.text for one in result.content]


async def finished(client: Client, job_id: str) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while True:
        state = (await client.call_tool("job_status", {"job_id": job_id})).structured_content
        if state["status"] in ("completed", "failed", "cancelled") or time.monotonic() > deadline:
            return state
        await asyncio.sleep(0.05)


def test_pocketsphinx_over_stdio(tmp_path):
    async def use(client: Client) -> None:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert set(tools) == TOOLS
        assert all(tool.description and tool.output_schema for tool in tools.values())
        assert tools["transcribe"].input_schema["required"] == ["audio"]
        steps: list[tuple[float, float | None]] = []

        async def note(progress: float, total: float | None, message: str | None) -> None:
            steps.append((progress, total))

        result = await client.call_tool("transcribe", {"audio": WEEK, "timestamps": True}, progress_callback=note)
        assert not result.is_error
        assert texts(result) == ["see you next week"]
        content = result.structured_content
        assert (content["text"], content["language"], content["model"]) == ("see you next week", "en", "pocketsphinx")
        assert [word["text"] for word in content["words"]] == ["see", "you", "next", "week"]
        assert content["segments"][0]["start"] < content["segments"][0]["end"]
        assert content["duration_sec"] == pytest.approx(1.268)
        assert steps[-1] == (pytest.approx(1.268, abs=0.001), pytest.approx(1.268, abs=0.001))
        assert steps == sorted(steps)

        job_id = (await client.call_tool("submit_job", {"task": "transcribe", "audio": WEEK})).structured_content[
            "job_id"
        ]
        assert (await finished(client, job_id))["status"] == "completed"
        result = await client.call_tool("job_result", {"job_id": job_id})
        assert texts(result) == ["see you next week"]
        assert result.structured_content["job_id"] == job_id
        assert result.structured_content["result"]["text"] == "see you next week"

        unable = await client.call_tool("caption", {"audio": WEEK})
        assert unable.is_error
        assert "audio-flamingo" in texts(unable)[0]

    ask(parameters(tmp_path, MODEL="pocketsphinx"), use)


def test_every_tool_in_the_dry_run_and_the_errors_that_a_model_reads(tmp_path):
    outside = tmp_path / "outside.wav"
    outside.write_bytes(Path(WEEK).read_bytes())

    async def use(client: Client) -> None:
        caption = await client.call_tool("caption", {"audio": WEEK, "style": "brief"})
        assert texts(caption) == ["[dry-run] caption of 1.27 s"]
        assert caption.structured_content["caption"] == "[dry-run] caption of 1.27 s"
        reply = await client.call_tool("chat", {"audio": WEEK, "question": "What is said?", "system": "Be brief."})
        assert reply.structured_content["finish_reason"] == "stop"
        job = await client.call_tool("submit_job", {"task": "chat", "audio": WEEK, "question": "What?"})
        job_id = job.structured_content["job_id"]
        assert (await finished(client, job_id))["status"] == "completed"
        assert "chat" in texts(await client.call_tool("job_result", {"job_id": job_id}))[0]

        failed = (await client.call_tool("submit_job", {"task": "caption", "audio": str(outside)})).structured_content
        state = await finished(client, failed["job_id"])
        assert state["status"] == "failed"
        assert "ALLOWED_PATHS" in state["error"]
        for tool, arguments, reason in (
            ("transcribe", {"audio": str(outside)}, "source_forbidden"),
            ("transcribe", {"audio": str(ROOT / "none.wav")}, "source_not_found"),
            ("transcribe", {"audio": WEEK, "model": "none-such"}, "model_not_found"),
            ("transcribe", {"audio": WEEK, "language": "klingon"}, "invalid_request"),
            ("transcribe", {}, "audio"),
            ("chat", {"audio": WEEK, "question": ""}, "question"),
            ("submit_job", {"task": "chat", "audio": WEEK}, "question"),
            ("submit_job", {"task": "caption", "audio": WEEK, "question": "What?"}, "question"),
            ("job_status", {"job_id": "none"}, "job_not_found"),
            ("job_result", {"job_id": failed["job_id"]}, "source_forbidden"),
        ):
            result = await client.call_tool(tool, arguments)
            assert result.is_error, tool
            assert reason in texts(result)[0], (tool, texts(result))

    ask(parameters(tmp_path / "data", SKIP_MODEL_LOAD="1"), use)


@pytest.mark.parametrize("key", ["", "secret"])
def test_a_server_runs_the_requests(tmp_path, key):
    outside = tmp_path / "outside.wav"
    outside.write_bytes(Path(WEEK).read_bytes())

    async def use(client: Client) -> None:
        result = await client.call_tool("transcribe", {"audio": WEEK, "timestamps": True})
        assert texts(result) == ["see you next week"]
        assert [word["text"] for word in result.structured_content["words"]] == ["see", "you", "next", "week"]
        assert result.structured_content["model"] == "pocketsphinx"
        job = await client.call_tool("submit_job", {"task": "transcribe", "audio": WEEK})
        job_id = job.structured_content["job_id"]
        assert (await finished(client, job_id))["status"] == "completed"
        result = await client.call_tool("job_result", {"job_id": job_id})
        assert result.structured_content["result"]["text"] == "see you next week"
        refused = await client.call_tool("transcribe", {"audio": str(outside)})
        assert refused.is_error
        assert "source_forbidden" in texts(refused)[0]
        unknown = await client.call_tool("job_status", {"job_id": "none"})
        assert "job_not_found" in texts(unknown)[0]
        asked = await client.call_tool("chat", {"audio": WEEK, "question": "What is said?"})
        assert asked.is_error
        assert "audio-flamingo" in texts(asked)[0]

    settings = Settings(model="pocketsphinx", data_dir=tmp_path / "data", api_key=key or None)
    with serving(settings, wait=not key) as url:
        more = ("--api-key", key) if key else ()
        ask(parameters(tmp_path / "mcp", "--url", url, *more), use)


def test_an_unreachable_server_is_an_error_of_the_tool(tmp_path):
    async def use(client: Client) -> None:
        result = await client.call_tool("submit_job", {"task": "transcribe", "audio": WEEK})
        assert result.is_error
        assert "server_unreachable" in texts(result)[0]

    ask(parameters(tmp_path, "--url", "http://127.0.0.1:9"), use)


def test_a_call_that_the_client_cancels_is_dropped(tmp_path, monkeypatch):
    started, dropped = threading.Event(), threading.Event()

    def infer(_self: DryRun, batch: Batch) -> list[Output]:
        started.set()
        deadline = time.monotonic() + 20
        while not all(piece.cancelled() for piece in batch.pieces):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        dropped.set()
        return [Transcript("") for _ in batch.pieces]

    monkeypatch.setattr(DryRun, "infer", infer)

    async def run() -> None:
        executor = LocalExecutor(Settings(skip_model_load=True, data_dir=tmp_path, allowed_paths=(ROOT,)))
        server = MCPServer("test")
        tools = Tools(lambda: executor)
        server.add_tool(tools.transcribe)
        async with Client(server) as client:
            call = asyncio.create_task(client.call_tool("transcribe", {"audio": WEEK}))
            assert await asyncio.to_thread(started.wait, 20)
            call.cancel()
            assert await asyncio.to_thread(dropped.wait, 20)
        await tools.close()

    asyncio.run(asyncio.wait_for(run(), 60))


def test_jobs_are_bounded_and_a_job_that_runs_has_no_result(tmp_path, monkeypatch):
    go_on = threading.Event()

    def infer(_self: DryRun, batch: Batch) -> list[Output]:
        assert go_on.wait(20)
        return [Transcript("done") for _ in batch.pieces]

    monkeypatch.setattr(DryRun, "infer", infer)
    monkeypatch.setattr(local, "KEPT", 1)

    async def run() -> None:
        executor = LocalExecutor(Settings(skip_model_load=True, data_dir=tmp_path, allowed_paths=(ROOT,), max_queue=1))
        first = await executor.submit("transcribe", WEEK, {})
        assert (await executor.status(first))["status"] == "processing"
        with pytest.raises(WrongJobState, match="no result yet"):
            await executor.result(first)
        with pytest.raises(QueueFull, match="MAX_QUEUE"):
            await executor.submit("transcribe", WEEK, {})
        go_on.set()
        jobs = [first]
        for _ in range(2):
            while (await executor.status(jobs[-1]))["status"] == "processing":
                await asyncio.sleep(0.01)
            jobs.append(await executor.submit("transcribe", WEEK, {}))
        with pytest.raises(JobNotFound):
            await executor.status(jobs[0])
        assert (await executor.status(jobs[1]))["status"] == "completed"
        await executor.close()

    asyncio.run(asyncio.wait_for(run(), 60))


def test_streamable_http_on_loopback(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "worker", "mcp", "--http", str(port)],
        cwd=ROOT,
        env=os.environ | {"SKIP_MODEL_LOAD": "1", "DATA_DIR": str(tmp_path)},
    )
    try:
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.1)

        async def use(client: Client) -> Any:
            return await client.call_tool("caption", {"audio": WEEK})

        for _ in range(2):  # two sessions share one engine
            assert texts(ask(f"http://127.0.0.1:{port}/mcp", use)) == ["[dry-run] caption of 1.27 s"]
        for name, value in (("host", "page.example"), ("origin", "http://page.example"), ("origin", "null")):
            answer = httpx.post(f"http://127.0.0.1:{port}/mcp", json={}, headers={name: value})
            assert answer.status_code in (403, 421), "a page of another site could use the tools"
    finally:
        process.terminate()
        process.wait(30)


def run(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *args],
        cwd=ROOT,
        env=os.environ | environment,
        input="",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_without_the_package_the_command_says_what_to_install():
    hidden = "import sys; sys.modules['mcp'] = None; from worker.entrypoints.cli import main; sys.exit(main(['mcp']))"
    done = run("-c", hidden)
    assert done.returncode == 2
    assert "pip install 'aviary-worker[mcp]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("args", [("--model", "none-such"), ("--url", "no address")])
def test_mistakes_end_the_command_before_it_serves(args):
    done = run("-m", "worker", "mcp", *args)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_the_command_ends_when_stdin_does(tmp_path):
    done = run("-m", "worker", "mcp", SKIP_MODEL_LOAD="1", DATA_DIR=str(tmp_path))
    assert (done.returncode, done.stdout) == (0, "")


def test_importing_the_server_loads_no_model_library():
    heavy = "{'torch', 'nemo', 'transformers', 'onnxruntime', 'fastapi'}"
    code = f"import sys; import worker.entrypoints.mcp.server; assert not {heavy} & set(sys.modules)"
    assert run("-c", code).returncode == 0
