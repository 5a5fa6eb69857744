"""What a policy is, from a data set: bins, kinds of actions, state, orientation. Without LeRobot."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from la_reconvla.errors import UserError
from la_reconvla.lerobot import description
from la_reconvla.lerobot.description import Recorded, chosen, describe
from la_reconvla.robot import LIBERO_ACTIONS, LIBERO_CAMERAS
from la_reconvla.training.checkpoint import PolicyConfig

RNG = np.random.default_rng(0)
ACTIONS = np.concatenate([RNG.uniform(-1, 1, (200, 6)), RNG.choice([-1.0, 1.0], (200, 1))], 1)
STATE = RNG.normal(3, 2, (200, 8)).astype(np.float32)
NAMES = ("x", "y", "z", "roll", "pitch", "yaw", "grip")


def made(arm: str = "C4", orientation: Any = None, said: Any = (), actions=ACTIONS, state: Any = STATE, **changes: Any):
    recorded = Recorded(actions, NAMES, state, ("image", "image2"), 64, dict(said))
    return describe(arm, 1, chosen("smoke", changes), orientation, recorded)


def test_bins_are_quantiles_of_the_whole_column() -> None:
    rare = ACTIONS.copy()
    rare[0, 0] = 50.0  # one outlier of 200: quantiles do not see it, ranges do
    bins = made(actions=rare).bins
    np.testing.assert_allclose(bins.low[:6], np.quantile(rare[:, :6], 0.01, axis=0))
    np.testing.assert_allclose(bins.high[:6], np.quantile(rare[:, :6], 0.99, axis=0))
    assert (bins.low[6], bins.high[6]) == (-1.0, 1.0)
    assert bins.space.names == NAMES
    assert bins.space.kinds == ("continuous",) * 6 + ("binary",)
    assert made(actions=np.abs(ACTIONS)).bins.space.kinds[-1] == "continuous"  # a gripper that is 1 throughout


def test_the_orientation_is_what_is_said() -> None:
    mirrored = {"orientation": "mirrored"}
    assert made().inputs.orientation == "upright"
    assert made(said=mirrored).inputs.orientation == "mirrored"
    assert made(orientation="upside_down", said=mirrored).inputs.orientation == "upside_down"


def test_the_state_is_standardised_unless_it_is_liberos() -> None:
    assert made().inputs.standard is None
    mine = made(proprio="all")
    assert mine.backbone.proprio == 8
    assert mine.inputs.standard is not None
    np.testing.assert_allclose(mine.inputs.standard.mean, STATE.astype(np.float64).mean(0))
    liberos = made(said={"libero_state": True, "quality": "fast"}, proprio="all")
    assert (liberos.backbone.proprio, liberos.inputs.standard, liberos.quality) == ("all", None, "fast")
    assert liberos.bins.space == LIBERO_ACTIONS
    with pytest.raises(UserError, match="proprio 'gripper' is for LIBERO's state"):
        made(proprio="gripper")
    with pytest.raises(UserError, match="the data set has no observation"):
        made(proprio="all", state=None)


def test_changes_are_those_of_train() -> None:
    policy = made(chunk=3, wrist=True, width=64, patch=8, cameras=["image2", "image"], decoding="autoregressive")
    assert (policy.backbone.chunk, policy.backbone.wrist, policy.decoding) == (3, True, "autoregressive")
    assert policy.backbone.grid == (7, 7)
    assert policy.inputs.cameras == ("image2", "image")
    study = chosen("smoke", {"backbone": "user/name", "steps": 9})
    assert (study.backbone.source, study.train.steps) == ("user/name", 9)  # pyright: ignore
    for changes, message in (({"chunks": 3}, "named as the options"), ({"steps": 0}, "steps must be at least 1")):
        with pytest.raises(UserError, match=message):
            chosen("smoke", changes)
    with pytest.raises(UserError, match="no camera 'top'"):
        made(cameras=["top"])
    with pytest.raises(UserError, match="a second camera was asked for"):
        made(cameras=["image"], wrist=True)


@pytest.mark.parametrize(
    "arm", ["C1", "C2", "C3-1.0", "C4", "C4-input", "C4-heads", "C4-teacher", "A1", "R3", "no-image"]
)
def test_every_arm_without_boxes_is_kept_whole(arm: str) -> None:
    policy = made(arm)
    assert isinstance(policy, PolicyConfig)
    assert description.from_json(json.loads(json.dumps(description.to_json(policy)))) == policy
    assert description.arm_of(policy) == chosen("smoke", {}).arm(arm)


@pytest.mark.parametrize("arm", ["R1", "G1"])
def test_an_arm_that_is_told_of_the_target_is_refused(arm: str) -> None:
    with pytest.raises(UserError, match="a LeRobotDataset has no boxes"):
        made(arm)


def test_features_are_named_as_lerobot_names_them() -> None:
    assert description.camera_keys(LIBERO_CAMERAS) == ["observation.images.image", "observation.images.image2"]
    assert description.camera_keys(("top", "observation.image")) == ["observation.images.top", "observation.image"]
    inputs, outputs = description.features_of(made(wrist=True, proprio="all"))
    assert {key: one["shape"] for key, one in inputs.items()} == {
        "observation.images.image": [3, 64, 64],
        "observation.images.image2": [3, 64, 64],
        "observation.state": [8],
    }
    assert outputs == {"action": {"type": "ACTION", "shape": [7]}}


def test_what_describes_nothing() -> None:
    for raw in ({}, {"kind": "MAEDecoder"}, {"kind": "PolicyConfig", "condition": "C1"}):
        with pytest.raises(UserError, match="describes no policy of this version"):
            description.from_json(raw)
