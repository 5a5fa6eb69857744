"""Another robot's episodes, a folder each, become demonstrations; and what is said of a folder of demonstrations."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from la_reconvla import cli
from la_reconvla.data import foreign_writer
from la_reconvla.data.hdf5 import open_demonstrations
from la_reconvla.data.importing import Import, import_episodes
from la_reconvla.errors import UserError

NAMES = ("base", "shoulder", "elbow", "wrist 1", "wrist 2", "wrist 3", "grip")
LENGTH, SIZE = 12, (16, 24)


def episode(folder: Path, number: int, words: str = "push the red block") -> dict[str, np.ndarray]:
    """One episode as people record them. Returns its pictures."""
    rng = np.random.default_rng(number)
    folder.mkdir(parents=True)
    actions = rng.normal(0, 30, (LENGTH, 7))
    actions[:, 6] = np.arange(LENGTH) > 5  # 0 is open, 1 is closed
    np.savetxt(folder / "actions.csv", actions, delimiter=",", header=",".join(NAMES), comments="")
    np.save(folder / "state.npy", rng.normal(size=(LENGTH, 9)))
    (folder / "instruction.txt").write_text(f"{words}\n")
    pictures = {camera: rng.integers(0, 256, (LENGTH, *SIZE, 3), dtype=np.uint8) for camera in ("main", "wrist")}
    for camera, frames in pictures.items():
        (folder / camera).mkdir()
        for index, frame in enumerate(frames):
            Image.fromarray(frame).save(folder / camera / f"{index}.png")  # 10 comes after 9, not after 1
    return pictures


@pytest.fixture
def config(tmp_path: Path) -> Import:
    for number in range(3):
        words = "push the red block" if number < 2 else "Push the blue block!"
        episode(tmp_path / "episodes" / f"e{number}", number, words)
    return Import(tmp_path / "episodes", tmp_path / "out", 10.0, "upright", (), ("grip",))


def test_what_was_recorded_is_read(config: Import) -> None:
    lines = import_episodes(config)
    assert lines[0] == "grip: 0 is written as -1, 1 as 1"
    opened = open_demonstrations(config.out)
    assert sorted(opened.tasks) == ["push_the_blue_block", "push_the_red_block"]
    assert (opened.cameras, opened.orientation, opened.state_width) == (("main", "wrist"), "upright", 9)
    assert opened.space.names == NAMES
    assert opened.space.binary == [6]
    assert opened.episodes[0].rate == 10
    reds = [e for e in opened.episodes if e.instruction == "push the red block"]
    for number, red in enumerate(reds):
        folder = config.episodes / f"e{number}"
        given = np.loadtxt(folder / "actions.csv", delimiter=",", skiprows=1)
        np.testing.assert_allclose(red.actions[:, :6], given[:, :6], rtol=1e-6)
        np.testing.assert_array_equal(red.actions[:, 6], 2 * given[:, 6] - 1)
        np.testing.assert_allclose(red.proprio(), np.load(folder / "state.npy"), rtol=1e-6)
        for camera in ("main", "wrist"):
            frames = [np.asarray(Image.open(folder / camera / f"{index}.png")) for index in range(LENGTH)]
            np.testing.assert_array_equal(red.pictures(camera), frames)


def test_what_was_stopped_goes_on(config: Import, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = replace(config, out=config.out.with_name("whole"))
    import_episodes(whole)
    written: list[str] = []
    write = foreign_writer._write_shard

    def stop_after_two(path: Path, source: Any, *rest: Any) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(Path(source.where).name)
        write(path, source, *rest)

    monkeypatch.setattr(foreign_writer, "_write_shard", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        import_episodes(config)
    with pytest.raises(UserError, match="not finished"):
        open_demonstrations(config.out)
    monkeypatch.setattr(foreign_writer, "_write_shard", lambda *a: (written.append(Path(a[1].where).name), write(*a)))
    import_episodes(config)
    assert written == ["e0", "e1", "e2"]
    assert open_demonstrations(config.out).hash == open_demonstrations(whole.out).hash
    import_episodes(config)
    assert len(written) == 3
    with pytest.raises(UserError, match=r"another configuration .*rate"):
        import_episodes(replace(config, rate=5.0))


def test_a_video_gives_its_pictures(config: Import) -> None:
    folder = config.episodes / "e0"
    frames = np.repeat(np.arange(0, 240, 20, dtype=np.uint8), 16 * 32 * 3).reshape(LENGTH, 16, 32, 3)
    writer = imageio_ffmpeg.write_frames(str(folder / "main.mp4"), (32, 16), macro_block_size=1, quality=10)
    writer.send(None)
    for frame in frames:
        writer.send(np.ascontiguousarray(frame))
    writer.close()
    for name in ("e1", "e2"):
        shutil.rmtree(config.episodes / name)
    shutil.rmtree(folder / "main")
    import_episodes(config)
    found = open_demonstrations(config.out).episodes[0].frames()
    assert found.shape == frames.shape
    assert np.abs(found.astype(int) - frames).max() < 12  # compressed


def edited(folder: Path, edit: str) -> None:
    """Spoil an episode."""
    if edit == "no actions":
        (folder / "actions.csv").unlink()
    elif edit == "no header":
        np.savetxt(folder / "actions.csv", np.zeros((LENGTH, 7)), delimiter=",")
    elif edit == "other columns":
        np.savetxt(folder / "actions.csv", np.zeros((LENGTH, 2)), delimiter=",", header="a,b", comments="")
    elif edit == "nan":
        np.savetxt(
            folder / "actions.csv", np.full((LENGTH, 7), np.nan), delimiter=",", header=",".join(NAMES), comments=""
        )
    elif edit == "text":
        (folder / "actions.csv").write_text(",".join(NAMES) + "\n" + "a,b,c,d,e,f,g\n")
    elif edit == "picture missing":
        (folder / "wrist/3.png").unlink()
    elif edit == "picture damaged":
        (folder / "wrist/3.png").write_bytes(b"no picture")
    elif edit == "picture of another size":
        Image.new("RGB", (5, 5)).save(folder / "wrist/3.png")
    elif edit == "no camera":
        shutil.rmtree(folder / "wrist")
    elif edit == "no words":
        (folder / "instruction.txt").unlink()
    elif edit == "words of another coding":
        (folder / "instruction.txt").write_bytes("den Würfel".encode("latin-1"))
    elif edit == "short state":
        np.save(folder / "state.npy", np.zeros((3, 9)))
    elif edit == "other state":
        np.save(folder / "state.npy", np.zeros((LENGTH, 8)))
    elif edit == "pickle":
        (folder / "state.npy").unlink()
        np.save(folder / "state.npy", np.array([{}], dtype=object), allow_pickle=True)
    elif edit == "bad video":
        (folder / "wrist.mp4").write_bytes(b"no video")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ("no actions", "e1: no actions.csv and no actions.npy; write"),
        ("no header", r"actions.csv: the first line has no names; write"),
        ("other columns", "e1: its actions are a, b, those of e0 are .*: give all"),
        ("nan", "actions.csv: .*not finite numbers"),
        ("text", "actions.csv is no table of numbers"),
        ("picture missing", "e1: 12 actions and 11 pictures of 'wrist'"),
        ("picture damaged", r"wrist/3.png is no picture .*: give a PNG"),
        ("picture of another size", r"picture 3 of 'wrist' is \(5, 5\)"),
        ("no camera", "e1: no pictures of the camera 'wrist'"),
        ("no words", "instruction.txt: no instruction; write it there"),
        ("words of another coding", "instruction.txt cannot be read .* as UTF-8"),
        ("short state", "12 actions and 3 states"),
        ("other state", "its state has 8 columns, that of e0 9"),
        ("pickle", "state.npy is no table of numbers"),
        ("bad video", "wrist.mp4 is no video"),
    ],
)
def test_what_is_wrong_is_named_with_its_file(config: Import, edit: str, message: str) -> None:
    edited(config.episodes / "e1", edit)
    with pytest.raises(UserError, match=message):
        import_episodes(config)
    assert not list(config.out.glob("*_demo.hdf5"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rate": 0.0}, "above 0"),
        ({"binary": ("gripp",)}, "unknown dimension of the action 'gripp': did you mean grip"),
        ({"binary": ("base",)}, "'base' has 36 values"),
        ({"cameras": ("front",)}, "no pictures of the camera 'front'"),
        ({"episodes": Path("nowhere")}, "no such folder"),
    ],
)
def test_options_that_do_not_fit(config: Import, changes: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        import_episodes(replace(config, **changes))


def command(monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["la-reconvla", *words.split()])
    cli.main()


def test_the_commands_import_and_check(
    config: Import, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command(
        monkeypatch, f"data import {config.episodes} --out {config.out} --rate 10 --orientation upright --binary grip"
    )
    with h5py.File(config.out / "push_the_red_block_demo.hdf5", "a") as file:
        for demo in file["data"].values():
            demo["actions"][:, 2] = 4.0
    with h5py.File(config.out / "push_the_blue_block_demo.hdf5", "a") as file:
        file["data/demo_0/actions"][:, 2] = 4.0
    capsys.readouterr()
    command(monkeypatch, f"data check {config.out}")
    said = capsys.readouterr().out
    assert "3 episodes, 36 steps (12 to 12 each) at 10 Hz" in said
    assert "main 16 x 24, wrist 16 x 24; upright" in said
    assert "elbow never change" in said
    with Image.open(config.out / "contact-sheet.png") as sheet:
        assert sheet.size[1] > 6 * 96  # three episodes of two cameras
