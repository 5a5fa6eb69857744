"""Parts of furniture that slide or turn: drawers, doors and knobs, in MuJoCo."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from la_reconvla.sim.hand_geometry import PrivilegedEnv, corners, physics


@dataclass(frozen=True)
class Joint:
    """A part of furniture that slides or turns.

    Attributes:
        env: where it is.
        index: its joint's number in MuJoCo.
        geoms: which geoms of the model move with it and can be touched.
    """

    env: PrivilegedEnv
    index: int
    geoms: Bool[np.ndarray, " g"]

    @classmethod
    def of(cls, env: PrivilegedEnv, name: str) -> Joint:
        """That of a region that is a drawer, or of a fixture with one."""
        model, _ = physics(env)
        sites = {model.site(i).name: model.site_bodyid[i] for i in range(model.nsite)}
        here = [i for i in range(model.njnt) if model.body(model.jnt_bodyid[i]).name.startswith(name)]
        index = next(i for i in range(model.njnt) if model.jnt_bodyid[i] == sites[name]) if name in sites else here[0]
        touchable = (model.geom_contype != 0) | (model.geom_conaffinity != 0)
        return cls(env, index, touchable & (model.geom_bodyid == model.jnt_bodyid[index]))

    @property
    def value(self) -> float:
        """How far it is open or turned (m or rad): 0 is closed or off."""
        model, data = physics(self.env)
        return float(data.qpos[model.jnt_qposadr[self.index]])

    @property
    def axis(self) -> Float[np.ndarray, "3"]:
        """Direction in which it slides, or about which it turns, when its value grows (world)."""
        return physics(self.env)[1].xaxis[self.index].copy()

    @property
    def anchor(self) -> Float[np.ndarray, "3"]:
        """A point of its axis (m, world)."""
        return physics(self.env)[1].xanchor[self.index].copy()

    def shape(self) -> Float[np.ndarray, "s 8 3"]:
        """Corners of its boxes (m, world)."""
        return corners(*physics(self.env), self.geoms)

    def bar(self) -> Float[np.ndarray, "8 3"]:
        """Corners of its foremost box: a drawer's handle (m, world)."""
        shape = self.shape()
        return shape[(shape @ self.axis).max(axis=1).argmin()]
