from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from la_reconvla.errors import UserError
from la_reconvla.sim import machine
from la_reconvla.sim.machine import Check, check_machine, print_checks, require_simulator


@pytest.fixture
def broken_opengl(monkeypatch):
    monkeypatch.setattr(machine, "_drawing_error", lambda library: f"{library} is broken")


def by_name(out: Path | str = ".") -> dict[str, Check]:
    return {check.name: check for check in check_machine(out)}


def test_a_failing_check_has_a_repair_and_a_passing_one_has_none(broken_opengl, monkeypatch, tmp_path):
    versions = {"mujoco": "3.4.0"}
    monkeypatch.setattr(machine, "_version", versions.get)  # PyTorch missing, MuJoCo too new
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
    monkeypatch.setattr(machine, "_version", lambda package: "3.3.2")
    monkeypatch.setattr(machine, "_drawing_error", lambda library: None if library == "osmesa" else "no device")
    assert machine._opengl().repair == "export MUJOCO_GL=osmesa"
    assert not machine._opengl().ok


def test_a_folder_that_cannot_be_written_is_found_before_the_run(tmp_path, broken_opengl):
    file = tmp_path / "file"
    file.touch()
    assert "cannot be written" in by_name(file / "runs")["disk"].found
    assert by_name(tmp_path / "a" / "b" / "c")["disk"].ok


def test_the_simulator_is_refused_with_the_one_command_that_repairs_it(broken_opengl, monkeypatch):
    monkeypatch.setattr(machine, "_version", lambda package: "3.3.2")
    monkeypatch.setattr(machine, "prepare_simulator", lambda **_: pytest.fail("imported beside a broken driver"))
    monkeypatch.setenv("MUJOCO_GL", "egl")
    with pytest.raises(UserError, match=r"egl does not draw \(egl is broken\); repair it with: .*install -y libegl1"):
        require_simulator()
    monkeypatch.setattr(machine, "_drawing_error", lambda library: None if library == "osmesa" else "no device")
    with pytest.raises(UserError, match=r"repair it with: export MUJOCO_GL=osmesa$"):
        require_simulator(allow_any_mujoco=True)
    monkeypatch.delenv("MUJOCO_GL")
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    with pytest.raises(UserError, match=r"neither EGL nor OSMesa is installed; repair it with: .*libegl1"):
        require_simulator()


def test_the_simulator_is_refused_without_the_right_mujoco(monkeypatch):
    allowed: list[bool] = []
    monkeypatch.setattr(machine, "_opengl", lambda: Check("OpenGL", True, "fine"))
    monkeypatch.setattr(machine, "prepare_simulator", lambda *, allow_any_mujoco: allowed.append(allow_any_mujoco))
    monkeypatch.setattr(machine, "_version", lambda package: "3.4.0")
    with pytest.raises(UserError, match=r"MuJoCo 3\.4\.0 is installed.*pip install"):
        require_simulator()
    require_simulator(allow_any_mujoco=True)
    assert allowed == [True]
    monkeypatch.undo()
    monkeypatch.setattr(machine, "_version", lambda package: None)
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
    (said,) = (line for line in done.stderr.splitlines() if "UserError: OpenGL" in line)
    assert "repair it with: " in said
    assert "MUJOCO_EGL_DEVICE_ID" in said  # what is really wrong


@pytest.mark.sim
def test_a_working_simulator_is_accepted():
    pytest.importorskip("mujoco")
    require_simulator()


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
