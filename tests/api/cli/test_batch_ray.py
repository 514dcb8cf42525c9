"""`numllama batch --ray` on a cluster of two nodes: the answers of the local run, whatever happens to a worker."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest

from numllama.api.cli import batch as module
from numllama.api.scale import workers

pytestmark = pytest.mark.ray
pytest.importorskip("ray")

N_LINE = 30


@pytest.fixture
def source(tmp_path):
    """Write a file of chats, completions and embeddings, whose fifth line is wrong."""
    lines = []
    for i in range(N_LINE):
        chat = {"messages": [{"role": "user", "content": f"the cat {i}"}], "max_tokens": 30 - i, "temperature": 0}
        plain = {"model": "bare", "prompt": f"the cat {i}", "max_tokens": i, "temperature": 1, "seed": i}
        url, body = [
            ("/v1/chat/completions", chat),
            ("/v1/completions", plain),
            ("/v1/embeddings", {"model": "bare", "input": f"the cat {i}"}),
        ][i % 3]
        lines.append({"custom_id": f"id {i}", "method": "POST", "url": url, "body": body})
    lines[4] = {"custom_id": "wrong", "url": "/v1/nothing", "body": {}}
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def answers(path):
    """Read answer lines; what differs from run to run by intention, a random id and the time, is removed."""
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    for line in lines:
        if line["response"]:
            for key in ("id", "created"):
                line["response"]["body"].pop(key, None)
    return [json.dumps(line) for line in lines]


def test_a_cluster_answers_as_one_process_though_a_worker_is_killed(
    cluster, alone, numllama, source, tmp_path, monkeypatch
):
    local, spread = tmp_path / "local.jsonl", tmp_path / "ray.jsonl"
    assert numllama("batch", str(source), str(local), "-m", "m").out == f"{local}: {N_LINE - 1} answered, 1 errors\n"
    killed, ask = [], module.answer_request

    class SlowToReturn(workers.Worker):
        def __init__(self, settings, file):
            super().__init__(settings, file)
            (tmp_path / f"{os.getpid()}.started").touch()
            if len(list(tmp_path.glob("*.started"))) > 2:
                time.sleep(6)

    monkeypatch.setattr(workers, "Worker", SlowToReturn)

    async def after_a_kill(request, answering):
        if request.number == 12:
            killed.extend(await answering.pids())
            os.kill(killed[0], signal.SIGKILL)
        return await ask(request, answering)

    monkeypatch.setattr(module, "answer_request", after_a_kill)
    command = "batch", str(source), str(spread), "-m", "m", "--ray", cluster.address
    assert numllama(*command).out.endswith(f"{spread}: {N_LINE - 1} answered, 1 errors\n")  # after Ray's own words
    assert len(set(killed)) == 2 and answers(spread) == answers(local)
    assert "'/v1/nothing', expected one of" in answers(spread)[4]

    whole = spread.read_bytes().splitlines(keepends=True)
    spread.write_bytes(b"".join(whole[:9]) + whole[9][:17])
    monkeypatch.setattr(module, "answer_request", ask)
    assert numllama(*command).out == f"{spread}: {N_LINE - 9} answered, 0 errors, 9 were there\n"
    assert answers(spread) == answers(local)


def test_a_worker_that_always_ends_costs_its_line_alone(cluster, alone, numllama, source, tmp_path, monkeypatch):
    class Deadly(workers.Worker):
        async def post(self, path, body):
            if "the cat 3" in str(body):
                os._exit(1)
            return await super().post(path, body)

    monkeypatch.setattr(workers, "Worker", Deadly)
    few, target = tmp_path / "few.jsonl", tmp_path / "out.jsonl"
    few.write_bytes(b"".join(source.read_bytes().splitlines(keepends=True)[:7]))
    numllama("batch", str(few), str(target), "-m", "m", "--ray", cluster.address, "--parallel", "1")
    lines = [json.loads(line) for line in target.read_bytes().splitlines()]
    assert [line["error"] is None for line in lines] == [True, True, True, False, False, True, True]
    assert "the worker ended 3 times" in lines[3]["error"]["message"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray Data warns of its own settings
def test_parquet_goes_in_and_out_as_ray_data_has_it(cluster, alone, numllama, source, tmp_path):
    import ray.data

    rows = [json.loads(line) for line in source.read_bytes().splitlines()]
    rows = [{"method": "POST"} | row | {"body": json.dumps(row["body"])} for row in rows]
    folder, target, local = tmp_path / "in.parquet", tmp_path / "out.parquet", tmp_path / "local.jsonl"
    ray.data.from_items(rows, override_num_blocks=1).write_parquet(str(folder))
    numllama("batch", str(source), str(local), "-m", "m")
    out = numllama("batch", str(folder), str(target), "-m", "m", "--ray", cluster.address).out
    assert out == f"{target}: {N_LINE - 1} answered, 1 errors\n"
    got = ray.data.read_parquet(str(target)).take_all()
    for row, line in zip(got, map(json.loads, answers(local)), strict=True):
        assert row["custom_id"] == line["custom_id"] and (row["error"] or None) == line["error"]
        if line["response"]:
            body = json.loads(row["response"]["body"])
            assert {key: body[key] for key in body if key not in ("id", "created")} == line["response"]["body"]
