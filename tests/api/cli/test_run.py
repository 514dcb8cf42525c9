"""`numllama run` with a prompt: an answer from this process or a server, or an error in one line."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from registries import Answer, Served

from numllama.api.cli.client import split_lines
from numllama.api.cli.wrap import WrappedOutput
from numllama.engine.errors import RequestError
from numllama.engine.model.load import load_model
from numllama.engine.options import Options
from numllama.engine.run.request import complete
from numllama.engine.sampling import Sampler
from numllama.engine.serve.engine import Engine
from numllama.engine.store.file import FileModel
from tiny import tiny_gguf

BRIEF = ["-o", "temperature=0", "-o", "num_predict=8"]


def greedy(path, prompt, n=8):
    options = Options(temperature=0.0, num_predict=n)
    return "".join(piece.text for piece in complete(load_model(path), prompt, options))


def rendered(text):
    """Return the prompt that tiny.CHAT_TEMPLATE renders for `text`."""
    return f"<|user|>{text}\n<|assistant|>"


def test_a_file_is_prompted_by_its_own_template(alone, numllama, file):
    expected = greedy(file, rendered("once upon"))
    assert numllama("run", file, "once", "upon", *BRIEF) == (0, f"{expected}\n", "")


def test_raw_skips_the_template(alone, numllama, file):
    assert numllama("run", file, "once upon", "--raw", *BRIEF).out == greedy(file, "once upon") + "\n"


def test_piped_input_comes_before_the_prompt(alone, numllama, file):
    expected = greedy(file, "there was a dog the")
    assert numllama("run", file, "the", "--raw", *BRIEF, stdin="there was a dog").out == f"{expected}\n"
    assert numllama("run", file, "--raw", *BRIEF, stdin="there was a dog the").out == f"{expected}\n"


@pytest.fixture
def replies(monkeypatch):
    """Return a function that lets a server answer /api/generate with the given bytes, and everything else with {}."""
    server = Served()
    monkeypatch.setenv("OLLAMA_HOST", server.url)

    def reply(body):
        server.answer = lambda request: Answer(body=body if request.path == "/api/generate" else b"{}")

    yield reply
    server.close()


def test_every_character_of_an_answer_is_printed(replies, numllama):
    """JSON may hold U+0085, U+2028 and so on as they are; only a newline ends a line of an answer."""
    text = "a\x85b\u2028c\u2029d\x0be\x0cf\x1cg"
    lines = [{"response": c, "done": False} for c in text] + [{"response": "", "done": True, "done_reason": "stop"}]
    encoded = [json.dumps(line, ensure_ascii=False).replace("\\u001c", "\\u001C") for line in lines]
    replies("\r\n".join(encoded).encode())
    assert numllama("run", "m", "x") == (0, f"{text}\n", "")


@pytest.mark.parametrize("body", [b"1\n", b"[]", b'"error"', b"\xff\n", b"{"])
def test_a_line_that_is_no_object_is_an_error_in_a_line(replies, numllama, body):
    replies(body)
    status, out, err = numllama("run", "m", "x")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert "invalid response; the server does not implement Ollama's API" in err


def test_lines_are_split_at_newlines_only():
    chunks = [b"a\xe2\x80", b"\xa8b\n", b"\n\nc", b"\r\nd\xc2\x85\ne"]
    assert list(split_lines(chunks)) == [b"a\xe2\x80\xa8b", b"c", b"d\xc2\x85", b"e"]


def test_an_installed_model_uses_its_parameters_and_system_message(alone, numllama, file):
    expected = greedy(file, f"<|system|>S.\n{rendered('hello')}")
    assert numllama("run", "m", "hello") == (0, f"{expected}\n", "")


def test_without_a_prompt_the_model_is_only_loaded(alone, numllama):
    assert numllama("run", "m") == (0, "", "")


@pytest.mark.parametrize("kernels", ["numpy-float32", "numpy-float64", "exact"])
def test_kernel_sets_agree_on_greedy_text(with_server, numllama, file, kernels):
    """--kernels runs in this process even if a server is running, whose model `h` would answer differently."""
    expected = greedy(file, f"<|system|>S.\n{rendered('hello')}")
    assert numllama("run", "m", "hello", "--kernels", kernels).out == f"{expected}\n"


def test_timings_go_to_stderr(alone, numllama):
    status, out, err = numllama("run", "m", "hello", "--verbose")
    assert status == 0 and out.count("\n") == 1
    names = [
        "total duration",
        "load duration",
        *(f"{p}eval {x}" for p in ("prompt ", "") for x in ("count", "duration", "rate")),
    ]
    assert [line[:22].rstrip(" :") for line in err.strip().split("\n")] == names
    figures = {line[:21].rstrip(" :"): line[22:] for line in err.strip().split("\n")}
    assert figures["eval count"] == "8 token(s)"
    assert re.fullmatch(r"\d+\.\d\d tokens/s", figures["eval rate"])
    assert re.fullmatch(r"[\d.]+(m|µ)?s", figures["total duration"])


def test_a_server_gives_the_same_answer(with_server, numllama, file):
    assert numllama("run", "m", "hello") == (0, greedy(file, rendered("hello")) + "\n", "")
    assert "eval count:           8 token(s)" in numllama("run", "m", "hello", "--verbose").err


def test_errors_are_one_line(alone, numllama, file, models, tmp_path):
    (tmp_path / "text.gguf").write_text("hello")
    (tmp_path / "folder.gguf").mkdir()
    (tmp_path / "cut.gguf").write_bytes((models / "bare.gguf").read_bytes()[:5000])
    tiny_gguf(tmp_path / "alien.gguf", family="alien")
    for args, message in [
        (["nope", "hi"], "model 'nope' not found"),
        (["a b", "hi"], "invalid model name"),
        ([str(tmp_path / "gone.gguf"), "hi"], "gone.gguf: no such file"),
        ([str(tmp_path / "folder.gguf"), "hi"], "is a directory"),
        ([str(tmp_path / "text.gguf"), "hi"], "at byte 0: found b'hell', expected b'GGUF'"),
        ([str(tmp_path / "cut.gguf"), "hi"], "cut.gguf: at byte "),
        ([str(tmp_path / "alien.gguf"), "hi"], "alien"),
        ([file, "hi", "-o", "bogus=1"], "unknown parameter 'bogus'"),
        ([file, "hi", "-o", "mirostat=9"], 'option "mirostat" must be between 0 and 2, got 9'),
        (
            [file, "hi", "--think=maybe"],
            'invalid value for --think: "maybe" (must be true, false, high, medium, low, or max)',
        ),
        ([file, "hi", "--think"], "does not support thinking"),
        ([file, "hi", "--format", "xml"], "invalid --format; expected json or a JSON schema: Expecting value"),
        ([file, "hi", "--keepalive", "5x"], 'time: unknown unit "x" in duration "5x"'),
        ([file, "hi", "--kernels", "nope"], "unknown kernel set 'nope'; choose from numpy-float32, "),
        ([file, "the " * 300], "the input length exceeds the context length: "),
        ([file, "--raw", ""], None),
    ]:
        status, out, err = numllama("run", *args)
        assert status == (message is not None) and out == "", args
        assert err == "" if message is None else err.startswith("Error: ") and message in err, (args, err)
        assert err.count("\n") == (message is not None)


def test_an_unreadable_file_is_named(alone, numllama, file, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("numllama.engine.gguf.read.open", refuse, raising=False)
    status, out, err = numllama("show", file)
    assert (status, out) == (1, "") and file in err and "ermission denied" in err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["a b", "hi"], "invalid model name"),
        (["m", "the " * 300], "400 Bad Request: the input length exceeds the context length"),
    ],
)
def test_errors_of_a_server_include_the_status(with_server, numllama, args, message):
    assert numllama("run", *args) == (1, "", f"Error: {message}\n")


@pytest.mark.parametrize("where", ["alone", "with_server"])
def test_format_constrains_the_answer(request, numllama, where):
    request.getfixturevalue(where)
    schema = '{"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"], "additionalProperties": false}'
    out = numllama("run", "m", "hello", "--format", schema, "-o", "num_predict=200").out
    assert json.loads(out) == {"a": 1}


@pytest.mark.parametrize("where", ["alone", "with_server"])
def test_an_error_during_the_answer_follows_the_text_so_far(request, numllama, file, monkeypatch, where):
    request.getfixturevalue(where)
    sample, drawn = Sampler.sample, []

    def fail(self, *args, **how):
        drawn.append(1)
        if len(drawn) > 4:
            raise RequestError("out of words")
        return sample(self, *args, **how)

    system = "<|system|>S.\n" if where == "alone" else ""
    expected = greedy(file, system + rendered("hello"))
    monkeypatch.setattr(Sampler, "sample", fail)
    status, out, err = numllama("run", "m", "hello")
    assert (status, err) == (1, "Error: out of words\n")
    assert out.endswith("\n") and len(out) > 1 and expected.startswith(out[:-1])


def test_ctrl_c_ends_the_answer_and_the_line(alone, numllama, file, monkeypatch):
    put = WrappedOutput.put

    def interrupted(self, text):
        put(self, text)
        raise KeyboardInterrupt

    monkeypatch.setattr(WrappedOutput, "put", interrupted)
    status, out, err = numllama("run", file, "hello", *BRIEF)
    assert (status, err) == (130, "") and out.endswith("\n") and len(out) > 1


def test_an_embedding_model_prints_a_vector(alone, numllama, models):
    file = str(models / "embed.gguf")
    (piece,) = Engine(file=FileModel.of(Path(file))).embed(file, ["the dog"])
    (expected,) = piece.embeddings
    status, out, err = numllama("run", file, "the", "dog")
    assert (status, err) == (0, "") and out.endswith("]\n")
    np.testing.assert_array_equal(np.float32(json.loads(out)), expected)
    assert numllama("run", file, stdin="the dog").out == out
    few = json.loads(numllama("run", file, "the dog", "--dimensions", "3").out)
    np.testing.assert_allclose(few, expected[:3] / np.linalg.norm(expected[:3]), rtol=1e-6)


def test_a_server_gives_the_same_vector(with_server, numllama, models):
    assert numllama("run", "e", "the dog") == numllama("run", str(models / "embed.gguf"), "the dog")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], 'embedding models require input text. Usage: numllama run {} "your text here"'),
        (["the " * 300, "--truncate=false"], "the input length exceeds the context length"),
        (["the", "--truncate=maybe"], 'invalid argument "maybe" for "--truncate" flag: strconv.ParseBool: parsing'),
    ],
)
def test_errors_of_embedding_are_one_line(alone, numllama, models, args, message):
    file = str(models / "embed.gguf")
    status, out, err = numllama("run", file, *args)
    assert (status, out) == (1, "") and err.startswith(f"Error: {message.format(file)}"), err
    assert numllama("run", file, "the " * 300, "--truncate").status == 0
