"""A Ray cluster for tests, whose nodes are processes of this machine, and a server whose answers replicas compute."""

from __future__ import annotations

import asyncio
import os
import re
from contextlib import contextmanager
from functools import partial

from serving import Served

from numllama.api.scale.door import Door, open_door
from numllama.engine.distributed.replicas import Scale
from numllama.engine.settings import Settings
from tiny import CHAT_TEMPLATE, tiny_gguf

NODE = {"num_cpus": 1, "object_store_memory": 100 << 20}
HEAD = NODE | {
    "include_dashboard": False,
    "dashboard_port": None,
}  # None: any, as another cluster may have the usual one


@contextmanager
def two_nodes():
    """Start a cluster of two nodes with a CPU each, and connect to it."""
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ["RAY_AUTH_MODE"] = "disabled"  # for programs that join it, though this user may have a token
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args=HEAD)
    cluster.add_node(**NODE)
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


@contextmanager
def two_doors(address, folder):
    """Start a server alone, and a door with two replicas, over one store with the models m and e."""
    settings = Settings(models=folder / "models", builtin=False)
    alone = Served(settings)

    def door(engine):
        alone.replicas = open_door(engine, address, Scale(2, 2))
        return partial(Door, engine=engine, replicas=alone.replicas)

    through = Served(settings, door)
    through.replicas, through.address = alone.replicas, address
    alone.add("m", tiny_gguf(folder / "m.gguf", seed=1, chat_template=CHAT_TEMPLATE, n_ctx=4096))
    alone.add("e", tiny_gguf(folder / "e.gguf", seed=3, llama__pooling_type=1))
    yield alone, through
    through.replicas.close()
    through.close()
    alone.close()
    from ray import serve

    serve.shutdown()


def told(replicas, method):
    """Call a method of every replica.  -> {name: result}"""
    return dict(asyncio.run(replicas.broadcast(method)))


def running(replicas):
    """Return how many sequences each replica computes."""
    sums = {
        name: re.findall(r"^numllama_model_running.* (.*)$", text, re.MULTILINE)
        for name, text in told(replicas, "metrics").items()
    }
    return {name: sum(map(float, found)) for name, found in sums.items()}
