"""`create`, `cp` and `rm`, with a server and without."""

import shutil

import pytest

from numllama.engine.store import default_store
from tiny import tiny_gguf


@pytest.fixture(params=["alone", "with_server"])
def folder(request, tmp_path, monkeypatch):
    """Change to a folder with a GGUF; run once without a server and once with one."""
    request.getfixturevalue(request.param)
    monkeypatch.chdir(tmp_path)
    tiny_gguf(tmp_path / "s.gguf", seed=3, general__file_type=0)
    return tmp_path


def test_a_model_is_created_copied_and_deleted(folder, numllama):
    (folder / "Modelfile").write_text("FROM ./s.gguf\nPARAMETER stop X\nSYSTEM You are Z.\n")
    status, out, err = numllama("create", "Z:v1")
    assert (status, out) == (0, "")
    lines = [line.split(" sha256:")[0] for line in err.splitlines()]
    assert lines[:3] == ["gathering model components", "copying file s.gguf", "parsing GGUF"]
    assert lines[-2:] == ["writing manifest", "success"]
    assert numllama("show", "--system", "z:v1").out == "You are Z.\n"
    assert numllama("cp", "z:v1", "lab/y") == (0, "copied 'z:v1' to 'lab/y'\n", "")
    assert numllama("rm", "lab/y", "z:v1") == (0, "deleted 'lab/y'\ndeleted 'z:v1'\n", "")
    status, _, err = numllama("rm", "z:v1")
    assert (status, err) == (1, "Error: model 'z:v1' not found\n")


def test_a_copy_in_several_pieces_is_not_reported_as_resumed(folder, numllama, monkeypatch):
    monkeypatch.setattr("numllama.engine.store.make.sources.CHUNK_BYTES", 1 << 10)
    lines = numllama("create", "pieces").err.splitlines()
    assert lines[1:3] == ["copying file s.gguf", "parsing GGUF"]
    assert numllama("rm", "pieces").status == 0


def test_a_model_is_created_from_weights_in_the_folder_and_quantized(folder, numllama):
    assert numllama("create", "q", "-q", "q8_0").err.splitlines()[-1] == "success"
    assert "Q8_0" in numllama("show", "q").out
    assert numllama("rm", "q").status == 0


def test_paths_in_a_modelfile_are_relative_to_it(folder, numllama, monkeypatch):
    (folder / "sub").mkdir()
    shutil.move(folder / "s.gguf", folder / "sub")
    (folder / "sub" / "file").write_text("FROM s.gguf")
    assert numllama("create", "elsewhere", "--file", "sub/file").status == 0
    assert numllama("rm", "elsewhere").status == 0


@pytest.mark.parametrize(
    "args, text, expected",
    [
        (["-f", "nothere"], "", "specified Modelfile wasn't found"),
        ([], "SYSTEM x", "no FROM line"),
        ([], "FROM m\nPARAMETER num_ctx x", "invalid int value [x]"),
        ([], 'FROM m\nSYSTEM """x\n', "unexpected EOF"),
        (["-q", "Q9"], "FROM s.gguf", "unsupported quantization type Q9 - supported types are F32, F16, Q4_K_S"),
    ],
)
def test_errors_are_one_line(folder, numllama, args, text, expected):
    (folder / "Modelfile").write_text(text)
    status, out, err = numllama("create", "x", *args)
    assert (status, out) == (1, "")
    assert err.splitlines()[-1].startswith(f"Error: {expected}")
    assert "x:latest" not in numllama("list").out


@pytest.mark.parametrize(
    "head, expected",
    [
        (b"GGUF", "w.gguf is a GGUF file, expected a Modelfile, such as one of the line: FROM w.gguf"),
        (b"PK\3\4\0\0", "w.gguf is a binary file, expected a Modelfile"),
    ],
    ids=["GGUF", "zip"],
)
def test_a_model_in_place_of_a_modelfile_is_named_at_once(folder, numllama, head, expected):
    with open(folder / "w.gguf", "wb") as file:
        file.write(head)
        file.truncate(1 << 40)  # a terabyte of nothing, which would take hours to read
    assert numllama("create", "x", "-f", "w.gguf") == (1, "", f"Error: {expected}\n")


def test_an_invalid_name_is_refused(folder, numllama):
    assert numllama("create", "a b").err == "Error: invalid model name: a b\n"
    assert numllama("cp", "m", "a b").status == 1


def test_errors_of_a_server_name_the_argument(with_server, numllama):
    assert numllama("cp", "nope", "x").err == 'Error: model "nope" not found\n'
    assert numllama("cp", "m", "a b").err == 'Error: destination "a b" is invalid\n'
    assert numllama("rm", "a b").err == "Warning: unable to stop model 'a b'\nError: name \"a b\" is invalid\n"


def test_a_blob_that_the_server_has_is_not_uploaded_again(with_server, numllama, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_gguf(tmp_path / "s.gguf", seed=4)
    assert numllama("create", "one").status == 0
    monkeypatch.setattr("numllama.api.cli.client.file_chunks", lambda *_: pytest.fail("sent again"))
    assert numllama("create", "two").status == 0
    assert numllama("rm", "one", "two").status == 0


def test_without_a_server_models_are_created_in_the_local_store(alone, numllama, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Modelfile").write_text("FROM m\nSYSTEM Other.")
    assert numllama("create", "other").status == 0
    assert default_store().resolve("other").system == "Other."
    assert numllama("rm", "other").status == 0
