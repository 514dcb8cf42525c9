"""Servers that do not work equally, or lie about it, are not compared; and the line says what differs."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
from fakes import QUICK, faked, serve

from numllama.benchmarks.command import run_part
from numllama.benchmarks.doubts import clock_doubts, stream_doubts
from numllama.benchmarks.equality import Examined, answer_differences, differences
from numllama.benchmarks.fake import Fake
from numllama.benchmarks.figures import ServerCounts, TimedAnswer
from numllama.benchmarks.serve import ServeBench
from numllama.benchmarks.wires import WIRES, Contender, Prompted
from numllama.engine.errors import EngineError, RequestError

SHORT = "--prompt 32 --answer 12 --rounds 1 --requests 1 --seed 1".split()
OPENAI = replace(QUICK, wire="openai")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"counts": 2}, "b tells 24 tokens, its stream carried 12: its count is wrong"),
        ({"counts": 0.5}, "b tells 6 tokens, its stream carried 12: its count is wrong"),
        ({"stops_at": 5}, "b answered 5 of 12 tokens, it ended its answer; --answer 5 makes it equal"),
        ({"template": 9}, r"prompt: a counts 32 tokens, b 41: b adds 9 to each \(a template or a start token"),
        ({"tells": False}, "b does not tell how many tokens a prompt has"),
        ({"refuse_every": 1}, "b: .*/v1/completions: 503"),
        ({"breaks_at": 2}, "b: .*/v1/completions: "),
    ],
)
def test_unequal_work_is_refused_in_one_line(other, message):
    with pytest.raises(RequestError, match=message) as caught:
        serve(*SHORT, a=QUICK, b=replace(OPENAI, **other))
    assert "\n" not in str(caught.value)


def test_unequal_work_can_be_measured_without_verdicts(capsys):
    assert serve(*SHORT, "--unequal", a=QUICK, b=replace(OPENAI, template=9)) == 0
    out = capsys.readouterr().out
    assert "adds 9 to each" in out and "the work was not equal: --unequal" in out
    assert not any(word in out for word in ("| faster", "| slower", "| the same"))


def test_tokens_that_end_within_a_character_may_have_no_chunk():
    """As in numllama and Ollama: three tokens of a character's bytes are one chunk, and one log-probability."""
    chunks = [(1.0, "a", None), (2.0, "\u20ac", None)]
    for told, wrong in ((2, False), (4, False), (5, True), (1, True)):
        answer = TimedAnswer(0, ended=3, chunks=chunks, counts=ServerCounts(3, told, reason="length"), carried=2)
        one = Examined(Contender("a", WIRES["ollama"], "http://x", "m"), answers=[answer], counted=True, exact=True)
        assert bool(answer_differences(one, Prompted(n=told))) is wrong


def test_coarse_chunks_are_no_lie(capsys):
    """Their tokens are counted by log-probabilities."""
    assert serve(*SHORT, a=QUICK, b=replace(OPENAI, per_chunk=4)) == 0
    out = capsys.readouterr().out
    assert "b tells 12 tokens in 3 chunks, 12 tokens by the client's count" in out
    assert "outputs of a and b: differ" not in out or "equal" in out


@pytest.mark.parametrize(
    ("decode_s", "remark"),
    [
        (0.3, ""),
        (0.1, "b tells 100 ms of decode where its stream took 300 ms: believe the client's"),
        (3.0, "b tells 3 s of work in an answer that took 1.3 s: its clock is wrong"),
    ],
)
def test_a_clock_that_contradicts_the_client_s_is_named(decode_s, remark):
    one = examined(*((1 + i / 10, "a", None) for i in range(4)))
    one.answers[0].ended = 1.3
    one.answers[0].counts = replace(one.answers[0].counts, decode_s=decode_s)
    assert "; ".join(doubt.text for doubt in clock_doubts("b", one.answers)) == remark


def examined(*chunks, told=None):
    answer = TimedAnswer(0, ended=9, chunks=list(chunks), counts=ServerCounts(3, told or len(chunks), reason="length"))
    return Examined(Contender("b", WIRES["ollama"], "http://x", "m"), answers=[answer])


def test_a_blank_first_text_long_before_the_others_is_named():
    texts = [(1.0, "a", None), (1.1, "b", None), (1.2, "c", None), (1.3, "d", None)]
    assert stream_doubts("b", examined(*texts).answers[0]) == []
    (doubt,) = stream_doubts("b", examined((0.1, " ", None), *texts).answers[0])
    assert doubt.text == "the first text of b is blank, 900 ms before the next: not a token?"


def test_the_text_of_a_server_whose_count_is_right_counts_for_another():
    plain = [(1 + i, " w", None) for i in range(8)]
    a, coarse = examined(*plain), examined((1, " w" * 4, None), (2, " w" * 4, None), told=8)
    other = examined((1, " v" * 4, None), (2, " v" * 4, None), told=8)
    assert differences([a, coarse], Prompted(n=8)) == []
    (line,) = differences([a, other], Prompted(n=8))
    assert line.startswith("b tells 8 tokens, its stream carried 2 chunks, and nothing else counts them; --tokenizer")


def test_an_answer_in_one_piece_has_no_time_per_token():
    (doubt,) = stream_doubts("b", examined((1.0, "a b c d", None), told=8).answers[0])
    assert doubt.text.startswith("b sends most of its answer in one piece")


def test_servers_that_may_be_one_get_different_prompts():
    def bench(*found):
        made = ServeBench(
            [one.contender for one in found],
            [],
            Prompted(),
            SimpleNamespace(seed=0, tokenizer=None, start=[], load=False),
        )
        made.found = list(found)
        return made

    a, b = (
        Examined(Contender(n, WIRES["ollama"], f"http://127.0.0.1:{p}", "m"), version="1")
        for n, p in (("a", 1), ("b", 2))
    )
    assert bench(a, b).has_twins
    b.version = "2"
    assert not bench(a, b).has_twins


def test_a_client_s_tokenizer_counts_for_a_server_that_tells_nothing(tmp_path, capsys):
    from tiny import tiny_gguf

    path = str(tiny_gguf(tmp_path / "tiny.gguf"))
    with pytest.raises(RequestError, match=r"b answered \d+ of 12 tokens, by the count of --tokenizer"):
        serve(*SHORT, "--tokenizer", path, a=QUICK, b=replace(OPENAI, tells=False))


def test_outputs_are_compared(capsys):
    assert serve(*SHORT, a=QUICK, b=replace(OPENAI, words="v")) == 0
    assert "outputs of a and b: differ" in capsys.readouterr().out
    assert serve(*SHORT, a=QUICK, b=OPENAI) == 0
    out = capsys.readouterr().out
    assert "outputs of a and b: equal" in out and "timed answers: 1 of 1 equal" in out


def test_a_prompt_that_was_cached_is_not_cold(capsys):
    long = [*"--prompt 100 --answer 12 --rounds 1 --requests 1 --seed 1".split()]
    assert serve(*long, a=QUICK, b=replace(OPENAI, cached=99)) == 0
    assert "b had 99 of 100 tokens of a new prompt cached" in capsys.readouterr().out
    assert serve(*long, "--cache", "warm", a=QUICK, b=replace(OPENAI, cached=99)) == 0
    assert "cached" not in capsys.readouterr().out.replace("warm", "")


def test_one_server_under_two_names_gets_different_prompts_of_the_same_words(capsys, monkeypatch):
    prompts = []
    plain = Fake.script
    monkeypatch.setattr(
        Fake,
        "script",
        lambda self, path, body, speed=1.0: prompts.append(body["prompt"]) or plain(self, path, body, speed),
    )
    with faked(QUICK) as url:
        assert run_part(["serve", f"a={url}", f"b={url}", *SHORT]) == 0
    one, other = [prompt for prompt in prompts if prompt != "hello"][-2:]  # hello is sent first, untimed
    assert one != other and sorted(one.split()) == sorted(other.split())
    assert "timed answers" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("server", "message"),
    [
        ("a", "'a' is not a server: expected NAME=WIRE"),
        ("a=http://x#m", "'a=http://x#m' is not a server"),
        ("a=smtp+http://x#m", "unknown wire 'smtp'; choose from ollama, openai, llama"),
        ("a=ollama+ftp://x#m", "has no http address"),
        ("a=ollama+http://x:99999#m", "invalid port"),
        ("a=ollama+http://127.0.0.1:1", "names no model"),
        ("a=ollama+http://127.0.0.1:1#m", "a: no server at http://127.0.0.1:1: connection refused"),
    ],
)
def test_a_server_that_cannot_be_reached_is_one_line(server, message):
    with pytest.raises(RequestError) as caught:
        run_part(["serve", server])
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_wrong_wire_is_suspected():
    with faked(QUICK) as url, pytest.raises(RequestError, match=r"/other/completion: 404 ; is 'llama' its wire\?$"):
        run_part(["serve", url.replace("ollama", "a=llama").replace("#fake", "/other")])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--key-env NOT_SET", "--key-env names NOT_SET, which is not set"),
        ("--header nothing", "--header is 'nothing', expected 'Name: value'"),
        ("--within 3", "argument --within: '3', expected a share"),
        ("--budget soon", "argument --budget: 'soon', expected a time"),
        ("--ramp 8..2", "argument --ramp: '8..2', expected a range"),
        ("--goodput fast", "argument --goodput: 'fast', expected limits"),
        ("--trace nowhere", "nowhere cannot be read: No such file"),
        ("--tokenizer nowhere", "'nowhere': no such file"),
        ("--embed", "a: the wire 'llama' has no embed; use openai or ollama"),
        ("--clients 0", "argument --clients: '0', expected a whole number from 1 on"),
    ],
)
def test_wrong_flags_are_one_line(flags, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with faked(replace(QUICK, wire="llama")) as url, pytest.raises(EngineError) as caught:
        run_part(["serve", f"a={url}", *SHORT, *flags.split()])
    assert message in str(caught.value)


def test_headers_and_keys_go_to_their_server(monkeypatch):
    from numllama.benchmarks import arguments, flags

    monkeypatch.setenv("KEY", "secret")
    argv = [
        "serve",
        "a=ollama+http://x#m",
        "b=openai+https://y/v1?top_k=1#m",
        "--key-env",
        "b=KEY",
        "--header",
        "X-All: 1",
    ]
    a, b = arguments.read_contenders(flags.build_parser("bench").parse_args(argv))
    assert a.headers == {"X-All": "1"} and b.headers == {"X-All": "1", "Authorization": "Bearer secret"}
    assert b.path("chat") == "https://y/v1/chat/completions" and b.settings == {"top_k": 1}
