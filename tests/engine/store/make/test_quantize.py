"""Quantization of models: llama-quantize's choice of formats, its bytes, and refused inputs."""

import hashlib
import os
import re
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
from dialects import mistral3_twins

from numllama.engine.errors import EngineError, RequestError
from numllama.engine.gguf.dialect import projector_view
from numllama.engine.gguf.read import GGUF, read_gguf
from numllama.engine.gguf.write import gguf_chunks, write_gguf
from numllama.engine.store.make import quantize
from numllama.engine.store.make.mixture import file_type_of, tensor_formats
from numllama.engine.store.make.quantize import check_weights, has_file_type, quantize_model
from numllama.kernels.quants import FORMATS_BY_NAME
from numllama.kernels.tensor import Tensor
from tiny import tiny_gguf


def llama(layers, dim, ffn, heads, kv, vocab, tied, experts=0, rope_freqs=False, **_):
    """The key-values and tensor table of a Llama with these sizes, without data."""
    d_kv = dim // heads * kv
    shapes = {"token_embd.weight": (vocab, dim), "output_norm.weight": (dim,)}
    shapes |= {} if tied else {"output.weight": (vocab, dim)}
    shapes |= {"rope_freqs.weight": (dim // heads // 2,)} if rope_freqs else {}
    for il in range(layers):
        blk = {"attn_norm": (dim,), "ffn_norm": (dim,), "attn_q": (dim, dim), "attn_k": (d_kv, dim)}
        blk |= {"attn_v": (d_kv, dim), "attn_output": (dim, dim)}
        if experts:
            blk |= {"ffn_gate_inp": (experts, dim), "ffn_down_exps": (experts, dim, ffn)}
            blk |= {"ffn_gate_exps": (experts, ffn, dim), "ffn_up_exps": (experts, ffn, dim)}
        else:
            blk |= {"ffn_down": (dim, ffn), "ffn_gate": (ffn, dim), "ffn_up": (ffn, dim)}
        shapes |= {f"blk.{il}.{name}.weight": shape for name, shape in blk.items()}
    f32, f16 = FORMATS_BY_NAME["F32"], FORMATS_BY_NAME["F16"]
    tensors = {
        name: Tensor(name, f32 if len(shape) == 1 or "gate_inp" in name else f16, shape, None)
        for name, shape in shapes.items()
    }
    counts = {"block_count": layers, "attention.head_count": heads, "attention.head_count_kv": kv}
    counts |= {"expert_count": experts} if experts else {}
    return SimpleNamespace(
        kv={"general.architecture": "llama"} | {f"llama.{key}": n for key, n in counts.items()}, tensors=tensors
    )


def written_out(name):
    """Expand blk.0-1,4.attn_v.weight to the names in layers 0, 1 and 4."""
    if not (layers := re.fullmatch(r"blk\.([\d,-]+)\.(.*)", name)):
        return [name]
    spans = [span.split("-") for span in layers[1].split(",")]
    return [f"blk.{i}.{layers[2]}" for span in spans for i in range(int(span[0]), int(span[-1]) + 1)]


def test_every_format_is_the_one_llama_quantize_chooses(kept):
    recorded = kept.json("quantize_types")
    n = 0
    for shape, file_types in recorded["types"].items():
        model = llama(**recorded["shapes"][shape])
        for file_type, chosen in ((name, chosen) for names, chosen in file_types.items() for name in names.split()):
            expected = {
                name: type for type, names in chosen["tensors"].items() for some in names for name in written_out(some)
            }
            got = {name: format.name for name, format in tensor_formats(model, file_type).items()}
            assert got == expected, (shape, file_type)
            n += len(got)
    assert n == 54_810


@pytest.mark.parametrize("name, expected", [("q4_k", "Q4_K_M"), ("Q3_K", "Q3_K_M"), ("bf16", "BF16"), ("Q8_0", "Q8_0")])
def test_file_types_have_aliases_and_are_case_insensitive(name, expected):
    assert file_type_of(name) == expected


@pytest.mark.parametrize("name", ["Q9", "IQ2_XS", "NVFP4", "Q2_K_S"])
def test_an_unsupported_file_type_is_refused_with_ollamas_text(name):
    expected = f"unsupported quantization type {name} - supported types are F32, F16, Q4_K_S, Q4_K_M, Q8_0"
    with pytest.raises(EngineError, match=re.escape(expected)):
        file_type_of(name)


RECORDED = "Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K_S Q3_K_M Q3_K_L Q4_K_S Q4_K_M Q5_K_S Q5_K_M Q6_K IQ4_NL IQ4_XS F16 BF16"


@pytest.mark.parametrize("file_type", RECORDED.split())
def test_tensors_are_llama_quantizes_byte_for_byte_and_in_its_order(kept, file_type):
    recorded = kept.json("quantize_tiny256")["mixture"][file_type]
    kv, tensors = quantize_model(read_gguf(kept.model("tiny256-F16")), file_type)
    got = {}
    for tensor in tensors:
        content = hashlib.sha256()
        for piece in tensor.pieces:
            content.update(piece)
        got[tensor.name] = [tensor.format.name, content.hexdigest()]
    assert list(got.items()) == list(recorded["tensors"].items())
    assert list(kv)[-2:] == ["general.quantization_version", "general.file_type"]
    assert kv["general.file_type"].value == recorded["file_type"]


@pytest.mark.slow
@pytest.mark.parametrize("file_type", RECORDED.split())
def test_file_is_llama_quantizes_byte_for_byte(whole, file_type):
    recorded = whole.json("quantize_tiny256")["mixture"]
    gguf = read_gguf(whole.model("tiny256-F16"))
    got = hashlib.sha256()
    for chunk in gguf_chunks(*quantize_model(gguf, file_type)):
        got.update(chunk)
    assert got.hexdigest() == recorded[file_type]["file_sha256"]


@pytest.mark.peer
@pytest.mark.parametrize("file_type", ["Q4_0", "Q8_0", "Q2_K", "Q4_K_M", "MXFP4_MOE", "IQ4_XS", "TQ1_0"])
def test_a_mixture_of_experts_equals_llama_quantizes_byte_for_byte(tmp_path, file_type):
    folder = os.environ.get("NUMLLAMA_LLAMA_CPP") or pytest.skip("NUMLLAMA_LLAMA_CPP names no folder")
    source, target = tiny_gguf(tmp_path / "m.gguf", n_expert=4, n_embd=256, n_ff=256), tmp_path / "q.gguf"
    command = [f"{folder}/llama-quantize", source, target, file_type]
    subprocess.run(command, check=True, capture_output=True)
    assert b"".join(gguf_chunks(*quantize_model(read_gguf(source), file_type))) == target.read_bytes()


def test_slices_and_threads_do_not_change_the_file(tmp_path, monkeypatch):
    gguf = read_gguf(tiny_gguf(tmp_path / "m.gguf"))
    whole = b"".join(gguf_chunks(*quantize_model(gguf, "Q4_0")))
    monkeypatch.setattr(quantize, "SLICE_WEIGHTS", 256)
    monkeypatch.setattr(quantize, "N_THREADS", 3)
    assert b"".join(gguf_chunks(*quantize_model(gguf, "Q4_0"))) == whole


def test_only_a_few_slices_are_in_memory(tmp_path, monkeypatch):
    """At most one slice per thread and one more have been quantized, but not yet written."""
    made = []
    pack = quantize.quantize
    monkeypatch.setattr(quantize, "SLICE_WEIGHTS", 64)
    monkeypatch.setattr(quantize, "quantize", lambda *args: made.append(1) or pack(*args))
    _, tensors = quantize_model(read_gguf(tiny_gguf(tmp_path / "m.gguf")), "Q8_0")
    largest = max(tensors, key=lambda tensor: tensor.nbytes)
    for i, _ in enumerate(largest.pieces):
        assert len(made) <= i + 1 + quantize.N_THREADS
        if i == 20:
            break


def test_a_quantized_model_is_refused(tmp_path):
    gguf = read_gguf(tiny_gguf(tmp_path / "m.gguf", quant="Q8_0"))
    with pytest.raises(EngineError, match="quantization is only supported for F16, BF16 and F32 models"):
        quantize_model(gguf, "Q4_0")


def test_a_file_has_a_type_only_if_its_metadata_says_so(tmp_path):
    assert has_file_type(read_gguf(tiny_gguf(tmp_path / "a.gguf", general__file_type=0)), "F32")
    assert not has_file_type(read_gguf(tiny_gguf(tmp_path / "b.gguf", general__file_type=0)), "F16")
    assert not has_file_type(read_gguf(tiny_gguf(tmp_path / "c.gguf", general__file_type=1)), "F32")


def with_weight(path, format, value, place=(3, 5)):
    """Write a file with a matrix of ones, except for one weight."""
    x = np.ones((8, 64), np.float32)
    x[place] = value
    format = FORMATS_BY_NAME[format]
    with np.errstate(all="ignore"):
        blocks = format.quantize(x.reshape(-1, format.block_size)).reshape(8, -1)
    write_gguf(path, {"general.architecture": "llama"}, [("blk.0.ffn_up.weight", format, x.shape, blocks)])
    return read_gguf(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("format", ["F32", "F16", "BF16"])
def test_weight_that_is_not_finite_is_named(tmp_path, format, value):
    gguf = with_weight(tmp_path / "m.gguf", format, value)
    expected = r"tensor 'blk.0.ffn_up.weight' has a weight that is not finite at \[3, 5\]"
    with pytest.raises(RequestError, match=expected):
        check_weights(gguf)
    with pytest.raises(RequestError, match=expected):
        list(gguf_chunks(*quantize_model(gguf, "Q8_0")))


@pytest.mark.parametrize("format", ["Q8_0", "Q4_1"])
def test_scale_that_is_not_finite_is_found(tmp_path, format):
    layout = FORMATS_BY_NAME[format].layout
    blocks = np.zeros((2, 2), layout)
    name = layout.names[0]
    blocks[name][1, 0] = np.inf
    write_gguf(tmp_path / "m.gguf", {}, [("x", FORMATS_BY_NAME[format], (2, 64), blocks)])
    with pytest.raises(RequestError, match=r"'x' has a weight that is not finite at \[1, 0\]"):
        check_weights(read_gguf(tmp_path / "m.gguf"))


@pytest.mark.parametrize("file_type, value", [("F16", 65520.0), ("Q8_0", 1e7), ("BF16", 3.4e38)])
def test_weight_too_large_for_its_format_is_named(tmp_path, file_type, value):
    gguf = with_weight(tmp_path / "m.gguf", "F32", value)
    with pytest.raises(RequestError, match=r"'blk.0.ffn_up.weight' has weight .* near \[3, .*, too large for"):
        list(gguf_chunks(*quantize_model(gguf, file_type)))


def test_a_tower_inside_a_text_model_is_kept(tmp_path):
    """Ollama's reader reorders the rows of Pixtral's queries and keys in float16 alone; quantized, they stay wrong."""
    source, _ = mistral3_twins(tmp_path, tower=True)
    gguf = GGUF.open(source)
    kv, tensors = quantize_model(gguf, "Q8_0")
    path = tmp_path / "quantized.gguf"
    path.write_bytes(b"".join(map(bytes, gguf_chunks(kv, tensors))))
    got, expected = projector_view(GGUF.open(path)), projector_view(gguf)
    towers = [name for name in expected.tensors if name.startswith(("v.", "mm."))]
    assert "v.blk.0.attn_q.weight" in towers
    for name in towers:
        np.testing.assert_array_equal(got.tensors[name].dequantize(), expected.tensors[name].dequantize(), err_msg=name)
    assert GGUF.open(path).tensors["blk.0.attn_q.weight"].format.name == "Q8_0"
