"""A study of one's own demonstrations, in which nothing is rolled out: what it refuses, and how it measures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_hdf5 import make_official

from helpers import TINY, random_batch, untrained
from la_reconvla.conditions import C1
from la_reconvla.data.hdf5 import open_demonstrations
from la_reconvla.data.samples import Samples
from la_reconvla.errors import UserError
from la_reconvla.method.actions import ActionBins
from la_reconvla.robot import ActionSpace
from la_reconvla.study.ablation import ablate
from la_reconvla.study.cells import offline
from la_reconvla.study.domains import Recorded
from la_reconvla.study.heldout import action_errors, measure_run
from la_reconvla.study.presets import preset
from la_reconvla.study.train_cells import train_one
from la_reconvla.training.checkpoint import WEIGHTS, kept
from la_reconvla.training.tensors import save_tensors


def test_nothing_is_to_be_rolled_out(tmp_path: Path) -> None:
    make_official(tmp_path / "a_demo.hdf5")
    opened = open_demonstrations(tmp_path)
    config = offline(preset("quick"), {}, opened)
    assert (config.also_official, config.elsewhere, config.quality) == (0, (), "official")
    place = Recorded(tmp_path)
    assert place.starts(config, 5, frozenset(), tmp_path) == []
    assert [task.instruction for task in place.tasks(config)] == ["put the bowl away"]
    with pytest.raises(UserError, match="tasks: an offline study rolls nothing out"):
        offline(preset("quick"), {"tasks": (1,), "steps": 3}, opened)
    with pytest.raises(UserError, match="between 0 and 1"):
        offline(replace(preset("quick"), held_out=0.0), {}, opened)
    with pytest.raises(UserError, match="no such folder"):
        ablate("smoke", tmp_path / "study", 1, {}, recorded=tmp_path / "nowhere")
    assert not (tmp_path / "study").exists()


def test_action_errors_of_another_robot_are_shares_of_its_range() -> None:
    """Two dimensions of very different units count alike; a binary one does not count."""
    space = ActionSpace(("metres", "degrees", "grip"), ("continuous", "continuous", "binary"))
    bins = ActionBins((-0.01, -90.0, -1.0), (0.01, 90.0, 1.0), space=space)
    policy, batch = untrained(C1, bins=bins).build().eval(), random_batch()
    acted = policy.act(batch.inputs)
    batch.actions = acted + torch.tensor([0.005, -45.0, 2.0])
    np.testing.assert_allclose(action_errors(policy, batch), 0.5, rtol=1e-4)


def test_with_one_instruction_the_wrong_one_is_left_out(tmp_path: Path) -> None:
    make_official(tmp_path / "a_demo.hdf5")
    run = untrained(C1, quality="official")
    run.save(tmp_path / "run")
    save_tensors(tmp_path / "run" / WEIGHTS, kept(run.build()))
    samples = Samples(open_demonstrations(tmp_path), TINY.image_size, TINY.chunk)
    records = measure_run(tmp_path / "run", samples, np.arange(4), swaps=())
    assert {view: len(found) for view, found in records.items()} == {"true": 4, "grey_image": 4}


@pytest.mark.slow
def test_one_demonstration_is_trained_on_without_any_held_out(tmp_path: Path) -> None:
    make_official(tmp_path / "a_demo.hdf5", demos=1, length=12)
    with pytest.raises(UserError, match="no episode can be held out"):
        train_one(tmp_path, tmp_path / "run", "C1", 0, "smoke", {"steps": 1})
    train_one(tmp_path, tmp_path / "run", "C1", 0, "smoke", {"steps": 1, "held_out": 0.0})
    assert (tmp_path / "run" / WEIGHTS).exists()
