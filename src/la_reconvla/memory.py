"""How much memory a process may still take."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import psutil

_GROUPS, _LISTING = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def free_memory() -> float:
    """Bytes: what the machine has, a container's limit allows and this process's own limit (``ulimit -v``) allows."""
    return max(0.0, min(psutil.virtual_memory().available, _own_limit(), *group_limits()))


def group_limits(groups: Path = _GROUPS, listing: Path = _LISTING) -> Iterator[float]:
    """Bytes that each control group of this process still allows; psutil sees the host's memory only.

    Pages of files that nobody used lately are counted by the kernel and given back on demand, so they are free.

    Args:
        groups: where Linux shows control groups, of version 1 or 2.
        listing: which of them are this process's.
    """
    try:
        lines = [line.split(":", 2) for line in listing.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return
    for number, controllers, path in lines:
        if number == "0":  # version 2
            roots, limit, used = (groups, groups / "unified"), "memory.max", "memory.current"
            cached = "inactive_file"
        elif "memory" in controllers.split(","):
            roots, limit, used = (groups / "memory",), "memory.limit_in_bytes", "memory.usage_in_bytes"
            cached = "total_inactive_file"
        else:
            continue
        for root in roots:
            inside = root / path.strip("/")
            for folder in (inside, *inside.parents):  # a limit of any group above holds too
                if not folder.is_relative_to(root):
                    break
                try:
                    told = (folder / "memory.stat").read_text(encoding="utf-8")
                    statistics = dict(line.split() for line in told.splitlines())
                    taken = int((folder / used).read_bytes()) - int(statistics.get(cached, 0))
                    yield float(int((folder / limit).read_bytes()) - taken)
                except (OSError, ValueError):  # no such group, or "max"
                    continue


def _own_limit() -> float:
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return float("inf") if soft == resource.RLIM_INFINITY else soft - psutil.Process().memory_info().vms
