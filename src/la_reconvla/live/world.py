"""LIBERO for the page: its starts, what can be asked for there, its cameras, and things moved by hand."""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo's compiled module tells the type checker nothing.)

from __future__ import annotations

import functools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, UInt8
from scipy.spatial.transform import Rotation

from la_reconvla import layout
from la_reconvla.data.starts import Start
from la_reconvla.errors import UserError
from la_reconvla.live.scene import Choice, World
from la_reconvla.sim.env import GRIPPER_OPEN
from la_reconvla.sim.libero import AGENTVIEW, LiberoEnv
from la_reconvla.sim.placements import wide_starts
from la_reconvla.sim.rollout import TaskEnv
from la_reconvla.sim.task import Task
from la_reconvla.sim.tasks import MAX_STEPS, ROBOT, base_of, load_suite, load_task, official_start, official_states
from la_reconvla.sim.wide_targets import alike_things, asks

if TYPE_CHECKING:
    from la_reconvla.sim.renderer import Renderer

ABOVE = "birdview"
CAMERAS = {"front": AGENTVIEW, "above": ABOVE}
SIZE = 384  # rows and columns of the pictures for people
MARGIN = 0.12  # of table around the things in the picture from above (m)
DEEP = 0.004  # how far two things may reach into each other, as what rests sinks in by less (m)
LIFT, HIGHEST = 0.02, 0.3  # a thing that has no room is put so much higher, up to so high (m)
SETTLING = 40  # control steps
SLID, FELL, TILTED = 0.06, 0.03, np.deg2rad(30)  # more than this, and it did not stay (m, m, rad)


def start(choice: Choice) -> Start:
    """The start of a choice; a wide one is made in the simulator, which takes seconds, and kept.

    Raises:
        UserError: for an unknown suite, task or number, or a task without wide placements.
    """
    if choice.placement == "wide":
        numbers, cache = [2 * choice.number], layout.RUNS / layout.PLACEMENTS
        return wide_starts(choice.suite, choice.task, "test", numbers, cache)[0]
    return official_start(load_task(choice.suite, choice.task), choice.number)


def official_count(suite: str, task: int) -> int:
    """How many official states a task has."""
    return len(official_states(load_task(suite, task)))


def has_wide(suite: str, task: int) -> bool:
    """Whether a task has wide placements."""
    if base_of(suite) != suite:
        return False
    try:
        asks(load_task(suite, task))
    except UserError:
        return False
    return True


def goals(start: Start) -> dict[str, Start]:
    """What can be asked for and checked in a start's scene: instruction -> the start that asks for it."""
    found = {start.instruction: start}
    if has_wide(start.suite, start.task):
        for ask in asks(load_task(start.suite, start.task)):
            other = replace(start, instruction=ask.instruction, target=ask.target, destination=ask.destination)
            found.setdefault(ask.instruction, other)
    return found


def offers(start: Start) -> tuple[str, ...]:
    """Instructions of the suite whose things are in this scene; none where the things are told apart by their place."""
    task = load_task(start.suite, start.task)
    if alike_things(task):
        return ()
    here = {*task.objects, *task.fixtures, *(region.name for region in task.regions)}
    suite = load_suite(start.suite)
    return tuple(other.instruction for other in suite if {other.target, other.destination} <= here)


@functools.lru_cache(maxsize=1)
def vocabulary() -> frozenset[str]:
    """Every word of LIBERO's instructions, in lower case."""
    return frozenset(
        word for suite in MAX_STEPS for task in load_suite(suite) for word in task.instruction.lower().split()
    )


class LiberoView:
    """`la_reconvla.live.scene.View` of LIBERO: large pictures in full quality, whatever the policy is shown.

    Args:
        env: has been reset.
    """

    def __init__(self, env: LiberoEnv):
        self._env = env
        self._renderer: Renderer | None = None
        self._of: Task | None = None

    def ready(self) -> None:
        """Make the renderer before the policy's, which may lower the quality that the model asks for."""
        from la_reconvla.sim.renderer import Renderer

        if self._renderer is None or self._of != self._env.task:
            self.close()
            self._renderer, self._of = Renderer(self._physics()[0], SIZE, "official"), self._env.task

    def picture(self, camera: str) -> UInt8[np.ndarray, "H W 3"]:
        """What `camera` sees now, uint8, turned by 180 degrees as all pictures here are."""
        assert self._renderer is not None, "ready() comes first"
        if camera == ABOVE:
            self._come_closer()
        return self._renderer.image(*self._physics(), camera)

    def handles(self, camera: str) -> dict[str, tuple[float, float]]:
        """Where the middle of each movable object is in `picture`; those outside of it are left out."""
        if camera == ABOVE:
            self._come_closer()
        found = {}
        for name in self._env.task.objects:
            across, down = self.seen_at(self.middle(name), camera)
            if 0 <= across <= 1 and 0 <= down <= 1:
                found[name] = (across, down)
        return found

    def middle(self, name: str) -> Float[np.ndarray, "3"]:
        """Half way up from an object's origin, which is at its foot, to its top (m)."""
        return self._env.poses()[name].position + np.array([0, 0, self._env.height(name) / 2])

    def seen_at(self, position: Float[np.ndarray, "3"], camera: str) -> tuple[float, float]:
        """Where a point of the world (m) is in `picture`, as fractions from the left and the top."""
        place, axes, reach = self._camera(camera)
        x, y, z = (position - place) @ axes
        scale = -z * reach
        return float((1 - x / scale) / 2), float((1 - y / scale) / 2)  # left and right are exchanged

    def lies_at(self, camera: str, across: float, down: float, height: float) -> Float[np.ndarray, "3"]:
        """The point of the world at `height` (m) that is seen at this point of the picture.

        Raises:
            UserError: there is none: it is above the horizon.
        """
        place, axes, reach = self._camera(camera)
        ray = axes @ np.array([(1 - 2 * across) * reach, (1 - 2 * down) * reach, -1.0])
        if ray[2] > -1e-3:
            raise UserError("That is in the air: drop it on the table.")
        return place + ray * (height - place[2]) / ray[2]

    def put(self, name: str, camera: str, across: float, down: float) -> Float[np.ndarray, " s"]:
        """The state with a thing let down there, at rest, and the robot where it was.

        Raises:
            UserError: it has no room there, or it slides, falls or topples. The simulator is as it was before.
        """
        before, pose = self._env.state(), self._env.poses()[name]
        wanted = self.lies_at(camera, across, down, float(self.middle(name)[2]))
        called = name.rsplit("_", 1)[0].replace("_", " ")
        low, _ = self._env.sim.model.get_joint_qpos_addr(f"{name}_joint0")
        for lift in np.arange(0, HIGHEST, LIFT):
            state = before.copy()
            state[1 + low : 4 + low] = [*wanted[:2], pose.position[2] + lift]
            self._env.set_state(state)
            if not self._pierced(name):
                break
        else:
            self._env.set_state(before)
            raise UserError(f"There is no room for the {called} there. It is back where it was.")
        self._env.step(np.tile([0.0] * 6 + [GRIPPER_OPEN], (SETTLING, 1)), stop_at_success=False)
        now, rest = self._env.poses()[name], self._env.state()
        turned = Rotation.from_quat(now.quaternion) * Rotation.from_quat(pose.quaternion).inv()
        stayed = np.linalg.norm(now.position[:2] - wanted[:2]) < SLID and now.position[2] > pose.position[2] - FELL
        upright = np.arccos(np.clip(turned.apply([0, 0, 1])[2], -1, 1)) < TILTED
        if not (stayed and upright):
            self._env.set_state(before)
            raise UserError(f"The {called} does not stay there: it slides, falls or topples. It is back where it was.")
        rest[:ROBOT], rest[1 + self._env.sim.model.nq :] = before[:ROBOT], 0
        return rest

    def close(self) -> None:
        """Free the renderer's context."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _physics(self) -> tuple[Any, Any]:
        return self._env.sim.model._model, self._env.sim.data._data

    def _camera(self, camera: str) -> tuple[np.ndarray, np.ndarray, float]:
        """Its place, its axes as columns (right, up, backwards), and half of the picture at a distance of 1."""
        model, data = self._physics()
        number = model.camera(camera).id
        axes = data.cam_xmat[number].reshape(3, 3)
        return data.cam_xpos[number].copy(), axes.copy(), float(np.tan(np.deg2rad(model.cam_fovy[number]) / 2))

    def _come_closer(self) -> None:
        """Narrow the view from above to the things and the hand."""
        model, _ = self._physics()
        place, axes, _ = self._camera(ABOVE)
        poses = self._env.poses()
        away = [(poses[name].position - place) @ axes for name in self._env.task.objects]
        reach = max((max(abs(x), abs(y)) + MARGIN) / -z for x, y, z in away)
        model.cam_fovy[model.camera(ABOVE).id] = np.rad2deg(2 * np.arctan(reach))

    def _pierced(self, name: str) -> bool:
        """Whether a thing reaches into something else."""
        model, data = self._physics()
        contacts = (contact for contact in data.contact[: data.ncon] if contact.dist < -DEEP)
        bodies = (model.body(model.geom_bodyid[geom]).name for contact in contacts for geom in contact.geom)
        return any(body.startswith(name) for body in bodies)


def view(env: TaskEnv) -> LiberoView:
    """The view of a LIBERO environment."""
    assert isinstance(env, LiberoEnv)
    return LiberoView(env)


LIBERO = World(CAMERAS, start, goals, offers, view, vocabulary)
