"""The page /learn beside its limits: a click on a token, all panels of an answer, the first paint.  Needs Chromium.

    python -m numllama.benchmarks.learn [MODEL|FILE.gguf] [--tokens 500] [--clicks 20] [--jsonl FILE]

chosen    from a click on a token until every panel shows it: tokens of prompt and answer in a random order, each for
          the first time, so that the server computes it if the model is large; then again, when the page has it
server    CPU of the server's process, all its threads
page      CPU of the tab's main thread; other processes of the browser paint
panels    an answer of primer with 40 tokens, and all that the page asks for with it
paint     from the address to the first text of the page (first-contentful-paint)

Wall times count only on a machine that does nothing else; CPU times are nearly the same on a busy one.  Needs
`pip install '.[browser]'` and Chromium.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np

from ..api.learn.page import FOLDER
from . import machine, table
from .disturbance import cpu_seconds_of

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
LEARN = [sys.executable, "-P", "-c", "from numllama.api.cli import main; main()", "learn", "--no-browser"]
QUESTION = "Why is the grass green?"
SENTENCE = "The cat and the dog walk to the sea, and a bird sings. "
EVERYTHING = {"attention": "*", "lens": 5, "residual": True, "neurons": 8, "sampler": True, "logits": 64, "time": True}
EVERYTHING |= {"cache": True, "merges": True, "keep": True, "prompt": "all", "encoding": "f16"}

WAIT = """async () => {
  const frame = () => new Promise((done) => requestAnimationFrame(done));
  const began = performance.now();
  CHOOSE;
  await frame();
  while (document.querySelector("main[aria-busy=true]")) {
    await frame();
    if (performance.now() - began > 60000) throw new Error("no panel after a minute");
  }
  await frame();
  return performance.now() - began;
}"""  # two frames longer than needed: the one that starts the request, and the one that paints the panels


@contextmanager
def learn_server(model: str) -> Iterator[tuple[str, int]]:
    """Start `numllama learn MODEL` with a store of its own.  -> the page's address without state, the process"""
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        own = {"OLLAMA_HOST": f"127.0.0.1:{free.getsockname()[1]}", "OLLAMA_MODELS": folder, "NUMLLAMA_BUILTIN": "1"}
        free.close()
        streams: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        server = subprocess.Popen([*LEARN, model], env=os.environ | own, text=True, **streams)
        try:
            assert server.stdout
            address = server.stdout.readline().strip().partition("#")[0]
            if not address:
                raise RuntimeError(f"numllama learn {model} exited with {server.wait()}")
            yield address, server.pid
        finally:
            server.terminate()
            server.wait()


def measure_page(address: str, pid: int, model: str, n_token: int, n_click: int, browser: Any) -> list[dict[str, Any]]:
    """Open the page with an answer of `n_token` tokens, and choose `n_click` of them.  -> rows of the table"""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.goto(address)
    page.wait_for_function("() => performance.getEntriesByName('first-contentful-paint').length")
    paint = page.evaluate("() => performance.getEntriesByName('first-contentful-paint')[0].startTime")
    page.close()
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.set_default_timeout(600_000)
    sent: list[int] = []
    page.on("requestfinished", lambda request: sent.append(request.sizes()["responseBodySize"]))
    prompt = SENTENCE * max(1, (n_token - 60) // 14) if n_token > 100 else QUESTION
    page.goto(f"{address}#{urlencode({'model': model, 'prompt': prompt, 'mode': 'raw', 'num_predict': 40, 'seed': 1})}")
    page.locator(".times", has_text="decode").wait_for()
    cdp = page.context.new_cdp_session(page)
    cdp.send("Performance.enable", {"timeDomain": "threadTicks"})

    def tab_cpu() -> float:
        return next(
            float(one["value"])
            for one in cdp.send("Performance.getMetrics")["metrics"]
            if one["name"] == "TaskDuration"
        )

    def click(i: int) -> tuple[float, float, float, int]:
        before, tab, n = cpu_seconds_of(pid), tab_cpu(), len(sent)
        wall = page.evaluate(WAIT.replace("CHOOSE", f"document.querySelectorAll('.token')[{i}].click()"))
        return wall, 1e3 * (cpu_seconds_of(pid) - before), 1e3 * (tab_cpu() - tab), sum(sent[n:])

    n = page.locator(".token").count()
    page.evaluate("() => scrollTo(0, 0)")
    page.locator("[data-map], #attention .heads").first.wait_for()  # the maps of a large model are computed once
    time.sleep(1)
    chosen = random.Random(1).sample(range(2, n), min(n_click, n - 2))
    rows = [{"what": "first paint", "wall ms": paint, "limit": "1000 ms"}]
    for name in ("a token chosen", "the same again"):
        found = np.array([click(i) for i in chosen])
        walls, (_, server, tab, size) = found[:, 0], found.mean(axis=0)
        row = {"what": f"{name}, of {n}", "wall ms": float(np.median(walls)), "p90": float(np.percentile(walls, 90))}
        rows.append(row | {"server CPU ms": server, "page CPU ms": tab, "KiB": size / 1024, "limit": "100 ms"})
    page.close()
    return rows


def measure_panels(address: str, pid: int, rounds: int) -> dict[str, Any]:
    """Ask primer with all that the panels show.  -> a row of the table"""
    body: dict[str, Any] = {"model": "primer", "messages": [{"role": "user", "content": QUESTION}], "look": EVERYTHING}
    body["options"] = {"temperature": 0.8, "seed": 1, "num_predict": 40}
    url = address.removesuffix("/learn") + "/api/chat"

    def ask() -> tuple[float, float, int]:
        before, began = cpu_seconds_of(pid), time.perf_counter()
        with urllib.request.urlopen(url, json.dumps(body).encode()) as answer:
            size = len(answer.read())
        return 1e3 * (time.perf_counter() - began), 1e3 * (cpu_seconds_of(pid) - before), size

    ask()
    walls, cpu, sizes = np.array([ask() for _ in range(rounds)]).T
    row = {"what": "all panels of primer, 40 tokens", "wall ms": float(np.median(walls)), "server CPU ms": cpu.mean()}
    return row | {"p90": float(np.percentile(walls, 90)), "KiB": sizes.mean() / 1024, "limit": "300 ms, 977 KiB"}


COLUMNS = ["what", "wall ms", "p90", "server CPU ms", "page CPU ms", "KiB", "limit"]


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark, print the table, and append its rows to the --jsonl file.  Raises: RuntimeError"""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", nargs="?", default="primer")
    parser.add_argument("--tokens", type=int, default=500, help="of prompt and answer, about; primer's window has 512")
    parser.add_argument("--clicks", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=10, help="answers of primer with all panels")
    parser.add_argument("--jsonl", help="append the rows to this file")
    o = parser.parse_args(argv)
    from playwright.sync_api import sync_playwright

    path = next((found for name in CHROMIUM if (found := shutil.which(name))), None)
    if path is None:
        raise RuntimeError(f"no Chromium on the PATH, looked for {', '.join(CHROMIUM)}")
    about = machine.describe() | {"model": Path(o.model).name}
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    vendored = sum(file.stat().st_size for file in (FOLDER / "vendor").iterdir()) / 1024
    rows: list[dict[str, Any]] = [{"what": "vendored files", "KiB": vendored, "limit": "400 KiB"}]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        with learn_server(o.model) as (address, pid):
            rows += measure_page(address, pid, Path(o.model).name, o.tokens, o.clicks, browser)
        browser.close()
    with learn_server("primer") as (address, pid):
        rows.append(measure_panels(address, pid, o.rounds))
    print(table.markdown(rows, COLUMNS))
    if o.jsonl:
        table.append_jsonl(o.jsonl, (about | row for row in rows))


if __name__ == "__main__":
    main()
