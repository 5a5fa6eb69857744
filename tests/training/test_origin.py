"""A run that starts from another one's weights: what is taken, what is not, and what it owns up to."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from test_hdf5 import make_official
from test_pretrained import save_tiny
from test_pretrained import tiny as tiny_vlm
from test_train import SHORT, train_tiny, weights, write_demonstrations

from helpers import BINS, HEAD, TINY, untrained
from la_reconvla.analysis import leakage
from la_reconvla.backbones.pretrained import Freeze, Pretrained
from la_reconvla.conditions import C4
from la_reconvla.data.hdf5 import open_demonstrations
from la_reconvla.data.samples import Samples
from la_reconvla.errors import UserError
from la_reconvla.method.actions import ActionBins
from la_reconvla.robot import ActionSpace
from la_reconvla.study.cells import Cell
from la_reconvla.study.presets import preset
from la_reconvla.study.train_cells import train_cells, train_one
from la_reconvla.training.checkpoint import CONFIG, WEIGHTS, PolicyConfig, kept, origin_of
from la_reconvla.training.loop import train
from la_reconvla.training.origin import Origin, require_same_frozen
from la_reconvla.training.tensors import file_hash, save_tensors

ARM = C4.with_reconstruction_head(HEAD)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run."""
    folder = tmp_path_factory.mktemp("source")
    return train_tiny(write_demonstrations(folder / "demonstrations"), folder / "run")


def started(source: Path, seed: int = 1, **fields: Any) -> dict[str, torch.Tensor]:
    """The weights that a policy from `source` begins with."""
    config = untrained(ARM, seed=seed, origin=origin_of(str(source)), **fields)
    return {name: tensor.clone() for name, tensor in kept(config.start(None)).items()}


def test_a_policy_of_the_same_kind_begins_with_all_of_it(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = started(source, bins=dataclasses.replace(BINS, low=(-0.5,) * 7))
    assert {name: tensor.numpy().tobytes() for name, tensor in found.items()} == weights(source)
    assert f"{len(found)} of the {len(found)} tensors of" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("names", ["xyzrpq", "abcdefg"])
def test_an_action_head_for_other_actions_is_left_and_said(
    source: Path, names: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Six dimensions, whose head has another shape, or seven others, whose head would fit."""
    space = ActionSpace(tuple(names), ("continuous",) * len(names))
    bins = ActionBins((-1.0,) * len(names), (1.0,) * len(names), space=space)
    found, fresh, old = started(source, bins=bins), untrained(ARM, seed=1, bins=bins).build(), weights(source)
    for name, tensor in kept(fresh).items():
        own = tensor.numpy().tobytes() if name.startswith("action_head.") else old[name]
        assert found[name].numpy().tobytes() == own, name
    said = " ".join(capsys.readouterr().err.split())
    assert "for other actions: action_head." in said


def test_robot_state_of_another_width_is_left_and_said(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    backbone = dataclasses.replace(TINY, proprio="all")
    found = started(source, backbone=backbone, bins=BINS)
    assert found.keys() > weights(source).keys()
    assert "only here: backbone." in " ".join(capsys.readouterr().err.split())


def test_another_backbone_is_refused(source: Path) -> None:
    with pytest.raises(UserError, match=r"no weight of the backbone of .* fits: train with the --preset"):
        started(source, backbone=dataclasses.replace(TINY, width=48), bins=BINS)


def test_adapters_go_over_the_frozen_weights_that_they_were_trained_with(tmp_path: Path) -> None:
    one, other = (tiny_vlm(str(save_tiny(tmp_path / str(seed), seed=seed))).pinned() for seed in (0, 1))
    moved = dataclasses.replace(one, source=str(save_tiny(tmp_path / "moved"))).pinned()
    config = untrained(ARM, one, seed=3)
    config.save(tmp_path / "run")
    tensors = kept(config.build())
    with torch.no_grad():
        for tensor in tensors.values():
            tensor.add_(0.5)
    save_tensors(tmp_path / "run" / WEIGHTS, tensors)
    for backbone in (one, moved):  # the same weights, wherever they lie
        found = started(tmp_path / "run", backbone=backbone)
        assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    with pytest.raises(UserError, match=r"was trained over weights of .* that stay as they are"):
        started(tmp_path / "run", backbone=other)


def test_who_trains_in_full_takes_all_from_the_run() -> None:
    full: dict[str, Any] = {"lora": None, "freeze": Freeze(vision=False, embeddings=False)}
    a, b = Pretrained("user/a", revision="1"), Pretrained("user/b", revision="2")
    require_same_frozen("run", dataclasses.replace(a, **full), dataclasses.replace(b, **full))
    require_same_frozen("run", a, dataclasses.replace(a, chunk=4))
    require_same_frozen("run", a, TINY)
    for theirs, ours in ((a, b), (dataclasses.replace(a, **full), b), (a, dataclasses.replace(b, **full))):
        with pytest.raises(UserError, match="train with --backbone user/a"):
            require_same_frozen("run", theirs, ours)
    with pytest.raises(UserError, match=r"user/a \(1\).*user/a \(2\)"):
        require_same_frozen("run", a, dataclasses.replace(a, revision="2"))


def test_the_sources_weights_are_part_of_the_run(source: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in (CONFIG, WEIGHTS):
        (copy / name).write_bytes((source / name).read_bytes())
    samples = Samples(open_demonstrations(write_demonstrations(tmp_path / "new", pictures=1)), TINY.image_size, 2)

    def fine_tune(out: str, origin: Origin | None) -> Path:
        config = PolicyConfig.trained_on(ARM, samples, seed=0, backbone=TINY, origin=origin)
        return train(ARM, config, SHORT, samples, None, tmp_path / out)

    origin = origin_of(str(copy))
    assert origin.weights_hash == file_hash(source / WEIGHTS)
    run = fine_tune("run", origin)
    held = PolicyConfig.load(run)
    assert held.origin == origin
    assert held.bins == ActionBins.from_quantiles(*samples.quantiles())
    assert weights(run) != weights(fine_tune("alone", None))
    assert set(held.seen) == {*samples.demonstrations.starts, *PolicyConfig.load(source).train_starts}
    assert origin_of(str(run)).starts == tuple(dict.fromkeys(held.seen)), "it is handed on"
    save_tensors(copy / WEIGHTS, kept(untrained(ARM).build()))
    with pytest.raises(UserError, match=r"another configuration .*origin\.weights_hash"):
        fine_tune("run", origin_of(str(copy)))
    with pytest.raises(UserError, match=r"the weights of .*copy have changed"):
        fine_tune("run", origin)


def test_a_study_does_not_mix_a_run_with_an_origin_with_its_others(source: Path, tmp_path: Path) -> None:
    parts = open_demonstrations(write_demonstrations(tmp_path / "new")).divide(0.25)
    samples = Samples(parts[0], TINY.image_size, 2)
    config = PolicyConfig.trained_on(ARM, samples, seed=0, backbone=TINY, origin=origin_of(str(source)))
    run = train(ARM, config, SHORT, samples, None, tmp_path / "run")
    study = dataclasses.replace(preset("smoke"), train=SHORT)
    with pytest.raises(UserError, match="different from the others of this study: it started from the weights of"):
        train_cells([Cell(ARM, 0, run)], study, *parts, 1, Console(quiet=True))


def test_the_audit_knows_the_scenes_of_the_source(tmp_path: Path) -> None:
    episodes = open_demonstrations(write_demonstrations(tmp_path / "new")).episodes
    ids = [episode.start_id or "" for episode in episodes]
    assert ids[0].count("/") == 4
    suite, task, _, split, _ = ids[0].split("/")
    found = leakage.origin("runs/one", ids[:2], episodes)
    assert (found.verdict, found.evaluation) == ("leak", len({leakage.wide_scene(id) or id for id in ids}))
    assert leakage.origin("runs/one", [f"{suite}/{task}/wide/{split}/998"], episodes).verdict == "none"
    assert leakage.origin("runs/one", [], episodes).verdict == "unknown"
    partner = leakage.origin("runs/one", [f"{suite}/{task}/wide/{split}/1"], [
        dataclasses.replace(episodes[0], start_id=f"{suite}/{task}/wide/{split}/0")
    ])  # fmt: skip
    assert partner.verdict == "leak", "one scene with two instructions"


@pytest.mark.slow
def test_the_command_starts_from_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, demos in (("old", 1), ("new", 4)):
        (tmp_path / name).mkdir()
        make_official(tmp_path / name / "a_demo.hdf5", demos=demos, length=12)
    changes = {"steps": 1, "device": "cpu"}
    old = train_one(tmp_path / "old", tmp_path / "run", "C1", 0, "smoke", {**changes, "held_out": 0.0})
    capsys.readouterr()
    new = train_one(tmp_path / "new", tmp_path / "tuned", "C4", 0, "smoke", changes, str(old))
    said = " ".join(capsys.readouterr().err.split())
    assert "only here: reconstruction_head." in said
    assert "trained on the held-out scenes is not known" in said
    own = Samples(open_demonstrations(tmp_path / "new").divide(0.4)[0], 56, PolicyConfig.load(new).backbone.chunk)
    np.testing.assert_allclose(PolicyConfig.load(new).bins.low, ActionBins.from_quantiles(*own.quantiles()).low)
    with pytest.raises(UserError, match="there is no folder"):
        train_one(tmp_path / "new", tmp_path / "other", "C4", 0, "smoke", changes, str(tmp_path / "nowhere"))
