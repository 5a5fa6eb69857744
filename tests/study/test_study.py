"""The smoke study on the real simulator, end to end, stopped twice on its way."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import pytest
from PIL import Image

from la_reconvla.analysis.verdicts import NOT_JUDGED
from la_reconvla.backbones.paligemma import SmallPaliGemma
from la_reconvla.episodes import append_episodes, read_episodes
from la_reconvla.errors import UserError
from la_reconvla.report.write import write_report
from la_reconvla.storage import read_json, read_jsonl, write_json
from la_reconvla.study.ablation import Ablation, ablate
from la_reconvla.study.cells import official_starts
from la_reconvla.study.disk import disk
from la_reconvla.study.identity import grown
from la_reconvla.study.options import PolicyChanges, StudyChanges, TrainingChanges
from la_reconvla.study.presets import PRESETS, StudyConfig, preset
from la_reconvla.study.results import read_results
from la_reconvla.training.loop import TrainConfig

CHILD = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
CHILD += "from la_reconvla.cli import main; main()"


def stop(folder: Path, name: str, lines: int, stop_signal: signal.Signals) -> tuple[int, str]:
    """Begin or continue the study, and send a signal when a file of this name has so many lines; what it said."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, "study", "run", "smoke", "--out", str(folder), "--workers", "2"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    while child.poll() is None and not any(len(read_jsonl(path)) >= lines for path in folder.rglob(name)):
        time.sleep(0.05)
    child.send_signal(stop_signal)
    _, said = child.communicate(timeout=120)
    return child.returncode, " ".join(said.split())


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A study stopped by Ctrl-C while it trained, then killed while it rolled out: folder, and what Ctrl-C said."""
    folder = tmp_path_factory.mktemp("runs") / "smoke"
    ctrl_c = stop(folder, "metrics.jsonl", 2, signal.SIGINT)
    assert not list(folder.rglob("episodes.jsonl"))
    killed, _ = stop(folder, "floors/*/episodes.jsonl", 1, signal.SIGKILL)
    assert killed == -signal.SIGKILL
    return folder, ctrl_c


@pytest.fixture(scope="module")
def study(interrupted):
    folder, _ = interrupted
    Ablation(preset("smoke"), folder, workers=2).run()
    write_report(folder)
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
    assert references["expert"].successes == 1
    floors = {f.id: f.tsr for f in results.floors if f.tsr}
    assert floors["blind_replay"].successes == 0, "trap 11: these starts can be solved without looking"
    assert results.study.data_hash
    assert "<html" in (study / "report.html").read_text(encoding="utf-8")[:300].lower()
    assert (results.study.judged, results.hypotheses) == (False, ())
    assert NOT_JUDGED in results.study.limits


@pytest.mark.sim
@pytest.mark.slow
def test_the_smoke_study_takes_the_disk_that_is_planned(study):
    def size(*patterns):
        return sum(path.stat().st_size for pattern in patterns for path in study.rglob(pattern) if path.is_file())

    needs = disk(preset("smoke"), max(path.stat().st_size for path in study.rglob("model.safetensors")))
    assert needs.demonstrations == pytest.approx(size("*_demo.hdf5"), rel=0.25)
    assert needs.weights == pytest.approx(size("model.safetensors"), rel=0.25)
    assert needs.finished == pytest.approx(size("*"), rel=0.25)


@pytest.mark.sim
@pytest.mark.slow
def test_the_smoke_study_shows_what_it_saw(study):
    """Attention of all arms, reconstructions of those with a decoder, and a film of each arm: there, and they open."""
    results = read_results(study / "results.json")
    attention = [p.path for p in results.pictures if p.kind == "attention"]
    painted = [p.path for p in results.pictures if p.kind == "reconstruction"]
    assert attention == ["maps/attention.png"]
    assert painted == ["maps/reconstruction.png"]
    lapse = [p.path for p in results.pictures if p.kind == "training"]
    assert lapse == ["maps/training.png"]
    for path in (*attention, *painted, *lapse):
        with Image.open(study / path) as picture:
            picture.load()
            assert min(picture.size) > 200
            assert len(picture.convert("RGB").getcolors(10**6)) > 50, f"{path} is blank"
    assert {v.condition for v in results.videos} == {"C1", "C2", "C4"}
    for video in results.videos:
        frames, seconds = imageio_ffmpeg.count_frames_and_secs(str(study / video.path))
        assert frames > 1
        assert seconds > 0
    page = (study / "report.html").read_text(encoding="utf-8")
    frames = {path for shown in results.timelines for path in (*shown.attention, *shown.reconstruction, *shown.frames)}
    assert page.count("data:image/png;base64,") == len(results.pictures) + len(frames)
    assert page.count("data:video/mp4;base64,") == len(results.videos) + 2, "two of them on the first screen too"


@pytest.mark.sim
@pytest.mark.slow
def test_the_smoke_study_says_that_its_arms_are_paired_and_how_long_each_part_took(study):
    results = read_results(study / "results.json")
    (pairing,) = results.study.pairing
    assert set(pairing.arms) == {"C1", "C2", "C4", "no-image"}
    assert set(results.study.wall_seconds) == {
        "collection", "training", "rollouts", "held-out frames", "statistics and pictures"
    }  # fmt: skip
    floors = [*results.floors, *results.references, *results.elsewhere]
    assert all(floor.stages is not None for floor in floors if floor.tsr)


@pytest.mark.sim
@pytest.mark.slow
def test_arms_that_did_not_begin_alike_leave_no_results(study, tmp_path):
    folder = shutil.copytree(study, tmp_path / "study")
    log = folder / "C2/seed0/metrics.jsonl"
    first, *rest = read_jsonl(log)
    lines = [{**first, "start": {**first["start"], "backbone": "of another start"}}, *rest]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "results.json").unlink()
    with pytest.raises(UserError, match=r"seed 0 do not start from equal backbone weights .*C2: of another start"):
        Ablation(preset("smoke"), folder, workers=1).run()
    assert not (folder / "results.json").exists()


@pytest.mark.sim
@pytest.mark.slow
def test_a_stopped_study_goes_on(interrupted, study):
    _, (code, said) = interrupted
    assert code == 130
    assert "run the same command again to resume" in said
    assert "Traceback" not in said
    for path in study.rglob("episodes.jsonl"):
        starts = [record.start.id for record in read_episodes(path.parent)]
        assert len(starts) == len(set(starts)) == 1, f"{path} has an episode too many or too few"
    for path in study.rglob("metrics.jsonl"):
        assert [line["step"] for line in read_jsonl(path)] == [0, 10, 20, 30]
    assert not list(study.rglob(".tmp-*")), "unfinished files"


@pytest.mark.sim
@pytest.mark.slow
def test_official_states_stand_beside_the_wide_ones(study):
    results = read_results(study / "results.json")
    rows = {row.label: row for row in results.elsewhere}
    assert {"C1", "C2", "C4", "no-image", "expert", "random"} <= set(rows)
    assert all(row.placement == "official" and row.tsr.episodes == 1 for row in rows.values())


@pytest.mark.sim
@pytest.mark.slow
def test_conditions_are_paired(study):
    starts, hashes, batches = set(), set(), set()
    for id in ("C1", "C2", "C4"):
        folder = study / id / "seed0"
        starts.add(tuple(sorted(r.start.id for r in read_episodes(folder))))
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
    with pytest.raises(UserError, match=r"another configuration \(different: config.demos: 4, now 6\)"):
        Ablation(replace(preset("smoke"), demos=6), study, workers=1).run()
    assert (study / "study.json").read_bytes() == before


@pytest.mark.sim
@pytest.mark.slow
def test_other_arms_may_join_and_only_the_starts_asked_for_count(study):
    """The arm of the floors changes, and one arm has an episode that another command had begun."""
    begun, *_ = read_episodes(study / "C4/seed0")
    append_episodes(study / "C4/seed0", [replace(begun, start=replace(begun.start, index=7))])
    Ablation(preset("smoke").changed(conditions=("C2", "C4")), study, workers=2).run()
    write_report(study)
    results = read_results(study / "results.json")
    assert [c.id for c in results.conditions] == ["C2", "C4"]
    assert [c.tsr.episodes for c in results.conditions if c.tsr] == [1, 1]
    rolled = {f.condition for f in results.floors if f.id == "wrong_instruction" and f.tsr}
    assert rolled == {"C4"}
    record = json.loads((study / "study.json").read_text())
    assert record["size"]["conditions"] == ["C2", "C4"]


def test_a_study_of_before_a_choice_goes_on(tmp_path):
    """Dropped: a field of the study, of its backbone and of its schedule."""
    study = Ablation(preset("known-answer"), tmp_path, workers=1)
    study._claim("now")
    Ablation(replace(study.config, judged=False), tmp_path, workers=1)._claim("later")
    held = read_json(path := tmp_path / "study.json")
    assert held["config"]["train"]["kind"] == "TrainConfig"
    before = StudyConfig(), SmallPaliGemma(), TrainConfig()
    dropped = {"decoding": before[0].decoding, "wrist": before[1].wrist, "shift": before[2].shift}
    parts = held["config"], held["config"]["backbone"], held["config"]["train"]
    assert [part.pop(name) for part, name in zip(parts, dropped, strict=True)] == list(dropped.values())
    write_json(path, held)
    study._claim("later")
    assert read_json(path)["started"] == "now"
    other = replace(study.config, train=replace(study.config.train, shift=3))
    with pytest.raises(UserError, match=r"config.train.shift: 0, now 3"):
        Ablation(other, tmp_path, workers=1)._claim("later")


def test_asking_for_less_takes_nothing_away(tmp_path, capsys):
    """Arms, seeds and episodes of a folder stay in its study; what is new joins."""
    first = replace(preset("known-answer"), conditions=("C1", "C2", "C4"), seeds=(0, 1), episodes=9, elsewhere=())
    Ablation(first, tmp_path, workers=1)._claim("now")
    less = replace(first, conditions=("C4", "G1"), seeds=(1, 2), episodes=3)
    whole = grown(less, tmp_path)
    assert (whole.conditions, whole.seeds, whole.episodes) == (("C1", "C2", "C4", "G1"), (0, 1, 2), 9)
    assert whole.floor_arm == first.floor_arm
    assert "already has the conditions C1, C2" in " ".join(capsys.readouterr().err.split())
    assert grown(first, tmp_path) == first
    assert grown(less, tmp_path / "none") == less


def test_counts_that_stay_are_said_and_a_default_that_counted_nothing_does_not_stay(tmp_path, capsys):
    first = preset("smoke").changed(episodes=9, also_official=4)
    Ablation(first, tmp_path, workers=1)._claim("now")
    fewer = preset("smoke").changed(episodes=3, elsewhere=("libero_spatial_swap",), elsewhere_episodes=2)
    whole = grown(fewer, tmp_path)
    assert (whole.episodes, whole.also_official, whole.elsewhere_episodes) == (9, 4, 2)
    said = " ".join(capsys.readouterr().err.split())
    assert "already has 9 episodes per task, 3 are asked for" in said
    assert "already has 4 official states per task, 1 are asked for" in said
    assert "other suite" not in said
    Ablation(whole, tmp_path, workers=1)._claim("later")
    assert grown(fewer.changed(elsewhere_episodes=1), tmp_path).elsewhere_episodes == 2
    assert "already has 2 states per task of each other suite, 1 are" in " ".join(capsys.readouterr().err.split())


def test_states_of_other_suites_need_other_suites(tmp_path):
    with pytest.raises(UserError, match="name them with --elsewhere"):
        ablate("smoke", tmp_path, 1, {"elsewhere_episodes": 2})
    assert not list(tmp_path.iterdir())


GIVEN: dict[str, Any] = {
    **{"seeds": (7,), "conditions": ("C2",), "suite": "libero_goal", "tasks": (5,), "placement": "official"},
    **{"demos": 9, "episodes": 3, "also_official": 4, "elsewhere": ("libero_goal_lan",), "elsewhere_episodes": 2},
    **{"backbone": "google/x", "lora_rank": 3, "quantize": "nf4", "dtype": "bf16", "chunk": 3, "decoding": "flow"},
    **{"proprio": "all", "cameras": ("one",), "fit": "pad", "max_tokens": 77, "weights": "words-7x7", "steps": 33},
    **{"held_out": 0.22, "ema": True, "shift": 9, "gaze": "boxes.jsonl", "device": "mps", "track": "wandb"},
}
ELSEWHERE = {"grid", "latents"}  # options that choose other fields than those of their name


@pytest.mark.parametrize("name", PRESETS)
def test_every_option_of_a_study_takes_the_place_of_the_presets_value(name):
    """One by one, found by name wherever it lives; none is left as the preset has it."""
    options = [field.name for group in (StudyChanges, PolicyChanges, TrainingChanges) for field in fields(group)]
    for option in (o for o in options if o not in ELSEWHERE):
        before = values(preset(name), option)
        value = GIVEN[option] if option in GIVEN else not before[0]
        if option in ("lora_rank", "quantize", "dtype"):
            after = preset(name).changed(**{"backbone": "google/x", option: value})
        elif option == "weights" and name == "paper":
            with pytest.raises(UserError, match="a pretrained one brings its own"):
                preset(name).changed(weights=value)
            continue
        else:
            after = preset(name).changed(**{option: value})
        wanted = {"lora_rank": "rank", "backbone": "source"}.get(option, option)
        assert set(values(after, wanted)) == {value}, option


def values(part: Any, name: str) -> list[Any]:
    """Values of the fields of this name in a dataclass and in those inside of it."""
    own = [(field.name, getattr(part, field.name)) for field in fields(part)]
    deeper = [value for _, inner in own if is_dataclass(inner) for value in values(inner, name)]
    return [value for field, value in own if field == name] + deeper


def test_a_study_on_official_states_is_not_evaluated_on_them_twice():
    config = preset("smoke").changed(placement="official", tasks=(3,))
    assert (config.also_official, list(official_starts(config))) == (0, [])
    assert [place.episodes for place in official_starts(preset("smoke"))] == [1]
    for change in ({"also_official": 2}, {"elsewhere": ("libero_spatial",)}):
        with pytest.raises(UserError, match="official"):
            preset("smoke").changed(placement="official", **change)
    more = preset("smoke").changed(elsewhere=("libero_spatial",), elsewhere_episodes=5)
    assert [(place.home, place.episodes) for place in official_starts(more)] == [(True, 5)]


def test_presets_need_the_image():
    """Trap 11: on official states, or with the robot's own state, a policy can succeed without looking."""
    for config in PRESETS.values():
        assert config.placement == "wide"
        assert config.backbone.proprio == "none"


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
