"""Fixtures for all tests."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

SHARED = Path(os.environ.get("NUMLLAMA_SHARED", Path(__file__).parents[2] / "shared" / "data"))

# Compiling kernels on first use makes the first example slow, which is no fault of the code under test.
settings.register_profile("default", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("default")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of recorded models and golden numbers; tests that want it are skipped where it is missing."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the recorded data in {SHARED}")
    return SHARED
