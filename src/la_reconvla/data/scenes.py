"""Rendered scenes on disk: a picture, and what the generator knows of it. Written by `la_reconvla.sim.scenes`.

One safetensors file per shard. Its metadata names the columns, so that a file can be read without the simulator.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from la_reconvla.data.starts import Split
from la_reconvla.errors import UserError
from la_reconvla.storage import atomic_write, parse_json

SCENES_SUFFIX = ".safetensors"
NAMES = ("arenas", "instances")  # kept in the metadata, as JSON


@dataclass(frozen=True, eq=False)
class Scenes:
    """m scenes, and what is in them; o is the number of instances of any scene of the set.

    Attributes:
        arenas: m names of where each scene was rendered.
        instances: o names, for example ``akita_black_bowl_1``; not every scene has every one.
        images: uint8 [m H W 3], as `contracts.Observation.image`.
        maps: uint8 [m H W], i + 1 where ``instances[i]`` is visible, else 0. For evaluation: training reads none.
        positions: float32 [m o 2], x and y in the world (m), NaN for what is not in the scene.
        pixels: int32 [m o], how many pixels of each instance are visible.
    """

    arenas: tuple[str, ...]
    instances: tuple[str, ...]
    images: UInt8[np.ndarray, "m H W 3"]
    maps: UInt8[np.ndarray, "m H W"]
    positions: Float[np.ndarray, "m o 2"]
    pixels: Int[np.ndarray, "m o"]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def hash(self) -> str:
        """SHA-256 over all pictures, in order."""
        return hashlib.sha256(self.images.tobytes()).hexdigest()[:16]

    def save(self, path: Path) -> None:
        """Write one shard, atomically."""
        arrays = {f.name: np.ascontiguousarray(getattr(self, f.name)) for f in fields(self) if f.name not in NAMES}
        with atomic_write(path) as temporary:
            save_file(arrays, temporary, metadata={name: json.dumps(getattr(self, name)) for name in NAMES})

    @classmethod
    def load(cls, path: Path) -> Scenes:
        """Read one shard.

        Raises:
            UserError: if it is missing or damaged.
        """
        try:
            with safe_open(path, framework="np") as file:
                arrays: dict[str, Any] = {f.name: file.get_tensor(f.name) for f in fields(cls) if f.name not in NAMES}
                metadata = file.metadata() or {}
                arenas, instances = (tuple(parse_json(metadata[name])) for name in NAMES)
                scenes = cls(arenas, instances, **arrays)
                scenes._require_shapes()
                return scenes
        except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
            raise UserError(f"{path} is no file of scenes ({error}): delete it and render it again") from error

    def _require_shapes(self) -> None:
        """Raise a `ValueError` if arrays disagree with each other or with the names."""
        m, o = len(self.arenas), len(self.instances)
        expected = {"maps": self.images.shape[:3], "positions": (m, o, 2), "pixels": (m, o)}
        shapes = {name: getattr(self, name).shape for name in expected}
        if shapes != expected or self.images.ndim != 4 or len(self.images) != m or self.images.shape[3] != 3:
            raise ValueError(f"{m} scenes of {o} instances have pictures {self.images.shape} and {shapes}")
        if self.images.dtype != np.uint8 or self.maps.dtype != np.uint8 or self.maps.max(initial=0) > o:
            raise ValueError(f"its pictures are {self.images.dtype}, or a map uses a number without a name")

    @classmethod
    def join(cls, groups: Iterable[Scenes]) -> Scenes:
        """All scenes of `groups`, in order, over all their instances."""
        groups = list(groups)
        names = tuple(sorted({name for group in groups for name in group.instances}))
        positions, pixels, maps = [], [], []
        for group in groups:
            columns = [names.index(name) for name in group.instances]
            where = np.full((len(group), len(names), 2), np.nan, np.float32)
            shown = np.zeros((len(group), len(names)), np.int32)
            where[:, columns], shown[:, columns] = group.positions, group.pixels
            positions.append(where)
            pixels.append(shown)
            maps.append(np.array([0, *(column + 1 for column in columns)], np.uint8)[group.maps])
        images = np.concatenate([group.images for group in groups])
        arenas = tuple(arena for group in groups for arena in group.arenas)
        return cls(arenas, names, images, np.concatenate(maps), np.concatenate(positions), np.concatenate(pixels))


def load_scenes(folder: Path, split: Split) -> Scenes:
    """All finished scenes of one split below `folder`.

    Raises:
        UserError: if there are none, or a file is damaged.
    """
    paths = sorted(Path(folder).glob(f"*/{split}/*{SCENES_SUFFIX}"))
    if not paths:
        raise UserError(
            f"{folder} holds no scenes of split '{split}': render some with `la-reconvla data scenes --out {folder}`"
        )
    return Scenes.join(Scenes.load(path) for path in paths)
