"""Does a damaged file ever end in anything but an explained error? Valid small files of every kind, damaged at random.

    python benchmarks/reliability.py --count 1000                      # the table of docs/results/reliability.md
    python benchmarks/reliability.py --count 50 --reader results       # one reader
    python benchmarks/reliability.py --reader results --only 17        # one input again, with its traceback

Each input is one valid file with one to three changes: flipped bits, bytes overwritten, cut off or put in; fields of
JSON and parts of HDF5 files removed, of another type, of another shape, huge, NaN, nested ten thousand deep. It is read
in a process that may take 2 GB more than it had, within 20 seconds, and the folder must be the same byte for byte
afterwards. A change is drawn from (reader, number) alone, so that any input can be made again.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import gc
import io
import multiprocessing
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from reliability_damage import (
    damage_bytes,
    damage_chunk,
    damage_hdf5,
    damage_header,
    damage_json,
    damage_line,
    damage_parquet,
    nest,
)

MEMORY, SECONDS = 2 << 30, 20
BATCH = 50  # inputs that one process reads; a new one costs a fork
Mutation = Callable[[Path, np.random.Generator], None]
OUTCOMES = ("read", "refused", "another exception", "hung", "written to", "process ended")
GOOD = OUTCOMES[:2]


@dataclass(frozen=True)
class Reader:
    """What is damaged and read.

    Attributes:
        make: writes valid files into a folder, or folders in it.
        read: all that the package reads of them.
        mutations: ways of damaging one of the files, by the end of its name; whatever else lies there stays whole.
    """

    make: Callable[[Path], None]
    read: Callable[[Path], Any]
    mutations: dict[str, tuple[Mutation, ...]]


def readers() -> dict[str, Reader]:
    """All of them, by name. Imported late: `--help` needs no torch."""
    import reliability_readers as r
    from reliability_rlds import damage_record, make_rlds

    json_, lines = (damage_json, damage_json, damage_bytes, nest), (damage_line, damage_line, damage_bytes, nest)
    tensors = (damage_header, damage_header, damage_bytes)
    hdf5 = {".hdf5": (damage_hdf5, damage_hdf5, damage_hdf5, damage_bytes)}
    parquet = (damage_parquet, damage_parquet, damage_parquet, damage_bytes)
    record = (damage_record, damage_record, damage_bytes)
    rlds = {".json": json_, ".tfrecord-00000-of-00002": record, ".tfrecord-00001-of-00002": record}
    lerobot = {".parquet": parquet, ".json": json_, ".jsonl": lines, ".mp4": (damage_bytes,)}
    return {
        "HDF5 demonstrations": Reader(r.make_demonstrations, r.read_demonstrations, hdf5),
        "HDF5, robomimic's names, encoded": Reader(r.make_others, r.read_demonstrations, hdf5),
        "LeRobotDataset 3.0, AV1": Reader(r.make_lerobot, r.read_lerobot, lerobot),
        "LeRobotDataset 2.1, PNG": Reader(r.make_lerobot_before, r.read_lerobot, lerobot),
        "RLDS": Reader(make_rlds, r.read_lerobot, rlds),
        "boxes.jsonl": Reader(r.make_boxes, r.read_boxes, {".jsonl": lines}),
        "run: config.json": Reader(r.make_run, r.read_run, {".json": json_}),
        "run: model.safetensors": Reader(r.make_run, r.read_run, {".safetensors": tensors}),
        "scenes.safetensors": Reader(r.make_scenes, r.read_scenes, {".safetensors": tensors}),
        "results.json": Reader(r.make_results, r.read_result, {".json": json_}),
        "held_out.json": Reader(r.make_held_out, r.read_frames, {".json": json_}),
        "episodes.jsonl": Reader(r.make_episodes, r.read_records, {".jsonl": lines}),
        "study.json": Reader(r.make_begun, r.read_study, {".json": json_}),
        "pictures": Reader(
            r.make_pictures, r.read_pictures, {".png": (damage_bytes, damage_chunk), ".jpg": (damage_bytes,)}
        ),
    }


# ---------------------------------------------------------------- one input, and many


def damage(reader: Reader, name: str, number: int, folder: Path) -> None:
    """Damage a copy of valid files: the same for the same `name` and `number`."""
    draws = np.random.default_rng((zlib.crc32(name.encode()), number))
    paths = sorted(p for p in folder.rglob("*") if p.suffix in reader.mutations)
    path = paths[int(draws.integers(len(paths)))]
    for _ in range(int(draws.choice([1, 1, 2, 3]))):
        ways = reader.mutations[path.suffix]
        ways[int(draws.integers(len(ways)))](path, draws)


def _content(folder: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


class Hung(BaseException):
    """Raised by the clock; no `except Exception` catches it."""


def attempt(reader: Reader, name: str, number: int, valid: Path, folder: Path) -> tuple[str, str]:
    """Read one damaged input: an outcome of `OUTCOMES`, and what was said."""
    from la_reconvla.errors import UserError

    shutil.copytree(valid, folder)
    damage(reader, name, number, folder)
    before = _content(folder)
    outcome, said = "read", ""

    def ring(*_: Any) -> None:
        raise Hung

    signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            reader.read(folder)
    except UserError as error:
        outcome, said = "refused", str(error)
        said.encode()  # a message that cannot be printed helps nobody
    except Hung:
        outcome = "hung"
    except Exception:
        outcome, said = "another exception", traceback.format_exc()
    finally:
        signal.alarm(0)
    if _content(folder) != before:
        outcome = "written to"
    shutil.rmtree(folder)
    return outcome, said


def _work(reader: Reader, name: str, numbers: range, valid: Path, pipe: Any) -> None:
    import torch

    # Threads of OpenMP do not survive a fork: a child that asks for them, as a run's configuration may, waits forever.
    torch.set_num_threads(1)
    torch.set_num_threads = lambda _: None
    free = psutil.Process().memory_info().vms + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (free, free))
    for number in numbers:
        pipe.send(("begun", number, "", 0))
        with tempfile.TemporaryDirectory() as scratch:
            outcome, said = attempt(reader, name, number, valid, Path(scratch) / "input")
        pipe.send((outcome, number, said, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))
    pipe.close()


@dataclass
class Found:
    """Counts of one reader, what was wrong, and the memory of its processes: at most, and when they began (bytes)."""

    counts: collections.Counter[str]
    wrong: list[tuple[int, str, str]]
    memory: int
    begun: int


def fuzz(name: str, numbers: range, reader: Reader | None = None) -> Found:
    """Read inputs `numbers` of a reader, in processes forked from this one."""
    reader, fork = reader or readers()[name], multiprocessing.get_context("fork")
    found = Found(collections.Counter(), [], 0, psutil.Process().memory_info().rss)
    with tempfile.TemporaryDirectory() as folder:
        reader.make(valid := Path(folder))
        reader.read(valid)  # what is valid is read; this also imports what reading needs
        at = numbers.start
        while at < numbers.stop:
            mine, theirs = fork.Pipe(duplex=False)
            batch = range(at, min(at + BATCH, numbers.stop))
            process = fork.Process(target=_work, args=(reader, name, batch, valid, theirs))
            gc.freeze()  # our garbage is not the child's to free: a video decoder would wait for threads of ours
            process.start()
            gc.unfreeze()
            theirs.close()
            running: int | None = None
            while mine.poll(3 * SECONDS):
                try:
                    outcome, number, said, memory = mine.recv()
                except EOFError:
                    break
                if outcome == "begun":
                    running = number
                    continue
                _count(found, outcome, number, said)
                found.memory, running, at = max(found.memory, memory), None, number + 1
            else:
                process.kill()
            process.join()
            if running is not None:
                _count(
                    found,
                    "hung" if process.exitcode == -signal.SIGKILL else "process ended",
                    running,
                    f"exit {process.exitcode}",
                )
                at = running + 1
            elif process.exitcode:
                raise RuntimeError(f"{name}: the process of inputs from {at} ended with {process.exitcode}")
    return found


def _count(found: Found, outcome: str, number: int, said: str) -> None:
    found.counts[outcome] += 1
    if outcome not in GOOD:
        found.wrong.append((number, outcome, said))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="inputs of each reader")
    parser.add_argument("--first", type=int, default=0, help="number of the first")
    parser.add_argument("--reader", default="", help="only readers whose name contains this")
    parser.add_argument("--only", type=int, help="one input, here in this process")
    args = parser.parse_args()
    chosen = {name: reader for name, reader in readers().items() if args.reader in name}
    if args.only is not None:
        for name, reader in chosen.items():
            with tempfile.TemporaryDirectory() as folder:
                (valid := Path(folder) / "valid").mkdir()
                reader.make(valid)
                print(name, *attempt(reader, name, args.only, valid, Path(folder) / "input"), sep="\n")
        return
    print("| files | inputs | " + " | ".join(OUTCOMES) + " | largest process |\n|" + "---|" * (len(OUTCOMES) + 3))
    wrong = []
    for name, reader in chosen.items():
        found = fuzz(name, range(args.first, args.first + args.count), reader)
        counts = " | ".join(str(found.counts[outcome]) for outcome in OUTCOMES)
        print(f"| {name} | {found.counts.total()} | {counts} | {found.memory / 1e9:.2f} GB |", flush=True)
        wrong += [(name, *each) for each in found.wrong]
    for name, number, outcome, said in wrong:
        print(f"\n{name} {number}: {outcome}\n{said[-1500:]}", file=sys.stderr)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
