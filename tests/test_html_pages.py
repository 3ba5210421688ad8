"""The documentation pages: served by this server alone, under a policy; a real browser draws every operation."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from serving import serving

from worker.config import Settings

pytest.importorskip("playwright.sync_api", reason="the pages' tests need playwright")
from playwright.sync_api import ConsoleMessage, Page, Route, expect, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PAGES = ["/docs", "/redoc", "/ui/"]
LINKED = re.compile(r'(?:src|href|spec-url)="([^"]+)"')


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[str]:
    """The base URL of a server that requires a key."""
    settings = Settings(skip_model_load=True, api_key="k", data_dir=tmp_path_factory.mktemp("data"))
    with serving(settings) as url:
        yield url


# Redoc shows its maker's logo from elsewhere. The policy stops the browser before it sends the request.
LOGO = "Loading the image 'https://cdn.redoc.ly/redoc/logo-mini.svg' violates the following Content Security Policy"


@pytest.fixture
def page(server) -> Iterator[Page]:
    """A page of a browser. At the end, no error was logged, and no request left for another host."""
    seen: list[str] = []

    def refuse(route: Route) -> None:
        seen.append(route.request.url)
        route.abort()

    def listen(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not message.text.startswith(LOGO):
            seen.append(message.text)

    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]) as browser,
    ):
        page = browser.new_context(base_url=server).new_page()
        page.route(lambda url: not url.startswith((f"{server}/", "blob:", "data:")), refuse)
        page.on("pageerror", lambda error: seen.append(str(error)))
        page.on("console", listen)
        yield page
        page.wait_for_load_state("networkidle")
    assert not seen


def operations(document: dict[str, Any]) -> list[tuple[str, str]]:
    """The method and the path of every operation."""
    return [(method, path) for path, methods in document["paths"].items() for method in methods]


@pytest.mark.parametrize("path", PAGES)
def test_a_page_has_a_policy_and_links_to_files_of_the_server_only(path, server):
    answer = httpx.get(server + path)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert not re.search(r"https?:", policy.replace("media-src 'self' data: blob: http: https:", ""))
    assert "'unsafe-eval'" not in policy
    assert "script-src" not in policy, "scripts are those of default-src: the server's own files"
    assert answer.headers["x-content-type-options"] == "nosniff"
    for link in LINKED.findall(answer.text):
        assert not re.match(r"\w+:|//", link), "an address that leaves the server"
        assert path == "/ui/" or not link.startswith("/"), "an address that loses the path that a proxy added"
        linked = httpx.get(httpx.URL(server + path).join(link))
        assert linked.status_code == 200, link


def test_scripts_of_the_pages_are_files(server):
    for path in PAGES:
        text = httpx.get(server + path).text
        assert re.findall(r"<script[^>]*>", text) == re.findall(r'<script[^>]* src="[^"]+"[^>]*>', text)
        assert not re.search(r"\son\w+=", text)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium found")
@pytest.mark.timeout(120)
def test_swagger_ui_shows_every_operation(page, server):
    page.goto("/docs")
    expected = operations(httpx.get(f"{server}/openapi.json").json())
    expect(page.locator(".opblock")).to_have_count(len(expected), timeout=30_000)
    shown = {
        (block.locator(".opblock-summary-method").inner_text().lower(), path.replace("\u200b", ""))
        for block in page.locator(".opblock").all()
        if (path := block.locator(".opblock-summary-path").get_attribute("data-path"))
    }
    assert shown == set(expected)
    page.locator(".opblock", has=page.locator("[data-path='/health/live']")).locator(".opblock-summary").click()
    page.get_by_role("button", name="Try it out").click()
    page.get_by_role("button", name="Execute").click()
    expect(page.locator(".live-responses-table td.response-col_status").nth(1)).to_contain_text("200")


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium found")
@pytest.mark.timeout(120)
def test_redoc_shows_every_operation(page, server):
    page.goto("/redoc")
    document = httpx.get(f"{server}/openapi.json").json()
    summaries = {document["paths"][path][method]["summary"] for method, path in operations(document)}
    expect(page.get_by_role("heading", name="Aviary")).to_be_visible(timeout=30_000)
    for summary in summaries:
        expect(page.get_by_role("heading", name=summary).first).to_be_attached()
