"""After a warm-up nothing is left to compile."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from numba.core import config

from numllama.kernels import warmup
from tiny import tiny_gguf

GENERATE = """
import sys
from numllama.engine.run.request import complete
from numllama.engine.model.load import load_model
from numllama.engine.options import Options
for path in sys.argv[1:]:
    list(complete(load_model(path), "once upon a time", Options(num_predict=3)))
"""

# Prepares two kernels in an empty cache; prints the number of processes started, and which kernels came from the cache.
PREPARE = """
import subprocess
from numllama.kernels import warmup
from numllama.kernels.norm import norm_rows
from numllama.kernels.rope import rotate_tokens
begun, popen = [], subprocess.Popen
subprocess.Popen = lambda *args, **kwargs: begun.append(args) or popen(*args, **kwargs)
warmup.N_CORE, warmup.START_S = {n_core}, 0
names = ["rope, norm", "rms_norm", "no such kernel"]
warmup.prepare(names)
warmup.compile_them(names)
print(len(begun), *(sum(kernel.stats.cache_hits.values()) for kernel in (rotate_tokens, norm_rows)))
warmup.prepare(names)
print(len(begun))
"""


@pytest.mark.skipif(config.DISABLE_JIT, reason="nothing is compiled")
def test_two_processes_share_the_compilation(tmp_path):
    def run(n_core):
        environ = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
        command = [sys.executable, "-c", PREPARE.format(n_core=n_core)]
        return subprocess.run(command, env=environ, check=True, capture_output=True, text=True).stdout.split()

    assert run(2) == ["1", "1", "0", "1"]  # the other process compiled rope, this one rms_norm; then both are cached
    assert run(2) == ["0", "1", "1", "0"]


@pytest.mark.skipif(config.DISABLE_JIT, reason="nothing is compiled")
def test_no_process_runs_code_of_the_current_folder(tmp_path):
    """The folder of a downloaded model may hold a numpy.py, or a .numba_config.yaml that names another cache."""
    folder = tmp_path / "downloaded"
    folder.mkdir()
    (folder / "numpy.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w').close()\nraise SystemExit\n")
    (folder / ".numba_config.yaml").write_text("cache_dir: own\n")
    environ = {key: value for key, value in os.environ.items() if key not in ("PYTHONSAFEPATH", "NUMBA_CACHE_DIR")}
    environ["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    command = [sys.executable, "-P", "-W", "ignore", "-c", PREPARE.format(n_core=2)]
    out = subprocess.run(command, env=environ, cwd=folder, check=True, capture_output=True, text=True).stdout.split()
    assert not (tmp_path / "executed").exists()
    assert out == ["1", "1", "0", "1"] and not (folder / "own").exists()  # the other process did its half


def test_every_python_that_the_package_starts_leaves_out_the_current_folder():
    root = Path(warmup.__file__).parents[1]
    paths = [
        path
        for name in ("api", "benchmarks", "engine", "kernels", "numllama", "scripts")
        for path in (root / name).rglob("*.py")
    ]
    starts = [
        (path.name, [ast.unparse(item) for item in node.elts[:2]])
        for path in paths
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.List | ast.Tuple) and node.elts and ast.unparse(node.elts[0]) == "sys.executable"
    ]
    assert len(starts) > 3 and not [start for start in starts if start[1][1] != "'-P'"]


def test_both_processes_take_about_the_same_time():
    names = [name for name, _ in warmup.warmups()]
    here, there = warmup.split_work(names)
    assert sorted(here + there) == sorted(names)
    seconds = [
        sum(next((n for k, n in warmup.COMPILE_S.items() if k in name), warmup.OTHER_KERNEL_S) for name in half)
        for half in (here, there)
    ]
    assert abs(seconds[0] - seconds[1] - warmup.START_S) < 0.5
    assert warmup.split_work(["rms_norm", "softmax"]) == (
        ["rms_norm", "softmax"],
        [],
    )  # too little work for a second process


def test_the_first_token_does_not_wait_for_whole_layers(monkeypatch):
    """The other process compiles them last; until it has, decoding goes in steps."""
    events, compiled, status = [], set(), [None]

    class Other:
        def __init__(self, command, **_):
            self.left = command[4:]
            events.append(("other", self.left))

        def poll(self):
            if self.left[0] != "whole layers":
                compiled.add(self.left.pop(0))
            return status[0]

    monkeypatch.setattr(warmup.subprocess, "Popen", Other)
    monkeypatch.setattr(warmup, "_is_compiled", compiled.__contains__)
    monkeypatch.setattr(warmup, "compile_them", lambda names: events.append(("here", names)))
    monkeypatch.setattr(warmup, "can_save", lambda: True)
    monkeypatch.setattr(warmup, "N_CORE", 2)
    monkeypatch.setattr(warmup, "_others", [])
    names = ["attention", "cache", "whole layers", "rope, norm", "Q8_0 product", "Q4_0 product"]
    warmup.prepare(names)
    (_, there), (_, here) = events
    assert there == ["whole layers"] and len(compiled) >= 2 and not compiled & {*here, "whole layers"}
    assert len(compiled) + len(here) == 5
    compiled.clear()
    warmup.prepare(names)  # of a second model; Python warns of a process that is forgotten before it has ended
    assert warmup.is_compiling() and len(warmup._others) == 2
    status[0] = 0
    assert not warmup.is_compiling()


@pytest.mark.slow
def test_a_generation_after_a_warm_up_compiles_nothing(tmp_path):
    """Takes half a minute: fills an empty cache folder, then checks that a generation adds no file."""
    environ = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    models = [
        tiny_gguf(tmp_path / "norm.gguf", quant="Q4_0"),
        tiny_gguf(tmp_path / "neox.gguf", quant="Q4_K", family="qwen2"),
        tiny_gguf(tmp_path / "norms.gguf", quant="Q8_0", family="gemma3"),
    ]

    def files():
        return {path for path in (tmp_path / "cache").rglob("*") if path.suffix == ".nbc"}

    warm = "from numllama.kernels.warmup import warmups\nfor _, job in warmups(): job()"
    subprocess.run([sys.executable, "-c", warm], env=environ, check=True)
    compiled = files()
    subprocess.run([sys.executable, "-c", GENERATE, *map(str, models)], env=environ, check=True)
    assert len(compiled) > 20
    assert sorted(path.name for path in files() - compiled) == []
