"""README.md and docs/ say what the code does: links, names, commands, requests and answers. `make lint` checks the
generated tables against the code; here their generator is checked."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import io
import json
import re
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from serving import serving

from tools import tables
from worker.catalog import MODELS
from worker.config import Settings
from worker.engine.engine import Engine
from worker.entrypoints.cli import arguments
from worker.entrypoints.http.app import create_app
from worker.entrypoints.runpod import RunpodWorker
from worker.errors import AviaryError
from worker.jobs.webhook import sign
from worker.protocol.request import parse

ROOT = Path(__file__).parent.parent
DOCS = sorted((ROOT / "docs").glob("*.md"))
# docs/adding-a-model.md has a test of its own, which follows the page.
PAGES = [ROOT / "README.md", *(page for page in DOCS if page.name != "adding-a-model.md")]
ADDRESS = "http://127.0.0.1:8000"

# Names in capitals that are not settings: build arguments, variables of libraries, states, an example's own.
OTHER_NAMES = {
    "BAKE_MODEL",
    "CUDA_VISIBLE_DEVICES",
    "GOMP_SPINCOUNT",
    "HF_TOKEN",
    "IN_PROGRESS",
    "IN_QUEUE",
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "RUNPOD_INIT_TIMEOUT",
    "RUN_AS",
    "SO_REUSEPORT",
}
# Python blocks that do not run, by a word in them, and what they need.
NOT_RUN = {
    "Client.runpod": "an account of Runpod",
    "api.runpod.ai": "an account of Runpod; tests/test_load_balancer.py runs OpenAI's client through a stand-in",
    "on_ray": "a Ray cluster; tests/test_manifest_ray.py runs on one",
}


def blocks(page: Path, *languages: str) -> list[str]:
    """The page's fenced code in these languages."""
    found = re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [code for language, code in found if language in languages]


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def spans() -> Iterator[tuple[str, str]]:
    """Every code span outside code blocks, with its page's name."""
    for page in PAGES:
        for span in re.findall(r"`([^`\n]+)`", prose(page)):
            yield page.name, span


def blocks_in(pages: list[Path], *languages: str) -> list[Any]:
    return [
        pytest.param(code, id=f"{page.stem}-{i}") for page in pages for i, code in enumerate(blocks(page, *languages))
    ]


# Links and names


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", [*ROOT.glob("*.md"), *DOCS, *ROOT.glob("benchmarks/*.md")], ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if "://" in target or target.startswith("mailto:"):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


def test_every_page_can_be_reached_from_the_readme():
    linked = set(re.findall(r"\]\(docs/([\w-]+\.md)", (ROOT / "README.md").read_text()))
    assert {page.name for page in DOCS} - linked <= {"index.md", "reference.md"}


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


def names_of(path: Path) -> set[str]:
    """The functions and classes of a file, and the methods as Class.method."""
    tree = ast.parse(path.read_text())
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    top = [node for node in tree.body if isinstance(node, kinds)]
    inner = [
        (node.name, one.name)
        for node in top
        if isinstance(node, ast.ClassDef)
        for one in node.body
        if isinstance(one, kinds)
    ]
    return {node.name for node in top} | {f"{cls}.{method}" for cls, method in inner}


def test_every_file_and_every_function_that_a_page_names_exists():
    folders = r"(?:worker|tools|tests|deploy|benchmarks|samples|docs)"
    named = [
        (page, *match) for page, span in spans() for match in re.findall(rf"^({folders}/[\w./-]*)(?::([\w.]+))?$", span)
    ]
    assert len(named) > 40
    for page, path, name in named:
        assert (ROOT / path).exists(), f"{page}: {path}"
        assert not name or name in names_of(ROOT / path), f"{page}: {path}:{name}"


def test_every_setting_that_a_page_names_exists():
    known = {name.upper() for name in Settings.model_fields} | OTHER_NAMES
    named = {(page, name) for page, span in spans() for name in re.findall(r"\b[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+\b", span)}
    assert len(named) > 60
    assert not {(page, name) for page, name in named if name not in known}


def test_every_thread_of_the_architecture_page_exists():
    page = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| (`[^|]+) \| (?:\d|4 ×)", page, re.MULTILINE)
    names = [re.sub(r"[A-Z]+$", "", name) for row in rows for name in re.findall(r"`([^`]+)`", row)]
    code = "\n".join(path.read_text() for path in (ROOT / "worker").rglob("*.py"))
    assert len(names) >= 12
    for name in names:
        assert re.search(rf"""(?:name|prefix)=f?"{name}""", code), name


def test_the_table_of_routes_is_the_servers(tmp_path):
    table = (ROOT / "docs" / "http.md").read_text().partition("## Routes")[2].partition("\n\n#")[0]
    listed = set(re.findall(r"`(?:GET |POST )?(/[\w/{}-]*)`", table))
    settings = Settings(skip_model_load=True, data_dir=tmp_path)
    with Engine(settings) as engine:
        routes = create_app(settings, engine).openapi()["paths"]
    assert listed == {re.sub(r"\{\w+(:path)?\}", "{name}", route) for route in [*routes, "/v1/realtime"]}


# The tables' generator


def subclasses(kind: type[AviaryError]) -> Iterator[type[AviaryError]]:
    for sub in kind.__subclasses__():
        yield sub
        yield from subclasses(sub)


def test_every_setting_stands_once_in_the_table():
    listed = re.findall(r"^\| `(\w+)` \|", tables.settings(), re.MULTILINE)
    assert sorted(listed) == sorted(name.upper() for name in Settings.model_fields if name not in tables.SET_BY_RUNPOD)
    assert "None" not in tables.settings()


def test_every_model_stands_once_in_the_table():
    assert re.findall(r"\| `([^`]+)` \| [a-z, ]+ \|", tables.models()) == [model.id for model in MODELS]
    for model in MODELS:
        assert f"`{model.name}`" in tables.model_options()


def test_every_error_code_stands_in_the_table():
    codes = {kind.code for kind in subclasses(AviaryError) if kind.__module__ == AviaryError.__module__}
    assert codes == set(re.findall(r"^\| `(\w+)` \|", tables.errors(), re.MULTILINE))
    assert "|  |" not in tables.errors(), "a class without a docstring"


def test_every_field_of_a_request_has_a_meaning():
    assert tables.request_fields().count("\n| `") > 15
    assert "|  |" not in tables.request_fields()


def test_every_command_has_its_help():
    titles = set(re.findall(r"^## aviary ?(\w*)$", tables.commands(), re.MULTILINE))
    assert {"", "transcribe", "manifest", "serve", "doctor"} <= titles
    assert tables.commands() == tables.commands()


# Commands and settings


@pytest.mark.parametrize("code", blocks_in(PAGES, "bash"))
def test_every_command_has_the_flags_that_it_is_given(code):
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        variables = [word.partition("=")[0] for word in words if re.match(r"[A-Z_]+=", word)]
        assert {name.lower() for name in variables} <= set(Settings.model_fields) | {"args"}
        if "worker" in words and words[words.index("worker") - 1] == "-m":
            arguments.parser().parse_args(words[words.index("worker") + 1 :])


@pytest.mark.parametrize("text", blocks(ROOT / "docs" / "settings.md", "yaml"))
def test_the_configuration_files_can_be_read(text, tmp_path):
    path = tmp_path / "aviary.yaml"
    path.write_text(text)
    assert Settings.of(path).model_fields_set
    assert yaml.safe_load(text)


# Requests and answers


@pytest.mark.parametrize("text", blocks_in(PAGES, "json"))
def test_every_piece_of_json_is_json(text):
    json.loads(text)


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[str]:
    settings = Settings(
        model="pocketsphinx",
        data_dir=tmp_path_factory.mktemp("data"),
        allowed_paths=(ROOT,),
        decode_workers=2,
        allow_private_urls=True,
        webhook_secret="secret",
    )
    with serving(settings) as url:
        yield url


def curl(command: str, url: str) -> httpx.Response:
    """What `curl -F name=value … address` sends, or a GET."""
    words = shlex.split(command.replace("\\\n", " ").replace(ADDRESS, url))
    assert words[0] == "curl"
    fields = [words[i + 1].split("=", 1) for i, word in enumerate(words) if word == "-F"]
    files = {name: (Path(value).name, (ROOT / value[1:]).read_bytes()) for name, value in fields if value[0] == "@"}
    data = {name: value for name, value in fields if value[0] != "@"}
    return httpx.post(words[-1], data=data, files=files) if fields else httpx.get(words[-1])


def examples(page: str) -> list[tuple[str, str]]:
    """Each curl command of a page, with the answer that follows it."""
    text = (ROOT / page).read_text()
    return re.findall(r"```bash\n(curl [^`]*)```\n[^`]*```(?:json|text)\n([^`]*)```", text)


@pytest.mark.parametrize("page", ["README.md", "docs/http.md", "docs/errors.md"])
def test_the_server_responds_as_the_page_shows(page, server):
    assert examples(page)
    for command, shown in examples(page):
        answer = curl(command, server)
        assert answer.text.strip() == shown.strip() or answer.json() == json.loads(shown)


def test_a_job_goes_as_the_page_shows(server):
    (submit, submitted), (ask, result) = examples("docs/jobs.md")
    job, shown = curl(submit, server).json(), json.loads(submitted)
    assert job | {"job_id": shown["job_id"]} == shown
    deadline = time.monotonic() + 30
    while (answer := curl(ask.replace(shown["job_id"], job["job_id"]), server)).status_code != 200:
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.05)
    expected = json.loads(result)
    assert answer.json() | {"timestamp": expected["timestamp"]} == expected


def test_the_payload_gives_the_answer_that_the_page_shows(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    payload, shown = map(json.loads, blocks(ROOT / "docs" / "payload.md", "json")[:2])
    settings = Settings(model="pocketsphinx", data_dir=tmp_path, decode_workers=2)
    with Engine(settings) as engine:
        answer = asyncio.run(RunpodWorker(settings, engine).handle({"id": "docs", **payload}))
    assert answer.pop("timing").keys() == shown.pop("timing").keys()
    assert answer == shown


def test_every_payload_of_the_page_is_accepted(monkeypatch):
    payloads = [
        payload["input"]
        for payload in map(json.loads, blocks(ROOT / "docs" / "payload.md", "json"))
        if "input" in payload
    ]
    plain = [
        payload
        for payload in payloads
        if not {"openai_route", "route"} & payload.keys() and payload.get("task") not in ("evaluate", "score")
    ]
    assert len(plain) > 1
    for payload in plain:
        assert not parse(payload, Settings(model="pocketsphinx")).rejected


def runnable() -> list[Any]:
    found = blocks_in(PAGES, "python")
    return [one for one in found if not any(word in one.values[0] for word in NOT_RUN)]


@pytest.mark.parametrize("code", runnable())
def test_the_python_of_a_page_runs(code, server, tmp_path, monkeypatch):
    (tmp_path / "samples").symlink_to(ROOT / "samples")
    (tmp_path / "data.jsonl").write_text('{"audio_filepath": "samples/week.wav", "speaker": 7}\n')
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code.replace(ADDRESS, server), "<docs>", "exec"), names)
    for expected in re.findall(r"print\(.*\)  *# (.+)$", code, re.MULTILINE):
        assert expected in printed.getvalue()
    if "is_genuine" in names:
        assert names["is_genuine"](sign("secret", b"{}", 1), b"{}", "secret")
        assert not names["is_genuine"](sign("other", b"{}", 1), b"{}", "secret")
    if "process_manifest" in names:
        shown = blocks(ROOT / "docs" / "python.md", "json")[-1]
        assert (tmp_path / "enriched" / "data.transcribe.jsonl").read_text() == shown
