"""Demonstrations on disk, in LIBERO's own HDF5 layout: one file a task, ``<task name>_demo.hdf5``.

::

    data                        attributes: bddl_file_name, env_args, problem_info, macros_image_convention, ...
    data/demo_0                 attributes: num_samples, model_file, init_state
    data/demo_0/actions         [T 7]   labels; the expert's clean actions where noise was added
    data/demo_0/states          [T S]   flattened MuJoCo states
    data/demo_0/robot_states    [T 9]   two finger positions, end effector position, its quaternion (xyzw)
    data/demo_0/rewards, dones  [T]     1 at the last step
    data/demo_0/obs/...         agentview_rgb, eye_in_hand_rgb [F H W 3]; ee_pos, ee_ori, ee_states, gripper_states,
                                joint_states [T .]

Any reader of LIBERO's files reads ours. What we add lies beside it, where others do not look: attributes
(`FileHeader`, `Recording`), the noisy actions that really moved the robot (``executed_actions``), and instance maps
(``instances/map`` uint8 [F H W], with the attribute ``names``: 0 = none of them, i + 1 = ``names[i]``).

**Pictures are stored upside down**, as LIBERO stores them (``macros_image_convention`` "opengl"); `Episode` turns
them by 180 degrees, to the public convention of `contracts.Observation`. **Frame stride**: with ``frame_stride`` s,
pictures exist at steps 0, s, 2s, ... only; files without the attribute have one at every step. In our files a picture
shows the moment *before* the action of the same step. LIBERO's script stores what the observables hold after it, but
robosuite samples them in the first of a control step's 25 physics steps: in effect the same moment. So picture t and
action t belong together in both, as public training code takes them.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import h5py
import numpy as np
from jaxtyping import Float, Float32, Int, UInt8

from la_reconvla.contracts import ACTION_DIM, PlacementKind, Quality, Split, Start
from la_reconvla.errors import UserError, unknown
from la_reconvla.storage import TEMPORARY, atomic_write

SUFFIX = "_demo.hdf5"
SHARDS = "shards"
"""Folder of an unfinished collection; while it is there the demonstrations beside it are not complete."""
ROLES = ("target", "destination")
"""Names that stand for another instance in each episode."""

_COMPRESSION = {"compression": "gzip", "compression_opts": 1}
_REQUIRED = ("actions", "obs/agentview_rgb")
_TOLERANCE = 1e-4  # of the action range; labels stored in half precision may overshoot 1


# ---------------------------------------------------------------- writing


@dataclass(frozen=True)
class FileHeader:
    """What all episodes of one file share.

    Attributes:
        suite: LIBERO suite.
        task: index of the task in its suite.
        name: name of the task; the file is called ``<name>_demo.hdf5``.
        language: the task's own instruction, for readers that know one instruction a file.
        bddl_file: path of the task's description below LIBERO's ``bddl_files``.
        bddl_content: the description itself.
        env_args: how to build the simulator, as LIBERO's ``env_args`` (JSON).
        problem: LIBERO's name of the problem class, for example ``libero_tabletop_manipulation``.
        quality: render quality of the pictures.
        image_size: rows and columns of the pictures.
        frame_stride: control steps from one picture to the next.
    """

    suite: str
    task: int
    name: str
    language: str
    bddl_file: str
    bddl_content: str
    env_args: str
    problem: str
    quality: Quality
    image_size: int
    frame_stride: int


@dataclass(frozen=True, eq=False)
class Recording:
    """One successful episode, ready to be written. Pictures and maps are in the public convention (upright).

    Attributes:
        start: where the episode began.
        actions: clean labels in [-1, 1].
        executed: what was really executed: labels plus noise.
        states: flattened MuJoCo state before each action.
        robot_states: finger positions (m), end effector position (m) and quaternion (xyzw).
        proprio: end effector position (m), orientation (axis-angle, rad), finger positions (m).
        joints: joint angles of the arm (rad).
        frames: agentview pictures at steps 0, s, 2s, ...
        wrist: wrist pictures at the same steps, or None.
        instances: instance maps at the same steps, or None.
        instance_names: what the numbers 1, 2, ... of `instances` stand for.
        model_xml: the compiled scene.
        success_step: number of steps after which the goal first held.
        noise: standard deviation of the action noise.
        seed: seed of the action noise.
    """

    start: Start
    actions: Float[np.ndarray, "T 7"]
    executed: Float[np.ndarray, "T 7"]
    states: Float[np.ndarray, "T s"]
    robot_states: Float[np.ndarray, "T 9"]
    proprio: Float[np.ndarray, "T 8"]
    joints: Float[np.ndarray, "T 7"]
    frames: UInt8[np.ndarray, "F H W 3"]
    wrist: UInt8[np.ndarray, "F H W 3"] | None
    instances: UInt8[np.ndarray, "F H W"] | None
    instance_names: tuple[str, ...]
    model_xml: str
    success_step: int
    noise: float
    seed: int


def write_file(path: Path, header: FileHeader, recordings: Sequence[Recording]) -> None:
    """Write a demonstration file, atomically.

    Raises:
        UserError: the disk is full.
    """
    with atomic_write(path) as temporary, h5py.File(temporary, "w") as file:
        data = file.create_group("data")
        _write_header(data, header)
        for number, recording in enumerate(recordings):
            _write_episode(data.create_group(f"demo_{number}"), recording)
        _write_totals(data)


def merge_files(parts: Sequence[Path], path: Path) -> None:
    """Write one file with the episodes of `parts` in their order (atomically; compressed pictures are not touched).

    Args:
        parts: files of one task, at least one.
        path: the file to write; replaced if it exists.
    """
    with atomic_write(path) as temporary, h5py.File(temporary, "w") as file:
        data, number = file.create_group("data"), 0
        for part in parts:
            with _opened(part) as source:
                group = source["data"]
                data.attrs.update(group.attrs)
                for name in _in_order(group):
                    source.copy(group[name], data, f"demo_{number}")
                    number += 1
        _write_totals(data)


def split_file(path: Path, parts: Sequence[Path]) -> None:
    """Write a file for each episode of one file (each atomically); `merge_files` makes the same episodes of them again.

    Args:
        path: the file, which stays as it is.
        parts: the files to write, as many as there are episodes, in their order.
    """
    with _opened(path) as source:
        names = _in_order(source["data"])
    for name, part in zip(names, parts, strict=True):
        with atomic_write(part) as temporary, h5py.File(temporary, "w") as file:
            data = file.create_group("data")
            with _opened(path) as source:
                data.attrs.update(source["data"].attrs)
                source.copy(source["data"][name], data, "demo_0")
            _write_totals(data)


def _write_header(data: Any, header: FileHeader) -> None:
    problem = {
        "problem_name": header.problem,
        "domain_name": "robosuite",
        "language_instruction": header.language,
    }
    data.attrs.update(
        {
            "bddl_file_name": f"libero/libero/bddl_files/{header.bddl_file}",
            "bddl_file_content": header.bddl_content,
            "env_args": header.env_args,
            "env_name": header.problem.title(),
            "problem_info": json.dumps(problem),
            "macros_image_convention": "opengl",
            "tag": "libero-v1",
            "suite": header.suite,
            "task_index": header.task,
            "task_name": header.name,
            "quality": header.quality,
            "image_size": header.image_size,
            "frame_stride": header.frame_stride,
        }
    )


def _write_episode(group: Any, recording: Recording) -> None:
    length = len(recording.actions)
    last = np.zeros(length, dtype=np.uint8)
    last[-1] = 1
    position, orientation, fingers = np.split(recording.proprio.astype(np.float64), (3, 6), axis=1)
    group["actions"] = recording.actions.astype(np.float64)
    group["executed_actions"] = recording.executed.astype(np.float64)
    group["robot_states"] = recording.robot_states
    group["rewards"] = group["dones"] = last
    group.create_dataset("states", data=recording.states, **_COMPRESSION)
    observation = group.create_group("obs")
    observation["ee_pos"], observation["ee_ori"] = position, orientation
    observation["ee_states"] = np.concatenate([position, orientation], axis=1)
    observation["gripper_states"] = fingers
    observation["joint_states"] = recording.joints
    _write_pictures(observation, "agentview_rgb", recording.frames)
    if recording.wrist is not None:
        _write_pictures(observation, "eye_in_hand_rgb", recording.wrist)
    if recording.instances is not None:
        _write_pictures(group.create_group("instances"), "map", recording.instances)
        group["instances"].attrs["names"] = json.dumps(recording.instance_names)
    start = recording.start
    group.attrs.update(
        {
            "num_samples": length,
            "model_file": recording.model_xml,
            "init_state": recording.states[0],
            "start_id": start.id,
            "placement": start.placement,
            "split": start.split,
            "start_index": start.index,
            "start_seed": start.seed,
            "instruction": start.instruction,
            "target": start.target,
            "destination": start.destination,
            "success_step": recording.success_step,
            "noise": recording.noise,
            "seed": recording.seed,
        }
    )


def _write_pictures(group: Any, name: str, pictures: UInt8[np.ndarray, "F H W ..."]) -> None:
    """One chunk a picture, so that reading one decompresses one."""
    upside_down = np.ascontiguousarray(pictures[:, ::-1, ::-1])
    group.create_dataset(name, data=upside_down, chunks=(1, *pictures.shape[1:]), **_COMPRESSION)


def _write_totals(data: Any) -> None:
    data.attrs["num_demos"] = len(data)
    data.attrs["total"] = sum(len(data[name]["actions"]) for name in data)


# ---------------------------------------------------------------- reading


@dataclass(frozen=True, eq=False)
class Episode:
    """One demonstration: what it is, its actions, and how to read the rest.

    Attributes:
        path: its file.
        demo: its group in the file, for example ``demo_0``.
        suite: LIBERO suite, None if the file does not say.
        task: index of the task in its suite, None in files that are not ours.
        task_name: name of the task.
        instruction: what the robot was told.
        actions: float32 [T 7], labels.
        quality: render quality of the pictures.
        image_size: rows and columns of the pictures.
        frame_stride: control steps from one picture to the next.
        instance_names: what the numbers 1, 2, ... of `instances` stand for; empty in files that are not ours.
        has_wrist: whether there are wrist pictures.
        target: instance that is moved; this and the rest is None in files that are not ours.
        destination: where it is moved to.
        start_id: `contracts.Start.id` of the start.
        placement: kind of placement of the start.
        split: split of the start.
        start_index: index of the start.
        start_seed: simulator seed of the start.
        success_step: number of steps after which the goal first held.
        noise: standard deviation of the action noise.
        seed: seed of the action noise.
        turn: how stored pictures become public ones: (row step, column step).
    """

    path: Path
    demo: str
    suite: str | None
    task: int | None
    task_name: str
    instruction: str
    actions: Float32[np.ndarray, "T 7"]
    quality: Quality
    image_size: int
    frame_stride: int
    instance_names: tuple[str, ...] = ()
    has_wrist: bool = False
    target: str | None = None
    destination: str | None = None
    start_id: str | None = None
    placement: PlacementKind | None = None
    split: Split | None = None
    start_index: int | None = None
    start_seed: int | None = None
    success_step: int | None = None
    noise: float | None = None
    seed: int | None = None
    turn: tuple[int, int] = (-1, -1)

    @property
    def name(self) -> str:
        """Unique among the files of a folder; for messages."""
        return f"{self.path.name}/{self.demo}"

    @property
    def scene(self) -> str:
        """Names the scene: episodes that share one show (nearly) the same pictures and belong on one side of a split.

        Two starts of a wide placement, 2j and 2j + 1, are one scene with two targets.
        """
        if self.start_index is None:
            return f"{self.task_name}/{self.demo}"
        index = self.start_index // 2 if self.placement == "wide" else self.start_index
        return f"{self.task_name}/{self.placement}/{self.split}/{index}"

    @property
    def frame_steps(self) -> Int[np.ndarray, " F"]:
        """Control steps that have a picture."""
        return np.arange(0, len(self.actions), self.frame_stride)

    def frames(self) -> UInt8[np.ndarray, "F H W 3"]:
        """Agentview pictures at `frame_steps`, public convention."""
        return self._turned("obs/agentview_rgb")

    def wrist(self) -> UInt8[np.ndarray, "F H W 3"]:
        """Wrist pictures at `frame_steps`, public convention.

        Raises:
            UserError: the file has none.
        """
        return self._turned("obs/eye_in_hand_rgb")

    def instances(self) -> UInt8[np.ndarray, "F H W"]:
        """Instance maps at `frame_steps`, turned as the pictures: 0 = none, i + 1 = ``instance_names[i]``.

        Raises:
            UserError: the file has none, or one that uses a number without a name.
        """
        maps = self._turned("instances/map")
        if maps.max() > len(self.instance_names):
            raise UserError(
                f"{self.path}: an instance map of {self.demo} uses the number {maps.max()}, but there are "
                f"{len(self.instance_names)} names; {_REMEDY}"
            )
        return maps

    def instance_number(self, name: str) -> int:
        """The number that stands for an instance in `instances`; ``target`` and ``destination`` are the episode's own.

        Raises:
            UserError: the file has no such instance, or does not say what the episode's own is.
        """
        wanted = getattr(self, name) if name in ROLES else name
        if wanted is None:
            raise UserError(f"{self.path}: {self.demo} does not say what its {name} is; collect with this package")
        owners = [owner for owner in self.instance_names if name in ROLES and wanted.startswith(f"{owner}_")]
        if wanted not in self.instance_names and not owners:
            raise unknown(f"instance in {self.name}", wanted, self.instance_names)
        shown = wanted if wanted in self.instance_names else owners[0]  # a region is shown by what it belongs to
        return self.instance_names.index(shown) + 1

    def proprio(self) -> Float32[np.ndarray, "T 8"]:
        """End effector position (m), orientation (axis-angle, rad) and two finger positions (m), at every step.

        Raises:
            UserError: the file has none, or they are not finite.
        """
        parts = [self._array("obs/ee_states"), self._array("obs/gripper_states")]
        length = len(self.actions)
        if [part.shape for part in parts] != [(length, 6), (length, 2)] or any(p.dtype.kind != "f" for p in parts):
            found = " and ".join(f"{part.dtype} {part.shape}" for part in parts)
            raise UserError(
                f"{self.path}: the robot states of {self.demo} are {found}, not floats of shapes "
                f"({length}, 6) and ({length}, 2); {_REMEDY}"
            )
        with np.errstate(over="ignore"):  # becomes infinite, and is refused below
            values = np.concatenate(parts, axis=1).astype(np.float32)
        if not np.isfinite(values).all():
            raise UserError(f"{self.path}: {self.demo} has NaN or infinity in its robot states; {_REMEDY}")
        return values

    def executed(self) -> Float32[np.ndarray, "T 7"]:
        """What really moved the robot: the labels plus noise; the labels themselves in files that are not ours.

        Raises:
            UserError: they are not finite or outside [-1, 1].
        """
        with _opened(self.path) as file:
            group = file["data"][self.demo]
            name = "executed_actions" if "executed_actions" in group else "actions"
            return _checked_actions(f"{self.path}: {self.demo}", group[name])

    def states(self) -> Float[np.ndarray, "T s"]:
        """Flattened MuJoCo state before each action.

        Raises:
            UserError: the file has none.
        """
        return self._array("states")

    def _array(self, key: str) -> np.ndarray:
        with _opened(self.path) as file:
            group = file["data"][self.demo]
            if key not in group:
                raise UserError(f"{self.path}: {self.demo} has no '{key}'; it was recorded without")
            return np.asarray(group[key][()])

    def _turned(self, key: str) -> np.ndarray:
        rows, columns = self.turn
        return np.ascontiguousarray(self._array(key)[:, ::rows, ::columns])


@dataclass(frozen=True, eq=False)
class Demonstrations:
    """Episodes that may be trained on together: one render quality, one picture size, one frame stride."""

    episodes: tuple[Episode, ...]

    @property
    def quality(self) -> Quality:
        """Render quality of all pictures."""
        return self.episodes[0].quality

    @property
    def image_size(self) -> int:
        """Rows and columns of all pictures."""
        return self.episodes[0].image_size

    @property
    def frame_stride(self) -> int:
        """Control steps from one picture to the next."""
        return self.episodes[0].frame_stride

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, each once."""
        return tuple(dict.fromkeys(episode.task_name for episode in self.episodes))

    @property
    def starts(self) -> tuple[str, ...]:
        """Ids of the starts used, each once; evaluation uses others. Files that are not ours do not say."""
        return tuple(dict.fromkeys(e.start_id for e in self.episodes if e.start_id is not None))

    @functools.cached_property
    def hash(self) -> str:
        """Names the content: equal for equal episodes in equal order, wherever the files lie and however compressed.

        All actions and instructions enter, and three pictures of each episode.
        """
        digest = hashlib.sha256(f"{self.quality}/{self.image_size}/{self.frame_stride}".encode())
        for episode in self.episodes:
            digest.update(
                f"\0{episode.task_name}\0{episode.instruction}\0{episode.start_id}\0{len(episode.actions)}\0".encode()
            )
            digest.update(np.ascontiguousarray(episode.actions, "<f4").tobytes())
            with _opened(episode.path) as file:
                frames = file["data"][episode.demo]["obs/agentview_rgb"]
                for index in (0, len(frames) // 2, len(frames) - 1):
                    digest.update(frames[index].tobytes())
        return digest.hexdigest()

    def divide(self, held_out: float, seed: int = 0) -> tuple[Demonstrations, Demonstrations]:
        """Training episodes and held-out episodes. Scenes are not torn, and every task with two scenes holds one out.

        Args:
            held_out: share of each task's scenes to hold out, in (0, 1).
            seed: which ones; the choice for a task does not depend on the other tasks.

        Raises:
            UserError: `held_out` is not a share, or no task has two scenes.
        """
        if not 0 < held_out < 1:
            raise UserError(f"the held-out share must lie between 0 and 1, not {held_out}")
        chosen: set[str] = set()
        for task in self.tasks:
            scenes = list(dict.fromkeys(e.scene for e in self.episodes if e.task_name == task))
            scenes.sort(key=lambda scene: hashlib.sha256(f"{seed}/{scene}".encode()).digest())
            chosen.update(scenes[: min(max(1, round(held_out * len(scenes))), len(scenes) - 1)])
        if not chosen:
            raise UserError("no episode can be held out: each task has one scene only; collect more episodes")
        rest = tuple(e for e in self.episodes if e.scene not in chosen)
        return Demonstrations(rest), Demonstrations(tuple(e for e in self.episodes if e.scene in chosen))


def open_demonstrations(folder: Path | str, tasks: Sequence[str | int] | None = None) -> Demonstrations:
    """All demonstrations in a folder, ordered by task and episode.

    Args:
        folder: holds ``*_demo.hdf5`` files, ours or LIBERO's own.
        tasks: names of the tasks wanted, or (our files only) their indices; all by default.

    Raises:
        UserError: no demonstrations there, an unfinished collection, an unknown task, a damaged or foreign file, or
            files of different render quality, picture size or frame stride.
    """
    folder = Path(folder)
    episodes = [episode for path in _find_files(folder) for episode in read_file(path)]
    episodes = episodes if tasks is None else _of_tasks(episodes, tasks)
    return same_kind(episodes, str(folder))


def same_kind(episodes: Sequence[Episode], where: str) -> Demonstrations:
    """These episodes as one set.

    Raises:
        UserError: if they differ in render quality, picture size or frame stride; the message begins with `where`.
    """
    for kind in ("quality", "image_size", "frame_stride"):
        if len(found := {getattr(e, kind): e.path.name for e in episodes}) > 1:
            listed = ", ".join(f"{value} in {name}" for value, name in found.items())
            raise UserError(
                f"{where}: the {kind} differs: {listed}. Such data must not be mixed: choose tasks or collect"
            )
    return Demonstrations(tuple(episodes))


def read_file(path: Path | str) -> list[Episode]:
    """Check a demonstration file and read what its episodes are, without their pictures.

    Raises:
        UserError: the file is missing, truncated, not HDF5 or not of this layout; keys are missing; lengths disagree;
            actions are not finite or outside [-1, 1]; pictures or instance maps are not square uint8; attributes
            are of the wrong kind.
    """
    path = Path(path)
    with _opened(path) as file:
        if not isinstance(data := file.get("data"), h5py.Group):
            found = ", ".join(list(file)[:5]) or "nothing"
            raise UserError(f"{path}: no group 'data', found {found}; is this a LIBERO demonstration file?")
        names = _in_order(data)
        if not names:
            raise UserError(f"{path}: no episode in it; {_REMEDY}")
        shared = _read_header(path, data)
        return [_read_episode(path, name, data[name], shared) for name in names]


_REMEDY = "collect or download the file again"
# What HDF5, h5py and numpy raise where a damaged file says that something is elsewhere, larger or of another kind.
_DAMAGE = (OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError, MemoryError)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The file, closed again on leaving. `Any`, as h5py's own types do not say what is inside a group."""
    _require_file(path)
    try:
        with h5py.File(path, "r") as file:
            yield file
    except _DAMAGE as error:
        reason = "not an HDF5 file" if "signature not found" in str(error) else f"truncated or damaged ({error})"
        raise UserError(f"{path}: {reason}; {_REMEDY}") from error


def _require_file(path: Path) -> None:
    if not path.exists():
        raise UserError(f"{path}: no such file; give the folder that `la-reconvla collect --out` wrote")
    if path.is_dir():
        raise UserError(f"{path} is a folder; give a file in it, or open the folder as a whole")


def _in_order(data: Any) -> list[str]:
    """Names of the episodes by number: demo_2 comes before demo_10."""
    return sorted((n for n in data if n.startswith("demo_") and n[5:].isdigit()), key=lambda name: int(name[5:]))


def _read_header(path: Path, data: Any) -> dict[str, Any]:
    """What the episodes of a file share, as fields of `Episode` (`instruction` as the fallback)."""
    attributes, where = dict(data.attrs), str(path)
    parent = Path(_attribute(where, attributes, "bddl_file_name", str) or "").parent.name
    name = path.name.removesuffix(".hdf5").removesuffix("_demo")
    try:
        language = json.loads(attributes.get("problem_info", "{}")).get("language_instruction")
    except (ValueError, AttributeError):
        raise UserError(f"{path}: the attribute 'problem_info' is not valid JSON; {_REMEDY}") from None
    return {
        "suite": _attribute(where, attributes, "suite", str) or parent or None,
        "task": _attribute(where, attributes, "task_index", int),
        "task_name": _attribute(where, attributes, "task_name", str) or name,
        "instruction": " ".join(language) if isinstance(language, list) else language,
        "quality": _one_of(path, "quality", attributes.get("quality", "official"), Quality),
        "frame_stride": _frame_stride(where, attributes),
        "turn": _turn(path, attributes.get("macros_image_convention", "opengl")),
    }


def _turn(path: Path, convention: Any) -> tuple[int, int]:
    """Public pictures are MuJoCo's own turned by 180 degrees. "opengl" stores MuJoCo's, "opencv" flips its rows."""
    known = {"opengl": (-1, -1), "opencv": (1, -1)}
    if str(convention) not in known:
        raise UserError(f"{path}: {unknown('image convention', str(convention), known)}")
    return known[str(convention)]


def _one_of(path: Path, kind: str, value: Any, literal: Any) -> Any:
    if str(value) not in get_args(literal):
        raise UserError(f"{path}: {unknown(kind, str(value), get_args(literal))}")
    return str(value)


def _frame_stride(where: str, attributes: dict[str, Any]) -> int:
    stride = _attribute(where, attributes, "frame_stride", int)
    if stride is not None and stride < 1:
        raise UserError(f"{where}: the frame stride is {stride}, it must be at least 1; {_REMEDY}")
    return stride or 1


def _attribute(where: str, attributes: dict[str, Any], name: str, kind: type[int] | type[float] | type[str]) -> Any:
    """The attribute as a `kind`, None if it is not there."""
    value = attributes.get(name)
    if value is None:
        return None
    accepted = {int: (int, np.integer), float: (int, float, np.number), str: (str,)}[kind]
    if not isinstance(value, accepted) or (kind is float and not np.isfinite(value)):
        raise UserError(f"{where}: the attribute '{name}' is {value!r}, not of the kind {kind.__name__}; {_REMEDY}")
    return _text(where, name, value) if kind is str else kind(value)


def _text(where: str, name: str, value: str) -> str:
    """`value`, if it is UTF-8: h5py lets other bytes through as characters that cannot be written anywhere."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UserError(f"{where}: the text '{name}' is damaged ({value!a}); {_REMEDY}") from None
    return value


def _read_episode(path: Path, demo: str, group: Any, shared: dict[str, Any]) -> Episode:
    if missing := [key for key in _REQUIRED if key not in group]:
        raise UserError(f"{path}: {demo} has no {' and no '.join(missing)}; {_REMEDY}")
    attributes, where = dict(group.attrs), f"{path}: {demo}"
    read = functools.partial(_attribute, where, attributes)
    instruction = read("instruction", str) or shared["instruction"]
    if not instruction:
        raise UserError(f"{where} has no instruction, and 'problem_info' has none either; {_REMEDY}")
    actions = _checked_actions(where, group["actions"])
    size = _check_lengths(where, group, len(actions), shared["frame_stride"])
    names = _instance_names(where, group["instances"], size) if "instances" in group else ()
    return Episode(
        **{**shared, "instruction": _text(where, "instruction", str(instruction))},
        path=path,
        demo=demo,
        actions=actions,
        image_size=size,
        instance_names=names,
        has_wrist="obs/eye_in_hand_rgb" in group,
        target=read("target", str),
        destination=read("destination", str),
        start_id=read("start_id", str),
        placement=_one_of(path, "placement", attributes["placement"], PlacementKind)
        if "placement" in attributes
        else None,
        split=_one_of(path, "split", attributes["split"], Split) if "split" in attributes else None,
        start_index=read("start_index", int),
        start_seed=read("start_seed", int),
        success_step=read("success_step", int),
        noise=read("noise", float),
        seed=read("seed", int),
    )


def _instance_names(where: str, group: Any, size: int) -> tuple[str, ...]:
    """Check the instance maps, whose pictures have `size` rows and columns, and read what their numbers stand for."""
    maps = group["map"]
    if maps.dtype != np.uint8 or maps.shape[1:] != (size, size):
        raise UserError(
            f"{where}: the instance maps are {maps.dtype} {maps.shape}, not uint8 of the pictures' size "
            f"(F, {size}, {size}); {_REMEDY}"
        )
    try:
        names = json.loads(group.attrs["names"])
    except (KeyError, ValueError, TypeError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{where}: the instance maps have no list of 'names' for their numbers; {_REMEDY}")
    return tuple(names)


def _checked_actions(where: str, dataset: Any) -> Float32[np.ndarray, "T 7"]:
    if dataset.ndim != 2 or dataset.shape[1] != ACTION_DIM or len(dataset) == 0 or dataset.dtype.kind not in "fi":
        raise UserError(f"{where}: actions are {dataset.dtype} {dataset.shape}, not numbers of shape (T, 7); {_REMEDY}")
    with np.errstate(over="ignore"):  # becomes infinite, and is refused below
        actions = np.asarray(dataset[()], np.float32)
    if not np.isfinite(actions).all():
        raise UserError(f"{where}: actions contain NaN or infinity; {_REMEDY}")
    if np.abs(actions).max() > 1 + _TOLERANCE:
        raise UserError(
            f"{where}: actions reach {np.abs(actions).max():.3g}, outside [-1, 1]; "
            "convert them to LIBERO's OSC_POSE units first"
        )
    return actions


def _check_lengths(where: str, group: Any, length: int, stride: int) -> int:
    """Check every array against the number of actions; returns the picture size."""
    pictures = -(-length // stride)
    expected = {f"obs/{name}": pictures for name in group["obs"] if name.endswith("_rgb")}
    expected |= {f"obs/{name}": length for name in group["obs"] if not name.endswith(("_rgb", "_depth"))}
    expected |= {
        name: length for name in ("states", "robot_states", "rewards", "dones", "executed_actions") if name in group
    }
    expected |= {"instances/map": pictures} if "instances" in group else {}
    for key, wanted in expected.items():
        if len(group[key]) != wanted:
            raise UserError(
                f"{where}: {length} actions need {wanted} rows of '{key}' (frame stride {stride}), "
                f"found {len(group[key])}; {_REMEDY}"
            )
    for name in (name for name in group["obs"] if name.endswith("_rgb")):
        pictures = group["obs"][name]
        if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[1:] != (pictures.shape[1],) * 2 + (3,):
            raise UserError(
                f"{where}: {name} is {pictures.dtype} {pictures.shape}, not uint8 of shape (F, H, H, 3); "
                "store square RGB pictures with values 0 to 255"
            )
    return int(group["obs/agentview_rgb"].shape[1])


def _find_files(folder: Path) -> list[Path]:
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; make one with `la-reconvla collect --out {folder}`")
    if (folder / SHARDS).is_dir():
        raise UserError(f"{folder}: this collection is not finished; run its `la-reconvla collect` command again")
    files = sorted(p for p in folder.glob(f"*{SUFFIX}") if not p.name.startswith(TEMPORARY))
    if files:
        return files
    if (folder / "meta" / "info.json").exists():
        raise UserError(f"{folder} is a LeRobotDataset; this reader takes LIBERO's HDF5 files (*{SUFFIX})")
    others = ", ".join(sorted(p.name for p in folder.iterdir())[:5]) or "nothing"
    raise UserError(f"{folder}: no *{SUFFIX} file there, found {others}; give the folder that holds them")


def _of_tasks(episodes: Sequence[Episode], tasks: Sequence[str | int]) -> list[Episode]:
    names = {e.task_name for e in episodes}
    by_index = {e.task: e.task_name for e in episodes if e.task is not None}
    wanted = set()
    for task in tasks:
        name = by_index.get(task) if isinstance(task, int) else task
        if name not in names:
            known = names | {str(index) for index in by_index}
            raise unknown("task in these demonstrations", str(task), known)
        wanted.add(name)
    return [e for e in episodes if e.task_name in wanted]
