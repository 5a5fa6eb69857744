"""Did a change that should change nothing change something? Runs small studies and lists everything that they decided.

    python benchmarks/unmoved.py --out before.json            # on the commit before
    python benchmarks/unmoved.py --against before.json        # on the commit after; exits 1 and names what differs

Listed are the hash of every cell's weights, every episode and held-out frame, and every number of ``results.json``, but
for times, dates, versions, machine and commit. Equal bits need the same machine and the same number of threads.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
            found |= dict(numbers(json.loads(path.read_text()), name))
        elif path.name == "episodes.jsonl":
            lines = sorted(path.read_text().splitlines(), key=lambda line: json.loads(line)["start_id"])
            found |= dict(numbers([json.loads(line) for line in lines], name))
        elif path.suffix == ".hdf5":
            found[name] = None  # that it is there; its content is that of the episodes
    return found


def _hash(tensor: Any) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()[:16]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where to write what was decided")
    parser.add_argument("--against", type=Path, help="what was decided before")
    parser.add_argument("--presets", nargs="+", default=PRESETS)
    options = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for preset in options.presets:
            command = "from la_reconvla.cli import main; main()"
            arguments = ["ablate", "--preset", preset, "--out", f"{folder}/{preset}"]
            subprocess.run([sys.executable, "-c", command, *arguments], check=True)
        found = decided(Path(folder))
    if options.out:
        options.out.write_text(json.dumps(found, indent=0, sort_keys=True))
    print(f"{len(found)} things were decided")
    if options.against:
        before = json.loads(options.against.read_text())
        differ = [key for key in sorted(before.keys() | found.keys()) if before.get(key, "-") != found.get(key, "-")]
        for key in differ[:40]:
            print(f"  {key}: {before.get(key, '-')} before, {found.get(key, '-')} now")
        print(f"{len(differ)} differ")
        raise SystemExit(bool(differ))


if __name__ == "__main__":
    main()
