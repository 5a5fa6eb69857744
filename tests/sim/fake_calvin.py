"""A stand-in for ``calvin_env`` with its API, as packages in a folder: what a subtask needs is a number of steps."""

from __future__ import annotations

from pathlib import Path

import yaml

ENVIRONMENT = """
import json
from pathlib import Path
import numpy as np
import yaml


class Env:
    def __init__(self, config):
        self.config, self.log, self.steps = config, [], 0
        self.reset()

    def reset(self, robot_obs=None, scene_obs=None):
        self.robot = np.zeros(15) if robot_obs is None else np.array(robot_obs)
        self.scene = np.zeros(24) if scene_obs is None else np.array(scene_obs)
        return self.get_obs()

    def get_obs(self):
        pictures = {f"rgb_{name}": np.full((size, size, 3), self.steps % 256, np.uint8)
                    for name, size in (("static", 200), ("gripper", 84))}
        return {"rgb_obs": pictures, "depth_obs": {}, "robot_obs": self.robot, "scene_obs": self.scene}

    def get_info(self):
        blocks = {"block_red": {"current_pos": self.scene[6:9], "current_orn": (0, 0, 0, 1)}}
        robot = {"tcp_pos": self.robot[:3], "tcp_orn": (0, 0, np.pi / 2), "uid": 0}
        return {"robot_info": robot, "scene_info": {"movable_objects": blocks, "steps": self.steps}}

    def step(self, action):
        action = np.asarray(action)
        assert action.shape == (7,) and action[-1] in (-1, 1) and np.abs(action).max() <= 1
        self.log.append(action)
        self.steps += 1
        return self.get_obs(), 0, False, self.get_info()

    def close(self):
        pass


def get_env(dataset_path, obs_space=None, show_gui=True, **kwargs):
    assert not show_gui
    return Env(yaml.safe_load((Path(dataset_path) / ".hydra/merged_config.yaml").read_text()))
"""
ORACLE = """
class Tasks:
    def __init__(self, tasks):
        self.tasks = tasks

    def get_task_info_for_set(self, start_info, end_info, task_filter):
        taken = end_info["scene_info"]["steps"] - start_info["scene_info"]["steps"]
        return {name for name in task_filter if taken >= self.tasks[name][1]}
"""


def write(folder: Path, needs: dict[str, int]) -> Path:
    """Make the packages.

    Args:
        folder: to put on Python's path.
        needs: steps after which a subtask is done; all others never are.
    """
    from la_reconvla.sim.calvin_sequences import SUBTASKS

    package = folder / "calvin_env"
    (package / "envs").mkdir(parents=True)
    for path in (package / "__init__.py", package / "envs/__init__.py", folder / "pybullet.py", folder / "hydra.py"):
        path.write_text("")
    (package / "envs/play_table_env.py").write_text(ENVIRONMENT)
    (package / "envs/tasks.py").write_text(ORACLE)
    (folder / "conf/tasks").mkdir(parents=True)
    tasks = {name: ["after", needs.get(name, 10**6)] for name in SUBTASKS}
    (folder / "conf/tasks/new_playtable_tasks.yaml").write_text(yaml.safe_dump({"tasks": tasks}))
    return folder


def configure(dataset: Path) -> Path:
    """The description of the environment that a dataset carries; returns the split."""
    hydra = dataset / "validation/.hydra"
    hydra.mkdir(parents=True)
    held = {"scene": {"objects": {"block_red": 1, "block_blue": 2}}, "env": {"use_egl": True, "cameras": "${cameras}"}}
    (hydra / "merged_config.yaml").write_text(yaml.safe_dump(held, sort_keys=False))
    return dataset / "validation"
