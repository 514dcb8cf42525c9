"""The npm package `ollama`, unmodified (needs node and npm)."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from scripted import scripted_gguf

pytestmark = pytest.mark.clients
HERE = Path(__file__).parent
SCRIPTS = json.loads((HERE.parents[1] / "golden" / "transcripts.json").read_text())["scripts"]
TEMPLATE = (
    "{{ if .Tools }}{{ .Tools }}\n{{ end }}{{ range .Messages }}{{ if .ToolCalls }}<tool_call>\n{{ range .ToolCalls }}"
    '{"name": "{{ .Function.Name }}", "arguments": {{ .Function.Arguments }}}{{ end }}\n</tool_call>'
    "{{ else }}{{ if .Thinking }}<think>{{ .Thinking }}</think>{{ end }}{{ .Content }}{{ end }}{{ end }}"
)


@pytest.fixture(scope="module")
def got(served, tmp_path_factory):
    """Run ollama.mjs and return its results."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("needs node and npm")
    folder = tmp_path_factory.mktemp("npm")
    (folder / "package.json").write_text("{}")
    installed = subprocess.run(["npm", "install", "ollama@^0.6"], cwd=folder, capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"npm cannot install ollama: {installed.stderr[-200:]}")
    served.add("scripted", scripted_gguf(folder / "scripted.gguf", SCRIPTS), template=TEMPLATE)
    script = shutil.copy(HERE / "ollama.mjs", folder)
    done = subprocess.run(["node", script, served.url], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_function_is_called_and_its_result_sent_back(got):
    tools = got["tools"]
    assert tools["call"] == {"index": 0, "name": "get_weather", "arguments": {"city": "Paris", "days": 2}}
    assert tools["result"] == "Paris, 2 days of sun. <hello>"
    assert tools["answer"] == "Hello there. How are you today?" and "calls" not in tools


def test_thinking_is_streamed_before_content(got):
    *said, last = got["thinking"]
    assert "".join(part.get("thinking", "") for part in said) == "Six times seven makes forty-two. \n"
    assert "".join(part["content"] for part in said) == "Forty-two, I say."
    assert last == {"content": "", "done_reason": "stop"} and len(said) > 5
    thinks = ["thinking" in part for part in said]
    assert thinks == sorted(thinks, reverse=True)


def test_an_unknown_model_is_an_error_with_its_status(got):
    assert got["refused"] == {"status": 404, "message": "model 'nope' not found"}


def test_a_stream_can_be_aborted(got, served):
    assert got["stopped"] == "AbortError"
    assert served.ok("/api/generate", model="scripted", prompt="<hello>", stream=False)["done_reason"] == "stop"
