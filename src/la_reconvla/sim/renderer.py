"""Pictures of a MuJoCo model, drawn only when asked for.

LIBERO's environments draw every camera in every control step. Here the simulator is built without a renderer and this
one is attached to its model when the first picture is wanted, so that a run that looks at nothing needs no OpenGL.
"""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo's compiled module tells the type checker nothing.)

from __future__ import annotations

import atexit
import importlib
import os
import weakref
from typing import Any

import mujoco
import numpy as np
from jaxtyping import Int32, UInt8

from la_reconvla.robot import Quality
from la_reconvla.sim.prepare import cannot_start

# LIBERO draws group 1, the visual geoms, and not group 0, the collision geoms.
_COLLISION_GROUP, _VISUAL_GROUP = 0, 1
_MAX_GEOMS = 1000

_open: weakref.WeakSet[Renderer] = weakref.WeakSet()


class Renderer:
    """Draws the cameras of one compiled model at one size.

    Making one takes a second or two, in which meshes and textures are uploaded; it stays good for copies of its model,
    so it is kept over resets. `fast` leaves out reflections, shadows and multisampling. All three are set on the model
    or on the scene, never globally: renderers of different quality do not disturb each other.

    Args:
        model: the compiled model. Its offscreen size and, for `fast`, its sample count and shadow size are changed.
        size: rows and columns of the square image.
        quality: `official` draws what LIBERO draws, bit for bit.

    Raises:
        CannotStart: OpenGL does not work here; the message names the command that repairs it.
    """

    def __init__(self, model: mujoco.MjModel, size: int, quality: Quality) -> None:
        self._size = size
        # These are read when the context is made, not when a picture is drawn.
        if quality == "fast":
            model.vis.quality.offsamples = 0
            model.vis.quality.shadowsize = 0
        model.vis.global_.offwidth = model.vis.global_.offheight = size
        try:
            self._gl: Any = _gl_context(size)
            self._gl.make_current()
            self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)
        except Exception as error:  # MuJoCo, PyOpenGL and ctypes have errors of their own, with no class in common
            raise cannot_start(error) from error
        _close_at_exit(self)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene = mujoco.MjvScene(model, maxgeom=_MAX_GEOMS)
        if quality == "fast":
            self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
            self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._options = mujoco.MjvOption()
        self._options.geomgroup[_COLLISION_GROUP] = 0
        self._options.geomgroup[_VISUAL_GROUP] = 1

    def image(self, model: mujoco.MjModel, data: mujoco.MjData, camera: str) -> UInt8[np.ndarray, "H W 3"]:
        """What `camera` sees, turned by 180 degrees as LIBERO's public data are."""
        self._draw(model, data, camera)
        return self._read()

    def geoms(self, model: mujoco.MjModel, data: mujoco.MjData, camera: str) -> Int32[np.ndarray, "H W"]:
        """Which geom each pixel of `image` shows: its number in the model, -1 for none. Turned as `image` is."""
        flags = self._scene.flags
        flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = 1
        try:
            self._draw(model, data, camera)
            pixels = self._read().astype(np.int32)
        finally:
            flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = 0
        codes = pixels[..., 0] + (pixels[..., 1] << 8) + (pixels[..., 2] << 16)  # the scene's numbers plus 1
        geom_of = np.full(self._scene.ngeom + 1, -1, dtype=np.int32)
        for geom in self._scene.geoms[: self._scene.ngeom]:
            if geom.segid >= 0 and geom.objtype == mujoco.mjtObj.mjOBJ_GEOM:
                geom_of[geom.segid + 1] = geom.objid
        return geom_of[np.where(codes <= self._scene.ngeom, codes, 0)]

    def close(self) -> None:
        """Free the context. Closing twice does nothing."""
        if self._gl is None:
            return
        self._gl.make_current()  # otherwise another renderer's textures would be freed
        self._context.free()
        self._gl.free()
        self._gl = None

    def _draw(self, model: mujoco.MjModel, data: mujoco.MjData, camera: str) -> None:
        self._gl.make_current()
        self._camera.fixedcamid = model.camera(camera).id
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(model, data, self._options, None, self._camera, everything, self._scene)
        mujoco.mjr_render(mujoco.MjrRect(0, 0, self._size, self._size), self._scene, self._context)

    def _read(self) -> UInt8[np.ndarray, "H W 3"]:
        pixels = np.empty((self._size, self._size, 3), dtype=np.uint8)
        mujoco.mjr_readPixels(pixels, None, mujoco.MjrRect(0, 0, self._size, self._size), self._context)
        # OpenGL's first row is the bottom one. LIBERO keeps the rows as they come, and OpenVLA and LeRobot turn them by
        # 180 degrees: that is upright, but a mirror image (left and right are exchanged; [::-1] alone would not be).
        return np.ascontiguousarray(pixels[::-1, ::-1])


def _close_at_exit(renderer: Renderer) -> None:
    """A process that ends with an open context prints EGL's errors: MuJoCo has ended EGL by then.

    MuJoCo registers that with its first context, and what was registered last is called first.
    """
    _open.add(renderer)
    atexit.unregister(_close_all)
    atexit.register(_close_all)


def _close_all() -> None:
    for renderer in list(_open):
        renderer.close()


def _gl_context(size: int) -> Any:
    """A context of the library that MUJOCO_GL names, whatever it was when MuJoCo was imported."""
    library = os.environ.get("MUJOCO_GL", "").lower()
    module = importlib.import_module(f"mujoco.{library}") if library in ("egl", "osmesa") else mujoco
    return module.GLContext(size, size)
