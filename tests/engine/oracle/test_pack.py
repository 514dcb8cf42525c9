"""Golden packs: rebuilt byte for byte, equal to independent programs, and wrong programs are told where."""

import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from numllama.api.cli import main
from numllama.engine.errors import RequestError
from numllama.engine.model.load import load_model
from numllama.engine.oracle.pack import check
from numllama.engine.oracle.pack.build import build_pack
from numllama.engine.oracle.pack.check import check_pack

from .engines import F32, WRONG, values_of
from .independent import answer

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests/golden/pack.json"
EXAMPLE = [sys.executable, str(ROOT / "examples/check_gguf_package.py")]
MAX_PACK_BYTES = 30e6
needs_x87 = pytest.mark.skipif(np.finfo(np.longdouble).nmant != 63, reason="golden bytes need x86's extended precision")


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packs") / "pack"
    build_pack(folder)
    return folder


@needs_x87
def test_the_pack_is_rebuilt_byte_for_byte(pack):
    recorder = runpy.run_path(GOLDEN.with_name("make_pack.py"))
    assert recorder["hashes_by_operation"](pack) == json.loads(GOLDEN.read_text())
    assert sum(path.stat().st_size for path in pack.rglob("*.*")) < MAX_PACK_BYTES
    assert {path.suffix for path in pack.rglob("*") if path.is_file()} == {".safetensors", ".json", ".gguf"}


def verdicts(results):
    return {result.name: result.verdict for result in results}


def answering(monkeypatch, change=lambda operation, arrays: arrays):
    """Let the independent program answer in this process."""

    def run(command, timeout):
        return ("skipped", "") if answer(command[-2], command[-1], change) == 77 else None

    monkeypatch.setattr(check, "run_program", run)


def test_an_independent_program_is_right_in_every_operation(pack, monkeypatch):
    answering(monkeypatch)
    results = [result for result in check_pack(pack, ["program"]) if result.verdict != "skipped"]
    assert [result for result in results if result.verdict != "right"] == []
    assert len(results) > 45


def test_every_operation_is_judged_wrong_if_its_result_is(pack, monkeypatch):
    """One number of a row is wrong by the row's size, integers by one."""

    def change(operation, arrays):
        wrong = {name: x.copy() for name, x in arrays.items()}
        x = wrong[next(iter(wrong))]
        row = x.reshape(-1, x.shape[-1])[-1]
        row[0] = row[0] + (np.sqrt(np.mean(row**2)) if x.dtype.kind == "f" else 1)
        return wrong

    answering(monkeypatch, change)
    results = [result for result in check_pack(pack, ["program"]) if result.verdict != "skipped"]
    assert [result for result in results if result.verdict != "wrong"] == []
    assert all("expected" in result.note for result in results)


def test_float16_weights_and_results_of_products_are_right(pack, monkeypatch):
    answering(monkeypatch, lambda operation, arrays: {name: x.astype(np.float16) for name, x in arrays.items()})
    for only in ("matmul", "attention", "rows"):
        assert set(verdicts(check_pack(pack, ["program"], only)).values()) == {"right"}


def c_program(folder, change=lambda text: text):
    """Compile the program in docs/packs.md.  -> command"""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    text = re.search(r"```c\n(.*?)```", (ROOT / "docs/packs.md").read_text(), re.S)[1]
    assert text.count("\n") <= 60
    (folder / "program.c").write_text(change(text))
    subprocess.run(
        [compiler, "-Wall", "-Wextra", "-Werror", str(folder / "program.c"), "-o", str(folder / "program"), "-lm"],
        check=True,
    )
    return [str(folder / "program")]


def test_the_program_in_c_passes(pack, tmp_path):
    found = verdicts(check_pack(pack, c_program(tmp_path), "*/Q?_0"))
    assert {name for name, verdict in found.items() if verdict == "right"} == {"dequantize/Q4_0", "dequantize/Q8_0"}
    assert "wrong" not in found.values() and found["dot/Q4_0"] == "skipped"
    assert set(verdicts(check_pack(pack, c_program(tmp_path), "generate")).values()) == {"skipped"}  # JSON


@pytest.mark.parametrize(
    "old, new, cause",
    [
        ("(block[2 + j] & 15)", "(block[2 + j] >> 4)", None),
        ("y[j + 16] = half(block) * ((block[2 + j] >> 4) - 8)", "y[j + 16] = y[j]", None),
        ("- 8)", "- 7)", "one less were subtracted"),
        ("return bits >> 15 ? -size : size", "return size", "the scale were without sign"),
        ("(int8_t)block", "block", "the codes were without sign"),
    ],
)
def test_a_wrong_program_is_told_where_and_why(old, new, cause, pack, tmp_path):
    command = c_program(tmp_path, lambda text: text.replace(old, new))
    wrong = [result for result in check_pack(pack, command, "dequantize/Q?_0") if result.verdict == "wrong"]
    assert wrong and all(re.search(r"\d+ of \d+ rows, y\[\d+, \d+\] is .*, expected ", r.note) for r in wrong)
    if cause:
        assert any(f"as if {cause}" in result.note for result in wrong)


def test_the_example_answers_from_the_gguf_package(pack):
    assert verdicts(check_pack(pack, EXAMPLE, "*/Q[45]_K")) == {
        f"{operation}/{name}": "right" for operation in ("dequantize", "dot") for name in ("Q4_K", "Q5_K")
    }


@pytest.mark.slow
def test_the_example_is_right_in_every_format_that_the_package_has(pack):
    found = verdicts(check_pack(pack, EXAMPLE))
    assert "wrong" not in found.values() and list(found.values()).count("right") >= 50


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_values_of_a_pass_are_judged_each_on_those_before_it(name, pack, monkeypatch):
    given = json.loads((pack / f"forward/{name}.in.json").read_text())
    model = load_model(pack / f"models/{name}.gguf")
    bug = next(e for e in WRONG if e.name == ("halves for neighbours" if name == "llama" else "bert relu"))
    kernels, changed = bug.change(F32, model)
    for right in (True, False):
        found = values_of(model, F32, given["tokens"]) if right else values_of(changed, kernels, given["tokens"])
        arrays = {key: np.ascontiguousarray(x) for key, x in found.items()}
        monkeypatch.setattr(
            check, "run_program", lambda command, timeout, arrays=arrays: save_file(arrays, command[-1])
        )
        (result,) = check_pack(pack, ["program"], f"forward/{name}")
        assert result.verdict == ("right" if right else "wrong")
        assert right or "as if" in result.note


def test_values_of_the_pack_are_those_of_the_model(pack):
    """The float32 set is another order of sums: the values in the file are those that it nears."""
    for name in ("gemma3", "qwen3moe"):
        given = json.loads((pack / f"forward/{name}.in.json").read_text())
        ours = values_of(load_model(pack / f"models/{name}.gguf"), F32, given["tokens"])
        for key, expected in load_file(pack / f"forward/{name}.out.safetensors").items():
            if key in ("result_norm", "result_output"):
                expected = expected[-1:]
            np.testing.assert_allclose(ours[key], expected, rtol=0, atol=2e-4 * np.abs(expected).max())


SHELL_PROGRAMS = {
    "exit 3": ("wrong", "exit status 3"),
    "echo no such type >&2; exit 1": ("wrong", "exit status 1: no such type"),
    "exit 77": ("skipped", "does not have it"),
    "true": ("wrong", "wrote no output file"),
    "sleep 30": ("wrong", "not done after 0.2 seconds"),
    "kill -9 $$": ("wrong", "ended by signal 9"),
    "echo x > $2": ("wrong", "the file is truncated or not safetensors"),
    "head -c 100 /dev/zero > $2": ("wrong", "not a JSON object"),
}


@pytest.mark.parametrize("script", SHELL_PROGRAMS)
def test_a_program_that_fails_gets_one_line(script, pack):
    verdict, note = SHELL_PROGRAMS[script]
    (result,) = check_pack(pack, ["sh", "-c", script, "sh"], "dequantize/Q4_0", timeout=0.2)
    assert result.verdict == verdict and note in result.note and "\n" not in result.note


@pytest.mark.parametrize(
    "arrays, note",
    [
        ({"x": np.zeros((3, 5))}, "'y' is missing; found x"),
        ({"y": np.zeros((3, 5))}, "'y' has shape 3x5, expected "),
        ({"y": None}, "is nan, expected"),
    ],
)
def test_outputs_of_other_shape_or_nan_are_wrong(arrays, note, pack, monkeypatch):
    right = load_file(pack / "dequantize/Q4_0.out.safetensors")["y"]
    arrays = {name: np.full_like(right, np.nan) if x is None else x for name, x in arrays.items()}
    monkeypatch.setattr(check, "run_program", lambda command, timeout: save_file(arrays, command[-1]))
    (result,) = check_pack(pack, ["program"], "dequantize/Q4_0")
    assert result.verdict == "wrong" and note in result.note


@pytest.mark.parametrize(
    "text, note",
    [
        ('{"ids": []}', "ids has 0 members, expected"),
        ("[]", "not a JSON object"),
        ("{", "cannot be read as JSON"),
        ('{"id": 1}', "'ids' is missing; found id"),
    ],
)
def test_ids_are_right_or_wrong(text, note, pack, monkeypatch):
    monkeypatch.setattr(check, "run_program", lambda command, timeout: Path(command[-1]).write_text(text) and None)
    (result,) = check_pack(pack, ["program"], "tokenize/spm")
    assert result.verdict == "wrong" and note in result.note
    expected = json.loads((pack / "tokenize/spm.out.json").read_text())
    expected["ids"][3][1] += 1
    monkeypatch.setattr(
        check, "run_program", lambda command, timeout: Path(command[-1]).write_text(json.dumps(expected)) and None
    )
    (result,) = check_pack(pack, ["program"], "tokenize/spm")
    assert re.match(r"ids\[3\]\[1\] is \d+, expected \d+$", result.note)


def test_the_command_prints_a_line_an_item_and_its_exit_status_counts(pack, tmp_path, capsys):
    program = c_program(tmp_path)
    assert main(["pack", "--check", str(pack), "--only", "dequantize/Q4_0", "--", *program]) == 0
    assert re.match(r"dequantize/Q4_0 +right +26.0 bits\n1 right, 0 wrong, 0 skipped\n$", capsys.readouterr().out)
    assert main(["pack", "--check", str(pack), "--only", "rope", "--json", "--", "false"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["counts"] == {"wrong": 8} and report["items"][0]["name"] == "rope/neighbours"
    assert main(["pack", "--check", str(pack), "--only", "rope", "--", *program]) == 2  # all skipped
    for arguments, message in {
        ("--only", "nothing", "--", "true"): "no item matches 'nothing'",
        ("--", "/no/such/program"): "/no/such/program: cannot be started",
    }.items():
        assert main(["pack", "--check", str(pack), *arguments]) == 2
        assert message in capsys.readouterr().err
    assert main(["pack", "--check", str(tmp_path), "--", "true"]) == 2
    assert "found no manifest.json" in capsys.readouterr().err
    assert main(["pack", str(tmp_path)]) == 2
    assert "not empty and not a pack" in capsys.readouterr().err


def test_a_changed_pack_is_refused(pack, tmp_path):
    shutil.copytree(pack, tmp_path / "pack")
    path = tmp_path / "pack/rope/yarn.out.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(RequestError, match=r"yarn.out.safetensors: sha256 .*: the pack was changed"):
        list(check_pack(tmp_path / "pack", ["true"]))
    path.unlink()
    with pytest.raises(RequestError, match=r"yarn.out.safetensors: cannot be read"):
        list(check_pack(tmp_path / "pack", ["true"]))
