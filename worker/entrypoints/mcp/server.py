"""The tools, and the transports.

    client ── stdio, or streamable HTTP on loopback ──▶ tools ──▶ Executor ──▶ text and structured content

The executor is opened once the transport has the standard streams: what the engine and its processes print goes to
stderr. A request that the client cancels is dropped. Progress is in seconds of audio.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Annotated, Any

import anyio
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import CallToolResult, TextContent, ToolAnnotations
from pydantic import Field

from worker import __version__
from worker.entrypoints.mcp import results
from worker.entrypoints.mcp.executor import Executor, Json, Report, Task
from worker.errors import AviaryError, RequestError

LOOPBACK = "127.0.0.1"
INSTRUCTIONS = (
    "Aviary transcribes speech, describes sounds and music, and answers questions about audio. Name audio by a path or "
    "a URL. For audio of more than some minutes, submit a job and ask for its status."
)
_READS = ToolAnnotations(read_only_hint=True, open_world_hint=True)
_WRITES = ToolAnnotations(read_only_hint=False, destructive_hint=False, open_world_hint=True)

Audio = Annotated[str, Field(description="path of a file, or an http, https, s3 or data URL", min_length=1)]
Model = Annotated[str | None, Field(description="alias or id of a model; default: the server's")]
Language = Annotated[str | None, Field(description="spoken language, such as en; default: detected")]
Target = Annotated[str | None, Field(description="language of the text, if it differs from the spoken one")]
Times = Annotated[bool, Field(description="whether to return the times of words and segments")]
Prompt = Annotated[str | None, Field(description="instruction in place of the default one; Whisper: words to expect")]
Style = Annotated[str | None, Field(description="detailed (default), brief or technical")]
Question = Annotated[str | None, Field(description="the question to answer")]
System = Annotated[str | None, Field(description="instructions to the chat model, before the question")]
JobId = Annotated[str, Field(description="the id that submit_job returned")]
_Context = Context[Any, Any]


class Tools:
    """The tools. `make` opens their executor, once."""

    def __init__(self, make: Callable[[], Executor]) -> None:
        self._make = make
        self._opening = anyio.Lock()
        self._executor: Executor | None = None

    async def executor(self) -> Executor:
        """Return the executor. Raises AviaryError if it cannot be opened."""
        async with self._opening:
            if self._executor is None:
                self._executor = await asyncio.to_thread(self._make)
            return self._executor

    async def close(self) -> None:
        """Close the executor."""
        if self._executor is not None:
            await self._executor.close()

    async def transcribe(
        self,
        audio: Audio,
        ctx: _Context,
        language: Language = None,
        target_language: Target = None,
        prompt: Prompt = None,
        model: Model = None,
        *,
        timestamps: Times = False,
    ) -> Annotated[CallToolResult, results.Transcription]:
        """Transcribe speech. With target_language, translate it."""
        options = _set(
            language=language,
            target_language=target_language,
            prompt=prompt,
            timestamps=timestamps or None,
            model=model,
        )
        return _content(*results.transcription(await self._run("transcribe", audio, options, ctx)))

    async def caption(
        self, audio: Audio, ctx: _Context, style: Style = None, prompt: Prompt = None, model: Model = None
    ) -> Annotated[CallToolResult, results.Description]:
        """Describe a sound, a scene or a piece of music in words."""
        options = _set(style=style, prompt=prompt, model=model)
        return _content(*results.description(await self._run("caption", audio, options, ctx)))

    async def chat(
        self, audio: Audio, question: Question, ctx: _Context, system: System = None, model: Model = None
    ) -> Annotated[CallToolResult, results.Reply]:
        """Answer a question about audio."""
        options = _set(messages=_messages(question, system), model=model)
        return _content(*results.reply(await self._run("chat", audio, options, ctx)))

    async def submit_job(
        self,
        task: Task,
        audio: Audio,
        language: Language = None,
        target_language: Target = None,
        prompt: Prompt = None,
        style: Style = None,
        question: Question = None,
        system: System = None,
        model: Model = None,
        *,
        timestamps: Times = False,
    ) -> Annotated[CallToolResult, results.JobAccepted]:
        """Start a job, and return its id at once. Each task takes the options of the tool with its name."""
        options = _set(
            language=language,
            target_language=target_language,
            prompt=prompt,
            style=style,
            timestamps=timestamps or None,
            model=model,
            messages=_messages(question, system) if task == "chat" else None,
        )
        if task != "chat" and (question or system):
            raise ToolError(f"question and system belong to the task chat, not to {task}. Leave them out.")
        with _tool_errors():
            job_id = await (await self.executor()).submit(task, audio, options)
        return _content(f"The job {job_id} is submitted. Ask for its status with job_status.", {"job_id": job_id})

    async def job_status(self, job_id: JobId) -> Annotated[CallToolResult, results.JobState]:
        """Return how far a job has come."""
        with _tool_errors():
            state = await (await self.executor()).status(job_id)
        reason = f": {state['error']}" if state["error"] else ""
        return _content(f"The job {job_id} is {state['status']}{reason}.", state)

    async def job_result(self, job_id: JobId) -> Annotated[CallToolResult, results.JobResult]:
        """Return the result of a completed job."""
        with _tool_errors():
            _task, result = await (await self.executor()).result(job_id)
        text, shape = results.of_any(result)
        return _content(text, {"job_id": job_id, "result": shape})

    async def _run(self, task: Task, audio: str, options: Json, ctx: _Context) -> Json:
        report: Report = ctx.report_progress
        with _tool_errors():
            return await (await self.executor()).run(task, audio, options, report)


def serve(make: Callable[[], Executor], port: int | None = None) -> None:
    """Serve until the client closes stdin, or on a port of the loopback address until a signal.

    `make` opens the executor, and raises AviaryError if it cannot.
    """
    tools = Tools(make)

    @contextlib.asynccontextmanager
    async def lifespan(_server: MCPServer[None]) -> AsyncIterator[None]:
        with contextlib.suppress(AviaryError):  # the first tool that is called reports the error
            await tools.executor()
        yield

    server = MCPServer("aviary", version=__version__, instructions=INSTRUCTIONS, lifespan=lifespan, log_level="WARNING")
    for tool in (tools.transcribe, tools.caption, tools.chat, tools.job_status, tools.job_result):
        server.add_tool(tool, annotations=_READS)
    server.add_tool(tools.submit_job, annotations=_WRITES)

    async def run() -> None:
        try:
            if port is None:
                await server.run_stdio_async()
            else:
                await server.run_streamable_http_async(host=LOOPBACK, port=port)
        finally:
            await tools.close()

    anyio.run(run)


def _set(**options: Any) -> Json:
    """Return the options that are set."""
    return {name: value for name, value in options.items() if value is not None and value != ""}


def _messages(question: str | None, system: str | None) -> list[Json]:
    if not question:
        raise ToolError("question is missing: the task chat answers one")
    turns = [{"role": "system", "content": system}] if system else []
    return [*turns, {"role": "user", "content": question}]


def _content(text: str, shape: Json) -> CallToolResult:
    """Return the result of a tool: its text, its warning as a second text, and its structured content."""
    texts = [text, *([f"Warning: {shape['warning']}"] if "warning" in shape else [])]
    return CallToolResult(content=[TextContent(type="text", text=one) for one in texts], structured_content=shape)


@contextlib.contextmanager
def _tool_errors() -> Iterator[None]:
    """Let the model read the errors of the worker: their code and their message."""
    try:
        yield
    except RequestError as error:
        raise ToolError(f"{error.code}: {error.message}") from error
    except AviaryError as error:
        later = " The same call may succeed later." if error.retryable else ""
        raise ToolError(f"{error.code}: {error.message}{later}") from error
