"""The layout of a demonstration file: LIBERO's own HDF5 layout, one file per task, ``<task name>_demo.hdf5``.

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

**Others' files.** Attributes may be missing, as in what OpenVLA's script regenerates: the instruction then comes from
LIBERO's task file or the file's name (`instructions`). Numbers of demos may have gaps. What nobody asks for is not
checked, whatever else lies in ``obs``. robomimic's names are known (``agentview_image``, ``robot0_eef_pos``, ...); its
pictures have their rows flipped ("opencv"). Pictures may be PNG or JPEG, one variable-length row of uint8 a frame.

**Corrections** (``data collect --correct``): ``init_state`` is the start, from which a policy acted; ``states[0]`` is
where the expert took over.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Float32, UInt8

from la_reconvla.data.image_files import read_picture
from la_reconvla.errors import UserError
from la_reconvla.robot import LIBERO_ACTIONS, ActionSpace
from la_reconvla.storage import why_unreadable

DEMO_SUFFIX = "_demo.hdf5"
SHARDS = "shards"
"""Folder of an unfinished collection; while it is there the demonstrations beside it are not complete."""
CAMERAS, ORIENTATION, RATE = "cameras", "orientation", "rate"
"""Attributes of another robot's file: names, the main one first (JSON); how pictures stand; control steps a second."""
STATE = "state"
"""In ``obs`` of another robot's file: its state [T p], in the place of LIBERO's."""
ACTION_NAMES, ACTION_KINDS = "action_names", "action_kinds"
"""Attributes of a file, JSON lists: the names of the action's dimensions and their kinds; without them LIBERO's."""
PARTS = "parts"
"""Attribute of an episode that moves several things in turn (JSON): [[first step, target, destination], ...]."""
REMEDY = "collect or download the file again"
# Names of one thing in the order in which they are looked for: LIBERO's, then robomimic's.
_ROBOMIMIC_PICTURES = {"agentview": ("obs/agentview_image",), "eye_in_hand": ("obs/robot0_eye_in_hand_image",)}
HAND = "obs/ee_states"
ROBOMIMIC_HAND = ("obs/robot0_eef_pos", "obs/robot0_eef_quat")
FINGERS = ("obs/gripper_states", "obs/robot0_gripper_qpos")
# What HDF5, h5py and numpy raise where a damaged file gives another place, size or kind of something.
_DAMAGE = (OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError, MemoryError)
_TOLERANCE = 1e-4  # of the action range; labels stored in half precision may overshoot 1


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The file, closed again on leaving. `Any`, as h5py's types do not say what is inside a group.

    Raises:
        UserError: it is missing, a folder, damaged or no HDF5 file.
    """
    try:
        _require_file(path)
        with h5py.File(path, "r") as file:
            yield file
    except _DAMAGE as error:
        raise UserError(f"{path}: {_reason(error)}") from error


def _require_file(path: Path) -> None:
    if not path.exists():
        raise UserError(f"{path}: no such file; give the folder that `la-reconvla data collect --out` wrote")
    if path.is_dir():
        raise UserError(f"{path} is a folder; give a file in it, or open the folder as a whole")


def picture_names(camera: str) -> tuple[str, ...]:
    """Where an episode may keep a camera's pictures: first where this package writes them."""
    return f"obs/{camera}_rgb", *_ROBOMIMIC_PICTURES.get(camera, ())


def _reason(error: Exception) -> str:
    """What is wrong, and what helps."""
    if "unable to lock file" in str(error) or isinstance(error, BlockingIOError):
        return (
            "another program holds it open for writing; end that, or, on a disk that knows no locks, set "
            "HDF5_USE_FILE_LOCKING=FALSE"
        )
    if "signature not found" in str(error):
        return f"not an HDF5 file; {REMEDY}"
    return why_unreadable(error, REMEDY)


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


def checked_text(where: str, name: str, value: str, remedy: str = REMEDY) -> str:
    """`value`, if it is UTF-8: h5py and JSON let other bytes through as characters that cannot be written anywhere.

    Raises:
        UserError: it is not; the message begins with `where`, names `name` and ends with `remedy`.
    """
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UserError(f"{where}: the text '{name}' is damaged ({value!a}); {remedy}") from None
    return value


def checked_cameras(where: str, cameras: Iterable[str], remedy: str = REMEDY) -> tuple[str, ...]:
    """Names of cameras. Files are named after them, so none may lead to another folder.

    Raises:
        UserError: one could; the message begins with `where` and ends with `remedy`.
    """
    found = tuple(cameras)
    if wrong := [name for name in found if any(mark in name for mark in ("/", "\\", "..", "\0"))]:
        raise UserError(f"{where}: the camera {wrong[0]!r} has '/', '\\' or '..' in its name; rename it, or {remedy}")
    return found


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


def lacks(where: str, name: str) -> UserError:
    """What is raised where an episode does not have what is asked for."""
    return UserError(f"{where} has no '{name}'; it was recorded without")


def dataset_in(where: str, group: Any, names: tuple[str, ...], rows: int | None = None) -> Any:
    """The first dataset of these `names` that a group has, its values not read yet.

    Args:
        where: begins the message of an error.
        group: of the episode.
        names: of one thing, for example `FINGERS`.
        rows: how many it must have; None for any number.

    Raises:
        UserError: there is none, it is no dataset, parts of it are missing, it has other `rows`, or it is packed in a
            way that takes a plugin.
    """
    name = next((name for name in names if name in group), None)
    if name is None:
        raise lacks(where, names[0])
    dataset = group[name]
    if not isinstance(dataset, h5py.Dataset):
        raise UserError(f"{where}: '{name}' is no dataset; {REMEDY}")
    if rows is not None and (dataset.ndim == 0 or len(dataset) != rows):
        raise UserError(
            f"{where}: its actions and frame stride need {rows} rows of '{name}', found {dataset.shape}; {REMEDY}"
        )
    _require_filters(f"{where}: '{name}'", dataset)
    _require_stored(f"{where}: '{name}'", dataset)
    return dataset


def _require_filters(where: str, dataset: Any) -> None:
    """Raise a `UserError` for what h5py alone cannot unpack; where the plugins are installed, they are loaded."""
    plan = dataset.id.get_create_plist()
    filters = {plan.get_filter(i)[0]: plan.get_filter(i)[3] for i in range(plan.get_nfilters())}
    if all(map(h5py.h5z.filter_avail, filters)):
        return
    with contextlib.suppress(ImportError):
        import hdf5plugin  # noqa: F401  # pyright: ignore[reportMissingImports]  (importing it is what loads them)
    if lacking := [code for code in filters if not h5py.h5z.filter_avail(code)]:
        named = ", ".join(filters[code].decode(errors="replace") or f"filter {code}" for code in lacking)
        raise UserError(f"{where} is packed by {named}, which h5py cannot unpack: pip install hdf5plugin")


def _require_stored(where: str, dataset: Any) -> None:
    """Raise a `UserError` where values were never written: HDF5 would read them as zeros, and a picture as black."""
    if not dataset.size or dataset.is_virtual or dataset.external:
        return
    if dataset.chunks:
        wanted = math.prod(-(-size // part) for size, part in zip(dataset.shape, dataset.chunks, strict=True))
        whole = dataset.id.get_num_chunks() >= wanted
    else:
        whole = dataset.id.get_storage_size() > 0
    if not whole:
        raise UserError(f"{where} is not complete, parts of it were never written; {REMEDY}")


def picture_size(where: str, dataset: Any) -> tuple[int, int]:
    """Rows and columns of a dataset of pictures; of encoded ones the first is read.

    Raises:
        UserError: they are not uint8 RGB pictures.
    """
    if _encoded(dataset):
        return _decoded(where, dataset[0]).shape[:2]
    if dataset.dtype != np.uint8 or dataset.ndim != 4 or dataset.shape[3] != 3 or 0 in dataset.shape:
        raise UserError(
            f"{where}: {dataset.name.rpartition('/')[2]} is {dataset.dtype} {dataset.shape}, not uint8 of shape "
            "(F, H, W, 3); store RGB pictures with values 0 to 255"
        )
    return dataset.shape[1:3]


def pictures_in(where: str, dataset: Any, numbers: Iterable[int]) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """Pictures of a dataset, as stored, one after the other.

    Raises:
        UserError: as `picture_size`, or encoded ones differ in size.
    """
    size, encoded = picture_size(where, dataset), _encoded(dataset)
    for number in numbers:
        picture = _decoded(where, dataset[number]) if encoded else dataset[number]
        if picture.shape != (*size, 3):
            raise UserError(f"{where}: the pictures of {dataset.name} differ in size; store all at one size")
        yield picture


def _encoded(dataset: Any) -> bool:
    return dataset.ndim == 1 and h5py.check_vlen_dtype(dataset.dtype) == np.uint8


def _decoded(where: str, row: Any) -> UInt8[np.ndarray, "H W 3"]:
    return read_picture(np.asarray(row, np.uint8).tobytes(), f"{where}: a picture")
