"""`list`, `ps`, `stop`, `show`, `trace` and `--version`."""

import re
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from adapters import tiny_lora
from dialects import file_of
from gguf import GGUFWriter
from safetensors.numpy import load_file
from tiny_encoder import tiny_encoder

from numllama.engine.gguf.read import GGUF, I32
from numllama.engine.gguf.write import write_gguf
from numllama.engine.model.batch import Batch
from numllama.engine.model.decoder import forward
from numllama.engine.model.load import load_model
from numllama.kernels import NUMPY
from numllama.kernels.quants import FORMATS_BY_NAME


def test_list_shows_the_local_store(alone, numllama):
    heading, *rows = numllama("list").out.splitlines()
    assert re.fullmatch(r"NAME           ID              SIZE      MODIFIED", heading)
    assert {row.split()[0] for row in rows} == {"m:latest", "bare:latest"}
    assert all(re.fullmatch(r"[a-z]+:latest +[0-9a-f]{12}    [\d.]+ [KM]B +.* ago", row) for row in rows)
    assert [row.split()[0] for row in numllama("ls").out.splitlines()[1:]] == [row.split()[0] for row in rows]


def test_list_filters_by_prefix_ignoring_case(alone, numllama):
    assert [row.split()[0] for row in numllama("list", "BA").out.splitlines()] == ["NAME", "bare:latest"]
    assert numllama("list", "zzz").out == "NAME    ID    SIZE    MODIFIED\n"


def test_list_shows_the_models_of_a_server(with_server, numllama):
    listed = [row.split()[0] for row in numllama("list").out.splitlines()[1:]]
    assert listed == [one["name"] for one in with_server.client.get("/api/tags").json()["models"]]
    assert {f"{name}:latest" for name in ("m", "bare", "go", "h", "e")} <= set(listed)  # other tests may have made more


def test_ps_shows_loaded_models_until_they_are_stopped(with_server, numllama):
    for name in ["m", *(one["name"] for one in with_server.client.get("/api/ps").json()["models"])]:
        assert numllama("stop", name) == (0, "", "")
    assert numllama("ps") == (0, "NAME    ID    SIZE    PROCESSOR    CONTEXT    UNTIL\n", "")
    numllama("run", "m", "hello", "--keepalive", "10m")
    heading, row = numllama("ps").out.splitlines()
    assert re.split(" {2,}", heading) == ["NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL"]
    assert re.split(" {2,}", row)[3:] == ["100% CPU", "256", "9 minutes from now"]
    numllama("run", "m", "hello", "--keepalive", "-1m")
    assert numllama("ps", "M").out.splitlines()[1].endswith("Forever")
    assert len(numllama("ps", "x").out.splitlines()) == 1
    numllama("stop", "m")
    assert len(numllama("ps").out.splitlines()) == 1


def test_stopping_an_unknown_model_is_an_error(with_server, numllama):
    assert numllama("stop", "nope") == (1, "", 'Error: couldn\'t find model "nope" to stop\n')
    assert numllama("stop", "a b") == (1, "", "Error: invalid model name\n")


def test_a_server_of_the_same_version_is_one_line(with_server, numllama, monkeypatch):
    monkeypatch.setattr("numllama.api.cli.client.Client.version", lambda self: ("numllama", version("numllama")))
    assert numllama("--version").out == f"numllama version is {version('numllama')}\n"
    monkeypatch.setattr("numllama.api.cli.client.Client.version", lambda self: ("ollama", "0.33.0"))
    assert numllama("--version").out.splitlines()[0] == "ollama version is 0.33.0"


INFORMATION = """\
  Model
    architecture        llama
    parameters          {size}
    context length      256
    embedding length    64
    quantization        {quant}

  Capabilities
    completion

  Parameters
    num_predict    8
    temperature    0

  System
    S.

  License
    MIT
    to all
    ...

"""


def test_a_model_is_shown_in_sections(alone, numllama):
    status, out, err = numllama("show", "m")
    size, quant = re.search(r"parameters {10}(\S+)", out)[1], re.search(r"quantization {8}(\S+)", out)[1]
    assert (status, err) == (0, "")
    assert out == INFORMATION.format(size=size, quant=quant)


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("--license", "MIT\n\nto all\nand\n"),
        ("--system", "S.\n"),
        ("--parameters", "num_predict                    8\ntemperature                    0\n"),
        ("--template", "{{ .Prompt }}\n"),
    ],
)
def test_a_part_is_shown_unchanged(alone, numllama, flag, expected):
    assert numllama("show", "m", flag).out == expected == numllama("show", flag, "M:latest").out
    assert numllama("show", "bare", "--system").out == "\n"


def test_a_modelfile_names_the_model(alone, numllama, store):
    out = numllama("show", "m", "--modelfile").out
    assert "# FROM m:latest\n" in out and f"FROM {store}/blobs/sha256-" in out and "\nSYSTEM S.\n" in out


def test_the_tokenizer_is_written_as_files(alone, numllama, models, tmp_path):
    for model in ("m", str(models / "chat.gguf")):
        status, out, _ = numllama("show", model, "--tokenizer", str(tmp_path / "new"))
        paths = [tmp_path / "new" / name for name in ("tokenizer.json", "tokenizer_config.json")]
        assert status == 0 and out.splitlines() == [str(path) for path in paths] and all(map(Path.exists, paths))


def test_show_asks_the_server(with_server, numllama):
    assert numllama("show", "h", "--system").out == "S\n"
    assert numllama("show", "nope") == (1, "", "Error: model 'nope:latest' not found\n")


def test_a_file_is_shown_with_metadata_and_tensors(alone, numllama, file):
    out = numllama("show", file).out
    gguf = GGUF.open(file)
    missing = [name for name in gguf.tensors if f"\n    {name} " not in out]
    assert not missing and "token_embd.weight           F32    [64 " in out
    missing = [key for key in gguf.kv if f"\n    {key} " not in out]
    assert missing == ["tokenizer.chat_template"]  # shown by --template
    assert numllama("show", file, "--template").out == gguf.kv["tokenizer.chat_template"] + "\n"
    assert "\n    tokenizer.ggml.scores                     [0 0 0 ...+" in out


def test_a_file_in_ollama_s_dialect_is_shown_as_it_is_with_the_family_that_it_is_read_as(alone, numllama, tmp_path):
    path = tmp_path / "o.gguf"
    file_of(path, "gptoss", {"block_count": I32(1)}, {"blk.0.attn_sinks": (4,)})
    out = numllama("show", str(path)).out
    for line in ("architecture    gptoss", "read as         gpt-oss", "gptoss.block_count", "blk.0.attn_sinks "):
        assert line in out, out
    assert "gpt-oss." not in out


def test_a_file_of_an_unsupported_architecture_is_shown(alone, numllama, tmp_path):
    """A file of another writer, with an unknown architecture and value types that no model uses."""
    writer = GGUFWriter(tmp_path / "alien.gguf", "alien")
    writer.add_array("alien.names", ["x", "y"])
    writer.add_string("alien.note", "two\nlines")
    writer.add_float64("alien.fraction", 0.1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    out = numllama("show", str(tmp_path / "alien.gguf")).out
    for line in (
        "architecture    alien",
        "alien.fraction             0.1",
        "alien.names                [x y]",
        r"two\nlines",
    ):
        assert line in out, out


def test_a_trace_shows_every_activation(alone, numllama, file, tmp_path):
    status, out, err = numllama("trace", file, "hello", "--save", str(tmp_path / "out.safetensors"))
    assert (status, err) == (0, "")
    saved = load_file(tmp_path / "out.safetensors")
    assert {"embd", "attn_norm-0", "kq_soft_max-1", "l_out-1", "result_output"} <= set(saved)
    for name in {key.split("-")[0] for key in saved}:
        assert f" {name} " in out
    assert re.search(r"embd +\d+ x 64 +-?[\d.e-]+ +[\d.]+ +-[\d.]+ +[\d.]+", out)
    assert f"saved {len(saved)} arrays to " in " ".join(out.split())


def test_a_trace_can_be_limited_to_some_names(alone, numllama, file, tmp_path):
    numllama(
        "trace",
        file,
        "hello",
        "--only",
        "l_out",
        "--only",
        "ffn_*",
        "--kernels",
        "exact",
        "--save",
        str(tmp_path / "x"),
    )
    assert {key.split("-")[0] for key in load_file(tmp_path / "x")} == {
        "l_out",
        *("ffn_inp", "ffn_norm", "ffn_gate", "ffn_up", "ffn_swiglu", "ffn_out"),
    }


def test_trace_beside_is_an_older_spelling_of_diff(alone, numllama, file, tmp_path):
    theirs = tmp_path / "theirs.safetensors"
    numllama("trace", file, "hello", "--save", str(theirs))
    got, expected = numllama("trace", file, "hello", "--beside", str(theirs)), numllama("diff", file, str(theirs))
    assert got == expected and "no operation is wrong" in got.out
    assert "--beside" not in numllama("trace", "--help").out


def test_a_trace_of_an_encoder_ends_with_the_hidden_states(alone, numllama, tmp_path):
    file = tiny_encoder(tmp_path / "bert.gguf")
    status, out, err = numllama("trace", str(file), "hello", "--save", str(tmp_path / "x"))
    assert (status, err) == (0, "") and "most likely" not in out
    assert list(load_file(tmp_path / "x"))[-1] == "result_embd"


def test_a_trace_applies_the_models_adapters(alone, numllama, file, tmp_path):
    adapter = tiny_lora(tmp_path / "lora.gguf", file)
    (tmp_path / "Modelfile").write_text(f"FROM {file}\nADAPTER {adapter}\n")
    numllama("create", "adapted", "-f", str(tmp_path / "Modelfile"))
    try:
        for model, to in ((file, "plain"), ("adapted", "adapted")):
            numllama("trace", model, "hello", "--only", "result_output", "--save", str(tmp_path / to))
    finally:
        numllama("rm", "adapted")
    plain, adapted = (load_file(tmp_path / name)["result_output"] for name in ("plain", "adapted"))
    gguf = GGUF.open(file)
    assert np.abs(plain - adapted).max() > 0.1
    model = load_model(gguf, {adapter: 1})
    expected = forward(model, Batch.of(model.tokenizer.encode("hello")), model.new_cache(8, type="f32"), NUMPY)
    np.testing.assert_array_equal(adapted, expected)


def test_errors_of_trace_are_one_line(alone, numllama, file, tmp_path):
    for args, message in [
        (["m", "hi", "--kernels", "nope"], "unknown kernel set 'nope'; choose from numpy-float32, "),
        (["nope", "hi"], "model 'nope' not found"),
        ([file, "hi", "--only", "nope"], "no activation matches nope; run without --only"),
        ([file, "hi", "--only", "kq", "--kernels", "exact"], "'kq' is computed inside attention"),
        ([file, "hi", "--save", str(tmp_path / "none" / "x")], "cannot be written"),
        ([file, "the " * 300], "expected 1 to 256, the model's context length"),
        ([str(tiny_lora(tmp_path / "lora.gguf", file)), "hi"], "lora.gguf: an adapter, expected a model"),
    ]:
        status, _, err = numllama("trace", *args)
        assert status == 1 and err.startswith("Error: ") and message in err and err.count("\n") == 1, (args, err)


@pytest.mark.parametrize("where", ["alone", "with_server"])
def test_a_model_whose_name_ends_in_gguf_is_used_like_any_other(request, where, numllama, tmp_path, monkeypatch):
    """Such repositories are on Hugging Face.  A file of that name takes precedence."""
    request.getfixturevalue(where)
    monkeypatch.chdir(tmp_path)
    assert numllama("cp", "m", "foo.gguf").status == 0
    expected = numllama("run", "m", "hello")
    assert numllama("run", "foo.gguf", "hello") == expected
    assert numllama("show", "foo.gguf").out == numllama("show", "m").out
    write_gguf(tmp_path / "foo.gguf", {"general.architecture": "here"})
    assert "here" in numllama("show", "foo.gguf").out
    (tmp_path / "foo.gguf").unlink()
    assert numllama("rm", "foo.gguf").status == 0
    assert numllama("run", "foo.gguf", "hello").err == "Error: foo.gguf: no such file\n"


HOSTILE, ESCAPED = "a\x1b[2J\r\u202eb\n", r"a\x1b[2J\r\u202eb\n"


def test_names_of_a_server_cannot_steer_the_terminal(with_server, numllama, monkeypatch):
    entry = {"name": HOSTILE, "digest": "0" * 64, "size": 1, "modified_at": "2020-01-01T00:00:00Z"}
    monkeypatch.setattr("numllama.api.cli.client.Client.list", lambda self: [entry])
    monkeypatch.setattr(
        "numllama.api.cli.client.Client.ps", lambda self: [entry | {"expires_at": "2020-01-01T00:00:00Z"}]
    )
    for command in ("list", "ps"):
        assert numllama(command).out.splitlines()[1].startswith(ESCAPED)
    statuses = [{"status": HOSTILE}, {"status": "success"}]
    monkeypatch.setattr("numllama.api.cli.client.Client.pull", lambda self, *_: iter(statuses))
    assert numllama("pull", "m").err == f"{ESCAPED}\nsuccess\n"
    assert numllama("stop", HOSTILE).err.startswith("Error: ")
    assert numllama("stop", HOSTILE).err.count("\n") == 1


def test_keys_and_architecture_of_a_file_cannot_steer_the_terminal(numllama, tmp_path):
    path = tmp_path / "hostile.gguf"
    values = {"general.architecture": HOSTILE, HOSTILE: HOSTILE, "general.name": HOSTILE}
    write_gguf(path, values, [(HOSTILE, FORMATS_BY_NAME["F32"], (1,), np.zeros(1, "<f4"))])
    shown = numllama("show", str(path))
    assert shown.status == 0 and shown.out.count(ESCAPED) >= 4
    assert not set(shown.out) & set("\x1b\r\u202e")


def test_a_license_is_unchanged_in_a_pipe_and_escaped_on_a_terminal(alone, numllama, monkeypatch):
    monkeypatch.setattr("numllama.engine.serve.engine.Engine.show", lambda self, *_: {"license": f"1\r\n{HOSTILE}2"})
    assert numllama("show", "m", "--license").out == f"1\r\n{HOSTILE}2\n"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert numllama("show", "m", "--license").out == r"1" + "\n" + ESCAPED.removesuffix(r"\n") + "\n2\n"
