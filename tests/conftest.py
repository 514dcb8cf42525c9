"""Fixtures for all tests, and a second process that compiles for the later ones."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

SHARED = Path(os.environ.get("NUMLLAMA_SHARED", Path(__file__).parents[2] / "shared" / "data"))

# Compiling kernels on first use makes the first example slow, which is no fault of the code under test.
settings.register_profile("default", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("default")


def pytest_collection_finish(session):
    """In a long run, products that no early test uses are compiled beside those tests, which want one core.

    In an empty cache that is two thirds of all that is compiled.
    """
    if len(session.items) < 1000 or session.config.option.collectonly:
        return
    from numba.core import config as numba

    from numllama.kernels import threads, warmup

    if numba.DISABLE_JIT or threads.N_CORE == 1:
        return
    names = [name for name, _ in warmup.warmups() if name.endswith(" product")]
    late = [name for name in names if name not in ("F32 product", "F16 product")]
    beside = subprocess.Popen([sys.executable, "-m", warmup.__name__, *late])
    session.config.add_cleanup(beside.wait)
    session.config.add_cleanup(beside.kill)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of recorded models and golden numbers; tests that want it are skipped where it is missing."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the recorded data in {SHARED}")
    return SHARED
