"""What can be rolled out, as data: each specification is a small frozen value that a worker process builds from.

Trained policies and floors act through one interface, so that a floor differs from its policy in one thing only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from la_reconvla.contracts import Observation
from la_reconvla.data.instructions import Words
from la_reconvla.data.starts import Start
from la_reconvla.episodes import View
from la_reconvla.errors import UserError
from la_reconvla.execution.jobs import Files
from la_reconvla.randomness import derive
from la_reconvla.sim.env import ACTION_DIM, Env, RolloutPolicy
from la_reconvla.sim.tasks import base_of, in_words

if TYPE_CHECKING:
    from la_reconvla.data.demonstrations import Episode


class Specification(Protocol):
    """A policy that does not exist yet; cheap to send to another process."""

    def build(self) -> RolloutPolicy: ...

    def identity(self) -> dict[str, Any]:
        """What decides how it acts, as JSON: episodes of another identity must not be counted as this policy's."""
        ...


@runtime_checkable
class NeedsFiles(Protocol):
    """A specification that reads files when it is built."""

    @property
    def files(self) -> tuple[Files, ...]:
        """Which, for workers that may not have this disk."""
        ...


def swapped(said: Iterable[tuple[int, str]]) -> tuple[tuple[int, str, str], ...]:
    """For every (task, instruction) another instruction, the same for every condition.

    Another one of the same task where there is one (the second bowl in the same scene), else one of another task.

    Raises:
        UserError: if there is only one instruction altogether.
    """
    pairs = sorted(set(said))
    everything = sorted({instruction for _, instruction in pairs})
    if len(everything) < 2:
        raise UserError("the wrong-instruction floor needs at least two instructions: add a task or wide placements")
    result = []
    for task, true in pairs:
        here = [instruction for other, instruction in pairs if other == task]
        choices = here if len(here) > 1 else everything
        result.append((task, true, choices[(choices.index(true) + 1) % len(choices)]))
    return tuple(result)


def told(start: Start, view: View, swaps: Iterable[tuple[int, str, str]], words: Words = "files") -> str:
    """What a policy is told on `start`: its instruction, or under the wrong-instruction floor the other one.

    Args:
        start: of the episode.
        view: which of both.
        swaps: (task, true instruction, the other one), in the words of task files.
        words: see `la_reconvla.sim.tasks.in_words`.

    Raises:
        UserError: if that floor was given no swap for this instruction.
    """
    if view != "wrong_instruction":
        return in_words(start.suite, start.instruction, words)
    wrong = {(task, true): other for task, true, other in swaps}.get((start.task, start.instruction))
    if wrong is None:
        raise UserError(f"no wrong instruction is known for '{start.instruction}': it was not in the training data")
    return in_words(start.suite, wrong, words)


@dataclass(frozen=True)
class Scripted:
    """The scripted expert, which sees the simulator's state."""

    def identity(self) -> dict[str, Any]:
        """There is one expert."""
        return {"scripted": True}

    def build(self) -> RolloutPolicy:
        """A fresh expert."""
        from la_reconvla.sim.expert import Expert

        return Expert()


@dataclass(frozen=True)
class Uniform:
    """Uniformly random actions: what chance achieves."""

    seed: int = 0

    def identity(self) -> dict[str, Any]:
        """Its seed."""
        return {"uniform": self.seed}

    def build(self) -> UniformPolicy:
        """A policy whose actions depend on (seed, start) only."""
        return UniformPolicy(self.seed)


class UniformPolicy:
    """See `Uniform`."""

    name, sees = "random", False

    def __init__(self, seed: int):
        self.seed = seed

    def reset(self, start: Start, env: Env) -> None:
        """Seed the episode by its start."""
        self._draw = np.random.default_rng(derive(self.seed, f"random policy/{start.id}"))

    def act(self, observation: Observation | None) -> Float[np.ndarray, "c 7"]:
        """One uniform action in [-1, 1]^7; the gripper opens or closes."""
        action = self._draw.uniform(-1, 1, ACTION_DIM)
        action[-1] = np.sign(action[-1])
        return action[None]


@dataclass(frozen=True)
class Replay:
    """Blind replay: the actions of one demonstration of the same task and target, whatever the scene looks like.

    In a suite that LIBERO-PRO changed it is one of the task before the change, whatever its target.

    Attributes:
        demonstrations: folder of HDF5 files.
    """

    demonstrations: Path

    @property
    def files(self) -> tuple[Files, ...]:
        """The demonstrations."""
        return (Files(self.demonstrations),)

    def identity(self) -> dict[str, Any]:
        """The demonstrations' content."""
        from la_reconvla.data.hdf5 import open_demonstrations

        return {"replay": open_demonstrations(self.demonstrations).hash}

    def build(self) -> ReplayPolicy:
        """Read the actions; frames are not loaded."""
        return ReplayPolicy(self.demonstrations)


class ReplayPolicy:
    """See `Replay`."""

    name, sees = "blind_replay", False

    def __init__(self, folder: Path):
        from la_reconvla.data.hdf5 import open_demonstrations

        self._episodes = open_demonstrations(folder).episodes

    def reset(self, start: Start, env: Env) -> None:
        """Pick a demonstration by the start's name.

        Raises:
            UserError: if no demonstration has this task and target.
        """
        choices = replayable(start, self._episodes)
        if not choices:
            key = (start.suite, start.task, start.target)
            raise UserError(f"blind replay has no demonstration of {key}: collect one or leave this task out")
        self._chosen = choices[derive(0, f"blind replay/{start.id}") % len(choices)].executed()
        self._at = 0

    def act(self, observation: Observation | None) -> Float[np.ndarray, "c 7"]:
        """The next recorded action; a no-op with the last gripper command when they are used up."""
        if self._at >= len(self._chosen):
            return np.array([[0.0] * 6 + [self._chosen[-1][-1]]])
        self._at += 1
        return self._chosen[self._at - 1][None]


def replayable(start: Start, episodes: Iterable[Episode]) -> list[Episode]:
    """Demonstrations of what a start asks for; after LIBERO-PRO's change, which renames things, of the same task."""
    of_task = [e for e in episodes if e.task == start.task and e.suite in (start.suite, base_of(start.suite))]
    same = [e for e in of_task if e.suite == start.suite and e.target == start.target]
    return same if base_of(start.suite) == start.suite else same or [e for e in of_task if e.suite != start.suite]
