"""What a policy is, from a data set: bins, kinds of actions, state, orientation. Without LeRobot."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from la_reconvla import kinds
from la_reconvla.data.hdf5 import open_demonstrations
from la_reconvla.errors import UserError
from la_reconvla.lerobot import description
from la_reconvla.lerobot.description import Recorded, chosen, describe, read_recorded
from la_reconvla.robot import LIBERO_ACTIONS, LIBERO_CAMERAS, ActionSpace
from la_reconvla.serving.lerobot_folder import policy_of
from la_reconvla.training.checkpoint import PolicyConfig

RNG = np.random.default_rng(0)
ACTIONS = np.concatenate([RNG.uniform(-1, 1, (200, 6)), RNG.choice([-1.0, 1.0], (200, 1))], 1)
STATE = RNG.normal(3, 2, (200, 8)).astype(np.float32)
SPACE = ActionSpace(("x", "y", "z", "roll", "pitch", "yaw", "grip"), ("continuous",) * 6 + ("binary",))
KEY = "observation.images.image"
GOLDEN = Path(__file__).parents[1] / "data/lerobot/images"


def made(arm: str = "C4", orientation: Any = None, said: Any = (), actions=ACTIONS, state: Any = STATE, **changes: Any):
    recorded = Recorded(actions, SPACE, state, {"image": 64, "image2": 48}, dict(said))
    return describe(arm, 1, chosen("smoke", changes), orientation, recorded)


def test_bins_are_quantiles_of_the_whole_column() -> None:
    rare = ACTIONS.copy()
    rare[0, 0] = 50.0  # one outlier of 200: quantiles do not see it, ranges do
    bins = made(actions=rare).bins
    np.testing.assert_allclose(bins.low[:6], np.quantile(rare[:, :6], 0.01, axis=0))
    np.testing.assert_allclose(bins.high[:6], np.quantile(rare[:, :6], 0.99, axis=0))
    assert (bins.low[6], bins.high[6]) == (-1.0, 1.0)
    assert bins.space == SPACE


# What info.json says of the features, how the last action is changed, our file, and the kind that must come out.
DATASETS: dict[str, tuple[Callable[[dict], Any], Callable[[np.ndarray], np.ndarray], dict, str]] = {
    "as LeRobot wrote it": (lambda said: None, lambda last: last, {}, "binary"),
    "names below the robot's part": (
        lambda said: said["action"].update(names={"motors": list("abcdefg")}),
        lambda last: last,
        {},
        "binary",
    ),
    "a gripper that stays": (lambda said: None, np.ones_like, {}, "continuous"),
    "and is said to be binary": (
        lambda said: None,
        np.ones_like,
        {"action_kinds": ["continuous"] * 6 + ["binary"]},
        "binary",
    ),
    "said to be continuous": (lambda said: None, lambda last: last, {"action_kinds": ["continuous"] * 7}, "continuous"),
    "a depth map and one camera in the old name": (
        lambda said: said.update(
            {
                "observation.images.depth": {**said[f"{KEY}2"], "info": {"is_depth_map": True}},
                "observation.image": said.pop(f"{KEY}2"),
            }
        ),
        lambda last: last,
        {},
        "binary",
    ),
}


@pytest.mark.parametrize("case", DATASETS)
def test_a_dataset_is_read_as_everywhere_in_this_package(tmp_path: Path, case: str) -> None:
    about, gripper, ours, kind = DATASETS[case]
    root = changed(shutil.copytree(GOLDEN, tmp_path / "set"), about, gripper, ours)
    recorded, opened = read_recorded(root), open_demonstrations(root)
    assert recorded.space == opened.space
    assert recorded.space.kinds == ("continuous",) * 6 + (kind,)
    assert tuple(recorded.cameras) == opened.cameras
    assert set(recorded.cameras.values()) == {opened.image_size}
    np.testing.assert_array_equal(recorded.actions, np.concatenate([e.actions for e in opened.episodes]))


def test_the_colours_of_a_picture_may_come_first(tmp_path: Path) -> None:
    def about(said: dict) -> None:
        said[KEY].update(shape=[3, 64, 48], names=["channels", "height", "width"])

    root = changed(shutil.copytree(GOLDEN, tmp_path / "set"), about)
    assert read_recorded(root).cameras == {"image": 64, "image2": 64}


def test_two_other_values_stay_in_the_units_of_the_data(tmp_path: Path) -> None:
    root = changed(shutil.copytree(GOLDEN, tmp_path / "set"), gripper=lambda last: (last > 0).astype(last.dtype))
    recorded = read_recorded(root)
    assert recorded.space.kinds[-1] == "continuous"  # here alone: LeRobot's batches hold 0 and 1
    assert set(np.unique(recorded.actions[:, -1])) == {0.0, 1.0}
    assert open_demonstrations(root).space.kinds[-1] == "binary"


def changed(
    root: Path, about: Callable[[dict], Any] = bool, gripper: Callable[[Any], Any] = np.array, ours: dict | None = None
) -> Path:
    """A dataset whose features, last action or file of ours is another."""
    info = json.loads((root / "meta/info.json").read_text(encoding="utf-8"))
    about(info["features"])
    (root / "meta/info.json").write_text(json.dumps(info), encoding="utf-8")
    (root / "meta/la_reconvla.json").write_text(json.dumps(ours or {}), encoding="utf-8")
    path = root / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    actions = np.stack(table["action"].to_numpy())
    actions[:, -1] = gripper(np.where(actions[:, -1] > np.median(actions[:, -1]), 1, -1).astype(np.float32))
    column = pa.array(list(actions), pa.list_(pa.float32()))
    pq.write_table(table.set_column(table.column_names.index("action"), "action", column), path)
    return root


def test_pictures_that_are_repeated_between_steps_are_refused() -> None:
    assert made(said={"frame_stride": 1}).image_size == 64
    with pytest.raises(UserError, match=r"frame_stride is 4 in meta/la_reconvla.json.* --frame-stride 1"):
        made(said={"frame_stride": 4})


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
    assert (policy.inputs.cameras, policy.image_size) == (("image2", "image"), 48)
    drawn = made(decoding="flow")
    np.testing.assert_allclose(drawn.bins.low[:-1], ACTIONS[:, :-1].min(0), atol=1e-6)
    with pytest.raises(UserError, match="ema is for"):
        made(ema=True)
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
    "arm", ["C1", "C2", "C3-1.0", "C4", "C4-input", "C4-localised", "C4-teacher", "A1", "R3", "no-image"]
)
def test_every_arm_without_boxes_is_kept_whole(arm: str) -> None:
    policy = made(arm)
    assert isinstance(policy, PolicyConfig)
    assert policy_of(json.loads(json.dumps(kinds.to_json(policy)))) == policy
    assert description.arm_of(policy) == chosen("smoke", {}).arm(arm)


@pytest.mark.parametrize("arm", ["R1", "G1"])
def test_an_arm_that_is_told_of_the_target_is_refused(arm: str) -> None:
    with pytest.raises(UserError, match="a LeRobotDataset has no boxes"):
        made(arm)


def test_features_are_named_as_lerobot_names_them() -> None:
    assert description.camera_keys(LIBERO_CAMERAS) == ["observation.images.image", "observation.images.image2"]
    assert description.camera_keys(("top", "observation.image")) == ["observation.images.top", "observation.image"]
    theirs = ["observation.image", "observation.images.agentview", "observation.images.eye_in_hand"]
    assert description.camera_keys(("image",), theirs) == theirs[:1]
    assert description.camera_keys(LIBERO_CAMERAS, theirs) == theirs[1:]
    inputs, outputs = description.features_of(made(wrist=True, proprio="all"))
    assert {key: one["shape"] for key, one in inputs.items()} == {
        "observation.images.image": [3, 64, 64],
        "observation.images.image2": [3, 64, 64],
        "observation.state": [8],
    }
    assert outputs == {"action": {"type": "ACTION", "shape": [7]}}


def test_what_describes_nothing() -> None:
    for raw in (None, {}, {"kind": "MAEDecoder"}, {"kind": "PolicyConfig", "condition": "C1"}):
        with pytest.raises(UserError, match="describes no policy of this version"):
            policy_of(raw)
