"""What a machine must have, checked before anything long begins. Each failing check names the command for it."""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo's compiled module tells the type checker nothing.)

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from la_reconvla.errors import UserError
from la_reconvla.memory import free_memory
from la_reconvla.sim.prepare import INSTALL_OPENGL, CannotStart, check_mujoco, choose_opengl, prepare_simulator
from la_reconvla.sim.tasks import INSTALL_SIM, REINSTALL_SIM, load_suite, official_states, resources

GB = 1e9
PROCESS_MEMORY = 2.0 * GB  # a simulator process takes 1.4 GB, up to 2 with its cameras
MIN_MEMORY = 2 * PROCESS_MEMORY  # two of them, or one beside the training
MIN_DISK = 3.0 * GB
OLDEST_PYTHON = (3, 10)
RENDER_TIMEOUT = 120  # seconds; a picture takes two
START_TIMEOUT = 300  # seconds; a task takes some ten, on a slow disk more

# What other processes do, as a broken driver ends the process that loads it. They print what went wrong, and do not end
# with it as a message: what half a context complains of would follow it.
_TRY = """
import json, sys
from la_reconvla.sim.prepare import CannotStart, cannot_start
try:
    {}
except Exception as error:
    wrong = cannot_start(error)
    print(json.dumps([wrong.found, wrong.repair]))
    sys.exit(1)
"""
_DRAW = _TRY.format("from la_reconvla.sim.machine import draw_ball; draw_ball()")
_START = _TRY.format("from la_reconvla.sim.machine import start_task; start_task()")


@dataclass(frozen=True)
class Check:
    """One thing that a machine must have.

    Attributes:
        name: what was checked.
        ok: whether it will do.
        found: what is there, or what is wrong with it.
        repair: the command that repairs it; empty where nothing is broken.
    """

    name: str
    ok: bool
    found: str
    repair: str = ""


def check_machine(out_dir: Path | str = ".") -> list[Check]:
    """Check everything that collecting, training and evaluating need; takes some ten seconds.

    Args:
        out_dir: folder that runs will be written to; it need not exist yet.
    """
    packages = [_python(), _torch(), _mujoco(), _libero(), _opengl()]
    started = [_simulator()] if all(check.ok for check in packages[2:]) else []  # else it is known why it does not
    return [*packages, *started, _memory(), _disk(Path(out_dir)), _cores(), _ffmpeg(), _gpu(), _calvin()]


def require_simulator(*, allow_any_mujoco: bool = False) -> None:
    """Make sure that the simulator runs and draws here, before anything long begins; takes a few seconds.

    A picture is drawn in another process, as a broken driver may end the process that loads it.

    Args:
        allow_any_mujoco: accept a MuJoCo with which scores are not comparable.

    Raises:
        UserError: it does not; the message ends with the command that repairs it (`CannotStart`).
    """
    version = installed_version("mujoco")
    if version is not None and not allow_any_mujoco:
        check_mujoco(version)
    drawing = _opengl()
    if not drawing.ok:
        raise CannotStart(f"{drawing.name}: {drawing.found}", drawing.repair)
    prepare_simulator(allow_any_mujoco=allow_any_mujoco)


def draw_ball() -> None:
    """Draw a red ball; the middle of the picture must be red.

    Raises:
        CannotStart: OpenGL does not draw, or something else.
    """
    import mujoco

    from la_reconvla.sim.renderer import Renderer

    model = mujoco.MjModel.from_xml_string(
        '<mujoco><worldbody><light pos="0 0 3"/><camera name="eye" pos="0 0 3"/>'
        '<geom size="1" group="1" rgba="1 0 0 1"/></worldbody></mujoco>'
    )
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    renderer = Renderer(model, 32, "official")
    red, green, blue = renderer.image(model, data, "eye")[16, 16].tolist()
    renderer.close()
    if red <= green + 50:
        raise CannotStart(f"a red ball was drawn in the colour {red, green, blue}", INSTALL_OPENGL)


def start_task() -> None:
    """Start a task of LIBERO and draw it: what collecting and evaluating begin with.

    Raises:
        UserError: it cannot be started.
    """
    from la_reconvla.sim.libero import LiberoEnv
    from la_reconvla.sim.tasks import load_task, official_start

    env = LiberoEnv(image_size=32, allow_any_mujoco=True)
    env.reset(official_start(load_task("libero_spatial", 0), 0))
    env.observe()
    env.close()


def default_workers() -> int:
    """As many simulators as there are cores and as fit in the free memory, at least one."""
    return max(1, min(_usable_cores(), int(free_memory() / PROCESS_MEMORY)))


def print_checks(checks: list[Check], console: Console | None = None) -> None:
    """Print `checks` as a table, and below it the commands that repair what is missing."""
    console = console or Console()
    table = Table(box=None, pad_edge=False)
    for column in ("", "check", "found"):
        table.add_column(column, overflow="fold")
    for check in checks:
        mark = "[green]ok[/]" if check.ok else "[bold red]no[/]"
        table.add_row(mark, check.name, escape(check.found))
    console.print(table)
    broken = [check for check in checks if not check.ok]
    for check in broken:
        console.print(f"\n[bold]{check.name}[/]: repair with")
        console.print(f"  {check.repair}", markup=False, highlight=False, soft_wrap=True)
    if not broken:
        console.print("\n[green]this machine is ready[/]")


# ---------------------------------------------------------------- one function a check


def _python() -> Check:
    oldest = ".".join(map(str, OLDEST_PYTHON))
    repair = f"python{oldest} -m venv .venv"
    return _check("Python", sys.version_info >= OLDEST_PYTHON, platform.python_version(), repair)


def _torch() -> Check:
    version = installed_version("torch")
    return _check("PyTorch", version is not None, version or "not installed", "pip install torch")


def _mujoco() -> Check:
    version = installed_version("mujoco")
    if version is None:
        return Check("MuJoCo", False, "not installed", INSTALL_SIM)
    try:
        check_mujoco(version)
    except UserError as error:
        return Check("MuJoCo", False, str(error), 'pip install "mujoco>=3.3,<3.3.3"')
    return Check("MuJoCo", True, version)


def _libero() -> Check:
    try:
        tasks = load_suite("libero_spatial")
        states = sum(len(official_states(task)) for task in tasks)
        files = sum(1 for path in resources("assets").rglob("*.xml"))
    except (UserError, ImportError) as error:
        return Check("LIBERO", False, str(error), INSTALL_SIM)
    found = f"{len(tasks)} spatial tasks, {states} initial states, {files} models"
    return _check("LIBERO", files > 0, found, REINSTALL_SIM)


def _opengl() -> Check:
    if installed_version("mujoco") is None:
        return Check("OpenGL", False, "cannot be tried without MuJoCo", INSTALL_SIM)
    try:
        choose_opengl()
    except CannotStart as error:
        return Check("OpenGL", False, error.found, error.repair)
    chosen = os.environ.get("MUJOCO_GL", "").lower() or "egl"
    error = _drawing_error(chosen)
    if error is None:
        return Check("OpenGL", True, f"renders through {chosen}")
    for library in {"egl", "osmesa"} - {chosen}:
        if _drawing_error(library) is None:
            found = f"renders through {library}, not through {chosen}"
            return Check("OpenGL", False, found, f"export MUJOCO_GL={library}")
    return Check("OpenGL", False, error.found, error.repair)


def _simulator() -> Check:
    error = _child_error(_START, START_TIMEOUT)
    if error is None:
        return Check("simulator", True, "starts a task of LIBERO and draws it")
    return Check("simulator", False, error.found, error.repair)


def _memory() -> Check:
    free = free_memory()
    found = f"{free / GB:.1f} GB free, enough for {int(free // PROCESS_MEMORY)} simulator processes"
    return _check("memory", free >= MIN_MEMORY, found, "ps aux --sort=-rss | head  # and end what is not needed")


def _disk(out_dir: Path) -> Check:
    folder = next(path for path in (out_dir.resolve(), *out_dir.resolve().parents) if path.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        return Check("disk", False, f"{folder} cannot be written to", "la-reconvla check --out FOLDER")
    free = shutil.disk_usage(folder).free
    found = f"{free / GB:.1f} GB free in {folder}"
    return _check("disk", free >= MIN_DISK, found, f"du -xh -d 1 {folder} | sort -h  # and delete what is not needed")


def _cores() -> Check:
    usable = _usable_cores()
    return Check(
        "CPU cores", True, f"{usable}" if usable > 1 else "1: runs take twice as long as the times given for 2"
    )


def _ffmpeg() -> Check:
    repair = "pip install --force-reinstall imageio-ffmpeg"
    try:
        from imageio_ffmpeg import get_ffmpeg_exe

        done = subprocess.run(
            [get_ffmpeg_exe(), "-version"], capture_output=True, encoding="utf-8", check=True, timeout=30
        )
    except (ImportError, OSError, RuntimeError, subprocess.SubprocessError) as error:
        return Check("ffmpeg", False, str(error), repair)
    return Check("ffmpeg", True, done.stdout.split(" Copyright")[0])


def _gpu() -> Check:
    """Never a failure: everything but the published size runs without one."""
    try:
        import torch
    except ImportError:
        return Check("GPU", True, "cannot be tried without PyTorch")
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / GB
        return Check("GPU", True, f"{torch.cuda.get_device_name(0)}, {memory:.0f} GB")
    unused = shutil.which("nvidia-smi") is not None
    return Check("GPU", True, "there is one, but this PyTorch was built without CUDA" if unused else "none, not needed")


def _calvin() -> Check:
    """Never a failure: ``--suite calvin`` alone needs it."""
    from la_reconvla.sim.calvin import missing

    lacking = missing()
    return Check("CALVIN", True, "can be imported" if lacking is None else f"only --suite calvin needs it; {lacking}")


# ---------------------------------------------------------------- helpers


def _check(name: str, ok: bool, found: str, repair: str) -> Check:
    return Check(name, ok, found, "" if ok else repair)


def installed_version(package: str) -> str | None:
    """Version of a package; None if it is not there."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def installed_versions(*packages: str) -> dict[str, str]:
    """Versions of those packages that are there."""
    return {name: found for name in packages if (found := installed_version(name)) is not None}


def _drawing_error(library: str) -> CannotStart | None:
    """What goes wrong when a picture is drawn through `library` (``egl`` or ``osmesa``); None if nothing does."""
    return _child_error(_DRAW, RENDER_TIMEOUT, MUJOCO_GL=library)


def _child_error(code: str, seconds: int, **variables: str) -> CannotStart | None:
    """What another process says went wrong, or how it ended; None if nothing did."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, **variables},
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        return CannotStart(f"nothing came of it in {seconds} s", INSTALL_OPENGL)
    if done.returncode == 0:
        return None
    try:
        return CannotStart(*json.loads(done.stdout.strip().splitlines()[-1]))
    except (IndexError, ValueError, TypeError):  # it did not come so far
        lines = done.stderr.strip().splitlines()
        died = lines[-1] if lines else f"the process ended with {done.returncode}"
        return CannotStart(f"drawing ended its process ({died})", INSTALL_OPENGL)


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
