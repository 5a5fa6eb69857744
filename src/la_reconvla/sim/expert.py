"""A scripted expert that sees the simulator's poses and does a task's steps one after another.

A task's steps are read from the goal of its BDDL file (`la_reconvla.sim.expert_tasks.steps_of`); a step is done by a
skill: `la_reconvla.sim.pick_and_place.PickAndPlace` or one of `la_reconvla.sim.skills`. Every action is computed from
the present poses, so that noise added to the *executed* action is corrected by the next one; the action that
`Expert.act` returns is the clean label.

Told to `blunder`, it does one step beside where it should be done. That is for a recording to begin after: what
policies miss most they can learn from nothing else how to put right.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from la_reconvla.contracts import Observation
from la_reconvla.data.starts import Start
from la_reconvla.errors import UserError
from la_reconvla.sim.env import Env
from la_reconvla.sim.expert_tasks import steps_of
from la_reconvla.sim.hand_geometry import PrivilegedEnv
from la_reconvla.sim.pick_and_place import PickAndPlace
from la_reconvla.sim.skills import Motion
from la_reconvla.sim.task import Predicate
from la_reconvla.sim.tasks import load_task

ROUNDS = 3  # so often what does not hold at the end is done


class Skill(Protocol):
    """What does one step."""

    phase: str

    @property
    def replanned(self) -> bool: ...

    @property
    def finished(self) -> bool: ...

    def act(self) -> Float[np.ndarray, "1 7"]: ...

    def take_over(self, rested: float, done: bool) -> None: ...

    def blunder(self, rng: np.random.Generator) -> None: ...


@runtime_checkable
class Judge(PrivilegedEnv, Protocol):
    """A simulator that tells whether a predicate holds."""

    def holds(self, predicate: Predicate) -> bool: ...


class Expert:
    """Privileged policy that does what a start asks for, and then withdraws.

    Attributes:
        replanned: whether something had to be done twice; such episodes make poor demonstrations.
        finished: whether the hand has withdrawn from the last step, or the blunder is over.
    """

    name = "expert"
    sees = False

    def reset(self, start: Start, env: Env) -> None:
        """A new episode begins in `env`, which must have been reset to `start`.

        Raises:
            UserError: if `env` is no simulator whose physics the expert can look at, or it cannot do the task.
        """
        if not isinstance(env, Judge):
            raise UserError("the expert needs the simulator's physics: give it a LiberoEnv")
        task = load_task(start.suite, start.task)
        self._env, self._target = env, start.target
        self._steps = steps_of(task, task.goal_for(start.target, start.destination))
        self._left, self._rounds, self._blunders = list(self._steps), ROUNDS, False
        self.finished, self._again = False, False
        self._next()

    def take_over(self, rested: float, done: bool) -> None:
        """Go on from what another policy has done since the start, after `reset`: with the first step that is not done.

        Args:
            rested: height of the origin of the start's target at the start (m).
            done: whether the goal holds.
        """
        steps = self._steps if done else [step for step in self._steps if not self._env.holds(step.predicate)]
        self._left = list(steps[-1:] if done else steps)
        self._next()
        if self._step.target == self._target:
            self._skill.take_over(rested, done)

    def blunder(self, rng: np.random.Generator) -> None:
        """Call after `reset`: do one step wrongly, then be `finished`, with the hand wherever it is."""
        ahead = int(rng.integers(len(self._steps))) if len(self._steps) > 1 else 0
        self._left, self._blunders, self._rng = list(self._steps[1 : ahead + 1]), True, rng
        if not self._left:
            self._skill.blunder(rng)

    @property
    def replanned(self) -> bool:
        """See the class."""
        return self._again or self._skill.replanned

    @property
    def about(self) -> tuple[str, str]:
        """Target and destination of the step that it is at; twice the same for furniture."""
        return self._step.target, self._step.destination

    @property
    def phase(self) -> str:
        """What it is about, for statistics."""
        return self._skill.phase

    def act(self, observation: Observation | None = None) -> Float[np.ndarray, "1 7"]:
        """The next action, float64, clean: [translation 3, rotation 3, gripper] in [-1, 1]."""
        action = self._skill.act()
        while self._skill.finished and self._goes_on():
            action = self._skill.act()
        self.finished = self._skill.finished
        return action

    def _goes_on(self) -> bool:
        """Whether there is another step, which then begins."""
        self._again = self.replanned
        if not self._left and not self._blunders and [step.skill for step in self._steps] != ["place"]:
            self._rounds -= 1
            self._left = [s for s in self._steps if not self._env.holds(s.predicate)] if self._rounds else []
            self._again = self._again or bool(self._left)
        if not self._left:
            return False
        try:
            self._next()
        except UserError:  # an earlier step has knocked the thing over, so that no grasp fits: the episode has failed
            return False
        if self._blunders and not self._left:
            self._skill.blunder(self._rng)
        return True

    def _next(self) -> None:
        self._step = self._left.pop(0)
        skill = PickAndPlace if self._step.skill == "place" else Motion
        self._skill: Skill = skill(self._step, self._env)
