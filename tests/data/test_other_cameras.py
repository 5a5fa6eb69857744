"""Cameras of any name, size and orientation, and a robot's state of any width."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image
from test_hdf5 import make_official

from helpers import TINY, untrained
from la_reconvla.conditions import C1
from la_reconvla.contracts import Observation
from la_reconvla.data.boxes import box_masks, in_square
from la_reconvla.data.hdf5 import open_demonstrations
from la_reconvla.data.samples import Samples, resize
from la_reconvla.errors import UserError
from la_reconvla.robot import Fit, Inputs, Standard
from la_reconvla.study.cells import fitted, say_changes
from la_reconvla.study.presets import preset
from la_reconvla.study.runs import require_libero
from la_reconvla.training.checkpoint import PolicyConfig
from la_reconvla.training.trained_policy import Trained, TrainedPolicy

SMOKE = preset("smoke")
LENGTH = 5


def own(path: Path, orientation: str = "upright", state: int | None = 11, demos: int = 2, **sizes: Any) -> Path:
    """A file of another robot, `sizes` (rows, columns) of its cameras by name. Returns its folder."""
    path.mkdir()
    make_official(path / "a_demo.hdf5", demos, LENGTH)
    rng = np.random.default_rng(0)
    with h5py.File(path / "a_demo.hdf5", "a") as file:
        names = list(sizes)
        file["data"].attrs.update({"cameras": json.dumps(names), "orientation": orientation, "rate": 10.0})
        for number in range(demos):
            group = file[f"data/demo_{number}"]
            del group["obs"]
            for name, size in sizes.items():
                group[f"obs/{name}_rgb"] = rng.integers(0, 256, (LENGTH, *size, 3), dtype=np.uint8)
            if state is not None:
                group["obs/state"] = rng.normal(5, 3, (LENGTH, state))
                group["obs/state"][:, 0] = 7.0  # one that never changes
    return path


def other_state(data: Any, states: np.ndarray) -> None:
    del data["demo_1/obs/state"]
    data["demo_1/obs/state"] = states


def stored(folder: Path, key: str) -> np.ndarray:
    with h5py.File(folder / "a_demo.hdf5") as file:
        return np.concatenate([file[f"data/demo_{number}/{key}"][()] for number in range(2)])


# ---------------------------------------------------------------- pictures


@pytest.mark.parametrize("orientation", ["upright", "mirrored", "upside_down"])
def test_pictures_of_another_robot_are_not_turned(tmp_path: Path, orientation: Any) -> None:
    folder = own(tmp_path / "own", orientation, front=(12, 12), hand=(12, 12))
    samples = Samples(open_demonstrations(folder), 12, 1, wrist=True)
    assert samples.inputs == Inputs(("front", "hand"), orientation)
    batch = samples.batch(np.arange(2 * LENGTH))
    np.testing.assert_array_equal(batch.images.permute(0, 2, 3, 1), stored(folder, "obs/front_rgb"))
    assert batch.wrist is not None
    np.testing.assert_array_equal(batch.wrist.permute(0, 2, 3, 1), stored(folder, "obs/hand_rgb"))


def test_any_two_cameras_are_chosen_by_name(tmp_path: Path) -> None:
    folder = own(tmp_path / "own", front=(8, 8), left=(9, 9), right=(10, 10))
    opened = open_demonstrations(folder)
    assert opened.cameras == ("front", "left", "right")
    samples = Samples(opened, 10, 1, wrist=True, inputs=Inputs(("right", "front"), "upright"))
    np.testing.assert_array_equal(
        samples.batch(np.arange(1)).images[0].permute(1, 2, 0), stored(folder, "obs/right_rgb")[0]
    )
    config = fitted(replace(SMOKE, cameras=("right", "front")), opened)
    assert config.backbone.wrist
    with pytest.raises(UserError, match="unknown camera in these demonstrations 'frnt': did you mean front"):
        Samples(opened, 8, 1, inputs=Inputs(("frnt",), "upright"))
    with pytest.raises(UserError, match="name two with --cameras"):
        Samples(opened, 8, 1, wrist=True, inputs=Inputs(("front",), "upright"))
    with pytest.raises(UserError, match="a main camera and one beside it"):
        fitted(replace(SMOKE, cameras=("front", "left", "right")), opened)
    with pytest.raises(UserError, match="unknown camera in these demonstrations 'frnt': did you mean front"):
        fitted(replace(SMOKE, cameras=("frnt",)), opened)


@pytest.mark.parametrize("fit", ["squeeze", "pad"])
@pytest.mark.parametrize("shape", [(60, 120), (120, 60), (120, 120)])
def test_boxes_are_where_the_thing_is_in_the_square(shape: tuple[int, int], fit: Fit) -> None:
    image = np.zeros((*shape, 3), dtype=np.uint8)
    rows, columns = shape
    image[rows // 4 : rows // 2, columns // 4 : 3 * columns // 4] = 255
    square = resize(image[None], 120, fit)[0, :, :, 0] > 127
    (found,) = box_masks(in_square(np.float32([[0.25, 0.25, 0.75, 0.5]]), *shape, fit), 120)
    np.testing.assert_array_equal(found, square)


@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (7, 10)])
def test_what_is_not_square_is_squeezed_or_padded(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(1, 256, (*shape, 3), dtype=np.uint8)
    squeezed = np.asarray(Image.fromarray(image).resize((8, 8), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(resize(image[None], 8)[0], squeezed)
    padded = resize(image[None], 10, "pad")[0]
    shown = np.argwhere(padded.sum(2) > 0)
    top, left = shown.min(0)
    np.testing.assert_array_equal(padded[top : top + shape[0], left : left + shape[1]], image)
    assert padded.sum() == image.sum()  # the rest is black
    assert abs(2 * top + shape[0] - 10) <= 1  # in the middle
    assert abs(2 * left + shape[1] - 10) <= 1


def test_an_orientation_refuses_another(tmp_path: Path) -> None:
    opened = open_demonstrations(own(tmp_path / "own", "upside_down", front=(8, 8)))
    with pytest.raises(UserError, match=r"takes pictures that are upright, .* are upside_down: turn them"):
        Samples(opened, 8, 1, inputs=Inputs(("front",), "upright"))
    own(tmp_path / "b", "upright", front=(8, 8))
    (tmp_path / "b/a_demo.hdf5").rename(tmp_path / "own/b_demo.hdf5")
    with pytest.raises(UserError, match="the orientation differs"):
        open_demonstrations(tmp_path / "own")


def test_small_pictures_are_named_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opened = open_demonstrations(own(tmp_path / "own", front=(60, 20), hand=(9, 9)))
    say_changes(SMOKE, opened)
    said = " ".join(capsys.readouterr().err.split())
    assert "56 pixels" in said
    assert "front has 20" in said
    assert "hand" not in said  # this policy does not see it
    say_changes(SMOKE, open_demonstrations(own(tmp_path / "large", front=(56, 99))))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d.attrs.update({"orientation": "uprigt"}), "unknown orientation 'uprigt': did you mean upright"),
        (lambda d: d.attrs.update({"cameras": "[]"}), "'cameras' is empty"),
        (lambda d: d.attrs.update({"cameras": '["rear"]'}), "no obs/rear_rgb"),
        (lambda d: d.attrs.update({"cameras": "front"}), "no list of 'cameras'"),
        (
            lambda d: d["demo_1/obs"].pop("state") and d["demo_1"].update({"obs/state": np.zeros((5, 2), int)}),
            "not floats",
        ),
        (lambda d: d["demo_1/obs"].pop("state") and d["demo_1"].update({"obs/state": np.zeros((5, 2))}), "state_width"),
    ],
)
def test_files_of_another_robot_that_are_wrong(tmp_path: Path, edit: Any, message: str) -> None:
    folder = own(tmp_path / "own", front=(8, 8))
    with h5py.File(folder / "a_demo.hdf5", "a") as file:
        edit(file["data"])
    with pytest.raises(UserError, match=message):
        open_demonstrations(folder)


# ---------------------------------------------------------------- state


def test_a_state_of_any_width_is_standardised_by_the_training_data(tmp_path: Path) -> None:
    folder = own(tmp_path / "own", front=(8, 8))
    opened = open_demonstrations(folder)
    assert fitted(replace(SMOKE, backbone=replace(SMOKE.backbone, proprio="all")), opened).backbone.proprio == 11
    samples = Samples(opened, 8, 1, proprio=11)
    given = samples.batch(np.arange(2 * LENGTH)).proprio
    assert given is not None
    states = stored(folder, "obs/state")
    np.testing.assert_allclose(given[:, 1:], ((states - states.mean(0))[:, 1:] / states[:, 1:].std(0)), atol=1e-5)
    assert given[:, 0].abs().max() == 0
    shifted = Samples(
        opened, 8, 1, proprio=11, inputs=Inputs(("front",), "upright", "squeeze", Standard((1.0,) * 11, (2.0,) * 11))
    )
    np.testing.assert_allclose(shifted.batch(np.arange(1)).proprio, (states[:1] - 1) / 2, rtol=1e-6)


def test_liberos_state_stays_as_it_is(tmp_path: Path) -> None:
    make_official(tmp_path / "a_demo.hdf5")
    opened = open_demonstrations(tmp_path)
    config = replace(SMOKE, backbone=replace(SMOKE.backbone, proprio="all"))
    assert fitted(config, opened) is config
    samples = Samples(opened, 16, 1, proprio="all")
    assert samples.inputs == Inputs()
    np.testing.assert_array_equal(samples.batch(np.arange(1)).proprio, opened.episodes[0].proprio()[:1])


def test_a_state_that_is_not_there_is_refused(tmp_path: Path) -> None:
    opened = open_demonstrations(own(tmp_path / "own", front=(8, 8)))
    with pytest.raises(UserError, match="take --proprio all or none"):
        fitted(replace(SMOKE, backbone=replace(SMOKE.backbone, proprio="gripper")), opened)
    for kind in ("all", 7):
        with pytest.raises(UserError, match="in these demonstrations is 11 numbers"):
            Samples(opened, 8, 1, proprio=kind)
    without = open_demonstrations(own(tmp_path / "without", state=None, front=(8, 8)))
    with pytest.raises(UserError, match="no 'obs/ee_states'"):
        Samples(without, 8, 1, proprio="all")


# ---------------------------------------------------------------- the policy


def test_a_policy_acts_on_what_it_was_trained_on(tmp_path: Path) -> None:
    folder = own(tmp_path / "own", front=(20, 30), hand=(40, 40))
    opened = open_demonstrations(folder)
    backbone = replace(TINY, proprio=11, wrist=True)
    samples = Samples(
        opened, TINY.image_size, 2, proprio=11, wrist=True, inputs=Inputs(("front", "hand"), "upright", "pad")
    )
    config = PolicyConfig.trained_on(C1, samples, seed=0, backbone=backbone)
    config.save(tmp_path / "run")
    assert PolicyConfig.load(tmp_path / "run") == config
    actor = TrainedPolicy(config.build().eval(), config, Trained(tmp_path / "run"))
    actor._instruction = opened.episodes[0].instruction
    front, hand, state = (stored(folder, f"obs/{key}")[0] for key in ("front_rgb", "hand_rgb", "state"))
    found = actor.act(Observation(front, actor._instruction, hand, state))
    expected = actor.policy.act(samples.batch(np.arange(1)).inputs)[0]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_policy_of_another_robot_is_not_rolled_out_in_libero() -> None:
    require_libero("run", untrained(C1))
    with pytest.raises(UserError, match="the toy of the preset known-answer"):
        require_libero("run", replace(untrained(C1), train_starts=("toy/0/wide/train/3",)))
    for inputs in (Inputs(("front",)), Inputs(orientation="upright")):
        with pytest.raises(UserError, match=r"another robot .* --offline --demonstrations"):
            require_libero("run", untrained(C1, inputs=inputs))
