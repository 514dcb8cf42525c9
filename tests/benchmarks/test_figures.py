"""Every figure of every wire, from fakes on a clock that their script moves: what is expected is known to the digit."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from itertools import count

import httpx
import pytest

from numllama.benchmarks.client import new_client, send_request
from numllama.benchmarks.fake import Fake, FakeClock, FakeTransport
from numllama.benchmarks.figures import ServerCounts, TimedAnswer, run_figures
from numllama.benchmarks.wires import WIRES, Prompted, parse_contender

FIRST, STEP, N = 0.25, 0.02, 41
EVERY = [(wire, kind) for wire in WIRES for kind in ("completion", "chat") if kind in WIRES[wire].paths]


def ask(fake, kind="completion", n_request=1, **more):
    """Send requests to a fake, one after the other, on a clock of its own."""

    async def all_of_them():
        clock = FakeClock()
        contender = parse_contender(f"a={fake.wire}+http://fake#m", {}, 10)
        async with new_client(contender, FakeTransport(fake, clock)) as http:
            asked = Prompted("one two three four", N, kind, **more)
            return [await send_request(http, contender, asked, clock=clock) for _ in range(n_request)]

    return asyncio.run(all_of_them())


@pytest.mark.parametrize(("wire", "kind"), EVERY)
@pytest.mark.parametrize(
    "behaviour",
    [{}, {"per_chunk": 4}, {"burst": 5}, {"per_chunk": 3, "burst": 2}],
    ids=["plain", "coarse", "burst", "both"],
)
def test_tpot_and_ttft_are_those_of_the_script(wire, kind, behaviour):
    fake = Fake(wire, FIRST, STEP, **behaviour)
    (answer,) = ask(fake, kind)
    held = fake.per_chunk * fake.burst  # tokens that arrive together
    assert (answer.outcome, answer.error, answer.n, answer.n_prompt) == ("answered", "", N, 4)
    assert answer.ttft == pytest.approx(FIRST + (held - 1) * STEP)
    got = run_figures([answer])
    last = FIRST + (N - 1) * STEP
    assert got["e2e_p50"] == pytest.approx(last) and got["output_tok_s"] == pytest.approx(N / last)
    assert got["tpot_p50"] == pytest.approx(STEP, rel=0.01)
    assert got["decode_tok_s"] == pytest.approx(1 / STEP, rel=0.01)
    assert len(answer.gaps) == N - 1 and sum(answer.gaps) == pytest.approx(last - answer.ttft)
    assert got["gap_p99"] == pytest.approx(held * STEP, rel=0.01)


@pytest.mark.parametrize(("wire", "kind"), EVERY)
def test_the_server_s_own_clock_is_a_figure_of_its_own(wire, kind):
    if wire == "openai":
        pytest.skip("tells no durations, except llama-server's, whose timings the next test reads")
    got = run_figures(ask(Fake(wire, FIRST, STEP, clock=0.5), kind))
    assert got["decode_tok_s_server"] == pytest.approx(2 * N / ((N - 1) * STEP))
    assert got["decode_tok_s"] == pytest.approx(1 / STEP)
    assert got["prefill_tok_s_server"] == pytest.approx(2 * 4 / FIRST)


def test_llama_server_s_timings_are_read_on_openai_s_wire():
    line = {"choices": [], "timings": {"prompt_ms": 250.0, "predicted_ms": 800.0, "cache_n": 3}}
    counts = WIRES["openai"].parse(line).counts
    assert (counts.prefill_s, counts.decode_s, counts.cached) == (0.25, 0.8, 3)


@pytest.mark.parametrize("wire", ["ollama", "openai"])
def test_log_probabilities_count_the_tokens_that_a_stream_carried(wire):
    (answer,) = ask(Fake(wire, per_chunk=4, counts=2), logprobs=True)
    assert (answer.carried, answer.counts.answer, answer.n) == (N, 2 * N, N)


@pytest.mark.parametrize("wire", list(WIRES))
def test_text_is_split_at_newlines_only(wire):
    """U+2028 is a line separator to httpx, and part of a text here."""
    (answer,) = ask(Fake(wire, words="\u2028"))
    assert (answer.outcome, len(answer.chunks)) == ("answered", N) and answer.text.count("\u2028") == N


@pytest.mark.parametrize("wire", list(WIRES))
def test_failures_are_outcomes(wire):
    refused = ask(Fake(wire, refuse_every=2), n_request=4)
    assert [a.outcome for a in refused] == ["answered", "refused"] * 2 and refused[1].error == "503 busy"
    (broken,) = ask(Fake(wire, breaks_at=3))
    assert broken.outcome == "failed" and "the connection broke" in broken.error
    got = run_figures([*refused, broken])
    assert (got["refused"], got["failed"]) == (2, 1)


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (b'{"error": {"message": "no such model"}}\n', "no such model"),
        (b"{broken\n", "a line is not JSON: '{broken'"),
        (b'{"message": 3, "choices": 4}\n', "a line has an unexpected form"),
        (b'{"response": "half an answer", "done": false}\n', "the stream ended before the answer did"),
        (b"", "the stream ended before the answer did"),
        (b"<!doctype html>\n<p>Welcome\n", "the answer is not JSON: '<!doctype html>'"),
        (b"[" * 99_999 + b"\n{" + b'"a":[' * 99_999 + b"\n", "a line is not JSON"),
        (b'{"error": "\\u001b[2Jno\\nsuch model"}\n', "\x20[2Jno such model"),
    ],
)
def test_a_stream_that_is_not_an_answer_has_failed(monkeypatch, sent, error):
    monkeypatch.setattr(Fake, "script", lambda *_: [(0.1, sent)])
    (answer,) = ask(Fake("ollama"))
    assert answer.outcome == "failed" and error in answer.error


def test_values_that_nothing_can_hold_count_as_not_told(monkeypatch):
    """Half a surrogate pair, a count and a duration of 400 digits, infinity; and an error that is null."""
    text = b'{"response": "\\ud800", "done": false, "error": null}\n'
    last = (
        b'{"done": true, "done_reason": "length", "eval_count": %s, "eval_duration": %s, "prompt_eval_duration": %s}\n'
    )
    monkeypatch.setattr(Fake, "script", lambda *_: [(0.1, text), (0.2, last % (b"9" * 400, b"9" * 400, b"Infinity"))])
    (answer,) = ask(Fake("ollama"))
    assert (answer.outcome, answer.text, answer.counts) == ("answered", "?", ServerCounts(reason="length"))
    run_figures([answer])


def test_one_token_may_have_no_text(monkeypatch):
    last = b'{"done": true, "done_reason": "length", "eval_count": 1}\n'
    monkeypatch.setattr(Fake, "script", lambda *_: [(0.1, last)])
    contender = parse_contender("a=ollama+http://fake#m", {}, 10)

    async def send(n):
        async with new_client(contender, FakeTransport(Fake(), FakeClock())) as http:
            return await send_request(http, contender, Prompted("x", n))

    assert asyncio.run(send(1)).outcome == "answered" and asyncio.run(send(2)).error == "the answer has no text"


def test_an_answer_that_is_not_streamed_is_one_chunk(monkeypatch):
    whole = b'{"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}], "usage": {"completion_tokens": 1}}'
    monkeypatch.setattr(Fake, "script", lambda *_: [(0.1, whole)])
    (answer,) = ask(Fake("openai"), "chat")
    assert (answer.outcome, answer.text, answer.n) == ("answered", "hi", 1)


def test_an_answer_without_an_end_is_cut_off(monkeypatch):
    monkeypatch.setattr(Fake, "script", lambda *_: ((i, b'{"response": "w"}\n') for i in count()))
    (answer,) = ask(Fake("ollama"))
    assert (answer.outcome, answer.error) == ("failed", f"it does not stop: 229 texts where {N} tokens were asked for")


class Slow(httpx.AsyncBaseTransport):
    """A server that sends lines, and then another line again and again."""

    def __init__(self, lines, again):
        self.lines, self.again = lines, again

    async def handle_async_request(self, request):
        return httpx.Response(200, content=self.stream())

    async def stream(self):
        for line in self.lines:
            yield line
        while True:
            await asyncio.sleep(0.01)
            yield self.again


@pytest.mark.parametrize(
    ("lines", "outcome", "error"),
    [
        ([], "failed", "no text for 0.1 s"),
        ([b'{"response": "w"}\n'], "failed", "no text for 0.1 s"),
        ([b'{"response": "w"}\n', b'{"done": true}\n'], "answered", ""),
    ],
    ids=["from the start", "after a text", "after the end"],
)
def test_bytes_that_keep_a_connection_alive_are_no_answer(monkeypatch, lines, outcome, error):
    monkeypatch.setattr("numllama.benchmarks.client.GRACE_S", 0.1)
    contender = parse_contender("a=ollama+http://fake#m", {}, 0.1)

    async def send():
        async with new_client(contender, Slow(lines, b": ping\n")) as http:
            return await send_request(http, contender, Prompted("x", 3))

    answer = asyncio.run(asyncio.wait_for(send(), 30))
    assert (answer.outcome, answer.error) == (outcome, error)


def test_worked_example_of_goodput_and_throughput():
    """Two answers in 4 s: 0.5 s to the first text, then 10 tokens in 1 s; 3 s, then 10 tokens in 1 s."""

    def answer(first, **more):
        chunks = [(100 + first + i / 10, "x", None) for i in range(11)]
        counts = ServerCounts(prompt=20, answer=11)
        return TimedAnswer(100, ended=100 + first + 1, chunks=chunks, counts=counts, **more)

    got = run_figures([answer(0.5), answer(3.0, due=99.9)], {"ttft": 2.0, "tpot": 0.2})
    assert (got["output_tok_s"], got["total_tok_s"], got["goodput_s"]) == (5.5, 15.5, 0.25)
    assert got["ttft_p50"] == 1.75 and got["tpot_p50"] == pytest.approx(0.1) and got["gap_p99"] == pytest.approx(0.1)
    assert got["prefill_tok_s"] == pytest.approx((40 + 20 / 3) / 2)


def test_tokens_without_text_belong_to_the_chunk_before():
    """As when half a character is held back."""
    part = WIRES["llama"].parse({"content": "", "tokens": [7], "stop": False})
    assert (part.text, part.n_token) == ("", 1)


def test_an_empty_first_chunk_is_not_the_first_text(monkeypatch):
    plain = Fake.script
    empty = b'data: {"choices": [{"delta": {"role": "assistant", "content": ""}}]}\n\n'
    monkeypatch.setattr(Fake, "script", lambda *args: [(0.01, empty), *plain(*args)])
    (answer,) = ask(Fake("openai", FIRST, STEP), "chat")
    assert answer.ttft == pytest.approx(FIRST)


def test_settings_follow_the_address_and_null_removes_a_field():
    other = parse_contender("b=openai+http://x/v1?max_tokens=null&max_completion_tokens=9&user=me#m", {}, 1)
    body = other.write(Prompted("x", 5, "chat"))
    assert "max_tokens" not in body and (body["max_completion_tokens"], body["user"]) == (9, "me")
    assert (
        parse_contender("b=ollama+http://x?num_thread=1#m", {}, 1).write(Prompted("x", 5))["options"]["num_thread"] == 1
    )


def test_a_request_that_asks_for_more_names_it_on_every_wire():
    forced = Prompted("x", 5, forced="ignore_eos")
    assert WIRES["ollama"].body("m", forced)["options"] == {
        "num_predict": 5, "temperature": 0, "seed": 1, "ignore_eos": True,
    }  # fmt: skip
    assert WIRES["openai"].body("m", forced)["min_tokens"] == 5 and WIRES["llama"].body("m", forced)["ignore_eos"]
    banned = replace(forced, forced="logit_bias", end_ids=(2,))
    assert WIRES["ollama"].body("m", banned)["options"]["logit_bias"] == {"2": False}
    assert WIRES["openai"].body("m", banned)["logit_bias"] == {"2": -100}


def test_too_few_tokens_after_the_first_text_give_no_time_per_token():
    """A client that reads late finds most of an answer waiting: the last tokens seem to take no time."""

    def answer(n_first):
        chunks = [(1.0, "x" * n_first, n_first), *((1.0 + i / 100, "x", 1) for i in range(1, 9 - n_first))]
        return TimedAnswer(0, ended=2, chunks=chunks, counts=ServerCounts(3, 8), carried=8)

    assert answer(4).tpot == pytest.approx(0.01) and answer(5).tpot is None
