"""A study that grows is looked at more than once, and says so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from la_reconvla import layout
from la_reconvla.analysis.comparisons import Hypothesis
from la_reconvla.analysis.declaration import DECLARED, PACKAGED, Declaration
from la_reconvla.analysis.measures import Rate
from la_reconvla.analysis.results import CellResult, ConditionResult, Look, Results, Study
from la_reconvla.report.limits import limits
from la_reconvla.report.next_step import next_step
from la_reconvla.storage import read_json, write_json
from la_reconvla.study.begun import read_begun, record_look


def results(finished: str, verdict: str = "interim", **study: Any) -> Results:
    described = Study(preset="small", finished=finished, **study)
    judged = (Hypothesis("C4>C2", verdict),)  # type: ignore[arg-type]
    return Results(2, described, (ConditionResult("C1", "", None, None, None, True),), hypotheses=judged)


def test_each_size_is_one_look_and_the_first_of_a_size_stays(tmp_path: Path) -> None:
    path = tmp_path / layout.STUDY
    told = {"precision": "fp32", "started": "", "hypotheses": DECLARED.text, "hypotheses_hash": DECLARED.hash}
    write_json(path, {"schema": 2, "config": {}, "versions": {}, "commits": [], "hardware": {}, **told})
    assert read_begun(path).looks == ()
    record_look(path, results("monday"), 3, 20)
    record_look(path, results("tuesday"), 3, 20)
    found = record_look(path, results("friday", "supported"), 8, 20)
    assert found == (
        Look("monday", 3, 20, ("C1",), {"C4>C2": "interim"}),
        Look("friday", 8, 20, ("C1",), {"C4>C2": "supported"}),
    )
    assert read_begun(path).looks == found
    record_look(path, results("sunday"), 8, 20, (), 10)
    assert read_begun(path).looks == found, "nothing was rolled out elsewhere"
    for there in (10, 20, 20):
        grown = record_look(path, results("monday"), 8, 20, ("libero_goal",), there)
    assert [(look.elsewhere, look.elsewhere_episodes) for look in grown[2:]] == [
        (("libero_goal",), 10),
        (("libero_goal",), 20),
    ]
    official = record_look(path, results("monday"), 8, 20, ("libero_goal",), 20, 10)
    assert [look.also_official for look in official] == [0, 0, 0, 0, 10]
    assert read_json(path)["precision"] == "fp32"


def test_what_a_study_does_not_show_names_its_looks() -> None:
    looks = (Look("monday", 3, 20, ("C1",), {}), Look("friday", 8, 20, ("C1",), {"C4>C2": "supported"}))
    said = [line for line in limits(replace(results("friday"), looks=looks)) if "looked at" in line]
    assert len(said) == 1
    assert "2 times" in said[0]
    assert "monday" in said[0]
    assert not [line for line in limits(replace(results("friday"), looks=looks[:1])) if "looked at" in line]


def test_no_more_seeds_are_asked_for_than_were_declared() -> None:
    declared = Declaration.read(PACKAGED.with_name("declared-2026-11.json"))
    assert declared.size is not None
    told = {"command": "la-reconvla study run small", "hypotheses": declared.text}

    def with_seeds(count: int) -> Results:
        arm = ConditionResult("C1", "", None, None, None, True, cells=tuple(CellResult(seed) for seed in range(count)))
        return replace(results("", **told), conditions=(arm,))

    step = next_step(with_seeds(3))
    assert step is not None
    assert "--seeds 0 1 2 3 4 5 6 7" in step.command
    assert next_step(with_seeds(8)) is None

    def rolled_out(seeds: int, starts: int) -> list[str]:
        """The command for a study of two tasks that said another number of episodes."""
        command = "la-reconvla study run small --episodes 4"
        study = replace(with_seeds(seeds).study, command=command, tasks={0: "", 1: ""})
        count = 2 * seeds * starts
        arm = replace(with_seeds(seeds).conditions[0], tsr=Rate(0.5, 0.4, 0.6, count // 2, count))
        step = next_step(replace(with_seeds(seeds), study=study, conditions=(arm,)))
        return step.lines if step else []

    every = "la-reconvla study run small --episodes 20 --seeds 0 1 2 3 4 5 6 7"
    for seeds in (3, 8):
        _, shown, found = rolled_out(seeds, 4)
        assert shown.strip() == every
        assert "8 seeds of 20 starts a task" in found
    assert "--episodes 4 --seeds 0 1 2 3 4 5 6 7" in rolled_out(3, 20)[1]
    assert rolled_out(8, 20) == rolled_out(9, 4) == rolled_out(3, 21) == []
