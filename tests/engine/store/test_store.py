import errno
import hashlib
import json
import os
import tracemalloc
from pathlib import Path

import pytest

from numllama.engine.errors import BadDigest, BadManifest, BuiltinModel, DigestMismatch, ModelNotFound, StoreError
from numllama.engine.settings import Settings
from numllama.engine.store import ModelName, Store, default_store
from numllama.engine.store import blobs as blobs_module
from numllama.engine.store import name as name_module
from numllama.engine.store import store as store_module
from numllama.engine.store.manifest import (
    CONFIG_TYPE,
    LICENSE,
    MESSAGES,
    MODEL,
    PARAMS,
    SYSTEM,
    TEMPLATE,
    Config,
    Manifest,
    ManifestLayer,
)

ASKED_FOR = {
    "stories:latest": "stories",
    "Tellers/Grandma:v1.0": "tellers/grandma:V1.0",
    "copy-of:Stories": "copy-of:stories",
}
ASKED_FOR["localhost:5000/lab/small:q8"] = "localhost:5000/lab/small:q8"


def layer(store, media_type, content, **more):
    digest, size = store.put_blob([content])
    return ManifestLayer(media_type, digest, size, **more)


def make(store, name, weights=b"weights", **layers):
    """Store a model with `layers`, contents by media type."""
    config = layer(store, CONFIG_TYPE, Config("gguf", "llama", ("llama",), "1M", "F32").to_bytes())
    made = [layer(store, MODEL, weights)] + [layer(store, media, content) for media, content in layers.items()]
    store.write_manifest(ModelName.parse(name), Manifest(config, tuple(made)))


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "models")


@pytest.fixture
def with_builtin(tmp_path):
    make(Store(tmp_path / "builtin"), "primer", b"built in", **{SYSTEM: b"Be plain."})
    return Store(tmp_path / "models", tmp_path / "builtin")


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())


def test_a_model_is_read_back_as_it_was_written(store):
    messages = b'[{"role":"user","content":"hi"}]\n'
    more = {
        TEMPLATE: b"{{ .Prompt }}",
        SYSTEM: b"S",
        PARAMS: b'{"stop":["a"],"top_p":0.5}\n',
        MESSAGES: messages,
        LICENSE: b"MIT",
    }
    make(store, "Tiny", **more, **{"application/x-unheard-of": b"?"})
    model = store.resolve("tiny")
    assert (model.name.short, model.weights.read_bytes()) == ("Tiny:latest", b"weights")
    assert (model.template, model.system, model.licenses) == ("{{ .Prompt }}", "S", ["MIT"])
    assert model.params == {"stop": ["a"], "top_p": 0.5}
    assert model.messages == [{"role": "user", "content": "hi"}]
    assert model.config.model_type == "1M"
    manifest = (store.root / "manifests/registry.ollama.ai/library/Tiny/latest").read_bytes()
    assert model.digest == hashlib.sha256(manifest).hexdigest()
    assert model.size == sum(
        layer["size"] for layer in (*json.loads(manifest)["layers"], json.loads(manifest)["config"])
    )


def test_list_starts_with_the_newest_model_and_leaves_out_broken_ones(store, caplog):
    for i, name in enumerate(["a", "b", "broken"]):
        make(store, name, name.encode())
        os.utime(store.root / "manifests" / ModelName.parse(name).path, (i, i))
    (store.root / "manifests" / ModelName.parse("broken").path).write_text("{")
    (store.root / "manifests/registry.ollama.ai/library/a/.hidden").write_text("{}")
    (store.root / "manifests/README").write_text("not a model")
    assert [model.name.model for model in store.list()] == ["b", "a"]
    assert "broken:latest is left out" in caplog.text


@pytest.mark.parametrize(
    "key", ["model_format", "model_family", "model_families", "model_type", "file_type", "capabilities", "renderer"]
)
@pytest.mark.parametrize("value", [5, {"a": 1}, [1], True])
def test_a_config_with_values_of_other_types_hides_no_other_model(store, caplog, key, value):
    make(store, "good")
    config = layer(store, CONFIG_TYPE, json.dumps({"model_format": "gguf", key: value}).encode())
    weights = layer(store, MODEL, b"weights")
    store.write_manifest(ModelName.parse("broken"), Manifest(config, (weights,)))
    assert [model.name.model for model in store.list()] == ["good"]
    assert f"broken:latest is left out: {store.blobs.path(config.digest)}: the config's {key} is" in caplog.text


def test_an_empty_or_missing_folder_has_no_model(store):
    assert store.list() == []
    with pytest.raises(ModelNotFound, match="model 'x' not found"):
        store.resolve("x")


def test_a_copy_has_the_same_id_and_replaces_its_destination(store):
    make(store, "a", b"A")
    make(store, "b", b"B")
    store.copy("A", "b")
    assert store.resolve("b").digest == store.resolve("a").digest
    store.copy("a", "a")
    assert store.resolve("a").weights.read_bytes() == b"A"
    assert not store.has_blob("sha256:" + hashlib.sha256(b"B").hexdigest())


def test_delete_keeps_blobs_of_other_models(store):
    make(store, "a", b"shared", **{SYSTEM: b"mine"})
    make(store, "n/b:t", b"shared")
    store.delete("A:latest")
    assert not store.has_blob("sha256:" + hashlib.sha256(b"mine").hexdigest())
    assert store.resolve("n/b:t").weights.read_bytes() == b"shared"
    store.delete("n/b:t")
    assert files(store.root) == []
    assert list((store.root / "manifests").iterdir()) == []
    with pytest.raises(ModelNotFound, match="model 'n/b:t' not found"):
        store.delete("n/b:t")


def test_a_blob_that_a_task_needs_outlives_the_model_that_named_it(store):
    make(store, "a", b"shared")
    shared, new = (hashlib.sha256(content).hexdigest() for content in (b"shared", b"new"))
    with store.keeping() as task:
        config = task.resolve("a").manifest.config
        weights = layer(task, MODEL, b"shared")
        made = layer(task, SYSTEM, b"new")
        make(store, "b", b"new")
        store.delete("a")
        store.delete("b")
        assert store.has_blob(f"sha256:{shared}") and store.has_blob(f"sha256:{new}")
        task.write_manifest(ModelName.parse("c"), Manifest(config, (weights, made)))
    assert store.resolve("c").system == "new"
    store.delete("c")
    assert files(store.root) == []


def test_a_blob_that_a_client_uploads_outlives_the_model_that_named_it(store, monkeypatch):
    """A client uploads a file that the store may have, and creates the model in another request."""
    make(store, "a", b"A")
    offered = "sha256:" + hashlib.sha256(b"A").hexdigest()
    assert store.has_blob(offered)  # asking changes nothing, as recorded
    store.delete("a")
    assert not store.has_blob(offered)
    make(store, "a", b"A")
    assert store.offer_blob(offered)
    store.delete("a")
    assert store.has_blob(offered)
    make(store, "b", b"A")
    store.delete("b")  # the blob was used
    assert not (store.root / "blobs" / offered.replace(":", "-")).exists()

    digest, _ = store.put_blob([b"B"])
    make(store, "c", b"C", **{SYSTEM: b"B"})
    store.put_blob([b"B"])
    monkeypatch.setattr(store_module, "MAX_UNUSED_S", -1.0)
    store.delete("c")
    assert not store.has_blob(digest)


def test_a_folder_of_manifests_that_cannot_be_read_hides_no_other(store, monkeypatch, caplog):
    make(store, "a", b"A")
    make(store, "hidden/b", b"B")
    listed = store_module._scan

    def scan(folder):  # root may read everything
        if folder.name == "hidden":
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return listed(folder)

    monkeypatch.setattr(store_module, "_scan", scan)
    assert [model.name.short for model in store.list()] == ["a:latest"] and len(store.names()) == 1
    assert f"{store.root}/manifests/registry.ollama.ai/hidden are left out: permission denied" in caplog.text
    store.delete("a")  # its blobs may belong to a hidden model
    assert len(files(store.root / "blobs")) == 3 and "no blob is pruned" in caplog.text


def test_a_task_that_fails_keeps_nothing(store):
    make(store, "a", b"A")
    with pytest.raises(KeyError), store.keeping() as task:
        task.resolve("a")
        raise KeyError
    store.delete("a")
    assert files(store.root) == []


def test_a_manifest_that_cannot_be_written_leaves_no_file(store, monkeypatch):
    make(store, "a", b"A")
    before, data = files(store.root), store.manifest_bytes(store.resolve("a"))
    full = OSError(28, "No space left on device")

    def fail(*_):
        raise full

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, fail)
            with pytest.raises(StoreError, match="No space left on device"):
                store.write_manifest(ModelName.parse("n/b"), data)
            with pytest.raises(StoreError, match="No space left on device"):
                store.copy("a", "n/b")
        assert files(store.root) == before
        assert not (store.root / "manifests/registry.ollama.ai/n").exists()


def test_a_model_that_is_deleted_while_it_is_read_is_not_found(store, monkeypatch):
    make(store, "a", b"A")
    read = Manifest.from_bytes

    def read_and_delete(data, path):
        manifest = read(data, path)
        if not made:
            made.append(manifest)
            store.delete("a")
        return manifest

    made = []
    monkeypatch.setattr(Manifest, "from_bytes", read_and_delete)
    with pytest.raises(ModelNotFound, match="model 'a' not found"):
        store.resolve("a")
    assert made


def test_a_host_with_a_port_has_a_folder_on_windows(store, monkeypatch):
    """Simulated: a colon in a name of Windows opens a stream of another file."""
    monkeypatch.setattr(name_module, "COLON", "%3A")
    make(store, "localhost:5000/lab/m:q8")
    assert (store.root / "manifests/localhost%3A5000/lab/m/q8").is_file()
    assert [name.short for name in store.names()] == ["localhost:5000/lab/m:q8"]
    store.delete("localhost:5000/lab/m:q8")
    assert files(store.root) == []


def test_a_blob_that_a_loaded_model_maps_stays_on_windows(store, monkeypatch):
    """Simulated: Windows refuses to replace or delete a mapped file."""
    make(store, "a", b"mapped")
    digest, real = "sha256:" + hashlib.sha256(b"mapped").hexdigest(), (os.replace, Path.unlink)
    path = store.blob_path(digest)

    def refuse(kind):
        def call(first, *rest, **kwargs):
            if path in (first, *rest):
                raise PermissionError(13, "Access is denied", str(path))
            return real[kind](first, *rest, **kwargs)

        return call

    monkeypatch.setattr(os, "replace", refuse(0))
    monkeypatch.setattr(Path, "unlink", refuse(1))
    with pytest.raises(StoreError, match="Access is denied"):
        store.put_blob([b"mapped"])
    monkeypatch.setattr(blobs_module, "CANNOT_REPLACE_OPEN_FILES", True)
    assert store.put_blob([b"mapped"])[0] == digest
    store.delete("a")
    assert store.names() == [] and files(store.root) == [f"blobs/{path.name}"]
    monkeypatch.undo()
    store.prune(age_seconds=-1)
    assert files(store.root) == []


def test_nothing_is_pruned_while_a_manifest_is_unreadable(store):
    make(store, "a", b"A")
    (store.root / "manifests/registry.ollama.ai/library/b").mkdir()
    (store.root / "manifests/registry.ollama.ai/library/b/latest").write_text("?")
    store.delete("a")
    store.prune(age_seconds=-1)
    assert store.has_blob("sha256:" + hashlib.sha256(b"A").hexdigest())
    store.delete("b")
    store.prune(age_seconds=-1)
    assert files(store.root) == []


def test_prune_ignores_files_that_another_program_moves_meanwhile(store, monkeypatch):
    blobs, listed = Path(store.blobs.folder), store_module._scan
    blobs.mkdir(parents=True, exist_ok=True)
    for name in ("sha256-begun", "sha256-old"):
        (blobs / name).write_bytes(b"?")

    def taken_away(entry):
        if entry.name == "sha256-begun":
            os.rename(entry.path, store.root / "finished")
        return entry

    def scan(folder):
        return map(taken_away, listed(folder)) if folder == blobs else listed(folder)

    monkeypatch.setattr(store_module, "_scan", scan)  # not os.scandir, which pathlib uses, too, from Python 3.13 on
    store.prune(age_seconds=-1)
    assert not any(blobs.iterdir()) and (store.root / "finished").exists()


def test_manifests_with_invalid_names_keep_their_blobs(store):
    make(store, "a", b"A")
    folder = store.root / "manifests/registry.ollama.ai/library/a"
    (folder / "latest").rename(folder / "a tag of another program")
    (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    store.put_blob([b"uploaded"])
    store.prune(age_seconds=-1)
    assert store.has_blob("sha256:" + hashlib.sha256(b"A").hexdigest())
    assert not store.has_blob("sha256:" + hashlib.sha256(b"uploaded").hexdigest())


@pytest.mark.skipif(os.name == "nt", reason="names with a colon")
def test_blobs_with_the_names_of_old_ollamas_are_renamed(store):
    """Ollama wrote them until 2024, and renames them at its start, too (server/fixblobs.go)."""
    make(store, "a", b"A", **{SYSTEM: b"S"})
    folder, before = store.blobs.folder, files(store.root)
    for path in folder.iterdir():
        path.rename(folder / path.name.replace("-", ":", 1))
    with pytest.raises(BadManifest):
        store.resolve("a")
    store.rename_old_blobs()
    assert files(store.root) == before and store.resolve("a").system == "S"


def test_prune_keeps_recent_uploads_and_other_files(store):
    make(store, "a", b"A")
    store.put_blob([b"uploaded"])
    (store.root / "blobs/notes.txt").write_text("mine")
    store.prune()
    assert store.has_blob("sha256:" + hashlib.sha256(b"uploaded").hexdigest())
    store.prune(age_seconds=-1)
    assert not store.has_blob("sha256:" + hashlib.sha256(b"uploaded").hexdigest())
    assert store.resolve("a").weights.is_file()
    assert (store.root / "blobs/notes.txt").exists()


def test_the_builtin_model_is_listed_and_never_written(with_builtin):
    builtin = with_builtin.builtin
    before = files(builtin)
    assert [model.name.short for model in with_builtin.list()] == ["primer:latest"]
    assert with_builtin.resolve("Primer").is_builtin
    with pytest.raises(BuiltinModel, match="'primer:latest' is built in and cannot be deleted"):
        with_builtin.delete("primer")
    with_builtin.copy("primer", "mine")
    mine = with_builtin.resolve("mine")
    assert mine.weights.parent == with_builtin.root / "blobs"
    assert (mine.digest, mine.system) == (with_builtin.resolve("primer").digest, "Be plain.")
    assert Store(with_builtin.root).resolve("mine").weights.read_bytes() == b"built in"
    assert files(builtin) == before


def test_a_users_model_hides_the_builtin_of_the_same_name(with_builtin):
    make(with_builtin, "primer", b"another")
    assert with_builtin.resolve("primer").weights.read_bytes() == b"another"
    assert len(with_builtin.list()) == 1
    with_builtin.delete("primer")
    assert with_builtin.resolve("primer").is_builtin


def test_blobs_are_written_atomically(store):
    with store.blob_writer() as writer:
        writer.write(b"half")
    with pytest.raises(RuntimeError), store.blob_writer() as writer:
        writer.write(b"half")
        raise RuntimeError
    assert files(store.root) == []
    digest, size = store.put_blob([b"hel", b"lo"])
    assert digest == "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    path = store.blob_path(digest)
    assert (size, path.read_bytes(), path.stat().st_mode & 0o777) == (5, b"hello", 0o644)


def test_a_digest_mismatch_is_an_error_and_the_blob_is_stored_under_its_own_digest(store):
    with pytest.raises(DigestMismatch) as caught:
        store.put_blob([b"hello"], "sha256:" + "0" * 64)
    assert str(caught.value) == (f'digest mismatch, expected "sha256:{"0" * 64}", got "{caught.value.found}"')
    assert store.has_blob(caught.value.found)


@pytest.mark.parametrize(
    "digest",
    ["", "sha256:12", "md5:" + "0" * 64, "../etc/passwd", "sha256:" + "0" * 63 + "/", "sha256:" + "0" * 64 + "\n"],
)
def test_a_path_is_refused_as_a_digest(store, digest):
    with pytest.raises(BadDigest, match="invalid digest format"):
        store.has_blob(digest)


HOSTILE = {
    "invalid JSON": b"[",
    "nested too deeply": b"[" * 100_000,
    "a JSON list, expected a dict": b"[]",
    "a layer is a int, expected an object": b'{"layers":[3]}',
    "'layers' is a str, expected a list": b'{"layers":"x"}',
    "a layer's size is -1": b'{"layers":[{"size":-1}]}',
    "a layer's size is 1.5": b'{"layers":[{"size":1.5}]}',
    "a layer's digest is '../../../etc/passwd'": b'{"layers":[{"digest":"../../../etc/passwd","size":1}]}',
    "must be text": b'{"layers":[{"digest":["x"]}]}',
    "a layer is a str": b'{"config":"x"}',
    "is not a JSON number": b'{"layers":[],"x":1e999}',
    "longer than": b" " * ((16 << 20) + 1),
}


@pytest.mark.parametrize("message", HOSTILE)
def test_a_hostile_manifest_is_a_one_line_error(store, message):
    path = store.root / "manifests" / ModelName.parse("x").path
    path.parent.mkdir(parents=True)
    path.write_bytes(HOSTILE[message])
    with pytest.raises(BadManifest) as caught:
        store.resolve("x")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert store.list() == []
    store.delete("x")  # an unreadable model can be deleted


def test_resolving_a_small_model_takes_little_memory(store):
    make(store, "a", b"weights")
    tracemalloc.start()
    _ = store.resolve("a").weights
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 1 << 20  # a buffer for the longest manifest allowed would be 16 MiB


def test_a_blob_that_contradicts_its_manifest_is_named(store):
    make(store, "a", b"weights")
    weights = store.resolve("a").weights
    weights.write_bytes(b"longer than before")
    with pytest.raises(BadManifest, match="18 bytes, expected 7 as in its manifest"):
        _ = store.resolve("a").weights
    weights.unlink()
    with pytest.raises(BadManifest, match="missing blob of model a:latest"):
        _ = store.resolve("a").weights
    with pytest.raises(BadManifest, match="missing"):
        store.copy("a", "b")


def test_a_link_out_of_the_store_is_not_followed(store, tmp_path):
    make(store, "a", b"weights")
    weights = store.resolve("a").weights
    weights.unlink()
    (tmp_path / "secret").write_bytes(b"secrets")
    weights.symlink_to(tmp_path / "secret")
    with pytest.raises(BadManifest, match=r"a link to .*secret, which is outside the store"):
        _ = store.resolve("a").weights
    assert not store.has_blob(f"sha256:{hashlib.sha256(b'weights').hexdigest()}")


def test_a_store_may_be_a_linked_folder(store, tmp_path):
    make(store, "a", b"weights")
    (tmp_path / "link").symlink_to(store.root)
    assert Store(tmp_path / "link").resolve("a").weights.read_bytes() == b"weights"


def test_a_file_in_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "models").write_text("")
    with pytest.raises(StoreError, match=r"models/manifests: Not a directory"):
        Store(tmp_path / "models").list()
    with pytest.raises(StoreError, match="models"):
        Store(tmp_path / "models").put_blob([b"x"])


def test_the_error_for_a_model_without_weights_lists_its_layers(store):
    config = layer(store, CONFIG_TYPE, Config().to_bytes())
    store.write_manifest(
        ModelName.parse("a"), Manifest(config, (layer(store, "application/vnd.ollama.image.tensor", b"t"),))
    )
    with pytest.raises(BadManifest, match=r"no layer of type .*model among application/vnd.ollama.image.tensor"):
        _ = store.resolve("a").weights


def test_the_environment_selects_the_store(tmp_path):
    store = default_store(
        Settings.from_env({"OLLAMA_MODELS": f' "{tmp_path}" ', "NUMLLAMA_BUILTIN": "0", "OLLAMA_NOPRUNE": "1"})
    )
    assert (store.root, store.builtin, store.keep_blobs) == (tmp_path, None, True)


def test_a_store_written_by_ollama_is_read(tmp_path, kept):
    kept.store(tmp_path)
    expected = kept.json("store/expected")
    got = {model.name.short: model for model in Store(tmp_path / "models").list()}
    assert sorted(got) == sorted(entry["name"] for entry in expected["tags"]["models"])
    for entry in expected["tags"]["models"]:
        model, details = got[entry["name"]], entry["details"]
        assert (model.size, model.digest, model.parent) == (entry["size"], entry["digest"], details["parent_model"])
        assert (model.config.model_format, model.config.model_family) == (details["format"], details["family"])
        assert model.config.model_type == details["parameter_size"]
        shown = expected[f"show {ASKED_FOR[entry['name']]}"]
        assert "\n".join(model.licenses) == shown.get("license", "")
        assert (model.template or "{{ .Prompt }}", model.system) == (shown["template"], shown.get("system", ""))
        assert model.messages == shown.get("messages", [])


def test_manifests_and_configs_equal_ollamas_byte_for_byte(tmp_path, kept):
    kept.store(tmp_path)
    store = Store(tmp_path / "models")
    for model in store.list():
        written = (store.root / "manifests" / model.name.path).read_bytes()
        assert Manifest.from_bytes(written, "").to_bytes() == written
        config = store.blob_path(model.manifest.config.digest).read_bytes()
        assert Config.from_bytes(config, "").to_bytes() == config
