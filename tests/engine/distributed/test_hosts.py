"""Two hosts with networks of their own, as namespaces with one cable: a stage on each has the bits of one process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
from serving import until

from tiny import tiny_gguf

pytestmark = [pytest.mark.ray, pytest.mark.slow]
pytest.importorskip("ray")

HOSTS = {"one": "198.51.100.1", "two": "198.51.100.2"}  # addresses that documentation may use
DRIVER = """
import json, sys, time
import numpy as np
from pathlib import Path
from numllama.engine.distributed.cluster import join_cluster, node_address
from numllama.engine.distributed.pipeline import StagedCache
from numllama.engine.model.batch import Batch
from numllama.engine.model.decoder import forward
from numllama.engine.model.load import load_model
from numllama.kernels import NUMBA

path, address, cable = sys.argv[1:]
model, ray = load_model(Path(path), {}), join_cluster(address)
for _ in range(120):
    if len([node for node in ray.nodes() if node["Alive"]]) == 2:
        break
    time.sleep(0.5)
cache, own = StagedCache([], model, 64, 1, "f16", n_stage=2, address=address), model.new_cache(64)

def sent():
    return int(Path(f"/sys/class/net/{cable}/statistics/tx_bytes").read_text())

before, same = sent(), []
for batch in (Batch.of([1, *range(260, 290)]), *(Batch.of([300 + i], 0, 31 + i) for i in range(20))):
    same.append(bool(np.array_equal(forward(model, batch, cache, NUMBA), forward(model, batch, own, NUMBA))))
nodes = [ray.get(stage.__ray_call__.remote(lambda self: node_address(__import__("ray")))) for stage in cache.stages]
print(json.dumps({"same": same, "nodes": nodes, "bytes": sent() - before}))
"""


def run(*command):
    subprocess.run(command, check=True, capture_output=True, timeout=60)


def listens(host, address):
    """Return whether a program listens at `address`, seen from `host`."""
    return not subprocess.run(
        [*host, "bash", "-c", f"exec 3<>/dev/tcp/{address.replace(':', '/')}"], stderr=subprocess.DEVNULL
    ).returncode


@pytest.fixture
def hosts():
    """Make two network namespaces with a cable between them; yields the start of a command on each."""
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("needs root and the program ip")
    names = {host: f"numllama-{os.getpid()}-{host}" for host in HOSTS}
    made = []
    try:
        for name in names.values():
            try:
                run("ip", "netns", "add", name)
            except subprocess.CalledProcessError as error:
                pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
            made.append(name)
        one, two = names.values()
        run("ip", "-n", one, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", two)
        for host, address in HOSTS.items():
            run("ip", "-n", names[host], "address", "add", f"{address}/24", "dev", "cable")
            for link in ("lo", "cable"):
                run("ip", "-n", names[host], "link", "set", link, "up")
        yield {host: ["ip", "netns", "exec", name] for host, name in names.items()}
    finally:
        for name in made:
            run("ip", "netns", "del", name)


def test_a_stage_on_each_of_two_hosts_has_the_bits_of_one_process(hosts, tmp_path):
    path = tiny_gguf(tmp_path / "m.gguf", "llama", "Q4_0")
    address = f"{HOSTS['one']}:6399"
    size = "--num-cpus=1", "--object-store-memory=100000000", "--block"
    ray = f"{os.path.dirname(sys.executable)}/ray"
    environment = os.environ | {"RAY_worker_niceness": "0", "RAY_AUTH_MODE": "disabled"}
    nodes, log = [], open(tmp_path / "log", "w")
    starts = {
        "one": ("--head", f"--port={address.partition(':')[2]}", "--include-dashboard=false"),
        "two": (f"--address={address}",),
    }
    try:
        for host, flags in starts.items():
            command = [*hosts[host], ray, "start", *flags, f"--node-ip-address={HOSTS[host]}", *size]
            nodes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
            until(lambda: listens(hosts["one"], address), 60)
        driver = [*hosts["one"], sys.executable, "-c", DRIVER, str(path), address, "cable"]
        done = subprocess.run(driver, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr[-2000:]
    finally:
        for node in reversed(nodes):
            node.terminate()
            node.wait(60)
        log.close()
    found = json.loads(done.stdout.splitlines()[-1])
    assert all(found["same"]) and sorted(found["nodes"]) == sorted(HOSTS.values())
    n_embd, n_token = 64, 31 + 20
    assert found["bytes"] > n_token * n_embd * 4  # the hidden states of every token crossed the cable
