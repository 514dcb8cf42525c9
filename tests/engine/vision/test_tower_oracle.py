"""Vision towers against transformers' LLaVA with the same weights."""

import numpy as np
import pytest

from numllama.engine.gguf.read import GGUF
from numllama.engine.vision.tower import load_vision
from numllama.kernels import SETS, numpy_kernels
from tiny_llava import picture, tiny_mmproj

pytestmark = pytest.mark.oracle

NAMES = {  # parts of names, ours to transformers'
    "v.blk": "vision_tower.encoder.layers",
    "ln1": "layer_norm1",
    "ln2": "layer_norm2",
    "attn_out": "self_attn.out_proj",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "ffn_up": "mlp.fc1",
    "ffn_down": "mlp.fc2",
    "v.pre_ln": "vision_tower.pre_layrnorm",
    "v.class_embd": "vision_tower.embeddings.class_embedding",
    "v.patch_embd": "vision_tower.embeddings.patch_embedding",
    "v.position_embd": "vision_tower.embeddings.position_embedding",
    "mm.0": "multi_modal_projector.linear_1",
    "mm.2": "multi_modal_projector.linear_2",
}


def llava(path, **config):
    """Build transformers' LLaVA in float64, with the tower and projector of `path`."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tower = transformers.CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, image_size=32, patch_size=8
    )
    text = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=2, vocab_size=100
    )
    model = transformers.LlavaModel(transformers.LlavaConfig(vision_config=tower, text_config=text, **config)).double()
    weights = {}
    for name, tensor in GGUF.open(path).tensors.items():
        for ours, theirs in NAMES.items():
            name = name.replace(ours, theirs)
        weights[name] = torch.from_numpy(tensor.dequantize().astype(np.float64))
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and all(name.startswith(("language_model.", "vision_tower.post")) for name in missing)
    return model.eval()


@pytest.mark.parametrize(
    "act, tolerance",
    # LLaVA's GELU uses erf, llama.cpp's the tanh form: at most 5e-4 apart before mm.2
    [("gelu_pytorch_tanh", 1e-9), ("gelu", 5e-3)],
)
def test_rows_equal_those_of_transformers(tmp_path, act, tolerance):
    path = tiny_mmproj(tmp_path / "mmproj.gguf")
    vision, image = load_vision(path, order="huggingface"), picture(32, 32)
    model = llava(path, projector_hidden_act=act)
    torch = pytest.importorskip("torch")
    mean, std = vision.hparams.mean.astype(np.float64), vision.hparams.std.astype(np.float64)
    pixels = torch.from_numpy(((image / 255 - mean) / std).transpose(2, 0, 1)[None])
    with torch.no_grad():
        layer = {"vision_feature_layer": -2, "vision_feature_select_strategy": "default"}
        expected = model.get_image_features(pixels, **layer).pooler_output[0].numpy()

    np.testing.assert_allclose(vision.rows(image, numpy_kernels(np.float64)), expected, rtol=0, atol=tolerance)
    for kernels in SETS.values():  # float32, and f16 where ggml rounds to it
        np.testing.assert_allclose(vision.rows(image, kernels), expected, rtol=0, atol=tolerance + 1e-2)
    assert np.abs(load_vision(path).rows(image, numpy_kernels(np.float64)) - expected).max() > 0.1  # the other order
