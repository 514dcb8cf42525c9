"""Other implementations that compute logits from our model files, and the distance between two results.

transformers    Hugging Face's own code for each family, computing in float64 on the weights of a float32 GGUF
xllamacpp       llama.cpp's server as published in a wheel, in its plainest configuration
"""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from numllama.engine.gguf.read import GGUF
from numllama.engine.model.batch import Batch
from numllama.engine.model.decoder import forward
from numllama.engine.model.load import load_model
from numllama.kernels import SETS


def our_logits(path, tokens, kernels, gelu=""):
    """Compute the logits of the model in GGUF `path` for one text with the set `kernels`.  -> float [n_tok, n_vocab]

    gelu    "ggml": use ggml's float16 table in any set; that alone changes a Gemma's logits by 4e-3
    """
    return forward(*run(path, tokens, kernels, gelu))


def our_rows(path, tokens, kernels, gelu=""):
    """Compute the hidden states before the output matrix; an encoder's whole result.  -> float [n_tok, n_embd]"""
    model, *rest = run(path, tokens, kernels, gelu)
    return model.family.hidden(model, *rest)


def run(path, tokens, kernels, gelu):
    """Return the arguments of forward(): the model, one text as a batch, a cache, and the kernels."""
    model, how = load_model(path), SETS[kernels]
    if gelu:
        names = ("gelu", "gelu_mul")
        how = replace(how, **{name: partial(in_f32, getattr(SETS[gelu], name)) for name in names})
    cache = model.new_cache(256, type="f64" if kernels == "numpy-float64" else "f32")
    return model, Batch.of(tokens, outputs=range(len(tokens))), cache, how


def in_f32(function, *arrays):
    """Call `function` in float32 and convert its result to the type of the arguments."""
    return function(*(array.astype(np.float32) for array in arrays)).astype(arrays[0].dtype)


def log_softmax(logits):
    """Compute log-softmax.  -> f64, shape as `logits`"""
    logits = logits.astype(np.float64)
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def divergence(expected, got):
    """Compute the Kullback-Leibler divergence of `got` from `expected`, in nats; the mean over positions."""
    p, q = log_softmax(expected), log_softmax(got)
    return (np.exp(p) * (p - q)).sum(axis=-1).mean()


# --- transformers

NAMES = {  # tensor names, GGUF: transformers
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
    "token_embd": "embed_tokens",
    "output_norm": "norm",
}
GEMMA = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
AROUND = {  # names of norms in families that also have one after each block
    "gemma2": GEMMA,
    "gemma3": GEMMA,
    "gpt": {"post_attention_norm": "post_attention_layernorm", "ffn_gate_inp": "mlp.router"},
    "glm4": {"post_attention_norm": "post_self_attn_layernorm", "post_ffw_norm": "post_mlp_layernorm"},
}


def plain(kv):
    return {}


def mixtral(kv):
    return {"num_local_experts": int(kv("expert_count")), "num_experts_per_tok": int(kv("expert_used_count"))}


def qwen3moe(kv):
    return {
        "num_experts": int(kv("expert_count")),
        "num_experts_per_tok": int(kv("expert_used_count")),
        "moe_intermediate_size": int(kv("expert_feed_forward_length")),
        "norm_topk_prob": True,
    }


def gpt_oss(kv):
    """The ends of YaRN's ramp are rounded here, as in llama.cpp; the published models say `truncate` false."""
    return {
        "num_local_experts": int(kv("expert_count")),
        "num_experts_per_tok": int(kv("expert_used_count")),
        "sliding_window": int(kv("attention.sliding_window")),
        "intermediate_size": int(kv("expert_feed_forward_length")),
        "attention_bias": True,
    }


def gemma2(kv):
    return {
        "query_pre_attn_scalar": int(kv("attention.key_length")),
        "sliding_window": int(kv("attention.sliding_window")),
        "attn_logit_softcapping": float(kv("attn_logit_softcapping")),
        "final_logit_softcapping": float(kv("final_logit_softcapping")),
    }


def gemma3(kv):
    stretched = {"rope_type": "linear", "factor": float(kv("rope.scaling.factor"))}
    return {
        "query_pre_attn_scalar": int(kv("attention.key_length")),
        "sliding_window": int(kv("attention.sliding_window")),
        "rope_parameters": {
            "full_attention": stretched | {"rope_theta": float(kv("rope.freq_base"))},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    }


def granite(kv):
    return {
        "embedding_multiplier": float(kv("embedding_scale")),
        "residual_multiplier": float(kv("residual_scale")),
        "attention_multiplier": float(kv("attention.scale")),
        "logits_scaling": float(kv("logit_scale")),
    }


CLASSES = {  # by the first word of a model's name: its classes in transformers, and config values other than sizes
    "llama": ("LlamaConfig", "LlamaForCausalLM", plain),
    "mistral": ("MistralConfig", "MistralForCausalLM", lambda kv: {"sliding_window": None}),
    "mistral3": ("Ministral3Config", "Ministral3ForCausalLM", plain),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", plain),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", plain),
    "gemma": ("GemmaConfig", "GemmaForCausalLM", plain),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", gemma2),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", gemma3),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", plain),
    "smollm3": ("SmolLM3Config", "SmolLM3ForCausalLM", plain),
    "granite": ("GraniteConfig", "GraniteForCausalLM", granite),
    "glm4": ("Glm4Config", "Glm4ForCausalLM", lambda kv: {"attention_bias": True}),
    "gpt": ("GptOssConfig", "GptOssForCausalLM", gpt_oss),
    "mixtral": ("MixtralConfig", "MixtralForCausalLM", mixtral),
    "qwen3moe": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM", qwen3moe),
}
# Families whose rows of q and k llama.cpp's conversion reorders, so that RoPE rotates neighbours
PERMUTED = ("llama", "mistral", "mistral3", "mixtral", "granite", "smollm3")


def transformers_logits(path, name, tokens):
    """Compute transformers' logits for `tokens` at each position.  -> f64 [n_tok, n_vocab]

    path    a float32 GGUF;  name: the model's name, whose first word is a key of CLASSES
    """
    model, torch = transformers_model(path, name), pytest.importorskip("torch")
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].numpy()


def transformers_model(path, name):
    """Build transformers' model, in float64.  path, name: as transformers_logits"""
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    torch.set_num_threads(1)
    gguf, family = GGUF.open(path), name.split("-")[0]
    arch = gguf.kv["general.architecture"]

    def kv(key, default=None):
        return gguf.kv.get(f"{arch}.{key}", default)

    config_class, model_class, more = CLASSES[family]
    n_vocab, n_embd = gguf.tensors["token_embd.weight"].shape
    n_head, n_head_kv = int(kv("attention.head_count")), int(kv("attention.head_count_kv"))
    n_head_dim = int(kv("attention.key_length", n_embd // n_head))
    config = getattr(transformers, config_class)(
        vocab_size=n_vocab,
        hidden_size=n_embd,
        num_hidden_layers=int(kv("block_count")),
        num_attention_heads=n_head,
        num_key_value_heads=n_head_kv,
        head_dim=n_head_dim,
        max_position_embeddings=int(kv("context_length")),
        rms_norm_eps=float(kv("attention.layer_norm_rms_epsilon")),
        tie_word_embeddings="output.weight" not in gguf.tensors,
        attn_implementation="eager",
        experts_implementation="eager",
        pad_token_id=0,
        eos_token_id=2,
        **{
            "intermediate_size": int(kv("feed_forward_length")),
            "rope_parameters": {"rope_type": "default", "rope_theta": float(kv("rope.freq_base"))},
            **more(kv),
            **stretched(kv, gguf, n_head_dim),
        },
    )
    model = getattr(transformers, model_class)(config).double().eval()
    weights = state(gguf, family, n_head, n_head_kv)
    missing = model.load_state_dict({name: torch.from_numpy(w) for name, w in weights.items()}, strict=False)
    tied = ["lm_head.weight"] if config.tie_word_embeddings else []
    assert missing.missing_keys == tied and not missing.unexpected_keys, missing
    if (factors := gguf.tensors.get("rope_freqs.weight")) is not None:
        model.model.rotary_emb.inv_freq /= torch.tensor(factors.dequantize())
    return model


def stretched(kv, gguf, n_head_dim):
    """Return the config values for RoPE, including windows stretched by YaRN or LongRoPE."""
    rope = {"rope_theta": float(kv("rope.freq_base", 10000.0)), "rope_type": kv("rope.scaling.type", "default")}
    if kv("rope.scaling.type") == "yarn":
        rope |= {"factor": float(kv("rope.scaling.factor"))}
        for key in ("beta_fast", "beta_slow"):
            if (value := kv(f"rope.scaling.yarn_{key}")) is not None:
                rope[key] = float(value)
        if (weight := kv("rope.scaling.yarn_log_multiplier")) is not None:
            rope |= {"mscale": 1.0, "mscale_all_dim": float(weight)}
            rope["llama_4_scaling_beta"] = float(kv("attention.temperature_scale"))
    for length in ("long", "short"):
        if (factors := gguf.tensors.get(f"rope_factors_{length}.weight")) is not None:
            rope |= {"rope_type": "longrope", f"{length}_factor": factors.dequantize().tolist()}
    rope["partial_rotary_factor"] = int(kv("rope.dimension_count")) / n_head_dim
    before = {"original_max_position_embeddings": int(kv("rope.scaling.original_context_length", 0))}
    match rope["rope_type"]:
        case "linear":  # set by the family's own function
            return {}
        case "yarn":
            return {"rope_parameters": rope | before}
        case "longrope":
            return {"rope_parameters": rope, **before}
    return {"rope_parameters": rope}


def state(gguf, family, n_head, n_head_kv):
    """Return the tensors of `gguf` under transformers' names, f64, as they were before llama.cpp's conversion."""
    names = NAMES | AROUND.get(family, {})
    arrays = {name: tensor.dequantize().astype(np.float64) for name, tensor in gguf.tensors.items()}
    arrays = {name: x for name, x in arrays.items() if not name.startswith("rope_")}
    found = {}
    for name, x in arrays.items():
        *layer, part, kind = name.split(".")
        if family in PERMUTED and part in ("attn_q", "attn_k"):
            x = separate(x, n_head if part == "attn_q" else n_head_kv)
        if family.startswith("gemma") and part.endswith("norm"):
            x = x - 1  # transformers multiplies by 1 + weight
        place = f"model.layers.{layer[1]}." if layer else "model."
        if part == "output":
            found["lm_head.weight"] = x
        elif part == "attn_sinks":
            found[f"{place}self_attn.sinks"] = x
        elif family == "gpt" and part in ("ffn_gate_exps", "ffn_down_exps"):
            end = "_bias" if kind == "bias" else ""
            if part == "ffn_gate_exps":  # rows of gate and up take turns
                both = np.stack([x, arrays[name.replace("ffn_gate", "ffn_up")]], axis=2)
                x = both.reshape(len(x), -1, *x.shape[2:])
            matrix = "gate_up_proj" if part == "ffn_gate_exps" else "down_proj"
            found[f"{place}mlp.experts.{matrix}{end}"] = x if end else x.swapaxes(1, 2)
        elif part == "ffn_gate_exps":
            found[f"{place}mlp.experts.gate_up_proj"] = np.concatenate(
                [x, arrays[name.replace("ffn_gate", "ffn_up")]], axis=1
            )
        elif part == "ffn_down_exps":
            found[f"{place}mlp.experts.down_proj"] = x
        elif part == "ffn_up" and f"{'.'.join(layer)}.ffn_gate.weight" not in arrays:
            found[f"{place}mlp.gate_up_proj.weight"] = x
        elif part != "ffn_up_exps":
            found[f"{place}{names[part]}.{kind}"] = x
    return found


def separate(x, n_head):
    """Reorder rows (or biases) from adjacent pairs in each head to first halves, then second halves."""
    return x.reshape(n_head, -1, 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


# --- xllamacpp


def xllamacpp_logprobs(path, texts, defaults=False, word=290):
    """Compute log-probabilities of the token after each of `texts`, lists of ids.  -> f64 [len(texts), n_vocab]

    defaults   weights repacked, flash attention, a cache in f16; else the plainest options
    word       a token that is a whole word
    """
    xllamacpp = pytest.importorskip("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_gpu_layers, params.n_ctx, params.n_parallel, params.verbosity = 0, 256, 1, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.no_extra_bufts, params.warmup, params.fit_params = not defaults, False, False
    if not defaults:
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    server, n_vocab = xllamacpp.Server(params), GGUF.open(path).tensors["token_embd.weight"].shape[0]
    rows = np.full((len(texts), n_vocab), np.nan)
    # `word` is forced: probabilities are computed before the bias, but omitted for half a character
    for row, text in zip(rows, texts, strict=True):
        request = {
            "prompt": text,
            "n_predict": 1,
            "n_probs": n_vocab,
            "cache_prompt": False,
            "logit_bias": {str(word): 1e3},
        }
        answer = server.handle_completions(request)
        for entry in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
            row[entry["id"]] = entry["logprob"]
    return rows
