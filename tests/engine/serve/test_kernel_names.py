"""The kernels that a model needs: each can be compiled before the first answer."""

import pytest
from tiny_encoder import tiny_encoder

from numllama.engine.model.families import FAMILIES
from numllama.engine.model.load import load_model
from numllama.engine.serve.runner import kernel_names
from numllama.kernels import SETS
from numllama.kernels.quants import FORMATS
from numllama.kernels.warmup import warmups
from tiny import tiny_gguf
from tiny_llava import tiny_mmproj

pytestmark = pytest.mark.skipif("numba" not in SETS, reason="nothing is compiled")
KNOWN = {name for name, _ in warmups()} if "numba" in SETS else set()


def tiny_model(folder, family):
    make = tiny_gguf if FAMILIES[family].causal else tiny_encoder
    return load_model(make(folder / "m.gguf", family))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_kernel_of_a_family_has_a_warmup(tmp_path, family):
    names = kernel_names(tiny_model(tmp_path, family))
    unknown = {name for name in names if name not in KNOWN and not name.endswith(" product")}
    assert not unknown and "attention" in names


def test_every_product_belongs_to_a_format(tmp_path):
    names = kernel_names(load_model(tiny_gguf(tmp_path / "m.gguf", quant="Q4_0")))
    formats = {format.name for format in FORMATS.values()}
    products = [name.removesuffix(" product") for name in names if name.endswith(" product")]
    assert "Q4_0" in products and set(products) <= formats and "Q4_0 product" in KNOWN


def test_a_vision_model_needs_the_kernels_of_its_tower(tmp_path):
    path = tiny_gguf(tmp_path / "m.gguf")
    plain = set(kernel_names(load_model(path)))
    vision = set(kernel_names(load_model(path, projector=tiny_mmproj(tmp_path / "p.gguf"))))
    assert {"layer_norm", "resize"} <= vision - plain and {n for n in vision if not n.endswith(" product")} <= KNOWN
