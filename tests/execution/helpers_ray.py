"""A cluster of two nodes on this machine, for tests."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NODE = {"num_cpus": 2, "object_store_memory": 200_000_000, "include_dashboard": False}


@dataclass
class Nodes:
    """The cluster, and its second node."""

    cluster: Any
    second: Any

    def lose_one(self) -> None:
        self.cluster.remove_node(self.second, allow_graceful=False)


@contextlib.contextmanager
def two_nodes() -> Iterator[Nodes]:
    """Started, connected to, and ended. Workers import what this process does.

    One cluster at a time on a machine: processes that run tests side by side wait for each other.
    """
    with (Path(tempfile.gettempdir()) / "la-reconvla-ray-tests.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with _two_nodes() as nodes:
            yield nodes


@contextlib.contextmanager
def _two_nodes() -> Iterator[Nodes]:
    import ray
    from ray.cluster_utils import Cluster

    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    cluster = Cluster(initialize_head=True, head_node_args=NODE)
    try:
        second = cluster.add_node(**{k: v for k, v in NODE.items() if k != "include_dashboard"})
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        yield Nodes(cluster, second)
    finally:
        ray.shutdown()
        cluster.shutdown()
        os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)
