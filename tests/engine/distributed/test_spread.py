"""Work that is spread over a cluster has the results of a plain loop, to the digit: pytest -m ray."""

from __future__ import annotations

import json
import os
import sys

import numpy as np
import pytest

from numllama.api.cli import main
from numllama.benchmarks.formats import SOURCE, FormatFile, distances, distances_of, quantized_file
from numllama.engine.distributed.spread import spread
from numllama.engine.errors import EngineError, RequestError
from numllama.engine.model.load import load_model
from tiny import tiny_gguf

pytestmark = pytest.mark.ray
pytest.importorskip("ray")


@pytest.fixture
def address(cluster):
    return cluster.address


@pytest.fixture
def file(tmp_path):
    return tiny_gguf(tmp_path / "m.gguf", "llama", "F32")


def test_results_have_the_order_of_the_items_and_errors_are_ours(address):
    def square(item):
        if item == 13:
            raise RequestError("13 is unlucky")
        return item * item, os.getpid()

    results = list(spread(address, lambda: square, range(10)))
    assert [value for value, _ in results] == [i * i for i in range(10)]
    assert len({pid for _, pid in results}) == 2
    with pytest.raises(EngineError, match=r"^13 is unlucky$"):
        list(spread(address, lambda: square, [1, 13]))


def test_a_worker_that_ends_once_costs_nothing(address, tmp_path):
    def fragile(item):
        mark = tmp_path / "ended"
        if item == 3 and not mark.exists():
            mark.touch()
            os._exit(1)
        return item

    assert list(spread(address, lambda: fragile, range(6))) == list(range(6))


def test_a_worker_that_always_ends_is_one_line(address):
    with pytest.raises(EngineError, match=r"^a worker ended 3 times: .*$"):
        list(spread(address, lambda: lambda item: os._exit(1), [1]))


@pytest.mark.parametrize("beside", [False, True])
def test_scores_are_those_of_one_process(address, file, tmp_path, capsys, beside):
    text, base = tmp_path / "text", tmp_path / "base"
    text.write_text("the cat sat on the mat, and the dog did not. " * 30)
    command = ["score", str(file), "--ctx-size", "16", "--json"]
    if beside:
        assert main([*command, "--text", str(text), "--kl-divergence-base", str(base), "--chunks", "9"]) == 0
        command += ["--kl-divergence-base", str(base), "--kl-divergence", "--kernels", "ggml"]
    else:
        command += ["--text", str(text), "--chunks", "9"]
    capsys.readouterr()
    assert main(command) == 0
    expected = json.loads(capsys.readouterr().out)
    assert main([*command, "--ray", address]) == 0
    assert json.loads(capsys.readouterr().out) == expected and expected["chunks"] == 9
    assert main(["score", str(file), "--text", str(text), "--kl-divergence-base", str(base), "--ray", address]) == 1
    assert "--ray only compares with a base file" in capsys.readouterr().err


def test_a_pack_is_judged_as_by_one_process(address, tmp_path, capsys):
    program = tmp_path / "program.py"
    program.write_text(
        "import shutil, sys\nfrom pathlib import Path\n"
        "given = Path(sys.argv[1])\n"
        "if 'Q4_0' in given.name: shutil.copy(given, sys.argv[2])\n"
        "elif 'Q8_0' in given.name: sys.exit(77)\n"
    )
    assert main(["pack", str(tmp_path / "pack")]) == 0
    command = ["pack", "--check", str(tmp_path / "pack"), "--json", "--only", "dequantize"]
    capsys.readouterr()
    local = main([*command, "--", sys.executable, str(program)])
    expected = json.loads(capsys.readouterr().out)
    assert main([*command, "--ray", address, "--", sys.executable, str(program)]) == local
    assert json.loads(capsys.readouterr().out) == expected and expected["counts"].keys() == {"wrong", "skipped"}


def test_distances_of_formats_are_those_of_one_process(address, file, tmp_path):
    names = "Q8_0", "Q4_0"
    files = [FormatFile(SOURCE, file), *(FormatFile(name, quantized_file(file, name, tmp_path)) for name in names)]
    models = {one.name: load_model(one.path, {}) for one in files}
    chunks = np.random.default_rng(0).integers(3, 300, (3, 16)).astype(np.int32)
    assert distances_of(files, models, chunks, address) == distances(models, chunks)
