"""Demonstration files that other programs wrote: each is a file as its users have it, made by hand."""

from __future__ import annotations

import fcntl
import importlib.util
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image
from test_hdf5 import hash_of_before, make_official

from la_reconvla.data import instructions
from la_reconvla.data.hdf5 import open_demonstrations, read_file
from la_reconvla.data.samples import Samples
from la_reconvla.errors import UserError

SCENE = "KITCHEN_SCENE3_turn_on_the_stove"


def make_regenerated(path: Path, numbers: tuple[int, ...] = (0, 3, 11), length: int = 4, size: int = 256) -> None:
    """As OpenVLA's script writes it: no attributes anywhere, failed episodes left out of the numbering, 256 px."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for number in numbers:
            demo = file.create_group(f"data/demo_{number}")
            demo["actions"] = np.full((length, 7), number / 100)
            demo["states"], demo["robot_states"] = np.zeros((length, 45)), np.zeros((length, 9))
            demo["rewards"] = demo["dones"] = np.eye(length, dtype=np.uint8)[-1]
            for camera in ("agentview_rgb", "eye_in_hand_rgb"):
                demo[f"obs/{camera}"] = rng.integers(0, 256, (length, size, size, 3), dtype=np.uint8)
            for name, width in {
                "ee_pos": 3,
                "ee_ori": 3,
                "ee_states": 6,
                "gripper_states": 2,
                "joint_states": 7,
            }.items():
                demo[f"obs/{name}"] = np.full((length, width), 0.5)


@pytest.fixture
def without_libero(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "libero" else find(name))


@pytest.mark.usefixtures("without_libero")
def test_regenerated_files_take_their_instruction_from_their_name(tmp_path: Path) -> None:
    make_regenerated(tmp_path / f"{SCENE}_demo.hdf5")
    found = open_demonstrations(tmp_path)
    assert [e.demo for e in found.episodes] == ["demo_0", "demo_3", "demo_11"]
    assert {(e.instruction, e.task_name, e.suite) for e in found.episodes} == {("turn on the stove", SCENE, None)}
    samples = Samples(found, 224, 2, wrist=True, proprio="all")
    assert samples.batch(np.arange(12)).images.shape == (12, 3, 224, 224)
    (tmp_path / f"{SCENE}_demo.hdf5").rename(tmp_path / "image_demo.hdf5")
    with pytest.raises(UserError, match=r"no instruction.*name the file after what is asked for"):
        open_demonstrations(tmp_path)


def test_the_installed_task_says_what_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for suite, words in {"libero_90": "Turn on  the STOVE", "libero_90_lan": "heat it"}.items():
        folder = tmp_path / "libero" / "libero" / "bddl_files" / suite
        folder.mkdir(parents=True)
        (folder / f"{SCENE}.bddl").write_text(f"(define (problem p)\n (:language {words})\n)")
    (tmp_path / "libero" / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    make_regenerated(tmp_path / f"{SCENE}_demo.hdf5", numbers=(1,), size=8)
    [episode] = open_demonstrations(tmp_path).episodes
    assert (episode.suite, episode.instruction) == ("libero_90", "turn on the stove")


@pytest.mark.sim
def test_names_of_all_libero_suites_are_known() -> None:
    from la_reconvla.sim.tasks import MAX_STEPS, load_suite

    assert set(instructions.SUITES) == set(MAX_STEPS)
    for suite in instructions.SUITES[:3]:
        for task in load_suite(suite):
            assert instructions.installed(task.name) == (suite, task.instruction)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("LIVING_ROOM_SCENE5_put_the_red_mug_on_the_plate", "put the red mug on the plate"),
        ("STUDY_SCENE1_pick_up_the_book", "pick up the book"),
        ("open_the_middle_drawer", "open the middle drawer"),
        ("image", None),
        ("", None),
    ],
)
def test_names_are_words_without_their_scene(name: str, said: str | None) -> None:
    assert instructions.spoken(name) == said


def test_what_nobody_asks_for_refuses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a_demo.hdf5"
    stored = make_official(path)
    with h5py.File(path, "a") as file:
        demo = file["data/demo_0"]
        demo["obs/language"] = "put the bowl away"
        demo["obs/intrinsics"] = np.eye(3)
        demo["obs/front_rgb"] = np.zeros((2, 12, 16, 3), np.uint8)
        demo.create_group("obs/pointcloud")
        demo["next_obs"], demo["rewards_of_mine"] = np.zeros(1), np.zeros(3)
        del demo["obs/joint_states"], demo["dones"], demo["obs/eye_in_hand_rgb"]
        demo["dones"], demo["obs/eye_in_hand_rgb"] = np.zeros(2), np.zeros((5, 12, 16, 3), np.uint8)
        demo.attrs["odd"] = np.zeros(3)
    np.testing.assert_array_equal(read_file(path)[0].frames(), np.rot90(stored[0], 2, axes=(1, 2)))


def test_the_gripper_is_had_beside_a_hand_of_another_form(tmp_path: Path) -> None:
    make_official(tmp_path / "a_demo.hdf5")
    with h5py.File(tmp_path / "a_demo.hdf5", "a") as file:
        for demo in file["data"].values():
            del demo["obs/ee_states"]
            demo["obs/ee_states"] = np.zeros((5, 7))
            demo["obs/gripper_states"][...] = [0.04, -0.03]
    found = open_demonstrations(tmp_path)
    proprio = Samples(found, 16, 2, proprio="gripper").batch(np.arange(3)).proprio
    assert proprio is not None
    np.testing.assert_allclose(proprio, 0.07, atol=1e-6)
    with pytest.raises(UserError, match=r"\(5, 7\), not floats of shape \(5, 6\)"):
        Samples(found, 16, 2, proprio="all")


def test_attributes_may_be_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a_demo.hdf5"
    make_official(path)
    with h5py.File(path, "a") as file:
        attributes = file["data"].attrs
        for name in ("problem_info", "bddl_file_name", "macros_image_convention"):
            attributes[name] = np.bytes_(attributes[name])
        attributes["quality"] = np.bytes_("fast")
        file["data/demo_1"].attrs["instruction"] = np.bytes_("open the drawer")
    first, second = read_file(path)
    assert (first.instruction, second.instruction) == ("put the bowl away", "open the drawer")
    assert (first.suite, first.quality, first.turn) == ("libero_spatial", "fast", (-1, -1))


def test_robomimics_names_are_known(tmp_path: Path) -> None:
    """Its pictures are the right way up, and its quaternions (xyzw) become what LIBERO's files hold."""
    from scipy.spatial.transform import Rotation

    rng, length = np.random.default_rng(0), 4
    upright = rng.integers(0, 256, (2, length, 8, 8, 3), dtype=np.uint8)
    turns = Rotation.from_rotvec(rng.uniform(-1, 1, (length, 3)))
    with h5py.File(tmp_path / "lift_the_cube_demo.hdf5", "w") as file:
        file.create_group("data").attrs["env_args"] = json.dumps({"env_name": "Lift"})
        demo = file.create_group("data/demo_0")
        demo["actions"] = np.zeros((length, 7))
        demo["obs/agentview_image"], demo["obs/robot0_eye_in_hand_image"] = upright
        demo["obs/robot0_eef_pos"] = np.arange(length * 3.0).reshape(length, 3)
        demo["obs/robot0_eef_quat"] = turns.as_quat(canonical=True)
        demo["obs/robot0_gripper_qpos"] = np.full((length, 2), 0.02)
    [episode] = open_demonstrations(tmp_path).episodes
    assert episode.instruction == "lift the cube"
    np.testing.assert_array_equal(episode.frames(), upright[0][:, :, ::-1])  # public pictures are mirrored
    np.testing.assert_array_equal(episode.wrist(), upright[1][:, :, ::-1])
    found = episode.proprio()
    np.testing.assert_allclose(found[:, :3], np.arange(length * 3.0).reshape(length, 3))
    np.testing.assert_allclose(found[:, 3:6], turns.as_rotvec(), atol=1e-5)
    np.testing.assert_allclose(found[:, 6:], 0.02)


def encode(picture: np.ndarray, kind: str) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format=kind, quality=95)
    return np.frombuffer(buffer.getvalue(), np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_pictures_may_be_encoded(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a_demo.hdf5"
    stored = make_official(path)
    rows = [encode(picture, kind) for picture in stored[0]]
    expected = np.stack([np.asarray(Image.open(io.BytesIO(row.tobytes())).convert("RGB")) for row in rows])
    with h5py.File(path, "a") as file:
        del file["data/demo_1"], file["data/demo_0/obs/agentview_rgb"]
        pictures = file.create_dataset("data/demo_0/obs/agentview_rgb", (5,), h5py.vlen_dtype(np.uint8))
        for number, row in enumerate(rows):
            pictures[number] = row
    found = open_demonstrations(tmp_path)
    assert found.image_size == 16
    np.testing.assert_array_equal(found.episodes[0].frames(), np.rot90(expected, 2, axes=(1, 2)))
    if kind == "PNG":
        np.testing.assert_array_equal(expected, stored[0])
    before = hash_of_before(tmp_path)
    with monkeypatch.context() as other:
        other.setattr("la_reconvla.data.hdf5_layout.read_picture", None)  # whatever a decoder makes of them
        assert found.hash == before
    with h5py.File(path, "a") as file:
        file["data/demo_0/obs/agentview_rgb"][3] = encode(np.zeros((8, 16, 3), np.uint8), kind)
    with pytest.raises(UserError, match="differ in size"):
        found.episodes[0].frames()


def test_a_filter_that_h5py_lacks_is_named(tmp_path: Path) -> None:
    """A chunk under the number of blosc, as hdf5plugin writes it; what is in the chunk is never reached."""
    path = tmp_path / "a_demo.hdf5"
    make_official(path)
    with h5py.File(path, "a") as file:
        del file["data/demo_0/obs/agentview_rgb"]
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_chunk((5, 16, 16, 3))
        plan.set_filter(32001, h5py.h5z.FLAG_OPTIONAL, (2, 2, 1, 3840))
        space = h5py.h5s.create_simple((5, 16, 16, 3))
        name = b"data/demo_0/obs/agentview_rgb"
        dataset = h5py.h5d.create(file.id, name, h5py.h5t.NATIVE_UINT8, space, plan)
        dataset.write_direct_chunk((0, 0, 0, 0), bytes(64))
    if importlib.util.find_spec("hdf5plugin") is None:  # with it the file is opened
        with pytest.raises(UserError, match=r"agentview_rgb.*32001.*pip install hdf5plugin"):
            read_file(path)


def test_pictures_that_were_never_written_are_not_black_pictures(tmp_path: Path) -> None:
    path = tmp_path / "a_demo.hdf5"
    make_official(path)
    with h5py.File(path, "a") as file:
        del file["data/demo_0/obs/agentview_rgb"]
        pictures = file.create_dataset(
            "data/demo_0/obs/agentview_rgb", (5, 16, 16, 3), np.uint8, chunks=(1, 16, 16, 3), compression="gzip"
        )
        pictures[:4] = 1
    with pytest.raises(UserError, match="never written"):
        read_file(path)


# ---------------------------------------------------------------- what cannot be opened now


def test_a_locked_file_is_not_called_damaged(tmp_path: Path) -> None:
    make_official(path := tmp_path / "a_demo.hdf5")
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another program holds it open") as caught:
            read_file(path)
    assert "download" not in str(caught.value)
    assert len(read_file(path)) == 2


@pytest.fixture
def another_user() -> Iterator[Path]:
    """A folder of the first user, who is root here or already nobody in particular."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    root = os.geteuid() == 0
    make_official(folder / "a_demo.hdf5")
    try:
        if root:
            os.seteuid(65534)
        yield folder
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)
        shutil.rmtree(folder)


@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_may_not_be_read_is_not_called_damaged(another_user: Path, what: str) -> None:
    closed = another_user / "a_demo.hdf5" if what == "file" else another_user
    was_root = os.getuid() == 0
    if was_root:
        os.seteuid(0)
    closed.chmod(0)
    if was_root:
        os.seteuid(65534)
    for read in (open_demonstrations, lambda folder: read_file(folder / "a_demo.hdf5")):
        with pytest.raises(UserError, match=r"may not read it.*chmod") as caught:
            read(another_user)
        assert "download" not in str(caught.value)


@pytest.mark.parametrize(
    ("files", "name"),
    [
        (["libero_goal_no_noops/1.0.0/dataset_info.json"], "give the folder of one of them"),
        (["libero_goal-train.tfrecord-00000-of-00016"], "download dataset_info.json and features.json"),
        (["raw/bridge_data_v2/toykitchen/00/raw/traj_group0/traj0/policy_out.pkl"], "bridge_dataset/1.0.0"),
        (["bridge_data_v1/berkeley/toysink/open/train/out.npy"], "bridge_dataset/1.0.0"),
        (["pick_01/actions.csv", "pick_01/main.mp4"], "data import"),
    ],
)
def test_other_layouts_are_recognised(tmp_path: Path, files: list[str], name: str) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    with pytest.raises(UserError, match=f"not read by this version.*{name}|{name}.*_demo.hdf5"):
        open_demonstrations(tmp_path)


def test_hdf5_files_of_another_name_are_pointed_at(tmp_path: Path) -> None:
    make_official(tmp_path / "demo.hdf5")
    with pytest.raises(UserError, match=r"found demo\.hdf5; rename .*or give one file"):
        open_demonstrations(tmp_path)
    made: Any = open_demonstrations(tmp_path / "demo.hdf5")
    assert len(made.episodes) == 2
