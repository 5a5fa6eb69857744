"""Lets every reset of a robosuite environment start from one compiled MuJoCo model instead of compiling it again."""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo's compiled module tells the type checker nothing.)

from __future__ import annotations

from typing import Any

import numpy as np


def compile_once(env: Any) -> None:
    """Let every reset of `env` start from one compiled model: compiling takes three quarters of a reset.

    The scene's XML does not depend on the seed; what does is written into the model afterwards. So the model is put
    back to what was compiled (a copy of it would cost 0.3 GB). Should the XML ever change, it is compiled again.
    """
    import mujoco
    from robosuite.utils.binding_utils import MjSim

    source, model, fields = "", None, {}

    def initialize_sim(xml_string: str | None = None) -> None:
        nonlocal source, model, fields
        xml = xml_string or env.model.get_xml()
        if xml != source:
            source, model = xml, mujoco.MjModel.from_xml_string(xml)
            fields = {name: getattr(model, name).copy() for name in dir(model) if _may_change(model, name)}
        for name, value in fields.items():
            getattr(model, name)[...] = value
        env.sim = MjSim(model)
        env.sim.forward()
        env.initialize_time(env.control_freq)

    env._initialize_sim = initialize_sim


def _may_change(model: Any, name: str) -> bool:
    """Whether `name` is an array of numbers of `model` other than its meshes and textures, which nothing writes to."""
    return not name.startswith(("_", "bvh_", "mesh_", "tex_", "hfield_", "skin_")) and isinstance(
        getattr(model, name), np.ndarray
    )
