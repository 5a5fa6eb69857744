"""Before a simulator is imported: the right MuJoCo, and an OpenGL that draws without a screen."""

from __future__ import annotations

import ctypes.util
import importlib
import logging
import os
import sys

from la_reconvla.errors import UserError
from la_reconvla.sim.tasks import INSTALL_SIM

# Mesa's drivers come with these. OSMesa, should a kernel not allow EGL, is libosmesa6.
INSTALL_OPENGL = "sudo apt-get update && sudo apt-get install -y libegl1 libgl1 libopengl0"
if hasattr(os, "geteuid") and os.geteuid() == 0:
    INSTALL_OPENGL = INSTALL_OPENGL.replace("sudo ", "")


def prepare_simulator(*, allow_any_mujoco: bool = False) -> None:
    """Import the simulator with a working OpenGL chosen and its chatter silenced.

    Raises:
        UserError: if its packages, a working OpenGL library or the right MuJoCo are missing.
    """
    choose_opengl()
    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
    try:
        mujoco = importlib.import_module("mujoco")
        importlib.import_module("libero.libero.envs")
    except ModuleNotFoundError as error:
        raise UserError(f"the simulator cannot be imported ({error}): {INSTALL_SIM}") from error
    except (ImportError, AttributeError, OSError, RuntimeError) as error:  # a library or a device that does not load
        raise no_opengl(error) from error
    if not allow_any_mujoco:
        check_mujoco(mujoco.__version__)


def no_opengl(reason: object) -> UserError:
    """`UserError` for an OpenGL that does not draw, with the command that repairs it."""
    library = os.environ.get("MUJOCO_GL") or "no library"
    return UserError(f"OpenGL does not draw (MUJOCO_GL: {library}; {reason}); repair it with: {INSTALL_OPENGL}")


def check_mujoco(version: str) -> None:
    """Refuse a MuJoCo with which LIBERO's scores are not comparable.

    Raises:
        UserError: if `version` is outside [3.3, 3.3.3).
    """
    numbers = tuple(map(int, version.split(".")[:3]))
    if not (3, 3) <= numbers < (3, 3, 3):
        raise UserError(
            f'MuJoCo {version} is installed, LIBERO needs one from 3.3 to 3.3.2: pip install "mujoco>=3.3,<3.3.3" '
            "(or, where results need not compare, use --allow-any-mujoco of `data collect` and `eval`). "
            "Its physics drifts: from 3.4 objects slide where they "
            "should rest and LIBERO-Spatial task 5 falls from 98 % to 12 % (RLinf PR 1496), from 3.3.3 the floor is "
            "drawn darker (LIBERO PR 140)."
        )


def choose_opengl() -> None:
    """Set MUJOCO_GL, which MuJoCo and robosuite read when imported: EGL if its library is there, OSMesa otherwise.

    Raises:
        UserError: if there is neither.
    """
    if os.environ.get("MUJOCO_GL") or sys.platform != "linux":
        return
    for name, library in (("egl", "EGL"), ("osmesa", "OSMesa")):
        if ctypes.util.find_library(library):
            os.environ["MUJOCO_GL"] = name
            return
    raise UserError(f"no OpenGL for drawing without a screen (neither EGL nor OSMesa): {INSTALL_OPENGL}")
