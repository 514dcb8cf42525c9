"""Conversations that Ollama had with real models: this server gives the same answers.

Texts are cut in the recording where the two best tokens come close, so that rounding does not decide; in float32 seeded
draws over a vocabulary of 49,152 agree too.
"""

from __future__ import annotations

import base64

import numpy as np
import pytest

pytestmark = pytest.mark.models

SEEN = (  # fields that are compared, where the recording has them
    "response", "content", "done_reason", "prompt_eval_count", "eval_count", "error", "template", "parameters",
    "capabilities", "model_info", "details", "finish_reason", "usage", "rendered_template", "stop_reason", "text",
)  # fmt: skip
OURS_ALONE = {"general.quantization_version"}  # what Ollama adds when it writes a file again
CLOSE = {"mini-q8": 1e-2}  # Q8_0: both round activations to 8 bits, ggml also scales in float16
N_KEPT = 24  # components of each embedding in the recording


def seen(value, key=""):
    """Reduce an answer to the compared fields: a flat list of (path, value)."""
    if key in SEEN:
        if key == "model_info":
            value = {name: item for name, item in value.items() if name not in OURS_ALONE}
        return [(key, value)]
    if isinstance(value, dict):
        return [found for name, item in value.items() for found in seen(item, name)]
    if isinstance(value, list):
        return [found for item in value for found in seen(item, key)]
    return []


def vectors(answer):
    """Return the embeddings in an answer, each cut to what the recording keeps.  -> f64 [n, at most N_KEPT]"""
    found = answer.get("embeddings") or [entry["embedding"] for entry in answer.get("data", [])]
    found = found or ([answer["embedding"]] if "embedding" in answer else [])
    arrays = [np.frombuffer(base64.b64decode(x), "<f4") if isinstance(x, str) else np.array(x) for x in found]
    return np.array([x[:N_KEPT] for x in arrays], np.float64)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", ["real-smollm2", "real-seeds", "real-gemma3", "real-minilm"])
def test_every_recorded_step_agrees(kept, serve, request, name):
    transcript = kept.json(f"transcripts/{name}")
    server = serve(**transcript["env"])
    server.client.timeout = 300
    models = {"smollm2-Q4_1.gguf": "smollm2", "smollm2-F32.gguf": "smollm2_f32", "gemma3-Q4_K_M.gguf": "gemma3"}
    for i, step in enumerate(transcript["steps"]):
        sent, want = step["send"], step.get("ours", step.get("got"))
        if "/api/blobs/" in sent["path"]:
            continue  # sent below, when a model is made of it
        body = sent.get("body")
        if sent["path"] == "/api/create" and "files" in body:
            paths = request.getfixturevalue("minilm") if "config.json" in body["files"] else None
            files = {file: paths[file] if paths else request.getfixturevalue(models[file]) for file in body["files"]}
            body = body | {"files": {f: server.engine.store.put_blob([p.read_bytes()])[0] for f, p in files.items()}}
        answer = server.client.request(sent["method"], sent["path"], json=body)
        where = f"{name}, step {i}: {sent['path']}"
        assert answer.status_code == want["status"], f"{where}: {answer.text[:300]}"
        if "json" not in want or step.get("compare") is False:
            continue
        got, expected = answer.json(), want["json"]
        keys = dict(seen(expected))
        assert [item for item in seen(got) if item[0] in keys] == seen(expected), where
        expected_rows, got_rows = vectors(expected), vectors(got)
        atol = CLOSE.get(body and body.get("model"), 1e-3)  # ggml rounds activations to float16 beside F16 weights
        np.testing.assert_allclose(got_rows, expected_rows, rtol=0, atol=atol, err_msg=where)
