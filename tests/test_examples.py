"""The examples run, and show what they say they show."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from dataclasses import make_dataclass
from pathlib import Path
from typing import Any

import huggingface_vlm
import new_arm
import numpy as np
import own_policy
import own_robot
import pytest
import torch

from la_reconvla import Reconstruction, kinds, load_policy
from la_reconvla.analysis.results import Arm
from la_reconvla.contracts import PolicyInput
from la_reconvla.data.hdf5 import open_demonstrations
from la_reconvla.errors import UserError
from la_reconvla.layout import RESULTS
from la_reconvla.method.mask import MaskContext
from la_reconvla.study.results import read_results
from la_reconvla.study.runs import open_run
from la_reconvla.training.checkpoint import CONFIG
from la_reconvla.training.loop import SCHEDULE


def test_the_loss_falls_in_a_policy_of_ones_own():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = own_policy.main(steps=12)
    assert found[-1] < 0.8 * found[0]


def test_a_model_of_transformers_gives_the_rows_of_its_own_attention():
    """Against the library's eager attention; and the order of the tokens decides whether patches know the words."""
    found = huggingface_vlm.main()
    assert (found["words on both sides"], found["image first"]) == (True, False)
    assert found["mask"].sum(1).tolist() == [4, 4]
    model, (pixels, ids, again, patches) = found["model"], found["inputs"]
    model.model.text_model.set_attn_implementation("eager")
    with torch.no_grad():
        layers = model.model(input_ids=ids, pixel_values=pixels, use_cache=False, output_attentions=True).attentions
    whole = np.stack([layer.numpy() for layer in layers[1:]])  # [l b h s s]
    np.testing.assert_allclose(found["scores"], whole[..., again, patches].mean((0, 2, 3)), rtol=1e-4)


@pytest.fixture(scope="module")
def own_backbone() -> Iterator[Any]:
    """Imported for these tests alone: every process that a test starts imports what is registered, torch included."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kinds, "REGISTERED", {})
        import own_backbone

        yield own_backbone


@pytest.fixture(scope="module")
def run(own_backbone, tmp_path_factory):
    return own_backbone.main(tmp_path_factory.mktemp("own_backbone"))


@pytest.mark.slow
def test_a_backbone_of_ones_own_comes_back_from_its_file(own_backbone, run):
    assert json.loads((run / CONFIG).read_text())["backbone"]["kind"] == "own_backbone.MyBackboneConfig"
    policy, config = load_policy(run)
    assert config.backbone == own_backbone.MyBackboneConfig()
    fresh = config.build()
    changed = [not torch.equal(a, b) for a, b in zip(policy.parameters(), fresh.parameters(), strict=True)]
    assert all(changed), "every part learns"
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    told = PolicyInput(images, ["push the red tile", "push the black one now"])
    other = PolicyInput(images, told.instructions[::-1])
    assert not torch.equal(policy.act(told), policy.act(other))


@pytest.mark.slow
def test_its_hidden_pixels_do_not_enter(run):
    backbone = load_policy(run)[0].backbone
    images = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    hidden = torch.arange(16)[None] % 3 == 0
    cover = hidden.view(1, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    one, two = (PolicyInput(each, ["push"]) for each in (images, torch.where(cover, 255 - images, images)))
    assert torch.equal(backbone(one, hidden=hidden).patches, backbone(two, hidden=hidden).patches)
    assert not torch.equal(backbone(one).patches, backbone(two).patches)


@pytest.mark.slow
def test_an_arm_of_another_kind_trains_beside_its_nearest(tmp_path, capsys):
    """Lambda falls from 1 by a quarter a step; all start alike, and see equal batches."""
    found = new_arm.main(tmp_path)
    assert list(found) == ["C4-lowest", "C1", "C2", "C4"]
    assert "a study compares C4-lowest with C1 C2 C4" in capsys.readouterr().out
    steps = {id: [line for line in lines if "loss" in line] for id, lines in found.items()}
    for id, lambdas in (("C4-lowest", (1.0, 0.75, 0.5, 0.25)), ("C4", (0.5,) * 4)):
        for line, weight in zip(steps[id], lambdas, strict=True):
            np.testing.assert_allclose(
                line["loss"], line["action_loss"] + weight * line["reconstruction_loss"], rtol=1e-5
            )
    assert len({lines[-1]["batches"] for lines in steps.values()}) == 1
    assert len({json.dumps(next(line["start"] for line in lines if "start" in line)) for lines in found.values()}) == 1
    assert Arm.of(new_arm.LOWEST).weight == 0.0
    written = json.loads((tmp_path / "C4-lowest" / SCHEDULE).read_text())["reconstruction"]
    assert (written["mask"]["kind"], written["weight"]["kind"]) == ("new_arm.LowestAttention", "new_arm.Annealed")

    newer = make_dataclass("LowestAttention", [("spread", int, 0)], bases=(new_arm.LowestAttention,), frozen=True)
    newer.__module__ = "new_arm"
    arm = Reconstruction(newer(), weight=new_arm.Annealed())
    older = kinds.to_json(new_arm.LOWEST.reconstruction)
    assert kinds.with_defaults(older, arm) == kinds.to_json(arm), "a field with a default makes no run another one"


def test_the_lowest_patches_are_those_of_numpy():
    scores = torch.rand(3, 16)
    mask = new_arm.LowestAttention()(MaskContext((3, 16), torch.Generator(), scores))
    lowest = np.argsort(scores.numpy(), axis=1)[:, :4]
    assert all(set(np.flatnonzero(row)) == set(low) for row, low in zip(mask.numpy(), lowest, strict=True))


@pytest.mark.slow
def test_ones_own_robot_is_imported_trained_on_and_judged(tmp_path: Path):
    own_robot.main(tmp_path)
    opened = open_demonstrations(tmp_path / "demos")
    assert (len(opened.episodes), len(opened.space), opened.state_width) == (6, 7, 7)
    policy, config = load_policy(tmp_path / "run")
    assert config.backbone.proprio == 7
    assert config.inputs.fit == "pad"
    assert config.inputs.standard is not None
    assert json.loads((tmp_path / "run" / SCHEDULE).read_text())["held_out"] == {"share": 0.0, "episodes": []}
    size = config.backbone.image_size
    pictures = torch.zeros(1, 3, size, size, dtype=torch.uint8)
    acted = policy.act(PolicyInput(pictures, ["reach for the red block"], pictures, torch.zeros(1, 7)))
    assert acted.shape == (1, config.backbone.chunk, 7)
    assert set(acted[..., 6].unique().tolist()) <= {-1.0, 1.0}
    with pytest.raises(UserError, match="another robot"):
        open_run(str(tmp_path / "run"), "true", "cpu")

    found = read_results(tmp_path / "study" / RESULTS)
    named = {(c.a, c.b, c.metric) for c in found.comparisons}
    assert {("C4", "C2", "action_error"), ("C4", "C1", "action_error")} <= named
    assert {("C4", floor, "action_error") for floor in ("grey_image", "wrong_instruction", "no_image")} <= named
    assert all(c.tsr is None for c in found.conditions)
    assert any("no simulator" in limit for limit in found.study.limits)
    assert "no simulator" in (tmp_path / "study/report.html").read_text(encoding="utf-8")
    assert [leak.what for leak in found.leakage] == ["scenes of held-out frames"]
