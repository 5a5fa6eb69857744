"""A policy that LeRobot saved as a policy to roll out, under the same starts and floors as ours."""

# pyright: reportMissingImports=false
# (LeRobot has an environment of its own.)

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from la_reconvla.contracts import Observation
from la_reconvla.data.instructions import Words
from la_reconvla.data.lerobot_layout import STATE
from la_reconvla.data.samples import GREY
from la_reconvla.data.starts import Start
from la_reconvla.episodes import View
from la_reconvla.errors import UserError
from la_reconvla.randomness import derive
from la_reconvla.serving.lerobot_folder import (
    ACTION_WIDTH,
    ADAPTER_WEIGHTS,
    OURS,
    WEIGHTS,
    LeRobotFolder,
)
from la_reconvla.sim.env import Env
from la_reconvla.sim.policies import told
from la_reconvla.sim.rollout import EnvSettings
from la_reconvla.training.tensors import file_hash

PYTHON = (3, 12)  # LeRobot's oldest
INSTALL = "pip install -e '.[sim]' -e plugins/lerobot_policy_la_reconvla  # in a checkout of LA-ReconVLA"


def require_lerobot() -> str:
    """LeRobot's version.

    Raises:
        UserError: it is not installed here; the message says for which Python, and how.
    """
    try:
        return metadata.version("lerobot")
    except metadata.PackageNotFoundError:
        own = ".".join(map(str, sys.version_info[:2]))
        wants = ", which wants Python 3.12 or newer" if sys.version_info < PYTHON else ""
        raise UserError(
            f"LeRobot is not installed for {sys.executable} (Python {own}){wants}. Make an environment for it, as "
            f"its pins differ from ours: `python3.12 -m venv .venv-lerobot`, and there `{INSTALL}`; eval from there"
        ) from None


@dataclass(frozen=True)
class LeRobot:
    """A policy in a folder of LeRobot's.

    Attributes:
        path: folder with ``config.json`` and ``model.safetensors``, or adapters.
        view: ``true``; ``grey_image`` shows it grey pictures; ``wrong_instruction`` gives it another instruction.
        swaps: for the wrong instruction: (task, true instruction, what it is given instead).
        words: in which tasks are told, see `la_reconvla.sim.tasks.in_words`.
        execute: so many actions of each chunk are carried out; None for as many as its configuration says.
        device: where it acts.
    """

    path: Path
    view: View = "true"
    swaps: tuple[tuple[int, str, str], ...] = ()
    words: Words = "files"
    execute: int | None = None
    device: str = "cpu"

    def identity(self) -> dict[str, Any]:
        """The weights, those below adapters too, LeRobot's version, and what it is shown."""
        folder = LeRobotFolder.read(self.path)
        base = folder.base()
        return {
            "lerobot": require_lerobot(),
            "type": folder.type,
            "weights": file_hash(self.path / (WEIGHTS if base is None else ADAPTER_WEIGHTS)),
            "base": None if base is None else file_hash(base.path / WEIGHTS),
            "view": self.view,
            "swaps": self.swaps,
            "words": self.words,
            "execute": self.execute,
        }

    def settings(self, **more: Any) -> EnvSettings:
        """The environment that shows what it takes."""
        folder = LeRobotFolder.read(self.path)
        wrist, quality = any(folder.cameras().values()), folder.quality
        size = folder.image_size
        return EnvSettings(image_size=size, wrist=wrist, proprio=folder.takes_state, quality=quality, **more)

    def build(self) -> LeRobotPolicy:
        """Load it.

        Raises:
            UserError: LeRobot or a package that this kind of policy needs is missing, or the weights do not fit.
        """
        return LeRobotPolicy(self)


class LeRobotPolicy:
    """`la_reconvla.sim.env.RolloutPolicy` over a policy of LeRobot's."""

    sees = True

    def __init__(self, specification: LeRobot):
        require_lerobot()
        self.specification, self._folder = specification, LeRobotFolder.read(specification.path)
        self.name = self._folder.type
        from lerobot.policies.factory import make_pre_post_processors

        self._policy, self._config = _loaded(self._folder, specification.device)
        there = {"device_processor": {"device": specification.device}}
        path = str(specification.path)
        self._before, self._after = make_pre_post_processors(self._config, path, preprocessor_overrides=there)
        self._instruction = ""

    def reset(self, start: Start, env: Env) -> None:
        """The wrong-instruction floor looks at `start` to know what not to say; noise is that of its id."""
        asked = self.specification
        self._instruction = told(start, asked.view, asked.swaps, asked.words)
        self._policy.reset(*((start.id,) if self._folder.type == OURS else ()))
        for part in (self._before, self._after):
            part.reset()
        torch.manual_seed(derive(0, f"acting/{start.id}"))  # which LeRobot's own policies draw their noise from

    @torch.inference_mode()
    def act(self, observation: Observation | None) -> Float[np.ndarray, "c 7"]:
        """The next actions, clipped to the environment's range as LIBERO's controller does.

        A policy that keeps what it saw, or averages over its chunks, is asked for one action at a time.

        Raises:
            UserError: it gives something else than LIBERO's actions.
        """
        if observation is None:
            raise ValueError("a policy of LeRobot needs an observation")
        batch = self._before(self._batch(observation))
        if self._folder.each_step:
            chunk = self._policy.select_action(batch)[:, None]
        else:
            chunk = self._policy.predict_action_chunk(batch)
        count = self.specification.execute or getattr(self._config, "n_action_steps", None)
        actions = self._after(chunk)[0, :count].cpu().numpy().astype(np.float64)
        if actions.ndim != 2 or actions.shape[1] != ACTION_WIDTH or not np.isfinite(actions).all():
            raise UserError(
                f"{self.specification.path} gives no actions of shape [c {ACTION_WIDTH}], or NaN or infinity"
            )
        return np.clip(actions, -1.0, 1.0)

    def _batch(self, observation: Observation) -> dict[str, Any]:
        """What LeRobot's environment would give: float pictures [1 3 H W] in [0, 1], under the names of the world."""
        worldly = {policys: worlds for worlds, policys in self._folder.renames.items()}
        batch: dict[str, Any] = {"task": [self._instruction]}
        for key, wrist in self._folder.cameras().items():
            shown = observation.wrist if wrist else observation.image
            assert shown is not None, "the environment was built to show what the policy takes"
            if self.specification.view == "grey_image":
                shown = np.full_like(shown, GREY)
            batch[worldly.get(key, key)] = torch.from_numpy(shown.copy()).permute(2, 0, 1)[None].float() / 255
        if self._folder.takes_state and observation.proprio is not None:
            batch[worldly.get(STATE, STATE)] = torch.from_numpy(observation.proprio)[None].float()
        return batch


def _loaded(folder: LeRobotFolder, device: str) -> tuple[Any, Any]:
    """The policy in evaluation mode, with its adapters, and its configuration."""
    from lerobot.configs import PreTrainedConfig
    from lerobot.policies.factory import get_policy_class
    from lerobot.utils.import_utils import register_third_party_plugins

    register_third_party_plugins()
    if folder.type not in PreTrainedConfig.get_known_choices():
        raise UserError(f"LeRobot does not know the type '{folder.type}': {_remedy(folder.type)}")
    base = folder.base()
    if base is not None:
        from peft import PeftModel

        policy, _ = _loaded(base, device)
        config = PreTrainedConfig.from_pretrained(folder.path)
        return PeftModel.from_pretrained(policy, str(folder.path)).eval(), config
    try:
        config = PreTrainedConfig.from_pretrained(folder.path)
        config.device = device
        if hasattr(config, "pretrained_backbone_weights"):
            config.pretrained_backbone_weights = None  # the folder has them; LeRobot would fetch others first
        return get_policy_class(folder.type).from_pretrained(folder.path, config=config, strict=True), config
    except ImportError as error:
        raise UserError(f"a policy of type '{folder.type}' needs more ({error}): {_remedy(folder.type)}") from error
    except RuntimeError as error:  # torch's word for weights that do not fit
        raise UserError(f"{folder.path}: the weights do not fit config.json: {str(error)[:500]}") from error


def _remedy(kind: str) -> str:
    return f"run {INSTALL}" if kind == OURS else f"run pip install 'lerobot[{kind.removesuffix('5')}]==0.6.1'"
