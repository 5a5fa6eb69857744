"""The skill that most tasks need: one thing is picked up and put where it belongs.

The arm takes a thing from above: a bowl or a mug by its rim, one finger inside and one outside (`Rim`, `Brim`),
anything else across two opposite sides of its collision geometry, or of the knob on its lid (`OppositeSides`). It goes
through the phases of `ORDER` (``wait`` only before a second try, until the thing has come to rest). Every action is
computed from the present poses, so that noise added to the *executed* action is corrected by the next one; the action
that `PickAndPlace.act` returns is the clean label.

Demonstrations should be unimodal: among grasps that are equally free of obstacles the hand always takes the one at
`PREFERRED_ANGLE`, and deviates from it only as far as obstacles or the arm's reach force it to.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from la_reconvla.errors import UserError
from la_reconvla.sim.env import GRIPPER_CLOSED, GRIPPER_OPEN
from la_reconvla.sim.expert_tasks import Step
from la_reconvla.sim.grasps import BELOW, DEPTH, LIFT, LIFT_OUT, OppositeSides, distinct, rank_grasps
from la_reconvla.sim.hand_geometry import PrivilegedEnv, anchor, higher, highest_reach, shoulder_of
from la_reconvla.sim.motion import DELAY, approach, missed

ORDER = ("wait", "hover", "descend", "close", "lift", "carry", "lower", "open", "retreat", "finished")
PATIENCE = {"wait": 10, "hover": 60, "descend": 35, "lift": 30, "carry": 60, "lower": 30, "retreat": 20}  # steps
GRIPPING = 11  # steps that the fingers need to grip; to let go, see `letting_go` of a handle
CLOSE_BEFORE = 0.02  # the fingers start to close this far above the depth of the grasp (m)
EASE = 0.25  # share of full speed that lifting gains in each step
TOUCHING = 0.013  # a bowl that hangs at a slant touches when its origin is this far above the plate's (m)
HOVER = 0.055  # above the rim before going down (m)
CRUISE = 0.10  # bowl above the destination while carried from far (m)
SETTLE = 0.008  # below where a thing was let go, before withdrawing (m)
ENTERED = 0.022  # above where it is let go, a thing has passed the handles of the drawers above (m)
RETREAT = 0.08  # above where the bowl was let go (m)
HELD, AROUND = 0.01, 0.03  # taking over: a thing so much higher than it was is held if a grasp is so near the hand (m)
CARRIED, ABOUT = 0.05, 0.015  # it is carried on from so high; one that lies is taken if a grasp is so near (m)


@dataclass(frozen=True)
class View:
    """What the skill looks at before each action. Positions in metres, world."""

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


class PickAndPlace:
    """Moves `Step.target` onto `Step.destination`, then lets go and withdraws.

    Attributes:
        phase: one of `ORDER`.
        replanned: whether the bowl was missed or dropped and grasped again; such episodes make poor demonstrations.
        grasp: the grasp in use.
    """

    def __init__(self, step: Step, env: PrivilegedEnv) -> None:
        self._env, self._target, self._destination, self._share = env, step.target, step.destination, step.share
        self.replanned = False
        self._attempt = 0
        self._missed, self._last, self._left = {"mark": np.zeros(3), "place": np.zeros(3)}, "finished", 0
        self._plan()
        self._enter("hover")

    def take_over(self, rested: float, done: bool) -> None:
        """Go on from what another policy has done since the start.

        A thing that it holds is carried on, one that it is about to take is taken, one that it has brought is let go.

        Args:
            rested: height of the thing's origin at the start (m).
            done: whether the goal holds.
        """
        view = self._began = self._look()
        if done:
            self._enter("open")
            return
        grasps, pose, grip = self._ranked, self._env.poses()[self._target], view.hand + BELOW
        distances = [float(np.linalg.norm(grasp.handle.mark(pose, grasp.angle) - grip)) for grasp in grasps]
        nearest, risen = int(np.argmin(distances)), view.thing[2] - rested
        if risen > HELD and distances[nearest] < AROUND:
            phase = "carry" if risen > CARRIED or np.linalg.norm(view.to_place) < CRUISE else "lift"
        elif distances[nearest] < ABOUT:
            phase = "close"
        else:
            return
        self.grasp = grasps[nearest]
        self._enter(phase)

    def blunder(self, rng: np.random.Generator) -> None:
        """Call first: miss the grasp or the destination, then be `finished`, with the hand wherever it is."""
        which, self._last = [("mark", "close"), ("place", "lower")][rng.integers(2)]
        self._missed[which] = missed(rng)
        self._left = int(rng.integers(DELAY))

    @property
    def finished(self) -> bool:
        """Whether the hand has withdrawn from the placed bowl, or the blunder is over."""
        return self._left < 0

    def act(self) -> Float[np.ndarray, "1 7"]:
        """The next action, float64, clean: [translation 3, rotation 3, gripper] in [-1, 1]."""
        view = self._look()
        self._advance(view)
        self._steps += 1
        self._left -= ORDER.index(self.phase) >= ORDER.index(self._last)
        gripper = GRIPPER_CLOSED if self.phase in ("close", "lift", "carry", "lower") else GRIPPER_OPEN
        if self.phase in ("wait", "finished"):
            return np.array([[0, 0, 0, 0, 0, 0, gripper]], dtype=np.float64)
        return np.concatenate([self._towards(view), [gripper]])[None]

    def _plan(self) -> None:
        try:
            self._ranked = rank_grasps(self._env, self._target, self._destination, self._share)
        except UserError:
            if self._attempt == 0:
                raise
            return  # a thing that was dropped may lie so that no grasp fits: try the last one again, and fail
        grasps = distinct(self._ranked)
        self.grasp = grasps[min(self._attempt, len(grasps) - 1)]
        self._shoulder = shoulder_of(self._env)

    def _look(self) -> View:
        poses = self._env.poses()
        hand, thing = poses["gripper"], poses[self._target]
        mark = self.grasp.handle.mark(thing, self.grasp.angle)
        place = anchor(self._env, poses, self._destination) + self.grasp.offset
        mark, place = mark + self._missed["mark"], place + self._missed["place"]
        if thing.position[2] > place[2] + ENTERED:
            place = place + self.grasp.entry
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
                above = higher(view.mark, float(np.clip(reach, 0.03, HOVER)))
                above[2] = max(above[2], min(self.grasp.approach, above[2] + 4 * max(view.offset - 0.03, 0)))
                return above
            case "descend":
                return higher(view.mark, 4 * max(view.offset - self.grasp.room, 0) - DEPTH)  # a funnel: sideways first
            case "close":
                return np.array([*view.mark[:2], min(view.hand[2], view.mark[2] - DEPTH)])
            case "lift":
                return higher(self._began.hand, self._lift())
            case "carry":
                if self.grasp.way is not None:
                    return np.array([x, y, self.grasp.way])
                return np.array([x, y, view.hand[2] + self._carried_height(view) - view.thing[2]])
            case "lower":
                return np.array([x, y, view.hand[2] + view.place[2] + 0.003 - view.thing[2]])
            case "retreat":
                return higher(self._began.hand, RETREAT)
            case "open" if isinstance(self.grasp.handle, OppositeSides) and not any(self.grasp.rest.tilt):
                return higher(self._began.hand, -SETTLE)  # what hangs on a finger is put down
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
        full = float(np.linalg.norm(self._began.to_place)) + 1e-6
        cruise = view.place[2] + min(CRUISE, 0.02 + distance)
        share = np.clip((distance / full - 0.3) / 0.7, 0, 1)
        return cruise + share * max(self._began.thing[2] - cruise, 0)

    def _towards(self, view: View) -> Float[np.ndarray, "6"]:
        """Motion to the goal on a straight line.

        Lifting starts gently: a jerk pulls the rim out of the fingers before the bowl has tilted into them.
        """
        fastest = min(1, EASE * self._steps) if self.phase == "lift" else 1
        return approach(self._goal(view) - view.hand, self._turn(view), fastest)
