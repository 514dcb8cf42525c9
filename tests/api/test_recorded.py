"""Conversations recorded with Ollama: this server gives the same answers, down to the last chunk."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from scripted import scripted_gguf
from serving import Served, figures

from numllama.engine.settings import Settings

RECORD = json.loads((Path(__file__).parents[1] / "golden" / "transcripts.json").read_text())


@pytest.fixture(scope="module")
def ask(tmp_path_factory):
    """Return a function that sends a recorded step, with its model, and returns the answer."""
    server = Served(Settings(models=tmp_path_factory.mktemp("store"), builtin=False))
    file = scripted_gguf(tmp_path_factory.mktemp("gguf") / "scripted.gguf", RECORD["scripts"])
    digest, _ = server.engine.store.put_blob([file.read_bytes()])

    def ask(step):
        if step["model"] is not None:
            list(server.engine.create(step["body"]["model"], files={file.name: digest}, **step["model"]))
        return server.client.post(step["path"], json=step["body"])

    yield ask
    server.close()


@pytest.mark.parametrize("step", RECORD["steps"], ids=lambda step: step["shows"])
def test_answers_equal_ollamas(ask, step):
    answer = ask(step)
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert answer.status_code == step["status"]
    assert figures(lines if isinstance(step["answer"], list) else lines[0]) == step["answer"]


@pytest.mark.slow
@pytest.mark.parametrize("about", ["templates", "chat", "history", "tools", "thinking"])
def test_all_recorded_steps_agree(whole, about):
    serve = f"{sys.executable} -c 'from numllama.api.cli import main; main()' serve"
    replay = [sys.executable, "replay.py", "--serve", serve, f"{about}.json"]
    done = subprocess.run(replay, cwd=whole.path("transcripts"), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout
