from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from la_reconvla.sim import machine
from la_reconvla.sim.machine import Check, check_machine, print_checks


@pytest.fixture
def broken_opengl(monkeypatch):
    monkeypatch.setattr(machine, "_drawing_error", lambda library: f"{library} is broken")


def by_name(out: Path | str = ".") -> dict[str, Check]:
    return {check.name: check for check in check_machine(out)}


def test_a_failing_check_has_a_repair_and_a_passing_one_has_none(broken_opengl, monkeypatch, tmp_path):
    versions = {"mujoco": "3.4.0"}
    monkeypatch.setattr(machine, "_version", versions.get)  # PyTorch missing, MuJoCo too new
    monkeypatch.setattr(machine, "_container_memory", lambda: 1e9)
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
