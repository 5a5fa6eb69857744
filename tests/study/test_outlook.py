"""What a study takes before it runs: in proportion to its size, to its machines, and to what one study took."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from la_reconvla import kinds, layout
from la_reconvla.analysis.results import Study
from la_reconvla.cli.tree import commands
from la_reconvla.errors import UserError
from la_reconvla.storage import write_json
from la_reconvla.study.cells import cells
from la_reconvla.study.forecast import PARTS, forecast
from la_reconvla.study.outlook import asked, measured, outlook, said, usual
from la_reconvla.study.presets import StudyConfig, preset

QUICK = preset("quick")
ONE = dict.fromkeys(PARTS, 1.0)


def finished(folder: Path, config: StudyConfig, seconds: dict[str, float]) -> Path:
    """A folder with nothing of a study but its results."""
    study = Study(preset=config.preset, wall_seconds=seconds, settings={"config": kinds.to_json(config)})
    lists = {name: () for name in ("conditions", "floors", "references", "comparisons", "hypotheses")}
    write_json(folder / layout.RESULTS, {"schema": layout.SCHEMA, "study": dataclasses.asdict(study), **lists})
    return folder


def test_one_machine_takes_what_the_forecast_of_a_study_says(tmp_path: Path) -> None:
    said_before = forecast(QUICK, tmp_path, cells(QUICK, tmp_path), (), workers=2)
    found = outlook(QUICK, 1, usual(QUICK, 2))
    assert said_before is not None
    for part in PARTS[:-1]:
        assert found.alone[part] == found.together[part] == pytest.approx(said_before[part])
    assert found.rollouts == len(QUICK.tasks) * QUICK.episodes * (found.policies + 5)


def test_a_study_twice_as_large_takes_twice_as_long() -> None:
    small, large = (outlook(asked("quick", {"seeds": tuple(range(n))}, 0), 1, ONE) for n in (4, 8))
    assert large.policies == 2 * small.policies
    for part in ("training", "held-out frames"):
        assert large.alone[part] == pytest.approx(2 * small.alone[part])
    assert large.alone["collection"] == small.alone["collection"]
    assert large.disk.weights == 2 * small.disk.weights


@pytest.mark.parametrize(("machines", "share"), [(1, 1), (2, 3 / 6), (4, 2 / 6), (6, 1 / 6), (60, 1 / 6)])
def test_a_policy_trains_on_one_machine(machines: int, share: float) -> None:
    """Six policies on four machines take as long as two on one; more than six machines do not help them."""
    found = outlook(asked("quick", {"seeds": (0,)}, 0), machines, ONE)
    assert found.policies == 6
    assert found.together["training"] == pytest.approx(share * found.alone["training"])
    assert found.together["rollouts"] == pytest.approx(found.alone["rollouts"] / machines)
    assert found.together[PARTS[-1]] == found.alone[PARTS[-1]]


@pytest.mark.parametrize("policies", [1, 6, 7, 400])
def test_cells_are_rounded_up_to_full_seeds(policies: int) -> None:
    found = outlook(asked("quick", {}, policies), 1, ONE)
    assert policies <= found.policies < policies + 6


def test_the_times_of_a_study_are_its_own_forecast(tmp_path: Path) -> None:
    """What a study took is what is said of the same study, whatever the workers and the machine were."""
    took = dict(zip(PARTS, (50.0, 600.0, 20.0, 300.0, 40.0), strict=True))
    rates = measured(finished(tmp_path, QUICK, took), QUICK.backbone)
    again = outlook(QUICK, 1, rates)
    for part in PARTS[:-1]:
        assert again.alone[part] == pytest.approx(took[part])
    twice = outlook(dataclasses.replace(QUICK, train=dataclasses.replace(QUICK.train, steps=160)), 1, rates)
    assert twice.alone["training"] == pytest.approx(2 * took["training"])


def test_a_part_without_a_time_takes_the_rate_of_its_kind_of_work(tmp_path: Path) -> None:
    took = {"collection": 70.0, "training": 600.0}
    rates = measured(finished(tmp_path, QUICK, took), QUICK.backbone)
    assert rates["rollouts"] == rates["collection"]
    assert rates["held-out frames"] == rates["training"]
    assert rates[PARTS[-1]] == pytest.approx((rates["collection"] + rates["training"]) / 2)


@pytest.mark.parametrize(
    ("config", "seconds", "message"),
    [
        (preset("paper"), {"training": 5.0}, "another backbone.*drop --measured, or name a run of this preset"),
        (QUICK, {}, "does not say how long"),
    ],
)
def test_a_study_that_says_nothing_of_this_one_is_refused(
    tmp_path: Path, config: StudyConfig, seconds: dict[str, float], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        measured(finished(tmp_path, config, seconds), QUICK.backbone)


def test_what_cannot_be_planned_is_refused() -> None:
    with pytest.raises(UserError, match="at least one machine"):
        outlook(QUICK, 0, ONE)
    with pytest.raises(UserError, match="not known: run a small study"):
        usual(preset("paper"), 1)
    with pytest.raises(UserError, match="CALVIN"):
        asked("quick", {"suite": "calvin"}, 0)


def test_the_command_prints_hours_and_disk(capsys: pytest.CaptureFixture[str]) -> None:
    from la_reconvla.study.options import StudyChanges

    plan: Any = commands()["study plan"]
    plan(StudyChanges(), "quick", cells=6000, machines=10, workers=2)
    shown = " ".join(capsys.readouterr().out.split())
    assert "6000 policies" in shown
    assert "10 machines" in shown
    found = outlook(asked("quick", {}, 6000), 10, usual(QUICK, 2))
    assert f"{found.rollouts:,} episodes" in shown
    assert re.search(r"in about [\d,]+ files memory: its statistics take at least", " ".join(said(found).split()))
