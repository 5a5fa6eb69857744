"""Cells that train on several devices side by side: which gets which, and that nothing else changes."""

from __future__ import annotations

import dataclasses
import io
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from rich.console import Console
from test_train import DENOISER, SHORT, numbers, weights, write_demonstrations

from helpers import HEAD, TINY
from la_reconvla.conditions import C1, C2, C4
from la_reconvla.data.hdf5 import open_demonstrations
from la_reconvla.execution import local
from la_reconvla.execution.jobs import Job, nothing
from la_reconvla.study import train_cells as module
from la_reconvla.study.cells import Cell
from la_reconvla.study.presets import StudyConfig
from la_reconvla.study.train_cells import train_cells


def test_each_cell_goes_to_the_next_device_that_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first device is busy with its cell until all others are trained: the second trains those."""
    others_done, seen, lock = threading.Event(), [], threading.Lock()

    def pretend(cell: Cell) -> None:
        if cell.seed == 0:
            assert others_done.wait(20)
        with lock:
            seen.append((threading.current_thread().name[:1], cell.seed))
            if len(seen) == 3:
                others_done.set()

    pools = iter((ThreadPoolExecutor(1, "a"), ThreadPoolExecutor(1, "b")))
    monkeypatch.setattr(module, "_train_cell", pretend)
    monkeypatch.setattr(local, "worker_pool", lambda *_: next(pools))
    cells = [Cell(C1, seed, tmp_path / str(seed)) for seed in range(4)]
    said = io.StringIO()
    setups = [Job("gpu:0", nothing), Job("gpu:1", nothing)]
    assert len(list(module._trained(cells, setups, StudyConfig(backbone=TINY), Console(file=said)))) == 4
    assert seen == [("b", 1), ("b", 2), ("b", 3), ("a", 0)]
    lines = ["gpu:0: C1 seed 0", "gpu:1: C1 seed 1", "gpu:1: C1 seed 2", "gpu:1: C1 seed 3"]
    assert said.getvalue().splitlines() == lines


@pytest.mark.slow
def test_two_devices_give_what_one_gives(tmp_path: Path) -> None:
    parts = open_demonstrations(write_demonstrations(tmp_path / "demonstrations")).divide(0.25)
    config = StudyConfig(backbone=TINY, decoder=HEAD, denoiser=DENOISER, train=dataclasses.replace(SHORT, device="cpu"))
    said = io.StringIO()

    def study(name: str, devices: tuple[str, ...]) -> list[Path]:
        cells = [Cell(config.arm(arm.id), 0, tmp_path / name / arm.id) for arm in (C1, C2, C4)]
        train_cells(cells, config, *parts, 1, Console(file=said), devices)
        return [cell.folder for cell in cells]

    for one, two in zip(study("one", ()), study("two", ("cpu", "cpu")), strict=True):
        assert weights(one) == weights(two)
        assert numbers(one) == numbers(two)
    told = [line for line in said.getvalue().splitlines() if line.startswith("cpu: ")]
    assert sorted(told) == ["cpu: C1 seed 0", "cpu: C2 seed 0", "cpu: C4 seed 0"]
