"""How often the scripted expert, or a demonstration replayed blindly, solves LIBERO's tasks.

    python benchmarks/expert.py --suite libero_spatial --states 0-49 --workers 1 --out results.jsonl
    python benchmarks/expert.py --tasks 0 1 2 --placement wide --states 0-29 --out wide.jsonl
    python benchmarks/expert.py --tasks 0 1 2 --placement wide --states 0-29 --replay --out replay.jsonl

One line per episode goes to the file of `--out`; run again, the same command does only what is missing there. With
`--replay` a start is answered with the actions that the expert took from a training start of the same task and target,
in turn one of `DEMONSTRATIONS`: what it still solves needs neither image nor words.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import time
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from rich.console import Console
from rich.table import Table
from scipy.stats import binomtest

from la_reconvla.data.starts import Start
from la_reconvla.sim.expert import Expert
from la_reconvla.sim.libero import LiberoEnv
from la_reconvla.sim.placements import target_position, wide_starts
from la_reconvla.sim.tasks import load_task, official_start
from la_reconvla.storage import append_jsonl, read_jsonl

DEMONSTRATIONS = 3
PERSISTENCE = 0.8  # of the noise from one step to the next


def episode(env: LiberoEnv, start: Start, noise: float = 0.0) -> tuple[dict[str, Any], np.ndarray]:
    """One episode of the expert, the release and the retreat included: its record and its clean actions."""
    began, rng = time.perf_counter(), np.random.default_rng(start.index)
    expert, disturbance = Expert(), np.zeros(6)
    env.reset(start)
    expert.reset(start, env)
    actions: list[np.ndarray] = []
    phases: Counter[str] = Counter()
    first: int | None = None
    while len(actions) < env.max_steps:
        action = expert.act()
        phases[expert.phase] += 1
        if expert.finished:
            break
        actions.append(action[0])
        disturbance = PERSISTENCE * disturbance + noise * np.sqrt(1 - PERSISTENCE**2) * rng.standard_normal(6)
        if env.step(action + np.append(disturbance, 0.0), stop_at_success=False).success and first is None:
            first = len(actions)
    record = _about(start) | {
        "success": env.success(),
        "clean": env.success() and expert.finished and not expert.replanned,
        "steps": len(actions),
        "success_step": first,
        "phases": dict(phases),
        "seconds": round(time.perf_counter() - began, 2),
    }
    return record, np.array(actions)


def replay(env: LiberoEnv, start: Start, actions: np.ndarray) -> dict[str, Any]:
    """One episode of recorded actions."""
    env.reset(start)
    outcome = env.step(actions)
    return _about(start) | {"success": outcome.success, "clean": outcome.success, "steps": outcome.steps}


@lru_cache(maxsize=64)
def demonstration(env: LiberoEnv, suite: str, task: int, placement: str, index: int, cache: Path) -> np.ndarray:
    """The expert's actions from a training start."""
    return episode(env, _start(suite, task, placement, "train", index, cache))[1]


def main() -> None:
    arguments = _parser().parse_args()
    low, high = (int(number) for number in arguments.states.split("-"))
    if arguments.placement == "wide":  # all at once: making scenes needs a simulator of its own
        for task in arguments.tasks:
            wide_starts(arguments.suite, task, "test", range(low, high + 1), arguments.cache)
            wide_starts(arguments.suite, task, "train", range(2 * DEMONSTRATIONS * arguments.replay), arguments.cache)
    done = {record["id"] for record in read_jsonl(arguments.out)}
    work = [(task, index) for task in arguments.tasks for index in range(low, high + 1)]
    shares = [(arguments, work[i :: arguments.workers], done) for i in range(arguments.workers)]
    with multiprocessing.get_context("spawn").Pool(arguments.workers) as pool:
        pool.starmap(_run, shares)
    wanted = set(work)
    _report([r for r in read_jsonl(arguments.out) if (r["task"], r["index"]) in wanted], arguments)


def _run(arguments: argparse.Namespace, share: list[tuple[int, int]], done: set[str]) -> None:
    with LiberoEnv() as env:
        for task, index in share:
            start = _start(arguments.suite, task, arguments.placement, "test", index, arguments.cache)
            if arguments.bowl:
                start = dataclasses.replace(start, target=f"akita_black_bowl_{arguments.bowl}")
            if start.id in done:
                continue
            if arguments.replay:
                shown = index % 2 + 2 * (index // 2 % DEMONSTRATIONS)
                actions = demonstration(env, start.suite, task, arguments.placement, shown, arguments.cache)
                record = replay(env, start, actions)
            else:
                record, _ = episode(env, start, arguments.noise)
            append_jsonl(arguments.out, record)


@lru_cache(maxsize=1024)
def _start(suite: str, task: int, placement: str, split: Any, index: int, cache: Path) -> Start:
    if placement == "official":
        return official_start(load_task(suite, task), index, split=split)
    return wide_starts(suite, task, split, [index], cache)[0]


def _about(start: Start) -> dict[str, Any]:
    return {"id": start.id, "task": start.task, "index": start.index, "target": start.target}


def _report(records: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    table = Table("task", "solved", "95 % (Wilson)", "without a second try", "steps (mean, most)", "seconds")
    for task in (*arguments.tasks, None):
        mine = [record for record in records if task is None or record["task"] == task]
        if not mine:
            continue
        solved, clean = (sum(record[key] for record in mine) for key in ("success", "clean"))
        interval = binomtest(solved, len(mine)).proportion_ci(method="wilson")
        steps = [record["steps"] for record in mine]
        table.add_row(
            "all" if task is None else str(task),
            f"{solved} of {len(mine)}",
            f"{interval.low:.1%} - {interval.high:.1%}",
            f"{clean}",
            f"{np.mean(steps):.0f}, {max(steps)}",
            f"{np.mean([record.get('seconds', np.nan) for record in mine]):.1f}",
        )
    console = Console(width=120)
    console.print(table)
    if arguments.placement == "wide":
        for task in arguments.tasks:
            indices = sorted(record["index"] for record in records if record["task"] == task)
            summary = placement_summary(wide_starts(arguments.suite, task, "test", indices, arguments.cache))
            console.print(f"task {task}: " + ", ".join(f"{name} {value:.3f}" for name, value in summary.items()))


def placement_summary(starts: Iterable[Start]) -> dict[str, float]:
    """How widely the targets of `starts` (of one suite) are spread.

    Returns:
        ``starts``; ``std_x``, ``std_y``, ``span_x``, ``span_y`` of the target's position, and the median and 5 %
        quantile of the distance between two starts' targets of the same task and name: ``apart_median``,
        ``apart_low`` (all in m).
    """
    groups: dict[tuple[int, str], list[Float[np.ndarray, "2"]]] = {}
    for start in starts:
        groups.setdefault((start.task, start.target), []).append(target_position(start)[:2])
    every = [np.array(points) for points in groups.values()]
    if not every:
        raise ValueError("a summary of placements needs at least one start")
    centred = np.concatenate([points - points.mean(axis=0) for points in every])
    pairs = [np.linalg.norm(p[:, None] - p[None], axis=-1)[np.triu_indices(len(p), 1)] for p in every]
    apart = np.concatenate(pairs) if sum(map(len, pairs)) else np.zeros(1)
    spans = np.max([np.ptp(points, axis=0) for points in every], axis=0)
    return {
        "starts": float(len(centred)),
        "std_x": float(centred[:, 0].std()),
        "std_y": float(centred[:, 1].std()),
        "span_x": float(spans[0]),
        "span_y": float(spans[1]),
        "apart_median": float(np.median(apart)),
        "apart_low": float(np.quantile(apart, 0.05)),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", default="libero_spatial")
    parser.add_argument("--tasks", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--states", default="0-49", help="first and last, inclusive")
    parser.add_argument("--placement", choices=("official", "wide"), default="official")
    parser.add_argument("--bowl", choices=("1", "2"), help="make this bowl the target, whatever the instruction says")
    parser.add_argument("--noise", type=float, default=0.0, help="standard deviation of the noise on actions")
    parser.add_argument("--replay", action="store_true", help="replay demonstrations blindly instead")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--cache", type=Path, default=Path("runs/placements"), help="where wide starts are kept")
    parser.add_argument("--out", type=Path, required=True)
    return parser


if __name__ == "__main__":
    main()
