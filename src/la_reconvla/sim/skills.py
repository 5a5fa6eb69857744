"""What the scripted expert does besides picking things up: each skill is a function that yields action after action.

A skill looks at the present poses before each of its actions, ends when what it is for holds, or when it has tried for
long enough, and leaves the hand free, open and above what is around.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from la_reconvla.sim.env import GRIPPER_OPEN
from la_reconvla.sim.expert_tasks import Step
from la_reconvla.sim.grasps import Grasp, brim_of
from la_reconvla.sim.hand_geometry import PrivilegedEnv, anchor, corners, geoms_of, higher, physics
from la_reconvla.sim.joints import Joint
from la_reconvla.sim.motion import DELAY, DOWN, Actions, Arm, missed

LEAN = np.deg2rad(40)  # of the hand that pushes below things that stick out, its fingertips in front (rad)
LEVEL = np.deg2rad(75)  # of the hand that takes a handle from the front (rad)
BEFORE, BEYOND = 0.05, 0.05  # from where a push begins to what is pushed, and from there to where it aims (m)
FINGER = 0.012  # half the thickness of the closed fingers (m)
SHUT = {True: 0.001, False: -0.003}  # joints of drawers (m) and of doors (rad) when pushed shut
OPENED, ON = -0.152, 0.65  # joints of drawers and knobs, past what LIBERO asks for (m, rad)
BEHIND, PULLING = 0.006, 0.02  # from a handle: fingers behind it, and where they pull to (m)
SLIPPED = 0.035  # a hand so far before what it moves has slipped off (m)
DOOR_AT, DOOR_BELOW = 0.17, 0.03  # a door is pushed so far from its hinge and so far below its top (m)
AJAR = -1.55  # a door that is open less is in the way of what is put behind it (rad)
CROSSING = 0.06  # above what is in between, on the way to where a skill begins (m)
RIM, LOW = 0.055, 0.014  # from a plate's origin to the hand over its rim: aside and up (m)
PRESSING, AIMING = 0.015, 0.03  # a hand that pushes a plate along aims so far below it, and so far ahead (m)
HANDLE_DEEP, HANDLE_BELOW = 0.018, 0.037  # a mug's handle is taken so far from its end and below the brim (m)
INSIDE, FLOOR = 0.04, 0.010  # a mug's middle is put so far behind the front; the floor above the region's lowest (m)
OVER, AHEAD, NEARLY = 0.015, 0.02, 0.005  # on its way in: above the floor, so far ahead it aims, it is there (m)
EDGE = 0.003  # a plate is there when its middle is so far inside the region (m)

# ---------------------------------------------------------------- skills


def push_shut(arm: Arm, step: Step) -> Actions:
    """Push a drawer at its handle or a door near its edge, past flush, which is what LIBERO calls closed."""
    joint = Joint.of(arm.env, step.target)
    slides = abs(float(joint.axis[2])) < 0.5
    contact = _drawer_front if slides else _door_outside
    turn = _leaning(arm, joint.axis, LEAN) if slides else DOWN
    yield from _cross(arm, lambda: contact(joint, -BEFORE), turn, closed=True)
    yield from arm.go(lambda: contact(joint, -BEFORE), turn, closed=True)
    far = SHUT[slides]
    yield from arm.go(lambda: contact(joint, BEYOND), turn, closed=True, steps=120, until=lambda: joint.value > far)
    yield from _withdraw(arm, contact(joint, -BEFORE), turn, closed=True)


def pull_open(arm: Arm, step: Step) -> Actions:
    """Take a drawer's handle from the front and pull."""
    joint = Joint.of(arm.env, step.target)
    turn = _leaning(arm, joint.axis, LEVEL, upright=True)

    def handle(before: float) -> Float[np.ndarray, "3"]:
        return joint.bar().mean(axis=0) - before * joint.axis

    def slipped() -> bool:
        return float((handle(0) - arm.hand) @ joint.axis) > SLIPPED

    yield from _cross(arm, lambda: handle(0.12), turn, closed=False)
    yield from arm.go(lambda: handle(0.08), turn, closed=False)
    yield from arm.go(lambda: handle(-BEHIND), turn, closed=False, steps=40)
    yield from arm.go(lambda: handle(-BEHIND), turn, closed=True, steps=12, until=lambda: False)
    yield from arm.go(
        lambda: handle(PULLING), turn, closed=True, steps=80, until=lambda: joint.value < OPENED or slipped()
    )
    yield from arm.hold(8, closed=False)
    yield from _withdraw(arm, handle(0.08), turn, closed=False)


def turn_knob(arm: Arm, step: Step) -> Actions:
    """Take a knob by its bar from above and turn it."""
    joint = Joint.of(arm.env, step.target)
    shape = joint.shape()
    bar = shape[shape[..., 2].max(axis=1) > shape[..., 2].max() - 0.03].reshape(-1, 3)
    place = np.append((bar.min(axis=0) + bar.max(axis=0))[:2] / 2, bar[:, 2].max() - 0.02)
    yield from _cross(arm, lambda: place, DOWN, closed=False)
    yield from arm.go(lambda: place, DOWN, closed=False, steps=35)
    yield from arm.hold(12, closed=True)

    def turned() -> Rotation:
        return Rotation.from_rotvec([0, 0, joint.value + 0.3]) * DOWN

    yield from arm.go(lambda: place, turned, closed=True, steps=80, until=lambda: joint.value > ON)
    yield from arm.hold(8, closed=False)
    yield from _withdraw(arm, arm.hand, arm.orientation, closed=False)


def push_along(arm: Arm, step: Step) -> Actions:
    """Press the fingers into a plate, against its rim in front, and push it from within: so it cannot turn away."""
    place = anchor(arm.env, arm.env.poses(), step.destination)
    room = physics(arm.env)[0].site(step.destination).size[:2] - EDGE  # farther on, its rim slips off the fingers

    def short() -> Float[np.ndarray, "3"]:
        way = place - arm.env.poses()[step.target].position
        return np.append(way[:2], 0)

    ahead = short() / max(float(np.linalg.norm(short())), 1e-9)
    turn = Grasp(float(np.arctan2(ahead[1], ahead[0])), 0, 0, 0).orientation

    def rim(height: float) -> Float[np.ndarray, "3"]:
        return higher(arm.env.poses()[step.target].position + RIM * ahead, height)

    def onwards() -> Float[np.ndarray, "3"]:
        gone = (arm.hand - pressed) @ ahead + AIMING
        return np.append((pressed + gone * ahead)[:2], rim(LOW - PRESSING)[2])

    def over() -> bool:
        return bool((np.abs(short()[:2]) < room).all() or (arm.hand - rim(0)) @ ahead > SLIPPED)

    yield from _cross(arm, lambda: rim(LOW), turn, closed=False)
    yield from arm.go(lambda: rim(LOW), turn, closed=False, steps=30)
    pressed = rim(LOW - 0.01)
    yield from arm.go(lambda: pressed, turn, closed=True, steps=12, until=lambda: False)
    yield from arm.go(onwards, turn, closed=True, steps=120, until=over)
    yield from arm.hold(8, closed=False)
    yield from _withdraw(arm, arm.hand, turn, closed=False)


def put_inside(arm: Arm, step: Step) -> Actions:
    """Take a mug by its handle and put it into an oven from the front, the handle towards the door."""
    model, data = physics(arm.env)
    door = Joint.of(arm.env, step.destination.split("_heating")[0])
    if door.value > AJAR:
        yield from _open_wide(arm, door)
    _, along, closing = _panel(door)
    shut = Rotation.from_rotvec(-door.value * door.axis)
    inward, width = shut.apply(closing), np.ptp(_panel(door)[0] @ along)
    front = door.anchor + width / 2 * shut.apply(along)
    pose = arm.env.poses()[step.target]
    shape = corners(model, data, geoms_of(model, step.target))
    brim, _ = brim_of(shape, pose)
    frame = Rotation.from_quat(pose.quaternion)
    middle = pose.position + frame.apply(brim.centre)
    points = shape.reshape(-1, 3)
    away = np.append((points[np.argmax(np.linalg.norm((points - middle)[:, :2], axis=1))] - middle)[:2], 0)
    outer, away = float(np.linalg.norm(away)), away / np.linalg.norm(away)
    grip = middle + (outer - HANDLE_DEEP) * away - [0, 0, HANDLE_BELOW]
    across = Grasp(float(np.arctan2(away[1], away[0])) + np.pi / 2, 0, 0, 0).orientation
    angle = np.arctan2(-inward[1], -inward[0]) - np.arctan2(away[1], away[0])
    turned = Rotation.from_rotvec([0, 0, (angle + np.pi) % (2 * np.pi) - np.pi]) * across
    site = data.site(step.destination)
    floor = site.xpos[2] - model.site(step.destination).size[2] + FLOOR

    def brought(behind: float, above: float) -> Float[np.ndarray, "3"]:
        now = arm.env.poses()[step.target]
        centre = now.position + Rotation.from_quat(now.quaternion).apply([*brim.centre[:2], 0])
        wanted = front + behind * inward
        return arm.hand + np.append((wanted - centre)[:2], floor + above - now.position[2])

    def arrived(behind: float) -> bool:
        return bool(np.linalg.norm(brought(behind, OVER) - arm.hand) < NEARLY)

    def entering() -> Float[np.ndarray, "3"]:
        way = brought(INSIDE, OVER) - arm.hand
        way[:2] *= min(1, AHEAD / max(float(np.linalg.norm(way[:2])), 1e-9))  # so that height counts as much
        return arm.hand + way

    def standing() -> bool:
        return bool(arm.env.poses()[step.target].position[2] < floor + NEARLY)

    yield from _cross(arm, lambda: grip, across, closed=False)
    yield from arm.go(lambda: grip, across, closed=False, steps=40)
    yield from arm.go(lambda: grip, across, closed=True, steps=12, until=lambda: False)
    lifted = higher(arm.hand, 0.10)
    yield from arm.go(lambda: lifted, across, closed=True, steps=30, fastest=0.6)
    yield from arm.go(lambda: brought(-0.13, 0.03), turned, closed=True, steps=80)
    yield from arm.go(lambda: brought(-0.13, OVER), turned, closed=True, steps=30, until=lambda: arrived(-0.13))
    yield from arm.go(entering, turned, closed=True, steps=60, until=lambda: arrived(INSIDE))
    yield from arm.go(lambda: brought(INSIDE, -0.002), turned, closed=True, steps=20, until=standing, fastest=0.4)
    yield from arm.hold(12, closed=False)
    back = arm.hand - 0.10 * inward
    yield from arm.go(lambda: back, turned, closed=False, steps=30)
    yield from arm.go(lambda: higher(back, 0.12), turned, closed=False, steps=30)


SKILLS: dict[str, Callable[[Arm, Step], Actions]] = {
    "shut": push_shut,
    "open": pull_open,
    "switch": turn_knob,
    "push": push_along,
    "insert": put_inside,
}


class Motion:
    """A skill of `SKILLS` at work, as the expert drives it.

    Attributes:
        phase: the skill's name.
        replanned: False: a skill does not begin again.
        finished: whether it is over.
    """

    def __init__(self, step: Step, env: PrivilegedEnv) -> None:
        self.phase, self.replanned, self.finished = step.skill, False, False
        self._arm = Arm(env)
        self._actions, self._left = SKILLS[step.skill](self._arm, step), np.inf

    def take_over(self, rested: float, done: bool) -> None:
        """A skill begins where the hand is, whatever was done before."""

    def blunder(self, rng: np.random.Generator) -> None:
        """Call first: do it beside where it should be done, and be `finished` somewhere on the way."""
        self._arm.beside, self._left = missed(rng), float(rng.integers(DELAY, 3 * DELAY))

    def act(self) -> Float[np.ndarray, "1 7"]:
        """The next action, float64, clean; none but to open the fingers when it is over."""
        action = next(self._actions, None)
        self._left -= 1
        if action is None or self._left < 0:
            self.finished = True
            return np.array([[0, 0, 0, 0, 0, 0, GRIPPER_OPEN]], dtype=np.float64)
        return action[None]


# ---------------------------------------------------------------- parts of them


def _drawer_front(joint: Joint, beyond: float) -> Float[np.ndarray, "3"]:
    """The middle of a drawer's handle, from where fingers touch it `beyond` (m) farther in the direction of closing."""
    bar = joint.bar()
    depth = np.ptp(bar @ joint.axis) / 2
    return bar.mean(axis=0) + (beyond - depth - FINGER) * joint.axis


def _door_outside(joint: Joint, beyond: float, opening: bool = False) -> Float[np.ndarray, "3"]:
    """The same of the outside of a door, along its way; when `opening`, of its inside."""
    panel, along, closing = _panel(joint)
    depth = np.ptp(panel @ closing) / 2
    point = joint.anchor + DOOR_AT * along + ((panel.mean(axis=0) - joint.anchor) @ closing) * closing
    point[2] = panel[:, 2].max() - DOOR_BELOW
    return point + (beyond - depth - FINGER) * (-closing if opening else closing)


def _panel(door: Joint) -> tuple[Float[np.ndarray, "8 3"], Float[np.ndarray, "3"], Float[np.ndarray, "3"]]:
    """A door's largest box (m, world), its direction from the hinge, and that in which it closes."""
    shape = door.shape()
    panel = shape[np.argmax(np.ptp(shape, axis=1).prod(axis=1))]
    along = np.append((panel.mean(axis=0) - door.anchor)[:2], 0)
    along /= np.linalg.norm(along)
    return panel, along, np.cross(door.axis, along)


def _open_wide(arm: Arm, door: Joint) -> Actions:
    """Push a door that is ajar out of the way, from inside."""
    yield from _cross(arm, lambda: _door_outside(door, -BEFORE, opening=True), DOWN, closed=True)
    yield from arm.go(lambda: _door_outside(door, -BEFORE, opening=True), DOWN, closed=True)
    wide = AJAR - 0.05
    yield from arm.go(
        lambda: _door_outside(door, BEYOND, opening=True), DOWN, closed=True, until=lambda: door.value < wide
    )
    place = higher(arm.hand, CROSSING)
    yield from arm.go(lambda: place, DOWN, closed=True, steps=20)


def _leaning(arm: Arm, forward: Float[np.ndarray, "3"], angle: float, *, upright: bool = False) -> Rotation:
    """A hand whose fingertips lean by `angle` (rad) from straight down towards `forward`.

    It opens across, or `upright`; of the two ways to hold it so, which look alike, this is the nearer one.
    """
    across = np.cross([0.0, 0.0, 1.0], forward)
    opens = forward if upright else across
    yaw = np.arctan2(opens[1], opens[0]) - np.pi / 2
    lean = Rotation.from_rotvec(-angle * across)
    both = [lean * Rotation.from_rotvec([0, 0, yaw + half]) * DOWN for half in (0.0, np.pi)]
    return min(both, key=lambda turn: (turn * arm.orientation.inv()).magnitude())


def _cross(arm: Arm, goal: Callable[[], Float[np.ndarray, "3"]], turn: Rotation, *, closed: bool) -> Actions:
    """Up, and across to above where a skill begins."""
    begin = arm.hand
    height = max(begin[2], goal()[2] + CROSSING)
    yield from arm.go(lambda: np.append(begin[:2], height), arm.orientation, closed=closed, steps=30)
    yield from arm.go(lambda: np.append(goal()[:2], height), turn, closed=closed, steps=80)


def _withdraw(arm: Arm, place: Float[np.ndarray, "3"], turn: Rotation, *, closed: bool) -> Actions:
    """Back from what was moved to `place`, then up."""
    yield from arm.go(lambda: place, turn, closed=closed, steps=25)
    yield from arm.go(lambda: higher(place, 0.10), turn, closed=False, steps=30)
