"""A Ray cluster for tests: nodes that are processes of this machine."""

from __future__ import annotations

import os
from contextlib import contextmanager

NODE = {"num_cpus": 1, "object_store_memory": 100 << 20}
HEAD = NODE | {
    "include_dashboard": False,
    "dashboard_port": None,
}  # None: any, as another cluster may have the usual one


@contextmanager
def two_nodes():
    """Start a cluster of two nodes with a CPU each, and connect to it."""
    os.environ.setdefault("RAY_worker_niceness", "0")
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
