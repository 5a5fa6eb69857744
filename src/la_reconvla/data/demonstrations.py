"""Demonstrations as values: an episode, which reads its pictures on demand, and a set to train on together."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int, UInt8

from la_reconvla.data.hdf5_layout import (
    FINGERS,
    HAND,
    REMEDY,
    ROBOMIMIC_HAND,
    STATE,
    checked_actions,
    dataset_in,
    lacks,
    opened,
    picture_names,
    picture_size,
    pictures_in,
)
from la_reconvla.data.robot_states import axis_angle, checked_simulator, checked_state
from la_reconvla.data.starts import PlacementKind, Split
from la_reconvla.errors import UserError
from la_reconvla.robot import LIBERO_ACTIONS, LIBERO_CAMERAS, ActionSpace, Orientation, Quality


@dataclass(frozen=True, eq=False)
class Episode:
    """One demonstration: what it is, its actions, and how to read the rest.

    Attributes:
        path: its file.
        demo: its group in the file, for example ``demo_0``.
        suite: LIBERO suite, None if not recorded.
        task: index of the task in its suite, None in files that are not ours.
        task_name: name of the task.
        instruction: the words that the robot was given.
        actions: float32 [T a], labels.
        quality: render quality of the pictures.
        image_size: rows of the main camera's images in pixels, LIBERO's columns too.
        frame_stride: control steps from one picture to the next.
        instance_names: names of the numbers 1, 2, ... of `instances`; empty in files that are not ours.
        target: instance that is moved; this and the rest is None in files that are not ours.
        destination: where it is moved to.
        start_id: `la_reconvla.data.starts.Start.id` of the start.
        placement: kind of placement of the start.
        split: split of the start.
        start_index: index of the start.
        start_seed: simulator seed of the start.
        success_step: number of steps after which the goal first held.
        noise: standard deviation of the action noise.
        seed: seed of the action noise.
        space: what the actions are.
        cameras: names of the cameras, the main one first, then the one that stands beside it.
        orientation: how pictures stand in memory.
        state_width: numbers of the robot's state; None for LIBERO's own layout.
        rate: control steps a second.
        turn: how stored pictures become public ones: (row step, column step).
        parts: (first step, target, destination) of each part of an episode that has several
            (`la_reconvla.data.instances.Part`); `target` and `destination` are then those of the first thing that the
            goal puts somewhere. Empty where one thing is moved, or nothing is known of parts.
    """

    path: Path
    demo: str
    suite: str | None
    task: int | None
    task_name: str
    instruction: str
    actions: Float32[np.ndarray, "T a"]
    quality: Quality
    image_size: int
    frame_stride: int
    instance_names: tuple[str, ...] = ()
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
    space: ActionSpace = LIBERO_ACTIONS
    cameras: tuple[str, ...] = LIBERO_CAMERAS
    orientation: Orientation = "mirrored"
    state_width: int | None = None
    rate: float = 20.0
    turn: tuple[int, int] = (-1, -1)
    parts: tuple[tuple[int, str, str], ...] = ()

    @property
    def name(self) -> str:
        """Unique among the files of a folder; for messages."""
        return f"{self.path.name}/{self.demo}"

    @property
    def files(self) -> tuple[Path, ...]:
        """All that its pictures and numbers are read from."""
        return (self.path,)

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
        """The main camera's pictures at `frame_steps`, LIBERO's in its public convention."""
        return self.pictures(self.cameras[0])

    def wrist(self) -> UInt8[np.ndarray, "F H W 3"]:
        """LIBERO's wrist pictures at `frame_steps`, public convention.

        Raises:
            UserError: as `pictures`.
        """
        return self.pictures(LIBERO_CAMERAS[1])

    def pictures(self, camera: str) -> UInt8[np.ndarray, "F H W 3"]:
        """Pictures of a camera at `frame_steps`.

        Raises:
            UserError: the file has none, or they are not uint8 RGB pictures.
        """
        return np.stack(list(self.stream(camera)))

    def stream(self, camera: str, numbers: Iterable[int] | None = None) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
        """The same, one picture after the other, so that one is in memory at a time.

        Args:
            camera: its name.
            numbers: which of those at `frame_steps`, ascending, counted from 0; all by default.

        Raises:
            UserError: as `pictures`.
        """
        rows, columns = self.turn
        chosen = range(len(self.frame_steps)) if numbers is None else numbers
        return (np.ascontiguousarray(picture[::rows, ::columns]) for picture in self.stored(camera, chosen))

    def stored(self, camera: str, numbers: Iterable[int]) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
        """The same, as they are stored; the one place that reads pictures.

        Raises:
            UserError: as `pictures`.
        """
        with opened(self.path) as file:
            yield from pictures_in(self._where, self._stored(file, camera), numbers)

    def sampled(self) -> Iterator[bytes]:
        """Three of the main camera's pictures as the file has them, encoded or not: no decoder decides a hash."""
        count = len(self.frame_steps)
        with opened(self.path) as file:
            yield from (self._stored(file, self.cameras[0])[n].tobytes() for n in (0, count // 2, count - 1))

    def picture_size(self, camera: str) -> tuple[int, int]:
        """Rows and columns of a camera's pictures.

        Raises:
            UserError: as `pictures`.
        """
        with opened(self.path) as file:
            return picture_size(self._where, self._stored(file, camera))

    def instances(self) -> UInt8[np.ndarray, "F H W"]:
        """Instance maps at `frame_steps`, turned as the pictures: 0 = none, i + 1 = ``instance_names[i]``.

        Raises:
            UserError: the file has none, or one that uses a number without a name.
        """
        rows, columns = self.turn
        maps = np.ascontiguousarray(self._array(("instances/map",), len(self.frame_steps))[:, ::rows, ::columns])
        if maps.max() > len(self.instance_names):
            raise UserError(
                f"{self.path}: an instance map of {self.demo} uses the number {maps.max()}, but there are "
                f"{len(self.instance_names)} names; {REMEDY}"
            )
        return maps

    def proprio(self) -> Float32[np.ndarray, "T p"]:
        """The robot's state at every step.

        LIBERO's is end effector position (m), orientation (axis-angle, rad) and two finger positions (m); another
        robot's is as it was recorded.

        Raises:
            UserError: the file has none, or they are not finite.
        """
        if self.state_width is not None:
            return self._floats((f"obs/{STATE}",), self.state_width)
        with opened(self.path) as file:
            group = file["data"][self.demo]
            robomimic = HAND not in group and ROBOMIMIC_HAND[1] in group
        if robomimic:
            position, quaternion = (
                self._floats((name,), width) for name, width in zip(ROBOMIMIC_HAND, (3, 4), strict=True)
            )
            hand = np.concatenate([position, axis_angle(quaternion)], axis=1)
        else:
            hand = self._floats((HAND,), 6)
        return np.concatenate([hand, self.fingers()], axis=1)

    def fingers(self) -> Float32[np.ndarray, "T 2"]:
        """Two finger positions (m), at every step.

        Raises:
            UserError: the file has none, or they are not finite.
        """
        return self._floats(FINGERS, 2)

    def executed(self) -> Float32[np.ndarray, "T a"]:
        """What really moved the robot: the labels plus noise; the labels themselves in files that are not ours.

        Raises:
            UserError: they are not finite or outside [-1, 1].
        """
        with opened(self.path) as file:
            group, names = file["data"][self.demo], ("executed_actions", "actions")
            return checked_actions(self._where, dataset_in(self._where, group, names, len(self.actions)), self.space)

    def states(self) -> Float[np.ndarray, "T s"]:
        """Flattened MuJoCo state before each action.

        Raises:
            UserError: the file has none, or they are no numbers of this shape.
        """
        return checked_simulator(self._where, "states", self._array(("states",), len(self.actions)), 2)

    def first_state(self) -> Float[np.ndarray, " s"]:
        """Flattened MuJoCo state that the episode was reset to.

        Raises:
            UserError: the file has none, or it is no row of numbers.
        """
        with opened(self.path) as file:
            attributes = file["data"][self.demo].attrs
            if "init_state" not in attributes:
                raise lacks(self._where, "init_state")
            return checked_simulator(self._where, "init_state", np.asarray(attributes["init_state"]), 1)

    def _array(self, names: tuple[str, ...], rows: int) -> np.ndarray:
        with opened(self.path) as file:
            return np.asarray(dataset_in(self._where, file["data"][self.demo], names, rows)[()])

    def _floats(self, names: tuple[str, ...], width: int) -> Float32[np.ndarray, "T width"]:
        """Finite numbers, `width` of them at every step."""
        length = len(self.actions)
        return checked_state(self._where, names[0], self._array(names, length), (length, width))

    @property
    def _where(self) -> str:
        return f"{self.path}: {self.demo}"

    def _stored(self, file: Any, camera: str) -> Any:
        """The dataset of a camera's pictures."""
        return dataset_in(self._where, file["data"][self.demo], picture_names(camera), len(self.frame_steps))


@dataclass(frozen=True, eq=False)
class Demonstrations:
    """Episodes that may be trained on together: of one robot, recorded alike; `notes` say what reading has changed."""

    episodes: tuple[Episode, ...]
    notes: tuple[str, ...] = ()

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
    def space(self) -> ActionSpace:
        """What all actions are."""
        return self.episodes[0].space

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the cameras, the main one first."""
        return self.episodes[0].cameras

    @property
    def orientation(self) -> Orientation:
        """How all pictures stand."""
        return self.episodes[0].orientation

    @property
    def state_width(self) -> int | None:
        """Numbers of the robot's state; None for LIBERO's own layout."""
        return self.episodes[0].state_width

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, each once."""
        return tuple(dict.fromkeys(episode.task_name for episode in self.episodes))

    @property
    def starts(self) -> tuple[str, ...]:
        """Ids of the starts used, each once; evaluation uses others. Files of other programs have none."""
        return tuple(dict.fromkeys(e.start_id for e in self.episodes if e.start_id is not None))

    @functools.cached_property
    def hash(self) -> str:
        """Names the content: equal for equal episodes in equal order, whatever their folder and HDF5's compression.

        All actions and instructions enter, and of each episode's pictures `Episode.sampled`.
        """
        digest = hashlib.sha256(f"{self.quality}/{self.image_size}/{self.frame_stride}".encode())
        about = self.space, self.cameras, self.orientation
        if about != (LIBERO_ACTIONS, LIBERO_CAMERAS, "mirrored"):
            digest.update("\0".join(map(str, about)).encode())
        for episode in self.episodes:
            told = episode.task_name, episode.instruction, episode.start_id, len(episode.actions)
            digest.update("".join(f"\0{part}" for part in (*told, "")).encode())
            digest.update(np.ascontiguousarray(episode.actions, "<f4").tobytes())
            for content in episode.sampled():
                digest.update(content)
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
            raise UserError(f"the held-out share must be between 0 and 1, not {held_out}")
        chosen: set[str] = set()
        for task in self.tasks:
            scenes = list(dict.fromkeys(e.scene for e in self.episodes if e.task_name == task))
            scenes.sort(key=lambda scene: hashlib.sha256(f"{seed}/{scene}".encode()).digest())
            chosen.update(scenes[: min(max(1, round(held_out * len(scenes))), len(scenes) - 1)])
        if not chosen:
            raise UserError(
                "no episode can be held out: each task has one scene only; collect more, or train on all (--held-out 0)"
            )
        rest = tuple(e for e in self.episodes if e.scene not in chosen)
        return Demonstrations(rest), Demonstrations(tuple(e for e in self.episodes if e.scene in chosen))


def same_kind(episodes: Sequence[Episode], where: str, notes: tuple[str, ...] = ()) -> Demonstrations:
    """These episodes as one set.

    Raises:
        UserError: if they differ in how they were recorded or by which robot; the message begins with `where`.
    """
    for kind in ("quality", "image_size", "frame_stride", "space", "cameras", "orientation", "state_width", "rate"):
        if len(files := {getattr(e, kind): e.path.name for e in episodes}) > 1:
            listed = ", ".join(f"{value} in {name}" for value, name in files.items())
            raise UserError(
                f"{where}: the {kind} differs: {listed}. Such data must not be mixed: choose tasks or collect"
            )
    return Demonstrations(tuple(episodes), notes)
