"""What can be rolled out, as data: each specification is a small frozen value that a worker process builds from.

Trained policies and floors act through one interface, so that a floor differs from its policy in one thing only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from jaxtyping import Float

from la_reconvla.contracts import ACTION_DIM, Env, Observation, RolloutPolicy, Start
from la_reconvla.errors import UserError
from la_reconvla.randomness import derive
from la_reconvla.sim.tasks import base_of

if TYPE_CHECKING:
    from la_reconvla.checkpoint import PolicyConfig
    from la_reconvla.data.hdf5 import Episode
    from la_reconvla.method.policy import Policy

View = Literal["true", "grey_image", "wrong_instruction"]


class Specification(Protocol):
    """A policy that does not exist yet; cheap to send to another process."""

    def build(self) -> RolloutPolicy: ...

    def identity(self) -> dict[str, Any]:
        """What decides how it acts, as JSON: episodes of another identity must not be counted as its own."""
        ...


@dataclass(frozen=True)
class Trained:
    """A trained policy from its run folder.

    Attributes:
        run: folder with ``config.json`` and ``model.safetensors``.
        view: ``true``; ``grey_image`` shows it a grey image; ``wrong_instruction`` tells it something else.
        swaps: for the wrong instruction: (task, true instruction, what it is told instead), see `swapped`.
        threads: CPU threads of one forward pass.
        device: where the policy runs; each worker process holds a copy of it there.
    """

    run: Path
    view: View = "true"
    swaps: tuple[tuple[int, str, str], ...] = ()
    threads: int = 1
    device: str = "cpu"

    def identity(self) -> dict[str, Any]:
        """The weights themselves, and what they are shown."""
        from la_reconvla.checkpoint import WEIGHTS, file_hash

        return {"weights": file_hash(self.run / WEIGHTS), "view": self.view, "swaps": self.swaps}

    def build(self) -> TrainedPolicy:
        """Load the weights.

        Raises:
            UserError: if the folder is no finished run.
        """
        import torch

        from la_reconvla.checkpoint import load_policy

        torch.set_num_threads(self.threads)
        return TrainedPolicy(*load_policy(self.run), self)


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


class TrainedPolicy:
    """`RolloutPolicy` over a `Policy`, which acts the fast way once an instruction has been heard for a while."""

    sees, patience = True, 200

    def __init__(self, policy: Policy, config: PolicyConfig, specification: Trained):
        from la_reconvla.acting import Actor

        self.name = config.condition
        self.policy, self.config, self.specification = policy.to(specification.device), config, specification
        self.actor = Actor(self.policy, self.patience)
        self._instruction = ""

    def reset(self, start: Start, env: Env) -> None:
        """Only the wrong-instruction floor looks at `start`, to know what not to say.

        Raises:
            UserError: if that floor was given no swap for this instruction.
        """
        self._instruction = start.instruction
        if self.specification.view == "wrong_instruction":
            swaps = {(task, true): wrong for task, true, wrong in self.specification.swaps}
            if (start.task, start.instruction) not in swaps:
                raise UserError(
                    f"no wrong instruction is known for '{start.instruction}': it was not in the training data"
                )
            self._instruction = swaps[start.task, start.instruction]

    def act(self, observation: Observation | None) -> Float[np.ndarray, "c 7"]:
        """One chunk from one forward pass."""
        return self.actor(*self._inputs(observation))[0].cpu().numpy()

    def look(self, observation: Observation) -> Float[np.ndarray, " n"]:
        """Saliency for this observation under the instruction that the policy was told."""
        return self.policy.look(*self._inputs(observation))[0].cpu().numpy()

    def _inputs(self, observation: Observation | None):
        import torch

        from la_reconvla.data.samples import GREY, proprio_view, resize

        if observation is None:
            raise ValueError("a trained policy needs an observation")

        size, kind = self.config.backbone.image_size, self.config.backbone.proprio
        device = self.specification.device

        def tensor(image: np.ndarray) -> torch.Tensor:
            pixels = torch.from_numpy(resize(image[None], size)).permute(0, 3, 1, 2)
            grey = self.config.blind or self.specification.view == "grey_image"
            return (torch.full_like(pixels, GREY) if grey else pixels).to(device)

        proprio = None
        if kind != "none" and observation.proprio is not None:
            proprio = torch.from_numpy(proprio_view(observation.proprio[None], kind)).to(device)
        wrist = None if observation.wrist is None or not self.config.backbone.wrist else tensor(observation.wrist)
        return tensor(observation.image), [self._instruction], wrist, proprio


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
    own = [e for e in of_task if e.suite == start.suite and e.target == start.target]
    return own if base_of(start.suite) == start.suite else own or [e for e in of_task if e.suite != start.suite]
