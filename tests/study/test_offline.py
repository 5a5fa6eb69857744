"""A study of one's own demonstrations, in which nothing is rolled out: what it refuses, and how it measures."""

from __future__ import annotations

import json
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
from la_reconvla.study.parts import boxes_beside, part_masks
from la_reconvla.study.presets import preset
from la_reconvla.study.train_cells import train_one
from la_reconvla.training.checkpoint import WEIGHTS, kept, load_policy
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
    np.testing.assert_allclose(action_errors(policy, batch, [torch.Generator()] * 3), 0.5, rtol=1e-4)


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


def test_boxes_of_another_program_locate_the_target(tmp_path: Path) -> None:
    """Overlap and hiding are measured against boxes as against maps that fill the same boxes."""
    make_official(tmp_path / "a_demo.hdf5")
    opened = open_demonstrations(tmp_path)
    box = [0.25, 0.5, 0.5, 0.75]
    lines = [
        {"episode": e.name, "step": int(step), "box": None if step == 0 else box}
        for e in opened.episodes
        for step in e.frame_steps
    ]
    (tmp_path / "boxes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    boxes = boxes_beside(opened, str(tmp_path / "boxes.jsonl"))
    run = untrained(C1, quality="official")
    run.save(tmp_path / "run")
    save_tensors(tmp_path / "run" / WEIGHTS, kept(run.build()))
    samples = Samples(opened, TINY.image_size, TINY.chunk)
    masks = part_masks(samples, np.arange(4), boxes)
    size = TINY.image_size
    expected = np.zeros((size, size), bool)
    expected[size // 2 : 3 * size // 4, size // 4 : size // 2] = True
    for number, mask in enumerate(masks):
        shown = samples.origin(number)[1] != 0
        assert (mask[0] == (expected & shown)).all()
        assert not mask[1:].any()
    found = measure_run(tmp_path / "run", samples, np.arange(4), swaps=(), boxes=boxes)["true"]
    policy, _ = load_policy(tmp_path / "run")
    maps = policy.look(samples.batch(np.arange(4)).inputs).detach().numpy()
    rows, columns = TINY.grid
    patch = size // rows
    for record, one, mask in zip(found, maps, masks, strict=True):
        row, column = divmod(int(one.argmax()), columns)
        hit = mask[0, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch].any()
        assert record.phase is None
        assert record.mean_map is not None
        assert record.mean_map.target.visible == mask[0].any()
        if mask[0].any():
            assert record.mean_map.target.pointing == hit
            assert record.hidden["target"].shift is not None
        assert record.hidden["destination"].shift is None
    (tmp_path / "boxes.jsonl").write_text(json.dumps(lines[0]) + "\n")
    with pytest.raises(UserError, match="has no line of"):
        boxes_beside(opened, str(tmp_path / "boxes.jsonl"))
