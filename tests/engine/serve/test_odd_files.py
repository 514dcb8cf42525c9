"""Any model file, however odd, is run or refused in one line, as an error of the engine."""

from __future__ import annotations

import random
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from adapters import tiny_lora
from dialects import mistral3_twins
from tiny_encoder import tiny_encoder

from numllama.engine.errors import EngineError, UnsupportedArchitecture
from numllama.engine.gguf.read import GGUF, I32, U32, U64
from numllama.engine.gguf.write import write_gguf
from numllama.engine.options import RequestOptions
from numllama.engine.serve.engine import Engine
from numllama.engine.settings import Settings
from numllama.engine.store import Store
from numllama.engine.store.file import FileModel
from numllama.engine.store.show import show_file
from numllama.kernels import Tensor
from numllama.kernels.quants import FORMATS_BY_NAME
from tiny import CHAT_TEMPLATE, tiny_gguf
from tiny_llava import encoded, picture, tiny_mmproj

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # odd numbers overflow

BRIEF = RequestOptions({"num_predict": 2, "num_ctx": 64, "temperature": 0, "seed": 1})
VALUES = [
    *(None, True, False, "", "x", "llama", "\ud800", 0.0, -1.0, 1e-5, 1e30, float("nan"), float("inf")),
    *(0, 1, 2, 3, 7, 64, 255, 2**31 - 1, -1, -(2**31), 2**32, 2**62, 2**63 - 1, U64(2**64 - 1), U32(1), I32(2)),
    *([], [""], ["a", "b"], [0], [1, 2], [-1] * 5, [0.5], [True], [[1], ["a"]]),
]
# keys that are read, and that no generated file has; the first ones behind the architecture's name
RARE = """rope.scaling.type rope.scaling.factor rope.scale_linear rope.scaling.original_context_length
    rope.scaling.attn_factor rope.scaling.yarn_log_multiplier rope.scaling.yarn_beta_fast rope.scaling.finetuned
    rope.dimension_sections rope.freq_base_swa attention.sliding_window attention.sliding_window_pattern
    attention.causal attention.layer_norm_epsilon attention.temperature_scale attention.scale attn_logit_softcapping
    final_logit_softcapping logit_scale residual_scale embedding_scale pooling_type expert_feed_forward_length
    expert_count expert_used_count vision.block_count vision.feature_layer""".split()
RARE_ANYWHERE = """general.type general.alignment general.file_type split.count split.no tokenizer.chat_template
    tokenizer.chat_templates tokenizer.chat_template.tool_use tokenizer.ggml.eot_token_id tokenizer.ggml.eom_token_id
    tokenizer.ggml.eos_token_ids tokenizer.ggml.padding_token_id tokenizer.ggml.mask_token_id
    tokenizer.ggml.add_space_prefix tokenizer.ggml.remove_extra_whitespaces tokenizer.ggml.precompiled_charsmap
    tokenizer.ggml.token_type_count tokenizer.ggml.add_sep_token tokenizer.ggml.seperator_token_id
    adapter.alora.invocation_tokens clip.use_gelu clip.use_silu clip.projector_type""".split()
FORMATS = [FORMATS_BY_NAME[name] for name in ("F32", "F16", "BF16", "F64", "I32", "I8", "Q8_0", "Q4_0", "Q6_K")]


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Return valid files of each kind: decoders, encoders, a projector and an adapter, with the model that they fit."""
    folder = tmp_path_factory.mktemp("originals")
    plain = tiny_gguf(folder / "llama.gguf", chat_template=CHAT_TEMPLATE)
    decoders = [
        plain,
        tiny_gguf(folder / "bpe.gguf", tokenizer="bpe", quant="Q8_0", rope_factors="freqs"),
        *(tiny_gguf(folder / f"{name}.gguf", name) for name in ("gemma3", "phi3", "qwen3moe", "mistral3", "granite")),
    ]
    encoders = [tiny_encoder(folder / f"{name}.gguf", name) for name in ("bert", "nomic-bert", "jina-bert-v2")]
    parts = [("projector", tiny_mmproj(folder / "clip.gguf")), ("adapter", tiny_lora(folder / "lora.gguf", plain))]
    return [("model", GGUF.open(path)) for path in decoders + encoders] + [
        (kind, GGUF.open(path)) for kind, path in parts
    ]


def odd_file(path, original, choose):
    """Write `original` with one to three odd values or tensors, chosen by `choose`."""
    values, tensors = dict(original.typed), list(original.tensors.values())
    architecture = original.kv["general.architecture"]
    keys = [*values, *(f"{architecture}.{key}" for key in RARE), *RARE_ANYWHERE]
    for _ in range(choose.choice((1, 1, 1, 2, 3))):
        if choose.random() < 0.7:
            key = choose.choice(keys)
            values[key] = choose.choice(VALUES)
        else:
            i = choose.randrange(len(tensors))
            tensors[i] = odd_tensor(tensors[i], choose)
            tensors = [tensor for tensor in tensors if tensor is not None]
    try:
        write_gguf(path, {key: value for key, value in values.items() if value is not None}, tensors)
    except (EngineError, ValueError, TypeError, OverflowError):  # such a file cannot be written
        return False
    return True


def odd_tensor(tensor, choose):
    """Return the tensor with another shape, format or content, or None to leave it out."""
    match choose.randrange(6):
        case 0:
            return None
        case 1:
            shape = choose.choice([(), (1,), tensor.shape[::-1], (1, *tensor.shape), (*tensor.shape, 1), (0, 32)])
        case 2:
            shape = tuple(max(n + choose.choice((-1, 0, 1, 32)), 0) for n in tensor.shape)
        case 3:
            blocks = np.full_like(tensor.blocks.view("u1"), choose.choice((0, 0x7F, 0xFF))).view(tensor.blocks.dtype)
            return replace(tensor, blocks=blocks)
        case _:
            shape = tensor.shape
    format = choose.choice(FORMATS)
    if not shape or shape[-1] % format.block_size:
        format = FORMATS[0]
    n_in = shape[-1] // format.block_size if shape else 1
    return Tensor(tensor.name, format, shape, np.zeros((*shape[:-1], n_in), format.layout))


def use(engine):
    """Do with the model what a server does with one."""
    if "embedding" in engine.capabilities("m"):
        list(engine.embed("m", ["once upon a time", "a"], BRIEF))
        return
    list(engine.generate("m", "once upon a time", BRIEF, raw=True))
    list(engine.chat("m", [{"role": "user", "content": "hi"}], BRIEF))


def check_odd_files(originals, folder, n, seed):
    """Write and use `n` odd files; return how many were refused.  Any error but an EngineError ends the test."""
    choose, refused, done = random.Random(seed), 0, 0
    model_of_parts, path = originals[0][1].path, folder / "odd.gguf"
    while done < n:
        kind, original = choose.choice(originals)
        if not odd_file(path, original, choose):
            continue
        done += 1
        file = {
            "model": lambda: FileModel.of(path),
            "projector": lambda: FileModel.of(model_of_parts, (), [path]),
            "adapter": lambda: FileModel.of(model_of_parts, [path], ()),
        }[kind]()
        try:
            show_file(path, verbose=True)
            with closing(Engine(Settings(models=folder), Store(folder), file=file)) as engine:
                use(engine)
        except EngineError as error:
            refused += 1
            assert str(error).strip() and "\n" not in str(error)
        except Exception as error:
            raise AssertionError(f"{original.path.name}, file {done}: {describe(path, original)}") from error
    return refused


def describe(path, original):
    """Return the keys and tensors in which the file at `path` differs from `original`."""
    odd = GGUF.open(path)
    keys = {
        key: odd.kv.get(key, "missing")
        for key in {*odd.kv, *original.kv}
        if repr(odd.kv.get(key)) != repr(original.kv.get(key))
    }
    shapes = {
        name: f"{odd.tensors.get(name)}"
        for name in original.tensors
        if f"{odd.tensors.get(name)}" != f"{original.tensors[name]}"
    }
    return f"{keys} {shapes}"[:400]


def test_odd_files_are_run_or_refused_in_one_line(originals, tmp_path):
    assert 100 < check_odd_files(originals, tmp_path, 200, seed=1) < 200


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 12))
def test_very_many_odd_files_are_run_or_refused_in_one_line(originals, tmp_path, seed, n_inputs):
    check_odd_files(originals, tmp_path, n_inputs // 10, seed)


def test_a_file_whose_tower_is_unsupported_reads_text_and_refuses_images(tmp_path):
    ollamas, theirs = mistral3_twins(tmp_path, tower=True)
    answers = []
    for path in (ollamas, theirs):
        with closing(Engine(Settings(models=tmp_path), Store(tmp_path), file=FileModel.of(path))) as engine:
            answers.append("".join(piece.text for piece in engine.generate("", "once upon", BRIEF)))
            if path == ollamas:
                with pytest.raises(UnsupportedArchitecture, match=r"^unsupported vision tower in this mistral3 file"):
                    list(engine.generate("", "once upon", BRIEF, images=[encoded(picture())]))
    assert answers[0] == answers[1]
