"""Energy, read from counters that wrap."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from la_reconvla.study.provenance import Energy

TOP = 1_000_000


def counter(folder: Path, name: str, value: int) -> Path:
    zone = folder / name
    zone.mkdir(parents=True, exist_ok=True)
    (zone / "max_energy_range_uj").write_text(f"{TOP}\n")
    (zone / "energy_uj").write_text(f"{value}\n")
    return zone / "energy_uj"


def test_packages_add_up_and_their_parts_do_not(tmp_path: Path) -> None:
    first, second = counter(tmp_path, "intel-rapl:0", 100), counter(tmp_path, "intel-rapl:1", 900_000)
    part = counter(tmp_path, "intel-rapl:0:0", 0)
    with Energy(tmp_path) as energy:
        first.write_text("400100")
        part.write_text("400000")
        second.write_text("100000")  # it has wrapped
    assert energy.joules == pytest.approx(0.4 + 0.2)


def test_a_counter_that_wraps_twice_is_followed(tmp_path: Path) -> None:
    path = counter(tmp_path, "intel-rapl:0", 0)
    with Energy(tmp_path, every=0.01) as energy:
        for value in (600_000, 200_000, 800_000, 400_000):
            (tmp_path / "next").write_text(str(value))
            (tmp_path / "next").replace(path)
            time.sleep(0.2)
    assert energy.joules == pytest.approx(2.4)


def test_what_cannot_be_read_is_not_measured(tmp_path: Path) -> None:
    with Energy(tmp_path / "nowhere") as energy:
        pass
    assert energy.joules is None
    path = counter(tmp_path, "intel-rapl:0", 5)
    with Energy(tmp_path) as energy:
        path.unlink()
    assert energy.joules is None
