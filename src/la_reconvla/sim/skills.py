"""What the scripted expert does besides picking things up: each skill is a function that gives one action after another.

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
from la_reconvla.sim.grasps import Grasp
from la_reconvla.sim.hand_geometry import PrivilegedEnv, anchor, higher
from la_reconvla.sim.joints import Joint
from la_reconvla.sim.motion import CLOSELY, DELAY, DOWN, Actions, Arm, missed

LEAN = np.deg2rad(40)  # of the hand that pushes below things that stick out, its fingertips in front (rad)
LEVEL = np.deg2rad(75)  # of the hand that takes a handle from the front (rad)
BEFORE, BEYOND = 0.05, 0.05  # from where a push begins to what is pushed, and from there to where it aims (m)
FINGER = 0.012  # half the thickness of the closed fingers (m)
SHUT = {True: 0.001, False: -0.003}  # joints of drawers (m) and of doors (rad) when pushed shut
OPENED, ON = -0.152, 0.65  # joints of drawers and knobs, past what LIBERO asks for (m, rad)
DOOR_AT, DOOR_BELOW = 0.17, 0.03  # a door is pushed so far from its hinge and so far below its top (m)
CROSSING = 0.06  # above what is in between, on the way to where a skill begins (m)
RIM, ABOVE = 0.06, 0.019  # from a plate's origin to where fingers hold its rim: aside and up (m)
ARRIVED = 0.015  # a plate is there (m)

# ---------------------------------------------------------------- skills


def push_shut(arm: Arm, step: Step) -> Actions:
    """Push a drawer at its handle or a door near its edge, past flush, which is what LIBERO calls closed."""
    joint = Joint.of(arm.env, step.target)
    slides = abs(float(joint.axis[2])) < 0.5
    contact = _drawer_front if slides else _door_outside
    turn = _leaning(arm, joint.axis, LEAN) if slides else DOWN
    yield from _cross(arm, lambda: contact(joint, -BEFORE), turn, closed=True)
    yield from arm.go(lambda: contact(joint, -BEFORE), turn, closed=True)
    yield from arm.go(lambda: contact(joint, BEYOND), turn, closed=True, steps=120, until=lambda: joint.value > SHUT[slides])
    yield from _withdraw(arm, lambda: contact(joint, -BEFORE), turn)


def pull_open(arm: Arm, step: Step) -> Actions:
    """Take a drawer's handle from the front and pull."""
    joint = Joint.of(arm.env, step.target)
    turn = _leaning(arm, joint.axis, LEVEL)

    def handle(before: float) -> Float[np.ndarray, "3"]:
        return joint.bar().mean(axis=0) - before * joint.axis

    yield from _cross(arm, lambda: handle(0.12), turn, closed=False)
    yield from arm.go(lambda: handle(0.08), turn, closed=False)
    yield from arm.go(lambda: handle(0.0), turn, closed=False, steps=40)
    yield from arm.hold(12, closed=True)
    yield from arm.go(lambda: handle(0.06), turn, closed=True, steps=80, until=lambda: joint.value < OPENED)
    yield from arm.hold(8, closed=False)
    yield from _withdraw(arm, lambda: handle(0.08), turn)


def turn_knob(arm: Arm, step: Step) -> Actions:
    """Take a knob by its bar from above and turn it."""
    joint = Joint.of(arm.env, step.target)
    shape = joint.shape()
    bar = shape[shape[..., 2].max(axis=1) > shape[..., 2].max() - 0.03].reshape(-1, 3)
    place = np.append((bar.min(axis=0) + bar.max(axis=0))[:2] / 2, bar[:, 2].max() - 0.02)
    yield from _cross(arm, lambda: place, DOWN, closed=False)
    yield from arm.go(lambda: place, DOWN, closed=False)
    yield from arm.hold(12, closed=True)

    def turned() -> Rotation:
        return Rotation.from_rotvec([0, 0, joint.value + 0.3]) * DOWN

    yield from arm.go(lambda: place, turned, closed=True, steps=80, until=lambda: joint.value > ON)
    yield from arm.hold(8, closed=False)
    yield from _withdraw(arm, lambda: place, arm.orientation)


def push_along(arm: Arm, step: Step) -> Actions:
    """Hold a plate by its rim in front and push it across the table, without lifting it: so it cannot turn away."""
    place = anchor(arm.env, arm.env.poses(), step.destination)

    def short() -> Float[np.ndarray, "3"]:
        way = place - arm.env.poses()[step.target].position
        return np.append(way[:2], 0)

    ahead = short() / max(float(np.linalg.norm(short())), 1e-9)
    turn = Grasp(float(np.arctan2(ahead[1], ahead[0])), 0, 0, 0).orientation

    def rim() -> Float[np.ndarray, "3"]:
        return higher(arm.env.poses()[step.target].position + RIM * ahead, ABOVE)

    yield from _cross(arm, rim, turn, closed=False)
    yield from arm.go(rim, turn, closed=False, steps=40, within=CLOSELY)
    yield from arm.hold(12, closed=True)
    yield from arm.go(
        lambda: np.append((arm.hand + short())[:2], rim()[2]),
        turn,
        closed=True,
        steps=120,
        until=lambda: float(np.linalg.norm(short())) < ARRIVED,
        fastest=0.7,
    )
    yield from arm.hold(8, closed=False)
    yield from _withdraw(arm, lambda: arm.hand, turn)


SKILLS: dict[str, Callable[[Arm, Step], Actions]] = {
    "shut": push_shut,
    "open": pull_open,
    "switch": turn_knob,
    "push": push_along,
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


def _door_outside(joint: Joint, beyond: float) -> Float[np.ndarray, "3"]:
    """The same of the outside of a door, along its way."""
    shape = joint.shape()
    panel = shape[np.argmax(np.ptp(shape, axis=1).prod(axis=1))]
    along = np.append((panel.mean(axis=0) - joint.anchor)[:2], 0)
    along /= np.linalg.norm(along)
    closing = np.cross(joint.axis, along)
    depth = np.ptp(panel @ closing) / 2
    point = joint.anchor + DOOR_AT * along + ((panel.mean(axis=0) - joint.anchor) @ closing) * closing
    point[2] = panel[:, 2].max() - DOOR_BELOW
    return point + (beyond - depth - FINGER) * closing


def _leaning(arm: Arm, forward: Float[np.ndarray, "3"], angle: float) -> Rotation:
    """A hand whose fingertips lean by `angle` (rad) from straight down towards `forward`.

    It opens across; of the two ways to hold it so, which look alike, this is the nearer one.
    """
    across = np.cross([0.0, 0.0, 1.0], forward)
    yaw = np.arctan2(across[1], across[0]) - np.pi / 2
    lean = Rotation.from_rotvec(-angle * across)
    both = [lean * Rotation.from_rotvec([0, 0, yaw + half]) * DOWN for half in (0.0, np.pi)]
    return min(both, key=lambda turn: (turn * arm.orientation.inv()).magnitude())


def _cross(arm: Arm, goal: Callable[[], Float[np.ndarray, "3"]], turn: Rotation, *, closed: bool) -> Actions:
    """Up, and across to above where a skill begins."""
    begin = arm.hand
    height = max(begin[2], goal()[2] + CROSSING)
    yield from arm.go(lambda: np.append(begin[:2], height), arm.orientation, closed=closed, steps=30)
    yield from arm.go(lambda: np.append(goal()[:2], height), turn, closed=closed, steps=80)


def _withdraw(arm: Arm, back: Callable[[], Float[np.ndarray, "3"]], turn: Rotation) -> Actions:
    """Back from what was moved, then up."""
    place = back()
    yield from arm.go(lambda: place, turn, closed=True, steps=25)
    yield from arm.go(lambda: higher(place, 0.10), turn, closed=False, steps=30)
