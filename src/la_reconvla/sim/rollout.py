"""Closed-loop episodes in worker processes: one record per episode, paired by start across policies.

Success is the simulator's own check. Graded stages distinguish arms with fewer episodes:

============ ==================================================================================================
approached   the gripper came within 8 cm of the target
distractor   it came within 8 cm of another thing that could be asked for *before* the target, or never to the target:
             of the target's twin (the second bowl), or where it has none of a movable thing other than the destination;
             never of a thing that is asked for, too
grasped      the target rose by 1 cm while within 12 cm of the gripper
lifted       it rose by 5 cm
placed       after it was lifted it was over the destination: within 6 cm of its centre from above, at most 5 cm high;
             over a region, where the success predicate of LIBERO has it
moved        the first thing that was more than 3 cm from where it had stood while within 12 cm of the gripper, or
             furniture of which a drawer had slid by 3 cm, a door or knob turned by 0.2 rad, while the hand touched
             it; the nearest of several, None if there was none
touched      the first thing that the hand was in contact with at the end of a control step; the nearest of several
held         the first thing that both fingers were in contact with at once
============ ==================================================================================================

Where a goal puts several things somewhere, each of them is a target with a destination of its own: a stage is reached
when one of them has reached it, and all of them only success tells. Where a goal puts nothing anywhere (a drawer to
open, a stove to switch) all but the last three are None: not recorded. Furniture can be moved, touched and held, too;
the table and the floor count for nothing.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from la_reconvla.contracts import Observation
from la_reconvla.data.starts import Start, object_kind
from la_reconvla.episodes import EpisodeRecord, First, Label, Reached, StartName
from la_reconvla.errors import UserError
from la_reconvla.execution.current import executor
from la_reconvla.execution.jobs import Job as Work
from la_reconvla.execution.jobs import Needs, nothing
from la_reconvla.robot import Quality
from la_reconvla.sim.env import Env, Pose, RolloutPolicy
from la_reconvla.sim.expert_tasks import asked_for
from la_reconvla.sim.libero import LiberoEnv
from la_reconvla.sim.policies import NeedsFiles, Specification
from la_reconvla.sim.task import Predicate, Task
from la_reconvla.sim.track import EVERY, Track

NEAR, HELD, RAISED, LIFTED, OVER, LOW, MOVED = 0.08, 0.12, 0.01, 0.05, 0.06, 0.05, 0.03  # metres
STAGES = ("approached", "grasped", "lifted", "placed")
DEEP = 0.055  # a thing that is higher above its origin than a bowl is taken at this depth below its top (m)
CONTROL_RATE = 20  # control steps per second
UNNAMED = Label(None, None)


class TaskEnv(Env, Protocol):
    """An environment that knows its task and tells success."""

    @property
    def task(self) -> Task: ...

    def holds(self, predicate: Predicate) -> bool: ...

    def height(self, name: str) -> float: ...

    def touch(self) -> Touching: ...


class Touching(Protocol):
    """Reads contacts of one episode."""

    def now(self) -> dict[str, bool]:
        """What the hand touches now, and of each thing whether both fingers do."""
        ...

    def shifted(self) -> set[str]:
        """Furniture of which a part has slid or turned since the episode began."""
        ...


@runtime_checkable
class LookingPolicy(RolloutPolicy, Protocol):
    """A policy with attention to show, trained on pictures of one render quality."""

    quality: Quality

    def look(self, observation: Observation) -> Float[np.ndarray, " n"]:
        """Saliency of the patches for this observation."""
        ...


@dataclass(frozen=True, kw_only=True)
class EnvSettings:
    """What the environment shows, and for how long: part of what makes two evaluations comparable.

    `max_steps` is a step limit in place of the tasks' own; the other fields are those of `LiberoEnv`.
    """

    image_size: int = 128
    wrist: bool = False
    proprio: bool = False
    quality: Quality = "official"
    allow_any_mujoco: bool = False
    max_steps: int | None = None

    def build(self) -> TaskEnv:
        """The environment."""
        return LiberoEnv(**asdict(self))


@dataclass(frozen=True, eq=False)
class Job:
    """One episode to run.

    Attributes:
        label: which policy it is, for the record.
        policy: what acts.
        start: where it begins.
        settings: what it sees.
        track: keep what draws the episode again.
    """

    label: Label
    policy: Specification
    start: Start
    settings: EnvSettings
    track: bool = False


class StageTracker:
    """Watches one episode, step by step, through the simulator's poses.

    The hand's distance to a thing is that to its origin; an object taller than the fingers' reach is grasped at
    its upper part, so its distance is that to the line from its origin up to there, which turns with it.
    """

    def __init__(self, env: TaskEnv, start: Start):
        self._env = env
        goal = env.task.goal_for(start.target, start.destination)
        puts = [p for p in goal if len(p) == 3 and p[1] in env.task.objects]
        if not goal and start.target in env.task.objects:
            puts = [("at", start.target, start.destination)]
        self._puts = {predicate[1]: predicate for predicate in puts}
        kinds = {object_kind(name) for name in self._puts}
        owners = {env.task.instance(predicate[2]) for predicate in puts}
        others = [n for n in env.task.objects if n not in self._puts]
        twins = [n for n in others if object_kind(n) in kinds]
        self._distractors = twins or [n for n in others if n not in owners]
        poses = env.poses()
        self._stood = {name: poses[name].position.copy() for name in env.task.objects}
        tall = {name: env.height(name) - DEEP for name in env.task.objects}
        self._axes = {  # in the thing's own frame
            name: Rotation.from_quat(poses[name].quaternion).inv().apply([0.0, 0.0, length])
            for name, length in tall.items()
            if length > 0
        }
        self._reached = {name: dict.fromkeys(STAGES, False) for name in self._puts}
        self._distracted = False
        self.smallest_distance = np.inf
        self.moved: str | None = None
        self._touch = env.touch()
        self._touched: str | None = None
        self._held: str | None = None
        self._asked = asked_for(env.task, goal)
        self.look()

    @property
    def stage(self) -> dict[str, bool]:
        """Which stages one of the targets has reached."""
        reached = {stage: any(own[stage] for own in self._reached.values()) for stage in STAGES}
        return {**reached, "distractor_approached": self._distracted}

    def look(self) -> None:
        """Update from the current poses."""
        poses = self._env.poses()
        hand = poses["gripper"].position
        touched = self._touch.now() if self._held is None or self.moved is None else {}
        self.moved = self.moved or self._moved_by(hand, poses, touched)
        if self._held is None and touched:
            by_distance = sorted(touched, key=lambda name: self._distance(hand, poses, name))
            self._touched = self._touched or by_distance[0]
            self._held = next((name for name in by_distance if touched[name]), None)
        for name in self._puts:
            self._follow(name, hand, poses)
        other = min((self._distance(hand, poses, name) for name in self._distractors), default=np.inf)
        self._distracted |= bool(other < NEAR and not self.stage["approached"])

    def _follow(self, name: str, hand: Float[np.ndarray, "3"], poses: dict[str, Pose]) -> None:
        """How far one of the targets has got."""
        own, position, (_, _, destination) = self._reached[name], poses[name].position, self._puts[name]
        distance = self._distance(hand, poses, name)
        self.smallest_distance = min(self.smallest_distance, distance)
        rise = position[2] - self._stood[name][2]
        own["approached"] |= bool(distance < NEAR)
        own["grasped"] |= bool(rise > RAISED and distance < HELD)
        own["lifted"] |= bool(own["grasped"] and rise > LIFTED)
        if not own["lifted"]:
            return
        if destination in poses:
            away = position - poses[destination].position
            own["placed"] |= bool(np.linalg.norm(away[:2]) < OVER and away[2] < LOW)
        else:
            own["placed"] |= self._env.holds(self._puts[name])

    def reached(self) -> Reached:
        """How far the episode has got."""
        if not self._puts:
            return Reached()
        return Reached(**self.stage, smallest_distance=round(float(self.smallest_distance), 5))

    def distance(self, name: str) -> float | None:
        """From the hand to a thing now (m); None for furniture that has no body."""
        poses = self._env.poses()
        return self._distance(poses["gripper"].position, poses, name) if name in poses else None

    def first(self) -> First:
        """What the hand touched and held first."""
        return First(self._asked, self._touched, self._held)

    def _moved_by(self, hand: Float[np.ndarray, "3"], poses: dict[str, Pose], touched: Collection[str]) -> str | None:
        """Of what has moved, the nearest to the hand that is in its reach."""
        gone = [name for name, stood in self._stood.items() if np.linalg.norm(poses[name].position - stood) > MOVED]
        away = {name: self._distance(hand, poses, name) for name in gone}
        near = {name: distance for name, distance in away.items() if distance < HELD}
        if (furniture := [name for name in touched if name not in self._stood]) and not near:
            near = dict.fromkeys(self._touch.shifted().intersection(furniture), 0.0)
        return min(near, key=lambda name: (near[name], name), default=None)

    def _distance(self, hand: Float[np.ndarray, "3"], poses: dict[str, Pose], name: str) -> float:
        """From the hand to a thing (m)."""
        away = hand - poses[name].position
        if name in self._axes:
            axis = Rotation.from_quat(poses[name].quaternion).apply(self._axes[name])
            away = away - np.clip(away @ axis / (axis @ axis), 0, 1) * axis
        return float(np.linalg.norm(away))


def run_episode(
    env: TaskEnv, policy: RolloutPolicy, start: Start, track: Track | None = None, label: Label = UNNAMED
) -> EpisodeRecord:
    """One episode from reset to success or the step limit.

    Args:
        env: where it happens.
        policy: what acts.
        start: where it begins.
        track: receives states, actions, stages and saliency.
        label: which policy it is, for the record.
    """
    begun = time.perf_counter()
    env.reset(start)
    policy.reset(start, env)
    stages = StageTracker(env, start)
    steps, done, success = 0, False, False
    while not done:
        observation = env.observe() if policy.sees else None
        if track is not None and observation is not None and isinstance(policy, LookingPolicy):
            track.look(policy.look(observation), steps)
        for action in np.asarray(policy.act(observation)):
            if track is not None and steps % EVERY == 0:
                track.keep(env, steps)
            outcome = env.step(action[None])
            stages.look()
            steps, done, success = steps + outcome.steps, outcome.done, outcome.success
            if track is not None:
                track.actions.append(action)
                track.mark(stages.stage, steps)
            if done:
                break
    if track is not None:
        track.keep(env, steps)  # how it ended
    return EpisodeRecord(
        label=label,
        start=StartName.of(start),
        success=bool(success),
        steps=steps,
        seconds=round(time.perf_counter() - begun, 3),
        reached=stages.reached(),
        moved=stages.moved,
        first=stages.first(),
    )


# A worker process keeps one simulator and one policy; another setting or specification replaces them.
_env: tuple[EnvSettings, TaskEnv] | None = None
_policy: tuple[Specification, RolloutPolicy] | None = None


def kept_env(settings: EnvSettings) -> TaskEnv:
    """The simulator of this worker process; one with other settings is closed."""
    global _env
    if _env is None or _env[0] != settings:
        if _env is not None:
            _env[1].close()
        _env = (settings, settings.build())
    return _env[1]


def _work(job: Job) -> tuple[EpisodeRecord, Track | None]:
    global _policy
    env = kept_env(job.settings)
    if _policy is None or _policy[0] != job.policy:
        _policy = (job.policy, job.policy.build())
    policy = _policy[1]
    if isinstance(policy, LookingPolicy) and policy.quality != job.settings.quality:
        raise UserError(
            f"{job.policy} was trained on '{policy.quality}' frames, not on '{job.settings.quality}' ones: "
            "evaluate with the render quality of its training data"
        )
    track = Track() if job.track else None
    return run_episode(env, policy, job.start, track, job.label), track


def rollouts(
    jobs: Sequence[Job], workers: int, ahead: int | None = None
) -> Generator[tuple[Job, EpisodeRecord, Track | None]]:
    """Run `jobs` in `workers` processes; yields each as it ends, in no fixed order; closed, it ends them.

    Args:
        jobs: in the order in which they are begun.
        workers: processes.
        ahead: no job begins before the one so many places in front of it has ended; None for any.

    Raises:
        UserError: from a worker, or if a worker died.
    """
    if not jobs:
        return
    running: dict[Work, tuple[int, Job]] = {}

    def begun() -> Iterator[Work | None]:
        for number, job in enumerate(jobs):
            while ahead is not None and number - next((first for first, _ in running.values()), number) >= ahead:
                yield None  # a dict keeps its order: the first is the oldest
            files = job.policy.files if isinstance(job.policy, NeedsFiles) else ()
            work = Work(f"the episode {job.start.id} of {job.label}", _work, (job,), files)
            running[work] = number, job
            yield work

    on_gpu = any(str(getattr(job.policy, "device", "")).startswith("cuda") for job in jobs)
    workers = max(1, min(workers, len(jobs)))
    setups, needs = [Work("a worker", nothing)] * workers, Needs(gpus="share" if on_gpu else 0)
    with closing(executor().map(begun(), setups, needs, "rollout", queued=workers)) as ended:
        for work, (record, track) in ended:
            yield running.pop(work)[1], record, track
