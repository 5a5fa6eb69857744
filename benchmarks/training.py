"""What does training gain by keeping freed memory? Run: python benchmarks/training.py --rounds 40

Two processes train the same policy on the same batches, one of them after `la_reconvla.processes.keep_memory`. They
take turns, one step each, in an order that changes, so that what else the machine does falls on both alike. Their
losses must be equal to the bit. Times are milliseconds of the clock and of CPU; page faults are counted. Prints a table
and a line of JSON a case.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
import tyro

from la_reconvla.checkpoint import PolicyConfig
from la_reconvla.conditions import condition
from la_reconvla.contracts import ACTION_DIM, Batch
from la_reconvla.method.actions import ActionBins
from la_reconvla.processes import keep_memory
from la_reconvla.randomness import generator
from la_reconvla.study.presets import preset
from la_reconvla.study.tables import TextTable
from la_reconvla.train import backward, optimizer_for

WARMUP = 3


@dataclass(frozen=True)
class Options:
    """Which sizes and arms; `keep` is for the processes that this starts."""

    sizes: tuple[str, ...] = ("quick", "small")
    arms: tuple[str, ...] = ("C1", "C4")
    rounds: int = 40
    threads: int = 1
    keep: bool | None = None


def serve(size: str, arm: str, keep: bool, threads: int) -> None:
    """One step for each line that comes in; what it took and its loss go out."""
    torch.set_num_threads(threads)
    if keep:
        keep_memory()
    config = preset(size)
    b, told = config.backbone, condition(arm).with_head(config.head, config.denoiser)
    bins = ActionBins((-1.0,) * ACTION_DIM, (1.0,) * ACTION_DIM)
    facts = {"quality": "fast", "image_size": b.image_size, "data_hash": "", "train_starts": ()}
    policy = PolicyConfig.of(told, seed=0, backbone=b, bins=bins, **facts).build().train()
    optimizer, scaler = optimizer_for(policy, 1e-4, 0.01), torch.amp.GradScaler("cpu", enabled=False)
    for step, _ in enumerate(sys.stdin):
        rng, count = np.random.default_rng(step), config.train.batch_size
        images = rng.integers(0, 256, (count, 3, b.image_size, b.image_size), dtype=np.uint8)
        batch = Batch(
            images=torch.from_numpy(images),
            instructions=["pick up the black bowl next to the plate and place it on the plate"] * count,
            actions=torch.from_numpy(rng.uniform(-1, 1, (count, b.chunk, ACTION_DIM)).astype(np.float32)),
            valid=torch.ones(count, b.chunk, dtype=torch.bool),
        )
        wall, cpu = time.perf_counter(), time.process_time()
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        found = backward(policy, batch, told, 1, generator(0, "mask", step), scaler, torch.float32, step)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        took = {"wall": 1000 * (time.perf_counter() - wall), "cpu": 1000 * (time.process_time() - cpu)}
        took["faults"] = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
        print(json.dumps({**took, "loss": found["loss"]}), flush=True)


def compare(size: str, arm: str, rounds: int, threads: int) -> dict[str, object]:
    """Medians of both, and the median of the ratios of each round."""
    seen: dict[bool, list[dict[str, float]]] = {True: [], False: []}
    command = [sys.executable, __file__, "--sizes", size, "--arms", arm, "--threads", str(threads)]
    processes = {
        keep: subprocess.Popen(
            [*command, "--keep", str(keep)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for keep in seen
    }
    rng = np.random.default_rng(0)
    for _ in range(WARMUP + rounds):
        for keep in rng.permutation([True, False]).tolist():
            child = processes[keep]
            assert child.stdin
            assert child.stdout
            child.stdin.write("step\n")
            child.stdin.flush()
            seen[keep].append(json.loads(child.stdout.readline()))
    for child in processes.values():
        assert child.stdin
        child.stdin.close()
        child.wait()
    assert [s["loss"] for s in seen[True]] == [s["loss"] for s in seen[False]], "the two trained differently"
    before, after = seen[False][WARMUP:], seen[True][WARMUP:]
    found: dict[str, object] = {"size": size, "arm": arm, "rounds": rounds, "threads": threads}
    for name in ("wall", "cpu", "faults"):
        found[f"{name}_before"] = median(s[name] for s in before)
        found[f"{name}_after"] = median(s[name] for s in after)
    for name in ("wall", "cpu"):
        found[f"{name}_ratio"] = median(b[name] / a[name] for a, b in zip(before, after, strict=True))
    return found


def main(options: Options) -> None:
    if options.keep is not None:
        serve(options.sizes[0], options.arms[0], options.keep, options.threads)
        return
    cases = [compare(size, arm, options.rounds, options.threads) for size in options.sizes for arm in options.arms]
    header = ("size", "arm", "ms before", "ms after", "ratio", "CPU ms before", "CPU ms after", "ratio", "faults")
    names = ("wall_before", "wall_after", "wall_ratio", "cpu_before", "cpu_after", "cpu_ratio")
    rows = []
    for c in cases:
        shown = (f"{c[n]:.3f}" if n.endswith("ratio") else f"{c[n]:.1f}" for n in names)
        rows.append((str(c["size"]), str(c["arm"]), *shown, f"{c['faults_before']:.0f} to {c['faults_after']:.0f}"))
    print(TextTable("A training step, freed memory given back or kept", header, rows).markdown())
    for case in cases:
        print(json.dumps(case))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
