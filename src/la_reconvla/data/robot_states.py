"""Checks of what files hold of the robot's and the simulator's state, and one form for what comes in several."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float32

from la_reconvla.data.hdf5_layout import REMEDY
from la_reconvla.errors import UserError

_SHAPES = "the hand is position and axis-angle, or ask for less of the robot's state (--proprio gripper or none)"


def checked_state(
    where: str, name: str, values: np.ndarray, shape: tuple[int, int], remedy: str = REMEDY
) -> Float32[np.ndarray, "T p"]:
    """A state of the robot at every step.

    Args:
        where: begins the message of an error.
        name: of what is checked, for the message.
        values: as they are stored.
        shape: (T, p), that they must have.
        remedy: what helps where they are damaged.

    Raises:
        UserError: they are no floats of this `shape`, or not finite.
    """
    if values.shape != shape or values.dtype.kind != "f":
        raise UserError(
            f"{where}: {name}, a state of the robot, is {values.dtype} {values.shape}, not floats of shape {shape}; "
            f"{_SHAPES}"
        )
    with np.errstate(over="ignore"):  # becomes infinite, and is refused below
        values = values.astype(np.float32)
    if not np.isfinite(values).all():
        raise UserError(f"{where} has NaN or infinity in its robot states; {remedy}")
    return values


def checked_simulator(where: str, name: str, values: np.ndarray, axes: int) -> Float[np.ndarray, "..."]:
    """Simulator states.

    Raises:
        UserError: they are no floats of so many `axes`, or not finite; the message begins with `where`.
    """
    if values.dtype.kind != "f" or values.ndim != axes or not np.isfinite(values).all():
        raise UserError(
            f"{where}: '{name}', a simulator state, is {values.dtype} {values.shape}, not finite floats of {axes} "
            f"axes; {REMEDY}"
        )
    return values


def axis_angle(quaternions: Float32[np.ndarray, "T 4"]) -> Float32[np.ndarray, "T 3"]:
    """Rotation vectors (rad) of xyzw quaternions, as robosuite makes LIBERO's: angles up to 2 pi."""
    w = quaternions[:, 3:].clip(-1, 1)
    sine = np.sqrt(1 - w * w)
    whole = sine > 1e-8
    return np.where(whole, quaternions[:, :3] * 2 * np.arccos(w) / np.where(whole, sine, 1), 0)
