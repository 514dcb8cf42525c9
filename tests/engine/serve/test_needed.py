"""Every kernel that a model is said to need is one that can be compiled before the first answer."""

import pytest
from tiny_encoder import tiny_encoder

from numllama.engine.model.families import FAMILIES
from numllama.engine.model.load import load_model
from numllama.engine.serve.runner import needed
from numllama.kernels import SETS
from numllama.kernels.quants import FORMATS
from numllama.kernels.warmup import warmups
from tiny import tiny_gguf
from tiny_llava import tiny_mmproj

pytestmark = pytest.mark.skipif("numba" not in SETS, reason="nothing is compiled")
KNOWN = {name for name, _ in warmups()} if "numba" in SETS else set()


def made(folder, family):
    make = tiny_gguf if FAMILIES[family].causal else tiny_encoder
    return load_model(make(folder / "m.gguf", family))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_family_needs_is_a_warmup(tmp_path, family):
    names = needed(made(tmp_path, family))
    unknown = {name for name in names if name not in KNOWN and not name.endswith(" product")}
    assert not unknown and "attention" in names


def test_every_product_named_is_a_format_s(tmp_path):
    names = needed(load_model(tiny_gguf(tmp_path / "m.gguf", quant="Q4_0")))
    formats = {format.name for format in FORMATS.values()}
    products = [name.removesuffix(" product") for name in names if name.endswith(" product")]
    assert "Q4_0" in products and set(products) <= formats and "Q4_0 product" in KNOWN


def test_a_model_that_sees_needs_the_tower_s_kernels(tmp_path):
    path = tiny_gguf(tmp_path / "m.gguf")
    plain = set(needed(load_model(path)))
    sees = set(needed(load_model(path, projector=tiny_mmproj(tmp_path / "p.gguf"))))
    assert {"layer_norm", "resize"} <= sees - plain and {n for n in sees if not n.endswith(" product")} <= KNOWN
