"""Where the hand can go: reach of the arm, points of the hand, and distances to what is around a thing, in MuJoCo."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float
from scipy.spatial import ConvexHull
from scipy.spatial.transform import Rotation

from la_reconvla.sim.env import Pose

RIM_RADIUS = 0.0465  # of the akita bowl's wall, where the fingers close on it (m)
RIM_HEIGHT = 0.052  # of the bowl's rim above its body's origin (m)
FINGER_REACH = 0.05  # each open finger's distance from the point between them, with its thickness (m)
REACH_DOWN = 0.040  # from a thing's top to the point between the fingers: 5 mm deeper it meets the palm (m)
FINGERTIP = 0.013  # what the fingers reach below the point between them (m)
SHOULDER = np.array([-0.66, 0.0, 1.245])  # of the Panda on LIBERO's table (m)
BASE_TO_SHOULDER = np.array([0.0, 0.0, 0.333])  # (m)
FOLDED, ARM_REACH = 0.31, 0.685  # shoulder to wrist: nearer or farther than this the arm moves badly (m)
WRIST = np.array([0.088, 0.21])  # wrist before and above the point between the fingers, hand pointing down (m)
PASSING = 0.025  # the hand, and what it holds, pass this far above other things (m)
THIN, BROAD = 0.07, 0.12  # half the width of the fingers' way, with what they hold, and of the palm's (m)
PALM_AT, PALM_DENSELY = (-0.10, -0.05, 0, 0.05, 0.10), tuple(np.linspace(-0.10, 0.10, 21))  # across the palm (m)
PALM = 0.045  # the palm's height above the point between the fingers (m)


@runtime_checkable
class PrivilegedEnv(Protocol):
    """What the expert needs of an environment: poses, and the physics as `sim.model` and `sim.data`."""

    @property
    def sim(self) -> Any: ...

    def poses(self) -> dict[str, Pose]: ...


def physics(env: PrivilegedEnv) -> tuple[Any, Any]:
    """MuJoCo's model and data below robosuite's wrappers."""
    return env.sim.model._model, env.sim.data._data


def shoulder_of(env: PrivilegedEnv) -> Float[np.ndarray, "3"]:
    """Where the arm's shoulder is (m, world); rounded, because what is recorded depends on its last bit."""
    model, data = physics(env)
    if "robot0_base" not in (model.body(body).name for body in range(model.nbody)):
        return SHOULDER
    return np.round(data.body("robot0_base").xpos + BASE_TO_SHOULDER, 6)


def anchor(env: PrivilegedEnv, poses: dict[str, Pose], destination: str) -> Float[np.ndarray, "3"]:
    """Origin (m, world) of a destination: an instance or a region of one."""
    if destination in poses:
        return poses[destination].position
    return physics(env)[1].site(destination).xpos.copy()


# ---------------------------------------------------------------- the arm and the hand


def higher(position: Float[np.ndarray, "3"], height: float) -> Float[np.ndarray, "3"]:
    """`position` moved up by `height` (m)."""
    return position + np.array([0.0, 0.0, height])


def rim_point(bowl: Pose, angle: float) -> Float[np.ndarray, "3"]:
    """The point of the rim in world direction `angle` (rad), also of a tilted bowl."""
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


def grip_height(bottom: float, top: float) -> float:
    """Where to take a thing between these heights (m): as deep as the palm lets the fingers, but free of the floor."""
    return max(bottom + FINGERTIP, top - REACH_DOWN)


# ---------------------------------------------------------------- things and what is around them


def obstacles(model: Any, ignored: tuple[str, ...]) -> Bool[np.ndarray, " g"]:
    """Which geoms of a MuJoCo model can be bumped into: not planes, robot, table or bodies beginning with `ignored`."""
    names = [model.body(body).name for body in range(model.nbody)]
    skipped = np.array([name.startswith(("robot0", "gripper0", "mount0", "table", *ignored)) for name in names])
    collides = (model.geom_contype != 0) | (model.geom_conaffinity != 0)
    return collides & ~skipped[model.geom_bodyid] & (model.geom_type != 0)


def geoms_of(model: Any, name: str) -> Bool[np.ndarray, " g"]:
    """Which geoms of a MuJoCo model are those of the instance `name` that can be touched."""
    belongs = np.array([model.body(body).name.startswith(name) for body in range(model.nbody)])
    return belongs[model.geom_bodyid] & ((model.geom_contype != 0) | (model.geom_conaffinity != 0))


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
        points: x and y (m); their convex hull is the outline.

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


def summit(
    points: Float[np.ndarray, "m 3"], begin: Float[np.ndarray, "3"], end: Float[np.ndarray, "3"], radius: float
) -> float:
    """Height (m) of the highest of `points` that is within `radius` of a way in x and y; -inf if none is."""
    way, there = (end - begin)[:2], (points - begin)[:, :2]
    share = np.clip(there @ way / max(float(way @ way), 1e-9), 0, 1)
    near = np.linalg.norm(there - share[:, None] * way, axis=1) < radius
    return float(points[near, 2].max(initial=-np.inf))


def passing(
    points: Float[np.ndarray, "m 3"], begin: Float[np.ndarray, "3"], end: Float[np.ndarray, "3"], hanging: float
) -> float:
    """How high (m, world) the hand must go from `begin` to `end` above `points`, with what hangs `hanging` below it."""
    return PASSING + max(summit(points, begin, end, THIN) + hanging, summit(points, begin, end, BROAD) - PALM)
