"""Records of a study without weights: another machine judges from them, and trains only what is new."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from la_reconvla import layout
from la_reconvla.errors import UserError
from la_reconvla.report.write import write_report
from la_reconvla.storage import locked, read_json, read_jsonl, write_json
from la_reconvla.study.ablation import Ablation, ablate
from la_reconvla.study.presets import PRESETS
from la_reconvla.study.records import restore, write_records
from la_reconvla.training.run_folders import WEIGHTS
from small_study import in_this_process, results, toy


def archives(records: Path) -> dict[str, bytes]:
    return {str(path.relative_to(records)): path.read_bytes() for path in records.rglob("*.tar.gz")}


@pytest.fixture(scope="module", autouse=True)
def without_workers():
    with in_this_process():
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    study = tmp_path_factory.mktemp("there") / "study"
    Ablation(toy(), study, workers=1).run()
    return study


@pytest.fixture(scope="module")
def records(run: Path) -> Path:
    out = run.parent / "records"
    write_records(run, out)
    return out


@pytest.fixture
def restored(records: Path, tmp_path: Path) -> Path:
    """A folder of another machine, with records only."""
    study = tmp_path / "here"
    restore([records], study)
    return study


def test_records_are_small_and_the_same_each_time(run: Path, records: Path, tmp_path: Path) -> None:
    found = archives(records)
    cells = {f"{arm}/seed{seed}.tar.gz" for arm in ("C2", "G1", "no-image") for seed in (0, 1)}
    floors = {f"floors/{view}/G1/seed{seed}.tar.gz" for view in ("grey_image", "wrong_instruction") for seed in (0, 1)}
    others = {"floors/blind_replay.tar.gz", "references/expert.tar.gz", "references/random.tar.gz"}
    assert set(found) == cells | floors | others
    assert max(map(len, found.values())) < 100_000
    write_records(run, tmp_path / "again")
    assert archives(tmp_path / "again") == found
    assert write_records(run, records)[-1].endswith(f"0 files written, {len(found)} were there")
    assert "--out" not in (records / layout.STUDY).read_text()


def test_records_hold_nothing_but_records_and_another_writer_is_refused(run: Path, tmp_path: Path) -> None:
    """A lease file would be committed with them; while one writes, a second writes nothing."""
    with locked(tmp_path), pytest.raises(UserError, match="another process is working"):
        write_records(run, tmp_path)
    assert not archives(tmp_path)
    write_records(run, tmp_path)
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {
        layout.STUDY,
        *(Path(name).name for name in archives(tmp_path)),
    }


def test_a_look_is_counted_once_whatever_the_version_that_wrote_it(run: Path, tmp_path: Path) -> None:
    write_records(run, tmp_path)
    path = tmp_path / layout.STUDY
    looks = read_json(path)["looks"]
    assert len(looks) == 1
    older = [{key: value for key, value in look.items() if key != "also_official"} for look in looks]
    write_json(path, {**read_json(path), "looks": older})
    write_records(run, tmp_path)
    assert read_json(path)["looks"] == looks


def test_a_study_is_judged_from_its_records_alone(run: Path, restored: Path, capsys: pytest.CaptureFixture) -> None:
    Ablation(toy(), restored, workers=1).run()
    assert not list(restored.rglob(WEIGHTS)), "nothing was trained again"
    assert results(restored) == results(run)
    assert "no pictures of C2, G1" in " ".join(capsys.readouterr().err.split())
    assert write_report(restored).exists()


def test_a_new_seed_is_all_that_is_trained(run: Path, records: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(PRESETS, "known-answer", toy())
    study = tmp_path / "here"
    ablate("known-answer", study, 1, {"seeds": (2,)}, records=records)
    trained = {str(path.parent.relative_to(study)) for path in study.rglob(WEIGHTS)}
    assert trained == {f"{arm}/seed2" for arm in ("C2", "G1", "no-image")}
    Ablation(toy(seeds=(0, 1, 2)), tmp_path / "at-once", workers=1).run()
    grown, at_once = results(study), results(tmp_path / "at-once")
    for each in (grown, at_once):
        each.pop("looks")
    assert grown == at_once
    with pytest.raises(UserError, match="another study"):
        ablate("known-answer", tmp_path / "other", 1, {"steps": 5}, records=records)
    assert not (tmp_path / "other" / layout.STUDY).exists()


def test_more_episodes_of_what_cannot_act_are_refused_before_anything_is_done(restored: Path) -> None:
    with pytest.raises(
        UserError, match=r"C2.seed0 came from records.*6 of 7 episodes.*delete that folder and its record"
    ):
        Ablation(toy(episodes=7), restored, workers=1).run()
    assert not (restored / layout.DEMONSTRATIONS).exists()
    shutil.rmtree(restored / "C2/seed0")
    Ablation(toy(), restored, workers=1).run()
    assert [str(path.parent.relative_to(restored)) for path in restored.rglob(WEIGHTS)] == ["C2/seed0"]


def test_what_is_not_finished_is_left_out_and_said(run: Path, tmp_path: Path) -> None:
    study = shutil.copytree(run, tmp_path / "running")
    (study / "C2/seed0" / WEIGHTS).unlink()
    (study / "G1/seed1" / layout.HELD_OUT).unlink()
    floor = study / "floors/grey_image/G1/seed0" / layout.EPISODES
    floor.write_text("".join(floor.read_text().splitlines(keepends=True)[:3]))
    lines = write_records(study, tmp_path / "records")
    assert lines[:3] == [
        "C2 seed 0 is left out: it is not trained",
        "G1 seed 0 is left out: 3 of 4 episodes in floors/grey_image/G1/seed0",
        "G1 seed 1 is left out: it is not measured on held-out frames",
    ]
    assert not [name for name in archives(tmp_path / "records") if "G1" in name or "C2/seed0" in name]


def test_other_demonstrations_other_trainings_and_damage_are_refused(restored: Path, records: Path, tmp_path) -> None:
    restore([records], restored)  # the same again changes nothing
    held = restored / "C2/seed0/weights.json"
    before = held.read_text()
    write_json(held, {"weights": "0" * 16})
    with pytest.raises(UserError, match=r"two different records of one policy \(weights\)"):
        restore([records], restored)
    held.write_text(before)
    lines = read_jsonl(path := restored / "C2/seed0" / layout.EPISODES)
    path.write_text("".join(json.dumps({**line, "success": not line["success"]}) + "\n" for line in lines))
    with pytest.raises(UserError, match=r"two different records of one policy \(episodes.jsonl"):
        restore([records], restored)
    path.write_text("".join(json.dumps({**line, "seconds": 1.5}) + "\n" for line in lines[:4]))
    restore([records], restored)
    assert [line["start"] for line in read_jsonl(path)] == [line["start"] for line in lines]
    config = restored / "G1/seed0/config.json"
    write_json(config, {**read_json(config), "data_hash": "other"})
    with pytest.raises(UserError, match="learnt from different demonstrations"):
        restore([records], restored)
    broken = shutil.copytree(records, tmp_path / "broken")
    (broken / "C2/seed0.tar.gz").write_bytes((broken / "C2/seed0.tar.gz").read_bytes()[:2000])
    with pytest.raises(UserError, match=r"C2/seed0.tar.gz is damaged"):
        restore([broken], tmp_path / "new")
    write_json(broken / layout.STUDY, {**read_json(broken / layout.STUDY), "precision": "torch.bfloat16"})
    with pytest.raises(UserError, match=r"no parts of one study .*precision"):
        restore([broken], restored)
