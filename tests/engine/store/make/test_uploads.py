"""Models from uploaded files: quantized, merged from parts, with adapters; and refused files."""

import numpy as np
import pytest

from numllama.engine.errors import EngineError, RequestError
from numllama.engine.gguf.read import I32, U16, read_gguf
from numllama.engine.gguf.write import gguf_chunks, write_gguf
from numllama.engine.store import Store, manifest
from numllama.engine.store.make.create import create
from numllama.engine.store.make.quantize import quantize_model
from numllama.kernels.quants import FORMATS_BY_NAME
from tiny import tiny_gguf

F32 = FORMATS_BY_NAME["F32"]


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "models")


@pytest.fixture
def tiny(tmp_path):
    return tiny_gguf(tmp_path / "m.gguf", general__file_type=0)


def uploaded(store, path):
    return store.put_blob([path.read_bytes()])[0]


def statuses(*args, **kwargs):
    return [status["status"] for status in create(*args, **kwargs)]


def test_a_quantized_model_is_a_new_layer(store, tiny):
    got = list(create(store, "q", files={"m.gguf": uploaded(store, tiny)}, quantize="q8_0"))
    model = store.resolve("q")
    assert model.weights.read_bytes() == b"".join(gguf_chunks(*quantize_model(read_gguf(tiny), "Q8_0")))
    assert model.config.file_type == "Q8_0"
    progress = [status for status in got if "digest" in status]
    assert {status["status"] for status in progress} <= {"quantizing F32 model to Q8_0"}
    assert all(status["completed"] <= status["total"] for status in progress)
    layer = f"creating new layer {model.manifest.layers[0].digest}"
    rest = [status["status"] for status in got if "digest" not in status]
    assert rest == ["parsing GGUF", "verifying conversion", layer, "writing manifest", "success"]


def test_a_model_of_the_store_can_be_quantized(store, tiny):
    list(create(store, "a", files={"m.gguf": uploaded(store, tiny)}, system="S"))
    got = statuses(store, "b", "a", quantize="Q4_0")
    model = store.resolve("b")
    assert (model.config.file_type, model.system, store.resolve("a").config.file_type) == ("Q4_0", "S", "F32")
    assert got[-4:] == [
        f"creating new layer {model.weights_digest}",
        f"using existing layer {model.manifest.layers[1].digest}",
        "writing manifest",
        "success",
    ]


def test_a_model_that_has_the_file_type_keeps_its_layer(store, tiny):
    digest = uploaded(store, tiny)
    assert statuses(store, "q", files={"m.gguf": digest}, quantize="F32")[:2] == [
        "parsing GGUF",
        f"using existing layer {digest}",
    ]


def test_a_refused_quantization_leaves_neither_model_nor_blob(store, tiny, tmp_path):
    digest = uploaded(store, tiny_gguf(tmp_path / "q.gguf", quant="Q8_0"))
    with pytest.raises(EngineError, match="only supported for F16, BF16 and F32"):
        list(create(store, "q", files={"m.gguf": digest}, quantize="Q4_0"))
    assert (store.list(), store.digests()) == ([], {digest})


def test_a_client_that_disconnects_during_quantization_leaves_no_file(store, tiny):
    digest = uploaded(store, tiny)
    making = create(store, "q", files={"m.gguf": digest}, quantize="Q8_0")
    assert [next(making)["status"] for _ in range(2)][1] == "quantizing F32 model to Q8_0"
    making.close()
    assert store.digests() == {digest}


def parts_of(path, count):
    """Split `path` into files named and numbered as by gguf-split."""
    gguf = read_gguf(path)
    names = np.array_split(list(gguf.tensors), count)
    parts = []
    for i, some in enumerate(names):
        kv = {"split.no": U16(i), "split.count": U16(count), "split.tensors.count": I32(len(gguf.tensors))}
        part = path.with_name(f"m-{i + 1:05}-of-{count:05}.gguf")
        write_gguf(part, (gguf.typed if i == 0 else {}) | kv, [gguf.tensors[n] for n in some])
        parts.append(part)
    return parts


def test_the_parts_of_a_model_are_merged_into_one_file(store, tiny):
    parts = [(part.name, uploaded(store, part)) for part in parts_of(tiny, 3)]
    for files in (dict(parts), dict(reversed(parts))):
        got = statuses(store, "a", files=files)
        assert got[:3] == ["parsing GGUF"] * 3
        assert store.resolve("a").weights.read_bytes() == tiny.read_bytes()


def test_a_single_part_is_refused(store, tiny):
    one, two, _ = parts_of(tiny, 3)
    with pytest.raises(RequestError, match="one of 3 parts of a model, expected all of them"):
        list(create(store, "a", files={one.name: uploaded(store, one)}))
    with pytest.raises(RequestError, match="2 models among 2 files, expected one"):
        list(create(store, "a", files={part.name: uploaded(store, part) for part in (one, two)}))


def test_a_duplicate_part_is_named_as_the_client_named_it(store, tiny):
    one, _, three = parts_of(tiny, 3)
    files = {"1.gguf": uploaded(store, one), "2.gguf": uploaded(store, three), "3.gguf": uploaded(store, three)}
    with pytest.raises(RequestError, match=r"^[23]\.gguf: at byte \d+: split.no is 2, expected 1 of these parts"):
        list(create(store, "a", files=files))


def adapter(path, kind="adapter"):
    write_gguf(path, {"general.architecture": "llama", "general.type": kind}, [("x", F32, (4,), np.ones(4, "<f4"))])
    return path


def test_adapter_is_a_layer_that_replaces_the_inherited_one(store, tiny, tmp_path):
    one = uploaded(store, adapter(tmp_path / "one.gguf"))
    list(create(store, "a", files={"m.gguf": uploaded(store, tiny)}, adapters={"one.gguf": one}))
    assert [layer.digest for layer in store.resolve("a").manifest.of_type(manifest.ADAPTER)] == [one]
    write_gguf(tmp_path / "two.gguf", {"general.architecture": "llama", "general.type": "adapter"})
    two = uploaded(store, tmp_path / "two.gguf")
    assert statuses(store, "b", "a", adapters={"two.gguf": two})[0] == "parsing GGUF"
    assert [layer.digest for layer in store.resolve("b").manifest.of_type(manifest.ADAPTER)] == [two]


def test_a_model_is_refused_as_an_adapter(store, tiny):
    digest = uploaded(store, tiny)
    list(create(store, "a", files={"m.gguf": digest}))
    with pytest.raises(RequestError, match=r"m.gguf: general.type is None, expected 'adapter'"):
        list(create(store, "b", "a", adapters={"m.gguf": digest}))


def test_an_uploaded_weight_that_is_not_finite_is_named(store, tmp_path):
    x = np.ones((4, 4), "<f4")
    x[1, 2] = np.nan
    write_gguf(tmp_path / "m.gguf", {"general.architecture": "llama"}, [("x", F32, x.shape, x)])
    with pytest.raises(RequestError, match=r"m.gguf: tensor 'x' has a weight that is not finite at \[1, 2\]"):
        list(create(store, "a", files={"m.gguf": uploaded(store, tmp_path / "m.gguf")}))
