"""A server with primer and tiny models of other kinds, and a browser that must report no error."""

from __future__ import annotations

import shutil

import pytest
from serving import Served
from tiny_encoder import tiny_encoder

from numllama.engine.settings import Settings
from numllama.language_model import LanguageModel
from tiny import tiny_gguf
from tiny_llava import tiny_mmproj

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="package")
def school(tmp_path_factory):
    """Start a server: primer, bare (no chat template), wide (a vocabulary as Llama 3's), moe (experts), encoder."""
    folder = tmp_path_factory.mktemp("gguf")
    server = Served(Settings(models=tmp_path_factory.mktemp("store")))
    for name, path in (
        ("bare", tiny_gguf(folder / "bare.gguf", seed=2)),
        ("wide", tiny_gguf(folder / "wide.gguf", quant="Q8_0", seed=4, n_vocab=128_256)),
        ("moe", tiny_gguf(folder / "moe.gguf", "qwen3moe", seed=3)),
        ("encoder", tiny_encoder(folder / "encoder.gguf")),
    ):
        server.add(name, path)
    files = tiny_gguf(folder / "seer.gguf", seed=1, n_ctx=2048), tiny_mmproj(folder / "mmproj.gguf")
    digests = {path.name: server.engine.store.put_blob([path.read_bytes()])[0] for path in files}
    list(server.engine.create("seer", files=digests))
    yield server
    server.close()


@pytest.fixture(scope="package")
def primer(school):
    """The same primer as the server's, at the front door: one engine.  It must be the first model there."""
    return LanguageModel(school.engine, "primer")


@pytest.fixture(scope="session")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs pip install '.[browser]'")
    path = next((found for name in CHROMIUM if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def tab(chromium, school, primer):
    """Return a function that opens a path of the server; at the end no error and no foreign request may be left."""
    context = chromium.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True)
    context.set_default_timeout(20_000)
    problems = []

    def request(sent):
        if not sent.url.startswith((school.url, "data:", "blob:", "file:")):
            problems.append(f"a request to {sent.url}")

    def open_page(path="/learn", *, ready=True, **more):
        page = context.new_page()
        page.on("console", lambda line: line.type in ("error", "warning") and problems.append(line.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", request)
        page.goto(path if path.startswith("file:") else school.url + path)
        if ready:
            page.locator(".times", has_text="decode").wait_for()
        return page

    open_page.problems, open_page.context = problems, context
    yield open_page
    context.close()
    assert problems == []
