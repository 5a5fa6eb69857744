"""Where the target is, for arms that are told: one box a recorded frame, from whoever can say.

A box is (left, top, right, bottom) as fractions of the square picture, in the public convention of
`contracts.Observation`; right and bottom are where the target ends. A frame without a box of its own (the target is
hidden, the detector silent) takes that of the nearest frame of its episode, `filled`.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Bool, Float32

from la_reconvla.data.hdf5 import Episode
from la_reconvla.errors import UserError

SUFFIX = ".jsonl"


class Annotator(Protocol):
    """Says where the target of an episode is. Implementations are frozen dataclasses."""

    def __call__(self, episode: Episode) -> Float32[np.ndarray, "F 4"]:
        """One box for each of the episode's `frame_steps`, `filled` where the frame has none of its own.

        Raises:
            UserError: the episode has no box at all, or its file lacks what the boxes are made of.
        """
        ...

    def found(self, episode: Episode) -> Float32[np.ndarray, "F 5"]:
        """Box and score of each of the episode's `frame_steps`; NaN where there is none."""
        ...

    @property
    def label(self) -> str:
        """One word for tables, for example ``masks``."""
        ...

    @property
    def identity(self) -> Any:
        """What decides the boxes, as JSON has it."""
        ...


class Filled:
    """An annotator whose boxes are those that it found and, in between, the nearest."""

    def found(self, episode: Episode) -> Float32[np.ndarray, "F 5"]:
        raise NotImplementedError

    def __call__(self, episode: Episode) -> Float32[np.ndarray, "F 4"]:
        """See `Annotator`."""
        return filled(self.found(episode)[:, :4], episode.name)


@dataclass(frozen=True)
class Masks(Filled):
    """The simulator's own instance maps: what no detector can know better."""

    label = "masks"
    identity = "masks"

    def found(self, episode: Episode) -> Float32[np.ndarray, "F 5"]:
        """The box of all pixels of the target; the score is 1.

        Raises:
            UserError: the recording has no instance maps, or its target is not in them.
        """
        maps = episode.instances()
        boxes = box_of(maps == episode.instance_number("target"))
        return np.concatenate([boxes, np.where(np.isnan(boxes[:, :1]), np.nan, 1)], axis=1, dtype=np.float32)


@dataclass(frozen=True)
class Boxes(Filled):
    """A file of boxes, for example of `la_reconvla.data.annotate.write_boxes`: JSON lines, one a frame::

        {"episode": "<file name>/<demo>", "step": 12, "box": [left, top, right, bottom], "score": 0.83}

    The score is optional. A frame without a box has no line, or one whose box is null.
    """

    path: Path
    label = "boxes"

    @functools.cached_property
    def identity(self) -> str:
        """SHA-256 of the file."""
        return hashlib.sha256(self._bytes()).hexdigest()

    def check(self) -> None:
        """Read the whole file now.

        Raises:
            UserError: a line of it cannot be, with its number and what to do.
        """
        _ = self._episodes

    def found(self, episode: Episode) -> Float32[np.ndarray, "F 5"]:
        """What the file says of this episode.

        Raises:
            UserError: it says nothing of it, or what it says cannot be; with the line and what to do.
        """
        if episode.name not in self._episodes:
            raise UserError(f"{self.path} has no line of {episode.name}: {_AGAIN}")
        result = np.full((len(episode.frame_steps), 5), np.nan, dtype=np.float32)
        rows = {int(step): row for row, step in enumerate(episode.frame_steps)}
        for step, (line, box) in self._episodes[episode.name].items():
            if step not in rows:
                raise UserError(f"{self.path}, line {line}: {episode.name} has no picture at step {step}; {_AGAIN}")
            result[rows[step]] = box
        return result

    @functools.cached_property
    def _episodes(self) -> dict[str, dict[int, tuple[int, tuple[float, ...]]]]:
        """Number of the line, box and score by episode and step."""
        result: dict[str, dict[int, tuple[int, tuple[float, ...]]]] = {}
        for number, line in enumerate(self._bytes().splitlines(), start=1):
            where = f"{self.path}, line {number}"
            try:
                record = json.loads(line)
                episode, step = record["episode"], record["step"]
                box, score = record["box"], record.get("score")
                values = (math.nan,) * 5 if box is None else (*map(float, box), 1.0 if score is None else float(score))
            except (ValueError, TypeError, LookupError, AttributeError):
                raise UserError(f"{where} is not {_FORM}: {_MEND}") from None
            if not isinstance(episode, str) or type(step) is not int or len(values) != 5:
                raise UserError(f"{where} is not {_FORM}: {_MEND}")
            left, top, right, bottom, score = values
            if box is not None and not (0 <= left < right <= 1 and 0 <= top < bottom <= 1 and math.isfinite(score)):
                raise UserError(
                    f"{where}: the box {list(values[:4])} is not (left, top, right, bottom) with left < right and "
                    f"top < bottom as fractions in [0, 1], or its score is no number: {_MEND}"
                )
            steps = result.setdefault(episode, {})
            if step in steps:
                raise UserError(f"{where} repeats step {step} of {episode} (line {steps[step][0]}): keep one of them")
            steps[step] = number, values
        return result

    def _bytes(self) -> bytes:
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror}); {_AGAIN}") from error


_FORM = '{"episode": "<file name>/<demo>", "step": 12, "box": [left, top, right, bottom]}'
_MEND = "mend or remove that line"
_AGAIN = "write the boxes of these very demonstrations with `la-reconvla annotate`"


def annotator(name: str) -> Annotator:
    """``masks``, or a file of boxes, which is read.

    Raises:
        UserError: it is neither, or a line of the file cannot be.
    """
    if name == "masks":
        return Masks()
    if not name.endswith(SUFFIX):
        raise UserError(
            f"'{name}' is neither masks nor a file of boxes (*{SUFFIX}): a detector's boxes are written first, by "
            "`la-reconvla annotate`"
        )
    if not Path(name).is_file():
        raise UserError(f"{name}: no such file; write it with `la-reconvla annotate --out {name}`")
    boxes = Boxes(Path(name))
    boxes.check()
    return boxes


# ---------------------------------------------------------------- boxes


def box_of(masks: Bool[np.ndarray, "F H W"]) -> Float32[np.ndarray, "F 4"]:
    """The smallest box around the true pixels of each mask, NaN where there is none."""
    edges = []
    for seen in (np.any(masks, axis=1), np.any(masks, axis=2)):  # columns, then rows
        first, size = seen.argmax(1), seen.shape[1]
        edges.append(np.stack([first, size - seen[:, ::-1].argmax(1)]) / size)
    (left, right), (top, bottom) = edges
    boxes = np.stack([left, top, right, bottom], axis=1).astype(np.float32)
    boxes[~np.any(masks, axis=(1, 2))] = np.nan
    return boxes


def filled(boxes: Float32[np.ndarray, "F 4"], name: str) -> Float32[np.ndarray, "F 4"]:
    """Frames without a box (NaN) take that of the nearest frame that has one, of two the earlier.

    Raises:
        UserError: none has, with the `name` of the episode.
    """
    own = np.flatnonzero(~np.isnan(boxes[:, 0]))
    if not len(own):
        raise UserError(
            f"{name}: no frame has a box of its target; leave the episode out, or annotate it otherwise, for example "
            "with a lower threshold"
        )
    return boxes[own[np.abs(np.arange(len(boxes))[:, None] - own).argmin(1)]]  # argmin takes the first of equal ones
