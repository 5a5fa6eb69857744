"""What is known of each picture of a film: attention, where the target is, gripper, distance, stages; one JSON file."""

from __future__ import annotations

import base64
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, UInt8

from la_reconvla import layout
from la_reconvla.storage import read_json
from la_reconvla.typed_json import parse


@dataclass(frozen=True)
class Patch:
    """A mask, cut to what it shows: its upper left corner, its size, and its pixels row by row, eight to a byte."""

    left: int
    top: int
    width: int
    height: int
    bits: str

    @classmethod
    def of(cls, mask: Bool[np.ndarray, "H W"]) -> Patch:
        """A mask; an empty one has width 0."""
        if not mask.any():
            return cls(0, 0, 0, 0, "")
        (top, bottom), (left, right) = (np.flatnonzero(mask.any(axis))[[0, -1]] for axis in (1, 0))
        part = mask[top : bottom + 1, left : right + 1]
        bits = base64.b64encode(np.packbits(part).tobytes()).decode()
        return cls(int(left), int(top), part.shape[1], part.shape[0], bits)

    def mask(self, size: int) -> Bool[np.ndarray, "S S"]:
        """The mask again, in a picture of `size` rows and columns."""
        whole = np.zeros((size, size), bool)
        count = self.width * self.height
        pixels = np.unpackbits(np.frombuffer(base64.b64decode(self.bits), np.uint8), count=count).astype(bool)
        whole[self.top : self.top + self.height, self.left : self.left + self.width] = pixels.reshape(
            self.height, self.width
        )
        return whole


@dataclass(frozen=True)
class FilmData:
    """One film. Pictures are numbered as in the video, in which a second is a second of the simulation.

    Attributes:
        source: SHA-256 of the track that it was drawn from.
        size: rows and columns of a picture.
        rate: pictures per second.
        steps: control step of each picture; the last is the end.
        grid: rows and columns of patches; empty for what has no attention to show.
        looks: attention maps, uint8 [q n] in base64: 255 is `most`.
        most: the largest attention of a patch, 1 is its share if all had the same.
        shown: which of the maps each picture shows.
        outlines: where the target is visible.
        distance: of hand and target (m); None for furniture without a body.
        opening: of the gripper, from finger to finger (m).
        stages: control step at which each stage was first reached.
        actions: what was done in each control step.
        success: how it ended.
    """

    source: str
    size: int
    rate: float
    steps: tuple[int, ...]
    grid: tuple[int, ...]
    looks: str
    most: float
    shown: tuple[int, ...]
    outlines: tuple[Patch, ...]
    distance: tuple[float | None, ...]
    opening: tuple[float, ...]
    stages: dict[str, int]
    actions: tuple[tuple[float, ...], ...]
    success: bool
    schema: Literal[2] = 2

    def maps(self) -> Float[np.ndarray, "q n"]:
        """Attention maps in multiples of a patch's equal share."""
        stored = np.frombuffer(base64.b64decode(self.looks), np.uint8)
        return stored.reshape(-1, self.grid[0] * self.grid[1]) * (self.most / 255) if self.grid else np.zeros((0, 0))

    def to_json(self) -> dict[str, Any]:
        """As `read` takes it."""
        return asdict(self)

    @classmethod
    def read(cls, path: Path) -> FilmData:
        """What was written to `path`.

        Raises:
            UserError: the file is missing, or not of this kind or version.
        """
        return parse(cls, layout.require_schema(read_json(path), str(path)), str(path))


def encoded(looks: Float[np.ndarray, "q n"]) -> tuple[str, float]:
    """Attention maps as `FilmData` keeps them: `looks` and `most`. Only proportions within a map matter."""
    totals = looks.sum(1, keepdims=True)
    relative = np.divide(looks * looks.shape[1], totals, out=np.ones_like(looks), where=totals > 0)
    most = float(relative.max())
    levels: UInt8[np.ndarray, "q n"] = np.round(255 * relative / most).astype(np.uint8)
    return base64.b64encode(levels.tobytes()).decode(), most
