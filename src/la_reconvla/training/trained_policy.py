"""A trained policy as something that can be rolled out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from la_reconvla.contracts import Observation, PolicyInput
from la_reconvla.data.samples import GREY, proprio_view, resize
from la_reconvla.data.starts import Start
from la_reconvla.episodes import View
from la_reconvla.execution.jobs import Files
from la_reconvla.method.policy import Policy
from la_reconvla.sim.env import Env
from la_reconvla.sim.policies import told
from la_reconvla.training.acting import Actor, EpisodeNoise
from la_reconvla.training.checkpoint import PolicyConfig, load_policy
from la_reconvla.training.run_folders import RUN_FILES
from la_reconvla.training.run_state import hash_of_weights


@dataclass(frozen=True)
class Trained:
    """A trained policy from its run folder.

    Attributes:
        run: folder with ``config.json`` and ``model.safetensors``.
        view: ``true``; ``grey_image`` shows it a grey image; ``wrong_instruction`` gives it another instruction.
        swaps: for the wrong instruction: (task, true instruction, what it is given instead), see
            `la_reconvla.sim.policies.swapped`.
        threads: CPU threads of one forward pass.
        device: where the policy runs; each worker process holds a copy of it there.
    """

    run: Path
    view: View = "true"
    swaps: tuple[tuple[int, str, str], ...] = ()
    threads: int = 1
    device: str = "cpu"

    @property
    def files(self) -> tuple[Files, ...]:
        """Of the run."""
        found = (path for pattern in RUN_FILES for path in sorted(self.run.glob(pattern)))
        return (Files(self.run, tuple(str(path.relative_to(self.run)) for path in found)),)

    def identity(self) -> dict[str, Any]:
        """The weights themselves, and what they are shown."""
        return {"weights": hash_of_weights(self.run), "view": self.view, "swaps": self.swaps}

    def build(self) -> TrainedPolicy:
        """Load the weights.

        Raises:
            UserError: if the folder is no finished run.
        """
        torch.set_num_threads(self.threads)
        return TrainedPolicy(*load_policy(self.run), self)


class TrainedPolicy:
    """`RolloutPolicy` over a `Policy`, which acts the fast way once it has acted under an instruction for a while.

    Attributes:
        noise: what it begins its chunks with, where it draws them.
    """

    sees, patience = True, 200

    def __init__(self, policy: Policy, config: PolicyConfig, specification: Trained):
        self.name, self.quality = config.condition, config.quality
        self.policy, self.config, self.specification = policy.to(specification.device), config, specification
        self.actor = Actor(self.policy, self.patience)
        self.noise, self._instruction = EpisodeNoise(config.seed), ""

    def reset(self, start: Start, env: Env) -> None:
        """The wrong-instruction floor chooses another instruction by `start`; the episode's noise is that of its id.

        Raises:
            UserError: if that floor was given no swap for this instruction.
        """
        self.tell(told(start, self.specification.view, self.specification.swaps))
        self.noise.begin(start.id)

    def tell(self, instruction: str) -> None:
        """What it is to do from now on."""
        self._instruction = instruction

    def act(self, observation: Observation | None) -> Float[np.ndarray, "c a"]:
        """One chunk from one forward pass of the backbone."""
        return self.actor(self.noise(self.policy, self._inputs(observation)))[0].cpu().numpy()

    def look(self, observation: Observation) -> Float[np.ndarray, " n"]:
        """Saliency for this observation under the instruction that the policy was given."""
        return self.policy.look(self._inputs(observation))[0].cpu().numpy()

    def _inputs(self, observation: Observation | None) -> PolicyInput:
        if observation is None:
            raise ValueError("a trained policy needs an observation")

        size, kind = self.config.backbone.image_size, self.config.backbone.proprio
        given = self.config.inputs
        device = self.specification.device

        def tensor(image: np.ndarray) -> torch.Tensor:
            pixels = torch.from_numpy(resize(image[None], size, given.fit)).permute(0, 3, 1, 2)
            grey = self.config.blind or self.specification.view == "grey_image"
            return (torch.full_like(pixels, GREY) if grey else pixels).to(device)

        proprio = None
        if kind != "none" and observation.proprio is not None:
            proprio = torch.from_numpy(proprio_view(observation.proprio[None], kind, given.standard)).to(device)
        wrist = None if observation.wrist is None or not self.config.backbone.wrist else tensor(observation.wrist)
        return PolicyInput(tensor(observation.image), [self._instruction], wrist, proprio)
