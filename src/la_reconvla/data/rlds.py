"""Reads datasets in RLDS as demonstrations, without TensorFlow; the layout: `la_reconvla.data.rlds_layout`.

Opening one reads of each file the lengths of its records, and of each record the numbers and the words. A record's
checksum is compared when its pictures are read, which `Demonstrations.hash`, a check and every training do of all of
them: then one record is in memory, and no more of a file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from la_reconvla.data.action_values import space_of, two_valued
from la_reconvla.data.dataset_episodes import LIBERO_STATE, DatasetEpisode
from la_reconvla.data.demonstrations import Episode
from la_reconvla.data.hdf5_layout import checked_text, file_names
from la_reconvla.data.image_files import read_picture
from la_reconvla.data.rlds_layout import (
    ACTION,
    FEATURES,
    INFO,
    METADATA,
    OBSERVATION,
    OURS,
    STATE,
    Layout,
    read_layout,
)
from la_reconvla.data.rlds_steps import CLOSED, MOTIONS, OPEN, Steps, kept
from la_reconvla.data.robot_states import checked_state
from la_reconvla.data.tfrecord import AGAIN, Feature, Record, data_of, features_in, records_in
from la_reconvla.errors import UserError
from la_reconvla.robot import LIBERO_ACTIONS


@dataclass(frozen=True, eq=False, kw_only=True)
class RLDSEpisode(DatasetEpisode):
    """An episode of a dataset in RLDS.

    Attributes:
        dataset: its name.
        record: where it is.
        recorded: number of steps there.
        first: number of the first of them that is part of the episode.
    """

    dataset: str
    record: Record
    recorded: int
    first: int
    state_name, remedy = STATE, AGAIN

    @property
    def name(self) -> str:
        """See `Episode`; the folder's own name is that of a version."""
        return f"{self.dataset}/{self.demo}"

    @property
    def files(self) -> tuple[Path, ...]:
        """See `Episode`."""
        return (self.record.path,)

    def stored(self, camera: str, numbers: Iterable[int]) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
        """See `Episode`.

        Raises:
            UserError: there is no such camera, or the record is damaged or lacks a picture.
        """
        size = self.picture_size(camera)
        encoded = self._encoded(camera)
        for number in numbers:
            picture = read_picture(encoded[number], f"{self.record}: '{camera}' at step {self.first + number}")
            if picture.shape[:2] != size:
                raise UserError(
                    f"{self.record}: a picture of '{camera}' has {picture.shape[:2]} rows and columns, not {size} as "
                    f"{FEATURES} says; {AGAIN}"
                )
            yield picture

    def sampled(self) -> Iterator[bytes]:
        """See `Episode`.

        Raises:
            UserError: as `stored`.
        """
        encoded = self._encoded(self.cameras[0])
        return iter((encoded[0], encoded[len(encoded) // 2], encoded[-1]))

    def _encoded(self, camera: str) -> list[bytes]:
        """A camera's pictures at the steps of the episode, from a record whose checksum is right."""
        name = f"{OBSERVATION}{camera}"
        found = features_in(self.record, (name,), data_of(self.record)).get(name)
        if not isinstance(found, list) or len(found) != self.recorded:
            count = len(found) if isinstance(found, list) else "no"
            raise UserError(f"{self.record}: {self.recorded} actions and {count} pictures of '{camera}'; {AGAIN}")
        return found[self.first : self.first + len(self.actions)]


@dataclass(frozen=True, eq=False)
class _Read:
    """What is read of one record: its number in the dataset, its words, its steps, and which cameras were dark."""

    number: int
    record: Record
    recorded: int
    words: str
    steps: Steps
    dark: tuple[str, ...]


def read_folder(folder: Path) -> tuple[list[Episode], tuple[str, ...]]:
    """Check a dataset and read what its episodes are, without their pictures.

    Args:
        folder: that holds its ``dataset_info.json``.

    Returns:
        The episodes, and in sentences what was done with them.

    Raises:
        UserError: a file is missing, cut off or no TFRecord file, a feature that is needed is not there or of another
            kind, or no episode has an instruction and a step.
    """
    layout = read_layout(folder)
    cameras, words = layout.cameras, layout.words
    conventions, width = layout.conventions, layout.state_width
    _require_fit(layout)
    every = [_read(layout, number, record, words) for number, record in enumerate(_records(layout))]
    used = [one for one in every if one.words and len(one.steps.actions)]
    if not used:
        raise UserError(
            f"{folder}: none of {len(every)} episodes has an instruction ('{words}') and a step that is kept"
        )
    names = conventions.action_names or tuple(f"action {place}" for place in range(layout.action_width))
    where, unchanged = str(folder / OURS), [one.steps.actions for one in used]
    space, others = space_of(where, names, conventions.action_kinds, np.concatenate(unchanged))
    if space == LIBERO_ACTIONS and max(np.abs(actions).max() for actions in unchanged) > 1:
        raise UserError(f"{folder}: actions are outside [-1, 1], which LIBERO's are not: name them in {where}")
    tasks = file_names(one.words for one in used)
    shared: dict[str, Any] = {
        "path": folder,
        "image_size": next(iter(cameras.values()))[0],
        "space": space,
        "cameras": tuple(cameras),
        "orientation": conventions.orientation,
        "state_width": None if conventions.libero_state else width,
        "rate": conventions.rate,
        "dataset": layout.name,
        "sizes": tuple(cameras.values()),
    }
    episodes: list[Episode] = [
        RLDSEpisode(
            **shared,
            demo=f"episode_{one.number:06d}",
            task_name=tasks[one.words],
            instruction=one.words,
            actions=actions,
            record=one.record,
            recorded=one.recorded,
            first=one.steps.first,
            recorded_state=one.steps.state,
        )
        for one, actions in zip(used, two_valued(unchanged, others), strict=True)
    ]
    changed = (f"{names[place]}: {low:g} is read as -1, {high:g} as 1" for place, (low, high) in sorted(others.items()))
    return episodes, (*_said(layout, every, used), *changed)


def unread(folder: Path) -> list[str]:
    """Names of the features of a dataset that nothing here reads.

    Raises:
        UserError: as `read_layout`.
    """
    layout = read_layout(folder)
    read = {ACTION, STATE, layout.words, *(f"{OBSERVATION}{camera}" for camera in layout.cameras)}
    return [name for name in layout.features if name not in read]


def _require_fit(layout: Layout) -> None:
    """Raise a `UserError` where the conventions ask for what the dataset has not."""
    conventions, width = layout.conventions, layout.state_width or 0
    where, repair = layout.folder / FEATURES, f"to {layout.folder / OURS}"
    if conventions.libero_state and width != len(LIBERO_STATE):
        raise UserError(
            f"{where}: the state has {width} numbers, LIBERO's {len(LIBERO_STATE)}: write "
            f'{{"libero_state": false}} {repair}'
        )
    if conventions.relabel_from_states and min(width, layout.action_width) < MOTIONS:
        raise UserError(
            f"{where}: {MOTIONS} numbers of an action cannot be relabelled from a state of {width}: write "
            f'{{"relabel_from_states": false}} {repair}'
        )


def _records(layout: Layout) -> Iterator[Record]:
    """All records of the split, in the order of its files."""
    for path, episodes in layout.shards:
        found = records_in(path)
        if len(found) != episodes:
            raise UserError(f"{path}: {len(found)} episodes, {INFO} says {episodes}; {AGAIN}")
        yield from found


def _read(layout: Layout, number: int, record: Record, words: str) -> _Read:
    """One record without its pictures; it has no steps if none is kept."""
    dark = {f"{METADATA}has_{camera}": camera for camera in layout.cameras}
    found = features_in(record, {ACTION, STATE, words, *(name for name in dark if name in layout.features)})
    actions = _rows(record, ACTION, found.get(ACTION), layout.action_width)
    if not len(actions):
        raise UserError(f"{record}: it has no step; {AGAIN}")
    state = None
    if layout.state_width is not None:
        state = _rows(record, STATE, found.get(STATE), layout.state_width)
        state = checked_state(str(record), STATE, state, (len(actions), layout.state_width), AGAIN)
    said = found.get(words)
    if not isinstance(said, list) or len(said) != len(actions):
        raise UserError(f"{record}: not a text in '{words}' for each of {len(actions)} actions; {AGAIN}")
    if len(told := set(said)) > 1:
        raise UserError(f"{record}: {len(told)} instructions, one after the other; make an episode of each")
    text = checked_text(str(record), words, said[0].decode(errors="surrogateescape"), AGAIN)
    black = tuple(camera for name, camera in dark.items() if name in found and not np.any(found[name]))
    steps = kept(Steps(0, actions, state), layout.conventions)
    return _Read(number, record, len(actions), " ".join(text.split()), steps, black)


def _rows(record: Record, name: str, values: Feature | None, width: int) -> Float32[np.ndarray, "T width"]:
    """Numbers of a feature, a row a step."""
    if not isinstance(values, np.ndarray) or values.dtype != np.float32 or values.size % width:
        raise UserError(f"{record}: '{name}' is not {width} floats a step; {AGAIN}")
    if not np.isfinite(values).all():
        raise UserError(f"{record}: '{name}' contains NaN or infinity; {AGAIN}, or write the dataset without it")
    return values.reshape(-1, width)


def _said(layout: Layout, every: Sequence[_Read], used: Sequence[_Read]) -> Iterator[str]:
    """What was done, in sentences."""
    conventions, name = layout.conventions, layout.name
    if others := [split for split in layout.splits if split != conventions.split]:
        yield f"{name}: the split '{conventions.split}' is read; there are {', '.join(others)} too"
    if silent := sum(not one.words for one in every):
        yield f"{name}: {silent} of {len(every)} episodes have no instruction and are left out"
    if short := sum(bool(one.words) and not len(one.steps.actions) for one in every):
        yield f"{name}: {short} of {len(every)} episodes have no step that is kept and are left out"
    if conventions.drop_first_no_op:
        dropped = sum(one.steps.first for one in used)
        yield f"{name}: the first step of {dropped} of {len(used)} episodes, whose action is all zeros, is left out"
    if conventions.binarise_gripper:
        between = sum(one.steps.between for one in used)
        yield (
            f"{name}: the gripper is 1 above {OPEN:g} and -1 below {CLOSED:g}; {between} values between the two became "
            "what is reached after them"
        )
    if conventions.relabel_from_states:
        yield (
            f"{name}: the first {MOTIONS} numbers of an action are the next state minus this one, not what was "
            "commanded; the last step of each episode, which has no next one, is left out"
        )
    for camera in layout.cameras:
        if dark := sum(camera in one.dark for one in used):
            yield f"{name}: the camera '{camera}' is black in {dark} of {len(used)} episodes"
