"""Demonstration files: what we write is what LIBERO's readers read, and what is wrong with a file is said."""

from __future__ import annotations

import hashlib
import json
import os
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from la_reconvla.data.demonstrations import Demonstrations, Episode
from la_reconvla.data.hdf5 import open_demonstrations, read_file
from la_reconvla.data.hdf5_writer import FileHeader, Recording, merge_files, write_file
from la_reconvla.data.starts import Start
from la_reconvla.errors import UserError

NAMES = ("akita_black_bowl_1", "plate_1", "robot")


def make_header(task: int = 0, size: int = 8, stride: int = 1, **changes: Any) -> FileHeader:
    name = f"pick_up_the_bowl_{task}"
    values = {
        "suite": "libero_spatial",
        "task": task,
        "name": name,
        "language": f"pick up bowl {task}",
        "bddl_file": f"libero_spatial/{name}.bddl",
        "bddl_content": "(define ...)",
        "env_args": "{}",
        "problem": "libero_tabletop_manipulation",
        "quality": "fast",
        "image_size": size,
        "frame_stride": stride,
    }
    return FileHeader(**{**values, **changes})


def make_recording(
    index: int = 0,
    task: int = 0,
    length: int = 6,
    size: int = 8,
    stride: int = 1,
    placement: str = "wide",
    wrist: bool = True,
    instruction: str | None = None,
) -> Recording:
    rng = np.random.default_rng((index, task, length))
    count = -(-length // stride)
    actions = rng.uniform(-1, 1, (length, 7))
    actions[:, 6] = np.where(np.arange(length) < length // 2, -1, 1)
    start = Start(
        suite="libero_spatial",
        task=task,
        placement=placement,  # type: ignore[arg-type]
        split="train",
        index=index,
        seed=100 + index,
        state=rng.normal(size=5),
        instruction=instruction or f"pick up bowl {index}",
        target=NAMES[0],
        destination=NAMES[1],
    )
    return Recording(
        start=start,
        actions=actions,
        executed=np.clip(actions + 0.01, -1, 1),
        states=rng.normal(size=(length, 5)),
        robot_states=rng.normal(size=(length, 9)),
        proprio=rng.normal(size=(length, 8)).astype(np.float32),
        joints=rng.normal(size=(length, 7)),
        frames=rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8),
        wrist=rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8) if wrist else None,
        instances=rng.integers(0, 4, (count, size, size), dtype=np.uint8),
        instance_names=NAMES,
        model_xml="<mujoco/>" * 10_000,
        success_step=length - 1,
        noise=0.1,
        seed=2**62 + index,
    )


def make_official(path: Path, demos: int = 2, length: int = 5, size: int = 16) -> list[np.ndarray]:
    """A file as LIBERO's own script writes it, by hand. Returns the pictures as stored."""
    rng, stored = np.random.default_rng(0), []
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_name"] = "Libero_Tabletop_Manipulation"
        data.attrs["problem_info"] = json.dumps({"language_instruction": ["put", "the bowl away"], "domain_name": "r"})
        data.attrs["macros_image_convention"] = "opengl"
        data.attrs["bddl_file_name"] = "chiliocosm/bddl_files/libero_spatial/put_the_bowl_away.bddl"
        data.attrs["num_demos"], data.attrs["total"], data.attrs["tag"] = demos, demos * length, "libero-v1"
        for number in range(demos):
            demo = data.create_group(f"demo_{number}")
            demo.attrs["num_samples"], demo.attrs["model_file"] = length, "<mujoco/>"
            demo["actions"] = np.full((length, 7), number / 100)
            demo["states"] = rng.normal(size=(length, 11))
            demo["robot_states"] = rng.normal(size=(length, 9))
            demo["rewards"] = demo["dones"] = np.eye(length, dtype=np.uint8)[-1]
            stored.append(rng.integers(0, 256, (length, size, size, 3), dtype=np.uint8))
            demo["obs/agentview_rgb"] = demo["obs/eye_in_hand_rgb"] = stored[-1]
            demo["obs/ee_states"] = np.arange(length * 6, dtype=float).reshape(length, 6)
            demo["obs/gripper_states"] = np.full((length, 2), 0.04)
            demo["obs/joint_states"] = np.zeros((length, 7))
    return stored


@settings(max_examples=25, deadline=None)
@given(length=st.integers(1, 9), stride=st.integers(1, 4), demos=st.integers(1, 12), wrist=st.booleans())
def test_what_was_written_is_read(tmp_path_factory, length: int, stride: int, demos: int, wrist: bool) -> None:
    path = tmp_path_factory.mktemp("data") / "bowl_demo.hdf5"
    written = [make_recording(i, length=length, stride=stride, wrist=wrist) for i in range(demos)]
    write_file(path, make_header(stride=stride), written)
    episodes = read_file(path)
    assert [e.demo for e in episodes] == [f"demo_{i}" for i in range(demos)]  # 10 after 9, not after 1
    for recording, episode in zip(written, episodes, strict=True):
        np.testing.assert_array_equal(episode.frames(), recording.frames)
        np.testing.assert_array_equal(episode.instances(), recording.instances)
        np.testing.assert_array_equal(episode.actions, recording.actions.astype(np.float32))
        np.testing.assert_array_equal(episode.executed(), recording.executed.astype(np.float32))
        np.testing.assert_array_equal(episode.proprio(), recording.proprio)
        np.testing.assert_array_equal(episode.states(), recording.states)
        np.testing.assert_array_equal(episode.frame_steps, range(0, length, stride))
        assert episode.instance_names == NAMES
        start = recording.start
        assert (episode.suite, episode.task, episode.quality) == ("libero_spatial", 0, "fast")
        assert (episode.start_id, episode.start_index, episode.start_seed) == (start.id, start.index, start.seed)
        assert (episode.placement, episode.split) == ("wide", "train")
        assert (episode.instruction, episode.target, episode.destination) == (start.instruction, NAMES[0], NAMES[1])
        assert (episode.success_step, episode.noise, episode.seed) == (length - 1, 0.1, recording.seed)
        if wrist:
            assert recording.wrist is not None
            np.testing.assert_array_equal(episode.wrist(), recording.wrist)
        else:
            with pytest.raises(UserError, match="eye_in_hand_rgb"):
                episode.wrist()


def test_an_official_reader_finds_what_it_looks_for(tmp_path: Path) -> None:
    """Keys, shapes and attributes that LIBERO's own data set code and its users read."""
    path, recording = tmp_path / "bowl_demo.hdf5", make_recording(length=6)
    write_file(path, make_header(), [recording, make_recording(1, length=4)])
    with h5py.File(path) as file:
        data, demo = file["data"], file["data/demo_0"]
        assert json.loads(data.attrs["problem_info"])["language_instruction"] == "pick up bowl 0"
        assert (data.attrs["num_demos"], data.attrs["total"]) == (2, 10)
        assert data.attrs["macros_image_convention"] == "opengl"
        assert data.attrs["bddl_file_name"].endswith("bddl_files/libero_spatial/pick_up_the_bowl_0.bddl")
        json.loads(data.attrs["env_args"])
        assert demo.attrs["num_samples"] == 6
        assert demo.attrs["model_file"] == recording.model_xml
        np.testing.assert_array_equal(demo.attrs["init_state"], recording.states[0])
        shapes = {
            "actions": (6, 7),
            "states": (6, 5),
            "robot_states": (6, 9),
            "obs/agentview_rgb": (6, 8, 8, 3),
            "obs/eye_in_hand_rgb": (6, 8, 8, 3),
            "obs/ee_pos": (6, 3),
            "obs/ee_ori": (6, 3),
            "obs/ee_states": (6, 6),
            "obs/gripper_states": (6, 2),
            "obs/joint_states": (6, 7),
        }
        assert {key: demo[key].shape for key in shapes} == shapes
        assert list(demo["dones"]) == list(demo["rewards"]) == [0, 0, 0, 0, 0, 1]
        np.testing.assert_array_equal(demo["obs/ee_pos"][()], recording.proprio[:, :3])
        np.testing.assert_array_equal(demo["obs/gripper_states"][()], recording.proprio[:, 6:])
        # OpenVLA and LeRobot turn stored frames by 180 degrees to get what their policies see.
        np.testing.assert_array_equal(np.rot90(demo["obs/agentview_rgb"][2], 2), recording.frames[2])


def test_official_files_are_read(tmp_path: Path) -> None:
    stored = make_official(tmp_path / "put_the_bowl_away_demo.hdf5")
    found = open_demonstrations(tmp_path)
    first, second = found.episodes
    assert (first.suite, first.task, first.task_name) == ("libero_spatial", None, "put_the_bowl_away")
    assert first.instruction == "put the bowl away"
    assert (found.quality, found.image_size, found.frame_stride, found.starts) == ("official", 16, 1, ())
    np.testing.assert_array_equal(second.frames(), np.rot90(stored[1], 2, axes=(1, 2)))
    np.testing.assert_array_equal(second.wrist(), np.rot90(stored[1], 2, axes=(1, 2)))
    np.testing.assert_array_equal(second.executed(), second.actions)
    np.testing.assert_allclose(second.proprio()[1], [6, 7, 8, 9, 10, 11, 0.04, 0.04])
    assert first.scene != second.scene
    assert first.instance_names == ()
    with pytest.raises(UserError, match="instances/map"):
        first.instances()


def test_the_other_image_convention_is_turned_the_same_way(tmp_path: Path) -> None:
    [stored] = make_official(tmp_path / "a_demo.hdf5", demos=1)
    upright = stored[:, ::-1]  # robosuite's "opencv" flips the rows of what OpenGL draws
    with h5py.File(tmp_path / "a_demo.hdf5", "a") as file:
        file["data"].attrs["macros_image_convention"] = "opencv"
        file["data/demo_0/obs/agentview_rgb"][...] = upright
    np.testing.assert_array_equal(read_file(tmp_path / "a_demo.hdf5")[0].frames(), stored[:, ::-1, ::-1])


def test_merging_keeps_every_bit(tmp_path: Path) -> None:
    recordings = [make_recording(i, length=3 + i) for i in range(3)]
    write_file(tmp_path / "whole" / "b_demo.hdf5", make_header(), recordings)
    for i, recording in enumerate(recordings):
        write_file(tmp_path / f"{i}.hdf5", make_header(), [recording])
    merge_files([tmp_path / f"{i}.hdf5" for i in range(3)], tmp_path / "merged" / "b_demo.hdf5")

    def contents(path: Path) -> dict[str, Any]:
        found: dict[str, Any] = {}
        with h5py.File(path) as file:
            file.visititems(lambda name, item: found.update({name: dict(item.attrs)}))
            file.visititems(lambda n, item: found.update({n: item[()]}) if isinstance(item, h5py.Dataset) else None)
        return found

    np.testing.assert_equal(contents(tmp_path / "merged" / "b_demo.hdf5"), contents(tmp_path / "whole" / "b_demo.hdf5"))
    assert open_demonstrations(tmp_path / "merged").hash == open_demonstrations(tmp_path / "whole").hash


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d.__delitem__("actions"), "demo_0 has no actions"),
        (lambda d: d.__delitem__("obs"), "no obs/agentview_rgb"),
        (lambda d: _replace(d, "actions", np.zeros((4, 7))), "need 4 rows of 'obs/agentview_rgb'"),
        (lambda d: _replace(d, "actions", np.full((5, 7), np.nan)), "NaN"),
        (lambda d: _replace(d, "actions", np.full((5, 7), np.inf)), "infinity"),
        (lambda d: _replace(d, "actions", np.full((5, 7), 1.5)), r"reach 1\.5, outside"),
        (lambda d: _replace(d, "actions", np.zeros((5, 6))), r"not numbers of shape \(T, 7\)"),
        (lambda d: _replace(d, "actions", np.zeros((0, 7))), r"not numbers of shape \(T, 7\)"),
        (lambda d: _replace(d, "obs/agentview_rgb", np.zeros((5, 16, 16, 3))), "not uint8"),
        (lambda d: _replace(d, "obs/agentview_rgb", np.zeros((5, 16, 16), np.uint8)), "not uint8 of shape"),
        (lambda d: d.parent.attrs.update({"task_index": "three"}), "'task_index' is 'three', not of the kind int"),
        (lambda d: d.parent.attrs.update({"task_index": 1.5}), "'task_index'.*not of the kind int"),
        (lambda d: d.parent.attrs.update({"frame_stride": 0}), "frame stride is 0"),
        (lambda d: d.attrs.update({"start_index": [1, 2]}), "'start_index'.*not of the kind int"),
        (lambda d: d.attrs.update({"noise": np.nan}), "'noise'.*not of the kind float"),
        (lambda d: d.attrs.update({"instruction": 7}), "'instruction'.*not of the kind str"),
        (lambda d: d.attrs.update({"split": "trian"}), "unknown split 'trian': did you mean train"),
        (lambda d: d.create_group("instances"), "no 'instances/map'"),
        (lambda d: _annotate(d, np.zeros((4, 16, 16), np.uint8), '["a"]'), "need 5 rows of 'instances/map'"),
        (lambda d: _annotate(d, np.zeros((5, 16, 16)), '["a"]'), "instance maps are float64"),
        (
            lambda d: _annotate(d, np.zeros((5, 8, 8), np.uint8), '["a"]'),
            r"not uint8 of the pictures' size \(F, 16, 16\)",
        ),
        (lambda d: _annotate(d, np.zeros((5, 16, 16), np.uint8), None), "no list of 'names'"),
        (lambda d: _annotate(d, np.zeros((5, 16, 16), np.uint8), "{"), "no list of 'names'"),
        (lambda d: _annotate(d, np.zeros((5, 16, 16), np.uint8), "[1]"), "no list of 'names'"),
        (lambda d: _replace(d, "obs", np.zeros(3)), "no obs/agentview_rgb"),
        (lambda d: _replace(d.parent, "demo_0", np.zeros(3)), "demo_0 has no actions"),
        (lambda d: d.parent.attrs.update({"problem_info": "{}"}), "no instruction"),
        (lambda d: d.parent.attrs.update({"problem_info": "{"}), "not valid JSON"),
        (lambda d: d.parent.attrs.update({"quality": "fst"}), "unknown quality 'fst': did you mean fast"),
        (lambda d: d.parent.attrs.update({"macros_image_convention": "upright"}), "unknown image convention"),
        (lambda d: d.file.__delitem__("data"), "no group 'data'"),
        (lambda d: (d.parent.__delitem__("demo_1"), d.parent.__delitem__("demo_0")), "no episode in it"),
    ],
)
def test_damage_is_named(tmp_path: Path, edit: Any, message: str) -> None:
    path = tmp_path / "a_demo.hdf5"
    make_official(path)
    with h5py.File(path, "a") as file:
        edit(file["data/demo_0"])
    with pytest.raises(UserError, match=message) as caught:
        open_demonstrations(tmp_path)
    assert "a_demo.hdf5" in str(caught.value)


def _annotate(group: Any, maps: np.ndarray, names: str | None) -> None:
    group["instances/map"] = maps
    if names is not None:
        group["instances"].attrs["names"] = names


def _replace(group: Any, key: str, value: np.ndarray) -> None:
    del group[key]
    group[key] = value


def test_nan_robot_states_are_named(tmp_path: Path) -> None:
    make_official(tmp_path / "a_demo.hdf5")
    with h5py.File(tmp_path / "a_demo.hdf5", "a") as file:
        file["data/demo_0/obs/ee_states"][0, 0] = np.nan
    with pytest.raises(UserError, match="robot states"):
        read_file(tmp_path / "a_demo.hdf5")[0].proprio()


@pytest.mark.parametrize(
    ("name", "value", "read", "message"),
    [
        ("states", np.zeros((4, 11)), Episode.states, "need 5 rows of 'states', found .4, 11"),
        ("obs/ee_states", np.zeros((5, 3)), Episode.proprio, r"ee_states.*float64 \(5, 3\), not floats"),
        ("obs/ee_states", np.zeros((5, 7)), Episode.proprio, r"\(5, 7\), not floats of shape \(5, 6\).*gripper"),
        ("obs/gripper_states", np.zeros((5, 2), int), Episode.fingers, "int64"),
        ("obs/eye_in_hand_rgb", np.full((5, 16, 16, 3), np.nan), Episode.wrist, "eye_in_hand_rgb.*not uint8"),
        ("obs/eye_in_hand_rgb", np.zeros((5, 16, 16), np.uint8), Episode.wrist, "eye_in_hand_rgb.*not uint8"),
        ("obs/eye_in_hand_rgb", np.zeros((5, 16, 12, 4), np.uint8), Episode.wrist, "not uint8 of shape"),
    ],
)
def test_what_only_some_ask_for_is_named_when_they_do(tmp_path: Path, name, value, read, message: str) -> None:
    make_official(tmp_path / "a_demo.hdf5")
    with h5py.File(tmp_path / "a_demo.hdf5", "a") as file:
        _replace(file["data/demo_0"], name, value)
    episode = read_file(tmp_path / "a_demo.hdf5")[0]
    assert episode.frames().shape == (5, 16, 16, 3)
    with pytest.raises(UserError, match=message):
        read(episode)


@pytest.mark.parametrize("value", [3.0, "x", [np.nan, 0.0], [1, 2]])
def test_a_start_that_is_no_state_is_named(tmp_path: Path, value: Any) -> None:
    make_official(tmp_path / "a_demo.hdf5")
    with h5py.File(tmp_path / "a_demo.hdf5", "a") as file:
        file["data/demo_0"].attrs["init_state"] = value
    with pytest.raises(UserError, match="demo_0: 'init_state', a simulator state"):
        read_file(tmp_path / "a_demo.hdf5")[0].first_state()


def test_a_number_without_a_name_is_named(tmp_path: Path) -> None:
    write_file(tmp_path / "a_demo.hdf5", make_header(), [make_recording()])
    with h5py.File(tmp_path / "a_demo.hdf5", "a") as file:
        file["data/demo_0/instances/map"][2, 3, 3] = 9
    with pytest.raises(UserError, match="uses the number 9, but there are 3 names"):
        read_file(tmp_path / "a_demo.hdf5")[0].instances()


def test_executed_actions_that_are_not_numbers_are_named(tmp_path: Path) -> None:
    write_file(tmp_path / "a_demo.hdf5", make_header(), [make_recording()])
    with h5py.File(tmp_path / "a_demo.hdf5", "a") as file:
        file["data/demo_0/executed_actions"][0, 0] = np.nan
    with pytest.raises(UserError, match="NaN"):
        read_file(tmp_path / "a_demo.hdf5")[0].executed()


def read_everything(path: Path) -> None:
    """What training, evaluation and merging read of a file."""
    found = open_demonstrations(path)
    assert len(found.hash) == 64
    for episode in found.episodes:
        length, pictures = len(episode.actions), len(episode.frame_steps)
        size = episode.image_size
        assert np.isfinite(episode.actions).all()
        assert episode.frames().shape == (pictures, size, size, 3)
        assert episode.proprio().shape == (length, 8)
        assert episode.executed().shape == (length, 7)
        assert len(episode.states()) == length
        assert episode.wrist().dtype == np.uint8
        if episode.instance_names:
            assert episode.instances().shape == (pictures, size, size)
    merge_files([path], path.with_name("merged.hdf5"))


def read_damaged(path: Path, whole: bytes, rng: np.random.Generator, count: int) -> int:
    """How many of `count` damaged copies are refused. Anything but a `UserError` comes through."""
    refused = 0
    for _ in range(count):
        content = bytearray(whole)
        place, length = int(rng.integers(len(whole))), int(rng.choice([1, 1, 2, 8, 64]))
        content[place : place + length] = rng.bytes(min(length, len(whole) - place))
        path.write_bytes(content)
        try:
            read_everything(path)
        except UserError:
            refused += 1
    return refused


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("official", [False, True], ids=["ours", "official"])
def test_damage_anywhere_is_an_explained_error_or_does_no_harm(tmp_path: Path, official: bool) -> None:
    """A byte, a few bytes or a block, at random places of a file that is small, so that much of it says what is where.

    About one damage in some thousand ends the process inside the HDF5 library, which no program can answer: the reading
    is done in forks, and such an end is let pass once.
    """
    path = tmp_path / "a_demo.hdf5"
    if official:
        make_official(path, demos=1, length=2, size=2)
    else:
        write_file(
            path, make_header(size=2, stride=2), [replace(make_recording(length=2, size=2, stride=2), model_xml="")]
        )
    read_everything(path)
    whole, ends = path.read_bytes(), []
    for batch in range(8):
        if (child := os.fork()) == 0:
            refused = 255
            try:
                refused = read_damaged(path, whole, np.random.default_rng(batch), 40)
            except BaseException:
                traceback.print_exc()
            os._exit(refused)
        ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    assert 255 not in ends, "an error that explains nothing, see above"
    finished = [end for end in ends if end >= 0]
    assert len(finished) >= len(ends) - 1
    assert sum(finished) > 20, "the damage hits nothing that is read"


def test_text_that_is_no_text_is_named(tmp_path: Path) -> None:
    make_official(tmp_path / "a_demo.hdf5")
    with h5py.File(tmp_path / "a_demo.hdf5", "a") as file:
        file["data/demo_0"].attrs.create("instruction", b"put the b\xffwl away", dtype=h5py.string_dtype())
    with pytest.raises(UserError, match=r"'instruction' is damaged \('put the b.udcffwl away'\)"):
        read_file(tmp_path / "a_demo.hdf5")


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    whole = tmp_path / "a_demo.hdf5"
    make_official(whole)
    content = whole.read_bytes()
    for name, part in {"half": content[: len(content) // 2], "tail": content[:-1], "head": content[:100]}.items():
        (tmp_path / name).write_bytes(part)
        with pytest.raises(UserError, match="truncated or damaged"):
            read_file(tmp_path / name)
    (tmp_path / "text").write_text("hello")
    (tmp_path / "empty").write_bytes(b"")
    for name in ("text", "empty"):
        with pytest.raises(UserError, match=r"not an HDF5 file|truncated or damaged"):
            read_file(tmp_path / name)
    with pytest.raises(UserError, match="no such file"):
        read_file(tmp_path / "nothing")
    with pytest.raises(UserError, match="is a folder"):
        read_file(tmp_path)


def test_a_damaged_picture_is_an_error_and_not_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "a_demo.hdf5"
    write_file(path, make_header(size=32), [make_recording(size=32)])
    with h5py.File(path) as file:
        chunk = file["data/demo_0/obs/agentview_rgb"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset + 200 : chunk.byte_offset + 400] = bytes(200)
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        read_file(path)[0].frames()


def test_folders_that_hold_no_demonstrations(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        open_demonstrations(tmp_path / "nothing")
    (tmp_path / "picture.png").touch()
    with pytest.raises(UserError, match=r"found picture\.png"):
        open_demonstrations(tmp_path)
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "info.json").write_text("{}")
    with pytest.raises(UserError, match=r"info\.json: the version is None"):
        open_demonstrations(tmp_path)


def test_an_unfinished_collection_is_refused(tmp_path: Path) -> None:
    write_file(tmp_path / "a_demo.hdf5", make_header(), [make_recording()])
    (tmp_path / "shards").mkdir()
    with pytest.raises(UserError, match="not finished"):
        open_demonstrations(tmp_path)


def test_unfinished_files_are_no_files(tmp_path: Path) -> None:
    for task in range(3):
        write_file(tmp_path / f"bowl_{task}_demo.hdf5", make_header(task), [make_recording(task=task)])
    (tmp_path / ".tmp-1-bowl_demo.hdf5").write_text("half")
    assert open_demonstrations(tmp_path).tasks == tuple(f"pick_up_the_bowl_{i}" for i in range(3))


@pytest.mark.parametrize("changes", [{"quality": "official"}, {"size": 16}, {"stride": 2}])
def test_data_that_differ_in_looks_are_not_mixed(tmp_path: Path, changes: dict[str, Any]) -> None:
    sizes = {key: value for key, value in changes.items() if key != "quality"}
    write_file(tmp_path / "a_demo.hdf5", make_header(0), [make_recording()])
    write_file(tmp_path / "b_demo.hdf5", make_header(1, **changes), [make_recording(task=1, **sizes)])
    with pytest.raises(UserError, match=r"differs: .* in a_demo.hdf5, .* in b_demo.hdf5"):
        open_demonstrations(tmp_path)
    assert len(open_demonstrations(tmp_path / "a_demo.hdf5").episodes) == 1


def hash_of_before(folder: Path) -> str:
    """The hash of LIBERO's files of one task, as it was first defined: pictures as h5py gives them."""
    (path,) = folder.glob("*_demo.hdf5")
    digest = hashlib.sha256()
    with h5py.File(path) as file:
        for number, demo in enumerate(file["data"].values()):  # pyright: ignore
            episode, frames = read_file(path)[number], demo["obs/agentview_rgb"]
            if number == 0:
                digest.update(f"{episode.quality}/{episode.image_size}/{episode.frame_stride}".encode())
            told = f"\0{episode.task_name}\0{episode.instruction}\0{episode.start_id}\0{len(demo['actions'])}\0"
            digest.update(told.encode() + np.asarray(demo["actions"], "<f4").tobytes())
            for place in (0, len(frames) // 2, len(frames) - 1):
                digest.update(frames[place].tobytes())
    return digest.hexdigest()


def test_the_hash_of_a_file_stays_what_it_was(tmp_path: Path) -> None:
    make_official(tmp_path / "a_demo.hdf5")
    assert open_demonstrations(tmp_path).hash == hash_of_before(tmp_path)


def test_the_hash_names_the_content(tmp_path: Path) -> None:
    def hashed(name: str, header: FileHeader, recordings: list[Recording]) -> str:
        write_file(tmp_path / name / "b_demo.hdf5", header, recordings)
        return open_demonstrations(tmp_path / name).hash

    base = [make_recording(i) for i in range(2)]
    same = hashed("base", make_header(), base)
    assert hashed("copy", make_header(), base) == same
    changed = make_recording(1)
    changed.frames[3, 0, 0, 0] ^= 1
    moved = make_recording(1)
    moved.actions[2, 0] += 1e-3
    others = [
        hashed("frame", make_header(), [base[0], changed]),
        hashed("action", make_header(), [base[0], moved]),
        hashed("words", make_header(), [base[0], make_recording(1, instruction="another")]),
        hashed("fewer", make_header(), base[:1]),
        hashed("order", make_header(), base[::-1]),
        hashed("quality", make_header(quality="official"), base),
    ]
    assert len({same, *others}) == 7


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(
    scenes=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    share=st.floats(0.05, 0.95),
    seed=st.integers(0, 5),
    placement=st.sampled_from(["wide", "official"]),
)
def test_a_division_tears_no_scene(tmp_path_factory, scenes, share: float, seed: int, placement: str) -> None:
    folder = tmp_path_factory.mktemp("data")
    for task, count in enumerate(scenes):
        indices = range(2 * count) if placement == "wide" else [i for i in range(count) for _ in range(2)]
        recordings = [make_recording(i, task, length=2, placement=placement, wrist=False) for i in indices]
        write_file(folder / f"{task}_demo.hdf5", make_header(task), recordings)
    found = open_demonstrations(folder)
    if max(scenes) == 1:
        with pytest.raises(UserError, match="one scene only"):
            found.divide(share, seed)
        return
    train, held = found.divide(share, seed)
    names = [e.name for e in (*train.episodes, *held.episodes)]
    assert sorted(names) == sorted(e.name for e in found.episodes)

    def places(part: Demonstrations) -> set[tuple]:
        pair = 2 if placement == "wide" else 1
        return {(e.task, e.start_index // pair) for e in part.episodes if e.start_index is not None}

    assert not places(train) & places(held)
    for task, count in enumerate(scenes):
        here = sum(place[0] == task for place in places(held))
        assert here == (0 if count == 1 else min(max(1, round(share * count)), count - 1))
    again = found.divide(share, seed)
    assert [e.name for e in again[1].episodes] == [e.name for e in held.episodes]
    alone = replace(found, episodes=tuple(e for e in found.episodes if e.task == 0))
    if scenes[0] > 1:  # which scenes of a task are held out does not depend on the other tasks
        assert places(alone.divide(share, seed)[1]) == {place for place in places(held) if place[0] == 0}


def test_a_share_outside_its_range_is_refused(tmp_path: Path) -> None:
    write_file(tmp_path / "a_demo.hdf5", make_header(), [make_recording()])
    for share in (0.0, 1.0, -1.0):
        with pytest.raises(UserError, match="between 0 and 1"):
            open_demonstrations(tmp_path).divide(share)


def test_the_state_that_an_episode_was_reset_to(tmp_path: Path) -> None:
    """That of its first step, or one before, where another policy has acted until then."""
    plain, corrected = make_recording(0), replace(make_recording(1), first=np.arange(5.0))
    write_file(tmp_path / "a_demo.hdf5", make_header(), [plain, corrected])
    first = [episode.first_state() for episode in read_file(tmp_path / "a_demo.hdf5")]
    np.testing.assert_array_equal(first, [plain.states[0], corrected.first])
