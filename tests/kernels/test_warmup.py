"""After a warm-up nothing is left to compile."""

import ast
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

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

# Prepares two kernels in an empty cache, one in each process; prints the number of processes started, and which kernels
# came from the cache.
PREPARE = """
import subprocess, time
from numllama.kernels import warmup
from numllama.kernels.norm import norm_rows
from numllama.kernels.rope import rotate_tokens
begun, popen = [], subprocess.Popen
subprocess.Popen = lambda *args, **kwargs: begun.append(args) or popen(*args, **kwargs)
warmup.N_CORE = {n_core}
warmup.COMMON = ("rope, norm",)
names = ["rope, norm", "rms_norm", "no such kernel"]
warmup.begin()
while warmup._begun and not warmup._begun[0].theirs:
    time.sleep(0.01)
warmup.prepare(names)
warmup.compile_them(names)
print(len(begun), *(sum(kernel.stats.cache_hits.values()) for kernel in (rotate_tokens, norm_rows)))
warmup.begin()
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


@pytest.fixture
def others(monkeypatch):
    """Let threads stand for second processes.  `compiled` is what the folder has, `here` what this process did."""
    started, compiled, here = [], set(), []

    class Other:
        may_start, may_end, dies = threading.Event(), threading.Event(), False

        def __init__(self, command, **_):
            (names, stdin), (stdout, answers) = os.pipe(), os.pipe()
            self.stdin, self.stdout, self.asked = open(stdin, "w"), open(stdout), []
            self.thread = threading.Thread(target=self.work, args=(open(names), open(answers, "w")))
            self.thread.start()
            started.append(self)

        def work(self, names, answers):
            with names, answers:
                self.may_start.wait(10)
                print(file=answers, flush=True)
                for name in map(str.strip, names):
                    self.asked.append(name)
                    if self.dies:
                        return
                    if name == "whole layers":
                        self.may_end.wait(10)
                    compiled.add(name)
                    print(file=answers, flush=True)

        def poll(self):
            return None if self.thread.is_alive() else 0

        def wait(self):
            self.thread.join(10)

    def compile_them(names):
        for name in names:
            here.append(name)
            compiled.add(name)
            for other in started:
                until(lambda other=other: other.asked or not other.may_start.is_set())

    monkeypatch.setattr(warmup.subprocess, "Popen", Other)
    monkeypatch.setattr(warmup, "_is_compiled", compiled.__contains__)
    monkeypatch.setattr(warmup, "compile_them", compile_them)
    monkeypatch.setattr(warmup, "can_save", lambda: True)
    monkeypatch.setattr(warmup, "N_CORE", 2)
    monkeypatch.setattr(warmup, "_others", [])
    monkeypatch.setattr(warmup, "_begun", [])
    yield SimpleNamespace(kind=Other, started=started, compiled=compiled, here=here)
    Other.may_start.set()
    Other.may_end.set()
    for other in started:
        other.thread.join(10)


def until(holds):
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.001)


NAMES = ["rms_norm", "cache", "whole layers", "attention", "rope, norm", "Q8_0 product", "Q4_0 product"]
PRODUCTS_FIRST = ["Q4_0 product", "Q8_0 product", "rms_norm", "rope, norm", "cache", "attention"]


def test_the_first_token_does_not_wait_for_whole_layers(others):
    """The other process compiles them last; until it has, decoding goes in steps."""
    others.kind.may_start.set()
    warmup.prepare(NAMES)
    (other,) = others.started
    until(lambda: "whole layers" in other.asked)
    assert sorted([*others.here, *other.asked[:-1]]) == sorted(PRODUCTS_FIRST) and len(other.asked) > 1
    assert "whole layers" not in others.compiled and warmup.is_compiling()
    others.compiled.clear()
    warmup.prepare(NAMES)  # of a second model; Python warns of a process that is forgotten before it has ended
    assert warmup.is_compiling() and len(warmup._others) == 2
    others.kind.may_end.set()
    until(lambda: not warmup.is_compiling())


def test_a_process_that_starts_slowly_delays_nothing(others):
    warmup.prepare(NAMES)
    assert others.here == PRODUCTS_FIRST and not others.started[0].asked


def test_what_a_process_that_dies_had_to_do_is_left_to_the_first_call(others):
    others.kind.dies = True
    others.kind.may_start.set()
    warmup.prepare(NAMES)
    until(lambda: not warmup.is_compiling())
    assert len(others.started[0].asked) == 1 and len(others.here) == 5


def test_what_every_model_needs_is_begun_before_a_model_is_known(others):
    others.kind.may_start.set()
    warmup.begin()
    (other,) = others.started
    until(lambda: others.compiled == {*warmup.COMMON})
    warmup.prepare(NAMES)
    until(lambda: "whole layers" in other.asked)
    assert len(others.started) == 1 and not {*others.here} & {*warmup.COMMON}
    warmup.begin()
    assert len(others.started) == 1  # nothing is missing


def test_a_process_that_no_model_asks_for_anything_ends(others, monkeypatch):
    monkeypatch.setattr(warmup, "IDLE_S", 0.01)
    others.kind.may_start.set()
    warmup.begin()
    until(lambda: others.started[0].poll() == 0)
    others.compiled.clear()
    warmup.prepare(NAMES)
    assert len(others.started) == 2 and others.compiled >= {*PRODUCTS_FIRST}


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
