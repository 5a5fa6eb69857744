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

import functools
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

from la_reconvla import layout
from la_reconvla.data.hdf5_layout import SHARDS
from la_reconvla.data.hdf5_writer import FileHeader, write_file
from la_reconvla.errors import UserError
from la_reconvla.execution.current import executor
from la_reconvla.execution.jobs import Files, Job, Needs
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
from la_reconvla.sim.policies import NeedsFiles
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
            workers = config.workers or executor().workers or default_workers()
            learner = config.learner.files if isinstance(config.learner, NeedsFiles) else ()
            start = Job("a worker", _start_worker, (config, setup, headers), learner, (Files(config.out, ()),))
            bar.advance(0, "preparing scenes")
            jobs = _Jobs(config, statuses)
            with closing(executor().map(jobs.all(), [start] * min(workers, total - done), Needs(), "worker")) as ended:
                for job, value in ended:
                    jobs.took(job, value, bar)
    merge_shards(config, headers, statuses, (time.monotonic() - begun) / 60)


class _Jobs:
    """What is to be done for a collection, and what has been."""

    def __init__(self, config: CollectConfig, statuses: Sequence[TaskStatus]) -> None:
        self._config, self._statuses = config, statuses
        self._scenes = Files(config.out / SHARDS / layout.PLACEMENTS)
        self._preparing: set[Job] = set()
        self._recording: dict[Job, tuple[TaskStatus, int]] = {}

    def all(self) -> Iterator[Job | None]:
        """The scenes that are needed, and some more in place of those that will fail; then their recordings.

        None while scenes are prepared, and where no more recordings than those that run are certain to be needed.
        """
        for status in self._statuses:
            if status.successes < status.needed:
                name, arguments = f"preparing the scenes of task {status.task}", (status.task, _upcoming(status))
                job = Job(name, _prepare_scenes, arguments, writes=(self._scenes,))
                self._preparing.add(job)
                yield job
        while self._preparing:
            yield None
        while True:
            yield next((self._recorded(s, number) for s in self._statuses if (number := s.next()) is not None), None)

    def _recorded(self, status: TaskStatus, number: int) -> Job:
        config = self._config
        attempts = range(number * config.scene_episodes, (number + 1) * config.scene_episodes)
        paths = [shard_path(config.out, status.task, attempt) for attempt in attempts]
        shards = Files(paths[0].parent, tuple(path.stem + suffix for path in paths for suffix in (".hdf5", ".json")))
        name, arguments = f"scene {number} of task {status.task}", (status.task, number)
        job = Job(name, _record_scene, arguments, (self._scenes,), (shards,), patient=True)
        status.running.add(number)
        self._recording[job] = status, number
        return job

    def took(self, job: Job, failure: str | None, bar: Bar) -> None:
        """Note what a job has come to.

        Raises:
            UserError: its task cannot be done.
        """
        if job in self._preparing:
            self._preparing.remove(job)
            return
        status, number = self._recording.pop(job)
        status.running.discard(number)
        status.solved[number] = failure is None
        failed = sum(len(s.solved) - s.successes for s in self._statuses)
        left_out = f", {failed} scenes failed" if failed else ""
        bar.advance(0 if failure else self._config.scene_episodes, f"task {status.task}{left_out}")
        if status.hopeless():
            raise UserError(
                f"task {status.task} of {self._config.suite}: only {status.successes} of {len(status.solved)} scenes "
                f"succeeded (last failure: {failure}); leave this task out or lower the noise"
            )


def _upcoming(status: TaskStatus) -> range:
    """The scenes that are probably still to be tried."""
    return range(status.lowest, status.lowest + math.ceil(SPARE * (status.needed - status.successes)))


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
