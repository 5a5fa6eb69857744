"""Reads CALVIN's dataset (Mees et al. 2022, arXiv 2112.03227) as demonstrations: its language segments.

::

    task_ABC_D/training/episode_0000000.npz ...   a frame each: rgb_static [200 200 3], rgb_gripper [84 84 3],
                                                  robot_obs [15], scene_obs [24], rel_actions [7], ...
    task_ABC_D/training/ep_start_end_ids.npy      first and last frame of each recording
    task_ABC_D/training/lang_annotations/auto_lang_ann.npy    words, subtasks, and first and last frame of each segment

An episode is one segment, both ends included. Frames without words are not read, nor are depth, tactile pictures and
embeddings. Pictures are read when they are asked for, a file each; actions and states once, into `NUMBERS` beside them.

**Gripper**: CALVIN opens with +1; in memory -1 opens, as everywhere here. `to_ours` and `to_theirs` turn the sign. The
other six numbers stay: metres x 50 and radians x 20, clipped to [-1, 1], which move the *target* of the hand.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import reprlib
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from la_reconvla.data.arrays_only import Array, read_object
from la_reconvla.data.dataset_episodes import DatasetEpisode
from la_reconvla.data.demonstrations import Episode
from la_reconvla.data.hdf5_layout import checked_actions, checked_text
from la_reconvla.errors import UserError
from la_reconvla.progress import progress
from la_reconvla.robot import ActionSpace
from la_reconvla.storage import atomic_write, why_unreadable
from la_reconvla.text_table import say

CALVIN_ACTIONS = ActionSpace(
    ("x", "y", "z", "euler_x", "euler_y", "euler_z", "gripper"), ("continuous",) * 6 + ("binary",)
)
CALVIN_CAMERAS = ("static", "gripper")
STATE_WIDTH, SCENE_WIDTH, RATE = 15, 24, 30.0
TRAINING, ANNOTATIONS, RECORDINGS = "training", "lang_annotations/auto_lang_ann.npy", "ep_start_end_ids.npy"
NUMBERS = ".numbers.npz"
"""Beside the frames: actions and states of all segments, so that they are gathered once. May be deleted."""
AGAIN = "download the split again (docs/calvin.md)"
WORDS_AGAIN = "download the annotations again: `sh download_lang_embeddings.sh` of CALVIN's dataset folder"
ENDS_WITH: Mapping[str, tuple[int, float]] = {  # subtask -> place in scene_obs, and the sign of its change
    "move_slider_left": (0, 1.0),
    "move_slider_right": (0, -1.0),
    "open_drawer": (1, 1.0),
    "close_drawer": (1, -1.0),
    "turn_on_lightbulb": (4, 1.0),
    "turn_off_lightbulb": (4, -1.0),
    "turn_on_led": (5, 1.0),
    "turn_off_led": (5, -1.0),
}
SINCE_THE_REPAIR = ("lang_BERT", "lang_clip_resnet50", "lang_all-MiniLM-L6-v2")
"""Folders of embeddings that came with the repaired annotations, on 16 September 2022."""
FEW = 8  # segments with a subtask of `ENDS_WITH`, below which nothing is said of them
LONGEST, LAST = 10_000, 10**12  # frames of a segment, and a frame's number: CALVIN's segments have at most 65
MANY = 5000  # frames, from which reading them shows its progress


def to_ours(actions: Float[np.ndarray, "... 7"]) -> Float[np.ndarray, "... 7"]:
    """CALVIN's relative actions as ours: -1 opens the gripper."""
    return np.concatenate([actions[..., :-1], -actions[..., -1:]], axis=-1)


to_theirs = to_ours
"""Ours as CALVIN's: turning the sign again."""


@dataclass(frozen=True, eq=False, kw_only=True)
class CalvinEpisode(DatasetEpisode):
    """A language segment; its labels are what a person did, without noise.

    Its state is robot_obs: hand (m, Euler angles in rad), opening (m), seven joints (rad), +1 where it opens.

    Attributes:
        first: number of its first frame.
        group: first frame of the segments that overlap, directly or through others, which therefore show one scene.
    """

    first: int
    group: int
    state_name, remedy = "robot_obs", AGAIN

    @property
    def scene(self) -> str:
        """Segments that share frames belong on one side of a split."""
        return f"{self.path.name}/{self.group}"

    @property
    def files(self) -> tuple[Path, ...]:
        """What names its frames; these are too many to look at one by one."""
        return (self.path / ANNOTATIONS,)

    def stored(self, camera: str, numbers: Iterable[int]) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
        """See `Episode`.

        Raises:
            UserError: there is no such camera, or a frame is missing, damaged or of another size.
        """
        size = self.picture_size(camera)
        for number in numbers:
            yield _picture(self.path, self.first + number, camera, size)

    def sampled(self) -> Iterator[bytes]:
        """See `Episode`."""
        count = len(self.frame_steps)
        return (picture.tobytes() for picture in self.stored(self.cameras[0], (0, count // 2, count - 1)))


# ---------------------------------------------------------------- folders


def is_calvin(folder: Path) -> bool:
    """Whether a folder is a dataset of CALVIN or a split of one; a whole one is known without a list of its frames."""
    parts = [folder / split for split in ("", TRAINING, "validation")]
    if any(os.path.exists(part / sign) for part in parts for sign in (RECORDINGS, "lang_annotations")):
        return True
    with contextlib.suppress(PermissionError):
        return any(next(part.glob("episode_*.npz"), None) is not None for part in parts)
    return False


def split_of(folder: Path) -> Path:
    """The folder of frames: of a whole dataset that of its training.

    Raises:
        UserError: a dataset without it.
    """
    if (folder / TRAINING).is_dir():
        return folder / TRAINING
    if (folder / "validation").is_dir():
        raise UserError(f"{folder}: there is no {TRAINING}/ in it; name the split itself: {folder / 'validation'}")
    return folder


def read_folder(folder: Path) -> list[Episode]:
    """Check a dataset and read what its segments are, without their pictures.

    Raises:
        UserError: annotations or frames are missing, truncated or damaged, or do not fit each other.
    """
    split = split_of(folder)
    told = _told(split)
    wanted = sorted({number for one in told for number in range(one.first, one.last + 1)})
    numbers = _numbers(split, np.array(wanted))
    at = {number: row for row, number in enumerate(wanted)}
    _require_true(split, [(one.subtask, *(numbers["scene_obs"][at[n]] for n in (one.first, one.last))) for one in told])
    sizes = tuple(_picture(split, told[0].first, camera).shape[:2] for camera in CALVIN_CAMERAS)
    groups = _groups(told)
    episodes: list[Episode] = []
    for number, one in enumerate(told):
        rows = slice(at[one.first], at[one.last] + 1)
        name = f"segment_{number:05d}"
        mine = to_ours(numbers["rel_actions"][rows])
        episodes.append(
            CalvinEpisode(
                path=split,
                demo=name,
                suite="calvin",
                task_name=one.subtask,
                instruction=one.words,
                actions=checked_actions(f"{split}: {name}", mine, CALVIN_ACTIONS),
                image_size=sizes[0][0],
                space=CALVIN_ACTIONS,
                cameras=CALVIN_CAMERAS,
                orientation="upright",
                state_width=STATE_WIDTH,
                rate=RATE,
                first=one.first,
                group=groups[number],
                recorded_state=numbers["robot_obs"][rows],
                sizes=sizes,
            )
        )
    return episodes


# ---------------------------------------------------------------- annotations


@dataclass(frozen=True)
class Told:
    """What the annotations say of a segment; frames are numbers, both included."""

    words: str
    subtask: str
    first: int
    last: int


def _told(split: Path) -> list[Told]:
    path = split / ANNOTATIONS
    if not path.exists():
        raise UserError(f"{path}: no such file, and without it no frame has words; {WORDS_AGAIN}")
    held = read_object(path, WORDS_AGAIN)
    try:
        words, subtasks = _list(held["language"]["ann"]), _list(held["language"]["task"])
        ends = [tuple(map(_number, pair)) for pair in _list(held["info"]["indx"])]
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise UserError(
            f"{path} holds no words, subtasks and ends of segments ({error!r}), as it has since 2022; {WORDS_AGAIN}"
        ) from None
    if not len(words) == len(subtasks) == len(ends) or not words:
        counts = f"{len(words)} instructions, {len(subtasks)} subtasks and {len(ends)} segments"
        raise UserError(f"{path} has {counts}, not one of each for each; {WORDS_AGAIN}")
    told = []
    for text, subtask, pair in zip(words, subtasks, ends, strict=True):
        if not isinstance(text, str) or not isinstance(subtask, str) or not text.strip():
            raise UserError(
                f"{path}: {reprlib.repr(text)} for {reprlib.repr(subtask)} is no instruction; {WORDS_AGAIN}"
            )
        if len(pair) != 2 or not 0 <= pair[0] <= pair[1] < pair[0] + LONGEST:
            raise UserError(f"{path}: a segment goes from frame to frame {reprlib.repr(pair)}; {WORDS_AGAIN}")
        named = (checked_text(str(path), "ann", " ".join(text.split())), checked_text(str(path), "task", subtask))
        told.append(Told(*named, *pair))
    return told


def _number(value: Any) -> int:
    found = int(value)
    if found != value or abs(found) > LAST:
        raise ValueError(f"{reprlib.repr(value)} is no frame's number")
    return found


def _list(value: Any) -> list[Any]:
    """A list, or an array of one or two axes."""
    value = value.value if isinstance(value, Array) else value
    if not isinstance(value, list | tuple | np.ndarray):
        raise TypeError(f"{type(value).__name__} in the place of a list")
    return list(value)


def _groups(told: list[Told]) -> list[int]:
    """For each segment the first frame of those that it shares frames with, directly or through others."""
    result, group, end = [0] * len(told), 0, -1
    for number in sorted(range(len(told)), key=lambda n: told[n].first):
        if told[number].first > end:
            group = told[number].first
        end = max(end, told[number].last)
        result[number] = group
    return result


def _require_true(split: Path, ends: list[tuple[str, np.ndarray, np.ndarray]]) -> None:
    """See that doors and lights end where the words say that they do.

    Args:
        split: for the message.
        ends: subtask, and scene_obs at the first and the last frame, of each segment.
    """
    judged = [ENDS_WITH[task] + (first, last) for task, first, last in ends if task in ENDS_WITH]
    wrong = sum(sign * (last[place] - first[place]) <= 0 for place, sign, first, last in judged)
    if len(judged) >= FEW and wrong > len(judged) / 2:
        raise UserError(
            f"{split / ANNOTATIONS}: of {len(judged)} segments about doors and lights, {wrong} show the opposite or "
            f"nothing: words of other frames. Data of ABC and ABCD from before 16 September 2022 have wrong ones; "
            f"{WORDS_AGAIN}"
        )
    if (split / "scene_info.npy").exists() and not any((split / name).exists() for name in SINCE_THE_REPAIR):
        say(
            f"{split} has none of {', '.join(SINCE_THE_REPAIR)}: if it was downloaded before 16 September 2022 and is "
            f"of ABC or ABCD, its words are wrong; {WORDS_AGAIN}"
        )


# ---------------------------------------------------------------- frames

_WIDTHS = {"rel_actions": 7, "robot_obs": STATE_WIDTH, "scene_obs": SCENE_WIDTH}


def _numbers(split: Path, frames: np.ndarray) -> dict[str, np.ndarray]:
    """What frames hold beside pictures, float32 [F w] each, from `NUMBERS` or from the frames themselves."""
    path, key = split / NUMBERS, _key(split, frames)
    with (
        contextlib.suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile),
        np.load(path, allow_pickle=False) as held,
    ):
        if str(held["key"]) == key:
            return {name: held[name] for name in _WIDTHS}
    gathered = {name: np.empty((len(frames), width), np.float32) for name, width in _WIDTHS.items()}
    shown = progress("Reading CALVIN's frames", total=len(frames), unit="frames") if len(frames) >= MANY else None
    with contextlib.ExitStack() as open_things:
        bar = None if shown is None else open_things.enter_context(shown)
        pool = open_things.enter_context(ThreadPoolExecutor(8))  # a disk far away answers several at once
        for row, found in enumerate(pool.map(lambda number: _row(split, int(number)), frames)):
            for name, values in found.items():
                gathered[name][row] = values
            if bar is not None:
                bar.advance()
    with contextlib.suppress(OSError, UserError), atomic_write(path) as temporary:
        # Where nothing may be written, they are read again next time.
        np.savez(temporary, key=key, **gathered)  # pyright: ignore[reportArgumentType]
    return gathered


def _key(split: Path, frames: np.ndarray) -> str:
    """Which frames, and as of when: the first, the last and one between tell whether others were put in their place."""
    digest = hashlib.sha256(frames.astype("<i8").tobytes())
    for number in frames[[0, len(frames) // 2, -1]]:
        with contextlib.suppress(OSError):  # it is named when it is read
            about = _name(split, number).stat()
            digest.update(f"{about.st_size}/{about.st_mtime_ns}/".encode())
    return digest.hexdigest()


def _row(split: Path, number: int) -> dict[str, np.ndarray]:
    found = _frame(split, number, tuple(_WIDTHS))
    for name, width in _WIDTHS.items():
        values = found[name]
        if values.shape != (width,) or values.dtype.kind != "f" or not np.isfinite(values).all():
            raise UserError(
                f"{_name(split, number)}: {name} is {values.dtype} {values.shape}, not {width} finite numbers; {AGAIN}"
            )
    return found


def _picture(split: Path, number: int, camera: str, size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "H W 3"]:
    name = f"rgb_{camera}"
    picture = _frame(split, number, (name,))[name]
    rows = picture.shape[:2] if size is None else size
    if picture.dtype != np.uint8 or picture.shape != (*rows, 3) or 0 in picture.shape:
        wanted = "(H, W, 3)" if size is None else f"{(*size, 3)}"
        raise UserError(
            f"{_name(split, number)}: {name} is {picture.dtype} {picture.shape}, not uint8 {wanted}; {AGAIN}"
        )
    return picture


def _frame(split: Path, number: int, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Some arrays of a frame; nothing else of its file is read."""
    path = _name(split, number)
    try:
        with np.load(path, allow_pickle=False) as held:
            return {name: held[name] for name in names}
    except FileNotFoundError:
        raise UserError(f"{path}: the annotations speak of this frame, and it is not there; {AGAIN}") from None
    except KeyError as error:
        raise UserError(f"{path} has no {error}; {AGAIN}") from None
    except (
        OSError,
        ValueError,
        EOFError,
        zipfile.BadZipFile,
        zipfile.LargeZipFile,
        zlib.error,
        NotImplementedError,
        MemoryError,
    ) as error:
        raise UserError(f"{path}: {why_unreadable(error, AGAIN)}") from error


def _name(split: Path, number: int) -> Path:
    return split / f"episode_{number:07d}.npz"
