"""A control step as robosuite takes it, without what nobody reads and without computing anything twice.

In each of its 25 substeps robosuite looks every name up again and computes the hand's Jacobians four times, which costs
as much time as the physics itself. Here names are looked up once a reset and each Jacobian is computed once. Every
number is the one that robosuite computes, bit for bit (`tests/sim/test_sim_env.py`).
"""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo's compiled module tells the type checker nothing.)

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
from jaxtyping import Float


def use_lean_control(robot: Any) -> None:
    """Replace what `robot` does in each substep. To be called after each reset, which makes a new controller."""
    controller = robot.controller
    controller.update = _update_of(controller)
    robot.grip_action = _grip_of(robot)


def control_step(env: Any, action: Float[np.ndarray, "7"]) -> None:
    """One control step of 25 physics steps: what the `step` of robosuite's environment does.

    In every physics step robosuite solves for the accelerations three times: in its loop, in its controller and in
    `mj_step`. Each solution is the next one's first guess, so that leaving two of them out would change the last
    digits. Positions and velocities do not move between the three, though: they are evaluated once here.
    """
    model, data = env.sim.model._model, env.sim.data._data

    def solve_again() -> None:
        mujoco.mj_forwardSkip(model, data, mujoco.mjtStage.mjSTAGE_VEL, 1)

    env.sim.forward = solve_again  # for the controller
    try:
        for substep in range(int(env.control_timestep / env.model_timestep)):
            mujoco.mj_step1(model, data)
            solve_again()
            env._pre_action(action, policy_step=substep == 0)
            mujoco.mj_step2(model, data)
    finally:
        del env.sim.forward
    env._post_process()


def _update_of(controller: Any) -> Any:
    """`robosuite.controllers.base_controller.Controller.update` for this controller."""
    sim, positions, velocities = controller.sim, controller.qpos_index, controller.qvel_index
    model, data = sim.model._model, sim.data._data
    site, nv = sim.model.site_name2id(controller.eef_name), model.nv

    def update(force: bool = False) -> None:
        if not (controller.new_update or force):
            return
        sim.forward()
        linear, angular, mass = np.zeros((3, nv)), np.zeros((3, nv)), np.zeros((nv, nv))
        mujoco.mj_jacSite(model, data, linear, angular, site)
        mujoco.mj_fullM(model, mass, data.qM)
        controller.ee_pos = np.array(data.site_xpos[site])
        controller.ee_ori_mat = np.array(data.site_xmat[site].reshape([3, 3]))
        controller.ee_pos_vel = np.dot(linear, data.qvel)
        controller.ee_ori_vel = np.dot(angular, data.qvel)
        controller.joint_pos, controller.joint_vel = data.qpos[positions], data.qvel[velocities]
        controller.J_pos, controller.J_ori = np.array(linear[:, velocities]), np.array(angular[:, velocities])
        controller.J_full = np.vstack([controller.J_pos, controller.J_ori])
        controller.mass_matrix = mass[velocities, :][:, velocities]
        controller.new_update = False

    return update


def _grip_of(robot: Any) -> Any:
    """`robosuite.robots.manipulator.Manipulator.grip_action` for this robot's gripper."""
    data = robot.sim.data._data
    actuators = [robot.sim.model.actuator_name2id(actuator) for actuator in robot.gripper.actuators]
    low, high = robot.sim.model.actuator_ctrlrange[actuators].T
    bias, weight = 0.5 * (high + low), 0.5 * (high - low)

    def grip_action(gripper: Any, gripper_action: Any) -> None:
        data.ctrl[actuators] = bias + weight * gripper.format_action(gripper_action)

    return grip_action
