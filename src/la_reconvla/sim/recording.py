"""Records one episode of the scripted expert: noise on what is executed, clean labels.

The expert acts from the start, or takes over somewhere on the way, from a policy or from itself after a blunder: then
what is recorded begins with the state that was reached and shows how to go on from there, be it a mistake (as DAgger,
arXiv 1011.0686; here the expert stays in control once it has taken over).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float, UInt8

from la_reconvla.data.hdf5_writer import Recording
from la_reconvla.data.starts import Start
from la_reconvla.sim.env import ACTION_DIM, Env, RolloutPolicy

LEAD = 120  # a learner acts for at most so many control steps before the expert takes over


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

    @property
    def replanned(self) -> bool: ...

    @property
    def about(self) -> tuple[str, str]:
        """What it moves now, and where to."""
        ...

    def blunder(self, rng: np.random.Generator) -> None:
        """From `reset` on make a mistake, and be `finished` with it."""
        ...

    def take_over(self, rested: float, done: bool) -> None:
        """Go on from what another policy has done since the start, which `reset` was given."""
        ...


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
    learner: RolloutPolicy | None = None,
    blunder: bool = False,
) -> Recording | str:
    """Let the expert act until it has withdrawn, with noise on what is executed and clean labels.

    Args:
        env: where.
        expert: who.
        start: from where.
        names: instances to draw maps of; none for no maps.
        frame_stride: control steps from one picture to the next.
        noise: standard deviation of the noise on each of the six motions; the gripper has none.
        noise_memory: its correlation from one step to the next.
        seed: of the noise, of when the expert takes over, and of its blunder.
        learner: a policy that acts before the expert does, for up to `LEAD` steps; nothing of that is recorded.
        blunder: the expert makes a mistake first, which is not recorded.

    Returns:
        The episode, or why it is no good demonstration.
    """
    env.reset(start)
    first = env.state()
    target, rng = env.poses().get(start.target), np.random.default_rng((seed, LEAD))
    rested = float(target.position[2]) if target is not None else 0.0  # a drawer is no thing that can be lifted
    if blunder and not _blundered(env, expert, start, rng):
        return "the blunder ran out of steps"
    if learner is not None and not _led(env, learner, start, int(rng.integers(LEAD + 1))):
        return "the learner ran out of steps"
    expert.reset(start, env)
    if blunder or learner is not None:
        expert.take_over(rested, env.success())
    recorded = _demonstrated(env, expert, _disturbances(noise, noise_memory, seed), names, frame_stride)
    if isinstance(recorded, str):
        return recorded
    return Recording(
        **{"wrist": None, "instances": None, **recorded},
        start=start,
        first=first,
        instance_names=names,
        model_xml=env.model_xml(),
        noise=noise,
        seed=seed,
    )


def _demonstrated(
    env: RecordableEnv, expert: ScriptedExpert, disturbances: Iterator[np.ndarray], names: tuple[str, ...], stride: int
) -> dict[str, Any] | str:
    """Steps, pictures and the step of success by the names of `Recording`, or why the demonstration is no good."""
    steps: list[dict[str, np.ndarray]] = []
    parts: list[tuple[int, str, str]] = []
    pictures: list[dict[str, np.ndarray]] = []
    success_step, over = 0, False
    while True:
        action = np.clip(np.asarray(expert.act(None))[0], -1, 1)
        if expert.finished:
            break
        if expert.replanned:
            return "grasped twice"
        if over:
            return "ran out of steps"
        if len(steps) % stride == 0:
            pictures.append(_pictures(env, names))
        if not parts or parts[-1][1:] != expert.about:
            parts.append((len(steps), *expert.about))
        executed = np.clip(action + next(disturbances), -1, 1)
        steps.append({"actions": action, "executed": executed, **_robot(env)})
        outcome = env.step(executed[None], stop_at_success=False)
        success_step = success_step or len(steps) * outcome.success
        over = outcome.done
    if not env.success():
        return "goal not reached"
    several = tuple(parts) if len(parts) > 1 else ()
    return {**_stacked(steps), **_stacked(pictures), "success_step": success_step, "parts": several}


def _blundered(env: RecordableEnv, expert: ScriptedExpert, start: Start, rng: np.random.Generator) -> bool:
    """Let the expert make a mistake from `start`, where `env` is. Returns whether time is left."""
    expert.reset(start, env)
    expert.blunder(rng)
    while True:
        action = np.asarray(expert.act(None))
        if expert.finished:
            return True
        if env.step(action, stop_at_success=False).done:
            return False


def _led(env: RecordableEnv, learner: RolloutPolicy, start: Start, steps: int) -> bool:
    """Let `learner` act for so many steps from `start`, where `env` is. Returns whether time is left."""
    learner.reset(start, env)
    while steps > 0:
        chunk = np.asarray(learner.act(env.observe() if learner.sees else None))[:steps]
        steps -= len(chunk)
        if env.step(chunk, stop_at_success=False).done:
            return False
    return True


def _pictures(env: RecordableEnv, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """What the cameras show now, by the names of `Recording`; only what is recorded."""
    view = env.observe()
    wrist = {} if view.wrist is None else {"wrist": view.wrist}
    return {"frames": view.image, **wrist, **({"instances": env.segmentation(names)} if names else {})}


def _stacked(rows: list[dict[str, np.ndarray]]) -> dict[str, Any]:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _robot(env: RecordableEnv) -> dict[str, np.ndarray]:
    """What the robot and the simulation are like now, by the names of `Recording`."""
    raw = env.raw_observation()
    return {
        "states": env.state(),
        "proprio": env.proprio(),
        "joints": raw["robot0_joint_pos"],
        "robot_states": np.concatenate([raw["robot0_gripper_qpos"], raw["robot0_eef_pos"], raw["robot0_eef_quat"]]),
    }


def _disturbances(sigma: float, memory: float, seed: int) -> Iterator[Float[np.ndarray, "7"]]:
    """Stationary AR(1) noise: standard deviation `sigma` at every step, none on the gripper."""
    rng = np.random.default_rng(seed)
    value = np.zeros(ACTION_DIM)
    value[:-1] = rng.normal(0, sigma, ACTION_DIM - 1)
    while True:
        yield value.copy()
        value[:-1] = memory * value[:-1] + rng.normal(0, sigma * np.sqrt(1 - memory**2), ACTION_DIM - 1)
