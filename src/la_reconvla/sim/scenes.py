"""Pictures of LIBERO's arenas with their objects in random arrangements, to learn words from.

Nothing moves in them: one reset builds the arena, then the free joints of the objects and the robot's arm are set
and two pictures are drawn (the image, and which instance each pixel shows). A scene costs about 0.1 s on one core.
Each is a function of (seed, arena, split, number) alone, so that a stopped run goes on with the same scenes.
"""

from __future__ import annotations

import functools
import itertools
import math
import zlib
from collections.abc import Iterator
from concurrent.futures import as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from la_reconvla import kinds
from la_reconvla.data.scenes import SCENES_SUFFIX, Scenes
from la_reconvla.data.starts import Split
from la_reconvla.errors import UserError
from la_reconvla.processes import explain_death, worker_pool
from la_reconvla.progress import progress
from la_reconvla.randomness import derive
from la_reconvla.robot import Quality
from la_reconvla.sim.options import ScenesOptions
from la_reconvla.storage import claim, locked, require_free_space

CONFIG = "scenes.json"
SHARD = 50  # scenes per file
APART = 0.11  # centres of two objects are at least this far apart (m); a bowl's radius is 0.056
NEAR = 0.15  # an object placed beside another is at most this far from it (m)
BESIDE = 0.35  # share of the objects that are placed beside an earlier one, so that relations are frequent
PRESENT = 0.5  # chance that an object is in the scene at all
ARM = (0.35, 0.25, 0.25, 0.3, 0.3, 0.3, 0.5)  # standard deviation of the arm's seven joints (rad)
AWAY = -5.0  # y of what is not in the scene (m): behind the camera
DEEP = 0.004  # how far two things may reach into each other (m); what rests on a table sinks in by less
TRIES = 200


@dataclass(frozen=True)
class Arena:
    """Where scenes are rendered: the furniture and objects of one LIBERO task.

    Attributes:
        suite: LIBERO suite.
        task: its task, whose objects are used.
        x: lowest and highest x of an object's centre in the world (m).
        y: the same for y.
        share: scenes rendered here, as a share of all.
    """

    suite: str
    task: int
    x: tuple[float, float] = (-0.26, 0.20)
    y: tuple[float, float] = (-0.30, 0.22)
    share: float = 1.0

    @property
    def name(self) -> str:
        """Folder of its scenes."""
        return f"{self.suite}-{self.task}"


FLOOR = (-0.30, 0.30)
ARENAS = (
    Arena("libero_spatial", 0, y=(-0.22, 0.36), share=0.4),
    Arena("libero_goal", 0, share=0.18),
    Arena("libero_object", 0, y=FLOOR, share=0.14),
    Arena("libero_object", 3, y=FLOOR, share=0.14),
    Arena("libero_object", 5, y=FLOOR, share=0.14),
)


@dataclass(frozen=True)
class ScenesConfig(ScenesOptions):
    """What to render: what a user chooses, and the rest.

    Attributes:
        arenas: where.
        quality: render quality.
    """

    arenas: tuple[Arena, ...] = ARENAS
    quality: Quality = "fast"

    def __post_init__(self) -> None:
        if self.scenes < 1 or self.workers < 1:
            raise UserError(f"scenes and workers must be at least 1, not {self.scenes} and {self.workers}")

    @property
    def identity(self) -> dict[str, Any]:
        """What decides which pictures come out; the number of scenes may grow."""
        return {name: value for name, value in kinds.to_json(self).items() if name not in ("out", "workers", "scenes")}


@dataclass(frozen=True)
class Shard:
    """Scenes ``SHARD * number`` and on, of one arena and split."""

    arena: Arena
    split: Split
    number: int

    def path(self, folder: Path) -> Path:
        """Where it is kept."""
        return folder / self.arena.name / self.split / f"{self.number:04d}{SCENES_SUFFIX}"


def shards(config: ScenesConfig) -> Iterator[Shard]:
    """All shards, arena by arena: changing the arena costs a worker some seconds."""
    for arena in config.arenas:
        for split in get_args(Split):
            wanted = config.scenes * arena.share / (5 if split == "test" else 1)
            yield from (Shard(arena, split, number) for number in range(math.ceil(wanted / SHARD)))


def render(config: ScenesConfig) -> int:
    """Render what is missing. Returns how many scenes the folder then holds.

    Raises:
        UserError: for a folder of another configuration, no simulator or OpenGL, too little space.
    """
    from la_reconvla.sim.machine import require_simulator

    everything = list(shards(config))
    require_simulator()
    require_free_space(config.out, 5 * len(everything) * SHARD * config.image_size**2)
    with locked(config.out):
        claim_folder(config)
        todo = [shard for shard in everything if not shard.path(config.out).exists()]
        done = SHARD * (len(everything) - len(todo))
        with (
            progress("Rendering", total=SHARD * len(everything), unit="scenes", done=done) as bar,
            worker_pool(config.workers) as pool,
            explain_death("rendering"),
        ):
            for job in as_completed([pool.submit(_render_shard, config, shard) for shard in todo]):
                job.result()
                bar.advance(SHARD)
    return SHARD * len(everything)


def claim_folder(config: ScenesConfig) -> None:
    """Make the folder this configuration's, or see that it is. One of before named no class in its file."""

    def with_defaults(held: dict[str, Any]) -> dict[str, Any]:
        arenas = [kinds.named(arena, Arena) for arena in held.get("arenas", ())]
        return kinds.with_defaults(kinds.named({**held, "arenas": arenas}, ScenesConfig), config)

    claim(config.out / CONFIG, config.identity, with_defaults)


def _render_shard(config: ScenesConfig, shard: Shard) -> None:
    renderer = _renderer_of(shard.arena, config.image_size, config.quality)
    numbers = range(shard.number * SHARD, (shard.number + 1) * SHARD)
    stream = f"scenes/{shard.arena.name}/{shard.split}"
    seeds = [derive(config.seed, stream, number) for number in numbers]
    Scenes.join(renderer.scene(np.random.default_rng(seed)) for seed in seeds).save(shard.path(config.out))


@functools.lru_cache(maxsize=1)
def _renderer_of(arena: Arena, image_size: int, quality: Quality) -> ArenaRenderer:
    return ArenaRenderer(arena, image_size, quality)


class ArenaRenderer:
    """One arena, built once."""

    def __init__(self, arena: Arena, image_size: int, quality: Quality) -> None:
        from la_reconvla.sim.libero import LiberoEnv
        from la_reconvla.sim.tasks import load_task, official_start

        self.arena, self.task = arena, load_task(arena.suite, arena.task)
        self.env = LiberoEnv(image_size=image_size, quality=quality)
        self.env.reset(official_start(self.task, 0, seed=zlib.crc32(arena.name.encode()) % 1000))
        model, objects = self.env.sim.model._model, self.task.objects
        bodies = (model.body(body).name for body in model.geom_bodyid)
        self._movable = np.array([body.startswith(objects) for body in bodies])
        self.rest = self.env.state()  # settled: heights and orientations are those of objects at rest

    def scene(self, rng: np.random.Generator) -> Scenes:
        """One random arrangement and its pictures."""
        while True:
            state = self.rest.copy()
            state[1:8] += rng.normal(0.0, ARM)
            places = arrange(rng, self.arena, len(self.task.objects))
            for i, place in enumerate(places):
                pose = self._pose(state, i)
                pose[:2] = (0.0, AWAY - i) if np.isnan(place).any() else place
                turn = Rotation.from_rotvec([0.0, 0.0, rng.uniform(-np.pi, np.pi)])
                pose[3:] = (turn * Rotation.from_quat(pose[3:], scalar_first=True)).as_quat(scalar_first=True)
            self.env.set_state(state)
            if not self._pierced():
                break
        shown, image = self.env.segmentation(self.task.objects), self.env.observe().image
        pixels = np.bincount(shown.ravel(), minlength=len(self.task.objects) + 1)[1:]
        columns = places[None].astype(np.float32), pixels[None].astype(np.int32)
        return Scenes((self.arena.name,), self.task.objects, image[None], shown[None], *columns)

    def _pierced(self) -> bool:
        """Whether an object penetrates furniture, the robot or another object."""
        data = self.env.sim.data._data
        deep = [contact.geom for contact in data.contact[: data.ncon] if contact.dist < -DEEP]
        return bool(self._movable[np.array(deep, dtype=int)].any())

    def _pose(self, state: Float[np.ndarray, " s"], index: int) -> Float[np.ndarray, "7"]:
        """View of one object's place in a state: x, y, z and a quaternion in wxyz order."""
        joint = self.env.sim.model.get_joint_qpos_addr(f"{self.task.objects[index]}_joint0")[0]
        return state[1 + joint : 8 + joint]  # the first number of a state is its time


def arrange(rng: np.random.Generator, arena: Arena, count: int) -> Float[np.ndarray, "o 2"]:
    """Position of each of `count` objects (m), NaN for those left out; at least one is there.

    Each is dropped beside an earlier one or anywhere in the arena, `APART` from all earlier ones; one that finds no
    room in `TRIES` draws is left out.
    """
    places = np.full((count, 2), np.nan)
    present = rng.random(count) < PRESENT
    present[rng.integers(count)] = True
    low, high = np.array([arena.x, arena.y]).T
    for i in rng.permutation(np.flatnonzero(present)):
        earlier = places[~np.isnan(places[:, 0])]
        for _ in itertools.repeat(None, TRIES):
            if len(earlier) and rng.random() < BESIDE:
                angle, distance = rng.uniform(-np.pi, np.pi), rng.uniform(APART, NEAR)
                place = earlier[rng.integers(len(earlier))] + distance * np.array([math.cos(angle), math.sin(angle)])
            else:
                place = rng.uniform(low, high)
            room = np.linalg.norm(earlier - place, axis=1).min(initial=np.inf) >= APART
            if room and (place >= low).all() and (place <= high).all():
                places[i] = place
                break
    return places
