"""Does anything get lost, doubled or changed when processes are killed at random? Undisturbed run against many kills.

    python benchmarks/kills.py --kills 100                        # the table of docs/results/reliability.md
    python benchmarks/kills.py --kills 5 --job toy                # one job only
    python benchmarks/kills.py --kills 20 --job toy --ray         # its workers on a Ray cluster of two nodes, made here

Each job is a list of commands of `la-reconvla`. First they run undisturbed. Then each is started again and again in
another folder, and after a random time SIGKILL ends one random process of it: the command itself or one of its
workers, and with Ray also a node or the head. When so many kills were made, the commands run to their end, and what
they left is compared: weights byte by byte, episodes line by line, held-out records, training curves and results
without their times. The table goes to stdout, progress to stderr.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

HUNG = 300.0  # seconds that a command may take to end after one of its processes was killed, beside those it needs
LONGEST = 3600.0  # seconds that an undisturbed command may take
HELD = "is working in this folder"  # what a command says that finds another one's lease
TIMES = frozenset(
    (
        *("started", "finished", "date", "time", "command", "commit", "commits", "hardware", "cost"),
        *("seconds", "wall_seconds", "train_seconds", "control_seconds", "seconds_per_step", "samples_per_second"),
        *("energy_joules", "gpu_memory_gb", "memory_gb"),
    )
)
"""Fields of records that say when, how fast, where or by which command: two equal runs differ in them."""
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
HEAD = (
    "| job | kills | of these | starts | lost | doubled | differing | hung | other ends | minutes |\n"
    + "|---" * 10
    + "|"
)


# ---------------------------------------------------------------- commands and their processes


@dataclass
class Count:
    """What happened: kills by the kind of process, commands that had to be started again, and faults."""

    kills: collections.Counter[str] = field(default_factory=collections.Counter)
    starts: int = 0
    hung: int = 0
    wrong: list[str] = field(default_factory=list)
    begun: float = field(default_factory=time.monotonic)

    @property
    def total(self) -> int:
        return sum(self.kills.values())

    @property
    def minutes(self) -> float:
        return (time.monotonic() - self.begun) / 60

    def say(self, what: str) -> None:
        """Progress, to stderr."""
        rate = f"{self.total / max(self.minutes, 1e-3):.1f} a minute"
        print(f"{self.minutes:6.1f} min  {self.total} kills, {rate}  {what}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Started:
    """A command that runs in a session of its own, and the file that keeps what it prints."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def said(self) -> str:
        """The end of what it printed."""
        return self.log.read_text(encoding="utf-8", errors="replace")[-2000:]

    def ended(self, seconds: float) -> bool:
        """Whether it ends in so many seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        return self.process.returncode is not None

    def give_up(self) -> None:
        """End it and what it started."""
        for process in of_session(self.process.pid):
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.process.wait()


class Local:
    """Commands with their workers as processes of this machine."""

    options: tuple[str, ...] = ()

    def environment(self) -> dict[str, str]:
        return dict(os.environ)

    def start(self, line: str, out: Path, log: Path) -> Started:
        """Start a command; `OUT` in its line is the folder."""
        words = shlex.split(line.replace("OUT", str(out)))
        words += [] if words[0] == "train" else self.options
        words = [sys.executable, "-m", "la_reconvla", *words]
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as file:
            process = subprocess.Popen(words, stdout=file, stderr=file, start_new_session=True, env=self.environment())
        return Started(process, log)

    def victims(self, started: Started) -> dict[str, list[psutil.Process]]:
        """What may be killed now, by kind."""
        found = collections.defaultdict(list)
        for process in of_session(started.process.pid):
            found[kind(process, started.process.pid)].append(process)
        return found

    def killed(self, name: str) -> None:
        """A process of that kind was killed."""

    def mend(self) -> None:
        """Repair what a kill has left of the machinery, before a command is started."""

    def close(self) -> None:
        """End it."""


WEIGHTS = {"command": 1.0, "worker": 1.6, "helper": 0.4, "Ray worker": 1.4, "Ray node": 0.6, "Ray head": 0.5}
"""How likely a kind of process is to be killed, where there is one."""
SURVIVED = ("helper", "Ray worker", "Ray node")  # the command goes on without them, or may


NODE = {"num_cpus": 1, "object_store_memory": 150_000_000}


class Ray(Local):
    """Commands with their workers on a Ray cluster of two nodes, whose processes are children of this one."""

    options = ("--cluster", "auto")

    def __init__(self) -> None:
        self._cluster: Any = None
        self._headless = False
        self.mend()

    def environment(self) -> dict[str, str]:
        """`auto` is then this cluster, whatever others run here."""
        return {**os.environ, "RAY_ADDRESS": self._cluster.address}

    def victims(self, started: Started) -> dict[str, list[psutil.Process]]:
        """The command, workers that have begun, the second node and the head."""
        (second,) = self._cluster.worker_nodes
        raylet, gcs = second.all_processes["raylet"][0], self._cluster.head_node.all_processes["gcs_server"][0]
        found = super().victims(started)
        found["Ray node"], found["Ray head"] = ([psutil.Process(each.process.pid)] for each in (raylet, gcs))
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "ray::RayWorker" in " ".join(process.cmdline()):
                    found["Ray worker"].append(process)
        return found

    def killed(self, name: str) -> None:
        """A node is followed by a new one at once, a head by a new cluster before the next command."""
        if name == "Ray node":
            (second,) = self._cluster.worker_nodes
            self._cluster.remove_node(second, allow_graceful=False)
            patiently(lambda: self._cluster.add_node(**NODE))
        self._headless = self._headless or name == "Ray head"

    def mend(self) -> None:
        """A new cluster, if the head is gone."""
        from ray.cluster_utils import Cluster

        if self._headless:
            self.close()
        if self._cluster is None:
            head = {**NODE, "include_dashboard": False}
            self._cluster = patiently(lambda: Cluster(initialize_head=True, head_node_args=head))
            patiently(lambda: self._cluster.add_node(**NODE))

    def close(self) -> None:
        """End the cluster."""
        if self._cluster is not None:
            self._cluster.shutdown()
        self._cluster, self._headless = None, False


def patiently(start: Callable[[], Any]) -> Any:
    """What starts a node of Ray, which on a busy machine may take longer than Ray's 30 seconds: then once more."""
    for _ in range(9):
        before = set(psutil.Process().children())
        try:
            return start()
        except Exception as error:
            print(f"once more: {error}", file=sys.stderr, flush=True)
            for process in set(psutil.Process().children()) - before:
                process.kill()
    return start()


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
    """Which part of a run a process of its session is."""
    if process.pid == driver:
        return "command"
    try:
        words = " ".join(process.cmdline())
    except psutil.Error:
        return "helper"
    return "worker" if "spawn_main" in words or "forkserver" in words else "helper"


def strike(started: Started, place: Local, rng: np.random.Generator, count: Count) -> str:
    """Kill a random process of a command that runs; returns its kind, empty if it had just ended."""
    found = {name: processes for name, processes in place.victims(started).items() if processes}
    names = sorted(found)
    if not names:
        return ""
    weights = np.array([WEIGHTS[name] for name in names])
    name = str(rng.choice(names, p=weights / weights.sum()))
    victim = found[name][int(rng.integers(len(found[name])))]
    try:
        victim.kill()
    except psutil.NoSuchProcess:
        return ""
    count.kills[name] += 1
    place.killed(name)
    return name


def disturbed(
    line: str,
    folders: tuple[Path, Path],
    needs: float,
    kills: int,
    place: Local,
    rng: np.random.Generator,
    count: Count,
) -> bool:
    """Start a command and kill processes of it at random times of the seconds that it needs; says whether it is done.

    Args:
        line: of the command.
        folders: where it writes, and the file for what it prints.
        needs: seconds that it takes undisturbed.
        kills: how many are to be made.
        place: where its workers run.
        rng: of times and victims.
        count: what happens is added to it.
    """
    place.mend()
    started = place.start(line, *folders)
    count.starts += 1
    killed: list[str] = []
    # Early times more often than late ones: what earlier starts have finished is not done again.
    while count.total < kills and not started.ended(needs * rng.random() * rng.random()):
        if name := strike(started, place, rng, count):
            killed.append(name)
            count.say(f"killed a {name}: {line[:60]}")
        # Another kill before it ends only where it may go on, and then not always: a hang has to show.
        if name and (name not in SURVIVED or rng.random() < 0.5):
            break
    if not started.ended(HUNG + needs):
        count.hung += 1
        count.say(f"hangs: {line}")
        started.give_up()
    elif said := wrong_end(started.process.returncode, started.said, killed):
        count.wrong.append(said)
    return started.process.returncode == 0


def wrong_end(status: int, said: str, killed: Collection[str]) -> str:
    """What is wrong with how a command ended; empty if nothing.

    Right are 0, SIGKILL if it was killed itself, and an explained error if another process was killed or those of an
    earlier start still hold the folder.
    """
    if status == 0 or (status == -signal.SIGKILL and "command" in killed):
        return ""
    explained = status == 2 and "error: " in said and "Traceback" not in said
    if explained and (set(killed) - {"command"} or HELD in said):
        return ""
    return f"status {status} after kills of {', '.join(killed) or 'nothing'}: {said}"


def finish(line: str, out: Path, log: Path, place: Local, seconds: float = LONGEST) -> float:
    """Run a command to its end; returns the seconds it took. What an earlier one left running has to end by itself.

    Raises:
        RuntimeError: it fails, or takes longer than `seconds`, or the folder stays held.
    """
    place.mend()
    begun = time.monotonic()
    for _ in range(60):
        started = place.start(line, out, log)
        if not started.ended(seconds):
            started.give_up()
            raise RuntimeError(f"hangs undisturbed: {line}")
        if started.process.returncode == 0:
            return time.monotonic() - begun
        if HELD not in started.said:
            raise RuntimeError(f"failed undisturbed: {line}\n{started.said}")
        time.sleep(1)
    raise RuntimeError(f"the folder stays held: {line}")


# ---------------------------------------------------------------- what they leave


def content(folder: Path) -> dict[str, Any]:
    """What commands left in a folder, without what is a matter of time; a file that cannot be read is its error."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        if path.name.startswith(".") or not path.is_file():
            continue
        try:
            read = read_file(path)
        except (OSError, ValueError) as error:
            read = f"cannot be read: {error}"
        if read is not None:
            found[str(path.relative_to(folder))] = read
    return found


def read_file(path: Path) -> Any:
    """Its content in a form that can be compared; None for others: pictures, the report, copies of curves."""
    if path.suffix in (".safetensors", ".npy"):
        return hashlib.sha256(path.read_bytes()).hexdigest()
    if path.suffix == ".hdf5":
        return dict(arrays(path))
    if path.suffix == ".jsonl":
        lines = [timeless(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
        return sorted(json.dumps(line, sort_keys=True) for line in lines) if path.name == "episodes.jsonl" else lines
    if path.name in ("held_out.json", "results.json", "evaluation.json", "config.json", "train.json"):
        return timeless(json.loads(path.read_text(encoding="utf-8")))
    return None


def arrays(path: Path) -> Iterator[tuple[str, str]]:
    """The hashes of all data sets of an HDF5 file."""
    import h5py

    with h5py.File(path) as file:
        names: list[str] = []
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        for name in names:
            yield name, hashlib.sha256(np.asarray(file[name]).tobytes()).hexdigest()


def timeless(value: Any, but: Collection[str] = TIMES) -> Any:
    """A value of JSON without the fields `but`, at any depth."""
    if isinstance(value, dict):
        return {key: timeless(item, but) for key, item in value.items() if key not in but}
    return [timeless(item, but) for item in value] if isinstance(value, list) else value


@dataclass(frozen=True)
class Difference:
    """What is wrong with what was left, against what an undisturbed run left."""

    lost: tuple[str, ...] = ()
    doubled: tuple[str, ...] = ()
    differing: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.lost or self.doubled or self.differing)


def compared(ours: dict[str, Any], theirs: dict[str, Any]) -> Difference:
    """Lost files and episodes, episodes recorded twice, and files that differ, or that only `ours` has."""
    lost, twice, differing = sorted(set(theirs) - set(ours)), [], sorted(set(ours) - set(theirs))
    for name in sorted(set(ours) & set(theirs)):
        if name.endswith("episodes.jsonl") and isinstance(ours[name], list):
            here, there = starts(ours[name]), starts(theirs[name])
            twice += [f"{name}: {start}" for start, times in here.items() if times > 1]
            lost += [f"{name}: {start}" for start in there - here]
        if ours[name] != theirs[name]:
            differing.append(name)
    return Difference(tuple(lost), tuple(twice), tuple(differing))


def starts(lines: Sequence[str]) -> collections.Counter[str]:
    """How often each start has an episode."""
    return collections.Counter(json.dumps(json.loads(line)["start"]) for line in lines)


# ---------------------------------------------------------------- the table


@dataclass
class Outcome:
    """A row of the table."""

    job: str
    count: Count
    difference: Difference = Difference()
    fault: str = ""  # what kept the job from its end

    @property
    def faults(self) -> list[str]:
        """All that is wrong."""
        found = self.difference
        said = [f"{kind}: {name}" for kind, names in vars(found).items() for name in names]
        return [*said, *self.count.wrong, *([self.fault] if self.fault else []), *["a command hung"] * self.count.hung]

    def __str__(self) -> str:
        kinds = ", ".join(f"{n} {name}s" for name, n in self.count.kills.most_common())
        found = [str(len(names)) for names in vars(self.difference).values()] if not self.fault else ["?"] * 3
        cells = [self.job, self.count.total, kinds, self.count.starts, *found, self.count.hung, len(self.count.wrong)]
        return f"| {' | '.join(map(str, cells))} | {self.count.minutes:.0f} |"


def torment(job: str, lines: Sequence[str], kills: int, out: Path, place: Local, seed: int = 0) -> Outcome:
    """Run the commands undisturbed, then with so many kills, and compare; what fails is part of the outcome.

    Args:
        job: its name.
        lines: the commands.
        kills: how many.
        out: an empty folder.
        place: where workers run.
        seed: of times and victims.
    """
    outcome = Outcome(job, Count())
    count, rng = outcome.count, np.random.default_rng(seed)
    calm, hard, log = out / "undisturbed", out / "killed", out / "log.txt"
    try:
        count.say(f"undisturbed: {job}")
        took = [finish(line, calm, log, place) for line in lines]
        count.say(f"took {sum(took):.0f} s")
        while count.total < kills and not outcome.faults:
            shutil.rmtree(hard, ignore_errors=True)  # finished before enough kills were made: once more from the start
            for line, seconds in zip(lines, took, strict=True):
                while count.total < kills and not disturbed(line, (hard, log), seconds, kills, place, rng, count):
                    pass
                finish(line, hard, log, place, HUNG + seconds)
            count.say("compared")
            outcome.difference = compared(content(hard), content(calm))
    except Exception as error:  # the table is printed all the same
        outcome.fault = f"{type(error).__name__}: {error}"
    return outcome


def main() -> None:
    """Parse the options, make the kills, print a row a job; ends with 1 if anything is wrong."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--kills", type=int, default=100, help="of each job")
    options.add_argument("--job", choices=JOBS, nargs="+", default=list(JOBS))
    options.add_argument("--ray", action="store_true", help="workers on a Ray cluster of two nodes, started here")
    options.add_argument("--seed", type=int, default=0, help="of times and victims")
    options.add_argument("--out", type=Path, default=Path("runs/kills"))
    asked = options.parse_args()
    faults = 0
    print(HEAD, flush=True)
    for job in asked.job:
        place = Ray() if asked.ray else Local()
        shutil.rmtree(asked.out / job, ignore_errors=True)
        try:
            outcome = torment(
                f"{job}, Ray" if asked.ray else job, JOBS[job], asked.kills, asked.out / job, place, asked.seed
            )
        finally:
            place.close()
        print(outcome, flush=True)
        for fault in outcome.faults:
            print(f"  {fault}", file=sys.stderr)
        faults += len(outcome.faults)
    raise SystemExit(bool(faults))


if __name__ == "__main__":
    main()
