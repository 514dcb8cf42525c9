"""Servers that lie: each is named in one line or refused, and no figure that it has faked has a verdict.

`a` is honest.  `b` takes 40 ms to its first token and 5 ms for each other one, too, and lies in one way.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from fakes import serve_on_a_clock

from numllama.benchmarks.doubts import ProbeAnswers, find_change, gives_one_answer, run_doubts
from numllama.benchmarks.fake import Fake
from numllama.benchmarks.figures import ServerCounts, TimedAnswer
from numllama.benchmarks.results import Run
from numllama.engine.errors import RequestError

HONEST = Fake("openai", first=0.04, step=0.005)
N_BEFORE = 13  # requests before the rounds: 2 of the check, 2 of the warm-up, 8 probes, and 1 after a
SHORT = "--prompt 32 --answer 12 --rounds 1 --requests 3 --seed 1 --busy".split()


@pytest.mark.parametrize(
    ("lie", "line"),
    [
        ({"counts": 2.0}, "b tells 24 tokens, its stream carried 12: its count is wrong"),
        ({"counts": 0.5}, "b tells 6 tokens, its stream carried 12: its count is wrong"),
        ({"counts": 0.0}, "b tells 0 tokens, its stream carried 12: its count is wrong"),
        ({"tells": False}, "b does not tell how many tokens a prompt has"),
        ({"stops_at": 5}, "b answered 5 of 12 tokens, it ended its answer"),
        ({"overshoots": 6}, "b tells 18 tokens, where 12 were asked for: it does not obey the limit"),
        ({"overshoots": 200}, "it does not stop: 113 texts where 12 tokens were asked for"),
        ({"splits": 3, "wire": "llama", "counts": 1.0}, "b tells 12 tokens, its stream carried 36: its count is wrong"),
        ({"splits": 3, "wire": "ollama"}, "b tells 12 tokens, its stream carried 36"),
        ({"after": 0, "carries": 0.5}, "b tells 12 tokens, its stream carried 6"),
        ({"is_canned": True}, "b gives the same answer to different prompts: it computes none"),
    ],
    ids=lambda x: str(x)[:40] if isinstance(x, dict) else "",
)
def test_it_is_refused(lie, line, monkeypatch):
    with pytest.raises(RequestError) as caught:
        serve_on_a_clock(monkeypatch, *SHORT, a=HONEST, b=replace(HONEST, **lie))
    assert line in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("lie", "line", "hidden"),
    [
        (
            {"is_held": True},
            "it holds its answer back, and shows no time per token",
            ["tpot p50"],
        ),
        ({"per_chunk": 99}, "b sends most of its answer in one piece: it has no time per token", ["tpot p50"]),
        ({"early": 0.001}, "the first text of b is blank, ", ["ttft p50"]),
        (
            {"early": 0.001, "early_text": "I"},
            "the first text of b comes 44 ms before the second, and the others 5 ms apart: it is a guess",
            ["ttft p50", "tpot p50"],
        ),
        ({"wire": "ollama", "clock": 2.0}, "s: its clock is wrong", []),
        ({"wire": "ollama", "clock": 0.2, "step": 0.02}, "where its stream took ", []),
        ({"remembers": True}, "b answers a prompt that it has seen in ", []),
        ({"on_prose": 3.0}, "a token after ordinary prose, and ", []),
        ({"cached": 999}, "b had 999 of 32 tokens of a new prompt cached", []),
        (
            {"empty_every": 2, "after": N_BEFORE},
            "b: 3 of 6 requests were not answered, for example failed: the answer has no text",
            [],
        ),
        (
            {"after": N_BEFORE, "carries": 0.5},
            "b tells 36 tokens, its stream carried 18 chunks, and less text than in the check",
            [],
        ),
    ],
    ids=lambda x: str(x)[:40] if isinstance(x, dict) else "",
)
def test_it_is_named(lie, line, hidden, capsys, monkeypatch):
    serve_on_a_clock(monkeypatch, *SHORT, a=HONEST, b=replace(HONEST, **lie))
    out = capsys.readouterr().out
    assert line in out
    for figure in hidden:  # a's value, and neither b's nor a verdict on it
        (row,) = [row for row in out.splitlines() if row.startswith(f"| {figure}, ms")]
        assert [cell.strip() for cell in row.split("|")[3:-1]] == ["", "", "", ""]


def test_a_cache_that_two_servers_share_is_found(monkeypatch, capsys):
    """As when one is a proxy before the other: the second to be asked would have each prompt cached."""
    seen = set()
    plain = Fake.for_request
    monkeypatch.setattr(Fake, "for_request", lambda self, number, prompt, own: plain(self, number, prompt, seen))
    both = replace(HONEST, remembers=True)
    serve_on_a_clock(monkeypatch, *SHORT, a=both, b=both)
    out = capsys.readouterr().out
    assert "b answers at once where a was asked before: they share a cache, so each gets other prompts" in out
    (row,) = [row for row in out.splitlines() if row.startswith("| ttft p50, ms")]
    assert [cell.strip() for cell in row.split("|")[2:5]] == ["40", "40", "1"]


def test_honest_servers_raise_no_doubt(monkeypatch, capsys):
    """Coarse chunks, bursts, another wire: nothing but the differences that they have."""
    for other in (
        {"wire": "ollama"},
        {"wire": "llama"},
        {"per_chunk": 3},
        {"burst": 3},
        {"first": 1.0, "step": 0.0001},
    ):
        serve_on_a_clock(monkeypatch, *SHORT, a=HONEST, b=replace(HONEST, **other))
        out = capsys.readouterr().out
        notes = out.partition("warm-up: ")[2].splitlines()[1:]
        assert (
            len(
                [
                    line
                    for line in notes
                    if not line.startswith(("context size", "outputs of", "stopped", "b tells 12 tokens in"))
                ]
            )
            == 0
        ), notes


def test_a_server_that_slows_down_in_the_course_of_the_run_is_named(monkeypatch, capsys):
    flags = "--prompt 32 --answer 12 --rounds 20 --requests 1 --seed 1 --busy".split()
    serve_on_a_clock(monkeypatch, *flags, a=HONEST, b=replace(HONEST, after=N_BEFORE + 8, later=2.0))
    out = capsys.readouterr().out
    assert "1 client: b changes in the course of the run: after 8 of 20 rounds it took 2 times as long beside a" in out
    serve_on_a_clock(monkeypatch, *flags, a=HONEST, b=replace(HONEST, after=N_BEFORE, later=2.0))
    assert "b took 2 times as long in the rounds as in its warm-up" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("lie", "line"),
    [
        (
            {"is_held": True},
            "the first text of b comes after 99% of an answer's time in the rounds, and 42% before",
        ),
        (
            {"early": 0.001, "early_text": "I"},
            "the first text of b comes after 1% of an answer's time in the rounds, and 42% before",
        ),
    ],
)
def test_a_stream_that_is_faked_in_the_rounds_only_is_named(lie, line, monkeypatch, capsys):
    serve_on_a_clock(monkeypatch, *SHORT, a=HONEST, b=replace(HONEST, after=N_BEFORE, **lie))
    assert line in capsys.readouterr().out


def test_worked_example_of_a_change():
    assert find_change([0.0, 0.1] * 3 + [0.5, 0.6] * 3) == (6, pytest.approx(1.65, abs=0.01))
    assert find_change([0.0, 0.5] * 6) is None and find_change([0.0] * 4 + [1.0] * 8) is None


def test_the_rounds_are_looked_at_too():
    told = {"prefill_s": 2.0, "decode_s": 2.0}
    requests = [{"outcome": "answered", "ended": 1.0, "told": told, "sha256": "x"}] * 4
    lines = [{"contender": "a", "cell": "1 client", "round": 0, "figures": {}, "raw": {"requests": requests}}]
    assert run_doubts(Run({"contenders": {"a": {}}}, lines), {}) == [
        "a gave the same answer to all 4 timed prompts",
        "a tells more time than the answer took in 4 of 4: its clock is wrong",
    ]


def test_one_answer_is_one_to_words_and_to_prose():
    def answers(*texts):
        chunk = [(1.0 + i, text, None) for i, text in enumerate(texts)]
        return [TimedAnswer(0, chunks=[one] * 8, counts=ServerCounts(1, 8)) for one in chunk]

    same = ProbeAnswers("a", plain=answers("w", "w"), prose=answers("w", "w"))
    assert gives_one_answer(same) and not gives_one_answer(replace(same, prose=answers("w", "v")))
    assert not gives_one_answer(ProbeAnswers("a", plain=answers("w")))  # too few to tell
