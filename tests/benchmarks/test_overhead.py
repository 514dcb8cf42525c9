"""The server's overhead per token is measured at its client, and only if all paths generate the same text."""

from __future__ import annotations

import pytest
from serving import Served

from numllama.benchmarks import overhead
from numllama.engine.settings import Settings
from tiny import CHAT_TEMPLATE, tiny_gguf


@pytest.fixture
def served(tmp_path, monkeypatch):
    server = Served(Settings(models=tmp_path / "store", builtin=False))
    path = tiny_gguf(tmp_path / "m.gguf", seed=2, chat_template=CHAT_TEMPLATE)
    server.add("m", path, parameters={"top_k": 5, "stop": ["the"]})
    monkeypatch.setattr(overhead, "default_store", lambda: server.engine.store)
    yield server
    server.close()


def test_a_server_generates_the_same_text_as_generate(served, capsys):
    overhead.main([served.url, "--model", "m", "--answer", "12", "--rounds", "2"])
    table = capsys.readouterr().out.splitlines()[-3:]
    cells = [[cell.strip() for cell in row.split("|")[1:]] for row in table]
    assert [row[0] for row in cells] == ["in process", "/api/generate", "/api/chat"]
    assert [row[2] for row in cells] == ["2"] * 3


def test_an_error_response_raises(served):
    with pytest.raises(RuntimeError, match=r"/api/generate: 404 .*model 'none' not found"):
        overhead.streamed(served.url, "/api/generate", {"model": "none", "prompt": "a"})


def timed_texts(*moments, text="a"):
    return lambda: [(text, moment) for moment in moments]


def test_more_is_the_time_per_text_minus_that_in_process():
    one, other = overhead.measure_overhead(
        {"one": timed_texts(0, 0.001, 0.002), "other": timed_texts(5, 5, 5.0025)}, rounds=3
    )
    assert one["ms a text"] == pytest.approx(1) and "more p50" not in one
    assert other["ms a text"] == pytest.approx(1.25) and other["more p50"] == pytest.approx(0.25)
    assert other["gap p95"] == pytest.approx(2.5)


def test_different_answers_are_not_compared():
    with pytest.raises(RuntimeError, match="other generated"):
        overhead.measure_overhead({"one": timed_texts(0, 1), "other": timed_texts(0, 1, text="b")}, rounds=1)
    with pytest.raises(RuntimeError, match="at least two texts"):
        overhead.measure_overhead({"one": timed_texts(0)}, rounds=1)
