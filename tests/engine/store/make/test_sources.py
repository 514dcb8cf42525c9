"""Sources of FROM and ADAPTER, and Modelfiles sent to a server."""

import pytest

from numllama.engine.errors import BadModelfile, BadName, ModelError, RequestError
from numllama.engine.store import Store
from numllama.engine.store.make.create import create, create_from_modelfile
from numllama.engine.store.make.modelfile import parse_modelfile
from numllama.engine.store.make.sources import find_sources, list_weight_files
from tiny import tiny_gguf


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "models")


@pytest.fixture
def digest(store, tmp_path):
    return store.put_blob([tiny_gguf(tmp_path / "m.gguf").read_bytes()])[0]


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    return folder


def names(folder, *files):
    for file in files:
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).touch()
    return [name for name, _ in list_weight_files(folder)]


def test_a_folder_yields_its_weights_and_the_files_they_need(folder):
    got = names(
        folder, "model-2.safetensors", "model-1.safetensors", "config.json", "tokenizer.model", "m.gguf", "README.md"
    )
    assert got == ["model-1.safetensors", "model-2.safetensors", "config.json", "tokenizer.model"]


def test_a_folder_of_ggufs_yields_only_them(folder):
    assert names(folder, "b.gguf", "a.gguf", "config.json", "c.bin") == ["a.gguf", "b.gguf"]


def test_a_folder_without_weights_is_refused_with_ollamas_text(folder):
    with pytest.raises(ModelError, match="no Modelfile or safetensors files found"):
        names(folder, "config.json")


def test_a_link_that_leads_out_of_the_folder_is_refused(folder, tmp_path):
    (tmp_path / "secret.gguf").touch()
    (folder / "m.gguf").symlink_to(tmp_path / "secret.gguf")
    with pytest.raises(ModelError, match=r"insecure path: .*m\.gguf"):
        names(folder)


def test_an_existing_path_is_a_file_and_any_other_text_a_model_name(folder):
    names(folder, "m.gguf", "lora.gguf")
    found = find_sources(parse_modelfile("FROM ./m.gguf\nADAPTER lora.gguf"), folder)
    assert (found.from_, list(found.files), list(found.adapters)) == ("", ["m.gguf"], ["lora.gguf"])
    assert find_sources(parse_modelfile("FROM llama3"), folder).from_ == "llama3"
    with pytest.raises(BadModelfile, match="both the model 'llama3' and files"):
        find_sources(parse_modelfile("FROM llama3\nFROM m.gguf"), folder)
    with pytest.raises(BadModelfile, match=r"nope\.gguf: no such file"):
        find_sources(parse_modelfile("FROM llama3\nADAPTER nope.gguf"), folder)


def test_a_clients_modelfile_makes_a_model_from_blobs(store, digest):
    text = f"FROM @{digest}\nSYSTEM Be brief.\nPARAMETER stop a\nPARAMETER top_k 3\nMESSAGE user hi\nLICENSE MIT"
    list(create_from_modelfile(store, "a", text, quantize="Q8_0"))
    model = store.resolve("a")
    assert (model.system, model.params, model.licenses) == ("Be brief.", {"stop": ["a"], "top_k": 3}, ["MIT"])
    assert (model.messages, model.config.file_type) == ([{"role": "user", "content": "hi"}], "Q8_0")


def test_an_empty_system_removes_the_inherited_one(store, digest):
    list(create(store, "a", files={"m.gguf": digest}, system="S"))
    list(create_from_modelfile(store, "b", 'FROM a\nSYSTEM ""'))
    list(create_from_modelfile(store, "c", "FROM a"))
    assert (store.resolve("b").system, store.resolve("c").system) == ("", "S")


@pytest.mark.parametrize("reference", ["/etc/hostname", "./m.gguf", "../m.gguf", "~/m.gguf", "a b"])
def test_a_client_cannot_name_files_of_the_server(store, tmp_path, monkeypatch, reference):
    tiny_gguf(tmp_path / "m.gguf")
    monkeypatch.chdir(tmp_path)
    for instruction in ("FROM {}", "FROM a\nADAPTER {}"):
        with pytest.raises(BadModelfile, match=f"invalid model reference: {reference}"):
            create_from_modelfile(store, "z", instruction.format(reference))
    with pytest.raises(BadModelfile, match="the server does not read local paths"):
        create_from_modelfile(store, "z", "", str(tmp_path / "Modelfile"))
    assert store.digests() == set()


def test_a_server_with_permission_reads_the_modelfile_and_its_folder(store, tmp_path):
    tiny_gguf(tmp_path / "m.gguf")
    (tmp_path / "Modelfile").write_text("FROM ./m.gguf\nSYSTEM S")
    list(create_from_modelfile(store, "a", "", str(tmp_path / "Modelfile"), may_read=True))
    assert store.resolve("a").weights.read_bytes() == (tmp_path / "m.gguf").read_bytes()
    with pytest.raises(BadModelfile, match="error reading modelfile"):
        create_from_modelfile(store, "a", "", str(tmp_path / "nope"), may_read=True)


@pytest.mark.parametrize(
    "name, text, kind, message",
    [
        ("a b", "FROM x", BadName, "invalid model name"),
        ("a", "SYSTEM y", BadModelfile, "no FROM line"),
        ("a", "FROM x\nFOO y", BadModelfile, r"\(line 2\): command must be one of"),
        ("a", "FROM x\nPARAMETER bogus 1", RequestError, "unknown parameter 'bogus'"),
        ("a", "FROM x\nDRAFT y", BadModelfile, "invalid model reference: y"),
    ],
)
def test_an_invalid_modelfile_is_an_error_before_anything_is_created(store, name, text, kind, message):
    with pytest.raises(kind, match=message):
        create_from_modelfile(store, name, text)
