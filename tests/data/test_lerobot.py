"""LeRobotDatasets are read as demonstrations. `lerobot/` holds two that LeRobot 0.6.1 wrote: with pictures, with AV1.

What its pictures show is a formula, so that they can be known without reading them.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from la_reconvla import cli
from la_reconvla.data.hdf5 import open_demonstrations
from la_reconvla.data.lerobot_layout import reading
from la_reconvla.data.samples import Samples
from la_reconvla.errors import UserError

GOLDEN = Path(__file__).parent / "lerobot"
EPISODES, LENGTH, SIZE = 4, 24, 64
WORDS = ("pick up the black bowl and place it on the plate", "open the drawer")
CAMERA = "observation.images.image"


def shown(episode: int) -> np.ndarray:
    """What the first camera saw."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    pictures = [
        np.stack([(columns * 4 + step * 3) % 256, (rows * 4 + episode * 20) % 256, rows * 0 + episode * 50 % 256], -1)
        for step in range(LENGTH)
    ]
    return np.stack(pictures).astype(np.uint8)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / "images", tmp_path / "images"))


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / "av1", tmp_path / "av1"))


def edited(path: Path, edit: Callable[[dict], None]) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def rewritten(path: Path, edit: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(edit(pq.read_table(path)), path)


def with_column(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, values)


def test_pictures_are_those_that_were_written() -> None:
    opened = open_demonstrations(GOLDEN / "images")
    assert len(opened.episodes) == EPISODES
    for number, episode in enumerate(opened.episodes):
        np.testing.assert_array_equal(episode.frames(), shown(number))
        np.testing.assert_array_equal(episode.pictures("image2"), shown(number)[:, ::-1])


def test_a_video_gives_the_pictures_that_a_decoder_sees_from_its_beginning_to_its_end() -> None:
    opened = open_demonstrations(GOLDEN / "av1")
    for camera in opened.cameras:
        with av.open(str(GOLDEN / f"av1/videos/observation.images.{camera}/chunk-000/file-000.mp4")) as file:
            decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])
        assert len(decoded) == EPISODES * LENGTH
        found = np.concatenate([episode.pictures(camera) for episode in opened.episodes])
        np.testing.assert_array_equal(found, decoded)
    assert np.abs(opened.episodes[2].frames() - shown(2).astype(int)).mean() < 6


@pytest.mark.parametrize("numbers", [(0, 12, 23), (5,), (7, 7, 8), (23,)])
def test_single_pictures_of_a_video_are_found(videos: Path, numbers: tuple[int, ...], monkeypatch) -> None:
    monkeypatch.setattr("la_reconvla.data.lerobot.FAR", 3)  # so that it seeks
    episode = open_demonstrations(videos).episodes[1]
    every = episode.frames()
    np.testing.assert_array_equal(np.stack(list(episode.stream("image", numbers))), every[list(numbers)])
    np.testing.assert_array_equal(np.stack(list(episode.stream("image"))), every)


def test_what_it_is() -> None:
    opened = open_demonstrations(GOLDEN / "av1")
    table = pq.read_table(GOLDEN / "av1/data/chunk-000/file-000.parquet")
    first = opened.episodes[0]
    assert opened.space.names == ("x", "y", "z", "axis_angle1", "axis_angle2", "axis_angle3", "gripper")
    assert opened.space.binary == []
    assert (opened.cameras, opened.orientation) == (("image", "image2"), "upright")
    assert (first.rate, first.frame_stride, first.picture_size("image2")) == (20, 1, (SIZE, SIZE))
    assert [episode.instruction for episode in opened.episodes] == [*WORDS, *WORDS]
    np.testing.assert_array_equal(np.concatenate([e.actions for e in opened.episodes]), table["action"].to_pylist())
    states = np.concatenate([e.proprio() for e in opened.episodes])
    np.testing.assert_array_equal(states, table["observation.state"].to_pylist())


def test_bins_are_those_of_the_actions_not_of_the_statistics(images: Path) -> None:
    (images / "meta/stats.json").write_text('{"action": {"q01": [0], "q99": [0]}}')
    samples = Samples(open_demonstrations(images), 16, 4)
    actions = np.array(pq.read_table(images / "data/chunk-000/file-000.parquet")["action"].to_pylist())
    np.testing.assert_allclose(samples.quantiles(), np.quantile(actions, (0.01, 0.99), axis=0))


def test_two_values_are_a_binary_action_and_the_smaller_is_minus_one(images: Path) -> None:
    path = images / "data/chunk-000/file-000.parquet"
    actions = np.array(pq.read_table(path)["action"].to_pylist(), np.float32)
    actions[:, 6] = np.where(actions[:, 6] > 0, 0.08, 0)
    rewritten(path, lambda table: with_column(table, "action", pa.array(actions.tolist(), pa.list_(pa.float32()))))
    opened = open_demonstrations(images)
    assert opened.space.binary == [6]
    found = np.concatenate([episode.actions for episode in opened.episodes])
    np.testing.assert_array_equal(found[:, 6], np.where(actions[:, 6] > 0, 1, -1))
    np.testing.assert_array_equal(found[:, :6], actions[:, :6])


@pytest.mark.parametrize(
    ("names", "read"),
    [
        ({"motors": ["a", "b", "c", "d", "e", "f", "g"]}, "abcdefg"),
        ([["a", "b", "c"], ["d", "e", "f", "g"]], "abcdefg"),
        (["a", "b", "c", "d", "e", "g", "g"], ("a", "b", "c", "d", "e", "g 1", "g 2")),
        (None, tuple(f"action {place}" for place in range(7))),
    ],
)
def test_names_of_actions_come_in_many_forms(images: Path, names: object, read: object) -> None:
    edited(images / "meta/info.json", lambda info: info["features"]["action"].update(names=names))
    assert open_demonstrations(images).space.names == tuple(read)  # pyright: ignore


def test_what_the_format_cannot_say_is_in_a_file_of_ours(images: Path) -> None:
    said = {"orientation": "mirrored", "action_kinds": ["continuous"] * 7, "frame_stride": 4, "libero_state": True}
    (images / "meta/la_reconvla.json").write_text(json.dumps(said))
    opened = open_demonstrations(images)
    assert (opened.orientation, opened.frame_stride, opened.state_width) == ("mirrored", 4, None)
    np.testing.assert_array_equal(opened.episodes[1].frames(), shown(1)[::4])
    assert opened.episodes[1].proprio().shape == (LENGTH, 8)


def encode(file: Any, frames: np.ndarray) -> None:
    stream = file.add_stream("libx264", rate=20, options={"crf": "10"})
    stream.width = stream.height = SIZE
    for frame in frames:
        file.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), "rgb24")))
    file.mux(stream.encode())


def before(golden: Path, folder: Path) -> Path:
    """The data set with videos in the layout of version 2.1: one file an episode."""
    info = json.loads((golden / "meta/info.json").read_text())
    info |= {
        "codebase_version": "v2.1",
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "chunks_size": 3,
    }
    (folder / "meta").mkdir(parents=True)
    (folder / "meta/info.json").write_text(json.dumps(info))
    lines = [{"episode_index": e, "tasks": [WORDS[e % 2]], "length": LENGTH} for e in range(EPISODES)]
    (folder / "meta/episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    lines = [{"task_index": index, "task": words} for index, words in enumerate(WORDS)]
    (folder / "meta/tasks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    table = pq.read_table(golden / "data/chunk-000/file-000.parquet")
    for episode in range(EPISODES):
        chunk = f"chunk-{episode // 3:03d}"
        path = folder / f"data/{chunk}/episode_{episode:06d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        mine = table.slice(episode * LENGTH, LENGTH)
        plain = [with_column(mine, name, mine[name].cast(pa.list_(pa.float32()))) for name in ("action",)]
        pq.write_table(plain[0], path)
        for camera in ("image", "image2"):
            frames = shown(episode) if camera == "image" else shown(episode)[:, ::-1]
            path = folder / f"videos/{chunk}/observation.images.{camera}/episode_{episode:06d}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            with av.open(str(path), "w") as file:
                encode(file, frames)
    return folder


def test_version_2_1_is_read(tmp_path: Path) -> None:
    opened = open_demonstrations(before(GOLDEN / "av1", tmp_path / "old"))
    newer = open_demonstrations(GOLDEN / "av1")
    assert [e.instruction for e in opened.episodes] == [*WORDS, *WORDS]
    for number, (old, new) in enumerate(zip(opened.episodes, newer.episodes, strict=True)):
        np.testing.assert_array_equal(old.actions, new.actions)
        np.testing.assert_array_equal(old.proprio(), new.proprio())
        assert np.abs(old.frames() - shown(number).astype(int)).mean() < 6
        assert np.abs(old.pictures("image2") - shown(number)[:, ::-1].astype(int)).mean() < 6
    (tmp_path / "old/meta/tasks.jsonl").write_text('{"task_index": 0, "task": "\\ud800"}')
    with pytest.raises(UserError, match=r"tasks.jsonl: the text 'instruction 0' is damaged"):
        open_demonstrations(tmp_path / "old")
    (tmp_path / "old/meta/episodes.jsonl").unlink()
    with pytest.raises(UserError, match=r"episodes.jsonl: no such file"):
        open_demonstrations(tmp_path / "old")


DATA, LIST = "data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"
SINCE = f"videos/{CAMERA}/from_timestamp"
VIDEO = f"videos/{CAMERA}/chunk-000/file-000.mp4"


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        (DATA, lambda p: p.unlink(), "no such file"),
        (DATA, lambda p: p.write_bytes(p.read_bytes()[:-100]), "truncated or damaged"),
        (VIDEO, lambda p: p.unlink(), "no such file"),
        (VIDEO, lambda p: p.write_bytes(p.read_bytes()[:9000]), "truncated or damaged"),
        (VIDEO, lambda p: p.write_bytes(b"no video"), "truncated or damaged"),
        (LIST, lambda p: p.unlink(), "no list of episodes"),
        (LIST, lambda p: p.write_bytes(b""), "truncated or damaged"),
        ("meta/tasks.parquet", lambda p: p.unlink(), "no such file"),
        ("meta/info.json", lambda p: p.write_text("{"), "not valid JSON"),
        ("meta/info.json", lambda p: edited(p, lambda i: i.update(codebase_version="v2.0")), "version is v2.0"),
        ("meta/info.json", lambda p: edited(p, lambda i: i.update(fps=0)), "fps"),
        ("meta/info.json", lambda p: edited(p, lambda i: i["features"]["action"].update(shape=7)), "shape 7"),
        ("meta/info.json", lambda p: edited(p, lambda i: i.update(total_episodes=9)), "not complete"),
        ("meta/info.json", lambda p: edited(p, lambda i: i["features"].pop("action")), "no column 'action'"),
        ("meta/info.json", lambda p: edited(p, lambda i: i["features"]["action"].update(shape=[6])), "not 6 numbers"),
        ("meta/info.json", lambda p: edited(p, lambda i: i.update(video_path="{nothing}")), "video_path"),
        *(
            (
                "meta/info.json",
                lambda p, key=key, path=path: edited(p, lambda i: i.update({key: path})),
                "cannot be read",
            )
            for key in ("data_path", "video_path")
            for path in (
                "../{episode_index:06d}.parquet",
                "/tmp/{chunk_index:03d}.mp4",
                "data/{episode_index:99999999999d}",
                "data/{episode_index:{length}d}",
                "data/{length.real}",
            )
        ),
        (
            LIST,
            lambda p: rewritten(p, lambda t: with_column(t, f"videos/{CAMERA}/file_index", pa.array(["../x"] * 4))),
            "cannot be read",
        ),
        (
            "meta/info.json",
            lambda p: edited(p, lambda i: i["features"].update({"a/../..": i["features"][CAMERA]})),
            r"camera 'a/\.\./\.\.'",
        ),
        (LIST, lambda p: rewritten(p, lambda t: with_column(t, "length", pa.array([24, 20, 24, 24]))), "not 20"),
        (DATA, lambda p: rewritten(p, lambda t: with_column(t, "task_index", pa.array([7] * 96))), "in no list"),
        (DATA, lambda p: rewritten(p, lambda t: with_column(t, "task_index", pa.array([0, 1] * 48))), "2 instructions"),
        ("meta/info.json", lambda p: edited(p, lambda i: i.update(fps=10**400)), "fps"),
        (
            "meta/info.json",
            lambda p: edited(p, lambda i: i["features"].update({"\ud800": {"shape": [1]}})),
            "is damaged",
        ),
        (LIST, lambda p: rewritten(p, lambda t: with_column(t, SINCE, pa.array([0, 1, float("nan"), 2]))), "at nan s"),
        (
            DATA,
            lambda p: rewritten(p, lambda t: with_column(t, "action", pa.array([[float("nan")] * 7] * 96))),
            "episode 0 contain NaN",
        ),
    ],
)
def test_what_is_damaged_is_refused_at_once(videos: Path, name: str, spoil: Callable, message: str) -> None:
    spoil(videos / name)
    with pytest.raises(UserError, match=message) as raised:
        open_demonstrations(videos)
    assert str(videos) in str(raised.value)


@pytest.mark.parametrize("kind", ["images", "av1"])
def test_the_hash_names_what_is_stored_whatever_decodes_it(kind: str, request, tmp_path: Path, monkeypatch) -> None:
    folder = request.getfixturevalue("images" if kind == "images" else "videos")
    before = open_demonstrations(folder).hash
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))

    def spoil(table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        rows[LENGTH]["observation.images.image"]["bytes"] += b"\0"  # after the end of the picture
        return pa.Table.from_pylist(rows, schema=table.schema)

    if kind == "images":
        rewritten(copy / DATA, spoil)
    else:
        with (copy / VIDEO).open("ab") as file:
            file.write(b"\0\0\0\x08free")  # a box of an MP4 that says nothing
    for changed, same in zip(open_demonstrations(copy).episodes, open_demonstrations(folder).episodes, strict=True):
        np.testing.assert_array_equal(changed.frames(), same.frames())
    opened = [open_demonstrations(one) for one in (folder, copy)]
    for one in ("_frame", "read_picture"):
        monkeypatch.setattr(f"la_reconvla.data.lerobot.{one}", None)
    assert opened[0].hash == before != opened[1].hash


def test_files_may_be_links_as_in_the_cache_of_the_hub(videos: Path, tmp_path: Path) -> None:
    for path in [path for path in videos.rglob("*") if path.is_file()]:
        path.rename(blob := tmp_path / f"{len(list(tmp_path.iterdir()))}.blob")
        path.symlink_to(blob)
    assert len(open_demonstrations(videos).episodes[0].frames()) == LENGTH


def test_a_video_that_opens_and_lacks_its_end_is_refused_at_once(videos: Path) -> None:
    path = videos / VIDEO
    with av.open(str(path), "w", options={"movflags": "faststart"}) as file:  # its index is at its beginning
        encode(file, np.concatenate([shown(episode) for episode in range(EPISODES)]))
    open_demonstrations(videos)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"file-000.mp4: truncated or damaged"):
        open_demonstrations(videos)


def test_a_damaged_picture_is_refused_when_it_is_read(images: Path) -> None:
    def spoil(table: pa.Table) -> pa.Table:
        cells = table[CAMERA].to_pylist()
        cells[30] = {"bytes": cells[30]["bytes"][:50], "path": ""}
        return with_column(table, CAMERA, pa.array(cells, table[CAMERA].type))

    rewritten(images / DATA, spoil)
    opened = open_demonstrations(images)
    opened.episodes[0].frames()
    with pytest.raises(UserError, match=r"file-000.parquet: .* at step 6 is no picture that can be read"):
        opened.episodes[1].frames()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(errno.EACCES, "no"), "may not read it.*chmod"),
        (OSError(errno.EIO, "no"), "see to the disk"),
        (MemoryError(), "does not fit in memory"),
        (ValueError("no"), "truncated or damaged"),
    ],
)
def test_what_cannot_be_read_now_is_not_called_damaged(images: Path, error: Exception, message: str) -> None:
    with pytest.raises(UserError, match=message), reading(images / DATA):
        raise error


def test_a_folder_of_datasets_is_pointed_at(images: Path) -> None:
    with pytest.raises(UserError, match=r"no meta/info\.json of a LeRobotDataset, found images; give the folder"):
        open_demonstrations(images.parent)


def test_a_state_that_is_not_liberos_is_refused(images: Path) -> None:
    (images / "meta/la_reconvla.json").write_text('{"libero_state": true}')
    rewritten(
        images / DATA,
        lambda table: with_column(table, "observation.state", pa.array([[0.0] * 7] * EPISODES * LENGTH)),
    )
    edited(images / "meta/info.json", lambda info: info["features"]["observation.state"].update(shape=[7]))
    with pytest.raises(UserError, match=r"la_reconvla\.json: the state has 7 numbers"):
        open_demonstrations(images)


def test_pictures_that_do_not_fit_in_memory_are_kept_until_a_video_changes(videos: Path, monkeypatch) -> None:
    inside = Samples(open_demonstrations(videos), 16, 2, wrist=True)
    monkeypatch.setattr("la_reconvla.data.picture_store.free_memory", lambda: 1000.0)
    outside = Samples(open_demonstrations(videos), 16, 2, wrist=True)
    every = np.arange(EPISODES * LENGTH)
    np.testing.assert_array_equal(outside.batch(every).images, inside.batch(every).images)
    np.testing.assert_array_equal(outside.batch(every).wrist, inside.batch(every).wrist)
    written = set(videos.parent.glob(".pictures/*.u8"))
    Samples(open_demonstrations(videos), 16, 2, wrist=True)
    assert set(videos.parent.glob(".pictures/*.u8")) == written
    os.utime(videos / VIDEO)
    Samples(open_demonstrations(videos), 16, 2)
    assert len(set(videos.parent.glob(".pictures/*.u8")) - written) == 1


def test_without_the_extra_the_command_that_installs_it_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match=r"pip install .*\[datasets\]"):
        open_demonstrations(GOLDEN / "images")


def test_what_the_format_does_not_have_is_said() -> None:
    episode = open_demonstrations(GOLDEN / "images").episodes[0]
    for read in (episode.first_state, episode.states, episode.instances, lambda: episode.pictures("top")):
        with pytest.raises(UserError, match="episode_000000 has no"):
            read()
    np.testing.assert_array_equal(episode.executed(), episode.actions)


def test_the_commands_take_it(images: Path, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["la-reconvla", "data", "check", str(images)])
    cli.main()
    assert "4 episodes, 96 steps" in capsys.readouterr().out
    assert (images / "contact-sheet.png").is_file()


@pytest.mark.slow
def test_a_policy_trains_on_it_and_arms_are_compared_offline(videos: Path, tmp_path: Path, monkeypatch) -> None:
    one = ("--demonstrations", str(videos), "--preset", "smoke", "--condition", "C4", "--steps", "2", "--wrist")
    monkeypatch.setattr(sys, "argv", ["la-reconvla", "train", *one, "--proprio", "all", "--out", str(tmp_path / "run")])
    cli.main()
    assert (tmp_path / "run/config.json").is_file()
    study = ("--demonstrations", str(videos), "--offline", "--conditions", "C1", "C4", "--workers", "1", "--steps", "2")
    monkeypatch.setattr(sys, "argv", ["la-reconvla", "study", "run", "smoke", *study, "--out", str(tmp_path / "study")])
    cli.main()
    assert (tmp_path / "study/report.html").is_file()
