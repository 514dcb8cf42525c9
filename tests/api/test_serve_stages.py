"""`numllama serve --stages` and `--stage-memory` on a cluster of two nodes: the answers of one process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import httpx
import pytest
from serving import until, wait_for

from numllama.engine.serve.engine import Engine
from numllama.engine.settings import Settings

pytestmark = pytest.mark.ray
ray = pytest.importorskip("ray")
BODY = {"model": "bare", "prompt": "the cat", "stream": False, "options": {"temperature": 0, "num_predict": 8}}


@pytest.fixture
def serve(models, tmp_path, cluster):
    """Return a function that starts `numllama serve ARGUMENTS --ray`, with the model `bare` -> its URL."""
    engine = Engine(Settings(models=tmp_path, builtin=False))
    digest, _ = engine.store.put_blob([(models / "bare.gguf").read_bytes()])
    list(engine.create("bare", files={"bare.gguf": digest}))
    engine.close()
    begun = []

    def begin(*arguments):
        own = {"OLLAMA_HOST": "127.0.0.1:0", "OLLAMA_MODELS": str(tmp_path), "NUMLLAMA_BUILTIN": "0"}
        command = [sys.executable, "-m", "numllama", "serve", *arguments, "--ray", cluster.address]
        begun.append(subprocess.Popen(command, env=os.environ | own, stderr=subprocess.PIPE, text=True))
        return f"http://127.0.0.1:{wait_for(begun[-1])}"

    yield begin
    for process in begun:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)


def stages():
    """Return the process ids of the stages in the cluster that live."""
    actors = ray._private.state.actors().values()
    return [one["Pid"] for one in actors if one["ActorClassName"] == "Stage" and one["State"] == "ALIVE"]


def generate(url, **options):
    answer = httpx.post(f"{url}/api/generate", json=BODY | options, timeout=120)
    return answer.status_code, answer.json()


def test_stages_answer_as_one_process_and_one_that_ends_is_an_error_in_the_stream(serve, served):
    url, expected = serve("--stages", "2"), served.ok("/api/generate", **BODY)["response"]
    assert generate(url)[1]["response"] == expected and len(stages()) == 2
    endless = {"num_predict": -1, "temperature": 3, "logit_bias": {"2": False}}
    with httpx.stream("POST", f"{url}/api/generate", json=BODY | {"stream": True, "options": endless}) as answer:
        lines = answer.iter_lines()
        assert not json.loads(next(lines))["done"]
        began = time.monotonic()
        os.kill(stages()[0], signal.SIGKILL)
        *_, last = lines
    assert "of 2 (layers " in json.loads(last)["error"] and time.monotonic() - began < 5
    until(lambda: generate(url)[0] == 200, 60)
    assert generate(url)[1]["response"] == expected


def test_memory_decides_how_many_stages(serve, served):
    url = serve("--stage-memory", "4GiB")
    assert generate(url)[1]["response"] == served.ok("/api/generate", **BODY)["response"] and len(stages()) == 1
    status, answer = generate(serve("--stage-memory", "1MiB"))
    assert status == 500 and "1 MiB for a stage, expected at least" in answer["error"]


@pytest.mark.parametrize(
    "flags", [("--stages", "-1"), ("--stage-memory", "much"), ("--stages", "2", "--ray", "nowhere:1")]
)
def test_wrong_flags_are_one_line(flags):
    done = subprocess.run(
        [sys.executable, "-m", "numllama", "serve", *flags], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1 and done.stderr.startswith("Error: ") and done.stderr.count("\n") == 1
