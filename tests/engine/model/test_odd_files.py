"""Files whose metadata or tensors are odd: each loads, or is refused with one line that names the fault."""

from random import Random

import numpy as np
import pytest
from tiny_encoder import tiny_encoder

from numllama.engine.errors import EngineError
from numllama.engine.gguf.read import GGUF, I64, ArrayType
from numllama.engine.gguf.write import write_gguf
from numllama.engine.model.batch import Batch
from numllama.engine.model.load import check_fits, load_model
from numllama.engine.store.make.mixture import tensor_formats
from numllama.engine.store.show import show_file
from numllama.engine.template import Template
from numllama.kernels import NUMPY
from numllama.kernels.quants import FORMATS_BY_NAME
from tiny import tiny_gguf
from tiny_llava import tiny_mmproj

F32 = FORMATS_BY_NAME["F32"]
ODD = {
    "an array of numbers": np.array([1, 2], np.int32),
    "an array of floats": np.array([0.5, np.nan], np.float32),
    "an empty array": ArrayType(I64)(np.zeros(0, np.int64)),
    "an array of strings": ["a", "b"],
    "an array of bools": [True, False],
    "nested arrays": [[1, 2], ["x"]],
    "a long array": np.arange(5000, dtype=np.int32),
    "a string": "abc",
    "an empty string": "",
    "bytes": "\udcff\udcfe",
    "a bool": True,
    "zero": 0,
    "minus one": -1,
    "a large integer": 2**63,
    "a fraction": 0.5,
    "infinity": np.float64("inf"),
    "not a number": np.float64("nan"),
    "a tiny number": np.float64(5e-324),
    "a large number": np.float64(1e300),
}
# Between them, every kind of key and tensor; the others are slow
MADE = {
    "llama": lambda path: tiny_gguf(path, rope_factors="freqs"),
    "bpe": lambda path: tiny_gguf(path, tokenizer="bpe", bias=True, family="qwen2"),
    "gemma3": lambda path: tiny_gguf(path, "gemma3"),
    "mistral3": lambda path: tiny_gguf(path, "mistral3"),
    "phi3": lambda path: tiny_gguf(path, "phi3", rope_factors="factors"),
    "qwen3moe": lambda path: tiny_gguf(path, "qwen3moe"),
    "bert": lambda path: tiny_encoder(path, "bert"),
    "nomic-bert": lambda path: tiny_encoder(path, "nomic-bert"),
}


FIRST = ("llama", "mistral3", "qwen3moe", "bert")
FAMILIES = [name if name in FIRST else pytest.param(name, marks=pytest.mark.slow) for name in MADE]


@pytest.fixture(scope="module", params=FAMILIES)
def sound(request, tmp_path_factory):
    return GGUF.open(MADE[request.param](tmp_path_factory.mktemp("models") / f"{request.param}.gguf"))


def changed(gguf, path, kv, tensors=None):
    """Write `gguf` with other key-values or tensors."""
    values = {key: value for key, value in (gguf.typed | kv).items() if value is not None}
    table = {name: (name, t.format, t.shape, t.blocks) for name, t in gguf.tensors.items()} | (tensors or {})
    write_gguf(path, values, [tensor for tensor in table.values() if tensor is not None])
    return path


def use(path):
    """Do with a file what a server does: list, quantize, load, render, tokenize and generate."""
    show_file(path, verbose=True)
    gguf = GGUF.open(path)
    tensor_formats(gguf, "Q4_K_M")
    Template.from_gguf(gguf).render([{"role": "user", "content": "hi"}])
    model = load_model(gguf)
    model.tokenizer.encode("hello <s> world")
    if model.hparams.n_ctx_train < 2**20:
        cache = model.new_cache(min(8, model.hparams.n_ctx_train))
        model.family.hidden(model, Batch.of([1]), cache, NUMPY)


def refusal(call, *args):
    """Return the one-line error of `call`, or "".  Any other exception is a fault."""
    try:
        with np.errstate(all="ignore"):
            call(*args)
    except EngineError as error:
        assert "\n" not in str(error) and len(str(error)) < 700
        return str(error)
    return ""


# Each key has a third of the odd values, and each tensor a third of the shapes; the others are slow
thirds = pytest.mark.parametrize("third", [0, *(pytest.param(third, marks=pytest.mark.slow) for third in (1, 2))])


@thirds
@pytest.mark.parametrize("odd", ODD)
def test_any_key_may_have_any_value(sound, tmp_path, odd, third):
    for key in [*sound.kv][([*ODD].index(odd) + third) % 3 :: 3]:
        if key != "general.alignment":
            refusal(use, changed(sound, tmp_path / "odd.gguf", {key: ODD[odd]}))


def shapes_of(shape):
    n = int(np.prod(shape))
    yield from (
        (),
        (n,),
        (n, 1),
        (1, n),
        (1, *shape),
        (1, 1, *shape)[:4],
        (*shape[::-1],),
        (0, *shape)[:4],
        (*shape, 1)[:4],
    )
    yield (*shape[:-1], shape[-1] + 1)


@thirds
def test_any_tensor_may_have_any_shape(sound, tmp_path, third):
    for i, (name, tensor) in enumerate(sound.tensors.items()):
        refusal(use, changed(sound, tmp_path / "odd.gguf", {}, {name: None}))
        for shape in [*shapes_of(tensor.shape)][(i + third) % 3 :: 3]:
            other = name, F32, shape, np.zeros(shape, "<f4")
            refusal(use, changed(sound, tmp_path / "odd.gguf", {}, {name: other}))


NAMED = [
    ("general.architecture", "an array of numbers", "unsupported architecture 'an array of 2'; this build supports"),
    ("tokenizer.ggml.tokens", "zero", "key 'tokenizer.ggml.tokens' is 0, expected an array of strings"),
    ("tokenizer.ggml.tokens", "an array of numbers", "'tokenizer.ggml.tokens' is an array of 2, expected an array"),
    ("llama.rope.scaling.type", "an array of numbers", "unsupported rope scaling 'an array of 2'; this build supports"),
    ("llama.block_count", "an array of strings", "key 'llama.block_count' is an array of 2, expected a number"),
    ("llama.block_count", "an empty array", "key 'llama.block_count' is an array of 0, expected a number"),
    ("llama.context_length", "a large number", "key 'llama.context_length' is 1e+300, expected a number from 1 to"),
    ("llama.rope.freq_base", "infinity", "key 'llama.rope.freq_base' is inf, expected a number from 1"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "odd", "message"), NAMED)
def test_the_error_names_the_key(tmp_path, key, odd, message):
    gguf = GGUF.open(tiny_gguf(tmp_path / "tiny.gguf"))
    assert message in refusal(use, changed(gguf, tmp_path / "odd.gguf", {key: ODD[odd]}))


def adapter(path, rank=4, shape_a=None, **kv):
    kv = {key.replace("__", "."): value for key, value in kv.items()}
    kv = {"general.type": "adapter", "general.architecture": "llama", "adapter.type": "lora"} | kv
    a, b = np.ones((rank, 64) if shape_a is None else shape_a, "<f4"), np.ones((64, rank), "<f4")
    name = "blk.0.attn_q.weight"
    write_gguf(path, kv, [(f"{name}.lora_a", F32, a.shape, a), (f"{name}.lora_b", F32, b.shape, b)])
    return path


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"adapter__lora__alpha": "abc"}, "adapter.lora.alpha is 'abc', expected a finite number"),
        ({"adapter__lora__alpha": "1.5"}, "adapter.lora.alpha is '1.5', expected a finite number"),
        ({"adapter__lora__alpha": np.array([1, 2], np.float32)}, "adapter.lora.alpha is an array of 2, expected"),
        ({"adapter__lora__alpha": np.float32("nan")}, "adapter.lora.alpha is nan, expected a finite number"),
        ({"adapter__type": ["lora"]}, "adapter.type is an array of 1, expected 'lora'"),
        ({"rank": 0, "adapter__lora__alpha": 1.0}, "has shape [64, 0], expected a rank of at least 1"),
        ({"shape_a": (4,)}, "has shape [4], expected [4, 64] for this model"),
        ({"shape_a": ()}, "has shape [], expected [4, 64] for this model"),
    ],
)  # fmt: skip
def test_an_odd_adapter_is_refused_by_name(tmp_path, more, message):
    base, path = tiny_gguf(tmp_path / "base.gguf"), adapter(tmp_path / "a.gguf", **more)
    assert message in refusal(load_model, base, {path: 1.0})
    assert message in refusal(check_fits, GGUF.open(path), GGUF.open(base))


@pytest.mark.parametrize("odd", ODD)
def test_any_key_of_an_adapter_may_have_any_value(tmp_path, odd):
    base = tiny_gguf(tmp_path / "base.gguf")
    for key in ("general.type", "general.architecture", "adapter.type", "adapter.lora.alpha", "adapter.alora.x"):
        path = adapter(tmp_path / "a.gguf", **{"adapter.lora.alpha": 1.0, key: ODD[odd]})
        refusal(load_model, base, {path: 1.0})
        refusal(show_file, path)


@pytest.mark.parametrize("odd", ODD)
def test_any_key_of_a_projector_may_have_any_value(tmp_path, odd):
    base, sound = tiny_gguf(tmp_path / "base.gguf"), GGUF.open(tiny_mmproj(tmp_path / "mmproj.gguf"))
    for key in [*sound.kv, "clip.vision.image_grid_pinpoints"]:
        path = changed(sound, tmp_path / "odd.gguf", {key: ODD[odd]})
        refusal(load_model, base, None, path)
        refusal(check_fits, GGUF.open(path), GGUF.open(base))
        refusal(show_file, path)


@pytest.mark.slow
def test_very_many_random_changes_are_used_or_refused(sound, tmp_path, n_inputs):
    """Three keys or tensors at once."""
    random = Random(0)
    for _ in range(n_inputs // len(MADE)):
        kv = {random.choice(list(sound.kv)): random.choice(list(ODD.values())) for _ in range(random.randint(0, 3))}
        kv.pop("general.alignment", None)
        tensors = {}
        for name in random.sample(list(sound.tensors), random.randint(0, 2)):
            shape = random.choice(list(shapes_of(sound.tensors[name].shape)))
            tensors[name] = name, F32, shape, np.zeros(shape, "<f4")
        refusal(use, changed(sound, tmp_path / "odd.gguf", kv, tensors))
