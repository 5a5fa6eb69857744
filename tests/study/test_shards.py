"""A study in shards, on one disk or on several, is the study in one piece."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from la_reconvla import layout, leases
from la_reconvla.errors import UserError
from la_reconvla.storage import read_json, read_jsonl, write_json
from la_reconvla.study.ablation import Ablation
from la_reconvla.study.merging import merged
from la_reconvla.study.presets import PRESETS
from la_reconvla.study.records import write_records
from la_reconvla.study.shards import Share, pieces_of
from la_reconvla.training.run_folders import WEIGHTS
from search_path import SEARCH
from small_study import in_this_process, results, toy

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def without_workers():
    with in_this_process(), pytest.MonkeyPatch.context() as patched:
        patched.setitem(PRESETS, "known-answer", toy())  # merging reads the configuration by its preset
        yield


@pytest.fixture(scope="module")
def at_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    study = tmp_path_factory.mktemp("at") / "once"
    Ablation(toy(), study, workers=1).run()
    return study


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two shards that share nothing."""
    folders = [tmp_path_factory.mktemp("machine") / str(number) for number in range(2)]
    for number, folder in enumerate(folders):
        Ablation(toy(), folder, workers=1).run_share(Share(number, 2, separate=True))
    return folders[0], folders[1]


@pytest.mark.parametrize("text", ["2/2", "a/2", "1", "-1/2", "0/0"])
def test_a_shard_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="0/8 or 7/8"):
        Share.of(text)
    assert Share.of("1/2") == Share(1, 2)


def test_shards_divide_a_study_and_a_fast_one_goes_on_at_the_end_of_the_others(at_once: Path) -> None:
    pieces = pieces_of(Ablation(toy(), at_once, workers=1)._evaluations)
    assert len(pieces) == 6 + 3
    alone = [Share(number, 4, separate=True).order(pieces) for number in range(4)]
    assert sorted(id(piece) for own in alone for piece in own) == sorted(map(id, pieces))
    helping = Share(1, 4).order(pieces)
    assert helping[: len(alone[1])] == alone[1]
    assert helping[len(alone[1]) :] == [piece for piece in reversed(pieces) if piece not in alone[1]]
    files = {path.parent for path in at_once.rglob(layout.EPISODES)}
    assert {folder for piece in pieces for folder in (piece.folder, *piece.below)} == files


def test_two_shards_without_a_common_disk_merge_to_the_same_results(at_once: Path, two, tmp_path: Path) -> None:
    trained = [{str(path.parent.relative_to(folder)) for path in folder.rglob(WEIGHTS)} for folder in two]
    assert not trained[0] & trained[1]
    assert len(trained[0] | trained[1]) == 6
    assert not [folder for folder in two if (folder / layout.RESULTS).exists()]
    out = merged(tmp_path / "study", two, 1)
    assert results(out) == results(at_once)
    assert {path.relative_to(out) for path in out.rglob(WEIGHTS)} == {
        path.relative_to(at_once) for path in at_once.rglob(WEIGHTS)
    }
    assert merged(out, two, 1) == out  # again: nothing is new
    assert results(out) == results(at_once)


def test_records_of_two_shards_merge_too(at_once: Path, two, tmp_path: Path) -> None:
    for folder in two:
        write_records(folder, tmp_path / "records" / folder.name)
    out = merged(tmp_path / "study", [tmp_path / "records" / folder.name for folder in two], 1)
    assert results(out) == results(at_once)
    assert not list(out.rglob(WEIGHTS))


def test_on_one_disk_a_shard_does_what_others_left_and_not_what_they_hold(at_once: Path, tmp_path: Path) -> None:
    study = tmp_path / "study"
    (study / "G1/seed1").mkdir(parents=True)
    other = leases.take(study / "G1/seed1", leases.Owner("far", "0" * 8, 1, 1.0))
    lines = Ablation(toy(), study, workers=1).run_share(Share(0, 2))
    assert lines == ["8 of 9 parts of this study are done", "others are working on G1/seed1"]
    assert not (study / "G1/seed1" / WEIGHTS).exists()
    with pytest.raises(UserError, match=r"G1/seed1: process 1 on far is working on this part"):
        Ablation(toy(), study, workers=1).run()
    now = other.path.stat().st_mtime - leases.STALE - 5  # it died
    os.utime(other.path, (now, now))
    assert Ablation(toy(), study, workers=1).run_share(Share(1, 2)) == ["9 of 9 parts of this study are done"]
    assert results(merged(study, [], 1)) == results(at_once)


def test_what_is_no_part_of_the_study_is_refused(two, tmp_path: Path) -> None:
    for what, change in (
        ("config.demos", lambda held: {**held, "config": {**held["config"], "demos": 13}}),
        ("versions.torch", lambda held: {**held, "versions": {**held["versions"], "torch": "1.0"}}),
        ("hypotheses_hash", lambda held: {**held, "hypotheses_hash": "other"}),
    ):
        other = shutil.copytree(two[1], tmp_path / what)
        write_json(other / layout.STUDY, change(read_json(other / layout.STUDY)))
        with pytest.raises(UserError, match=rf"no parts of one study \(different: {re.escape(what)}"):
            merged(tmp_path / f"{what}-merged", [two[0], other], 1)
    data = shutil.copytree(two[1], tmp_path / "data")
    for path in data.glob("*/seed*/config.json"):
        write_json(path, {**read_json(path), "data_hash": "other"})
    with pytest.raises(UserError, match="learnt from different demonstrations"):
        merged(tmp_path / "data-merged", [two[0], data], 1)
    doubled = shutil.copytree(two[0], tmp_path / "doubled")
    path = next(doubled.glob(f"*/seed*/{layout.EPISODES}"))
    first, *rest = read_jsonl(path)
    path.write_text("".join(json.dumps(line) + "\n" for line in ({**first, "steps": 99}, *rest)))
    with pytest.raises(UserError, match=r"two different records of one policy \(episodes.jsonl"):
        merged(tmp_path / "doubled-merged", [two[0], doubled], 1)
    with pytest.raises(UserError, match="name the folders of the shards"):
        merged(two[0], two, 1)


SHARD = """
import sys
from small_study import in_this_process, toy
from pathlib import Path
from la_reconvla.study.ablation import Ablation
from la_reconvla.study.shards import Share
if __name__ == "__main__":
    one = toy(seeds=(0,), conditions=("C2",), floor_arm="C2")
    with in_this_process():
        Ablation(one, Path(sys.argv[1]), 1).run_share(Share.of(sys.argv[2]))
"""


@pytest.mark.slow
def test_processes_on_one_disk_of_which_one_is_killed(tmp_path: Path) -> None:
    """The first is killed as soon as it trains; two others do all, each policy once."""
    study, script = tmp_path / "study", tmp_path / "shard.py"
    script.write_text(SHARD)
    environment = {**os.environ, "PYTHONPATH": SEARCH, "OMP_NUM_THREADS": "1"}

    def shard(number: int) -> subprocess.Popen:
        return subprocess.Popen([sys.executable, str(script), str(study), f"{number}/3"], env=environment)

    doomed = shard(0)
    while not list(study.glob("*/seed*/metrics.jsonl")):
        assert doomed.poll() is None
        time.sleep(0.05)
    os.kill(doomed.pid, signal.SIGKILL)
    doomed.wait()
    assert [one.wait(1200) for one in [shard(1), shard(2)]] == [0, 0]
    Ablation(toy(seeds=(0,), conditions=("C2",), floor_arm="C2"), tmp_path / "at once", workers=1).run()
    assert results(merged(study, [], 1)) == results(tmp_path / "at once")
    for path in study.rglob(layout.EPISODES):
        starts = [json.dumps(line["start"]) for line in read_jsonl(path)]
        assert len(starts) == len(set(starts))
    assert not list(study.rglob(".tmp*"))


def test_the_template_for_slurm_runs_what_it_says(tmp_path: Path) -> None:
    """Both of its jobs under a fake `sbatch`, whose `srun` runs the command and whose `la-reconvla` notes its words."""
    template, tools = ROOT / "examples/cluster/study.sbatch", tmp_path / "bin"
    subprocess.run(["bash", "-n", template], check=True)
    tools.mkdir()
    scripts = {
        "srun": 'exec "$@"',
        "la-reconvla": f'printf "%s\\n" "$*" >> {tmp_path}/said',
        "sbatch": f'printf "%s\\n" "$*" >> {tmp_path}/submitted; echo 17',
    }
    for name, body in scripts.items():
        (tools / name).write_text(f"#!/bin/bash\n{body}\n")
        (tools / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "OUT": "/shared/my study", "SHARDS": "3"}
    subprocess.run(["bash", template], env=environment, check=True, cwd=tmp_path)
    array, after = (tmp_path / "submitted").read_text().splitlines()
    assert "--array=0-2" in array
    assert "--dependency=afterany:17" in after
    for number in range(3):
        task = {"SLURM_ARRAY_TASK_ID": str(number), "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_JOB_ID": "17"}
        subprocess.run(["bash", template, "shard"], env={**environment, **task}, check=True)
    subprocess.run(["bash", template, "merge"], env={**environment, "SLURM_JOB_ID": "18"}, check=True)
    *shards, last = (tmp_path / "said").read_text().splitlines()
    assert shards == [f"study run small --out /shared/my study --shard {number}/3 --workers 4" for number in range(3)]
    assert last == "study merge /shared/my study --workers 4"
