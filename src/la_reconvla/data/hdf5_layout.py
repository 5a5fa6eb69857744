"""The layout of a demonstration file: LIBERO's own HDF5 layout, one file a task, ``<task name>_demo.hdf5``.

::

    data                        attributes: bddl_file_name, env_args, problem_info, macros_image_convention, ...
    data/demo_0                 attributes: num_samples, model_file, init_state
    data/demo_0/actions         [T a]   labels; the expert's clean actions where noise was added
    data/demo_0/states          [T S]   flattened MuJoCo states
    data/demo_0/robot_states    [T 9]   two finger positions, end effector position, its quaternion (xyzw)
    data/demo_0/rewards, dones  [T]     1 at the last step
    data/demo_0/obs/...         agentview_rgb, eye_in_hand_rgb [F H W 3]; ee_pos, ee_ori, ee_states, gripper_states,
                                joint_states [T .]

Any reader of LIBERO's files reads ours. What we add is beside it, where others do not look: attributes
(`hdf5_writer.FileHeader`, `hdf5_writer.Recording`), the noisy actions that really moved the robot
(``executed_actions``), and instance maps (``instances/map`` uint8 [F H W], with the attribute ``names``: 0 = none of
them, i + 1 = ``names[i]``).

**Pictures are stored upside down**, as LIBERO stores them (``macros_image_convention`` "opengl");
`demonstrations.Episode` turns them by 180 degrees, to the public convention of `contracts.Observation`.
**Frame stride**: with ``frame_stride`` s, pictures exist at steps 0, s, 2s, ... only; files without the
attribute have one at every step. In our files a picture shows the scene *before* the action of the same step. LIBERO's
script stores what the observables hold after it, but robosuite samples them in the first of a control step's 25 physics
steps: in effect the same scene. So picture t and action t belong together in both, as public training code takes them.

**Another robot's file** (``data import``) says so in attributes of ``data``, see `ACTION_NAMES` and `CAMERAS`. Pictures
of a camera are in ``obs/<name>_rgb``, of any size and never turned, and its state is in ``obs/state``.

**Corrections** (``data collect --correct``): ``init_state`` is the start, from which a policy acted; ``states[0]`` is
where the expert took over.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Float32

from la_reconvla.errors import UserError
from la_reconvla.robot import LIBERO_ACTIONS, ActionSpace

DEMO_SUFFIX = "_demo.hdf5"
SHARDS = "shards"
"""Folder of an unfinished collection; while it is there the demonstrations beside it are not complete."""
CAMERAS, ORIENTATION, RATE = "cameras", "orientation", "rate"
"""Attributes of another robot's file: names, the main one first (JSON); how pictures stand; control steps a second."""
STATE = "state"
"""In ``obs`` of another robot's file: its state [T p], in the place of LIBERO's."""
ACTION_NAMES, ACTION_KINDS = "action_names", "action_kinds"
"""Attributes of a file, JSON lists: the names of the action's dimensions and their kinds; without them LIBERO's."""
REMEDY = "collect or download the file again"
# What HDF5, h5py and numpy raise where a damaged file gives another place, size or kind of something.
_DAMAGE = (OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError, MemoryError)
_TOLERANCE = 1e-4  # of the action range; labels stored in half precision may overshoot 1


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The file, closed again on leaving. `Any`, as h5py's types do not say what is inside a group.

    Raises:
        UserError: it is missing, a folder, damaged or no HDF5 file.
    """
    _require_file(path)
    try:
        with h5py.File(path, "r") as file:
            yield file
    except _DAMAGE as error:
        reason = "not an HDF5 file" if "signature not found" in str(error) else f"truncated or damaged ({error})"
        raise UserError(f"{path}: {reason}; {REMEDY}") from error


def _require_file(path: Path) -> None:
    if not path.exists():
        raise UserError(f"{path}: no such file; give the folder that `la-reconvla data collect --out` wrote")
    if path.is_dir():
        raise UserError(f"{path} is a folder; give a file in it, or open the folder as a whole")


def picture_key(camera: str) -> str:
    """Where an episode keeps a camera's pictures."""
    return f"obs/{camera}_rgb"


def file_names(instructions: Iterable[str]) -> dict[str, str]:
    """A task's name, which is that of its file too, for each instruction."""
    result: dict[str, str] = {}
    for text in dict.fromkeys(instructions):
        name = re.sub(r"\W+", "_", text.lower()).strip("_")[:80] or "task"
        result[text] = name if name not in result.values() else f"{name}_{len(result)}"
    return result


def episode_groups(data: Any) -> list[str]:
    """Names of the episodes by number: demo_2 comes before demo_10."""
    return sorted((n for n in data if n.startswith("demo_") and n[5:].isdigit()), key=lambda name: int(name[5:]))


def checked_actions(where: str, dataset: Any, space: ActionSpace) -> Float32[np.ndarray, "T a"]:
    """A dataset of actions, read.

    Raises:
        UserError: they are not [T a], not finite, or binary ones not -1 or 1; LIBERO's are outside [-1, 1]. The message
            begins with `where`.
    """
    if dataset.ndim != 2 or dataset.shape[1] != len(space) or len(dataset) == 0 or dataset.dtype.kind not in "fi":
        raise UserError(
            f"{where}: actions are {dataset.dtype} {dataset.shape}, not numbers of shape (T, {len(space)}): {space}; "
            f"{REMEDY}, or name the actions of another robot ({ACTION_NAMES}, docs/own-robot.md)"
        )
    with np.errstate(over="ignore"):  # becomes infinite, and is refused below
        actions = np.asarray(dataset[()], np.float32)
    if not np.isfinite(actions).all():
        raise UserError(f"{where}: actions contain NaN or infinity; {REMEDY}")
    if space == LIBERO_ACTIONS and np.abs(actions).max() > 1 + _TOLERANCE:
        raise UserError(
            f"{where}: actions reach {np.abs(actions).max():.3g}, outside [-1, 1]; "
            f"convert them to LIBERO's OSC_POSE units first, or name those of another robot ({ACTION_NAMES})"
        )
    if space != LIBERO_ACTIONS and not (np.abs(two := actions[:, space.binary]) == 1).all():
        raise UserError(f"{where}: a binary action is {two[np.abs(two) != 1][0]:.3g}, not -1 or 1: write those two")
    return actions
