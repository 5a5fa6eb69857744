"""CALVIN's simulator behind `Env`: the user's installed ``calvin_env``, of which nothing is part of this package.

The dataset says what the environment is: scene, cameras and robot stand in ``validation/.hydra/merged_config.yaml``. Of
ABC -> D that is scene D, which no training frame shows. Actions and pictures are in this package's conventions
(`la_reconvla.data.calvin`); success is CALVIN's own oracle, which compares the scene with a subtask's beginning.
"""

# pyright: reportMissingImports=false
# (calvin_env is the user's.)

from __future__ import annotations

import importlib.util
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jaxtyping import Bool, Float
from scipy.spatial.transform import Rotation

from la_reconvla.contracts import Observation
from la_reconvla.data.calvin import CALVIN_CAMERAS, to_theirs
from la_reconvla.data.starts import Start
from la_reconvla.episodes import Label, SequenceRecord
from la_reconvla.errors import UserError
from la_reconvla.sim.calvin_sequences import ROBOT, SUBTASKS, SUITE, Sequence, scene_at, start_seed
from la_reconvla.sim.env import Outcome, Pose, RolloutPolicy

STEPS = 360  # of a subtask
CONFIG = Path(".hydra/merged_config.yaml")
ORACLE = Path("conf/tasks/new_playtable_tasks.yaml")
NEWEST_PYTHON = (3, 11)  # for which pybullet has a wheel
INSTALL = (
    "git clone --recursive https://github.com/mees/calvin_env && "
    "pip install 'numpy<2' -e calvin_env/tacto -e calvin_env  # Python 3.10 or 3.11: docs/calvin.md"
)


@dataclass(frozen=True, kw_only=True)
class CalvinSettings:
    """What the environment shows, and for how long: part of what makes two evaluations comparable.

    Attributes:
        dataset: split whose configuration the environment has, for example ``task_ABC_D/validation``.
        cameras: the main one, and one beside it for policies that take two.
        proprio: whether observations carry the robot's state.
        max_steps: of a subtask.
        egl: draw on the GPU, as the dataset was drawn; else pybullet's own renderer does, whose shades are others.
    """

    dataset: Path
    cameras: tuple[str, ...] = CALVIN_CAMERAS[:1]
    proprio: bool = False
    max_steps: int = STEPS
    egl: bool = False


def has_gpu() -> bool:
    """Whether pictures can be drawn as the dataset's were."""
    return shutil.which("nvidia-smi") is not None


def missing() -> str | None:
    """What keeps CALVIN's simulator from being imported, and how to get it; None if nothing does. Imports nothing."""
    lacking = [name for name in ("calvin_env", "pybullet", "hydra") if importlib.util.find_spec(name) is None]
    if not lacking:
        return None
    late = sys.version_info[:2] > NEWEST_PYTHON
    newer = f"; pybullet has no wheel for Python {sys.version_info[0]}.{sys.version_info[1]}" if late else ""
    return f"{', '.join(lacking)} not installed{newer}: {INSTALL}"


def environment_of(dataset: Path) -> Path:
    """The split whose configuration describes the environment of an evaluation.

    Args:
        dataset: a whole dataset, or a split of it.

    Raises:
        UserError: there is no configuration in it, or the simulator is not installed.
    """
    found = next((p for p in (dataset / "validation", dataset) if (p / CONFIG).is_file()), None)
    if found is None:
        raise UserError(
            f"{dataset}: no validation/{CONFIG} there, which says what the environment is; give the folder of one of "
            "CALVIN's datasets (task_ABC_D; its small debug dataset has it too)"
        )
    if (lacking := missing()) is not None:
        raise UserError(f"CALVIN's simulator cannot be started: {lacking}")
    return found.resolve()


class CalvinEnv:
    """`la_reconvla.sim.env.Env` over ``calvin_env``.

    Raises:
        UserError: it cannot be started.
    """

    def __init__(self, settings: CalvinSettings):
        self.settings = settings
        try:
            self._env, self._oracle = _start(settings)
        except (Exception, SystemExit) as error:  # it ends the process where a plugin is missing
            raise UserError(f"CALVIN's simulator does not start ({error!r}): see docs/calvin.md") from error
        self._subtask, self._taken, self._said = "", 0, ""
        self._begun: Mapping[str, Any] = {}
        self._now: Mapping[str, Any] = {}
        self._seen: Mapping[str, Any] = {}

    def reset(self, start: Start) -> None:
        """Set robot and scene, and ask for what the start says."""
        robot, scene = np.split(start.state, [len(ROBOT)])
        self._env.reset(robot_obs=robot, scene_obs=scene)
        self.ask(start.target)

    def ask(self, subtask: str) -> None:
        """The next subtask begins where the one before ended."""
        self._subtask, self._taken, self._said = subtask, 0, SUBTASKS[subtask].says
        self._seen, self._begun = self._env.get_obs(), self._env.get_info()
        self._now = self._begun

    def step(self, chunk: Float[np.ndarray, "c 7"]) -> Outcome:
        """Execute the actions in order until the subtask is done, the step limit or the end of the chunk."""
        taken, success = 0, False
        for action in np.clip(np.asarray(chunk, np.float64), -1.0, 1.0):
            theirs = to_theirs(action)
            theirs[-1] = 1.0 if theirs[-1] > 0 else -1.0
            self._seen, _, _, self._now = self._env.step(theirs)
            taken, self._taken = taken + 1, self._taken + 1
            success = bool(self._oracle.get_task_info_for_set(self._begun, self._now, {self._subtask}))
            if success or self._taken >= self.settings.max_steps:
                break
        return Outcome(steps=taken, success=success, done=success or self._taken >= self.settings.max_steps)

    def observe(self) -> Observation:
        """What the cameras saw after the last step; ``calvin_env`` draws in every step."""
        pictures = [np.asarray(self._seen["rgb_obs"][f"rgb_{name}"], np.uint8) for name in self.settings.cameras]
        state = np.asarray(self._seen["robot_obs"], np.float32) if self.settings.proprio else None
        return Observation(pictures[0], self._said, pictures[1] if len(pictures) > 1 else None, state)

    def masks(self, names: tuple[str, ...]) -> dict[str, Bool[np.ndarray, "H W"]]:
        """Never: CALVIN's simulator says where things are, not which pixels show them.

        Raises:
            UserError: always.
        """
        raise UserError(
            "CALVIN's simulator has no instance maps: measure attention with boxes (la-reconvla data boxes)"
        )

    def poses(self) -> dict[str, Pose]:
        """Privileged: poses of the blocks and of the hand."""
        robot = self._now["robot_info"]
        hand = Rotation.from_euler("xyz", robot["tcp_orn"]).as_quat()
        blocks = self._now["scene_info"]["movable_objects"].items()
        return {
            **{n: Pose(np.asarray(b["current_pos"], float), np.asarray(b["current_orn"], float)) for n, b in blocks},
            "gripper": Pose(np.asarray(robot["tcp_pos"], float), hand),
        }

    def close(self) -> None:
        """End the simulation, which closes itself as it goes, and would complain of a second time."""
        del self._env


def _start(settings: CalvinSettings) -> tuple[Any, Any]:
    """The environment and its oracle."""
    import calvin_env
    from calvin_env.envs.play_table_env import get_env
    from calvin_env.envs.tasks import Tasks

    tasks = yaml.safe_load((Path(str(calvin_env.__file__)).parents[1] / ORACLE).read_text(encoding="utf-8"))["tasks"]
    with tempfile.TemporaryDirectory() as folder:  # get_env takes a folder, and no word about the renderer
        held = yaml.safe_load((settings.dataset / CONFIG).read_text(encoding="utf-8"))
        held["env"]["use_egl"] = settings.egl
        copy = Path(folder) / CONFIG
        copy.parent.mkdir()
        # The order of the blocks and doors there is that of their numbers in a state.
        copy.write_text(yaml.safe_dump(held, sort_keys=False), encoding="utf-8")
        return get_env(folder, show_gui=False), Tasks(tasks)


def start_of(sequence: Sequence, nth: int = 0) -> Start:
    """Where a sequence begins, with the words of its `nth` subtask."""
    subtask = SUBTASKS[sequence.subtasks[nth]]
    return Start(
        suite=SUITE,
        task=list(SUBTASKS).index(subtask.name),
        placement="official",
        split="test",
        index=sequence.index,
        seed=start_seed(sequence.state),
        state=np.concatenate([ROBOT, scene_at(sequence.state)]),
        instruction=subtask.says,
        target=subtask.name,
        destination="",
    )


def run_sequence(env: CalvinEnv, policy: RolloutPolicy, sequence: Sequence, label: Label) -> SequenceRecord:
    """One sequence, until a subtask fails; the policy is told each subtask anew.

    Args:
        env: where it happens.
        policy: what acts.
        sequence: what is asked for.
        label: which policy it is, for the record.
    """
    begun, completed, steps = time.perf_counter(), 0, []
    env.reset(start_of(sequence))
    for nth, subtask in enumerate(sequence.subtasks):
        if nth:
            env.ask(subtask)
        policy.reset(start_of(sequence, nth), env)
        taken, outcome = 0, Outcome(0, False, False)
        while not outcome.done:
            outcome = env.step(policy.act(env.observe() if policy.sees else None))
            taken += outcome.steps
        steps.append(taken)
        if not outcome.success:
            break
        completed += 1
    return SequenceRecord(
        label=label,
        index=sequence.index,
        state=sequence.state_index,
        subtasks=sequence.subtasks,
        completed=completed,
        steps=tuple(steps),
        seconds=round(time.perf_counter() - begun, 3),
    )
