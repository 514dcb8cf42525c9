"""`pull` and `push`, with a server and without, and their progress."""

from __future__ import annotations

import io
import re
import sys
from dataclasses import replace

import pytest
from registries import Answer, Registry

from numllama.api.cli.progress import Progress


@pytest.fixture
def registry():
    double = Registry()
    yield double
    double.close()


def test_a_server_pushes_and_pulls(with_server, registry, numllama):
    name = f"{registry.host}/lab/m"
    assert numllama("cp", "m", name).status == 0
    status, out, err = numllama("push", "--insecure", name)
    assert status == 0 and out == f"\nYou can find your model at:\n\n\t{name}:latest\n"
    assert [err.splitlines()[0], *err.splitlines()[-2:]] == ["retrieving manifest", "pushing manifest", "success"]
    assert numllama("rm", name).status == 0
    status, out, err = numllama("pull", name, "--insecure")
    shown = err.splitlines()
    assert (status, out) == (0, "")
    assert [shown[0], *shown[-3:]] == [
        "pulling manifest",
        "verifying sha256 digest",
        "writing manifest",
        "success",
    ]
    assert shown[1:-3] and all(re.fullmatch("pulling [0-9a-f]{12}", line) for line in shown[1:-3])
    assert numllama("rm", name).status == 0


def test_errors_are_one_line(with_server, registry, numllama):
    assert numllama("pull", "a b") == (1, "", "Error: 400 Bad Request: invalid model name\n")
    name = f"{registry.host}/lab/none"
    shown = "pulling manifest\nError: pull model manifest: file does not exist\n"
    assert numllama("pull", "--insecure", name) == (1, "", shown)
    status, _, err = numllama("push", "--insecure", name)
    assert status == 1 and err.splitlines()[:2] == ["retrieving manifest", "couldn't retrieve manifest"]
    assert re.match("Error: open .*: no such file or directory$", err.splitlines()[2])
    assert numllama("push").err == "Error: accepts 1 arg(s), received 0\n"


def test_without_a_server_this_process_pulls_and_resumes(alone, registry, numllama, monkeypatch, tmp_path):
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "models"))
    name = f"{registry.host}/lab/m"
    registry.publish("lab/m:latest", ("application/vnd.ollama.image.model", bytes(5_000_000)))

    def spoil(request, answer):
        return Answer(403) if "bytes=2000000-" in request.headers.get("range", "") else replace(answer, cut=2_000_000)

    registry.spoil = spoil
    status, _, err = numllama("pull", "--insecure", name)
    assert status == 1 and "kept 2000000 of 5000000 bytes" in err
    registry.spoil = lambda request, answer: answer
    status, _, err = numllama("pull", "--insecure", name)
    assert status == 0 and re.search(r"^pulling [0-9a-f]{12}: resuming at 2 MB of 5 MB$", err, re.M)


def test_ctrl_c_prints_how_to_resume(alone, registry, numllama, monkeypatch):
    def interrupted(self, name, insecure):
        yield {"status": "pulling manifest"}
        raise KeyboardInterrupt

    monkeypatch.setattr("numllama.engine.serve.engine.Engine.pull", interrupted)
    status, _, err = numllama("pull", "x")
    assert status == 130
    assert err == "pulling manifest\ndownload interrupted; `numllama pull x` resumes it\n"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_each_blob_has_its_own_bar_on_a_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Progress() as progress:
        progress.follow(
            {"status": f"pulling {blob}", "digest": blob, "total": 2_000_000, "completed": n * 1_000_000}
            for blob in ("aaaaaaaaaaaa", "bbbbbbbbbbbb")
            for n in (1, 2)
        )
        shown = sys.stderr
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.getvalue())
    bars = [line for line in re.split(r"[\r\n]+", text) if line.strip()][-2:]
    assert all(re.search(r"pulling (a|b){12} .* 100% 2.0/2.0 MB .* 0:00:00", bar) for bar in bars)
    assert "pulling aaaaaaaaaaaa: resuming at 1 MB of 2 MB" in text


def test_run_has_a_server_pull_a_missing_model(with_server, registry, numllama):
    name = f"{registry.host}/lab/m"
    numllama("cp", "m", name)
    numllama("push", "--insecure", name)
    numllama("rm", name)
    status, out, err = numllama("run", "--insecure", name, "hello")
    assert status == 0 and out == numllama("run", "m", "hello").out
    assert err.splitlines()[0] == "pulling manifest" and err.splitlines()[-1] == "success"
    assert numllama("run", name, "hello") == (0, out, "")
    numllama("rm", name)
    status, out, err = numllama("run", "127.0.0.1:1/lab/x", "hi")
    refused = 'Error: pull model manifest: Get "https://127.0.0.1:1/v2/lab/x/manifests/latest": con.* refused'
    assert (status, out) == (1, "") and re.fullmatch(f"pulling manifest\n{refused}\n", err)
