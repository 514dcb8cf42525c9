"""Images to rows: every kernel set, both orders, every projector, and invalid files."""

import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from numllama.benchmarks.libmtmd import LibMtmd
from numllama.engine.errors import BadGGUF, BadImage, BadOptions, ModelError, UnsupportedArchitecture
from numllama.engine.gguf.read import GGUF
from numllama.engine.gguf.write import write_gguf
from numllama.engine.model.trace import Trace
from numllama.engine.vision.tower import load_vision, tiles_of
from numllama.kernels import NUMPY, SETS, numpy_kernels, threads
from tiny_llava import encoded, picture, tiny_mmproj

GOLDEN = runpy.run_path(str(Path(__file__).parents[2] / "golden/make_images.py"))
F64 = numpy_kernels(np.float64)
PICTURE = encoded(picture())


@pytest.fixture
def mmproj(tmp_path):
    return tiny_mmproj(tmp_path / "mmproj.gguf")


@pytest.mark.parametrize("projector, n_rows", [("mlp", 16), ("mlp_norm", 16), ("ldp", 4), ("ldpv2", 4)])
def test_all_kernel_sets_agree(tmp_path, projector, n_rows):
    vision = load_vision(tiny_mmproj(tmp_path / "mmproj.gguf", projector), n_embd=64)
    expected = vision.encode(PICTURE, F64)
    assert expected.shape == (vision.n_rows, vision.n_embd) == (n_rows, 64)
    for kernels in SETS.values():
        # float32 sums; ggml's set rounds pixels, GELU's argument and result, and windows to f16 (2^-11)
        tolerance = 1e-2 if kernels.name in ("ggml", "llamacpp", "llamacpp-avx2", "numba") else 2e-5
        np.testing.assert_allclose(vision.encode(PICTURE, kernels), expected, atol=tolerance, err_msg=kernels.name)


@pytest.mark.skipif("numba" not in SETS, reason="LLVM's vectors need the compiler")
@pytest.mark.parametrize("quant", ["F16", "Q8_0", "Q4_0"])
def test_weights_may_have_any_format(tmp_path, quant):
    vision = load_vision(tiny_mmproj(tmp_path / "mmproj.gguf", quant=quant))
    expected, got = (vision.encode(PICTURE, SETS[name]) for name in ("ggml", "numba"))
    assert got.std() > 0.1
    np.testing.assert_allclose(got, expected, atol=1e-2)  # a sum in another order may round to another f16 or code


@pytest.mark.parametrize("act, op", [("clip__use_gelu", "gelu"), ("clip__use_silu", "silu"), ("clip__x", "gelu_quick")])
def test_the_activation_is_read_from_the_file(tmp_path, act, op):
    vision = load_vision(tiny_mmproj(tmp_path / "mmproj.gguf", **{act: True}))
    assert vision.hparams.ffn_op == op
    up = Trace("ffn_*")
    vision.encode(PICTURE, F64, up)
    z = up.values["ffn_up_b", 0]
    factor = {"gelu": 1.5958 * (1 + 0.044715 * z * z), "silu": 1, "gelu_quick": 1.702}[op]  # sqrt(8 / pi) = 1.5958
    np.testing.assert_allclose(up.values[f"ffn_{op}", 0], z / (1 + np.exp(-factor * z)), atol=1e-4)


def test_the_two_orders_give_different_rows(mmproj):
    traces = {order: Trace("pre_ln", "projected") for order in ("llama.cpp", "huggingface")}
    for order, trace in traces.items():
        load_vision(mmproj, order=order).encode(PICTURE, F64, trace)
    ours, theirs = (trace.values["pre_ln", -1] for trace in traces.values())
    assert ours.shape == theirs.shape == (17, 32)
    ours, theirs = (trace.values["projected", -1] for trace in traces.values())
    assert np.abs(ours - theirs).max() > 0.1


def test_in_llama_cpp_s_order_the_last_row_is_the_class_token_s(mmproj):
    """Without attention a position sees only itself, so the class token's row must not depend on the picture."""

    def alone(name, il, value):
        return np.zeros_like(value) if name == "attn_out" else value

    pictures = [encoded(picture(seed=seed)) for seed in (0, 1)]
    for order, constant in (("llama.cpp", [False] * 15 + [True]), ("huggingface", [False] * 16)):
        one, two = (load_vision(mmproj, order=order).encode(image, F64, alone) for image in pictures)
        assert (one == two).all(axis=1).tolist() == constant


def test_an_unknown_order_is_refused(mmproj):
    with pytest.raises(BadOptions, match=r"order is 'pytorch', expected one of llama.cpp, huggingface"):
        load_vision(mmproj, order="pytorch")


def test_a_tower_without_a_class_token_keeps_every_patch(tmp_path):
    vision = load_vision(tiny_mmproj(tmp_path / "mmproj.gguf", class_embd=False))
    trace = Trace("layer_out")
    assert vision.encode(PICTURE, F64, trace).shape == (16, 64)
    assert trace.values["layer_out", 1].shape == (16, 32)


def test_the_last_layer_is_not_run(mmproj):
    trace = Trace("layer_out")
    vision = load_vision(mmproj)
    vision.encode(PICTURE, F64, trace)
    assert sorted(il for _, il in trace.values) == [0, 1] and vision.hparams.n_layer == 2


def test_old_files_with_swapped_names_are_the_same_model(tmp_path):
    new, old = (load_vision(tiny_mmproj(tmp_path / f"{s}.gguf", swapped=s)) for s in (False, True))
    np.testing.assert_array_equal(new.encode(PICTURE, F64), old.encode(PICTURE, F64))


def test_threads_change_no_bit(tmp_path):
    vision = load_vision(tiny_mmproj(tmp_path / "mmproj.gguf", n_embd=128, n_ff=512, image_size=64))
    kernels = SETS["numba"] if "numba" in SETS else NUMPY
    results = []
    for n in (1, 2):
        threads.limit(n)
        results.append(vision.encode(PICTURE, kernels))
    threads.limit(None)
    np.testing.assert_array_equal(*results)


def test_every_row_depends_on_the_picture(mmproj):
    vision = load_vision(mmproj)
    one, two = (vision.encode(encoded(picture(seed=seed)), F64) for seed in (0, 1))
    assert (np.abs(one - two).max(axis=1) > 0.05).all()


def test_an_image_is_centred_on_clip_s_mean(mmproj):
    (tile,) = tiles_of(np.full((10, 20, 3), 255, np.uint8), load_vision(mmproj).hparams, NUMPY)
    assert tile.shape == (32, 32, 3)
    assert (tile[:8] == (122, 116, 104)).all() and (tile[8:24] == 255).all() and (tile[24:] == (122, 116, 104)).all()


def test_tiles_by_hand(tmp_path):
    """LLaVA 1.6: an image of 50 x 20 keeps most pixels in 64 x 32 and in 64 x 64, and wastes fewer in 64 x 32."""
    sizes = np.array([64, 64, 32, 64, 64, 32], np.int32)
    path = tiny_mmproj(tmp_path / "mmproj.gguf", clip__vision__image_grid_pinpoints=sizes)
    vision = load_vision(path)
    image = picture(50, 20)
    left, right, whole = tiles_of(image, vision.hparams, NUMPY)
    np.testing.assert_array_equal(whole, NUMPY.resize(image, 32, 32))
    canvas = np.hstack([left, right])
    assert not canvas[:3].any() and not canvas[29:].any()  # 64 x 26, centred on black
    np.testing.assert_array_equal(canvas[3:29], NUMPY.resize(image, 64, 26))
    assert vision.encode(encoded(image), F64).shape == (3 * vision.n_rows, 64)
    assert vision.encode(encoded(picture(30, 20)), F64).shape == (vision.n_rows, 64)  # no larger than a tile


def test_a_truncated_image_is_refused(mmproj):
    with pytest.raises(BadImage):
        load_vision(mmproj).encode(PICTURE[:100], F64)


# --- invalid files


@pytest.mark.parametrize(
    "kv, error, message",
    [
        ({"general__architecture": "llama"}, UnsupportedArchitecture, "architecture is 'llama', expected 'clip'"),
        (
            {"clip__projector_type": "resampler"},
            UnsupportedArchitecture,
            "projector type 'resampler'; .* mlp, ldp, ldpv2",
        ),
        ({"clip__projector_type": 7}, UnsupportedArchitecture, "projector type '7'"),
        ({"clip__has_vision_encoder": False}, UnsupportedArchitecture, "has no vision encoder"),
        ({"clip__vision__feature_layer": np.array([1, 2], np.int32)}, UnsupportedArchitecture, "several layers"),
        ({"clip__use_gelu": True, "clip__use_silu": True}, BadGGUF, "both"),
        (
            {"clip__vision__image_size": 1032},
            BadGGUF,
            "1032 pixels of 8 per patch are 129 patches per side, expected at most 128",
        ),
        ({"clip__vision__image_size": 33}, BadGGUF, "image_size is 33, expected a multiple of the patch size, 8"),
        (
            {"clip__vision__image_size": 64},
            BadGGUF,
            r"'v.position_embd.weight' has shape \[17, 32\], expected \[65, 32",
        ),
        ({"clip__vision__patch_size": 0}, BadGGUF, "patch_size' is 0, expected a number from 1"),
        ({"clip__vision__patch_size": 16}, BadGGUF, r"'v.patch_embd.weight' has shape .* expected \[32, 3, 16, 16\]"),
        ({"clip__vision__block_count": 5}, BadGGUF, "tensor 'v.blk.3.ffn_down.weight' is missing"),
        (
            {"clip__vision__block_count": 2},
            UnsupportedArchitecture,
            r"tensor 'v.blk.2.*' is not used .* \(16 such tensors\)",
        ),
        ({"clip__vision__block_count": "3"}, BadGGUF, "block_count' is '3', expected a number"),
        ({"clip__vision__embedding_length": None}, BadGGUF, "embedding_length' is None"),
        ({"clip__vision__attention__head_count": 5}, BadGGUF, "5 heads do not divide a width of 32"),
        (
            {"clip__vision__feed_forward_length": 65},
            BadGGUF,
            r"ffn_up.weight' has shape \[64, 32\], expected \[65, 32\]",
        ),
        ({"clip__vision__image_mean": np.zeros(2, np.float32)}, BadGGUF, "expected numbers for red, green and blue"),
        ({"clip__vision__image_std": np.zeros(3, np.float32)}, BadGGUF, "expected positive numbers"),
        ({"clip__vision__image_grid_pinpoints": np.array([32, 48])}, BadGGUF, "multiples of the image size, 32"),
        ({"clip__vision__image_grid_pinpoints": np.array([32])}, BadGGUF, "expected pairs"),
    ],
)
def test_an_unsupported_or_invalid_file_is_refused_with_the_reason(tmp_path, kv, error, message):
    path = tiny_mmproj(tmp_path / "mmproj.gguf", **kv)
    with pytest.raises(error, match=message):
        load_vision(path)


def test_mobilevlm_needs_an_even_number_of_patches_per_side(tmp_path):
    with pytest.raises(BadGGUF, match="9 patches, expected an even number per side for 'ldp'"):
        load_vision(tiny_mmproj(tmp_path / "mmproj.gguf", "ldp", image_size=24))


def test_rows_must_be_as_wide_as_the_text_model_s(mmproj):
    with pytest.raises(ModelError, match="rows are 64 wide, expected the text model's 2048"):
        load_vision(mmproj, n_embd=2048)


def test_an_unused_tensor_is_refused(tmp_path, mmproj):
    gguf = GGUF.open(mmproj)
    tensors = [(name, w.format, w.shape, w.blocks) for name, w in gguf.tensors.items()]
    extra = [(name.replace("ln1", "ls1"), *rest) for name, *rest in tensors if name == "v.blk.0.ln1.weight"]
    write_gguf(tmp_path / "more.gguf", gguf.typed, tensors + extra)
    with pytest.raises(UnsupportedArchitecture, match=r"tensor 'v\.blk\.0\.ls1\.weight'"):
        load_vision(tmp_path / "more.gguf")


# --- against llama.cpp's rows for the same files


def rows(vision, pixels, kernels):
    return np.concatenate([vision.rows(tile, kernels) for tile in tiles_of(pixels, vision.hparams, kernels)])


@pytest.mark.parametrize("name", GOLDEN["FILES"])
@pytest.mark.parametrize("kernels", SETS.values(), ids=lambda kernels: kernels.name)
def test_rows_match_llama_cpp(tmp_path, name, kernels):
    arrays = np.load(GOLDEN["PATH"])
    got = rows(load_vision(GOLDEN["make"](tmp_path, name)), arrays["pixels"], kernels)
    error = np.abs(got - arrays[name])
    if kernels.name not in ("ggml", "numba"):
        # the error of rounding to f16, and with Q8_0 of rounding activations to 8 bits; rows deviate by 1 to 3
        assert error.max() < (0.3 if name == "mlp Q8_0" else 0.02)
    elif name == "mlp F16":
        assert error.max() < 0.02  # the recording machine (AVX512-FP16) also sums F16 products in f16
    else:
        # the last bit of a sum may flip the rounding of an activation to f16: seen on some rows, 1e-3 at most
        assert np.median(error) < 1e-6 and error.max() < 5e-3


@pytest.mark.peer
def test_llama_cpp_still_gives_the_recorded_rows():
    mtmd = LibMtmd.from_environment() or pytest.skip("NUMLLAMA_LLAMA_CPP names no folder with libmtmd.so")
    expected = np.load(GOLDEN["PATH"])
    got = GOLDEN["record"](mtmd, expected["pixels"])
    assert got.keys() == set(expected.files)
    for name in GOLDEN["FILES"]:
        np.testing.assert_allclose(got[name], expected[name], rtol=0, atol=1e-5, err_msg=name)


# --- against recorded rows of another file


@pytest.fixture
def recorded(kept):
    """Load the tower, and the rows of three images by libmtmd and by a float64 tower."""
    vision = load_vision(kept.model("tiny-llava-mmproj-F32"), n_embd=64)
    return vision, kept.arrays("llava_tiny")


@pytest.mark.parametrize("image", ["a_112x112", "b_150x97", "c_64x100"])
@pytest.mark.parametrize("set_name", [name for name in ("ggml", "numba") if name in SETS])
def test_recorded_pixels_give_the_recorded_rows(recorded, set_name, image):
    vision, arrays = recorded
    (tile,) = tiles_of(arrays[f"{image}_rgb"], vision.hparams, SETS[set_name])
    got, expected = vision.rows(tile, SETS[set_name]), arrays[f"{image}_embd"]
    # values are around 1; a sum in another order may round a GELU to another f16
    np.testing.assert_allclose(got, expected, atol=2e-3)
    assert np.sqrt(np.mean((got - expected) ** 2)) < 1e-4


@pytest.mark.parametrize(
    "image, file, tolerance",  # JPEG decoders differ by up to 2 of 255, rows then by a few hundredths
    [("a_112x112", "a_112x112.png", 2e-3), ("b_150x97", "b_150x97.jpg", 0.1), ("c_64x100", "c_64x100.png", 2e-3)],
)
def test_recorded_files_give_the_recorded_rows(recorded, kept, image, file, tolerance):
    vision, arrays = recorded
    got = vision.encode(kept.path(f"images/{file}").read_bytes(), SETS["ggml"])
    np.testing.assert_allclose(got, arrays[f"{image}_embd"], atol=tolerance)


@pytest.mark.parametrize("order, name", [("llama.cpp", "llamacpp"), ("huggingface", "hf")])
def test_both_orders_equal_the_recorded_float64_towers(recorded, order, name):
    vision, arrays = recorded
    exact = replace(  # the numbers of the recorded towers, before the file rounded them to float32
        vision.hparams,
        norm_eps=1e-5,
        mean=np.array([0.48145466, 0.4578275, 0.40821073]),
        std=np.array([0.26862954, 0.26130258, 0.27577711]),
    )
    got = replace(vision, hparams=exact, order=order).rows(arrays["a_112x112_rgb"], F64)
    np.testing.assert_allclose(got, arrays[f"a_112x112_embd_f64_{name}"], atol=1e-12)
