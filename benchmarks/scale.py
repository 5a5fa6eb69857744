"""What breaks first when a study grows? Made-up episodes through the real files, statistics and report.

    python benchmarks/scale.py --episodes 1000 10000 100000 --out /tmp/scale --table docs/scale-numbers.md

A study of five arms with five seeds each on ten tasks; records have the fields and lengths of real ones, outcomes are
drawn. Each size runs in a process of its own: its CPU seconds in each step, which a busy machine hardly changes, and
the peak of its memory after it.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from la_reconvla import layout
from la_reconvla.analysis.build import build
from la_reconvla.analysis.declaration import DECLARED
from la_reconvla.analysis.evidence import Evidence, FloorEvidence
from la_reconvla.analysis.results import Arm, Study
from la_reconvla.conditions import CONDITIONS
from la_reconvla.episodes import EpisodeRecord, First, Label, Reached, StartName, append_episodes, read_episodes
from la_reconvla.report.episode_table import write_episode_table
from la_reconvla.report.write import write_report
from la_reconvla.storage import write_json
from la_reconvla.study.results import read_results
from la_reconvla.text_table import TextTable

ARMS, SEEDS, TASKS = ("C1", "C2", "C4", "R1", "R2"), range(5), range(10)
SAID = "pick up the black bowl between the plate and the ramekin and place it on the plate"
T = TypeVar("T")


def drawn(label: Label, starts: int, rate: float, rng: np.random.Generator) -> Iterator[EpisodeRecord]:
    """Episodes of one policy: `starts` of each task, every second one a success by luck that its arm shares."""
    for task in TASKS:
        for index in range(starts):
            luck = rng.random()
            reached = Reached(*(bool(luck < rate + more) for more in (0.4, -0.3, 0.2, 0.1, 0.0)), 0.01 + 0.1 * luck)
            first = First(("akita_black_bowl_1",), "akita_black_bowl_1", "akita_black_bowl_1" if luck < rate else None)
            start = StartName("libero_spatial", task, "wide", "test", index, SAID, "akita_black_bowl_1")
            steps = int(220 - 100 * (luck < rate))
            yield EpisodeRecord(label, start, bool(luck < rate), steps, 4.1, reached, "akita_black_bowl_1", first=first)


def folders(study: Path) -> Iterator[tuple[Path, Label, float]]:
    """Folder, label and success rate of every policy."""
    for number, arm in enumerate(ARMS):
        for seed in SEEDS:
            yield layout.cell(study, arm, seed), Label(arm, seed), 0.4 + 0.05 * number + 0.02 * seed


class Clock:
    """CPU seconds of each step, and the peak of the memory of the process after it, in MB."""

    def __init__(self):
        self.steps: dict[str, tuple[float, float]] = {}

    def __call__(self, name: str, step: Callable[[], T]) -> T:
        begun = time.process_time()
        found = step()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
        self.steps[name] = round(time.process_time() - begun, 2), round(peak)
        print(name, *self.steps[name], file=sys.stderr, flush=True)
        return found


def one(episodes: int, study: Path) -> dict[str, Any]:
    """Steps of a study with so many episodes, and the sizes of its files in bytes."""
    shutil.rmtree(study, ignore_errors=True)
    starts, clock, rng = episodes // (len(ARMS) * len(SEEDS) * len(TASKS)), Clock(), np.random.default_rng(0)
    made = list(folders(study))

    def write() -> None:
        for folder, label, rate in made:
            append_episodes(folder, drawn(label, starts, rate, rng))

    clock("write", write)
    found = clock("read", lambda: {label: read_episodes(folder) for folder, label, _ in made})
    of_arm = {arm: [r for label, records in found.items() if label.condition == arm for r in records] for arm in ARMS}
    tasks = {str(task): SAID for task in TASKS}
    about = Study(preset="made up", tasks=tasks, hypotheses=DECLARED.text, placement="wide")
    arms = [(Arm.of(CONDITIONS[arm]), Evidence(episodes=of_arm[arm])) for arm in ARMS]
    floors = [FloorEvidence("no_image", None, of_arm["C1"])]
    results = clock("statistics", lambda: build(about, arms, floors, conditions=[CONDITIONS[a] for a in ARMS]))
    clock("write results.json", lambda: write_json(study / layout.RESULTS, results))
    clock("read results.json", lambda: read_results(study / layout.RESULTS))
    page = clock("report", lambda: write_report(study))
    (study / layout.STUDY).touch()
    table = clock("table of episodes", lambda: write_episode_table(study, study / "episodes.csv"))
    files = {"episodes.jsonl, all": sum(p.stat().st_size for p in study.rglob(layout.EPISODES))}
    files |= {path.name: path.stat().st_size for path in (study / layout.RESULTS, page, table)}
    return {"episodes": episodes, "steps": clock.steps, "files": files}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--out", type=Path, required=True, help="folder for the made-up studies")
    parser.add_argument("--table", type=Path, help="Markdown file for the numbers")
    parser.add_argument("--one", action="store_true", help="one size, in this process")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(given.episodes[0], given.out)))
        return
    sizes = []
    for count in given.episodes:
        own = [sys.executable, __file__, "--one", "--episodes", str(count), "--out", str(given.out / str(count))]
        sizes.append(json.loads(subprocess.run(own, check=True, stdout=subprocess.PIPE).stdout))
    rows = [(n, *(f"{s['steps'][n][0]} s, {s['steps'][n][1]} MB" for s in sizes)) for n in sizes[0]["steps"]]
    rows += [(n, *(f"{s['files'][n] / 1e6:.2f} MB" for s in sizes)) for n in sizes[0]["files"]]
    table = TextTable("Measured", ("", *(f"{size['episodes']:,} episodes" for size in sizes)), rows)
    (given.table or given.out / "numbers.md").write_text(table.markdown() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
