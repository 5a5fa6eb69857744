"""Does anything get lost, doubled or changed when processes are killed at random? Undisturbed run against many kills.

    python benchmarks/kills.py --kills 100                          # the table of docs/results/reliability.md
    python benchmarks/kills.py --kills 5 --job toy                  # one job only
    python benchmarks/kills.py --kills 20 --job toy --cluster auto  # its workers on a Ray cluster

Each job is a list of commands of `la-reconvla`. First they run undisturbed. Then each is started again and again in
another folder, and after a random time SIGKILL ends one random process of it: the command itself or one of its
workers, and with Ray one of the cluster's. When so many kills were made, the commands run to their end, and what they
left is compared: weights byte by byte, episodes line by line, held-out records, training curves and results without
their times.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

HUNG = 300.0  # seconds that a command may take to end after one of its processes was killed, beside those it needs
HELD = "is working in this folder"  # what a command says that finds another one's lease
TIMES = frozenset(
    ("samples_per_second", "seconds", "started", "finished", "wall_seconds", "energy_joules", "commits", "command")
)
TIMES |= {"date", "cost", "hardware", "time", "gpu_memory_gb", "memory_gb", "seconds_per_step", "control_seconds"}
TOY = "study run known-answer --steps 40 --demos 24 --seeds 0 1 --episodes 8 --conditions C2 G1 --workers 2"
JOBS: dict[str, tuple[str, ...]] = {
    "toy": (f"{TOY} --out OUT/study",),
    "simulator": (
        "data collect --tasks 0 --demos 6 --placement wide --quality fast --image-size 56 --frame-stride 8 --workers 2 "
        "--out OUT/demos",
        "train --preset smoke --condition C4 --demonstrations OUT/demos --out OUT/run",
        "eval OUT/run --tasks 0 --episodes 4 --workers 2 --out OUT/eval",
    ),
}


@dataclass
class Count:
    """What happened: kills by the kind of process, commands that had to be started again, and faults."""

    kills: collections.Counter[str] = field(default_factory=collections.Counter)
    starts: int = 0
    hung: int = 0
    refused: list[str] = field(default_factory=list)
    begun: float = field(default_factory=time.monotonic)

    def say(self, what: str) -> None:
        """Progress, to stderr."""
        kills, minutes = sum(self.kills.values()), (time.monotonic() - self.begun) / 60
        rate = f"{kills / minutes:.1f} a minute" if minutes else "-"
        print(f"{minutes:6.1f} min  {kills} kills, {rate}  {what}", file=sys.stderr, flush=True)


def command(line: str, out: Path, cluster: str | None) -> list[str]:
    """The command line as a list; `OUT` is the folder."""
    words = shlex.split(line.replace("OUT", str(out)))
    joined = ["--cluster", cluster] if cluster and words[:2] == ["study", "run"] else []
    return [sys.executable, "-m", "la_reconvla", *words, *joined]


@dataclass(frozen=True)
class Started:
    """A command that runs in a session of its own, and the file that keeps what it prints."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def said(self) -> str:
        """The end of what it printed."""
        return self.log.read_text(encoding="utf-8", errors="replace")[-2000:]


def start(words: Sequence[str], log: Path) -> Started:
    """Start it."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        return Started(subprocess.Popen(words, stdout=file, stderr=file, start_new_session=True), log)


def of_session(session: int) -> list[psutil.Process]:
    """All processes of a session that live: a killed command leaves its workers there."""
    there = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                there.append(process)
        except (psutil.Error, ProcessLookupError):
            continue
    return there


def kind(process: psutil.Process, driver: int) -> str:
    """Which part of a run a process is."""
    if process.pid == driver:
        return "command"
    words = " ".join(process.cmdline())
    for sign, name in (("raylet", "Ray node"), ("gcs_server", "Ray head"), ("ray::", "Ray worker"), ("ray", "Ray")):
        if sign in words:
            return name
    return "worker" if "spawn_main" in words or "forkserver" in words else "helper"


def disturbed(words: Sequence[str], log: Path, needs: float, rng: np.random.Generator, count: Count) -> bool:
    """Start it, kill one of its processes at a random time of the seconds that it needs; returns whether it is over."""
    started, deadline = start(words, log), time.monotonic() + float(rng.uniform(0, needs))
    process = started.process
    count.starts += 1
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        time.sleep(0.02)
    if process.poll() is not None:
        if process.returncode:
            count.refused.append(started.said)
        return process.returncode == 0
    there = of_session(process.pid)
    # The command in one kill of three, whatever the number of its workers.
    drivers = [p for p in there if p.pid == process.pid]
    workers = [p for p in there if p.pid != process.pid]
    among = drivers if not workers or rng.random() < 1 / 3 else workers
    if not among:
        return process.wait() == 0
    victim = among[int(rng.integers(len(among)))]
    try:
        name = kind(victim, process.pid)
        victim.send_signal(signal.SIGKILL)
    except psutil.Error:
        name = "gone"
    count.kills[name] += name != "gone"
    count.say(f"killed a {name}: {' '.join(words[3:6])}")
    try:
        process.wait(HUNG + needs)
    except subprocess.TimeoutExpired:
        count.hung += 1
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return process.returncode == 0


def finish(words: Sequence[str], log: Path) -> float:
    """Run it to its end; returns the seconds that it took. What an earlier one left running has to end by itself."""
    begun = time.monotonic()
    for _ in range(60):
        started = start(words, log)
        if started.process.wait() == 0:
            return time.monotonic() - begun
        if HELD not in started.said:
            raise SystemExit(f"failed undisturbed: {shlex.join(words)}\n{started.said}")
        time.sleep(1)
    raise SystemExit(f"the folder stays held: {shlex.join(words)}")


def content(folder: Path) -> dict[str, Any]:
    """What a job left behind, without what is a matter of time."""
    found: dict[str, Any] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = str(path.relative_to(folder))
        if path.name == "model.safetensors":
            found[name] = path.read_bytes()
        elif path.name == "episodes.jsonl":
            lines = [timeless(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
            found[name] = sorted(json.dumps(line, sort_keys=True) for line in lines)
        elif path.name == "metrics.jsonl":
            found[name] = [timeless(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
        elif path.name in ("held_out.json", "results.json", "evaluation.json"):
            found[name] = timeless(json.loads(path.read_text(encoding="utf-8")))
        elif path.suffix == ".hdf5":
            found[name] = dict(arrays(path))
    return found


def arrays(path: Path) -> Iterator[tuple[str, bytes]]:
    """All data sets of an HDF5 file."""
    import h5py

    with h5py.File(path) as file:
        names: list[str] = []
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        for name in names:
            yield name, np.asarray(file[name]).tobytes()


def timeless(value: Any) -> Any:
    """A value of JSON without what says when, how fast, or by which command and folder."""
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key not in TIMES}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def doubled(found: dict[str, Any]) -> int:
    """Episodes that were recorded twice."""
    starts = [
        (name, json.dumps(json.loads(line)["start"]))
        for name, lines in found.items()
        if name.endswith("episodes.jsonl")
        for line in lines
    ]
    return len(starts) - len(set(starts))


def main() -> None:
    """Parse the options, make the kills, print a row a job; ends with 1 if anything differs."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--kills", type=int, default=100, help="of each job")
    options.add_argument("--job", choices=JOBS, nargs="+", default=list(JOBS))
    options.add_argument("--cluster", help="run studies on this Ray cluster: auto, or its address")
    options.add_argument("--seed", type=int, default=0, help="of times and victims")
    options.add_argument("--out", type=Path, default=Path("runs/kills"))
    asked = options.parse_args()
    faults = 0
    print("| job | kills | of these | starts | lost | doubled | differing | hung | other ends | minutes |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for job in asked.job:
        lost, differing, twice = [], [], 0
        lines, rng, count = JOBS[job], np.random.default_rng(asked.seed), Count()
        log = asked.out / job / "log.txt"
        calm, hard = asked.out / job / "undisturbed", asked.out / job / "killed"
        shutil.rmtree(asked.out / job, ignore_errors=True)
        took = [finish(command(line, calm, asked.cluster), log) for line in lines]
        while sum(count.kills.values()) < asked.kills:
            shutil.rmtree(hard, ignore_errors=True)  # finished before enough kills were made: once more from the start
            for line, seconds in zip(lines, took, strict=True):
                words = command(line, hard, asked.cluster)
                while sum(count.kills.values()) < asked.kills and not disturbed(words, log, seconds, rng, count):
                    pass
                finish(words, log)
            count.say("at its end: compared")
            ours, theirs = content(hard), content(calm)
            lost = sorted(set(theirs) - set(ours))
            differing = [name for name in theirs if name in ours and ours[name] != theirs[name]]
            twice = doubled(ours)
            if lost or differing or twice:
                break
        others = [text for text in count.refused if HELD not in text]
        kinds = ", ".join(f"{n} {name}s" for name, n in count.kills.most_common())
        print(
            f"| {job} | {sum(count.kills.values())} | {kinds} | {count.starts} | {len(lost)} | {twice} "
            f"| {len(differing)} | {count.hung} | {len(others)} | {(time.monotonic() - count.begun) / 60:.0f} |",
            flush=True,
        )
        for name in (*lost, *differing, *others):
            print(f"  {name}", file=sys.stderr)
        faults += len(lost) + len(differing) + twice + count.hung + len(others)
    raise SystemExit(bool(faults))


if __name__ == "__main__":
    main()
