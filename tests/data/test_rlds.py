"""Datasets in RLDS are read as demonstrations. `rlds/` holds two of TensorFlow Datasets, and what that read of them.

What its pictures show is a formula, so that they can be known without reading them; of some the file beside has what
TensorFlow decoded.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reliability_rlds import episode, example, framed, png, write_dataset

from la_reconvla import cli
from la_reconvla.data.converting import convert
from la_reconvla.data.hdf5 import open_demonstrations
from la_reconvla.data.rlds_layout import BRIDGE, OURS
from la_reconvla.data.rlds_steps import Steps, binarised, kept, relabelled
from la_reconvla.errors import UserError
from la_reconvla.robot import LIBERO_ACTIONS

GOLDEN = Path(__file__).parent / "rlds"
SIZE = 32
RAW = {"drop_first_no_op": False, "binarise_gripper": False, "relabel_from_states": False}
UNCHANGED = {**RAW, "action_kinds": ["continuous"] * 7}
CAMERAS = {"image_0": 8, "image_3": 8}


def shown(number: int, steps: int, camera: int) -> np.ndarray:
    """What a camera saw in the episode of this number."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    pictures = [
        np.stack([columns * 4 + step * 6, rows * 4 + number * 20, rows * 2 + columns * 2 + camera * 30], axis=-1)
        for step in range(steps)
    ]
    return np.stack(pictures).clip(0, 255).astype(np.uint8)


def expected(name: str) -> list[dict[str, np.ndarray]]:
    """What TensorFlow Datasets reads, by episode."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        count = 1 + max(int(key.split("/")[0]) for key in file)
        return [{key.split("/")[1]: file[key] for key in file if key.startswith(f"{n}/")} for n in range(count)]


@pytest.fixture
def bridge(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / "bridge_orig", tmp_path / "bridge_orig")) / "1.0.0"


def say(folder: Path, **fields: Any) -> Path:
    (folder / OURS).write_text(json.dumps(fields))
    return folder


def made(folder: Path, count: int = 2, length: int = 5, name: str = "bridge_orig", **features: Any) -> Path:
    """A dataset of one file, with other features in its last episode."""
    episodes = [episode(number, length, f"do {number % 2}", CAMERAS) for number in range(count)]
    episodes[-1] |= {key.replace("__", "/"): value for key, value in features.items()}
    write_dataset(folder, name, [episodes], CAMERAS)
    return folder


# ---------------------------------------------------------------- what TensorFlow Datasets wrote


def test_numbers_and_words_are_those_that_tensorflow_reads(bridge: Path) -> None:
    opened, told = open_demonstrations(say(bridge, **UNCHANGED)), expected("bridge_orig")
    assert [e.demo for e in opened.episodes] == ["episode_000001", "episode_000002", "episode_000003"]
    assert str(told[0]["words"]) == ""  # left out
    assert opened.notes[1] == "bridge_orig: 1 of 4 episodes have no instruction and are left out"
    for one, read in zip(told[1:], opened.episodes, strict=True):
        np.testing.assert_array_equal(read.actions, one["action"])
        np.testing.assert_array_equal(read.proprio(), one["state"])
        assert read.instruction == str(one["words"])
        for camera in ("image_0", "image_3"):  # JPEG: two decoders differ in the colours of edges
            assert np.abs(read.pictures(camera)[1].astype(int) - one[camera]).max() <= 4
        assert read.picture_size("image_1") == (SIZE, SIZE)
    assert (opened.orientation, opened.episodes[0].rate) == ("upright", 5.0)
    assert opened.cameras == ("image_0", "image_1", "image_2", "image_3")  # and no depth


def test_liberos_data_are_liberos() -> None:
    opened, told = open_demonstrations(GOLDEN / "libero_goal_no_noops/1.0.0"), expected("libero_goal_no_noops")
    assert (opened.space, opened.orientation, opened.state_width) == (LIBERO_ACTIONS, "mirrored", None)
    assert (opened.cameras, opened.notes) == (("image", "wrist_image"), ())
    for one, read in zip(told, opened.episodes, strict=True):
        np.testing.assert_array_equal(read.actions, one["action"])
        np.testing.assert_array_equal(read.proprio(), one["state"])
        np.testing.assert_array_equal(read.fingers(), one["state"][:, 6:])
        number = next(n for n in range(4) if len(read.actions) == 5 + n)  # they were shuffled
        np.testing.assert_array_equal(read.frames(), shown(number, 5 + number, 0))
        np.testing.assert_array_equal(read.pictures("wrist_image"), shown(number, 5 + number, 1))
        np.testing.assert_array_equal(read.pictures("image")[1], one["image"])


def test_another_split_is_read_where_it_is_named(bridge: Path) -> None:
    opened = open_demonstrations(say(bridge, **UNCHANGED, split="val"))
    assert [len(e.actions) for e in opened.episodes] == [3]
    assert opened.notes[0] == "bridge_orig: the split 'val' is read; there are train too"
    with pytest.raises(UserError, match=r"unknown split in .*'trein': did you mean train"):
        open_demonstrations(say(bridge, split="trein"))


# ---------------------------------------------------------------- OpenVLA's conventions


def test_a_gripper_between_open_and_closed_takes_what_it_reaches() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        gripper = rng.choice([0, 0.01, 0.05, 0.2, 0.5, 0.95, 0.97, 1], size=12).astype(np.float32)
        decided = np.flatnonzero((gripper > 0.95) | (gripper < 0.05))
        following = np.searchsorted(decided, np.arange(12))  # the next decided step at or after each
        reached = np.append(gripper[decided], gripper[-1])[following]
        np.testing.assert_array_equal(binarised(gripper), np.where(reached > 0.5, 1, -1))


def test_motions_become_what_the_robot_did() -> None:
    state = np.arange(28, dtype=np.float32).reshape(4, 7) ** 2
    actions = np.full((4, 7), 9, np.float32)
    actions[:, 6] = [1, -1, 1, -1]
    found = relabelled(actions, state)
    np.testing.assert_array_equal(found[:, :6], state[1:, :6] - state[:3, :6])
    np.testing.assert_array_equal(found[:, 6], [1, -1, 1])
    np.testing.assert_allclose(state[0, :6] + found[:, :6].sum(0), state[3, :6])


def test_conventions_in_their_order_and_what_they_say(bridge: Path) -> None:
    opened = open_demonstrations(bridge)
    for one, read in zip(expected("bridge_orig")[1:], opened.episodes, strict=True):
        state, action = one["state"], one["action"]
        assert not action[0].any()
        assert len(read.actions) == len(action) - 2  # the first and the last
        np.testing.assert_array_equal(read.actions[:, :6], state[2:, :6] - state[1:-1, :6])
        assert set(read.actions[:, 6]) == {-1, 1}
        np.testing.assert_array_equal(read.proprio(), state[1:-1])
        assert len(read.frames()) == len(read.actions)
        assert np.abs(read.frames()[0].astype(int) - one["image_0"]).max() <= 4  # that of the second step
    said = "\n".join(opened.notes)
    assert "the first step of 3 of 3 episodes, whose action is all zeros" in said
    between = sum(
        ((one["action"][1:, 6] >= 0.05) & (one["action"][1:, 6] <= 0.95)).sum() for one in expected("bridge_orig")[1:]
    )
    assert f"{between} values between the two" in said
    assert "the next state minus this one" in said
    assert "'image_2' is black in 3 of 3 episodes" in said


def test_a_first_step_that_moves_stays() -> None:
    actions = np.full((3, 7), 0.5, np.float32)
    found = kept(Steps(0, actions, np.zeros((3, 7), np.float32)), BRIDGE)
    assert (found.first, len(found.actions), found.between) == (0, 2, 3)


def test_episodes_of_which_nothing_is_left_are_left_out(tmp_path: Path) -> None:
    short = episode(9, 2, "do 1", CAMERAS)
    write_dataset(tmp_path, "bridge_orig", [[episode(0, 5, "do 0", CAMERAS)], [short]], CAMERAS)
    opened = open_demonstrations(tmp_path)
    assert len(opened.episodes) == 1
    assert "bridge_orig: 1 of 2 episodes have no step that is kept and are left out" in opened.notes
    write_dataset(tmp_path, "bridge_orig", [[short]], CAMERAS)
    with pytest.raises(UserError, match="none of 1 episodes has an instruction"):
        open_demonstrations(tmp_path)


def test_any_other_dataset_says_its_rate_and_what_it_likes(tmp_path: Path) -> None:
    made(tmp_path, name="my_robot")
    with pytest.raises(UserError, match=r'how many control steps a second.*\{"rate": 10\}'):
        open_demonstrations(tmp_path)
    opened = open_demonstrations(say(tmp_path, rate=10, orientation="upside_down"))
    assert (opened.episodes[0].rate, opened.orientation, opened.notes) == (10.0, "upside_down", ())
    assert opened.space.names == tuple(f"action {n}" for n in range(7))
    assert [len(e.actions) for e in opened.episodes] == [5, 5]
    for wrong, said in (
        ({"rate": -1}, "above 0"),
        ({"rate": "fast"}, "rate is 'fast'; expected"),
        ({"rat": 10}, "unknown field 'rat': did you mean rate"),
        ({"rate": 10, "action_kinds": ["binary"] * 7}, "values, not two: write continuous there"),
        ({"rate": 10, "libero_state": True}, "LIBERO's 8: write"),
        ({"rate": 10, "action_names": ["a"]}, "mend action_kinds"),
    ):
        with pytest.raises(UserError, match=said):
            open_demonstrations(say(tmp_path, **wrong))


# ---------------------------------------------------------------- what is wrong is named


def test_the_folder_of_a_version_or_of_the_dataset(bridge: Path) -> None:
    assert open_demonstrations(bridge.parent).hash == open_demonstrations(bridge).hash
    shutil.copytree(bridge, bridge.with_name("1.0.1"))
    with pytest.raises(UserError, match=r"holds 1.0.0, 1.0.1: give the folder of one version"):
        open_demonstrations(bridge.parent)


def test_the_dataset_has_its_own_name_whatever_its_folder_is_called(bridge: Path) -> None:
    """BridgeData V2 is released as bridge_dataset, and OpenVLA renames the folder; old versions write no template."""
    opened = open_demonstrations(bridge)
    before = opened.hash, opened.notes
    edited(INFO, lambda c: [split.pop("filepathTemplate") for split in c["splits"]])(bridge)
    after = open_demonstrations(bridge.parent.rename(bridge.parent.with_name("mine")))
    assert (after.hash, after.notes) == before
    assert [e.name for e in after.episodes] == [f"bridge_orig/episode_00000{n}" for n in (1, 2, 3)]


def test_damage_to_a_record_is_named_by_file_and_offset(bridge: Path) -> None:
    damaged = open_demonstrations(bridge).episodes[2]
    path, offset = damaged.files[0], damaged.record.offset  # type: ignore[attr-defined]
    assert offset > 0
    content = bytearray(path.read_bytes())
    content[offset + 300] ^= 1  # data
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{path.name}: the record at byte {offset}: .*checksum"):
        open_demonstrations(bridge).hash  # noqa: B018
    content[offset] ^= 1  # its length
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{path.name}: the record at byte {offset}: .*checksum.*of its length"):
        open_demonstrations(bridge)


def test_opening_reads_no_pictures(tmp_path: Path) -> None:
    """20 MB of them a record; one record is in memory when they are asked for."""
    noise = np.random.default_rng(0).bytes(4 << 20)
    made(tmp_path, count=3, steps__observation__image_3=[noise] * 5)
    tracemalloc.start()
    opened = open_demonstrations(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    with pytest.raises(UserError, match="'image_3' at step 1 is no picture"):
        opened.episodes[-1].pictures("image_3")
    assert tracemalloc.get_traced_memory()[1] > 20 << 20
    tracemalloc.stop()


def cut(name: str) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        path = next(folder.glob(name))
        path.write_bytes(path.read_bytes()[:-5])

    return harm


def edited(name: str, edit: Callable[[Any], Any]) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        edit(content)
        (folder / name).write_text(json.dumps(content))

    return harm


def steps_of(features: Any) -> Any:
    inner = features["featuresDict"]["features"]["steps"]["sequence"]["feature"]
    return inner["featuresDict"]["features"]


INFO = "dataset_info.json"


def endless(feature: Any) -> None:
    feature["tensor"]["shape"]["dimensions"] = [math.inf]


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (cut("*train*00000-of-00002"), "record at byte [0-9]+: .*the file ends in it.*download that file again"),
        (lambda folder: next(folder.glob("*train*00001*")).unlink(), "train.tfrecord-00001-of-00002: no such file"),
        (lambda folder: (folder / "features.json").unlink(), "features.json: no such file"),
        (edited(INFO, lambda c: c.update(fileFormat="array_record")), "the files are array_record; only tfrecord"),
        (edited(INFO, lambda c: c["splits"][0].update(shardLengths=["1", "2"])), "2 episodes, .* says 1; download"),
        (edited(INFO, lambda c: c["splits"][0].update(filepathTemplate="../{SPLIT}")), "says nothing that can be used"),
        (edited(INFO, lambda c: c["splits"][0].update(filepathTemplate="{SPLIT:9999d}")), "says nothing that can"),
        (edited(INFO, lambda c: c["splits"][0].update(shardLengths=[math.inf])), "says nothing that can be used"),
        (edited("features.json", lambda c: endless(steps_of(c)["action"])), "says nothing that can be used"),
        (edited(INFO, lambda c: c.pop("splits")), "says nothing that can be used"),
        (edited("features.json", lambda c: steps_of(c).pop("action")), "'steps/action' is no row of floats"),
        (edited("features.json", lambda c: steps_of(c).pop("observation")), "no camera"),
        (edited("features.json", lambda c: steps_of(c).pop("language_instruction")), "no instruction there"),
    ],
)
def test_what_is_missing_or_wrong_is_named(bridge: Path, harm: Any, said: str) -> None:
    harm(bridge)
    with pytest.raises(UserError, match=said):
        open_demonstrations(bridge)


@pytest.mark.parametrize(
    ("features", "said"),
    [
        ({"steps__action": np.zeros((5, 6))}, "'steps/action' is not 7 floats a step"),
        ({"steps__action": np.full((5, 7), np.nan)}, "'steps/action' contains NaN"),
        ({"steps__observation__state": np.zeros((4, 7))}, "a state of the robot, is float32"),
        ({"steps__language_instruction": [b"a", b"b"] * 2 + [b"a"]}, "2 instructions, one after the other"),
        ({"steps__language_instruction": [b"a"]}, "not a text in 'steps/language_instruction' for each of 5"),
        ({"steps__language_instruction": [b"\xff\xfe"] * 5}, "is damaged"),
    ],
)
def test_a_record_that_does_not_fit_is_named(tmp_path: Path, features: dict[str, Any], said: str) -> None:
    first = len(framed(example(episode(0, 5, "do 0", CAMERAS))))
    with pytest.raises(UserError, match=f"train.tfrecord-00000-of-00001: the record at byte {first}.*{said}"):
        open_demonstrations(made(tmp_path, **features))


@pytest.mark.parametrize(
    ("pictures", "said"),
    [
        ([png(np.zeros((8, 8, 3), np.uint8))], "5 actions and 1 pictures of 'image_0'"),
        ([png(np.zeros((9, 8, 3), np.uint8))] * 5, r"has \(9, 8\) rows and columns, not \(8, 8\)"),
        ([b"none"] * 5, "'image_0' at step 1 is no picture"),
    ],
)
def test_pictures_that_do_not_fit_are_named(tmp_path: Path, pictures: list[bytes], said: str) -> None:
    opened = open_demonstrations(made(tmp_path, steps__observation__image_0=pictures))
    opened.episodes[0].frames()
    with pytest.raises(UserError, match=said):
        opened.episodes[1].frames()
    with pytest.raises(UserError, match="has no 'obs/top_rgb'"):
        opened.episodes[0].pictures("top")


# ---------------------------------------------------------------- commands


def test_it_becomes_a_lerobot_dataset_and_that_demonstration_files(bridge: Path, tmp_path: Path) -> None:
    before = open_demonstrations(bridge)
    lines = convert(bridge, tmp_path / "lerobot")
    assert set(before.notes) < set(lines)
    assert "steps/observation/depth_0" in next(line for line in lines if line.startswith("not kept"))
    convert(tmp_path / "lerobot", tmp_path / "files")
    for folder in ("lerobot", "files"):
        after = open_demonstrations(tmp_path / folder)
        assert (after.space, after.orientation, after.state_width) == (before.space, "upright", 7)
        found = {e.actions.tobytes(): e for e in after.episodes}
        for one in before.episodes:
            same = found[one.actions.tobytes()]
            assert (same.instruction, same.rate) == (one.instruction, 5.0)
            np.testing.assert_array_equal(same.proprio(), one.proprio())
            for camera in before.cameras:
                np.testing.assert_array_equal(same.pictures(camera), one.pictures(camera))


def test_a_check_says_what_was_done(bridge: Path, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["la-reconvla", "data", "check", str(bridge)])
    cli.main()
    said = capsys.readouterr().out
    assert "3 episodes, 17 steps" in said
    assert all(note in said for note in open_demonstrations(bridge).notes)
    assert (bridge / "contact-sheet.png").is_file()


@pytest.mark.slow
def test_a_policy_trains_on_it_and_arms_are_compared_offline(bridge: Path, tmp_path: Path, monkeypatch) -> None:
    given = ("--demonstrations", str(bridge), "--proprio", "all", "--wrist", "--cameras", "image_0", "image_3")
    one = ("train", *given, "--preset", "smoke", "--condition", "C4", "--steps", "2")
    monkeypatch.setattr(sys, "argv", ["la-reconvla", *one, "--out", str(tmp_path / "run")])
    cli.main()
    assert json.loads((tmp_path / "run/config.json").read_text())["inputs"]["cameras"] == ["image_0", "image_3"]
    study = ("study", "run", "smoke", "--offline", *given, "--conditions", "C1", "C4", "--workers", "1", "--steps", "2")
    monkeypatch.setattr(sys, "argv", ["la-reconvla", *study, "--out", str(tmp_path / "study")])
    cli.main()
    report = (tmp_path / "study/report.html").read_text(encoding="utf-8")
    assert "There is no simulator in this study" in report
    assert "the next state minus this one" in report
