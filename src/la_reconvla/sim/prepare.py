"""Before a simulator is imported: the right MuJoCo, and an OpenGL that draws without a screen."""

from __future__ import annotations

import ctypes.util
import importlib
import logging
import os
import shlex
import sys
import traceback

from la_reconvla.errors import UserError
from la_reconvla.sim.tasks import INSTALL_SIM, REINSTALL_SIM, parse_as_utf8
from la_reconvla.sim.user_folders import config_file, import_robosuite

# Mesa's drivers come with these. OSMesa, should a kernel not allow EGL, is libosmesa6.
INSTALL_OPENGL = "sudo apt-get update && sudo apt-get install -y libegl1 libgl1 libopengl0"
if hasattr(os, "geteuid") and os.geteuid() == 0:
    INSTALL_OPENGL = INSTALL_OPENGL.replace("sudo ", "")


# Where an error comes from that OpenGL is to blame for: it has no class of its own.
_DRAWING = ("OpenGL", "mujoco.egl", "mujoco.osmesa", "mujoco.glfw", "robosuite.renderers", "la_reconvla.sim.renderer")
# Variables that MuJoCo and robosuite name where they do not like them.
EGL_DEVICE = "MUJOCO_EGL_DEVICE_ID"
_VARIABLES = ("PYOPENGL_PLATFORM", EGL_DEVICE, "MUJOCO_GL")


class CannotStart(UserError):
    """The simulator does not start.

    Attributes:
        found: what is wrong.
        repair: the command that repairs it.
    """

    def __init__(self, found: str, repair: str) -> None:
        super().__init__(found, repair)  # both, so that it comes whole out of another process
        self.found, self.repair = found, repair

    def __str__(self) -> str:
        return f"{self.found}; repair it with: {self.repair}"


def prepare_simulator(*, allow_any_mujoco: bool = False) -> None:
    """Import the simulator with a working OpenGL chosen, its chatter silenced, and for any user of this machine.

    Raises:
        CannotStart: if its packages, a working OpenGL library or a file that it needs are missing.
        UserError: if it is not the right MuJoCo.
    """
    choose_opengl()
    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
    try:
        mujoco = importlib.import_module("mujoco")
        config_file()
        import_robosuite()
        parse_as_utf8()
        importlib.import_module("libero.libero.envs")
    except Exception as error:  # also assertions, and what a C library makes of its own troubles
        raise cannot_start(error) from error
    if not allow_any_mujoco:
        check_mujoco(mujoco.__version__)


def cannot_start(error: Exception) -> CannotStart:
    """`CannotStart` for what went wrong while the simulator was imported, built or drawn, with its own repair.

    Args:
        error: as it was caught: its traceback says whether it was OpenGL.
    """
    if isinstance(error, CannotStart):
        return error
    if isinstance(error, ModuleNotFoundError):
        return CannotStart(f"the simulator cannot be imported ({error})", INSTALL_SIM)
    for variable in _VARIABLES:
        if variable in str(error) and variable in os.environ:
            return CannotStart(f"{variable} is {os.environ[variable]!r} ({error})", f"unset {variable}")
    if isinstance(error, OSError) and error.filename is not None:  # one without comes from a library
        path = os.fspath(error.filename)
        if isinstance(error, FileNotFoundError):
            return CannotStart(f"the simulator needs {path}, which is missing", REINSTALL_SIM)
        repair = f"ls -ld {shlex.quote(str(path))}  # and make it yours, or remove it"
        return CannotStart(f"the simulator cannot use {path} ({error.strerror})", repair)
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    if any(f"{frame.f_globals.get('__name__')}.".startswith(tuple(f"{n}." for n in _DRAWING)) for frame in frames):
        return CannotStart(f"{os.environ.get('MUJOCO_GL') or 'OpenGL'} does not draw ({error!r})", INSTALL_OPENGL)
    where = f"{frames[-1].f_code.co_filename}:{frames[-1].f_lineno}" if frames else "unknown place"
    return CannotStart(f"the simulator does not start ({error!r} in {where})", REINSTALL_SIM)


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
        CannotStart: if there is neither, or a device is asked for by something else than its number.
    """
    device = os.environ.get(EGL_DEVICE)
    if device is not None and not device.isdecimal():
        raise CannotStart(f"{EGL_DEVICE} is {device!r}, not the number of an EGL device", f"unset {EGL_DEVICE}")
    if os.environ.get("MUJOCO_GL") or sys.platform != "linux":
        return
    for name, library in (("egl", "EGL"), ("osmesa", "OSMesa")):
        if ctypes.util.find_library(library):
            os.environ["MUJOCO_GL"] = name
            return
    raise CannotStart("no OpenGL for drawing without a screen (neither EGL nor OSMesa is installed)", INSTALL_OPENGL)
