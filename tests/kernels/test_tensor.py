import numpy as np
import pytest

from numllama.kernels import Tensor
from numllama.kernels.quants import FORMATS_BY_NAME, quantize


def tensor(format="Q4_0", n_out=6, n_in=64):
    x = np.random.default_rng(0).standard_normal((n_out, n_in)).astype(np.float32)
    return Tensor("w", FORMATS_BY_NAME[format], (n_out, n_in), quantize(FORMATS_BY_NAME[format], x))


def test_selected_rows_equal_those_of_the_whole():
    w = tensor()
    np.testing.assert_array_equal(w.dequantize([5, 0, 5]), w.dequantize()[[5, 0, 5]])


def test_bytes_and_elements_count_the_file_s_data():
    w = tensor()
    assert w.n_elements == 6 * 64 and w.nbytes == 6 * 2 * 18


def test_a_form_is_packed_once():
    w, made = tensor(), []

    def pack(tensor):
        made.append(tensor)
        return tensor.shape

    assert w.form(pack) == w.form(pack) == (6, 64) and made == [w]


def test_each_matrix_of_a_stack_keeps_its_own_forms():
    x = np.random.default_rng(0).standard_normal((3, 6, 64), np.float32)
    w = Tensor("w", FORMATS_BY_NAME["Q4_0"], x.shape, quantize(FORMATS_BY_NAME["Q4_0"], x))
    np.testing.assert_array_equal([matrix.dequantize() for matrix in w.matrices], w.dequantize())
    assert w.matrices[1].form(len_of) is w.matrices[1].form(len_of) is not w.matrices[2].form(len_of)


def len_of(tensor):
    return [len(tensor.blocks)]


@pytest.mark.parametrize("format", ["F32", "Q4_0"])
def test_a_tensor_without_rows_dequantizes_to_an_empty_array(format):
    w = Tensor(
        "w",
        FORMATS_BY_NAME[format],
        (0, 64),
        np.empty((0, 64 // FORMATS_BY_NAME[format].block_size), FORMATS_BY_NAME[format].layout),
    )
    assert w.dequantize().shape == (0, 64)
