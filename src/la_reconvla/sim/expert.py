"""A scripted expert that sees the simulator's poses: it picks one thing up and puts it where it belongs.

It does LIBERO-Spatial, LIBERO-Object and what is pick-and-place in LIBERO-Goal (`feasible`).

The arm takes a thing from above: a bowl by its rim, one finger inside and one outside (`Rim`), anything else across
two opposite sides, which are found in its collision geometry (`Block`). It goes through the phases of `ORDER`
(``wait`` only before a second try, until the thing has come to rest). Every action is computed from the poses of that
very moment, so that noise added to the *executed* action is corrected by the next one; the action that `Expert.act`
returns is the clean label.

Demonstrations should be unimodal: among grasps that are equally free of obstacles the expert always takes the one at
`PREFERRED_ANGLE`, and deviates from it only as far as obstacles or the arm's reach force it to.

Facts of the controller (robosuite's OSC_POSE): an action of 1 asks for 0.05 m or 0.5 rad, but the goal is set anew from
the current pose at each of the 20 steps a second, so the hand really moves about 0.015 m a step.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float
from scipy.spatial import ConvexHull
from scipy.spatial.transform import Rotation

from la_reconvla.contracts import GRIPPER_CLOSED, GRIPPER_OPEN, Env, Observation, Pose, Start
from la_reconvla.errors import UserError
from la_reconvla.sim.tasks import Task, load_suite

RIM_RADIUS = 0.0465  # of the akita bowl's wall, where the fingers close on it (m)
RIM_HEIGHT = 0.052  # of the bowl's rim above its body's origin (m)
DEPTH = 0.027  # the point between the fingers goes this far below the rim (m); deeper, they meet the sloping bottom
FINGER_REACH = 0.05  # each open finger's distance from the point between them, with its thickness (m)
SAFE_GAP = 0.010  # gaps to obstacles below this count against a grasp (m)
PREFERRED_ANGLE = np.pi / 2  # world direction from the bowl's axis to the grasped rim point (rad)

OPENING, SPARE = 0.08, 0.003  # between the open fingers, and what must be left of it on either side of a thing (m)
REACH_DOWN = 0.040  # from a thing's top to the point between the fingers: 5 mm deeper it meets the palm (m)
FINGERTIP = 0.013  # what the fingers reach below the point between them (m)
SKEWS, SLIDES = np.deg2rad((0.0, -15.0, 15.0)), (0.0, -0.02, 0.02)  # of the grasp of a thing's sides (rad, m)
PAD = 0.010  # half the height of the fingers' pads: the part of a thing that they touch (m)

SHOULDER = np.array([-0.66, 0.0, 1.245])  # of the Panda on LIBERO's table (m)
BASE_TO_SHOULDER = np.array([0.0, 0.0, 0.333])  # (m)
FOLDED, ARM_REACH = 0.31, 0.685  # shoulder to wrist: nearer or farther than this the arm moves badly (m)
WRIST = np.array([0.088, 0.21])  # wrist before and above the point between the fingers, hand pointing down (m)

ORDER = ("wait", "hover", "descend", "close", "lift", "carry", "lower", "open", "retreat", "finished")
PATIENCE = {"wait": 10, "hover": 60, "descend": 35, "lift": 30, "carry": 60, "lower": 30, "retreat": 20}  # steps
GRIPPING = 11  # steps that the fingers need to grip; to let go, see `letting_go` of a handle

CLOSE_BEFORE = 0.02  # the fingers start to close this far above the depth of the grasp (m)
BRAKING = 0.03  # full speed until this far from a goal (m); half of it overshoots
EASE = 0.25  # share of full speed that lifting gains in each step
TOUCHING = 0.013  # a bowl that hangs at a slant touches when its origin is this far above the plate's (m)
HOVER = 0.055  # above the rim before going down (m)
LIFT, LIFT_OUT = 0.075, 0.11  # before going sideways, from the table and from furniture (out of a drawer) (m)
CRUISE = 0.10  # bowl above the destination while carried from far (m)
SETTLE = 0.008  # below where a thing was let go, before withdrawing (m)
RETREAT = 0.08  # above where the bowl was let go (m)
PASSING = 0.025  # the hand, and what it holds, pass this far above other things (m)
THIN, BROAD = 0.07, 0.12  # half the width of the fingers' way, with what they hold, and of the palm's (m)
PALM_AT, PALM_DENSELY = (-0.10, -0.05, 0, 0.05, 0.10), tuple(np.linspace(-0.10, 0.10, 21))  # across the palm (m)
PALM = 0.045  # the palm's height above the point between the fingers (m)
FOOTING, EDGE = 0.045, 0.04  # half the width of what a thing stands on; its distance from a region's edge (m)
ASTRAY = 0.03  # a thing let go that ends farther than this from where it should be is taken again (m)

BLOCKS = frozenset(  # what is taken across two sides; a kind is an instance's name without its number
    ("alphabet_soup", "bbq_sauce", "butter", "chocolate_pudding", "cream_cheese", "ketchup", "milk")
) | {"orange_juice", "salad_dressing", "tomato_sauce", "wine_bottle"}
BOWLS, PLATES = "bowl", "plate"  # how the kinds end that are taken by their rim, and those that bowls are put on


@dataclass(frozen=True)
class Rest:
    """How things are let go at a destination.

    Attributes:
        offset: where a thing that is let go at a tilt has its origin, from the destination's (m, world). Others are set
            down on what the destination stands on.
        tilt: turn of the hand, as a rotation vector in the world (rad).
        slack: how far from there a thing may come to rest (m).
    """

    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    tilt: tuple[float, float, float] = (0.0, 0.0, 0.0)
    slack: float = ASTRAY


# Where things can be put besides plates, by kind. Drawers are not among them: they are closed.
PLACES = {
    "akita_black_bowl": Rest(),
    "basket_contain_region": Rest(slack=0.06),
    "flat_stove_cook_region": Rest(slack=0.07),
    "wooden_cabinet_top_side": Rest(slack=0.09),
    # A bottle is leant over along the shelf, which is a gutter: let go, it falls into it.
    "wine_rack_top_region": Rest(offset=(0.04, -0.014, 0.018), tilt=(0.0, np.deg2rad(60), 0.0), slack=0.10),
}


def kind(name: str) -> str:
    """``akita_black_bowl_1`` -> ``akita_black_bowl``, ``basket_1_contain_region`` -> ``basket_contain_region``."""
    return re.sub(r"_\d+(?=_|$)", "", name)


def feasible(task: Task) -> bool:
    """Whether the expert knows how to do `task`: it moves one thing that can be grasped to a place that is open."""
    takes = kind(task.target) in BLOCKS or kind(task.target).endswith(BOWLS)
    puts = kind(task.destination) in PLACES or kind(task.destination).endswith(PLATES)
    return len(task.goal) == 1 and task.goal[0][0] in ("on", "in") and takes and puts


def require_feasible(tasks: Iterable[Task]) -> None:
    """Refuse tasks that the expert cannot do.

    Raises:
        UserError: naming the first of them, and those of its suite that it can do.
    """
    for task in tasks:
        if not feasible(task):
            able = [str(other.index) for other in load_suite(task.suite) if feasible(other)]
            raise UserError(
                f"the scripted expert cannot do task {task.index} of {task.suite} ('{task.instruction}'): it picks "
                "one thing up and puts it down, and opens, switches or pushes nothing; "
                f"its tasks there: {', '.join(able) or 'none'}"
            )


@runtime_checkable
class PrivilegedEnv(Protocol):
    """What the expert needs of an environment: poses, and the physics as `sim.model` and `sim.data`."""

    @property
    def sim(self) -> Any: ...

    def poses(self) -> dict[str, Pose]: ...


@dataclass(frozen=True)
class Rim:
    """The rim of a bowl."""

    sag = 0.03  # how far a bowl sinks and tilts in the fingers (m)
    letting_go = 4  # steps until the fingers are free

    def mark(self, pose: Pose, angle: float) -> Float[np.ndarray, "3"]:
        """The point of the rim in world direction `angle` (rad)."""
        return rim_point(pose, angle)


@dataclass(frozen=True)
class Block:
    """Two opposite sides of a thing.

    Attributes:
        grip: the point between them, in the thing's own frame (m).
    """

    grip: tuple[float, float, float]
    sag, letting_go = 0.0, 12

    def mark(self, pose: Pose, angle: float) -> Float[np.ndarray, "3"]:
        """`DEPTH` above the point between the sides: where a bowl taken there would have its rim."""
        return _above(pose.position + Rotation.from_quat(pose.quaternion).apply(self.grip), DEPTH)


@dataclass(frozen=True)
class Grasp:
    """Where to take a thing.

    Attributes:
        angle: world direction in which the fingers lie; for a bowl, from its axis to the rim point (rad).
        cost: what `rank_grasps` ordered by; obstacles dominate it.
        shortfall: sum over the hand's sample points of what lacks to `SAFE_GAP` (m); 0 where all is free.
        strain: how far the arm leaves its comfortable range of reach, at the thing or at its destination (m).
        handle: what the fingers close on.
        room: how far aside the hand may be on its way down (m).
        offset: from the destination's origin to the thing's when it is let go (m, world).
        rest: how it is let go.
        approach: height of the hand on its way to the thing, from which it comes down (m, world); -inf: straight there.
        way: height of the hand while it carries the thing (m, world); None: the thing sinks as it goes.
    """

    angle: float
    cost: float
    shortfall: float
    strain: float
    handle: Rim | Block = Rim()
    room: float = 0.012
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    rest: Rest = Rest()
    approach: float = -np.inf
    way: float | None = None

    @property
    def yaw(self) -> float:
        """Turn of the hand from its home pose that lays the fingers along the rim's radius, in (-pi/2, pi/2]."""
        return float(np.pi / 2 - (np.pi - self.angle) % np.pi)

    @property
    def orientation(self) -> Rotation:
        """The hand's orientation: pointing down, turned by `yaw`."""
        return Rotation.from_rotvec([0, 0, self.yaw]) * Rotation.from_matrix(np.diag([1.0, -1.0, -1.0]))


def rim_point(bowl: Pose, angle: float) -> Float[np.ndarray, "3"]:
    """The point of the rim in world direction `angle` (rad), also where the bowl stands tilted."""
    axis = Rotation.from_quat(bowl.quaternion).apply([0, 0, 1])
    direction = np.array([np.cos(angle), np.sin(angle), 0])
    direction = direction - (direction @ axis) * axis
    return bowl.position + RIM_HEIGHT * axis + RIM_RADIUS * direction / np.linalg.norm(direction)


def stretch(position: Float[np.ndarray, "3"], shoulder: Float[np.ndarray, "3"] = SHOULDER) -> float:
    """Distance (m) from the shoulder to the wrist while the hand is at `position` and points down."""
    x, y, z = position - shoulder
    return float(np.hypot(np.hypot(x, y) - WRIST[0], z + WRIST[1]))


def highest_reach(position: Float[np.ndarray, "3"], shoulder: Float[np.ndarray, "3"] = SHOULDER) -> float:
    """How high (m, world) the hand can be above `position` while it points down: the elbow straightens there."""
    horizontal = np.linalg.norm((position - shoulder)[:2]) - WRIST[0]
    return float(shoulder[2] - WRIST[1] + np.sqrt(max(ARM_REACH**2 - horizontal**2, 0)))


def hand_points(
    grip: Float[np.ndarray, "3"], angle: float, palm_at: Sequence[float] = PALM_AT
) -> Float[np.ndarray, "m 3"]:
    """Sample points of the open hand around `grip`: two fingers along the rim's radius and the palm above them (m).

    `palm_at` says where across the palm. Five points can miss a basket's walls; demonstrations were recorded with them.
    """
    radial = np.array([np.cos(angle), np.sin(angle), 0])
    across = np.array([-np.sin(angle), np.cos(angle), 0])
    fingers = np.array(np.meshgrid([-FINGER_REACH, FINGER_REACH], [-0.012, 0.012], [-0.012, 0, 0.02, 0.04]))
    palm = np.array(np.meshgrid(palm_at, [-0.03, 0.03], [0.05, 0.09, 0.13]))
    offsets = np.concatenate([fingers.reshape(3, -1), palm.reshape(3, -1)], axis=1).T
    return grip + offsets @ np.stack([radial, across, [0, 0, 1]])


def obstacles(model: Any, ignored: tuple[str, ...]) -> Bool[np.ndarray, " g"]:
    """Which geoms of a MuJoCo model can be bumped into: not planes, robot, table or bodies beginning with `ignored`."""
    names = [model.body(body).name for body in range(model.nbody)]
    skipped = np.array([name.startswith(("robot0", "gripper0", "mount0", "table", *ignored)) for name in names])
    collides = (model.geom_contype != 0) | (model.geom_conaffinity != 0)
    return collides & ~skipped[model.geom_bodyid] & (model.geom_type != 0)


def clearance(
    points: Float[np.ndarray, "m 3"], model: Any, data: Any, among: Bool[np.ndarray, " g"]
) -> Float[np.ndarray, " m"]:
    """Distance (m) of points to the nearest box around a geom; negative inside. Boxes turn with their geoms."""
    rotations = data.geom_xmat[among].reshape(-1, 3, 3)
    local = np.einsum("gmi,gij->gmj", points[None] - data.geom_xpos[among][:, None], rotations)
    boxes = model.geom_aabb[among][:, None]
    beyond = np.abs(local - boxes[..., :3]) - boxes[..., 3:]
    distance = np.linalg.norm(np.maximum(beyond, 0), axis=-1) + np.minimum(beyond.max(axis=-1), 0)
    return distance.min(axis=0, initial=np.inf)


def corners(model: Any, data: Any, among: Bool[np.ndarray, " g"], steps: int = 2) -> Float[np.ndarray, "s m 3"]:
    """Points of the boxes around geoms: `steps` along each edge, 2 for the corners (m, world)."""
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, steps)] * 3), axis=-1).reshape(-1, 3)
    boxes = model.geom_aabb[among][:, None]
    turned = np.einsum("gij,gmj->gmi", data.geom_xmat[among].reshape(-1, 3, 3), boxes[..., :3] + grid * boxes[..., 3:])
    return turned + data.geom_xpos[among][:, None]


def sides(points: Float[np.ndarray, "m 2"]) -> list[tuple[float, float, Float[np.ndarray, "2"]]]:
    """Pairs of opposite sides that a thing with this outline shows to two fingers.

    Args:
        points: seen from above (m); their convex hull is the outline.

    Returns:
        For each edge of the outline: the direction across it in [0, pi) (rad), how wide the thing is in that direction
        (m), and the middle between the two sides (m). Edges of equal direction are one.
    """
    hull = ConvexHull(points)
    normals = {round(float(np.arctan2(y, x) % np.pi), 3) % round(np.pi, 3) for x, y, _ in hull.equations}
    result = []
    for angle in sorted(normals):
        axes = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        along = points @ axes.T
        low, high = along.min(axis=0), along.max(axis=0)
        result.append((angle, float((high - low)[0]), (low + high) / 2 @ axes))
    return result


def grip_height(bottom: float, top: float) -> float:
    """Where to take a thing between these heights (m): as deep as the palm lets the fingers, but free of the floor."""
    return max(bottom + FINGERTIP, top - REACH_DOWN)


def blocks(shape: Float[np.ndarray, "s m 3"], pose: Pose) -> list[tuple[float, float, float, Block]]:
    """Grasps across a thing, whatever is around it.

    Args:
        shape: the corners of its boxes (m, world).
        pose: its pose.

    Returns:
        For each pair of sides that fits, taken straight or (to pass a neighbour) at a slant or off its middle: the
        direction of the fingers (rad), the thing's width in it (m), how far this strays from straight, the handle.
    """
    height = grip_height(shape[..., 2].min(), shape[..., 2].max())
    touched = shape[(shape[..., 2].min(axis=1) < height + PAD) & (shape[..., 2].max(axis=1) > height - PAD)]
    turn = Rotation.from_quat(pose.quaternion).inv()
    result = []
    points = touched[..., :2].reshape(-1, 2)
    for across, _, middle in sides(points):
        along = np.array([-np.sin(across), np.cos(across)])
        half = float(np.ptp(points @ along)) / 2
        for skew, slide in ((skew, slide) for skew in SKEWS for slide in SLIDES):
            angle = (across + skew) % np.pi
            width = float(np.ptp(points @ [np.cos(angle), np.sin(angle)]))
            if width <= OPENING - 2 * SPARE and (slide == 0 or abs(slide) <= half - PAD):
                grip = np.array([*middle + slide * along, height]) - pose.position
                x, y, z = turn.apply(grip)
                strays = abs(skew) + abs(slide) / half
                result.append((angle, width, strays, Block((float(x), float(y), float(z)))))
    return result


def summit(
    points: Float[np.ndarray, "m 3"], begin: Float[np.ndarray, "3"], end: Float[np.ndarray, "3"], radius: float
) -> float:
    """Height (m) of the highest of `points` that is within `radius` of a way, seen from above; -inf if none is."""
    way, there = (end - begin)[:2], (points - begin)[:, :2]
    share = np.clip(there @ way / max(float(way @ way), 1e-9), 0, 1)
    near = np.linalg.norm(there - share[:, None] * way, axis=1) < radius
    return float(points[near, 2].max(initial=-np.inf))


def passing(
    points: Float[np.ndarray, "m 3"], begin: Float[np.ndarray, "3"], end: Float[np.ndarray, "3"], hanging: float
) -> float:
    """How high (m, world) the hand must go from `begin` to `end` above `points`, with what hangs `hanging` below it."""
    return PASSING + max(summit(points, begin, end, THIN) + hanging, summit(points, begin, end, BROAD) - PALM)


def shoulder_of(env: PrivilegedEnv) -> Float[np.ndarray, "3"]:
    """Where the arm's shoulder is (m, world); rounded, because what is recorded depends on its last bit."""
    model, data = _physics(env)
    if "robot0_base" not in (model.body(body).name for body in range(model.nbody)):
        return SHOULDER
    return np.round(data.body("robot0_base").xpos + BASE_TO_SHOULDER, 6)


def anchor(env: PrivilegedEnv, poses: dict[str, Pose], destination: str) -> Float[np.ndarray, "3"]:
    """Origin (m, world) of a destination: an instance or a region of one."""
    if destination in poses:
        return poses[destination].position
    return _physics(env)[1].site(destination).xpos.copy()


def rank_grasps(env: PrivilegedEnv, target: str, destination: str) -> list[Grasp]:
    """Grasps of `target`, best first: of a bowl at rim angles 15 degrees apart, of others across all sides that fit.

    The cost adds up what lacks to `SAFE_GAP` at the thing (dominant) and over the destination, how far the arm would
    have to stretch or fold, a low rim (of a tilted bowl), the hand's turn and the distance from `PREFERRED_ANGLE`.

    Raises:
        UserError: if no two sides of the thing fit between the fingers.
    """
    model, data = _physics(env)
    poses, shoulder = env.poses(), shoulder_of(env)
    thing, hand = poses[target], poses["gripper"].position
    owner = next((name for name in sorted(poses, key=len, reverse=True) if destination.startswith(name)), destination)
    here, there = obstacles(model, (target,)), obstacles(model, (target, owner))
    rest = PLACES.get(kind(destination), Rest())
    goal = anchor(env, poses, destination)
    below = np.array([0, 0, DEPTH])

    def judged(grasp: Grasp, end: Float[np.ndarray, "3"], lowered: float, apart: float) -> Grasp:
        """`grasp` with its cost; `end` is its mark over the destination."""
        angle, mark = grasp.angle, grasp.handle.mark(thing, grasp.angle)
        lacks = (
            SAFE_GAP - clearance(hand_points(point - below, angle), model, data, among)
            for point, among in ((mark, here), (end, there))
        )
        shortfall, shortfall_there = (float(np.maximum(lack, 0).sum()) for lack in lacks)
        ways = mark - below, _above(mark, 0.03), end - below
        strain = max(
            grasp.strain, *(max(stretch(way, shoulder) - ARM_REACH, FOLDED - stretch(way, shoulder)) for way in ways)
        )
        turned = abs(grasp.yaw)
        cost = 100 * shortfall + 30 * shortfall_there + 80 * strain + 25 * lowered + 0.8 * turned + 0.8 * apart
        return replace(grasp, cost=cost, shortfall=shortfall + shortfall_there, strain=strain)

    def planned(grasp: Grasp, shape: Float[np.ndarray, "s m 3"]) -> Grasp:
        """`grasp` with where the thing is let go, and with ways above what is in between."""
        around = corners(model, data, here, 5).reshape(-1, 3)
        grip = grasp.handle.mark(thing, grasp.angle) - below
        stands = thing.position[2] - shape[..., 2].min()
        position = goal + rest.offset
        if not any(rest.tilt):
            position = _within(env, destination, goal, grip - thing.position, shoulder)
            owned = corners(model, data, here & ~there, 5).reshape(-1, 3)
            position[2] = summit(owned, position, position, FOOTING) + stands
            for _ in range(60):  # up to where the open hand, too, has room
                gaps = clearance(
                    hand_points(position + grip - thing.position, grasp.angle, PALM_DENSELY), model, data, here
                )
                if gaps.min() > SAFE_GAP / 2:
                    break
                position[2] += 0.005
        end = position + grip - thing.position
        highest = min(highest_reach(grip, shoulder), highest_reach(end, shoulder))
        sag = grasp.handle.sag
        hanging = grip[2] - thing.position[2] + stands + sag
        way = max(passing(around, grip, end, hanging), end[2] + PASSING + sag, grip[2] + LIFT)
        offset = position - goal
        return replace(
            grasp,
            offset=(float(offset[0]), float(offset[1]), float(offset[2])),
            rest=rest,
            strain=max(way - highest, 0.0),
            approach=passing(around, hand, grip, FINGERTIP),
            way=min(way, highest),
        )

    shape = corners(model, data, _of(model, target))
    grasps: list[Grasp] = []
    if kind(target).endswith(BOWLS):
        onto_thing = destination in poses
        for angle in np.deg2rad(np.arange(-180, 180, 15)):
            grasp = Grasp(angle, 0, 0, 0)
            if not onto_thing:
                grasp = planned(grasp, shape)
            placed = Pose(goal + grasp.offset + np.array([0, 0, 0.004]), np.array([0.0, 0.0, 0.0, 1.0]))
            lowered = thing.position[2] + RIM_HEIGHT - rim_point(thing, angle)[2]
            apart = abs((angle - PREFERRED_ANGLE + np.pi) % (2 * np.pi) - np.pi)
            grasps.append(judged(grasp, rim_point(placed, angle), lowered, apart))
    else:
        for angle, width, strays, handle in blocks(shape, thing):
            room = min(0.012, (OPENING - width) / 2 - SPARE)
            grasp = planned(Grasp(angle, 0, 0, 0, handle, room), shape)
            end = goal + grasp.offset + handle.mark(thing, angle) - thing.position
            grasps.append(judged(grasp, end, 0, abs(grasp.yaw) + strays))
    if not grasps:
        raise UserError(f"no two sides of {target} fit between the fingers, as it lies now: the expert cannot take it")
    return sorted(grasps, key=lambda g: g.cost)


def _of(model: Any, name: str) -> Bool[np.ndarray, " g"]:
    """Which geoms of a MuJoCo model are those of the instance `name` that can be touched."""
    mine = np.array([model.body(body).name.startswith(name) for body in range(model.nbody)])
    return mine[model.geom_bodyid] & ((model.geom_contype != 0) | (model.geom_conaffinity != 0))


def _within(
    env: PrivilegedEnv,
    destination: str,
    goal: Float[np.ndarray, "3"],
    grip: Float[np.ndarray, "3"],
    shoulder: Float[np.ndarray, "3"],
) -> Float[np.ndarray, "3"]:
    """Where in a region to put a thing that is held at `grip` from its origin: its middle, or as near as must be."""
    if destination in env.poses():
        return goal.copy()
    model, data = _physics(env)
    site = data.site(destination)
    extent = np.abs(site.xmat.reshape(3, 3)) @ model.site(destination).size
    inner = np.maximum(extent[:2] - EDGE, 0)
    nearer = np.append(-np.sign((goal - shoulder)[:2]) * inner, 0.0)
    choices = [goal + share * nearer for share in np.linspace(0, 1, 6)]
    return next((c for c in choices if stretch(_above(c + grip, 0.05), shoulder) < ARM_REACH), choices[-1])


def distinct(grasps: list[Grasp], apart: float = np.deg2rad(40)) -> list[Grasp]:
    """The best of `grasps`, then each next one that is at least `apart` (rad) from all that were kept."""
    kept: list[Grasp] = []
    for grasp in grasps:
        if all(np.cos(grasp.angle - other.angle) < np.cos(apart) for other in kept):
            kept.append(grasp)
    return kept


@dataclass(frozen=True)
class View:
    """What the expert looks at before each action. Positions in metres, world."""

    hand: Float[np.ndarray, "3"]
    orientation: Rotation
    thing: Float[np.ndarray, "3"]
    mark: Float[np.ndarray, "3"]
    place: Float[np.ndarray, "3"]

    @property
    def offset(self) -> float:
        """Horizontal distance from the hand to the rim point."""
        return float(np.linalg.norm((self.mark - self.hand)[:2]))

    @property
    def to_place(self) -> Float[np.ndarray, "2"]:
        """Horizontal way from the bowl to its destination."""
        return (self.place - self.thing)[:2]


class Expert:
    """Privileged policy that moves `Start.target` onto `Start.destination` and then lets go and withdraws.

    Attributes:
        phase: one of `ORDER`.
        replanned: whether the bowl was missed or dropped and grasped again; such episodes make poor demonstrations.
        grasp: the grasp in use.
    """

    name = "expert"
    sees = False

    def reset(self, start: Start, env: Env) -> None:
        """A new episode begins in `env`, which must have been reset to `start`.

        Raises:
            UserError: if `env` is no simulator whose physics the expert can look at.
        """
        if not isinstance(env, PrivilegedEnv):
            raise UserError("the expert needs the simulator's physics: give it a LiberoEnv")
        self._env, self._target, self._destination = env, start.target, start.destination
        self.replanned = False
        self._attempt = 0
        self._plan()
        self._enter("hover")

    @property
    def finished(self) -> bool:
        """Whether the hand has withdrawn from the placed bowl."""
        return self.phase == "finished"

    def act(self, observation: Observation | None = None) -> Float[np.ndarray, "1 7"]:
        """The next action, float64, clean: [translation 3, rotation 3, gripper] in [-1, 1]."""
        view = self._look()
        self._advance(view)
        self._steps += 1
        gripper = GRIPPER_CLOSED if self.phase in ("close", "lift", "carry", "lower") else GRIPPER_OPEN
        if self.phase in ("wait", "finished"):
            return np.array([[0, 0, 0, 0, 0, 0, gripper]], dtype=np.float64)
        return np.concatenate([self._towards(view), [gripper]])[None]

    def _plan(self) -> None:
        try:
            grasps = distinct(rank_grasps(self._env, self._target, self._destination))
        except UserError:
            if self._attempt == 0:
                raise
            return  # a thing that was dropped may lie so that no grasp fits: try the last one again, and fail
        self.grasp = grasps[min(self._attempt, len(grasps) - 1)]
        self._shoulder = shoulder_of(self._env)

    def _look(self) -> View:
        poses = self._env.poses()
        hand, thing = poses["gripper"], poses[self._target]
        mark = self.grasp.handle.mark(thing, self.grasp.angle)
        place = anchor(self._env, poses, self._destination) + self.grasp.offset
        return View(hand.position, Rotation.from_quat(hand.quaternion), thing.position, mark, place)

    def _enter(self, phase: str) -> None:
        self.phase, self._steps = phase, 0

    def _retry(self, view: View) -> None:
        self.replanned = True
        self._attempt += 1
        self._was = view.thing
        self._enter("wait")

    def _advance(self, view: View) -> None:
        """Go on to the next phase when this one has reached its end, or back to the start when the bowl was lost."""
        lost = self.phase in ("carry", "lower") and np.linalg.norm(view.hand - view.mark) > 0.07
        missed = self.phase == "lift" and self._ended(view) and view.thing[2] < self._began.thing[2] + 0.010
        astray = self.phase == "retreat" and self._ended(view) and np.linalg.norm(view.to_place) > self.grasp.rest.slack
        if lost or missed or astray:
            self._retry(view)
        elif self._ended(view):
            self._enter(ORDER[ORDER.index(self.phase) + 1])
            self._began = view
            if self.phase == "hover":
                self._plan()

    def _ended(self, view: View) -> bool:
        if self._steps >= PATIENCE.get(self.phase, np.inf):
            return True
        match self.phase:
            case "wait":
                still = np.linalg.norm(view.thing - self._was) < 5e-4
                self._was = view.thing
                return bool(still)
            case "hover":
                level = abs(self._goal(view)[2] - view.hand[2]) < 0.02
                return view.offset < 0.015 and level and self._turn(view).magnitude() < 0.1
            case "descend":
                return view.offset < min(0.010, self.grasp.room) and view.hand[2] - view.mark[2] + DEPTH < CLOSE_BEFORE
            case "lift":
                return view.hand[2] > self._goal(view)[2] - 0.015
            case "carry":
                there = float(np.linalg.norm(view.to_place)) < 0.012
                return there and (not any(self.grasp.rest.tilt) or self._turn(view).magnitude() < 0.35)
            case "lower":
                return view.thing[2] - view.place[2] < TOUCHING
            case "retreat":
                return view.hand[2] > self._began.hand[2] + RETREAT - 0.01
            case "finished":
                return False
        return self._steps >= (GRIPPING if self.phase == "close" else self.grasp.handle.letting_go)

    def _goal(self, view: View) -> Float[np.ndarray, "3"]:
        """Where the hand should be, as far as the present phase knows (m, world)."""
        x, y = view.hand[:2] + view.to_place
        match self.phase:
            case "hover":
                reach = highest_reach(view.mark, self._shoulder) - view.mark[2]
                above = _above(view.mark, float(np.clip(reach, 0.03, HOVER)))
                above[2] = max(above[2], min(self.grasp.approach, above[2] + 4 * max(view.offset - 0.03, 0)))
                return above
            case "descend":
                return _above(view.mark, 4 * max(view.offset - self.grasp.room, 0) - DEPTH)  # a funnel: sideways first
            case "close":
                return np.array([*view.mark[:2], min(view.hand[2], view.mark[2] - DEPTH)])
            case "lift":
                return _above(self._began.hand, self._lift())
            case "carry":
                if self.grasp.way is not None:
                    return np.array([x, y, self.grasp.way])
                return np.array([x, y, view.hand[2] + self._carried_height(view) - view.thing[2]])
            case "lower":
                return np.array([x, y, view.hand[2] + view.place[2] + 0.003 - view.thing[2]])
            case "retreat":
                return _above(self._began.hand, RETREAT)
            case "open" if isinstance(self.grasp.handle, Block) and not any(self.grasp.rest.tilt):
                return _above(self._began.hand, -SETTLE)  # what hangs on a finger is put down
        return self._began.hand

    def _lift(self) -> float:
        """How far to lift (m): farther from furniture than from the table, as far as the arm reaches."""
        hand, raised = self._began.hand, self._began.thing[2] - self._began.place[2]
        if self.grasp.way is not None:
            return max(self.grasp.way - float(hand[2]), LIFT)
        return LIFT if raised < 0.1 else float(np.clip(highest_reach(hand, self._shoulder) - hand[2], LIFT, LIFT_OUT))

    def _turn(self, view: View) -> Rotation:
        """What is left to turn the hand by, in the world."""
        goal, tilt = self.grasp.orientation, self.grasp.rest.tilt
        if any(tilt) and self.phase in ("carry", "lower", "open", "retreat"):
            goal = Rotation.from_rotvec(tilt) * goal
        return goal * view.orientation.inv()

    def _carried_height(self, view: View) -> float:
        """The bowl sinks from where it was lifted to `CRUISE` above the destination, and on over its last 8 cm."""
        distance = float(np.linalg.norm(view.to_place))
        whole = float(np.linalg.norm(self._began.to_place)) + 1e-6
        cruise = view.place[2] + min(CRUISE, 0.02 + distance)
        share = np.clip((distance / whole - 0.3) / 0.7, 0, 1)
        return cruise + share * max(self._began.thing[2] - cruise, 0)

    def _towards(self, view: View) -> Float[np.ndarray, "6"]:
        """Motion to the goal on a straight line: scaled, not clipped, at full speed until `BRAKING` before it.

        Lifting starts gently: a jerk pulls the rim out of the fingers before the bowl has tilted into them.
        """
        move = (self._goal(view) - view.hand) / BRAKING
        turn = self._turn(view).as_rotvec() / 0.33
        fastest = min(1, EASE * self._steps) if self.phase == "lift" else 1
        return np.concatenate([move * min(1, fastest / max(np.abs(move).max(), 1e-9)), np.clip(turn, -1, 1)])


def _above(position: Float[np.ndarray, "3"], height: float) -> Float[np.ndarray, "3"]:
    return position + np.array([0.0, 0.0, height])


def _physics(env: PrivilegedEnv) -> tuple[Any, Any]:
    """MuJoCo's own model and data below robosuite's wrappers."""
    return env.sim.model._model, env.sim.data._data
