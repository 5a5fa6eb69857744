"""Demonstrations go to LeRobot's format and back. That LeRobot itself reads them: `make test-lerobot`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_hdf5 import make_header, make_recording
from test_importing import NAMES
from test_importing import episode as record

from la_reconvla import cli
from la_reconvla.data import converting
from la_reconvla.data.converting import convert
from la_reconvla.data.demonstrations import Demonstrations
from la_reconvla.data.hdf5 import open_demonstrations
from la_reconvla.data.hdf5_writer import write_file
from la_reconvla.data.importing import Import, import_episodes
from la_reconvla.data.lerobot_statistics import QUANTILES, Shades
from la_reconvla.data.lerobot_writer import Contents, LeRobotWriter
from la_reconvla.errors import UserError

GOLDEN = Path(__file__).parent / "lerobot"
DATA = "data/chunk-000/file-000.parquet"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Another robot's demonstrations: three episodes of two instructions, two cameras, a binary grip."""
    for number in range(3):
        record(tmp_path / f"episodes/e{number}", number, "push the red block" if number < 2 else "Push the blue one!")
    import_episodes(Import(tmp_path / "episodes", tmp_path / "own", 10.0, "upside_down", (), ("grip",)))
    return tmp_path / "own"


def libero(folder: Path, stride: int = 1, wrist: bool = True) -> Path:
    """Demonstrations in LIBERO's layout, with all that ours have."""
    for task in range(2):
        told = {"stride": stride, "wrist": wrist, "instruction": f"pick up bowl {task}"}
        write_file(
            folder / f"pick_up_the_bowl_{task}_demo.hdf5",
            make_header(task, stride=stride),
            [make_recording(index, task, **told) for index in range(2)],
        )
    return folder


def require_equal(one: Demonstrations, other: Demonstrations, cameras: tuple[str, ...], tolerance: float = 0) -> None:
    """The same episodes in the same order; pictures differ by `tolerance` on average at most."""
    for name in ("space", "orientation", "frame_stride", "quality", "state_width"):
        assert getattr(one, name) == getattr(other, name), name
    assert len(one.episodes) == len(other.episodes)
    for first, second in zip(one.episodes, other.episodes, strict=True):
        assert (first.instruction, first.rate) == (second.instruction, second.rate)
        np.testing.assert_array_equal(first.actions, second.actions)
        np.testing.assert_array_equal(first.proprio(), second.proprio())
        for camera in cameras:
            pictures = [episode.pictures(camera).astype(int) for episode in (first, second)]
            assert pictures[0].shape == pictures[1].shape
            assert np.abs(pictures[0] - pictures[1]).mean() <= tolerance


def test_own_robots_come_back_bit_by_bit(own: Path, tmp_path: Path) -> None:
    lines = convert(own, tmp_path / "there")
    assert lines == [f"{tmp_path / 'there'}: 3 episodes, 36 steps, 2 instructions"]
    assert not (tmp_path / "there.part").exists()
    convert(tmp_path / "there", tmp_path / "back")
    opened = open_demonstrations(own)
    for folder in ("there", "back"):
        require_equal(opened, open_demonstrations(tmp_path / folder), ("main", "wrist"))
    assert open_demonstrations(tmp_path / "back").hash == opened.hash


@pytest.mark.parametrize("stride", [1, 2])
def test_liberos_come_back_bit_by_bit_and_what_is_lost_is_said(tmp_path: Path, stride: int) -> None:
    source = libero(tmp_path / "libero", stride)
    lines = "\n".join(convert(source, tmp_path / "there"))
    for lost in ("states", "instances", "executed_actions", "obs/joint_states", "starts"):
        assert lost in lines
    assert (f"every {stride} steps" in lines) == (stride > 1)
    convert(tmp_path / "there", tmp_path / "back")
    for folder in ("there", "back"):
        require_equal(open_demonstrations(source), open_demonstrations(tmp_path / folder), ("agentview", "eye_in_hand"))


def test_a_camera_that_no_episode_has_is_left_out(tmp_path: Path) -> None:
    convert(libero(tmp_path / "libero", wrist=False), tmp_path / "there")
    assert open_demonstrations(tmp_path / "there").cameras == ("agentview",)


def smooth(folder: Path) -> Path:
    """Demonstrations whose pictures a video can hold: colours that run slowly."""
    rows, columns = np.mgrid[:32, :48]
    source = open_demonstrations(folder)
    for path in {episode.path for episode in source.episodes}:
        with h5py.File(path, "a") as file:
            for name in file["data"]:
                pictures = [np.stack([columns * 4 + step, rows * 6, rows * 2 + step], -1) for step in range(12)]
                for camera in ("main", "wrist"):
                    del file[f"data/{name}/obs/{camera}_rgb"]
                    file[f"data/{name}/obs/{camera}_rgb"] = np.stack(pictures).astype(np.uint8)
    return folder


@pytest.mark.parametrize(("pictures", "tolerance"), [("h264", 3.0), ("av1", 4.0)])
def test_videos_come_back_nearly(own: Path, tmp_path: Path, pictures: Any, tolerance: float) -> None:
    lines = convert(smooth(own), tmp_path / "there", pictures)
    assert lines[0] == f"pictures: compressed with loss ({pictures})"
    assert len(list((tmp_path / "there/videos").rglob("*.mp4"))) == 2
    convert(tmp_path / "there", tmp_path / "back")
    there, back = (open_demonstrations(tmp_path / folder) for folder in ("there", "back"))
    require_equal(open_demonstrations(own), there, ("main", "wrist"), tolerance)
    require_equal(there, back, ("main", "wrist"))


def contents(**changes: Any) -> Contents:
    told = {"rate": 10, "cameras": {"a": (16, 16)}, "actions": ("x", "y"), "states": None, "pictures": "png"}
    return Contents(**{**told, **changes})


@pytest.mark.parametrize("pictures", ["png", "h264"])
def test_a_large_dataset_has_several_files(tmp_path: Path, pictures: Any, monkeypatch) -> None:
    monkeypatch.setattr("la_reconvla.data.lerobot_writer.FILES_A_CHUNK", 3)
    writer = LeRobotWriter(tmp_path / "set", contents(pictures=pictures, data_mb=0, video_mb=0))
    rng = np.random.default_rng(0)
    given = rng.integers(0, 256, (5, 6, 1, 1, 3), dtype=np.uint8).repeat(16, 2).repeat(16, 3)
    for frames in given:
        actions = rng.normal(size=(6, 2)).astype(np.float32)
        writer.add("go", actions, None, lambda camera, frames=frames: iter(frames))
    writer.finish({})
    kind = "data" if pictures == "png" else "videos/observation.images.a"
    files = sorted(str(path.relative_to(tmp_path / "set" / kind)) for path in (tmp_path / "set" / kind).rglob("*.*"))
    assert [name.partition(".")[0] for name in files] == [
        "chunk-000/file-000",
        "chunk-000/file-001",
        "chunk-000/file-002",
        "chunk-001/file-000",
        "chunk-001/file-001",
    ]
    for episode, frames in zip(open_demonstrations(tmp_path / "set").episodes, given, strict=True):
        assert np.abs(episode.frames().astype(int) - frames).mean() < (1 if pictures == "png" else 8)


def schema_of(folder: Path, name: str) -> dict[str, Any]:
    schema = pq.read_schema(folder / name)
    return {field.name: field.type for field in schema}


def test_files_are_as_lerobot_writes_them(tmp_path: Path) -> None:
    """The golden set, read and written again, has the same columns of the same types, and the same metadata."""
    opened = open_demonstrations(GOLDEN / "images")
    cameras = {camera: (64, 64) for camera in opened.cameras}
    states = tuple(json.loads((GOLDEN / "images/meta/info.json").read_text())["features"]["observation.state"]["names"])
    writer = LeRobotWriter(tmp_path, contents(rate=20, cameras=cameras, actions=opened.space.names, states=states))
    for episode in opened.episodes:
        writer.add(episode.instruction, episode.actions, episode.proprio(), episode.stream)
    writer.finish({})
    for name in (DATA, "meta/tasks.parquet", "meta/episodes/chunk-000/file-000.parquet"):
        assert schema_of(tmp_path, name) == schema_of(GOLDEN / "images", name)
        mine, theirs = (pq.read_table(folder / name) for folder in (tmp_path, GOLDEN / "images"))
        for column in mine.column_names:
            if not column.startswith("stats/") and not pa.types.is_struct(mine.schema.field(column).type):
                assert mine[column].to_pylist() == theirs[column].to_pylist(), column
    written, golden = (json.loads((folder / "meta/info.json").read_text()) for folder in (tmp_path, GOLDEN / "images"))
    assert written == golden | {"robot_type": None}
    indices = []
    for folder in (tmp_path, GOLDEN / "images"):
        about = json.loads(pq.read_schema(folder / "meta/tasks.parquet").metadata[b"pandas"])
        indices.append([about[name] for name in ("index_columns", "column_indexes", "columns")])
    assert indices[0] == indices[1]
    types = [
        json.loads(pq.read_schema(f / DATA).metadata[b"huggingface"])["info"] for f in (tmp_path, GOLDEN / "images")
    ]
    assert types[0] == types[1]


def test_statistics_are_those_of_the_columns(own: Path, tmp_path: Path) -> None:
    convert(own, tmp_path / "there")
    found = json.loads((tmp_path / "there/meta/stats.json").read_text())
    opened = open_demonstrations(own)
    pixels = np.concatenate([e.frames() for e in opened.episodes]).reshape(-1, 3) / 255
    actions = np.concatenate([e.actions for e in opened.episodes]).astype(float)
    for key, values in (("action", actions), ("observation.images.main", pixels)):
        mine = {name: np.reshape(value, -1) for name, value in found[key].items()}
        for name, compute in {"min": np.min, "max": np.max, "mean": np.mean, "std": np.std}.items():
            np.testing.assert_allclose(mine[name], compute(values, axis=0), rtol=1e-6)
        for name, share in QUANTILES.items():
            np.testing.assert_allclose(mine[name], np.quantile(values, share, axis=0), rtol=1e-6, atol=1e-9)
        assert mine["count"] == [36]
    rows = pq.read_table(tmp_path / "there/meta/episodes/chunk-000/file-000.parquet").to_pylist()
    order = [e.actions for e in opened.episodes]
    for row, rows_of_actions in zip(rows, order, strict=True):
        np.testing.assert_allclose(row["stats/action/mean"], rows_of_actions.astype(float).mean(0), rtol=1e-6)


@pytest.mark.parametrize("shades", [1, 2, 7])
def test_quantiles_of_few_pixels_lie_between_them_as_numpys(shades: int) -> None:
    picture = np.random.default_rng(shades).integers(0, 256, (1, shades, 3), dtype=np.uint8)
    counted = Shades()
    list(counted.seen(iter([picture])))
    for name, share in QUANTILES.items():
        expected = np.quantile(picture[0] / 255, share, axis=0)
        np.testing.assert_allclose(np.reshape(counted.statistics()[name], -1), expected, atol=1e-12)


def test_a_set_appears_when_it_is_complete_and_files_go_on(own: Path, tmp_path: Path, monkeypatch) -> None:
    whole = LeRobotWriter.add

    def stop(self: LeRobotWriter, *rest: Any) -> None:
        if len(self._rows) == 2:
            raise KeyboardInterrupt
        whole(self, *rest)

    monkeypatch.setattr(LeRobotWriter, "add", stop)
    with pytest.raises(KeyboardInterrupt):
        convert(own, tmp_path / "there")
    assert not (tmp_path / "there").exists()
    monkeypatch.setattr(LeRobotWriter, "add", whole)
    convert(own, tmp_path / "there")
    require_equal(open_demonstrations(own), open_demonstrations(tmp_path / "there"), ("main", "wrist"))
    convert(tmp_path / "there", tmp_path / "back")
    convert(tmp_path / "there", tmp_path / "back")  # nothing is left to do
    with pytest.raises(UserError, match="another configuration"):
        convert(GOLDEN / "images", tmp_path / "back")


@pytest.mark.parametrize("name", ["a/../../../../escaped", "/escaped", "..", "a\\b", "a\0b"])
@pytest.mark.parametrize("pictures", ["png", "h264"])
def test_no_camera_leads_out_of_the_folder(own: Path, tmp_path: Path, name: str, pictures: Any) -> None:
    for path in own.glob("*.hdf5"):
        with h5py.File(path, "a") as file:
            file["data"].attrs["cameras"] = json.dumps(["main", name])
            for demo in file["data"].values() if "\0" not in name else ():
                demo[f"obs/{name}_rgb"] = demo["obs/main_rgb"][()]
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=r"the camera '.*' has '/'"):
        convert(own, tmp_path / "deep/there", pictures)
    assert sorted(tmp_path.rglob("*")) == before
    writer = LeRobotWriter(tmp_path / "set", contents(cameras={name: (16, 16)}, pictures="h264"))
    if "/.." in name:
        with pytest.raises(ValueError, match="does not lie in the folder"):
            writer.add("go", np.zeros((1, 2), np.float32), None, lambda _: iter(np.zeros((1, 16, 16, 3), np.uint8)))
    with pytest.raises(UserError, match="the camera"):
        import_episodes(Import(tmp_path / "episodes", tmp_path / "other", 10.0, "upright", (name,)))
    assert sorted(tmp_path.rglob("*")) == before


def test_what_stands_for_two_values_and_what_is_left_out_is_said(own: Path, tmp_path: Path) -> None:
    convert(own, tmp_path / "there")
    path = tmp_path / "there" / DATA
    table = pq.read_table(path)
    actions = np.array(table["action"].to_pylist(), np.float32)
    actions[:, 6] = np.where(actions[:, 6] > 0, 0.08, 0)
    column = table.column_names.index("action")
    pq.write_table(table.set_column(column, "action", pa.array(actions.tolist(), pa.list_(pa.float32()))), path)
    info = json.loads((tmp_path / "there/meta/info.json").read_text())
    info["features"]["next.reward"] = {"dtype": "float32", "shape": [1], "names": None}
    (tmp_path / "there/meta/info.json").write_text(json.dumps(info))
    lines = convert(tmp_path / "there", tmp_path / "back")
    assert lines[:2] == ["grip: 0 is written as -1, 0.08 as 1", "not kept: next.reward"]
    back = open_demonstrations(tmp_path / "back")
    assert back.space.names == NAMES
    np.testing.assert_array_equal(
        np.concatenate([e.actions[:, 6] for e in back.episodes]),
        np.concatenate([e.actions[:, 6] for e in open_demonstrations(own).episodes]),
    )


def test_what_cannot_be_is_refused_before_anything_is_written(own: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(converting, "LeRobotWriter", None)
    there = tmp_path / "there"
    (tmp_path / "taken").mkdir()
    with pytest.raises(UserError, match="there already"):
        convert(own, tmp_path / "taken")
    (tmp_path / "mine.part/kept").mkdir(parents=True)
    with pytest.raises(UserError, match=r"mine.part is in the way"):
        convert(own, tmp_path / "mine")
    (tmp_path / "mine.part/.lease-000000").write_text(
        '{"released": true}'
    )  # as in every folder that this package has worked in
    with pytest.raises(UserError, match=r"mine.part is in the way"):
        convert(own, tmp_path / "mine")
    assert (tmp_path / "mine.part/kept").exists()
    with pytest.raises(UserError, match="leave --pictures out"):
        convert(GOLDEN / "images", there, "av1")
    with pytest.raises(UserError, match="holds other demonstrations"):
        convert(GOLDEN / "images", own)
    for path in own.glob("*.hdf5"):
        with h5py.File(path, "a") as file:
            file["data"].attrs["rate"] = 12.5
    with pytest.raises(UserError, match="whole --rate"):
        convert(own, there)
    for path in own.glob("*.hdf5"):
        with h5py.File(path, "a") as file:
            file["data"].attrs["rate"] = 12.0
            for name in file["data"]:
                del file[f"data/{name}/obs/main_rgb"]
                file[f"data/{name}/obs/main_rgb"] = np.zeros((12, 15, 16, 3), np.uint8)
    with pytest.raises(UserError, match="even numbers"):
        convert(own, there, "h264")
    with h5py.File(own / "push_the_red_block_demo.hdf5", "a") as file:
        del file["data/demo_1/obs/wrist_rgb"]
    with pytest.raises(UserError, match=r"'wrist' differ.* none in"):
        convert(own, there)
    assert not there.exists()


def test_the_command(own: Path, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["la-reconvla", "data", "convert", str(own), str(tmp_path / "there"), "--pictures", "h264"]
    monkeypatch.setattr(sys, "argv", words)
    cli.main()
    assert "3 episodes" in capsys.readouterr().out
