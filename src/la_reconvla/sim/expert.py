"""A scripted expert that sees the simulator's poses: it puts a bowl on the plate, for any state of LIBERO-Spatial.

The arm takes the bowl by its rim from above, one finger inside and one outside, and goes through the phases of
`ORDER` (``wait`` only before a second try, until the bowl has come to rest). Every action is computed from the poses
of that very moment, so that noise added to the *executed* action is corrected by the next one; the action that
`Expert.act` returns is the clean label.

Demonstrations should be unimodal: among grasps that are equally free of obstacles the expert always takes the one at
`PREFERRED_ANGLE`, and deviates from it only as far as obstacles or the arm's reach force it to.

Facts of the controller (robosuite's OSC_POSE): an action of 1 asks for 0.05 m or 0.5 rad, but the goal is set anew from
the current pose at each of the 20 steps a second, so the hand really moves about 0.015 m a step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float
from scipy.spatial.transform import Rotation

from la_reconvla.contracts import GRIPPER_CLOSED, GRIPPER_OPEN, Env, Observation, Pose, Start
from la_reconvla.errors import UserError

RIM_RADIUS = 0.0465  # of the akita bowl's wall, where the fingers close on it (m)
RIM_HEIGHT = 0.052  # of the bowl's rim above its body's origin (m)
DEPTH = 0.027  # the point between the fingers goes this far below the rim (m); deeper, they meet the sloping bottom
FINGER_REACH = 0.05  # each open finger's distance from the point between them, with its thickness (m)
SAFE_GAP = 0.010  # gaps to obstacles below this count against a grasp (m)
PREFERRED_ANGLE = np.pi / 2  # world direction from the bowl's axis to the grasped rim point (rad)

SHOULDER = np.array([-0.66, 0.0, 1.245])  # of the Panda on LIBERO's table (m)
FOLDED, ARM_REACH = 0.31, 0.685  # shoulder to wrist: nearer or farther than this the arm moves badly (m)
WRIST = np.array([0.088, 0.21])  # wrist before and above the point between the fingers, hand pointing down (m)

ORDER = ("wait", "hover", "descend", "close", "lift", "carry", "lower", "open", "retreat", "finished")
PATIENCE = {"wait": 10, "hover": 60, "descend": 35, "lift": 30, "carry": 60, "lower": 30, "retreat": 20}  # steps
DURATION = {"close": 11, "open": 4}  # steps; the fingers need about this long to grip and to let go

CLOSE_BEFORE = 0.02  # the fingers start to close this far above the depth of the grasp (m)
BRAKING = 0.03  # full speed until this far from a goal (m); half of it overshoots
EASE = 0.25  # share of full speed that lifting gains in each step
TOUCHING = 0.013  # a bowl that hangs at a slant touches when its origin is this far above the plate's (m)
HOVER = 0.055  # above the rim before going down (m)
LIFT, LIFT_OUT = 0.075, 0.11  # before going sideways, from the table and from furniture (out of a drawer) (m)
CRUISE = 0.10  # bowl above the destination while carried from far (m)
RETREAT = 0.08  # above where the bowl was let go (m)


@runtime_checkable
class PrivilegedEnv(Protocol):
    """What the expert needs of an environment: poses, and the physics as `sim.model` and `sim.data`."""

    @property
    def sim(self) -> Any: ...

    def poses(self) -> dict[str, Pose]: ...


@dataclass(frozen=True)
class Grasp:
    """Where on the rim to take a bowl.

    Attributes:
        angle: world direction from the bowl's axis to the rim point (rad).
        cost: what `rank_grasps` ordered by; obstacles dominate it.
        shortfall: sum over the hand's sample points of what lacks to `SAFE_GAP` (m); 0 where all is free.
        strain: how far the arm leaves its comfortable range of reach, at the bowl or at its destination (m).
    """

    angle: float
    cost: float
    shortfall: float
    strain: float

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


def stretch(position: Float[np.ndarray, "3"]) -> float:
    """Distance (m) from the shoulder to the wrist while the hand is at `position` and points down."""
    x, y, z = position - SHOULDER
    return float(np.hypot(np.hypot(x, y) - WRIST[0], z + WRIST[1]))


def highest_reach(position: Float[np.ndarray, "3"]) -> float:
    """How high (m, world) the hand can be above `position` while it points down: the elbow straightens there."""
    horizontal = np.linalg.norm((position - SHOULDER)[:2]) - WRIST[0]
    return float(SHOULDER[2] - WRIST[1] + np.sqrt(max(ARM_REACH**2 - horizontal**2, 0)))


def hand_points(grip: Float[np.ndarray, "3"], angle: float) -> Float[np.ndarray, "m 3"]:
    """Sample points of the open hand around `grip`: two fingers along the rim's radius and the palm above them (m)."""
    radial = np.array([np.cos(angle), np.sin(angle), 0])
    across = np.array([-np.sin(angle), np.cos(angle), 0])
    fingers = np.array(np.meshgrid([-FINGER_REACH, FINGER_REACH], [-0.012, 0.012], [-0.012, 0, 0.02, 0.04]))
    palm = np.array(np.meshgrid([-0.10, -0.05, 0, 0.05, 0.10], [-0.03, 0.03], [0.05, 0.09, 0.13]))
    offsets = np.concatenate([fingers.reshape(3, -1), palm.reshape(3, -1)], axis=1).T
    return grip + offsets @ np.stack([radial, across, [0, 0, 1]])


def obstacles(model: Any, ignored: tuple[str, ...]) -> Bool[np.ndarray, "g"]:
    """Which geoms of a MuJoCo model can be bumped into: not planes, robot, table or bodies beginning with `ignored`."""
    names = [model.body(body).name for body in range(model.nbody)]
    skipped = np.array([name.startswith(("robot0", "gripper0", "mount0", "table", *ignored)) for name in names])
    collides = (model.geom_contype != 0) | (model.geom_conaffinity != 0)
    return collides & ~skipped[model.geom_bodyid] & (model.geom_type != 0)


def clearance(
    points: Float[np.ndarray, "m 3"], model: Any, data: Any, among: Bool[np.ndarray, "g"]
) -> Float[np.ndarray, "m"]:
    """Distance (m) of points to the nearest box around a geom; negative inside. Boxes turn with their geoms."""
    rotations = data.geom_xmat[among].reshape(-1, 3, 3)
    local = np.einsum("gmi,gij->gmj", points[None] - data.geom_xpos[among][:, None], rotations)
    boxes = model.geom_aabb[among][:, None]
    beyond = np.abs(local - boxes[..., :3]) - boxes[..., 3:]
    distance = np.linalg.norm(np.maximum(beyond, 0), axis=-1) + np.minimum(beyond.max(axis=-1), 0)
    return distance.min(axis=0, initial=np.inf)


def rank_grasps(env: PrivilegedEnv, target: str, destination: str) -> list[Grasp]:
    """Grasps of `target` at rim angles 15 degrees apart, best first.

    The cost adds up what lacks to `SAFE_GAP` at the bowl (dominant) and over the destination, how far the arm would
    have to stretch or fold, a low rim (of a tilted bowl), the hand's turn and the distance from `PREFERRED_ANGLE`.
    """
    model, data = _physics(env)
    poses = env.poses()
    bowl, place = poses[target], poses[destination]
    placed = Pose(place.position + np.array([0, 0, 0.004]), np.array([0.0, 0.0, 0.0, 1.0]))
    here, there = obstacles(model, (target,)), obstacles(model, (target, destination))

    def grasp(angle: float) -> Grasp:
        rim, end = rim_point(bowl, angle), rim_point(placed, angle)
        below = np.array([0, 0, DEPTH])
        lacks = (
            SAFE_GAP - clearance(hand_points(point - below, angle), model, data, among)
            for point, among in ((rim, here), (end, there))
        )
        shortfall, shortfall_there = (float(np.maximum(lack, 0).sum()) for lack in lacks)
        ways = rim - below, _above(rim, 0.03), end - below
        strain = max(0, *(max(stretch(way) - ARM_REACH, FOLDED - stretch(way)) for way in ways))
        lowered = bowl.position[2] + RIM_HEIGHT - rim[2]
        turned = abs(Grasp(angle, 0, 0, 0).yaw)
        apart = abs((angle - PREFERRED_ANGLE + np.pi) % (2 * np.pi) - np.pi)
        cost = 100 * shortfall + 30 * shortfall_there + 80 * strain + 25 * lowered + 0.8 * turned + 0.8 * apart
        return Grasp(angle, cost, shortfall + shortfall_there, strain)

    return sorted((grasp(angle) for angle in np.deg2rad(np.arange(-180, 180, 15))), key=lambda g: g.cost)


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
    bowl: Float[np.ndarray, "3"]
    rim: Float[np.ndarray, "3"]
    place: Float[np.ndarray, "3"]

    @property
    def offset(self) -> float:
        """Horizontal distance from the hand to the rim point."""
        return float(np.linalg.norm((self.rim - self.hand)[:2]))

    @property
    def to_place(self) -> Float[np.ndarray, "2"]:
        """Horizontal way from the bowl to its destination."""
        return (self.place - self.bowl)[:2]


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
        grasps = distinct(rank_grasps(self._env, self._target, self._destination))
        self.grasp = grasps[min(self._attempt, len(grasps) - 1)]

    def _look(self) -> View:
        poses = self._env.poses()
        hand, bowl = poses["gripper"], poses[self._target]
        rim = rim_point(bowl, self.grasp.angle)
        place = poses[self._destination].position
        return View(hand.position, Rotation.from_quat(hand.quaternion), bowl.position, rim, place)

    def _enter(self, phase: str) -> None:
        self.phase, self._steps = phase, 0

    def _retry(self, view: View) -> None:
        self.replanned = True
        self._attempt += 1
        self._was = view.bowl
        self._enter("wait")

    def _advance(self, view: View) -> None:
        """Go on to the next phase when this one has reached its end, or back to the start when the bowl was lost."""
        lost = self.phase in ("carry", "lower") and np.linalg.norm(view.hand - view.rim) > 0.07
        missed = self.phase == "lift" and self._ended(view) and view.bowl[2] < self._began.bowl[2] + 0.010
        astray = self.phase == "retreat" and self._ended(view) and np.linalg.norm(view.to_place) > 0.03
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
                still = np.linalg.norm(view.bowl - self._was) < 5e-4
                self._was = view.bowl
                return bool(still)
            case "hover":
                turned = (self.grasp.orientation * view.orientation.inv()).magnitude()
                return view.offset < 0.015 and abs(self._goal(view)[2] - view.hand[2]) < 0.02 and turned < 0.1
            case "descend":
                return view.offset < 0.010 and view.hand[2] - view.rim[2] + DEPTH < CLOSE_BEFORE
            case "lift":
                return view.hand[2] > self._goal(view)[2] - 0.015
            case "carry":
                return float(np.linalg.norm(view.to_place)) < 0.012
            case "lower":
                return view.bowl[2] - view.place[2] < TOUCHING
            case "retreat":
                return view.hand[2] > self._began.hand[2] + RETREAT - 0.01
            case "finished":
                return False
        return self._steps >= DURATION[self.phase]

    def _goal(self, view: View) -> Float[np.ndarray, "3"]:
        """Where the hand should be, as far as the present phase knows (m, world)."""
        x, y = view.hand[:2] + view.to_place
        match self.phase:
            case "hover":
                return _above(view.rim, float(np.clip(highest_reach(view.rim) - view.rim[2], 0.03, HOVER)))
            case "descend":
                return _above(view.rim, 4 * max(view.offset - 0.012, 0) - DEPTH)  # a funnel: sideways first
            case "close":
                return np.array([*view.rim[:2], min(view.hand[2], view.rim[2] - DEPTH)])
            case "lift":
                return _above(self._began.hand, self._lift())
            case "carry":
                return np.array([x, y, view.hand[2] + self._carried_height(view) - view.bowl[2]])
            case "lower":
                return np.array([x, y, view.hand[2] + view.place[2] + 0.003 - view.bowl[2]])
            case "retreat":
                return _above(self._began.hand, RETREAT)
        return self._began.hand

    def _lift(self) -> float:
        """How far to lift (m): farther from furniture than from the table, as far as the arm reaches."""
        hand, raised = self._began.hand, self._began.bowl[2] - self._began.place[2]
        return LIFT if raised < 0.1 else float(np.clip(highest_reach(hand) - hand[2], LIFT, LIFT_OUT))

    def _carried_height(self, view: View) -> float:
        """The bowl sinks from where it was lifted to `CRUISE` above the destination, and on over its last 8 cm."""
        distance = float(np.linalg.norm(view.to_place))
        whole = float(np.linalg.norm(self._began.to_place)) + 1e-6
        cruise = view.place[2] + min(CRUISE, 0.02 + distance)
        share = np.clip((distance / whole - 0.3) / 0.7, 0, 1)
        return cruise + share * max(self._began.bowl[2] - cruise, 0)

    def _towards(self, view: View) -> Float[np.ndarray, "6"]:
        """Motion to the goal on a straight line: scaled, not clipped, at full speed until `BRAKING` before it.

        Lifting starts gently: a jerk pulls the rim out of the fingers before the bowl has tilted into them.
        """
        move = (self._goal(view) - view.hand) / BRAKING
        turn = (self.grasp.orientation * view.orientation.inv()).as_rotvec() / 0.33
        fastest = min(1, EASE * self._steps) if self.phase == "lift" else 1
        return np.concatenate([move * min(1, fastest / max(np.abs(move).max(), 1e-9)), np.clip(turn, -1, 1)])


def _above(position: Float[np.ndarray, "3"], height: float) -> Float[np.ndarray, "3"]:
    return position + np.array([0.0, 0.0, height])


def _physics(env: PrivilegedEnv) -> tuple[Any, Any]:
    """MuJoCo's own model and data below robosuite's wrappers."""
    return env.sim.model._model, env.sim.data._data
