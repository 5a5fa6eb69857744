"""What `eval lerobot:` knows of a folder before LeRobot and the simulator begin: starts, processes, what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lerobot_folders import change, make_folder

from la_reconvla.errors import UserError
from la_reconvla.serving.lerobot_policy import LeRobot
from la_reconvla.study import evaluate_one as module
from la_reconvla.study import runs
from la_reconvla.study.options import EvaluateOptions
from la_reconvla.training.origin import Origin

OWN, BEFORE = "libero_spatial/0/official/train/1", "libero_spatial/0/official/train/2"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """LeRobot is taken for installed; more than one process fits here."""
    monkeypatch.setattr(LeRobot, "identity", lambda self: {})
    for there in (module, runs):
        monkeypatch.setattr(there, "default_workers", lambda: 5)


def subject(path: Path, **fields: Any) -> Any:
    return module._subject(f"lerobot:{path}", replace(EvaluateOptions(), **fields))


def test_the_starts_of_the_run_before_are_known_too(
    tmp_path: Path, asked: None, capsys: pytest.CaptureFixture[str]
) -> None:
    origin = Origin("runs/before", "abc", (BEFORE,))
    path = make_folder(tmp_path / "one", train_starts=(OWN,), origin=origin)
    assert subject(path).trained_on == {OWN, BEFORE}
    assert "do not name their initial states" not in capsys.readouterr().err


def test_unknown_starts_are_said(tmp_path: Path, asked: None, capsys: pytest.CaptureFixture[str]) -> None:
    alone = make_folder(tmp_path / "one")
    assert subject(alone).trained_on == frozenset()
    assert f"training data of lerobot:{alone} do not name" in " ".join(capsys.readouterr().err.split())
    after = make_folder(tmp_path / "two", train_starts=(OWN,), origin=Origin("runs/before", "abc", ()))
    assert subject(after).trained_on == {OWN}
    assert "training data of runs/before do not name" in " ".join(capsys.readouterr().err.split())
    change(after / "config.json", type="act", description=None)
    subject(after)
    assert f"training data of lerobot:{after} do not name" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("kind", "workers"), [("la_reconvla", 5), ("act", 5), ("diffusion", 5), ("smolvla", 1), ("pi0", 1), ("pi05", 1)]
)
def test_large_policies_are_held_once(tmp_path: Path, asked: None, kind: str, workers: int) -> None:
    path = make_folder(tmp_path / "one")
    if kind != "la_reconvla":
        change(path / "config.json", type=kind, description=None)
    assert subject(path).workers == workers


@pytest.mark.parametrize("field", [{"n_obs_steps": 2}, {"temporal_ensemble_coeff": 0.01}])
def test_execute_needs_chunks(tmp_path: Path, asked: None, field: dict[str, Any]) -> None:
    path = make_folder(tmp_path / "one")
    assert subject(path, execute=2).policy.execute == 2
    change(path / "config.json", type="act", description=None, **field)
    assert subject(path).policy.execute is None
    with pytest.raises(UserError, match=r"gives one action at a time.*leave --execute out"):
        subject(path, execute=2)
