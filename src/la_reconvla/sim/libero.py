"""LIBERO as a small numpy environment that renders only when it is asked to.

The physics is LIBERO's, bit for bit (`tests/sim/test_sim_env.py` compares with its `ControlEnv`). What differs is what
is *not* done: no camera is drawn in a control step, no robosuite observable is computed, and the success predicate is
evaluated once per step.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from jaxtyping import Bool, Float, UInt8

from la_reconvla.contracts import Observation
from la_reconvla.data.starts import Start
from la_reconvla.errors import UserError, unknown
from la_reconvla.robot import Quality
from la_reconvla.sim.compiled_model import compile_once
from la_reconvla.sim.env import ACTION_DIM, GRIPPER_OPEN, Outcome, Pose
from la_reconvla.sim.prepare import cannot_start, prepare_simulator
from la_reconvla.sim.task import Predicate
from la_reconvla.sim.tasks import Task, load_task
from la_reconvla.sim.touch import Touch

if TYPE_CHECKING:
    from la_reconvla.sim.renderer import Renderer

# pyright: reportAttributeAccessIssue=false
# (MuJoCo's compiled module tells the type checker nothing.)

AGENTVIEW, WRIST = "agentview", "robot0_eye_in_hand"
SETTLING_STEPS = 10  # LIBERO drops its objects from 7-11 cm
RESET_ATTEMPTS = 10
# Bodies of the robot carry these prefixes; as names they denote all bodies that do.
ROBOT_PARTS = {"gripper": ("gripper0_",), "robot": ("robot0_", "gripper0_", "mount0_")}
TABLE = "table"  # body of ``main_table``, ``kitchen_table`` and so on in scenes that have none of that name
_NO_OP = np.array([0.0] * 6 + [GRIPPER_OPEN])


class LiberoEnv:
    """One LIBERO simulator at a time; implements `la_reconvla.sim.env.Env`.

    The simulator of a task is built on the first `reset` to it and reused until another task is asked for. An instance
    holds an OpenGL context once it has rendered: never fork a process that has one, start workers with ``spawn``.

    Args:
        image_size: rows and columns of the images and masks.
        wrist: whether `observe` also draws the wrist camera.
        proprio: whether `observe` also returns `proprio()`.
        quality: `official` renders as LIBERO does; `fast` without reflections, shadows and multisampling.
        max_steps: step limit of an episode in place of the task's.
        allow_any_mujoco: accept a MuJoCo outside [3.3, 3.3.3). Scores are then not comparable with published ones.

    Raises:
        UserError: if the simulator's packages, OpenGL or the right MuJoCo are missing; the message names the command
            that repairs it.
    """

    def __init__(
        self,
        image_size: int = 128,
        wrist: bool = False,
        proprio: bool = False,
        quality: Quality = "official",
        *,
        max_steps: int | None = None,
        allow_any_mujoco: bool = False,
    ) -> None:
        if quality not in get_args(Quality):
            raise unknown("render quality", quality, get_args(Quality))
        if image_size < 1:
            raise UserError(f"the image size must be positive, not {image_size}")
        prepare_simulator(allow_any_mujoco=allow_any_mujoco)
        self.image_size = image_size
        self.quality: Quality = quality
        self._with_wrist, self._with_proprio, self._limit = wrist, proprio, max_steps
        self._env: Any = None  # robosuite's environment of the current task
        self._opened: list[Any] = []  # draws of what is open or on in it, as its building left them
        self._task: Task | None = None
        self._start: Start | None = None
        self._renderer: Renderer | None = None
        self._steps = 0
        self._success = False

    # ------------------------------------------------------------ acting

    def reset(self, start: Start) -> None:
        """Hard reset to `start`, then ten steps with an open gripper in which the objects settle.

        The furniture's pose is not part of a MuJoCo state; it is drawn at random in every reset and moves by up to
        1.7 cm. It is fixed here by `start.seed`, so that equal starts and actions give bit-equal states.

        Raises:
            UserError: for an unknown suite, task or object, a state of another task, or a scene that cannot be set up.
        """
        task = load_task(start.suite, start.task)
        goal = task.goal_for(start.target, start.destination)
        if self._task != task:
            self._build(task)
        self._hard_reset(start.seed)
        self._set_goal(goal)
        self.set_state(start.state)
        self._start, self._steps, self._success = start, 0, False
        for _ in range(SETTLING_STEPS):
            self._control_step(_NO_OP)

    def step(self, chunk: Float[np.ndarray, "c 7"], *, stop_at_success: bool = True) -> Outcome:
        """Execute the actions of `chunk` in order until success, the step limit or the end of the chunk.

        Args:
            chunk: float [c 7], actions; values beyond [-1, 1] are clipped.
            stop_at_success: False goes on after success, to record the release and the retreat. `Outcome.success`
                then tells whether the goal has held at any step so far, and only the step limit ends the episode.

        Raises:
            UserError: if an action is not finite or not 7 numbers.
        """
        before = self._steps
        for action in _checked(chunk):
            if self._over(stop_at_success):
                break
            self._control_step(action)
            self._steps += 1
            self._success = self._success or self.success()
        return Outcome(steps=self._steps - before, success=self._success, done=self._over(stop_at_success))

    def success(self) -> bool:
        """Whether the goal holds now, by LIBERO's check."""
        return bool(self._simulator()._check_success())

    def holds(self, predicate: Predicate) -> bool:
        """Whether one predicate holds now, by LIBERO's check."""
        return bool(self._simulator()._eval_predicate(list(predicate)))

    @property
    def max_steps(self) -> int:
        """Step limit of the current episode; the settling steps do not count."""
        return self._limit if self._limit is not None else self.task.max_steps

    @property
    def task(self) -> Task:
        """The task of the current episode."""
        self._simulator()
        assert self._task is not None
        return self._task

    @property
    def start(self) -> Start:
        """What the current episode was reset to."""
        self._simulator()
        assert self._start is not None
        return self._start

    def close(self) -> None:
        """Free the simulator and its OpenGL context. Closing twice does nothing; a later `reset` builds anew."""
        if self._renderer is not None:
            self._renderer.close()
        if self._env is not None:
            self._env.close()
        self._env = self._task = self._start = self._renderer = None

    def __enter__(self) -> LiberoEnv:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ------------------------------------------------------------ seeing

    def observe(self) -> Observation:
        """Render the cameras now. Images are uint8 [H W 3], turned by 180 degrees, contiguous."""
        return Observation(
            image=self._view(AGENTVIEW),
            instruction=self.start.instruction,
            wrist=self._view(WRIST) if self._with_wrist else None,
            proprio=self.proprio() if self._with_proprio else None,
        )

    def masks(self, names: tuple[str, ...]) -> dict[str, Bool[np.ndarray, "H W"]]:
        """Where each named thing is visible in the image that `observe` would return now.

        Args:
            names: instances of the task, its regions (which denote their owner), ``gripper`` or ``robot``.

        Raises:
            UserError: for an unknown name.
        """
        owners = {name: self._geoms_of(name) for name in names}
        shown = self._drawer().geoms(*self._physics(), AGENTVIEW)
        return {name: np.isin(shown, geoms) for name, geoms in owners.items()}

    def segmentation(self, names: tuple[str, ...]) -> UInt8[np.ndarray, "H W"]:
        """All of `masks` in one map: uint8 [H W], i + 1 where ``names[i]`` is visible, else 0.

        Where names overlap (``robot`` contains ``gripper``) the later one wins.

        Raises:
            UserError: for an unknown name, or more than 255 of them.
        """
        if len(names) > np.iinfo(np.uint8).max:
            raise UserError(f"a segmentation map holds 255 names, not {len(names)}: ask for fewer")
        result = np.zeros((self.image_size, self.image_size), dtype=np.uint8)
        for i, mask in enumerate(self.masks(names).values()):
            result[mask] = i + 1
        return result

    # ------------------------------------------------------------ privileged

    def poses(self) -> dict[str, Pose]:
        """Poses of all objects, of the fixtures that have a body, and of the gripper (``gripper``)."""
        env = self._simulator()
        data = env.sim.data
        result = {
            name: Pose(position=data.body_xpos[body].copy(), quaternion=_xyzw(data.body_xquat[body]))
            for name, body in env.obj_body_id.items()
        }
        robot = env.robots[0]
        hand = env.sim.model.body_name2id(robot.robot_model.eef_name)
        position = data.site_xpos[robot.eef_site_id].copy()
        return result | {"gripper": Pose(position=position, quaternion=_xyzw(data.body_xquat[hand]))}

    def height(self, name: str) -> float:
        """How far the highest point of an object that can be touched is above its origin, in its present pose (m)."""
        model, data = self._physics()
        geoms = np.array(self._geoms_of(name))
        geoms = geoms[(model.geom_contype[geoms] != 0) | (model.geom_conaffinity[geoms] != 0)]
        upward = data.geom_xmat[geoms].reshape(-1, 3, 3)[:, 2]  # of each geom's axes
        middle, half = model.geom_aabb[geoms, :3], model.geom_aabb[geoms, 3:]
        tops = data.geom_xpos[geoms, 2] + (upward * middle).sum(1) + (abs(upward) * half).sum(1)
        return float(tops.max(initial=-np.inf) - self.poses()[name].position[2])

    def touch(self) -> Touch:
        """What reads from now on, until the next reset, what the hand touches of all that `poses` names."""
        return Touch(self._simulator(), self._geoms_of)

    def proprio(self) -> Float[np.ndarray, "8"]:
        """float32 [8]: end effector position (m), orientation as axis-angle (rad), two finger positions (m)."""
        from robosuite.utils.transform_utils import quat2axisangle

        gripper = self.poses()["gripper"]
        robot = self._simulator().robots[0]
        fingers = self._simulator().sim.data.qpos[robot._ref_gripper_joint_pos_indexes]
        return np.concatenate([gripper.position, quat2axisangle(gripper.quaternion), fingers]).astype(np.float32)

    def raw_observation(self) -> dict[str, np.ndarray]:
        """robosuite's low-dimensional observations as they are now: ``robot0_eef_pos``, ``plate_1_quat`` and so on.

        robosuite 1.4 samples its observables after the first of a control step's 25 substeps, so that what its `step`
        returns is almost one control step old. These are fresh.
        """
        return dict(self._simulator()._get_observations(force_update=True))

    def state(self) -> Float[np.ndarray, " s"]:
        """The flattened MuJoCo state: float64 [s], time, qpos, qvel."""
        return self._simulator().sim.get_state().flatten()

    def set_state(self, state: Float[np.ndarray, " s"]) -> None:
        """Put the simulation into `state` (float64 [s]) without a reset; the controller keeps its goal.

        Raises:
            UserError: if the state belongs to another scene or is not finite.
        """
        env = self._simulator()
        size = 1 + env.sim.model.nq + env.sim.model.nv
        if np.shape(state) != (size,):
            raise UserError(
                f"a state of {self.task.suite} task {self.task.index} has {size} numbers, this one has shape "
                f"{np.shape(state)}: it was recorded in another scene"
            )
        if not np.isfinite(state).all():
            raise UserError("the state to set contains NaN or infinity: the file that it came from is damaged")
        env.sim.set_state_from_flattened(np.asarray(state, dtype=np.float64))
        env.sim.forward()
        env._post_process()

    @property
    def sim(self) -> Any:
        """robosuite's simulation, with MuJoCo's `model` and `data`, for what has to look at single geoms."""
        return self._simulator().sim

    def model_xml(self) -> str:
        """The MJCF of the simulated scene, as LIBERO's demonstration files keep it."""
        return self._simulator().sim.model.get_xml()

    # ------------------------------------------------------------ inside

    def _simulator(self) -> Any:
        if self._env is None:
            raise UserError("the environment has no simulator yet: call reset(start) first")
        return self._env

    def _physics(self) -> tuple[Any, Any]:
        """MuJoCo's model and data of the current simulation."""
        sim = self._simulator().sim
        return sim.model._model, sim.data._data

    def _build(self, task: Task) -> None:
        from libero.libero.envs.env_wrapper import ControlEnv

        self.close()
        try:
            wrapper = ControlEnv(bddl_file_name=str(task.bddl), use_camera_obs=False, has_offscreen_renderer=False)
        except (OSError, ValueError, KeyError) as error:  # a file of its scene is missing, or a kind of object unknown
            raise cannot_start(error) from error
        self._env, self._task = wrapper.env, task
        self._opened = list(self._env.object_property_initializers)
        compile_once(self._env)

    def _hard_reset(self, seed: int) -> None:
        """Reset with a bound: `ControlEnv.reset` swallows every exception and tries again for ever."""
        from robosuite.utils.errors import RandomizationError

        from la_reconvla.sim.control import use_lean_control

        self._env.seed(seed)
        for _ in range(RESET_ATTEMPTS):
            # LIBERO adds to this list in every reset and draws a number for each entry before it places the furniture.
            self._env.object_property_initializers = list(self._opened)
            try:
                self._env.reset()
            except RandomizationError:
                continue
            use_lean_control(self._env.robots[0])
            return
        raise UserError(
            f"{self.task.suite} task {self.task.index} found no collision-free placement with seed {seed} in "
            f"{RESET_ATTEMPTS} attempts: choose another seed"
        )

    def _set_goal(self, goal: tuple[tuple[str, ...], ...]) -> None:
        self._env.parsed_problem["goal_state"] = [list(predicate) for predicate in goal]

    def _control_step(self, action: Float[np.ndarray, "7"]) -> None:
        from la_reconvla.sim.control import control_step

        control_step(self._env, action)

    def _over(self, stop_at_success: bool) -> bool:
        return self._steps >= self.max_steps or (self._success and stop_at_success)

    def _drawer(self) -> Renderer:
        if self._renderer is None:
            from la_reconvla.sim.renderer import Renderer

            self._renderer = Renderer(self._physics()[0], self.image_size, self.quality)
        return self._renderer

    def _view(self, camera: str) -> UInt8[np.ndarray, "H W 3"]:
        return self._drawer().image(*self._physics(), camera)

    def _geoms_of(self, name: str) -> list[int]:
        """Numbers of all geoms that belong to `name`, those of bodies that move on it included."""
        model = self._simulator().sim.model
        bodies = self._simulator().obj_body_id
        instance = name if name in ROBOT_PARTS else self.task.instance(name)
        if instance in bodies:
            roots = {bodies[instance]}
        else:  # a part of the robot, or the table or floor, for which LIBERO keeps no body
            prefixes = ROBOT_PARTS.get(instance, (instance,))
            roots = {i for i, body in enumerate(model.body_names) if body.startswith(prefixes)}
            roots = roots or {model.body_name2id(TABLE)}
        return [geom for geom, body in enumerate(model.geom_bodyid) if _inside(body, roots, model.body_parentid)]


def _checked(chunk: Float[np.ndarray, "c 7"]) -> Float[np.ndarray, "c 7"]:
    actions = np.asarray(chunk, dtype=np.float64)
    if actions.ndim != 2 or actions.shape[1] != ACTION_DIM:
        raise UserError(f"a chunk of actions has shape [c {ACTION_DIM}], not {list(actions.shape)}")
    if not np.isfinite(actions).all():
        raise UserError("an action contains NaN or infinity: the policy has diverged, nothing was executed")
    return np.clip(actions, -1.0, 1.0)


def _xyzw(quaternion: Float[np.ndarray, "4"]) -> Float[np.ndarray, "4"]:
    """MuJoCo's wxyz order to xyzw."""
    return np.roll(quaternion, -1)


def _inside(body: int, roots: set[int], parent_of: np.ndarray) -> bool:
    """Whether `body` is one of `roots` or hangs below one."""
    while body != 0:
        if body in roots:
            return True
        body = int(parent_of[body])
    return False
