import numpy as np
import pytest
from PIL import Image

from numllama.kernels import NUMBA, SETS, Tensor, numpy_kernels
from numllama.kernels.image import bicubic, patches, taps
from numllama.kernels.quants import FORMATS_BY_NAME
from tiny_llava import picture

ONE, ZERO = np.ones(3, np.float32), np.zeros(3, np.float32)


def test_worked_example_of_the_cubic():
    # weight 1 at distance 0, and 0 at 1 and 2; halfway between two pixels 9/16 of each and -1/16 of the next ones
    np.testing.assert_array_equal(bicubic(np.array([0, 1, -2, 0.5, -0.5, 1.5])), [1, 0, 0, 9 / 16, 9 / 16, -1 / 16])


@pytest.mark.parametrize("n_in, n_out", [(1, 7), (150, 112), (64, 72), (1000, 3), (9, 9)])
def test_resize_weights_of_a_pixel_sum_to_one(n_in, n_out):
    first, weights = taps(n_in, n_out)
    np.testing.assert_allclose(weights.sum(axis=1) / 2**22, 1, atol=weights.shape[1] * 2**-23)  # each is rounded once
    used = first + np.maximum(np.cumsum(weights != 0, axis=1)[:, -1], 1)
    assert (first >= 0).all() and (used <= n_in).all()


@pytest.mark.parametrize("kernels", SETS.values(), ids=lambda kernels: kernels.name)
@pytest.mark.parametrize(
    "width, height, to_width, to_height",
    [(150, 97, 112, 73), (64, 100, 72, 112), (7, 5, 112, 112), (1, 1, 14, 14), (3, 400, 2, 112), (40, 30, 40, 12)],
)
def test_resizing_equals_pillow_to_the_byte(kernels, width, height, to_width, to_height):
    image = np.random.default_rng([width, height]).integers(
        0, 256, (height, width, 3), dtype=np.uint8
    )  # noise, so that the cubic overshoots
    rows = Image.fromarray(image).resize((to_width, height), Image.Resampling.BICUBIC)
    expected = np.asarray(rows.resize((to_width, to_height), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(kernels.resize(image, to_width, to_height), expected)


def test_an_image_of_one_colour_keeps_it():
    image = np.full((9, 5, 3), (255, 0, 77), np.uint8)
    assert (NUMBA.resize(image, 31, 4) == (255, 0, 77)).all()


def test_worked_example_of_patches():
    image = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3) * 10
    got = patches(image, 2, ZERO, ONE) * 255
    # patch 0 is columns 0 and 1: red values, then green, then blue ones, each row by row
    np.testing.assert_allclose(got[0], [0, 30, 120, 150, 10, 40, 130, 160, 20, 50, 140, 170], rtol=1e-6)
    np.testing.assert_allclose(got[1, :4], [60, 90, 180, 210], rtol=1e-6)


def test_normalised_pixels_of_the_mean_are_zero():
    image = np.full((4, 4, 3), (51, 102, 204), np.uint8)  # 0.2, 0.4, 0.8 of 255
    got = patches(image, 4, np.array([0.2, 0.4, 0.3]), np.array([1, 1, 0.25]), np.float64)
    np.testing.assert_allclose(got.reshape(3, 16), np.repeat([[0], [0], [2]], 16, axis=1), atol=1e-12)


@pytest.mark.parametrize("kernels", SETS.values(), ids=lambda kernels: kernels.name)
@pytest.mark.parametrize("format", ["F32", "F16"])
def test_a_patch_s_embedding_is_a_convolution(kernels, format):
    format = FORMATS_BY_NAME[format]
    w = np.random.default_rng(0).standard_normal((24, 3, 4, 4)).astype(np.float16).astype(np.float32)
    tensor = Tensor("w", format, w.shape, w.astype(format.layout))
    image, mean, std = picture(12, 8), np.full(3, 0.5, np.float32), np.full(3, 0.25, np.float32)
    x = (image / 255 - 0.5) / 0.25
    expected = [
        [np.sum(w[n] * x[4 * i : 4 * i + 4, 4 * j : 4 * j + 4].transpose(2, 0, 1)) for n in range(24)]
        for i in range(2)
        for j in range(3)
    ]
    # ggml rounds pixels, of magnitude up to 2, to f16 (2^-11 of each): 48 products with such errors
    tolerance = 0.02 if kernels.name in ("ggml", "llamacpp", "llamacpp-avx2", "numba") else 3e-5
    np.testing.assert_allclose(kernels.patch_embd(tensor, image, mean, std), expected, atol=tolerance)


def test_worked_example_of_a_depthwise_convolution():
    x = np.array([[1.0, 2], [3, 4]])[:, :, None]
    right = np.zeros((1, 3, 3), np.float32)
    right[0, 1, 2] = 1  # each pixel becomes its right neighbour, 0 at the edge
    np.testing.assert_array_equal(numpy_kernels(np.float64).depthwise(x, right)[:, :, 0], [[2, 0], [4, 0]])


@pytest.mark.parametrize("side, stride, out", [(4, 1, 4), (4, 2, 2), (5, 2, 3)])
def test_a_depthwise_convolution_equals_its_sums(side, stride, out):
    random = np.random.default_rng(side)
    x, w = random.standard_normal((side, side, 2)), random.standard_normal((2, 3, 3)).astype(np.float32)
    expected = np.zeros((out, out, 2))
    for y, z, n in np.ndindex(expected.shape):
        for i, j in np.ndindex(3, 3):
            row, column = stride * y + i - 1, stride * z + j - 1
            if 0 <= row < side and 0 <= column < side:
                expected[y, z, n] += x[row, column, n] * w[n, i, j]
    np.testing.assert_allclose(numpy_kernels(np.float64).depthwise(x, w, stride), expected, atol=1e-12)
