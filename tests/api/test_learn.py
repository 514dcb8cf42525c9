"""The page's files and routes: what they answer, and what they refuse."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from itertools import pairwise

import numpy as np
import pytest

from numllama.api.learn.page import FOLDER, asset_paths, file_html

MAX_VENDORED_BYTES = 400 * 1024


def test_the_page_allows_nothing_from_elsewhere(served):
    answer = served.client.get("/learn")
    policy = answer.headers["content-security-policy"]
    assert answer.status_code == 200 and "default-src 'none'" in policy and "unsafe" not in policy
    assert re.findall(r"https?:", answer.text) == []
    (inline,) = re.findall(r"<script(?: type=\"importmap\")>(.*?)</script>", answer.text)
    assert json.loads(inline)["imports"]["learn/"] == "/learn/"


def test_the_root_stays_ollama_s(served):
    assert served.client.get("/").text == "Ollama is running"


def test_every_import_of_the_page_is_served(served):
    paths = {"main.js"}
    for path in sorted(asset_paths()):
        if path.endswith(".js") and not path.startswith("vendor/"):
            text = served.client.get(f"/learn/{path}").text
            paths |= {name.removeprefix("learn/") for name in re.findall(r'from "(learn/[^"]+)"', text)}
    assert paths <= asset_paths() and len(paths) > 15
    for path in [*paths, "style.css", "vendor/htm-preact.js"]:
        answer = served.client.get(f"/learn/{path}")
        kind = "text/css" if path.endswith("css") else "text/javascript"
        assert answer.status_code == 200 and answer.headers["content-type"].startswith(kind)


@pytest.mark.parametrize(
    "path",
    [
        *("page.py", "..%2Fcli%2Frun.py", "nope.js", "%2e%2e/%2e%2e/pyproject.toml", "panels/", "index.html"),
        *("code/pyproject.toml", "code/tests/tiny.py", "code/engine/..%2F..%2Fsecret.py", "code/engine/nope.py"),
        *("lesson/9", "lesson/", "lesson/..%2F1"),
    ],
)
def test_no_other_file_is_served(served, path):
    assert served.client.get(f"/learn/{path}").status_code == 404


def test_vendored_files_are_those_of_the_table():
    table = (FOLDER / "vendor" / "README.md").read_text()
    rows = dict(re.findall(r"^\| `([^`]+)` .*`([0-9a-f]{64})` \|$", table, re.MULTILINE))
    files = {path.name for path in (FOLDER / "vendor").glob("*.js")}
    assert files == set(rows)
    for name, digest in rows.items():
        assert hashlib.sha256((FOLDER / "vendor" / name).read_bytes()).hexdigest() == digest
    assert sum(path.stat().st_size for path in (FOLDER / "vendor").iterdir()) < MAX_VENDORED_BYTES


def test_data_in_a_file_cannot_end_its_element():
    html = file_html({"model": {"name": "</script><script>alert(1)</script>"}, "lines": []})
    assert "alert(1)</script>" not in html
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html)
    assert json.loads(data)["model"]["name"] == "</script><script>alert(1)</script>"


def test_a_model_is_a_map_of_tensors(served):
    got = served.client.get("/api/look/model", params={"name": "m"}).json()
    assert got["n_layer"] == 2 and got["n_head"] == 4 and got["has_template"] and got["capabilities"] == ["completion"]
    assert got["bytes"] == sum(tensor["bytes"] for tensor in got["tensors"])
    assert got["formats"]["F32"]["bits_per_weight"] == 32
    assert not served.client.get("/api/look/model", params={"name": "bare"}).json()["has_template"]


def test_a_block_comes_in_bytes_and_numbers(served):
    query = {"name": "m", "tensor": "blk.1.ffn_down.weight", "block": "5"}
    got = served.client.get("/api/look/model", params=query).json()
    assert np.frombuffer(bytes(got["bytes"]), "<f4").tolist() == got["numbers"] and got["place"] == [0, 5]
    assert got["rounded"] == {"F16": got["rounded"]["F16"]}  # other formats have blocks of 32


@pytest.mark.parametrize(
    ("query", "status", "message"),
    [
        ("", 400, "name is required"),
        ("name=nope", 404, "model 'nope' not found"),
        ("name=m&tensor=nope", 400, "the model has no tensor 'nope'"),
        ("name=m&tensor=output.weight&block=x", 400, "block must be a number from 0, got 'x'"),
        ("name=m&tensor=output.weight&block=99999999", 400, "has no block 99999999, expected 0 to"),
    ],
)
def test_a_wrong_question_about_a_model_is_refused(served, query, status, message):
    answer = served.client.get(f"/api/look/model?{query}")
    assert answer.status_code == status and message in answer.json()["error"]


def test_the_last_steps_name_their_requests(served):
    body = {"model": "m", "prompt": "the cat", "look": {"cache": True}, "options": {"num_predict": 3}}
    job = served.ok("/api/generate", stream=False, **body)["look"]["prompt"]["job"]
    steps = served.client.get("/api/look/time").json()["models"]["m:latest"]
    mine = [step for step in steps if any(share["job"] == job for share in step["shares"])]
    assert [share["phase"] for step in mine for share in step["shares"]] == ["prefill", "decode", "decode"]
    assert all(earlier["at_us"] <= later["at_us"] for earlier, later in pairwise(mine))


def test_the_steps_come_as_trace_events(served):
    """The fields that the trace event format requires of complete and metadata events."""
    served.ok("/api/generate", model="m", prompt="the dog", stream=False, options={"num_predict": 3})
    trace = served.client.get("/api/look/time", params={"format": "perfetto"}).json()
    complete = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert trace["displayTimeUnit"] == "ms" and complete
    for event in complete:
        assert {"name", "cat", "ph", "ts", "dur", "pid", "tid", "args"} == set(event) and event["dur"] > 0
    names = {event["name"] for event in trace["traceEvents"] if event["ph"] == "M"}
    assert names == {"process_name", "thread_name"}
    assert served.client.get("/api/look/time", params={"format": "svg"}).status_code == 400


def test_a_held_answer_is_looked_at_again(served):
    body = {"model": "m", "prompt": "the cat", "options": {"num_predict": 3}, "stream": False}
    look = {"keep": True, "residual": True}
    got = served.ok("/api/generate", look=look, **body)["look"]
    for step in got["steps"]:
        asked = {"residual": True, "attention": [[1, 1]], "logits": -1}
        again = served.ok("/api/look/run", run=got["prompt"]["run"], position=step["position"], look=asked)
        assert (again["token"], again["next"], again["residual"]) == (step["token"], step["next"], step["residual"])
        assert again["heads"] == [[1, 1]] and len(again["attention"][0]) == step["position"] + 1


def test_a_held_answer_s_attention_comes_as_a_map(served):
    body = {"model": "m", "prompt": "the cat", "options": {"num_predict": 3}, "stream": False}
    look = served.ok("/api/generate", look={"keep": True, "attention": "*", "peaks": True}, **body)["look"]
    small = served.ok("/api/look/map", run=look["prompt"]["run"], layer=1)
    assert (small["heads"], small["rows"]) == ([0, 1, 2, 3], [step["position"] for step in look["steps"]])
    one = served.ok("/api/look/map", run=look["prompt"]["run"], layer=1, head=2)
    got = (np.frombuffer(base64.b64decode(one["u8"]), np.uint8).reshape(one["shape"])[0] / 255.0) ** 2
    for i, step in enumerate(look["steps"]):
        row = step["attention"][look["prompt"]["heads"].index([1, 2])]
        np.testing.assert_allclose(got[i, : i + 1], row, atol=4e-3)  # steps of 1 / 255 of the root
        assert step["peaks"]["weight"][1][2] == max(row) and step["peaks"]["place"][1][2] == np.argmax(row)
    assert served.post("/api/look/map", run="x").status_code == 400


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"run": "x"}, "look: no answer 'x' is held"),
        ({"run": "x", "position": -1}, "look: no answer"),
        ({}, "look: no answer ''"),
    ],
)
def test_an_unknown_run_is_refused(served, body, message):
    answer = served.post("/api/look/run", **body)
    assert answer.status_code == 400 and answer.json()["error"].startswith(message)


def test_another_origin_gets_no_page(served):
    answer = served.client.get("/learn", headers={"Origin": "https://evil.example"})
    assert (answer.status_code, answer.content) == (403, b"")
    assert served.client.get("/learn", headers={"Host": "evil.example"}).status_code == 403
