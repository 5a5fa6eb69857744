"""A toy task whose answer is known by construction: no physics, numpy only. For tests, and for the study
`la-reconvla study run known-answer`.

A board shows four tiles, one in each quadrant. Each has a colour, which is its name, and a shade that rises in one of
eight directions. The instruction names a colour; right is to push in that tile's direction. So
words must find a place and the place must give an action; a policy that cannot bind them can only follow some tile.

::

    +-----------+-----------+     "push red": find the tile with the red edge, see where its shade rises, push there
    | red    -> | white  ^  |
    +-----------+-----------+     success by a guess: 1 in 8; by following any tile: 1/4 + 3/4 * 1/8 = 0.34
    | black  /  | yellow -> |     tiles are in random quadrants, their directions are drawn independently
    +-----------+-----------+

An episode is a pile of boards, each answered by one push, and it succeeds if every push was right. Demonstrations are
longer piles. Their demonstrator errs: so many labels are a direction drawn at random. Then actions alone teach slowly,
while pictures are as clear as ever, so that what a reconstruction asks for decides.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

from la_reconvla.contracts import Observation
from la_reconvla.data.hdf5_layout import DEMO_SUFFIX
from la_reconvla.data.hdf5_writer import FileHeader, Recording, write_file
from la_reconvla.data.starts import Split, Start
from la_reconvla.randomness import derive
from la_reconvla.sim.env import ACTION_DIM, Env, Outcome, Pose
from la_reconvla.sim.rollout import EnvSettings
from la_reconvla.sim.task import Predicate, Task

SUITE, NAME = "toy", "push_as_the_named_tile_says"
COLOURS = {"red": (220, 40, 40), "yellow": (230, 210, 40), "black": (10, 10, 10), "white": (250, 250, 250)}
TILES = tuple(f"{colour}_tile" for colour in COLOURS)
TILE = 16  # rows and columns of a tile in pixels
SIZE = 2 * TILE  # of a board
EDGE = 4  # rows of a tile that show its colour
DIRECTIONS = 8
SWING, NOISE = 85.0, 8.0  # of the shade around mid-grey, and standard deviation of each pixel, in pixel values
ANGLES = np.arange(DIRECTIONS) * (2 * np.pi / DIRECTIONS)
PUSHES = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1)  # right, down
TASK = Task(
    suite=SUITE,
    index=0,
    name=NAME,
    bddl=Path(),
    instruction="push as the named tile says",
    goal=(),
    target=TILES[0],
    destination=TILES[0],
    objects=TILES,
    fixtures=(),
    regions=(),
    max_steps=1,
    init=(),
)


# ---------------------------------------------------------------- boards


@dataclass(frozen=True, eq=False)
class Board:
    """One board. Both arrays hold one number a quadrant: upper left, upper right, lower left, lower right.

    Attributes:
        tiles: which of `TILES` is there, int [4].
        says: which of the eight directions it shows, int [4].
    """

    tiles: np.ndarray
    says: np.ndarray

    def answer(self, target: str) -> int:
        """The direction that `target` shows."""
        return int(self.says[self.tiles == TILES.index(target)][0])

    def picture(self, rng: np.random.Generator) -> UInt8[np.ndarray, "32 32 3"]:
        """The board with noise in every pixel."""
        places = [draw(*pair) for pair in zip(self.tiles, self.says, strict=True)]
        picture = np.concatenate([np.concatenate(row, axis=1) for row in (places[:2], places[2:])])
        return np.clip(picture + rng.normal(0, NOISE, picture.shape), 0, 255).astype(np.uint8)

    def instances(self, names: tuple[str, ...]) -> UInt8[np.ndarray, "32 32"]:
        """Where each of `names` is: its number counted from 1, 0 for none."""
        numbers = [names.index(TILES[t]) + 1 if TILES[t] in names else 0 for t in self.tiles]
        return np.kron(np.reshape(numbers, (2, 2)), np.ones((TILE, TILE))).astype(np.uint8)


def draw(tile: int, says: int) -> Float[np.ndarray, "16 16 3"]:
    """A tile: an edge of its colour, below it a shade that rises where it points."""
    rows, columns = np.mgrid[EDGE:TILE, 0:TILE]
    down, right = (2 * rows - (TILE + EDGE - 1)) / (TILE - EDGE), (2 * columns - (TILE - 1)) / TILE
    result = np.empty((TILE, TILE, 3))
    result[:EDGE] = list(COLOURS.values())[tile]
    result[EDGE:] = (128 + SWING * np.clip(1.2 * (PUSHES[says, 0] * right + PUSHES[says, 1] * down), -1, 1))[..., None]
    return result


def start(split: Split, index: int, boards: int = 1) -> Start:
    """Start `index`: its boards and the tile that is named. Two starts share their boards and name different tiles."""
    scene = index // 2
    rng = np.random.default_rng(derive(scene, f"toy/{split}"))
    named = rng.permutation(len(TILES))[index % 2]
    piles = [np.concatenate([rng.permutation(4), rng.integers(0, DIRECTIONS, 4)]) for _ in range(boards)]
    return Start(
        suite=SUITE,
        task=TASK.index,
        placement="wide",
        split=split,
        index=index,
        seed=derive(scene, f"toy pixels/{split}") % 2**31,
        state=np.concatenate(piles).astype(np.float64),
        instruction=f"push {list(COLOURS)[named]}",
        target=TILES[named],
        destination=TILES[named],
    )


def boards_of(begin: Start) -> list[Board]:
    """The pile of a start."""
    return [Board(*half) for half in begin.state.astype(int).reshape(-1, 2, 4)]


def direction(action: Float[np.ndarray, "7"]) -> int | None:
    """The direction nearest to a push; None for no push at all."""
    if np.hypot(*action[:2]) < 1e-6:
        return None
    return int(np.argmax(PUSHES @ action[:2]))


def push(number: int) -> Float[np.ndarray, "7"]:
    """The action of this direction, hand open."""
    return np.array([*PUSHES[number], 0, 0, 0, 0, -1.0])


# ---------------------------------------------------------------- the environment


class Untouched:
    """`la_reconvla.sim.rollout.Touching` where there is nothing to touch."""

    def now(self) -> dict[str, bool]:
        """Nothing."""
        return {}

    def shifted(self) -> set[str]:
        """Nothing."""
        return set()


class ToyEnv:
    """`la_reconvla.sim.env.Env` over a pile of boards."""

    task = TASK

    def __init__(self) -> None:
        self._boards: list[Board] = []
        self._at, self._right = 0, True

    def reset(self, start: Start) -> None:
        """Lay down the first board."""
        self._start, self._boards, self._at, self._right = start, boards_of(start), 0, True

    def step(self, chunk: Float[np.ndarray, "c 7"]) -> Outcome:
        """One push a board; what is pushed after the last is ignored."""
        taken = 0
        for action in np.asarray(chunk)[: len(self._boards) - self._at]:
            self._right &= direction(action) == self._boards[self._at].answer(self._start.target)
            self._at, taken = self._at + 1, taken + 1
        return Outcome(steps=taken, success=self.success(), done=self._at == len(self._boards))

    def success(self) -> bool:
        """All boards were answered, and rightly."""
        return self._right and self._at == len(self._boards)

    def holds(self, predicate: Predicate) -> bool:
        """A tile is put nowhere."""
        return False

    def observe(self) -> Observation:
        """The board on top; after the last push the last one."""
        rng = np.random.default_rng((self._start.seed, self._top))
        return Observation(image=self._boards[self._top].picture(rng), instruction=self._start.instruction)

    def masks(self, names: tuple[str, ...]) -> dict[str, Bool[np.ndarray, "32 32"]]:
        """Where the named tiles are."""
        maps = self._boards[self._top].instances(names)
        return {name: maps == number for number, name in enumerate(names, start=1)}

    def poses(self) -> dict[str, Pose]:
        """Tiles on a plane of 1 m; the hand stays above its middle."""
        upright, places = np.array([0.0, 0, 0, 1]), ((-0.25, 0.25), (0.25, 0.25), (-0.25, -0.25), (0.25, -0.25))
        lying = zip(self._boards[self._top].tiles, places, strict=True)
        poses = {TILES[tile]: Pose(np.array([*place, 0.0]), upright) for tile, place in lying}
        return {**poses, "gripper": Pose(np.array([0.0, 0, 0.5]), upright)}

    def height(self, name: str) -> float:
        """Tiles are flat."""
        return 0.0

    def touch(self) -> Untouched:
        """Nothing is touched."""
        return Untouched()

    def close(self) -> None:
        """Nothing is held."""

    @property
    def _top(self) -> int:
        return min(self._at, len(self._boards) - 1)


@dataclass(frozen=True, kw_only=True)
class ToySettings(EnvSettings):
    """A board has one size and one look."""

    image_size: int = SIZE
    quality: Any = "fast"

    def build(self) -> ToyEnv:
        """The environment."""
        return ToyEnv()


class ToyExpert:
    """Reads the board off the start and never errs."""

    name, sees = "expert", False

    def reset(self, start: Start, env: Env) -> None:
        """Know all answers."""
        self._answers = [board.answer(start.target) for board in boards_of(start)]

    def act(self, observation: Observation | None) -> Float[np.ndarray, "1 7"]:
        """The next answer."""
        return push(self._answers.pop(0))[None]


@dataclass(frozen=True)
class ToyScripted:
    """`la_reconvla.sim.policies.Specification` of the expert."""

    def identity(self) -> dict[str, Any]:
        """There is one."""
        return {"scripted": SUITE}

    def build(self) -> ToyExpert:
        """A fresh expert."""
        return ToyExpert()


# ---------------------------------------------------------------- demonstrations


def demonstrations(folder: Path, episodes: int, boards: int, errors: float) -> None:
    """Write ``<task>_demo.hdf5`` in the layout of all demonstrations, instance maps included; the same bits each time.

    Args:
        folder: where.
        episodes: piles.
        boards: boards of each.
        errors: share of labels that are a direction drawn at random, the right one among them.
    """
    header = FileHeader(
        suite=SUITE,
        task=TASK.index,
        name=NAME,
        language=TASK.instruction,
        bddl_file="",
        bddl_content="",
        env_args=json.dumps({"type": SUITE}),
        problem=SUITE,
        quality="fast",
        image_size=SIZE,
        frame_stride=1,
    )
    write_file(folder / f"{NAME}{DEMO_SUFFIX}", header, list(_recordings(range(episodes), boards, errors)))


def _recordings(indices: Iterable[int], boards: int, errors: float) -> Iterable[Recording]:
    env = ToyEnv()
    for index in indices:
        begin, pictures, maps, actions = start("train", index, boards), [], [], []
        rng = np.random.default_rng(derive(index, "toy demonstrator"))
        env.reset(begin)
        for board in boards_of(begin):
            pictures.append(env.observe().image)
            maps.append(board.instances(TILES))
            wrong = rng.random() < errors
            actions.append(push(int(rng.integers(DIRECTIONS)) if wrong else board.answer(begin.target)))
            env.step(actions[-1][None])
        taken = np.stack(actions)
        yield Recording(
            start=begin,
            actions=taken,
            executed=taken,
            states=np.tile(begin.state, (boards, 1)),
            robot_states=np.zeros((boards, 9)),
            proprio=np.zeros((boards, 8)),
            joints=np.zeros((boards, ACTION_DIM)),
            frames=np.stack(pictures),
            wrist=None,
            instances=np.stack(maps),
            instance_names=TILES,
            model_xml="",
            success_step=boards,
            noise=errors,
            seed=index,
        )
