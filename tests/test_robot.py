"""Other robots than LIBERO's: actions of any number and kind."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from test_hdf5 import make_official

from helpers import BINS, HEAD, TINY, random_batch, untrained
from la_reconvla import kinds
from la_reconvla.conditions import C1, C4
from la_reconvla.data.hdf5 import open_demonstrations
from la_reconvla.data.samples import Samples, pad_actions
from la_reconvla.errors import UserError
from la_reconvla.method.actions import ActionBins
from la_reconvla.method.objective import losses
from la_reconvla.method.variants.autoregressive import DECODINGS
from la_reconvla.randomness import generator
from la_reconvla.robot import LIBERO_ACTIONS, ActionSpace
from la_reconvla.training.acting import Actor
from la_reconvla.training.checkpoint import CONFIG, PolicyConfig, load_policy
from la_reconvla.training.start_weights import StartWeights, bins_of

JOINTS = ActionSpace(tuple(f"joint {i}" for i in range(6)), ("continuous",) * 6)
HAND = ActionSpace(("left", "lamp", "right"), ("continuous", "binary", "continuous"))  # not the last one


def bins_over(space: ActionSpace, **options: Any) -> ActionBins:
    return ActionBins.from_quantiles(np.full(len(space), -3.0), np.full(len(space), 5.0), space, **options)


def other_robot(path: Path, actions: np.ndarray, **attributes: Any) -> None:
    """LIBERO's file of two episodes with other actions in it."""
    make_official(path)
    with h5py.File(path, "a") as file:
        file["data"].attrs.update({name: json.dumps(value) for name, value in attributes.items()})
        for demo in ("demo_0", "demo_1"):
            group = file["data"][demo]
            del group["actions"]
            group["actions"] = actions[: len(group["states"])]


# ---------------------------------------------------------------- bins and heads


def test_binary_dimensions_are_hard_wherever_they_stand() -> None:
    bins = bins_over(HAND)
    assert (bins.low, bins.high) == ((-3.0, -1.0, -3.0), (5.0, 1.0, 5.0))
    actions = torch.tensor([[[1.0, 1.0, -3.0], [4.0, -1.0, 2.0]]])
    touched, shares = bins.window(actions)
    dense = torch.zeros(1, 2, 3, 256).scatter_add(-1, touched, shares)
    assert dense[0, :, 1].argmax(-1).tolist() == [255, 0]
    assert dense[0, :, 1].max(-1).values.tolist() == [1, 1]
    assert dense[0, :, (0, 2)].max() < 0.2  # soft
    back = bins.decide(dense.clamp_min(1e-12).log())
    assert back[0, :, 1].tolist() == [1, -1]
    np.testing.assert_allclose(back[0, :, 0], actions[0, :, 0], atol=8 / 256)


def test_without_a_binary_dimension_no_number_is_rounded_to_one() -> None:
    decided = bins_over(JOINTS).decide(torch.randn(20, 8, 6, 256))
    assert decided.shape == (20, 8, 6)
    assert len(decided.unique()) > 900


@pytest.mark.slow
@pytest.mark.parametrize("decoding", list(DECODINGS))
@pytest.mark.parametrize("space", [JOINTS, HAND], ids=["six", "three"])
def test_a_policy_of_another_robot_learns_acts_and_is_read_again(space: Any, decoding: Any, tmp_path: Path) -> None:
    run = untrained(C4, bins=bins_over(space), decoding=decoding)
    policy = replace(run, reconstruction_head=HEAD).build()
    batch = random_batch()
    batch.actions = torch.rand(3, TINY.chunk, len(space), generator=torch.Generator().manual_seed(0)) * 8 - 3
    optimizer, found = torch.optim.Adam(policy.parameters(), 1e-2), []
    for _ in range(12):
        optimizer.zero_grad()
        found.append(losses(policy, batch, C4.reconstruction, generator(0, "mask", 0)))
        found[-1].total.backward()
        optimizer.step()
    assert found[-1].action < 0.8 * found[0].action
    acted = policy.eval().act(batch.inputs)
    assert acted.shape == (3, TINY.chunk, len(space))
    actor = Actor(policy)
    actor(batch.inputs)
    assert actor.records() == 1
    torch.testing.assert_close(actor(batch.inputs), acted, rtol=0, atol=1e-4)
    run.save(tmp_path)
    assert PolicyConfig.load(tmp_path) == run


@pytest.mark.parametrize(
    ("names", "given"), [((), ()), (("a", "a"), ("binary",) * 2), (("a",), ()), (("a",), ("round",))]
)
def test_a_space_that_is_none_is_refused(names: Any, given: Any) -> None:
    with pytest.raises(UserError):
        ActionSpace(names, given)


def test_a_configuration_of_before_means_liberos_actions(tmp_path: Path) -> None:
    run = untrained(C1)
    run.save(tmp_path)
    raw = json.loads((tmp_path / CONFIG).read_text())
    del raw["bins"]["space"]
    (tmp_path / CONFIG).write_text(json.dumps(raw))
    assert PolicyConfig.load(tmp_path) == run
    assert PolicyConfig.load(tmp_path).bins.space == LIBERO_ACTIONS
    run.save(tmp_path)  # the same run still: it goes on
    with pytest.raises(UserError):
        replace(run, bins=bins_over(JOINTS)).save(tmp_path)


# ---------------------------------------------------------------- demonstrations


def test_demonstrations_name_their_actions(tmp_path: Path) -> None:
    actions = np.random.default_rng(0).normal(0, 40, (60, 6))  # degrees, say
    other_robot(tmp_path / "a_demo.hdf5", actions, action_names=JOINTS.names, action_kinds=JOINTS.kinds)
    opened = open_demonstrations(tmp_path)
    assert opened.space == JOINTS
    samples = Samples(opened, 8, 3)
    batch = samples.batch(np.arange(2))
    np.testing.assert_allclose(batch.actions[0], actions[:3], rtol=1e-6)
    bins = bins_of(None, samples)
    whole = np.concatenate([e.actions for e in opened.episodes]).astype(np.float64)
    np.testing.assert_allclose(bins.high, np.quantile(whole, 0.99, axis=0))
    assert bins.space == JOINTS


def test_the_action_space_is_part_of_the_content(tmp_path: Path) -> None:
    actions = np.zeros((60, 7))
    hashes = []
    for name, attributes in (("libero", {}), ("other", {"action_names": list("abcdefg")})):
        (tmp_path / name).mkdir()
        other_robot(tmp_path / name / "a_demo.hdf5", actions, **attributes)
        hashes.append(open_demonstrations(tmp_path / name).hash)
    assert hashes[0] != hashes[1]


@pytest.mark.parametrize(
    ("actions", "attributes", "message"),
    [
        (np.zeros((60, 6)), {}, "name the actions of another robot"),
        (np.full((60, 7), 3.0), {}, "outside"),
        (np.zeros((60, 6)), {"action_names": ["a"]}, r"shape \(T, 1\)"),
        (np.zeros((60, 1)), {"action_names": "a"}, "no list of 'action_names'"),
        (np.zeros((60, 1)), {"action_names": ["a"], "action_kinds": ["round"]}, "unknown kind of action 'round'"),
        (np.full((60, 1), 0.5), {"action_names": ["a"], "action_kinds": ["binary"]}, "not -1 or 1"),
    ],
)
def test_actions_that_are_not_what_the_file_says(tmp_path: Path, actions: Any, attributes: Any, message: str) -> None:
    other_robot(tmp_path / "a_demo.hdf5", actions, **attributes)
    with pytest.raises(UserError, match=message):
        open_demonstrations(tmp_path)


def test_robots_are_not_mixed(tmp_path: Path) -> None:
    make_official(tmp_path / "a_demo.hdf5")
    other_robot(tmp_path / "b_demo.hdf5", np.zeros((60, 6)), action_names=JOINTS.names)
    with pytest.raises(UserError, match="the space differs"):
        open_demonstrations(tmp_path)


def test_after_the_end_binary_dimensions_stay() -> None:
    padded = pad_actions(np.array([[3.0, -1.0, 2.0]], dtype=np.float32), 3, HAND)
    np.testing.assert_array_equal(padded, [[3, -1, 2], [0, -1, 0], [0, -1, 0]])


# ---------------------------------------------------------------- weights that have acted on another robot


def test_weights_that_acted_on_libero_give_another_robot_their_backbone_only() -> None:
    start = StartWeights.read("base")
    config = untrained(C1, backbone=replace(start.config, chunk=2), bins=bins_over(JOINTS))
    policy, fresh = config.start(None), replace(config, backbone=replace(config.backbone, weights=None)).build()
    assert torch.equal(policy.action_head.logits.weight, fresh.action_head.logits.weight)
    name = next(name for name in start.tensors if name.startswith("model.") and name.endswith("weight"))
    assert torch.equal(policy.backbone.state_dict()[name], start.tensors[name])


def test_bins_say_how_many_edges_they_need() -> None:
    with pytest.raises(ValueError, match="need 6"):
        ActionBins((-1.0,) * 7, (1.0,) * 7, space=JOINTS)
    assert kinds.from_json(kinds.to_json(BINS), (ActionBins, ActionSpace)) == BINS


def test_a_finished_run_of_another_robot_loads(tmp_path: Path) -> None:
    from la_reconvla.training.checkpoint import WEIGHTS, kept
    from la_reconvla.training.tensors import save_tensors

    run = untrained(C1, bins=bins_over(JOINTS))
    run.save(tmp_path)
    save_tensors(tmp_path / WEIGHTS, kept(run.build()))
    policy, config = load_policy(tmp_path)
    assert config.bins.space == JOINTS
    assert policy.act(random_batch().inputs).shape == (3, TINY.chunk, 6)
