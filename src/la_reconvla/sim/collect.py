"""Record demonstrations of the scripted expert, in worker processes, so that a kill costs nothing that was finished.

Work is cut into *scenes*: one start for official placements, two (one image, two targets) for wide ones. A scene counts
only if all its episodes succeed without a second grasp, so that both targets stay equally frequent. For each task the
scenes are tried in order of their number until enough have succeeded, and never one more: which episodes a data set
holds depends on its configuration alone, not on the number of workers or on when a run was interrupted.

Hence a collection can grow. Asked for more episodes, a finished one is taken apart into its shards, and goes on as one
that was interrupted: what a new collection of that many would hold comes out, and only what is missing is recorded.
What is where in the folder: `la_reconvla.sim.collection_folder`.
"""

from __future__ import annotations

import contextlib
import functools
import math
import multiprocessing
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from la_reconvla.data.hdf5_layout import SHARDS
from la_reconvla.data.hdf5_writer import FileHeader, write_file
from la_reconvla.errors import UserError
from la_reconvla.processes import become_worker, explain_death
from la_reconvla.progress import Bar, progress
from la_reconvla.sim.collection_config import CollectConfig
from la_reconvla.sim.collection_folder import (
    SUMMARY,
    Summary,
    TaskStatus,
    claim_folder,
    finished_episodes,
    merge_shards,
    noise_seed,
    read_status,
    read_summary,
    shard_path,
    take_apart,
)
from la_reconvla.sim.env import RolloutPolicy
from la_reconvla.sim.machine import default_workers
from la_reconvla.sim.recording import RecordableEnv, ScriptedExpert, record_episode
from la_reconvla.sim.recording_setup import LiberoSetup, RecordingSetup
from la_reconvla.storage import locked, write_json

SPARE = 1.2  # scenes prepared for each one needed


def collect(config: CollectConfig, setup: RecordingSetup | None = None) -> Summary:
    """Record demonstrations, resume an interrupted collection, or add to a finished one.

    Args:
        config: what to record.
        setup: what to record with; by default LIBERO and the scripted expert.

    Returns:
        What the folder holds now.

    Raises:
        UserError: unknown suite or task, a folder of another configuration or with more episodes, too little space, no
            OpenGL, a task that the expert cannot do, or a worker that died. What was finished stays, and the same
            command goes on.
        KeyboardInterrupt: on Ctrl-C, after the running episodes were finished.
    """
    setup = setup or LiberoSetup()
    headers = {task: setup.header(config, task) for task in config.tasks}
    if finished_episodes(config.out) < config.demos:
        setup.check(config)
    with locked(config.out):
        claim_folder(config)
        if finished_episodes(config.out) < config.demos:
            if (config.out / SUMMARY).exists():
                take_apart(config, headers)
            _record_all(config, setup, headers)
        shutil.rmtree(config.out / SHARDS, ignore_errors=True)
        return read_summary(config.out)


# ---------------------------------------------------------------- the parent


def _record_all(config: CollectConfig, setup: RecordingSetup, headers: dict[int, FileHeader]) -> None:
    begun = time.monotonic()
    statuses = [read_status(config, task) for task in config.tasks]
    size = config.scene_episodes
    total, done = config.demos * len(statuses), size * sum(status.successes for status in statuses)
    with progress("Collecting", total=total, unit="episodes", done=done) as bar:
        if done < total:
            with _pool(config, setup, headers, total - done) as (pool, workers):
                _prepare(statuses, pool, bar)
                _run(config, statuses, pool, workers, bar)
    merge_shards(config, headers, statuses, (time.monotonic() - begun) / 60)


def _prepare(statuses: Sequence[TaskStatus], pool: ProcessPoolExecutor, bar: Bar) -> None:
    """Make the scenes that are needed, and some more in place of those that will fail."""
    unfinished = [status for status in statuses if status.successes < status.needed]
    others = set(multiprocessing.active_children())
    bar.advance(0, "preparing scenes")
    try:
        jobs = [(pool.submit(_prepare_scenes, status.task, _upcoming(status)), status.task) for status in unfinished]
        for job, task in jobs:
            _result(job, f"preparing the scenes of task {task}")
    except KeyboardInterrupt:
        for worker in set(multiprocessing.active_children()) - others:
            worker.terminate()  # this may take minutes, and what was made is kept
        raise


def _upcoming(status: TaskStatus) -> range:
    """The scenes that are probably still to be tried."""
    return range(status.lowest, status.lowest + math.ceil(SPARE * (status.needed - status.successes)))


def _run(
    config: CollectConfig, statuses: Sequence[TaskStatus], pool: ProcessPoolExecutor, workers: int, bar: Bar
) -> None:
    """Keep the workers busy, a job each: jobs that were handed out cannot be taken back when a run is interrupted."""
    running: dict[Future[str | None], tuple[TaskStatus, int]] = {}
    while True:
        for status in statuses:
            while len(running) < workers and (number := status.next()) is not None:
                running[pool.submit(_record_scene, status.task, number)] = (status, number)
                status.running.add(number)
        if not running:
            return
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            status, number = running.pop(future)
            status.running.discard(number)
            failure = _result(future, f"scene {number} of task {status.task}")
            status.solved[number] = failure is None
            failed = sum(len(s.solved) - s.successes for s in statuses)
            left_out = f", {failed} scenes failed" if failed else ""
            bar.advance(0 if failure else config.scene_episodes, f"task {status.task}{left_out}")
            if status.hopeless():
                raise UserError(
                    f"task {status.task} of {config.suite}: only {status.successes} of {len(status.solved)} scenes "
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
    config: CollectConfig, setup: RecordingSetup, headers: dict[int, FileHeader], episodes: int
) -> Iterator[tuple[ProcessPoolExecutor, int]]:
    """Spawned processes (a forked OpenGL context does not work), never more than there are episodes to record."""
    workers = min(config.workers or default_workers(), episodes)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _start_worker, (config, setup, headers)) as pool:
        try:
            yield pool, workers
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


# ---------------------------------------------------------------- the workers


@dataclass(eq=False)
class _Worker:
    """What a worker process keeps from one scene to the next.

    The simulator is made by the first job that needs it: what goes wrong in a job reaches the parent in words, what
    goes wrong while a worker starts only breaks the pool.
    """

    config: CollectConfig
    setup: RecordingSetup
    headers: dict[int, FileHeader]

    @functools.cached_property
    def env(self) -> RecordableEnv:
        return self.setup.env(self.config)

    @functools.cached_property
    def expert(self) -> ScriptedExpert:
        return self.setup.expert()

    @functools.cached_property
    def learner(self) -> RolloutPolicy | None:
        return None if self.config.learner is None else self.config.learner.build()


_worker: _Worker | None = None


def _start_worker(config: CollectConfig, setup: RecordingSetup, headers: dict[int, FileHeader]) -> None:
    global _worker
    become_worker()
    _worker = _Worker(config, setup, headers)


def _prepare_scenes(task: int, scenes: range) -> None:
    assert _worker is not None, "runs in a worker process"
    _worker.setup.prepare(_worker.config, task, scenes)


def _record_scene(task: int, number: int) -> str | None:
    """Record what is missing of a scene. Returns why it failed, or None."""
    assert _worker is not None, "runs in a worker process"
    config = _worker.config
    for i, start in enumerate(_worker.setup.scene(config, task, number)):
        attempt = number * config.scene_episodes + i
        shard = shard_path(config.out, task, attempt)
        if shard.exists():
            continue
        result = record_episode(
            _worker.env,
            _worker.expert,
            start,
            names=_worker.setup.names(config, task) if config.maps else (),
            frame_stride=config.frame_stride,
            noise=config.noise,
            noise_memory=config.noise_memory,
            seed=noise_seed(config, start.id, attempt),
            learner=_worker.learner,
            blunder=config.begins_with_a_mistake(number),
        )
        if isinstance(result, str):
            write_json(shard.with_suffix(".json"), {"start_id": start.id, "reason": result})
            return result
        write_file(shard, _worker.headers[task], [result])
    return None
