"""What a process may still take: its own limit, and those of control groups as Linux shows them."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from la_reconvla.memory import free_memory, group_limits

GB = 10**9


def group(folder: Path, version: int, limit: str, used: int, cached: int) -> None:
    names = ("memory.max", "memory.current", "inactive_file")
    names = names if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    folder.mkdir(parents=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"active_file 5\n{names[2]} {cached}\n")


@pytest.mark.parametrize("version", [1, 2])
def test_the_least_of_all_groups_above_holds(tmp_path: Path, version: int) -> None:
    root, listing = tmp_path / "memory" if version == 1 else tmp_path, tmp_path / "listing"
    group(root / "pod" / "job", version, str(9 * GB), 2 * GB, GB)
    group(root / "elsewhere", version, "1", 0, 0)
    (root / "pod" / "memory.stat").write_text("")
    listing.write_text("3:cpu:/other\n4:memory:/pod/job\n" if version == 1 else "0::/pod/job\n")
    assert list(group_limits(tmp_path, listing)) == [8 * GB]
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if version == 1 else ("memory.max", "memory.current")
    (root / "pod" / names[0]).write_text(str(5 * GB))
    (root / "pod" / names[1]).write_text(str(2 * GB))
    assert min(group_limits(tmp_path, listing)) == 3 * GB


def test_no_limit_is_none(tmp_path: Path) -> None:
    group(tmp_path / "job", 2, "max", 2 * GB, 0)
    (tmp_path / "listing").write_text("0::/job\n")
    assert list(group_limits(tmp_path, tmp_path / "listing")) == []
    assert list(group_limits(tmp_path, tmp_path / "nothing")) == []


def test_a_limit_of_the_address_space_counts() -> None:
    code = (
        "import psutil, resource; from la_reconvla.memory import free_memory\n"
        "limit = psutil.Process().memory_info().vms + 50_000_000\n"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit)); print(free_memory())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0 <= float(done.stdout) <= 50_000_000
    if resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY:
        assert free_memory() <= psutil.virtual_memory().total
