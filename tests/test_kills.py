"""Nothing is lost, doubled or changed when processes are killed: the short form of `benchmarks/kills.py`."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import kills
import numpy as np
import psutil
import pytest
from kills import Difference, Local, compared, content, wrong_end
from safetensors.numpy import load_file, save_file

SHORT = (
    "study run known-answer --steps 4 --demos 12 --seeds 0 --episodes 3 --conditions C2 --workers 2 --out OUT/study",
)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_three_kills_change_nothing(tmp_path: Path) -> None:
    outcome = kills.torment("short", SHORT, 3, tmp_path, Local(), seed=3)
    assert outcome.faults == []
    assert outcome.count.total == 3
    assert len([name for name in content(tmp_path / "killed") if name.endswith("model.safetensors")]) == 2
    assert str(outcome).startswith("| short | 3 |")


# ---------------------------------------------------------------- planted defects


def left(folder: Path) -> Path:
    """What a small job may have left: two policies, their episodes and curves, a demonstration."""
    for arm in ("C2", "G1"):
        run = folder / arm
        run.mkdir(parents=True)
        save_file({"w": np.arange(6, dtype=np.float32)}, run / "model.safetensors")
        episodes = [{"start": {"index": n, "task": 0}, "success": n == 1, "seconds": 0.25} for n in range(3)]
        (run / "episodes.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in episodes))
        (run / "metrics.jsonl").write_text(
            '{"step": 1, "loss": 2.5, "samples_per_second": 7}\n{"step": 2, "loss": 2}\n'
        )
        (run / "held_out.json").write_text('{"errors": [0.5, 0.25], "started": "today"}')
    with h5py.File(folder / "0_demo.hdf5", "w") as file:
        file["data/demo_0/actions"] = np.zeros((4, 7))
    return folder


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def twice(folder: Path) -> None:
    path = folder / "C2/episodes.jsonl"
    path.write_text(path.read_text() + path.read_text().splitlines(keepends=True)[1])


def another_weight(folder: Path) -> None:
    path = folder / "G1/model.safetensors"
    weights = load_file(path)
    weights["w"][3] = np.nextafter(weights["w"][3], np.float32(9))
    save_file(weights, path)


def another_action(folder: Path) -> None:
    with h5py.File(folder / "0_demo.hdf5", "a") as file:
        file["data/demo_0/actions"][2, 3] = 1e-9


START = '{"index": 1, "task": 0}'  # with sorted names
DEFECTS: dict[str, tuple[Callable[[Path], object], Difference]] = {
    "weights lost": (
        lambda folder: (folder / "C2/model.safetensors").unlink(),
        Difference(lost=("C2/model.safetensors",)),
    ),
    "an episode twice": (
        twice,
        Difference(doubled=(f"C2/episodes.jsonl: {START}",), differing=("C2/episodes.jsonl",)),
    ),
    "an episode lost": (
        lambda folder: change(
            folder / "C2/episodes.jsonl", f'{{"start": {START}, "success": true, "seconds": 0.25}}\n', ""
        ),
        Difference(lost=(f"C2/episodes.jsonl: {START}",), differing=("C2/episodes.jsonl",)),
    ),
    "another outcome": (
        lambda folder: change(folder / "G1/episodes.jsonl", "true", "false"),
        Difference(differing=("G1/episodes.jsonl",)),
    ),
    "half an episode": (
        lambda folder: change(folder / "G1/episodes.jsonl", '"success": false, "seconds": 0.25}', ""),
        Difference(differing=("G1/episodes.jsonl",)),
    ),
    "the last bit of a weight": (another_weight, Difference(differing=("G1/model.safetensors",))),
    "a curve": (
        lambda folder: change(folder / "C2/metrics.jsonl", "2.5", "2.5000001"),
        Difference(differing=("C2/metrics.jsonl",)),
    ),
    "a held-out record": (
        lambda folder: change(folder / "C2/held_out.json", "0.25", "0.26"),
        Difference(differing=("C2/held_out.json",)),
    ),
    "an action": (another_action, Difference(differing=("0_demo.hdf5",))),
    "a file too many": (
        lambda folder: (folder / "C2/results.json").write_text("{}"),
        Difference(differing=("C2/results.json",)),
    ),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_a_planted_defect_is_found(name: str, tmp_path: Path) -> None:
    calm, hard = left(tmp_path / "calm"), left(tmp_path / "hard")
    plant, expected = DEFECTS[name]
    plant(hard)
    found = compared(content(hard), content(calm))
    assert found == expected
    assert found


def test_times_order_and_hidden_files_are_no_difference(tmp_path: Path) -> None:
    calm, hard = left(tmp_path / "calm"), left(tmp_path / "hard")
    change(hard / "C2/episodes.jsonl", "0.25", "0.75")
    change(hard / "C2/held_out.json", "today", "tomorrow")
    path = hard / "G1/episodes.jsonl"
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    (hard / "C2/.lease-000001").write_text("{}")
    (hard / "C2/report.html").write_text("")
    assert not compared(content(hard), content(calm))


@pytest.mark.parametrize(
    ("status", "said", "killed", "wrong"),
    [
        (0, "", (), False),
        (-signal.SIGKILL, "", ("command",), False),
        (-signal.SIGKILL, "", ("worker",), True),
        (2, "error: a training process died", ("worker",), False),
        (2, "error: a training process died", (), True),
        (2, f"error: another process {kills.HELD}", (), False),
        (2, "error: no longer answers", ("Ray head",), False),
        (1, "The program will terminate.", ("Ray head",), True),
        (1, "Traceback (most recent call last)", ("worker",), True),
        (2, "error: no", ("command",), True),
    ],
)
def test_how_a_command_may_end(status: int, said: str, killed: tuple[str, ...], wrong: bool) -> None:
    assert bool(wrong_end(status, said, killed)) is wrong


class Commands(Local):
    """Any Python, in the place of this package's commands."""

    def start(self, line: str, out: Path, log: Path) -> kills.Started:
        out.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as file:
            words = [sys.executable, "-c", line, str(out)]
            return kills.Started(subprocess.Popen(words, stdout=file, stderr=file, start_new_session=True), log)


def run(tmp_path: Path, line: str, number: int = 2) -> kills.Outcome:
    return kills.torment("any", (line,), number, tmp_path, Commands(), seed=1)


ADDS = """
import json, pathlib, sys, time
path = pathlib.Path(sys.argv[1], "episodes.jsonl")
for number in range(4):
    with path.open("a") as file:
        file.write(json.dumps({"start": number}) + "\\n")
    time.sleep(0.2)
"""


def test_a_command_that_begins_anew_in_the_same_file_doubles(tmp_path: Path) -> None:
    outcome = run(tmp_path, ADDS)
    assert outcome.difference.doubled
    assert outcome.difference.differing == ("episodes.jsonl",)
    assert outcome.count.kills["command"] == 2


def test_a_command_that_hangs_after_a_kill_is_counted_and_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its child is killed, and it waits forever."""
    monkeypatch.setattr(kills, "HUNG", 1.0)
    monkeypatch.setitem(kills.WEIGHTS, "command", 1e-9)
    line = (
        "import subprocess, sys, time\n"
        "if subprocess.run([sys.executable, '-c', 'import time; time.sleep(0.7)']).returncode: time.sleep(600)"
    )
    outcome = run(tmp_path, line, 1)
    assert outcome.count.hung == 1
    assert outcome.faults
    assert "| 1 | 1 helpers | 1 | 0 | 0 | 0 | 1 | 0 |" in str(outcome)
    assert not [p for p in psutil.process_iter(["cmdline"]) if line in (p.info["cmdline"] or [])]


def test_a_fault_of_the_comparison_does_not_cost_the_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(ours: Any, theirs: Any) -> Difference:
        raise KeyError("start")

    monkeypatch.setattr(kills, "compared", fails)
    outcome = run(tmp_path, "import time; time.sleep(0.3)", 1)
    assert outcome.faults == ["KeyError: 'start'"]
    assert str(outcome).startswith("| any | 1 | 1 commands | 1 | ? | ? | ? | 0 | 0 |")
