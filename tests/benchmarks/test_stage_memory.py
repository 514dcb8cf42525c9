"""Processes under a limit of memory: the table says who was limited and how each ended."""

from __future__ import annotations

import os

import pytest

from numllama.benchmarks.stage_memory import GROUPS, main
from tiny import tiny_gguf

pytestmark = [pytest.mark.ray, pytest.mark.slow]
pytest.importorskip("ray")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")
@pytest.mark.skipif(not os.access(GROUPS, os.W_OK), reason="needs control groups")
def test_stages_under_a_limit_answer_as_one_process_and_a_model_that_fits_is_no_proof(tmp_path, capsys):
    path = str(tiny_gguf(tmp_path / "m.gguf", "llama", "Q4_0"))
    assert main([path, "--limit", "4096", "--stages", "2"]) == 1
    out = capsys.readouterr().out
    assert "stages answer as one process: True; one process fails under the limit: False" in out
    assert out.count("| done |") == 5 and "stage 1" in out
