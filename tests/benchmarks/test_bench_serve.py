"""`bench serve` on a real server: both wires, loads, and what is printed and written."""

from __future__ import annotations

import csv
import json
import re
import signal
import socket
import subprocess
import sys
from dataclasses import asdict, replace
from subprocess import PIPE

import pytest
from fakes import QUICK, faked, serve, serve_on_a_clock
from serving import Served, until

from numllama.benchmarks.command import run_part
from numllama.benchmarks.results import read_runs
from numllama.benchmarks.wires import Prompted
from numllama.benchmarks.workload import Load, read_trace, scale_prompts, size_rounds
from numllama.engine.errors import RequestError
from numllama.engine.settings import Settings
from tiny import CHAT_TEMPLATE, tiny_gguf

SHORT = "--prompt 8 --answer 6 --rounds 1 --requests 2 --seed 1 --busy".split()


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    server = Served(Settings(models=tmp_path_factory.mktemp("store"), builtin=False))
    server.add("m", tiny_gguf(tmp_path_factory.mktemp("gguf") / "m.gguf", seed=2, chat_template=CHAT_TEMPLATE))
    yield server
    server.close()


@pytest.mark.parametrize("kind", ["--completion", "--chat"])
def test_the_wires_of_one_server_do_the_same_work(served, capsys, tmp_path, kind):
    """Its completions on OpenAI's wire have the template, as Ollama's, so there only chats are equal."""
    other = "openai" if kind == "--chat" else "ollama"
    path = tmp_path / "rows.jsonl"
    servers = f"a=ollama+{served.url}#m", f"b={other}+{served.url}?top_k=3#m"
    assert run_part(["serve", *servers, kind, *SHORT, "--jsonl", str(path)]) == 0
    (run,) = read_runs([path])
    assert all(line["figures"]["failed"] == 0 and "unequal" not in line for line in run.rounds)
    for line in run.rounds:
        assert [r["told"]["answer"] for r in line["raw"]["requests"]] == [6, 6]
    out = capsys.readouterr().out
    assert "outputs of a and b: equal" in out and "| tpot p50, ms" in out
    assert run.header["contenders"]["b"]["settings"] == {"top_k": 3}


EOS = 2  # of the tiny model
ROUTES = {  # route: its own fields, and where its answer has the number of tokens
    "/api/generate": ({"prompt": "hello", "stream": False}, ("eval_count",)),
    "/api/chat": ({"messages": [{"role": "user", "content": "hello"}], "stream": False}, ("eval_count",)),
    "/v1/completions": ({"prompt": "hello"}, ("usage", "completion_tokens")),
    "/v1/chat/completions": ({"messages": [{"role": "user", "content": "hello"}]}, ("usage", "completion_tokens")),
    "/v1/responses": ({"input": "hello"}, ("usage", "output_tokens")),
    "/v1/messages": ({"messages": [{"role": "user", "content": "hello"}], "max_tokens": 5}, ("usage", "output_tokens")),
}


@pytest.mark.parametrize("path", list(ROUTES))
def test_ignore_eos_is_obeyed_on_every_wire(served, path):
    """A model that would end its answer at once still generates all tokens."""
    own, place = ROUTES[path]

    def n_answered(**options):
        options |= {"num_predict": 5, "logit_bias": {str(EOS): 1e9}}
        answer = served.ok(path, model="m", options=options, **own)
        for key in place:
            answer = answer[key]
        return answer

    assert n_answered() < 5 and n_answered(ignore_eos=True) == 5


def test_ignore_eos_is_a_field_of_openai_s_completions(served):
    for path in ("/v1/completions", "/v1/chat/completions"):
        own, (_, count) = ROUTES[path]
        body = {"model": "m", "max_tokens": 5, "logit_bias": {"2": 100}, "temperature": 0, **own}
        assert served.ok(path, **body, ignore_eos=True)["usage"][count] == 5


def test_open_and_closed_loops_have_a_table_each(served, capsys):
    loads = "--clients 1 2 --rate 50 --arrivals constant --goodput ttft:60,tpot:60".split()
    assert run_part(["serve", f"a=ollama+{served.url}#m", *SHORT, *loads]) == 0
    out = capsys.readouterr().out
    assert [f"**{name} (" in out for name in ("1 client", "2 clients", "50/s constant")] == [True] * 3
    assert out.count("| goodput, 1/s") == 3


def test_a_ramp_of_rates(capsys):
    assert serve(*SHORT, "--ramp", "10..40/s", "--arrivals", "constant", a=QUICK) == 0
    out = capsys.readouterr().out
    assert [f"**{n}/s constant (" in out for n in (10, 20, 40)] == [True] * 3
    assert re.search(r"a: (no knee up to 40/s: |the knee is at \d+/s: )\S+ s of the median answer", out)


def test_the_time_to_load_and_memory_have_verdicts(served, tmp_path):
    """One server under two names, on the wire that can unload a model."""
    path, flags = tmp_path / "rows.jsonl", [*SHORT, "--load"]
    assert (
        run_part(["serve", f"a=ollama+{served.url}#m", f"b=ollama+{served.url}#m", *flags, "--jsonl", str(path)]) == 0
    )
    (run,) = read_runs([path])
    assert run.cells == ["1 client", "load"]
    loads = [line["figures"]["load_s"] for line in run.rounds if line["cell"] == "load"]
    assert len(loads) == 2 and min(loads) > 0
    assert {v["figure"] for v in run.end["verdicts"] if v["cell"] == "load"} == {"load_s"}  # no memory: in this process


def start_command(fake, port):
    """Return a command, with a variable before it, that starts a fake at a port."""
    described = json.dumps(asdict(fake))
    return f"SOME=thing {sys.executable} -P -m numllama.benchmarks.fake '{described}' {port}"


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_servers_are_started_and_stopped(tmp_path, capsys):
    port, path = free_port(), tmp_path / "rows.jsonl"
    server, started = f"a=ollama+http://127.0.0.1:{port}#m", f"a={start_command(QUICK, port)}"
    flags = [*SHORT, "--load", "--start", started, "--jsonl", str(path)]
    assert run_part(["serve", server, *flags]) == 0
    (run,) = read_runs([path])
    (load,) = [line for line in run.rounds if line["cell"] == "load"]
    assert load["figures"]["load_s"] > 0.05 and load["figures"]["memory_mib"] > 10
    assert "| load, s" in capsys.readouterr().out
    with pytest.raises(RequestError, match="a: no server at"):
        run_part(["serve", server, *SHORT])  # it was stopped


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--load"], "--load: the wire 'openai' of b cannot unload a model; --start b=COMMAND starts its server"),
        (
            ["--load", "--start", "b=true"],
            "--load: b is started and a would only be loaded, which is not equal; --start",
        ),
        (["--start", "true"], "--start is 'true', expected SERVER=COMMAND"),
        (["--start", "c=true"], "--start names server 'c', which is not among a, b"),
        (["--start", "b=no-such-program x"], "--start b=no-such-program: No such file or directory"),
        (["--start", "b=sh -c 'echo out of luck >&2; exit 3'"], "b: sh exited with 3: out of luck"),
        (["--start", "b='"], "--start b=': No closing quotation"),
        (["--start", "b=X=1"], "--start b=X=1: no program"),
    ],
)
def test_a_server_that_cannot_be_started_is_one_line(flags, message):
    servers = f"a=ollama+http://127.0.0.1:{free_port()}#m", f"b=openai+http://127.0.0.1:{free_port()}#m"
    with pytest.raises(RequestError) as caught:
        run_part(["serve", *servers, *SHORT, *flags])
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_conversations_and_mixed_lengths(served, tmp_path):
    path = tmp_path / "rows.jsonl"
    flags = "--chat --turns 2 --mixed --requests 4".split()
    assert run_part(["serve", f"a=ollama+{served.url}#m", *SHORT, *flags, "--jsonl", str(path)]) == 0
    (run,) = read_runs([path])
    requests = run.rounds[0]["raw"]["requests"]
    assert len(requests) == 8 and len({r["wanted"] for r in requests}) > 1
    assert requests[1]["told"]["prompt"] > requests[0]["told"]["prompt"]


def test_embeddings_have_a_rate(served, capsys):
    assert run_part(["serve", f"a=ollama+{served.url}#m", f"b=openai+{served.url}#m", "--embed", *SHORT]) == 0
    assert "| speed, tok/s" in capsys.readouterr().out


def test_a_ramp_finds_the_knee(capsys):
    """A fake with one slot would not be faster with more clients; this one has no limit."""
    assert serve(*SHORT, "--ramp", "1..4", a=QUICK) == 0
    assert re.search("a: (no knee up to|the knee is at) ", capsys.readouterr().out)


def test_a_page_has_charts_and_needs_no_network(tmp_path, capsys):
    pytest.importorskip("plotly", reason="needs the extra `bench`")
    html, table = tmp_path / "page.html", tmp_path / "table.csv"
    assert serve(*SHORT, "--html", str(html), "--csv", str(table), a=QUICK, b=QUICK) == 0
    text = html.read_text()
    assert text.count("<table>") == 1 and text.count("Plotly.newPlot(") >= 4
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=", text)
    first, *rows = csv.reader(table.read_text().splitlines())
    assert first[:4] == ["table", "figure", "a", "b"] and len(rows) > 10
    assert "ttft p50, ms" in capsys.readouterr().out


def test_a_page_escapes_what_servers_say(tmp_path):
    pytest.importorskip("plotly", reason="needs the extra `bench`")
    path, html = tmp_path / "rows.jsonl", tmp_path / "page.html"
    assert serve(*SHORT, "--jsonl", str(path), a=QUICK) == 0
    path.write_text(path.read_text().replace("fake", "<script>alert(1)</script>"))
    assert run_part(["report", str(path), "--html", str(html)]) == 0
    assert "<script>alert" not in html.read_text() and "&lt;script&gt;alert" in html.read_text()


def test_without_plotly_the_extra_is_named_before_anything_is_measured(monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "plotly.graph_objects", None)
    from numllama.engine.errors import RequestError

    with pytest.raises(RequestError, match=r"--html needs plotly: pip install 'numllama\[bench\]'"):
        serve(*SHORT, "--html", "x.html", a=QUICK)


def test_ctrl_c_prints_what_is_there(monkeypatch, capsys):
    from numllama.benchmarks.serve import ServeBench

    plain = ServeBench.measure

    def measure(self, contender, cell, number):
        if number == 2:
            raise KeyboardInterrupt
        return plain(self, contender, cell, number)

    monkeypatch.setattr(ServeBench, "measure", measure)
    with faked(QUICK) as url:
        assert run_part(["serve", f"a={url}", *SHORT[:-1], "--rounds", "5"]) == 130
    out = capsys.readouterr().out
    assert "| tpot p50, ms" in out and "interrupted: these are the rounds that were complete" in out


def test_ctrl_c_within_a_request_leaves_no_traceback(tmp_path):
    """Sent while a slow answer streams, to the command as it is installed."""
    path = tmp_path / "rows.jsonl"
    with faked(replace(QUICK, step=0.02)) as url:
        # a background job's child ignores the signal unless told otherwise
        heed = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)"
        main = f"{heed}; from numllama.api.cli import main; sys.exit(main(sys.argv[1:]))"
        command = [sys.executable, "-P", "-c", main, "bench", "serve", f"a={url}", *SHORT[:4], "--rounds", "999"]
        process = subprocess.Popen([*command, "--jsonl", str(path)], stdout=PIPE, stderr=PIPE, text=True)
        until(lambda: path.exists() and path.read_text().count('"round"') >= 2, seconds=60)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")
    assert "| tpot p50, ms" in out and f"the same command resumes it from {path}" in out


# --- workloads


def test_prompts_share_the_requested_fraction():
    prompts = [prompt.split() for prompt, _ in Load(4, 40, 8, clients=1, shared=0.5).questions([7])]
    assert len({tuple(prompt[:20]) for prompt in prompts}) == 1 and len({tuple(prompt) for prompt in prompts}) == 4
    mixed = Load(50, 40, 8, clients=1, mixed=True).questions([7])
    assert {len(prompt.split()) for prompt, _ in mixed} == {20, 40, 80} and {n for _, n in mixed} == {4, 8, 16}


@pytest.mark.parametrize("arrivals", ["poisson", "constant", "burst"])
def test_an_open_loop_keeps_its_rate(arrivals):
    moments = Load(4000, 1, 1, rate=40, arrivals=arrivals).moments([0])
    assert moments[-1] == pytest.approx(100, rel=0.06) and moments == sorted(moments) and moments[0] >= 0


def test_a_trace_is_replayed_from_its_beginning(tmp_path):
    rows = [
        {"timestamp": 5000, "input_length": 10, "output_length": 3},
        {"timestamp": 5250, "input_length": 20, "output_length": 4},
    ]
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    load = scale_prompts(Load(0, 1, 1, trace=read_trace(path)), 0.5)
    assert load.moments([0]) == [0.0, 0.25]
    assert [(len(prompt.split()), n) for prompt, n in load.questions([0])] == [(5, 3), (10, 4)]


def test_rounds_are_as_long_as_the_budget_allows():
    """Worked example: two servers of 1 and 2 s a request; 40 rounds of one client's 4 requests would take 480 s."""
    one, eight = Load(4, 1, 1, clients=1), Load(16, 1, 1, clients=8)
    assert size_rounds([one], [1.0, 2.0], 480) == ([4], 12.0)
    assert size_rounds([one], [1.0, 2.0], 240) == ([2], 6.0)
    assert size_rounds([one], [1.0, 2.0], 1) == ([1], 3.0)
    assert size_rounds([one, eight], [1.0, 2.0], 40 * 30) == ([2, 8], 30.0)
    assert size_rounds([Load(1, 1, 1, rate=2.0)], [0.1], 1) == ([4], 2.0)  # requests of an open loop take their time


def test_too_small_a_budget_is_said_at_once(monkeypatch, capsys):
    slow = replace(QUICK, first=3.0)
    serve_on_a_clock(monkeypatch, *SHORT[:4], "--budget", "9s", "--busy", a=slow, b=slow)
    line = (
        "a round takes 6.01 s and 0 s of the budget are left; 11 rounds are the fewest that allow a verdict: --budget 3"
    )
    assert capsys.readouterr().out.startswith(line)


def test_a_difference_of_a_tenth_is_found_within_the_usual_budget(monkeypatch, capsys):
    """Answers of 6 and of 6.6 s: in 5 minutes, with rounds of one request, there is time for enough of them."""
    a = replace(QUICK, first=2.0, step=4 / 63)
    serve_on_a_clock(monkeypatch, "--busy", "--seed", "1", a=a, b=replace(a, first=2.2, step=4.4 / 63))
    out = capsys.readouterr().out
    assert "stopped: every verdict is known" in out
    rows = [row.split("|") for row in out.splitlines() if row.startswith("| ")]
    verdicts = [row[-2].strip() for row in rows if "p50" in row[1] or "output" in row[1]]
    assert [word for word in verdicts if word] == ["slower"] * 4


def test_a_request_keeps_what_it_does_not_set():
    assert Prompted("x", 3, turns=(("user", "a"),)).messages == [
        {"role": "user", "content": "a"},
        {"role": "user", "content": "x"},
    ]
