"""Dumps of transformers, by hooks on modules and by hidden states: right in every type, and bugs are located."""

import numpy as np
import oracles
import pytest
from safetensors.numpy import save_file

from numllama.engine.model.load import load_model
from numllama.engine.oracle.dumps import open_dump
from numllama.engine.oracle.judge import judge
from numllama.engine.oracle.values import split_label
from tiny import tiny_gguf

from .engines import IDS

pytestmark = pytest.mark.oracle
MODELS = {
    "llama": {},
    "mistral3": {},
    "qwen2": {},
    "qwen3": {},
    "qwen3moe": {},
    "gemma2": {},
    "gemma3": {},
    "phi3": {},
    "glm4": {},
    "granite": {},
    "smollm3": {},
}
TYPES = ("float32", "bfloat16", "float16")


def built(name, folder):
    path = folder / f"{name}.gguf"
    tiny_gguf(path, name)
    return load_model(path), oracles.transformers_model(path, name)


def save_dump(model, path, dtype, hooks=True):
    """Save what hooks on all modules see, or the hidden states alone."""
    torch = pytest.importorskip("torch")
    model, values = model.to(getattr(torch, dtype)), {}

    def hook(name):
        def save(module, given, out):
            out = out[0] if isinstance(out, tuple) else out
            out = getattr(out, "last_hidden_state", out)
            if torch.is_tensor(out) and out.is_floating_point():
                values[name] = out.detach().float().numpy().copy()

        return save

    handles = [module.register_forward_hook(hook(name)) for name, module in model.named_modules() if name and hooks]
    with torch.no_grad():
        out = model(torch.tensor([IDS]), output_hidden_states=not hooks)
    for handle in handles:
        handle.remove()
    if not hooks:
        values |= {f"hidden_states.{i}": x.float().numpy() for i, x in enumerate(out.hidden_states)}
    values["logits"] = out.logits.float().numpy()
    save_file({name: np.ascontiguousarray(x) for name, x in values.items()}, path, {"tokens": str(IDS)})
    return open_dump(path, names="hf")


def found(report):
    return [(verdict.label, round(verdict.bits, 1), verdict.cause) for verdict in report.wrong]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", MODELS)
def test_every_value_of_transformers_is_right(name, dtype, tmp_path):
    ours, theirs = built(name, tmp_path)
    report = judge(ours, IDS, save_dump(theirs, tmp_path / "hooks.safetensors", dtype))
    assert found(report) == []
    names = {split_label(verdict.label)[0] for verdict in report.verdicts}
    assert {"attn_norm", "attn_out", "ffn_norm", "l_out", "result_norm", "result_output"} <= names, report.not_compared
    assert found(judge(ours, IDS, save_dump(theirs, tmp_path / "states.safetensors", dtype, hooks=False))) == []


def scores_unscaled(model, torch):
    for layer in model.model.layers:
        layer.self_attn.scaling = 1.0


def eps_larger(model, torch):
    for layer in model.model.layers:
        layer.input_layernorm.variance_epsilon = 1.0


def gate_through_gelu(model, torch):
    for layer in model.model.layers:
        layer.mlp.act_fn = torch.nn.GELU(approximate="tanh")


def exchanged_gate_and_up(model, torch):
    mlp = model.model.layers[1].mlp
    mlp.gate_proj.weight, mlp.up_proj.weight = mlp.up_proj.weight, mlp.gate_proj.weight


def slower_rope(model, torch):
    model.model.rotary_emb.inv_freq = model.model.rotary_emb.inv_freq / 2


def key_heads_in_another_order(model, torch):
    weight = model.model.layers[0].self_attn.v_proj.weight
    weight.data = weight.data.reshape(2, -1, weight.shape[1]).flip(0).reshape(weight.shape)


def no_residual_in_layer_1(model, torch):
    layer = model.model.layers[1]
    mlp = layer.mlp.forward
    layer.mlp.forward = lambda x: mlp(x) * 0.5


BUGS = {  # what is put into the module: the first value that shows it
    scores_unscaled: "attn_out-0",
    eps_larger: "attn_norm-0",
    gate_through_gelu: "ffn_out-0",
    exchanged_gate_and_up: "ffn_gate-1",
    slower_rope: "attn_out-0",
    key_heads_in_another_order: "Vcur-0",
    no_residual_in_layer_1: "ffn_out-1",
}


@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.__name__)
def test_a_bug_in_a_module_is_located(bug, dtype, tmp_path):
    ours, theirs = built("llama", tmp_path)
    with pytest.importorskip("torch").no_grad():
        bug(theirs, pytest.importorskip("torch"))
    report = judge(ours, IDS, save_dump(theirs, tmp_path / "dump.safetensors", dtype))
    assert report.wrong[0].label == BUGS[bug], found(report)
