"""How fast do the arms train on this machine? Run: python benchmarks/training.py --sizes small --rounds 20

All arms of a preset take turns, one step each, in a changing order, so that other load falls on all alike. Prints a
table and a line of JSON per row: samples per second by the clock, median and 5th to 95th percentile; milliseconds of
CPU per step, which other programs disturb less; how long a step is beside one of the first arm, and
beside one of the same arm here. Beside this package (here) there is, if asked for,

- another checkout of it, with ``--other PATH``; its losses must be equal to 1e-4;
- this package without `la_reconvla.processes.keep_memory`, with ``--trimmed``; its losses must be equal to the bit.

``--set batch_size=64 patch=16`` changes numbers of the presets, as `la_reconvla.study.presets.StudyConfig.changed`.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import tyro

from la_reconvla.contracts import Batch
from la_reconvla.method.actions import ActionBins
from la_reconvla.processes import keep_memory
from la_reconvla.randomness import generator
from la_reconvla.study.presets import preset
from la_reconvla.text_table import TextTable
from la_reconvla.training.checkpoint import PolicyConfig
from la_reconvla.training.gradient import backward

try:
    from la_reconvla.training.optimizers import optimizers_for
except ModuleNotFoundError:  # another checkout, from before 2026-11-28
    from la_reconvla.training.loop import optimizer_for as optimizers_for  # pyright: ignore

WARMUP = 3
ACTIONS = 7
HERE, OTHER, TRIMMED = "here", "other", "trimmed"
INSTRUCTION = "pick up the black bowl next to the plate and place it on the plate"


@dataclass(frozen=True)
class Options:
    """What is measured; `serve` is for the processes that this starts."""

    sizes: tuple[str, ...] = ("quick", "small")
    arms: tuple[str, ...] = ("C1", "C2", "C4", "R1")
    set: tuple[str, ...] = ()
    rounds: int = 20
    threads: int = 1
    other: Path | None = None
    trimmed: bool = False
    serve: str | None = None


@dataclass(frozen=True)
class Worker:
    """One process: a variant of the package, and the arms of a preset that it trains."""

    variant: str
    size: str
    arms: tuple[str, ...]
    set: tuple[str, ...]
    threads: int

    def start(self, other: Path | None) -> subprocess.Popen[str]:
        """The process, which answers the name of an arm with one step."""
        own = {"PYTHONPATH": str(other / "src")} if other and self.variant == OTHER else {}
        return subprocess.Popen(
            [sys.executable, __file__, "--serve", json.dumps(asdict(self))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            env={**os.environ, **own},
        )

    def serve(self) -> None:
        """One step of each arm that comes in; what it took and its loss go out."""
        torch.set_num_threads(self.threads)
        if self.variant != TRIMMED:
            keep_memory()
        changes = {name: parsed(value) for name, value in (part.split("=", 1) for part in self.set)}
        config: Any = preset(self.size).changed(**changes)
        steps = {arm: training(config, arm) for arm in self.arms}
        for line in sys.stdin:
            print(json.dumps(next(steps[line.strip()])), flush=True)


def training(config: Any, arm: str) -> Iterator[dict[str, float]]:
    """An optimizer step of the arm each time, and what it took: seconds, page faults, the loss."""
    b, told = config.backbone, config.arm(arm)
    bins = ActionBins((-1.0,) * ACTIONS, (1.0,) * ACTIONS)
    facts: Any = {"quality": "fast", "image_size": b.image_size, "data_hash": "", "train_starts": ()}
    policy = PolicyConfig.of(told, seed=0, backbone=b, bins=bins, **facts).build().train()
    kind = {"kind": own} if (own := getattr(config.train, "optimizer", None)) else {}
    optimizer, scaler = optimizers_for(policy, 1e-4, 0.01, **kind), torch.amp.GradScaler("cpu", enabled=False)
    for step in count():
        batch = drawn(step, config.train.batch_size, b.image_size, b.chunk, b.wrist)
        draws, noise = generator(0, "mask", step), generator(0, "noise", step)
        wall, cpu = time.perf_counter(), time.process_time()
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        found = backward(policy, batch, told, 1, draws, scaler, torch.float32, 0.0, None, noise)
        torch.nn.utils.clip_grad_norm_(policy.parameters(), config.train.clip)
        optimizer.step()
        optimizer.zero_grad()
        took = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        took["faults"] = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
        yield {**took, "loss": found["loss"], "batch": len(batch.images)}


def parsed(value: str) -> Any:
    """A number, or the text itself."""
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


def drawn(step: int, size: int, side: int, chunk: int, wrist: bool) -> Batch:
    """A batch of noise, equal for equal steps; boxes are there for arms that are told."""
    rng = np.random.default_rng(step)
    pictures = [torch.from_numpy(rng.integers(0, 256, (size, 3, side, side), dtype=np.uint8)) for _ in range(1 + wrist)]
    return Batch(
        images=pictures[0],
        wrist=pictures[1] if wrist else None,
        instructions=[INSTRUCTION] * size,
        actions=torch.from_numpy(rng.uniform(-1, 1, (size, chunk, ACTIONS)).astype(np.float32)),
        valid=torch.ones(size, chunk, dtype=torch.bool),
        gaze=torch.tensor([[0.3, 0.4, 0.5, 0.6]] * size),
    )


def measure(workers: list[Worker], rounds: int, other: Path | None) -> dict[tuple[str, str], list[dict[str, float]]]:
    """What the steps of all arms and variants took, in turn, without the first ones."""
    processes = {worker.variant: worker.start(other) for worker in workers}
    seen = {(arm, worker.variant): [] for worker in workers for arm in worker.arms}
    rng, keys = np.random.default_rng(0), list(seen)
    for _ in range(WARMUP + rounds):
        for turn in rng.permutation(len(keys)):
            arm, variant = keys[turn]
            child = processes[variant]
            assert child.stdin
            assert child.stdout
            child.stdin.write(f"{arm}\n")
            child.stdin.flush()
            seen[arm, variant].append(json.loads(child.stdout.readline()))
    for child in processes.values():
        assert child.stdin
        child.stdin.close()
        child.wait()
    return {key: steps[WARMUP:] for key, steps in seen.items()}


def longer(steps: list[dict[str, float]], than: list[dict[str, float]], clock: str = "wall") -> float:
    """Median over the rounds of how long a step is beside another."""
    return median(a[clock] / b[clock] for a, b in zip(steps, than, strict=True))


def compare(size: str, options: Options) -> list[dict[str, Any]]:
    """All arms and variants of one preset."""
    variants = [HERE, *([OTHER] if options.other else []), *([TRIMMED] if options.trimmed else [])]
    workers = [Worker(variant, size, options.arms, options.set, options.threads) for variant in variants]
    seen = measure(workers, options.rounds, options.other)
    rows = []
    for arm, variant in sorted(seen, key=lambda key: options.arms.index(key[0])):
        steps, first, here = seen[arm, variant], seen[options.arms[0], variant], seen[arm, HERE]
        apart = max(abs(a["loss"] / b["loss"] - 1) for a, b in zip(steps, here, strict=True))
        assert apart <= (1e-4 if variant == OTHER else 0), f"{variant} trains {arm} differently: {apart:.1e}"
        low, middle, high = np.percentile([step["batch"] / step["wall"] for step in steps], (5, 50, 95))
        row = {"size": size, "arm": arm, "variant": variant, "rounds": len(steps), "threads": options.threads}
        row |= {"samples_per_second": float(middle), "p5": float(low), "p95": float(high)}
        row |= {"cpu_ms": 1000 * median(step["cpu"] for step in steps), "loss_apart": apart}
        row |= {"over_first": longer(steps, first), "over_first_cpu": longer(steps, first, "cpu")}
        row |= {"over_here": longer(steps, here), "over_here_cpu": longer(steps, here, "cpu")}
        rows.append({**row, "faults": median(step["faults"] for step in steps)})
    return rows


def main(options: Options) -> None:
    if options.serve is not None:
        given = json.loads(options.serve)
        Worker(**{**given, "arms": tuple(given["arms"]), "set": tuple(given["set"])}).serve()
        return
    rows = [row for size in options.sizes for row in compare(size, options)]
    first = options.arms[0]
    header = ("size", "arm", "package", "samples/s", "p5 to p95", "CPU ms", f"over {first}", "CPU", "over here", "CPU")
    header += ("faults",)
    ratios = ("over_first", "over_first_cpu", "over_here", "over_here_cpu")
    cells = [
        (
            *(r["size"], r["arm"], r["variant"], f"{r['samples_per_second']:.1f}", f"{r['p5']:.1f} to {r['p95']:.1f}"),
            *(f"{r['cpu_ms']:.0f}", *(f"{r[name]:.2f}" for name in ratios), f"{r['faults']:.0f}"),
        )
        for r in rows
    ]
    print(TextTable("A training step", header, cells).markdown())
    for row in rows:
        print(json.dumps(row))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
