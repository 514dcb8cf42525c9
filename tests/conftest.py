"""Fixtures for all tests, and a background process that compiles kernels for later tests."""

import os
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Programs that tests start import the package that the tests import, and nothing from the current folder, where a
# checkout has a `numllama` beside an installed one.
os.environ["PYTHONSAFEPATH"] = "1"
os.environ["PYTHONPATH"] = str(Path(find_spec("numllama").origin).parents[1])

# Kernels are compiled on first use, which makes the first example slow.
settings.register_profile("default", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("default")


def pytest_addoption(parser):
    text = "inputs that each test of odd files or requests makes in all (pytest -m slow); default: 100,000"
    parser.addoption("--inputs", type=int, default=100_000, metavar="N", help=text)


@pytest.fixture(scope="session")
def n_inputs(pytestconfig):
    """Return how many inputs a slow test with random inputs makes, all its parameters together."""
    return pytestconfig.getoption("--inputs")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist's own
def pytest_cmdline_main(config):
    """Run all tests in two processes, where there are two cores; a few run sooner, and are seen better, in one.

    `-n`, `-p no:xdist`, `--pdb` and `-s` have their way.
    """
    option = config.option
    is_whole = config.args_source is not pytest.Config.ArgsSource.ARGS and not option.keyword
    is_whole &= option.markexpr.startswith("not ")  # the opt-in suites need more memory
    is_plain = not (option.usepdb or option.collectonly or option.capture == "no" or hasattr(config, "workerinput"))
    is_plain = is_plain and not getattr(option, "cov_source", None)  # pytest-cov must know of processes before this
    if is_whole and is_plain and hasattr(option, "numprocesses") and option.numprocesses is None:
        option.numprocesses = 2 if (os.cpu_count() or 1) > 1 else 0


def pytest_generate_tests(metafunc):
    """Refuse parameters without an order: each of pytest-xdist's processes would number them otherwise."""
    for mark in metafunc.definition.iter_markers("parametrize"):
        values = mark.kwargs.get("argvalues", mark.args[1] if len(mark.args) > 1 else ())
        if isinstance(values, set | frozenset):
            raise pytest.UsageError(f"{metafunc.definition.nodeid} has a set of parameters, expected a list")


def pytest_collection_finish(session):
    """In a long run, compile the kernels that early tests do not use, beside those tests; the first process does it.

    With an empty cache these are most of the compilation: products of other formats, then the kernels of
    test_levels.py.
    """
    is_first = os.environ.get("PYTEST_XDIST_WORKER", "gw0") == "gw0"
    if len(session.items) < 1000 or session.config.option.collectonly or not is_first:
        return
    from numba.core import config as numba

    from numllama.kernels import simd, threads, warmup

    if numba.DISABLE_JIT or threads.N_CORE == 1:
        return
    names = [name for name, _ in warmup.warmups() if name.endswith(" product")]
    jobs = [({}, [name for name in names if name not in ("F32 product", "F16 product")])]
    level_kernels = ["Q4_0 product", "Q8_0 product", "Q6_K product", "MXFP4 product", "attention"]
    for level, required in simd.REQUIRED_FEATURES.items():
        if level != simd.LEVEL and required <= simd.cpu_features():
            jobs.append(({"NUMLLAMA_SIMD": level}, level_kernels))

    def compile_beside():
        for variables, names in jobs:
            subprocess.run([sys.executable, "-m", warmup.__name__, *names], env=os.environ | variables)

    threading.Thread(target=compile_beside, daemon=True).start()


@pytest.fixture(scope="session")
def kept(tmp_path_factory):
    """Return the recordings of other programs that are part of the repository."""
    from recordings import KEPT, Recordings

    return Recordings(KEPT, tmp_path_factory.mktemp("recorded"))


@pytest.fixture(scope="session")
def whole(kept):
    """Return all recordings, for slow tests."""
    folder = os.environ.get("NUMLLAMA_SHARED")
    if not folder:
        pytest.skip("needs NUMLLAMA_SHARED, a folder of all recordings: tests/golden/README.md")
    return type(kept)(Path(folder), kept.scratch)


@pytest.fixture(scope="session", params=["kept", pytest.param("whole", marks=pytest.mark.slow)])
def recordings(request):
    """Return the recordings in the repository and, in slow tests, all recordings."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def cluster():
    """Start a Ray cluster of two nodes for all tests marked `ray`: starting one takes longer than most of them."""
    from clusters import two_nodes

    with two_nodes() as cluster:
        yield cluster
