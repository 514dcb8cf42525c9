"""`numllama look` and `numllama learn`."""

import json
from functools import partial

import pytest

from numllama.api.cli import learn
from numllama.api.cli.look import lines_that_fit
from numllama.engine.errors import LookTooLarge


def test_look_prints_every_table(alone, numllama):
    status, out, err = numllama("look", "m", "the cat", "-o", "num_predict=4", "-o", "seed=1")
    assert (status, err) == (0, "")
    for title in (
        "After each layer the likeliest token",
        "candidates left after each step",
        "Attention of layer 0, head 0",
    ):
        assert title in out
    assert "ffn_swiglu" in out and "KV cache:" in out


def test_json_lines_are_those_of_the_server(alone, numllama):
    status, out, _ = numllama("look", "m", "the cat", "--json", "-o", "num_predict=4")
    lines = [json.loads(line) for line in out.splitlines()]
    steps = [step for line in lines for step in line.get("look", {}).get("steps", [])]
    assert status == 0 and lines[-1]["done_reason"] == "length"
    assert len(steps) == len(lines[0]["look"]["prompt"]["tokens"]) + 3
    assert steps[-1]["sampler"][-1]["top"][0][:2] == steps[-1]["next"]


def test_a_file_by_its_path_is_looked_at_raw(alone, numllama, models):
    _, out, _ = numllama("look", str(models / "bare.gguf"), "the cat", "--raw", "--json", "-o", "num_predict=2")
    assert json.loads(out.splitlines()[0])["look"]["prompt"]["text"] == "the cat"


def test_the_page_names_a_file_as_it_is_called(alone, numllama, models, tmp_path):
    numllama(
        "look", str(models / "bare.gguf"), "the cat", "--raw", "--html", str(tmp_path / "a.html"), "-o", "num_predict=2"
    )
    data = (tmp_path / "a.html").read_text().partition('id="data">')[2].partition("</script>")[0]
    assert json.loads(data)["model"]["name"] == "bare.gguf"


def test_the_page_is_written(alone, numllama, tmp_path):
    status, out, _ = numllama("look", "m", "the cat", "--html", str(tmp_path / "a.html"), "-o", "num_predict=3")
    assert status == 0 and out.startswith(str(tmp_path / "a.html")) and 'id="data"' in (tmp_path / "a.html").read_text()
    status, _, err = numllama("look", "m", "the cat", "--html", str(tmp_path / "no" / "a.html"))
    assert status == 1 and err == f"Error: {tmp_path / 'no' / 'a.html'}: No such file or directory\n"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nope", "a"], "model 'nope' not found"),
        (["m", "a", "--head", "7.0"], "--head 7.0: expected LAYER.HEAD from 0.0 to 1.3"),
        (["m", "a", "--head", "x"], "--head x: expected LAYER.HEAD"),
        (["m", "a", "-o", "temperature"], "option 'temperature' has no value"),
    ],
)
def test_a_wrong_look_is_one_line(alone, numllama, args, message):
    status, out, err = numllama("look", *args)
    assert status == 1 and out == "" and err.startswith(f"Error: {message}") and err.count("\n") == 1


def test_learn_opens_the_running_server_s_page(served, numllama, monkeypatch):
    opened = []
    monkeypatch.setenv("OLLAMA_HOST", served.url)
    monkeypatch.setattr(learn.webbrowser, "open", opened.append)
    status, out, _ = numllama("learn", "m", "--no-browser")
    assert (status, out, opened) == (0, f"{served.url}/learn#model=m\n", [])
    status, _, err = numllama("learn", "nope")
    assert status == 1 and "nope" in err and err.count("\n") == 1


def test_learn_names_a_server_without_the_page(served, numllama, monkeypatch):
    monkeypatch.setenv("OLLAMA_HOST", served.url)
    monkeypatch.setattr(learn.httpx, "get", lambda *_, **__: type("Answer", (), {"status_code": 404}))
    status, _, err = numllama("learn")
    assert status == 1 and err.startswith(f"Error: the server at {served.url} has no page /learn (status 404)")


def test_learn_starts_a_server_and_opens_its_page(alone, numllama, monkeypatch):
    started = []
    monkeypatch.setattr(
        learn, "serve_forever", lambda settings, *, engine, ready: started.append(engine) or ready("http://x:1")
    )
    status, out, _ = numllama("learn", "m", "--no-browser")
    assert (status, out, len(started)) == (0, "http://x:1/learn#model=m\n", 1)
    started[0].close()
    assert numllama("learn", "nope").status == 1 and len(started) == 1


def test_a_file_has_the_heads_that_fit():
    limit = {"*": 900, "layer": 90, "head": 9}

    def lines_of(attention, most):
        size = limit["*" if attention == "*" else "layer" if attention[0][1] == "*" else "head"]
        if size > most:
            raise LookTooLarge(size, "too large")
        yield {"attention": attention}

    got = {most: lines_that_fit(partial(lines_of, most=most), 3, 1) for most in (900, 90, 9)}
    assert got[900] == ([{"attention": "*"}], "")
    assert got[90][0] == [{"attention": [[3, "*"]]}] and got[90][1].startswith("attention of layer 3 alone")
    assert got[9][0] == [{"attention": [[3, 1]]}] and "layer 3, head 1 alone" in got[9][1]
    assert all("OLLAMA_LOOK_LIMIT=900" in note for _, note in (got[90], got[9]))
    with pytest.raises(LookTooLarge):
        lines_that_fit(partial(lines_of, most=1), 3, 1)
