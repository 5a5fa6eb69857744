"""What runs jobs now.

::

    with cluster("auto"):                                   # else: processes of this machine
        for job, value in executor().map(jobs, [setup] * workers, Needs(), "training"):
            ...
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from la_reconvla.execution.jobs import Executor
from la_reconvla.execution.local import Local

_cluster: Executor | None = None


@contextlib.contextmanager
def using(cluster: Executor) -> Iterator[None]:
    """While the body runs, jobs go to `cluster`."""
    global _cluster
    before, _cluster = _cluster, cluster
    try:
        yield
    finally:
        _cluster = before


def executor() -> Executor:
    """What runs jobs now: processes of this machine, unless the code is `using` a cluster."""
    return _cluster or Local()
