"""The smoke study on the real simulator, end to end."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from la_reconvla.errors import UserError
from la_reconvla.storage import read_jsonl
from la_reconvla.study.ablation import Ablation
from la_reconvla.study.presets import PRESETS, StudyConfig, preset
from la_reconvla.study.results import read_results


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "smoke"
    Ablation(preset("smoke"), folder, workers=2).run()
    return folder


@pytest.mark.sim
@pytest.mark.slow
def test_the_smoke_study_leaves_everything_behind(study):
    results = read_results(study / "results.json")
    assert [c.id for c in results.conditions] == ["C1", "C2", "C4"]
    for condition in results.conditions:
        assert condition.tsr is not None
        assert condition.aos is not None
        assert condition.aos.chance > 0
        assert condition.action_error is not None
        cell = condition.cells[0]
        assert (study / cell.metrics).exists()
    assert {f.id for f in results.floors} == {"blind_replay", "no_image", "grey_image", "wrong_instruction"}
    references = {r.id: r.tsr for r in results.references}
    assert set(references) == {"expert", "random"}
    assert references["random"].successes == 0
    assert results.study.data_hash
    assert "<html" in (study / "report.html").read_text(encoding="utf-8")[:300].lower()


@pytest.mark.sim
@pytest.mark.slow
def test_conditions_are_paired(study):
    starts, hashes, batches = set(), set(), set()
    for id in ("C1", "C2", "C4"):
        folder = study / id / "seed0"
        starts.add(tuple(sorted(r["start_id"] for r in read_jsonl(folder / "episodes.jsonl"))))
        lines = read_jsonl(folder / "metrics.jsonl")
        hashes.add(json.dumps(lines[0]["start"]))
        batches.add(tuple(line["batches"] for line in lines if "batches" in line))
    assert len(starts) == len(hashes) == len(batches) == 1


@pytest.mark.sim
@pytest.mark.slow
def test_a_finished_study_runs_nothing_again(study):
    watched = [*study.rglob("model.safetensors"), *study.rglob("episodes.jsonl"), *study.rglob("*.hdf5")]
    before = {path: path.stat().st_mtime_ns for path in watched}
    Ablation(preset("smoke"), study, workers=1).run()
    assert {path: path.stat().st_mtime_ns for path in watched} == before


@pytest.mark.sim
@pytest.mark.slow
def test_a_folder_of_another_study_is_refused(study):
    before = (study / "study.json").read_bytes()
    with pytest.raises(UserError, match=r"another configuration \(different: demos\)"):
        Ablation(replace(preset("smoke"), demos=6), study, workers=1).run()
    assert (study / "study.json").read_bytes() == before


def test_presets_are_complete_and_near_misses_are_named():
    assert {"smoke", "quick", "small"} <= set(PRESETS)
    for config in PRESETS.values():
        assert config.floor_arm in config.conditions
    with pytest.raises(UserError, match="did you mean small"):
        preset("smal")
    with pytest.raises(UserError, match="listed twice"):
        StudyConfig(seeds=(0, 0))
    with pytest.raises(UserError, match="is a floor"):
        StudyConfig(conditions=("C1", "no-image"))
