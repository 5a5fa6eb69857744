"""Where to take a thing, and how to carry it to its destination: grasps, ranked by what they cost."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Bool, Float
from scipy.spatial.transform import Rotation

from la_reconvla.data.starts import object_kind
from la_reconvla.errors import UserError
from la_reconvla.sim.env import Pose
from la_reconvla.sim.expert_tasks import BOWLS, CUPS, KNOBBED, PLACES, Rest, place_kind
from la_reconvla.sim.hand_geometry import (
    ARM_REACH,
    FINGERTIP,
    FOLDED,
    PALM_DENSELY,
    PASSING,
    RIM_HEIGHT,
    PrivilegedEnv,
    anchor,
    clearance,
    corners,
    geoms_of,
    grip_height,
    hand_points,
    higher,
    highest_reach,
    obstacles,
    passing,
    physics,
    rim_point,
    shoulder_of,
    sides,
    stretch,
    summit,
)
from la_reconvla.sim.joints import Joint

DEPTH = 0.027  # the point between the fingers goes this far below the rim (m); deeper, they meet the sloping bottom
BELOW = np.array([0, 0, DEPTH])  # from the point between the fingers to the rim above it (m)
SAFE_GAP = 0.010  # gaps to obstacles below this count against a grasp (m)
PREFERRED_ANGLE = np.pi / 2  # world direction from the bowl's axis to the grasped rim point (rad)
OPENING, SPARE = 0.08, 0.003  # between the open fingers, and what must be left of it on either side of a thing (m)
SKEWS, SLIDES = np.deg2rad((0.0, -15.0, 15.0)), (0.0, -0.02, 0.02)  # of the grasp of a thing's sides (rad, m)
PAD = 0.010  # half the height of the fingers' pads: the part of a thing that they touch (m)
KNOB = 0.005  # how far below its top a knob is taken (m)
LEVEL = 0.005  # what is so near to a mug's highest point is its brim (m)
LIFT, LIFT_OUT = 0.075, 0.11  # before going sideways, from the table and from furniture (out of a drawer) (m)
FOOTING, EDGE = 0.045, 0.04  # half the width of the surface below a thing; its distance from a region's edge (m)


@dataclass(frozen=True)
class Rim:
    """The rim of a bowl."""

    sag = 0.03  # how far a bowl sinks and tilts in the fingers (m)
    letting_go = 4  # steps until the fingers are free

    def mark(self, pose: Pose, angle: float) -> Float[np.ndarray, "3"]:
        """The point of the rim in world direction `angle` (rad)."""
        return rim_point(pose, angle)


@dataclass(frozen=True)
class Brim:
    """The brim of a mug.

    Attributes:
        centre: the middle of it, in the mug's frame (m).
        radius: of its wall (m).
    """

    centre: tuple[float, float, float]
    radius: float
    sag, letting_go = 0.0, 12

    def mark(self, pose: Pose, angle: float) -> Float[np.ndarray, "3"]:
        """The point of the brim in world direction `angle` (rad)."""
        aside = self.radius * np.array([np.cos(angle), np.sin(angle), 0.0])
        return pose.position + Rotation.from_quat(pose.quaternion).apply(self.centre) + aside


@dataclass(frozen=True)
class OppositeSides:
    """Two opposite sides of a thing.

    Attributes:
        grip: the point between them, in the thing's frame (m).
    """

    grip: tuple[float, float, float]
    sag, letting_go = 0.0, 12

    def mark(self, pose: Pose, angle: float) -> Float[np.ndarray, "3"]:
        """`DEPTH` above the point between the sides: where a bowl taken there would have its rim."""
        return higher(pose.position + Rotation.from_quat(pose.quaternion).apply(self.grip), DEPTH)


@dataclass(frozen=True)
class Grasp:
    """Where to take a thing.

    Attributes:
        angle: world direction of the fingers; for a bowl, from its axis to the rim point (rad).
        cost: what `rank_grasps` ordered by; obstacles dominate it.
        shortfall: sum over the hand's sample points of what lacks to `SAFE_GAP` (m); 0 where all is free.
        strain: how far the arm leaves its comfortable range of reach, at the thing or at its destination (m).
        handle: what the fingers close on.
        room: how far aside the hand may be on its way down (m).
        offset: from the destination's origin to the thing's when it is let go (m, world).
        rest: how it is let go.
        entry: how far beside where it is let go it goes down (m, world).
        approach: height of the hand on its way to the thing, from which it comes down (m, world); -inf: straight there.
        way: height of the hand while it carries the thing (m, world); None: the thing sinks as it goes.
    """

    angle: float
    cost: float
    shortfall: float
    strain: float
    handle: Rim | Brim | OppositeSides = Rim()
    room: float = 0.012
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    rest: Rest = field(default_factory=Rest)
    entry: tuple[float, float, float] = (0.0, 0.0, 0.0)
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


def side_grips(
    shape: Float[np.ndarray, "s m 3"], pose: Pose, by_knob: bool = False
) -> list[tuple[float, float, float, OppositeSides]]:
    """Grasps across a thing, whatever is around it.

    Args:
        shape: the corners of its boxes (m, world).
        pose: its pose.
        by_knob: take it by what is on its top only.

    Returns:
        For each pair of sides that fits, taken straight or (to pass a neighbour) at a slant or off its middle: the
        direction of the fingers (rad), the thing's width in it (m), how far this strays from straight, the handle.
    """
    height = shape[..., 2].max() - KNOB if by_knob else grip_height(shape[..., 2].min(), shape[..., 2].max())
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
                result.append((angle, width, strays, OppositeSides((float(x), float(y), float(z)))))
    return result


def brim_of(shape: Float[np.ndarray, "s m 3"], pose: Pose) -> tuple[Brim, Bool[np.ndarray, " s"]]:
    """The brim of a mug, and which of its boxes are the wall that ends in it.

    Args:
        shape: the corners of its boxes (m, world).
        pose: its pose.
    """
    highest = shape[..., 2].max()
    wall = shape[..., 2].max(axis=1) > highest - LEVEL
    points = shape[wall].mean(axis=1)[:, :2]
    middle = (points.min(axis=0) + points.max(axis=0)) / 2
    local = Rotation.from_quat(pose.quaternion).inv().apply(np.array([*middle, highest]) - pose.position)
    return Brim(_floats(local), float(np.linalg.norm(points - middle, axis=1).mean())), wall


def rank_grasps(env: PrivilegedEnv, target: str, destination: str, share: int = 0) -> list[Grasp]:
    """Grasps of `target`, best first: of a bowl at rim angles 15 degrees apart, of others across all sides that fit.

    The cost adds up what lacks to `SAFE_GAP` at the thing (dominant) and over the destination, how far the arm would
    have to stretch or fold, a low rim (of a tilted bowl), the hand's turn and the distance from `PREFERRED_ANGLE`.

    Raises:
        UserError: if no two sides of the thing fit between the fingers.
    """
    transport, kind = _Transport(env, target, destination, share), object_kind(target)
    if kind in CUPS:
        grasps = transport.brim_grasps()
    else:
        grasps = transport.rim_grasps() if kind.endswith(BOWLS) else transport.side_grasps(kind in KNOBBED)
    if not grasps:
        raise UserError(f"no two sides of {target} fit between the fingers in this pose: the expert cannot grasp it")
    return sorted(grasps, key=lambda g: g.cost)


class _Transport:
    """One thing to be moved to one destination, with the poses and obstacles of now."""

    def __init__(self, env: PrivilegedEnv, target: str, destination: str, share: int) -> None:
        poses = env.poses()
        longest_first = sorted(poses, key=len, reverse=True)
        owner = next((name for name in longest_first if destination.startswith(name)), destination)
        self.destination, self.onto_instance = destination, destination in poses
        self.model, self.data = physics(env)
        self.thing, self.hand = poses[target], poses["gripper"].position
        self.shoulder, self.goal = shoulder_of(env), anchor(env, poses, destination)
        self.here, self.there = obstacles(self.model, (target,)), obstacles(self.model, (target, owner))
        self.rest = PLACES.get(place_kind(destination), Rest())
        self.own = geoms_of(self.model, target)
        self.beside = np.array([share * self.rest.apart, 0.0, 0.0])
        self.shape = corners(self.model, self.data, self.own)
        self.carrier, self.inward = self.here & ~self.there, np.zeros(3)
        if self.rest.outward:
            drawer = Joint.of(env, destination)
            self.carrier, self.inward = drawer.geoms, drawer.axis

    def rim_grasps(self) -> list[Grasp]:
        """Grasps of a bowl, all around its rim."""
        grasps = []
        for angle in np.deg2rad(np.arange(-180, 180, 15)):
            grasp = Grasp(angle, 0, 0, 0)
            if not self.onto_instance:
                grasp = self._planned(grasp)
            placed = Pose(self.goal + grasp.offset + np.array([0, 0, 0.004]), np.array([0.0, 0.0, 0.0, 1.0]))
            lowered = self.thing.position[2] + RIM_HEIGHT - rim_point(self.thing, angle)[2]
            apart = abs((angle - PREFERRED_ANGLE + np.pi) % (2 * np.pi) - np.pi)
            grasps.append(self._judged(grasp, rim_point(placed, angle), lowered, apart))
        return grasps

    def brim_grasps(self) -> list[Grasp]:
        """Grasps of a mug, all around its brim; its handle is in the way of some."""
        handle, brim = brim_of(self.shape, self.thing)
        self.here = self.here.copy()
        self.here[np.flatnonzero(self.own)[~brim]] = True
        self.beside = self.beside - Rotation.from_quat(self.thing.quaternion).apply([*handle.centre[:2], 0]) / 2
        grasps = []
        for angle in np.deg2rad(np.arange(-180, 180, 15)):
            grasp = self._planned(Grasp(angle, 0, 0, 0, handle))
            end = self.goal + grasp.offset + handle.mark(self.thing, angle) - self.thing.position
            apart = abs((angle - PREFERRED_ANGLE + np.pi) % (2 * np.pi) - np.pi)
            grasps.append(self._judged(grasp, end, 0, apart))
        return grasps

    def side_grasps(self, by_knob: bool) -> list[Grasp]:
        """Grasps of anything else, across two sides that fit between the fingers."""
        grasps = []
        for angle, width, strays, handle in side_grips(self.shape, self.thing, by_knob):
            room = min(0.012, (OPENING - width) / 2 - SPARE)
            grasp = self._planned(Grasp(angle, 0, 0, 0, handle, room))
            end = self.goal + grasp.offset + handle.mark(self.thing, angle) - self.thing.position
            grasps.append(self._judged(grasp, end, 0, abs(grasp.yaw) + strays))
        return grasps

    def _judged(self, grasp: Grasp, end: Float[np.ndarray, "3"], lowered: float, apart: float) -> Grasp:
        """`grasp` with its cost; `end` is its mark over the destination."""
        angle, mark = grasp.angle, grasp.handle.mark(self.thing, grasp.angle)
        lacks = (
            SAFE_GAP - clearance(hand_points(point - BELOW, angle), self.model, self.data, among)
            for point, among in ((mark, self.here), (end, self.there))
        )
        shortfall, shortfall_there = (float(np.maximum(lack, 0).sum()) for lack in lacks)
        reaches = [stretch(point, self.shoulder) for point in (mark - BELOW, higher(mark, 0.03), end - BELOW)]
        strain = max(grasp.strain, *(max(reach - ARM_REACH, FOLDED - reach) for reach in reaches))
        turned = abs(grasp.yaw)
        cost = 100 * shortfall + 30 * shortfall_there + 80 * strain + 25 * lowered + 0.8 * turned + 0.8 * apart
        return replace(grasp, cost=cost + grasp.cost, shortfall=shortfall + shortfall_there, strain=strain)

    def _planned(self, grasp: Grasp) -> Grasp:
        """`grasp` with where the thing is let go, and with ways above what is in between."""
        around = corners(self.model, self.data, self.here, 5).reshape(-1, 3)
        grip = grasp.handle.mark(self.thing, grasp.angle) - BELOW
        height = self.thing.position[2] - self.shape[..., 2].min()  # of the thing's origin above its lowest point
        position, fall = self._let_go(grasp.angle, grip, height)
        end = position + grip - self.thing.position
        highest = min(highest_reach(grip, self.shoulder), highest_reach(end, self.shoulder))
        sag = grasp.handle.sag
        hanging = grip[2] - self.thing.position[2] + height + sag
        way = max(passing(around, grip, end, hanging), end[2] + PASSING + sag, grip[2] + LIFT)
        return replace(
            grasp,
            cost=self.rest.falling * fall,
            offset=_floats(position - self.goal),
            entry=_floats(-self.rest.entering * self.inward),
            rest=self.rest,
            strain=max(way - highest, 0.0),
            approach=passing(around, self.hand, grip, FINGERTIP),
            way=min(way, highest),
        )

    def _let_go(
        self, angle: float, grip: Float[np.ndarray, "3"], height: float
    ) -> tuple[Float[np.ndarray, "3"], float]:
        """Origin (m, world) of the thing where it is let go, if the hand takes it at `grip`; how far it falls (m)."""
        position = self.goal + self.rest.offset
        if any(self.rest.tilt):
            return position, 0.0
        position = self._within(grip - self.thing.position) - self.rest.outward * self.inward + self.beside
        owned = corners(self.model, self.data, self.carrier, 5).reshape(-1, 3)
        low = summit(owned, position, position, FOOTING) + height if len(owned) else self.thing.position[2]
        position[2] = low
        for _ in range(60):  # up to where the open hand, too, has room
            points = hand_points(position + grip - self.thing.position, angle, PALM_DENSELY)
            if clearance(points, self.model, self.data, self.here).min() > SAFE_GAP / 2:
                break
            position[2] += 0.005
        return position, float(position[2] - low)

    def _within(self, grip: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3"]:
        """Where in a region to put a thing that is held `grip` from its origin: its middle, or as near as must be."""
        if self.onto_instance:
            return self.goal.copy()
        site = self.data.site(self.destination)
        extent = np.abs(site.xmat.reshape(3, 3)) @ self.model.site(self.destination).size
        inner = np.maximum(extent[:2] - EDGE, 0)
        nearer = np.append(-np.sign((self.goal - self.shoulder)[:2]) * inner, 0.0)
        choices = [self.goal + share * nearer for share in np.linspace(0, 1, 6)]
        reached = (c for c in choices if stretch(higher(c + grip, 0.05), self.shoulder) < ARM_REACH)
        return next(reached, choices[-1])


def distinct(grasps: list[Grasp]) -> list[Grasp]:
    """The best of `grasps`, then each next one that is at least 40 degrees from all that were kept."""
    kept: list[Grasp] = []
    for grasp in grasps:
        if all(np.cos(grasp.angle - other.angle) < np.cos(np.deg2rad(40)) for other in kept):
            kept.append(grasp)
    return kept


def _floats(vector: Float[np.ndarray, "3"]) -> tuple[float, float, float]:
    return float(vector[0]), float(vector[1]), float(vector[2])
