"""The load test: token counts, figures and the HTML page."""

from __future__ import annotations

import asyncio
import json
import re

import httpx
import numpy as np
import pytest
from serving import Served

from numllama.benchmarks import page
from numllama.benchmarks.server import Answered, BenchServer, Load, answer_lines, main, run_load, summary
from numllama.engine.settings import Settings
from tiny import tiny_gguf


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    server = Served(Settings(models=tmp_path_factory.mktemp("store"), builtin=False))
    server.add("m", tiny_gguf(tmp_path_factory.mktemp("gguf") / "m.gguf", seed=2))
    yield server
    server.close()


@pytest.mark.parametrize("wire", ["ollama", "openai"])
def test_token_counts_are_the_server_s(served, wire):
    answers, seconds = asyncio.run(run_load(BenchServer("s", served.url, "m", wire), Load(5, 4, 6, clients=2), [1]))
    assert [answer.n_sampled for answer in answers] == [6] * 5 and all(answer.n_prompt > 4 for answer in answers)
    assert all(0 < answer.ttft <= answer.total <= seconds for answer in answers)
    assert all(0 < answer.reported <= answer.total if wire == "ollama" else answer.reported == 0 for answer in answers)


def test_separators_within_a_text_end_no_line():
    """JSON leaves U+0085, U+2028 and others as they are."""
    lines = ["data: a\u2028b\x85c\x0bd", "", "data: é"]
    content = "\r\n".join(lines).encode()

    async def read():
        chunks = (content[i : i + 3] for i in range(0, len(content), 3))
        return [line async for line in answer_lines(httpx.Response(200, content=as_async(chunks)))]

    async def as_async(chunks):
        for chunk in chunks:
            yield chunk

    assert asyncio.run(read()) == lines


def test_an_open_loop_sends_on_time_without_waiting_for_answers(served):
    load = Load(8, 4, 2, rate=40)
    due = load.arrivals([3])
    answers, seconds = asyncio.run(run_load(BenchServer("s", served.url, "m", "ollama"), load, [3]))
    assert len(answers) == 8 and seconds >= due[-1]
    assert abs(np.diff(Load(4000, 1, 1, rate=40).arrivals([0])).mean() - 1 / 40) < 2e-3


def test_an_error_response_raises(served):
    with pytest.raises(RuntimeError, match=r"s: 404 .*model 'nope' not found"):
        asyncio.run(run_load(BenchServer("s", served.url, "nope", "ollama"), Load(1, 4, 2, clients=1), [0]))


def test_prompts_share_the_requested_fraction():
    prompts = [prompt.split() for prompt, _ in Load(4, 40, 8, clients=1, shared=0.5).questions([7])]
    assert len({tuple(prompt[:20]) for prompt in prompts}) == 1 and len({tuple(prompt) for prompt in prompts}) == 4
    mixed = Load(50, 40, 8, clients=1, mixed=True).questions([7])
    assert {len(prompt.split()) for prompt, _ in mixed} == {20, 40, 80} and {n for _, n in mixed} == {4, 8, 16}


def test_worked_example_of_a_run_s_figures():
    """Two answers in 4 s: 0.5 s to the first text, then 10 tokens in 1 s; 3 s, then 10 tokens in 1 s."""
    answers = [Answered(0.5, 1.5, 20, 11, reported=1.5), Answered(3.0, 4.0, 20, 11, reported=3.0)]
    got = summary(answers, 4.0, ttft=2.0, itl=0.2)
    assert got["reported"] == (1.5 / 1.5 + 3.0 / 4.0) / 2
    assert (got["tok/s"], got["prompt tok/s"], got["goodput"]) == (5.5, 10.0, 0.25)
    assert got["ttft p50"] == 1.75 and got["itl p99"] == pytest.approx(0.1)


def test_the_command_prints_a_table_and_writes_rows_and_a_page(served, tmp_path, capsys):
    files = ["--jsonl", str(tmp_path / "rows.jsonl"), "--html", str(tmp_path / "page.html")]
    shape = "--model m --clients 1 2 --rate 50 --requests 3 --prompt 4 --answer 3 --rounds 1".split()
    main([f"a={served.url}", f"b={served.url}", *shape, *files])
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    loads = ("1 clients", "2 clients", "50/s")
    assert [(row["load"], row["server"]) for row in rows] == [(load, name) for load in loads for name in "ab"]
    html = (tmp_path / "page.html").read_text()
    assert html.count("<svg") == 3 and not re.search("https?://(?!127)|src=|href=", html)
    assert capsys.readouterr().out.count("\n| 2 clients |") == 2


def test_a_page_escapes_html():
    assert "<script>" not in page.chart("<script>", "s", [("<script>", [(1.0, 2.0)])])
