"""The time to a first token is measured; it is shorter with compiled kernels."""

import sys

import pytest

from numllama.benchmarks import first_token


def test_the_table_shows_medians(monkeypatch, capsys):
    times = iter([(1.0, 9.0, 6.0, 10.0), (1.0, 1.5, 1.0, 1.0), (3.0, 7.0, 5.0, 9.0), (1.0, 1.3, 1.0, 1.0)])
    monkeypatch.setattr(first_token, "first_token", lambda folder: next(times))
    compiled = iter([{"attention": 2.0, "cache": 0.25}, {"attention": 1.0, "cache": 0.75}])
    monkeypatch.setattr(first_token, "compile_seconds", lambda: next(compiled))
    first_token.main(["--rounds", "2"])
    assert capsys.readouterr().out.splitlines()[-8:] == [
        "| empty | 2        | 8              | 5.5                  | 9.5                 |",
        "| full  | 1        | 1.4            | 1                    | 1                   |",
        "",
        "| kernel    | CPU, s |",
        "|-----------|--------|",
        "| attention | 1.5    |",
        "| cache     | 0.5    |",
        "| all       | 2      |",
    ]


@pytest.mark.slow
def test_a_full_cache_saves_seconds(tmp_path):
    (_, cold, *cpu), (_, warm, *_) = (first_token.first_token(str(tmp_path)) for _ in range(2))
    assert 0 < warm < cold - 2
    assert sys.platform != "linux" or 1 < cpu[0] < cpu[1]


@pytest.mark.slow
def test_each_kernel_of_primer_is_compiled():
    seconds = first_token.compile_seconds()
    assert {"attention", "cache", "Q4_0 product", "whole layers"} < seconds.keys() and min(seconds.values()) > 0.01


def test_a_server_that_exits_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(first_token, "SERVE", ["false"])
    with pytest.raises(RuntimeError, match="the server exited with 1"):
        first_token.first_token(str(tmp_path))
