"""Boxes of the target, one a recorded frame: from instance maps or a file, written to a file, compared.

A box is (left, top, right, bottom) as fractions of the picture, in the public convention of
`contracts.Observation`; right and bottom are where the target ends. A frame without a box (the target is hidden, the
detector silent) takes that of the nearest frame of its episode, `filled`.
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

from la_reconvla.data.demonstrations import Demonstrations, Episode
from la_reconvla.data.instances import instance_numbers, parts_of
from la_reconvla.errors import UserError
from la_reconvla.progress import Bar, RemoteTicker
from la_reconvla.robot import Fit
from la_reconvla.storage import append_jsonl, parse_json, read_jsonl, write_content

BOXES_SUFFIX = ".jsonl"


class Annotator(Protocol):
    """Says where the target of an episode is. Implementations are frozen dataclasses."""

    def __call__(self, episode: Episode) -> Float32[np.ndarray, "F 4"]:
        """One box for each of the episode's `frame_steps`, `filled` where the frame has none.

        Raises:
            UserError: the episode has no box at all, or its file lacks what the boxes are made of.
        """
        ...

    def unfilled(self, episode: Episode) -> Float32[np.ndarray, "F 5"]:
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
    """An annotator that gives a frame without a box that of the nearest frame, of the same part if one has a box."""

    def unfilled(self, episode: Episode) -> Float32[np.ndarray, "F 5"]:
        raise NotImplementedError

    def __call__(self, episode: Episode) -> Float32[np.ndarray, "F 4"]:
        """See `Annotator`."""
        boxes, steps = self.unfilled(episode)[:, :4], episode.frame_steps
        for part in parts_of(episode):
            inside = (part.begin <= steps) & (steps < part.end)
            if not np.isnan(boxes[inside]).all():
                boxes[inside] = filled(boxes[inside], episode.name)
        return filled(boxes, episode.name)


@dataclass(frozen=True)
class Masks(Filled):
    """The simulator's instance maps: what no detector can know better."""

    label = "masks"
    identity = "masks"

    def unfilled(self, episode: Episode) -> Float32[np.ndarray, "F 5"]:
        """The box of all pixels of the target, of the part that the frame is in; the score is 1.

        Raises:
            UserError: the recording has no instance maps, or its target is not in them.
        """
        maps = episode.instances()
        boxes = box_of(maps == instance_numbers(episode, "target")[:, None, None])
        return np.concatenate([boxes, np.where(np.isnan(boxes[:, :1]), np.nan, 1)], axis=1, dtype=np.float32)


@dataclass(frozen=True)
class Boxes(Filled):
    """A file of boxes, for example of `write_boxes`: JSON lines, one per frame::

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
        """Read the complete file now.

        Raises:
            UserError: a line of it cannot be, with its number and what to do.
        """
        _ = self._episodes

    def unfilled(self, episode: Episode) -> Float32[np.ndarray, "F 5"]:
        """The boxes of this episode in the file.

        Raises:
            UserError: it has none, or an invalid one; with the line and what to do.
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
                record = parse_json(line)
                episode, step = record["episode"], record["step"]
                box, score = record["box"], record.get("score")
                values = (math.nan,) * 5 if box is None else (*map(float, box), 1.0 if score is None else float(score))
            except (ValueError, TypeError, LookupError, AttributeError, OverflowError):
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
_AGAIN = "write the boxes of these very demonstrations with `la-reconvla data boxes`"


def annotator(name: str) -> Annotator:
    """``masks``, or a file of boxes, which is read.

    Raises:
        UserError: it is neither, or a line of the file cannot be.
    """
    if name == "masks":
        return Masks()
    if not name.endswith(BOXES_SUFFIX):
        raise UserError(
            f"'{name}' is neither masks nor a file of boxes (*{BOXES_SUFFIX}): a detector's boxes are written first, "
            "by `la-reconvla data boxes`"
        )
    if not Path(name).is_file():
        raise UserError(f"{name}: no such file; write it with `la-reconvla data boxes --out {name}`")
    boxes = Boxes(Path(name))
    boxes.check()
    return boxes


def write_boxes(demonstrations: Demonstrations, annotator: Annotator, path: Path, ticker: Bar | RemoteTicker) -> None:
    """Write the boxes of `annotator` as the file that `Boxes` reads: one line per frame, null where there is no box.

    The file appears when it is complete. Until then a file beside it holds one line per episode; the same call goes on
    from there. `ticker` advances once per episode, also for those that were there.

    Raises:
        UserError: `annotator` cannot annotate an episode, or the disk is full.
    """
    episodes = demonstrations.episodes
    names = [episode.name for episode in episodes]
    key = hashlib.sha256(json.dumps([annotator.identity, demonstrations.hash, names]).encode()).hexdigest()[:8]
    part = path.with_name(f"{path.name}.{key}.part")
    done: list[list[dict[str, Any]]] = read_jsonl(part)
    ticker.advance(len(done), before=True)
    for episode in episodes[len(done) :]:
        lines = []
        for step, (*box, score) in zip(episode.frame_steps.tolist(), annotator.unfilled(episode).tolist(), strict=True):
            there = {"box": None} if math.isnan(score) else {"box": box, "score": score}
            lines.append({"episode": episode.name, "step": step, **there})
        append_jsonl(part, lines)
        done.append(lines)
        ticker.advance(note=episode.name)
    write_content(path, "".join(json.dumps(line) + "\n" for lines in done for line in lines))
    part.unlink(missing_ok=True)


def boxes_summary(demonstrations: Demonstrations, path: Path) -> str:
    """One line on a file of boxes, beside the instance maps where the recordings have them.

    Compared are the filled boxes of frames that show the target; an episode without any box counts as missed.
    """
    boxes, episodes = Boxes(path), demonstrations.episodes
    given = [boxes.unfilled(episode)[:, :4] for episode in episodes]
    boxed = np.concatenate([~np.isnan(b[:, 0]) for b in given])
    empty = sum(bool(np.isnan(b[:, 0]).all()) for b in given)
    line = f"{path}: {len(episodes)} episodes, {len(boxed)} frames, {boxed.mean():.0%} with a box of their own"
    line += f", {empty} episodes without any (training refuses them)" if empty else ""
    ious, hits = [np.empty(0)], [np.empty(0)]
    for episode, mine in zip(episodes, given, strict=True):
        if episode.target is None or episode.target not in episode.instance_names:
            continue
        truth = Masks().unfilled(episode)[:, :4]
        shown = ~np.isnan(truth[:, 0])
        nothing = bool(np.isnan(mine).all())
        mine = np.full_like(mine, -1) if nothing else filled(mine, episode.name)
        mine, truth = mine[shown], truth[shown]
        centre = (mine[:, :2] + mine[:, 2:]) / 2
        ious.append(box_iou(mine, truth))
        hits.append(np.all((truth[:, :2] <= centre) & (centre < truth[:, 2:]), axis=1))
    iou, inside = np.concatenate(ious), np.concatenate(hits)
    if len(iou):
        line += f"; against the masks: mean IoU {iou.mean():.2f}, centre inside {inside.mean():.0%}"
    return line


# ---------------------------------------------------------------- geometry


def box_of(masks: Bool[np.ndarray, "F H W"]) -> Float32[np.ndarray, "F 4"]:
    """The smallest box around the true pixels of each mask, NaN where there is none."""
    edges = []
    for occupied in (np.any(masks, axis=1), np.any(masks, axis=2)):  # columns, then rows
        first, size = occupied.argmax(1), occupied.shape[1]
        edges.append(np.stack([first, size - occupied[:, ::-1].argmax(1)]) / size)
    (left, right), (top, bottom) = edges
    boxes = np.stack([left, top, right, bottom], axis=1).astype(np.float32)
    boxes[~np.any(masks, axis=(1, 2))] = np.nan
    return boxes


def in_square(boxes: Float32[np.ndarray, "F 4"], rows: int, columns: int, fit: Fit) -> Float32[np.ndarray, "F 4"]:
    """Boxes of pictures of so many rows and columns as fractions of the squares that `samples.resize` makes of them."""
    if fit == "squeeze":
        return boxes
    side = max(rows, columns)
    top, left = (side - rows) // 2, (side - columns) // 2
    scale, offset = (np.array(two * 2, dtype=np.float32) for two in ((columns, rows), (left, top)))
    return ((boxes * scale + offset) / side).astype(np.float32)


def box_masks(boxes: Float32[np.ndarray, "F 4"], size: int) -> Bool[np.ndarray, "F H W"]:
    """Pictures of `size` pixels a side that are true in their box; of a box that is NaN, nowhere."""
    edges = np.nan_to_num(boxes * size).round()
    at = np.arange(size) + 0.5
    columns = (edges[:, :1] < at) & (at < edges[:, 2:3])
    rows = (edges[:, 1:2] < at) & (at < edges[:, 3:])
    return rows[:, :, None] & columns[:, None, :]


def filled(boxes: Float32[np.ndarray, "F 4"], name: str) -> Float32[np.ndarray, "F 4"]:
    """Frames without a box (NaN) take that of the nearest frame that has one, of two the earlier.

    Raises:
        UserError: none has, with the `name` of the episode.
    """
    with_box = np.flatnonzero(~np.isnan(boxes[:, 0]))
    if not len(with_box):
        raise UserError(
            f"{name}: no frame has a box of its target; leave the episode out, or annotate it otherwise, for example "
            "with a lower threshold"
        )
    nearest = np.abs(np.arange(len(boxes))[:, None] - with_box).argmin(1)  # argmin takes the first of equal ones
    return boxes[with_box[nearest]]


def box_iou(a: Float32[np.ndarray, "F 4"], b: Float32[np.ndarray, "F 4"]) -> Float32[np.ndarray, " F"]:
    """Intersection over union."""
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    common = sides.clip(0).prod(1)
    return common / ((a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - common)
