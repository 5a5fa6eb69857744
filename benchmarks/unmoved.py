"""Did a change that should change nothing change something? Runs small studies and lists everything that they decided.

    python benchmarks/unmoved.py --out before.json            # on the commit before
    python benchmarks/unmoved.py --against before.json        # on the commit after; exits 1 and names what differs
    python benchmarks/unmoved.py --out after.json --against before.json --renamed    # after a change of names or shapes

Listed are the hash of every tensor of every cell, every episode and held-out frame, and every value of
``results.json``, but for times, dates, versions, machine and commit. ``--renamed`` compares the values of each episode
and of each other file as multisets, whatever their places are called, and counts the fractions among those that differ.
Equal bits need the same machine and the same number of threads.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from la_reconvla.episodes import read_episodes
from la_reconvla.training.tensors import load_tensors

PRESETS = ("smoke", "known-answer")
FREE = {
    *("seconds", "wall_seconds", "energy_joules", "samples_per_second", "started", "finished", "commit", "command"),
    *("versions", "hardware", "weights"),  # `weights` is a file's hash, and metadata may be in any order
}


def numbers(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """All leaves of JSON with their places, but for what may differ between two equal runs."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key not in FREE:
                yield from numbers(inner, f"{path}/{key}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from numbers(inner, f"{path}/{index}")
    else:
        yield path, value


def decided(folder: Path) -> dict[str, Any]:
    """What a finished study decided, by place."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.name == "model.safetensors":
            tensors, _ = load_tensors(path)
            found |= {f"{name}/{key}": [list(t.shape), _hash(t)] for key, t in sorted(tensors.items())}
        elif path.name in ("results.json", "held_out.json"):
            found |= dict(numbers(json.loads(path.read_text(encoding="utf-8")), name))
        elif path.name == "episodes.jsonl":
            records = sorted(read_episodes(path.parent), key=lambda record: record.start.id)
            found |= dict(numbers([record.to_json() for record in records], name))
        elif path.suffix == ".hdf5":
            found[name] = None  # that it is there; its content is that of the episodes
    return found


def _hash(tensor: Any) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()[:16]


def by_record(found: dict[str, Any]) -> dict[str, Counter[str]]:
    """How often each value occurs in each episode and in each other file."""
    records: dict[str, Counter[str]] = defaultdict(Counter)
    for place, value in found.items():
        record = re.match(r".*?\.(jsonl/\d+|json|safetensors|hdf5)", place)
        records[record[0] if record else place][json.dumps(value)] += 1
    return records


def differing(before: dict[str, Any], now: dict[str, Any], renamed: bool) -> Iterator[str]:
    """What differs, a line each."""
    if not renamed:
        for place in sorted(before.keys() | now.keys()):
            if before.get(place, "-") != now.get(place, "-"):
                yield f"{place}: {before.get(place, '-')} before, {now.get(place, '-')} now"
        return
    old, new = by_record(before), by_record(now)
    for record in sorted(old.keys() | new.keys()):
        only = old[record] - new[record], new[record] - old[record]
        if any(only):
            fractions = [sum("." in value and value[0] != '"' for value in side) for side in only]
            yield f"{record}: {fractions} fractions differ; only before {dict(only[0])}, only now {dict(only[1])}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where to write what was decided")
    parser.add_argument("--against", type=Path, help="what was decided before")
    parser.add_argument("--renamed", action="store_true", help="compare values, not the names of their places")
    parser.add_argument("--presets", nargs="+", default=PRESETS)
    options = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for preset in options.presets:
            command = "from la_reconvla.cli import main; main()"
            arguments = ["study", "run", preset, "--out", f"{folder}/{preset}"]
            subprocess.run([sys.executable, "-c", command, *arguments], check=True)
        found = decided(Path(folder))
    if options.out:
        options.out.write_text(json.dumps(found, indent=0, sort_keys=True), encoding="utf-8")
    print(f"{len(found)} things were decided")
    if options.against:
        before = json.loads(options.against.read_text(encoding="utf-8"))
        lines = list(differing(before, json.loads(json.dumps(found)), options.renamed))
        print(*(line[:2000] for line in lines[:40]), f"{len(lines)} differ", sep="\n")
        raise SystemExit(bool(lines))


if __name__ == "__main__":
    main()
