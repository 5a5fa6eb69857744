"""Recordings drawn again on the real simulator: what they show is what was recorded, and what was not is there."""

from __future__ import annotations

import dataclasses

import h5py
import numpy as np
import pytest

from la_reconvla.data.hdf5 import open_demonstrations
from la_reconvla.data.hdf5_layout import SHARDS
from la_reconvla.data.instances import instance_number
from la_reconvla.errors import UserError
from la_reconvla.sim import render as rendering
from la_reconvla.sim.collect import collect
from la_reconvla.sim.collection_config import CollectConfig
from la_reconvla.sim.options import RenderOptions
from la_reconvla.sim.render import render


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """One wide scene with two episodes, with maps, every eighth step."""
    out = tmp_path_factory.mktemp("recorded") / "demos"
    shown = {"image_size": 64, "frame_stride": 8, "quality": "fast", "wrist": False, "maps": True}
    collect(CollectConfig(out=out, tasks=(0,), demos=2, placement="wide", workers=1, **shown))
    return out


@pytest.mark.sim
@pytest.mark.slow
def test_what_is_drawn_again_is_what_was_recorded(recorded, tmp_path):
    """Pictures and maps of the same size; a file without our attributes on the way, as LIBERO's own are."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (path,) = recorded.glob("*.hdf5")
    with h5py.File(path) as old, h5py.File(theirs / path.name, "w") as new:
        data = new.create_group("data")
        for name in (
            "bddl_file_name",
            "problem_info",
            "env_args",
            "macros_image_convention",
            "frame_stride",
            "quality",
        ):
            data.attrs[name] = old["data"].attrs[name]
        for demo in old["data"]:
            old.copy(old["data"][demo], data)
            for name in set(data[demo].attrs) - {"model_file", "init_state", "num_samples", "instruction"}:
                del data[demo].attrs[name]
            del data[demo]["instances"]
    found = render(theirs, tmp_path / "same", RenderOptions(workers=1))
    assert found.episodes == 2
    assert 0 < found.difference < 2
    assert render(theirs, tmp_path / "same", RenderOptions(workers=1)) == found, "who asks again is told the same"
    ours, again = open_demonstrations(recorded), open_demonstrations(tmp_path / "same")
    assert not (tmp_path / "same" / SHARDS).exists()
    for old, new in zip(ours.episodes, again.episodes, strict=True):
        assert np.abs(old.frames()[0].astype(int) - new.frames()[0]).mean() < 0.5, "nothing moves yet"
        assert np.array_equal(old.actions, new.actions)
        assert (old.suite, old.task, old.instruction) == (new.suite, new.task, new.instruction)
        assert new.wrist().shape == old.frames().shape
        bowl = [maps == number for maps, number in ((e.instances(), instance_number(e, "plate_1")) for e in (old, new))]
        assert (bowl[0] & bowl[1]).sum() > 0.95 * (bowl[0] | bowl[1]).sum() > 0

    larger = RenderOptions(workers=1, image_size=96, frame_stride=16, wrist=False, maps=False)
    render(recorded, tmp_path / "larger", larger)
    found = open_demonstrations(tmp_path / "larger")
    assert (found.image_size, found.frame_stride) == (96, 16)
    assert found.episodes[0].frames().shape[0] == -(-len(found.episodes[0].actions) // 16)
    with pytest.raises(UserError):
        render(recorded, tmp_path / "larger", RenderOptions(workers=1, image_size=128))


@pytest.mark.sim
@pytest.mark.slow
def test_furniture_stands_where_it_stood(recorded, tmp_path, monkeypatch):
    """With the furniture of another reset the pictures differ by more than what moves: so its pose does come back."""
    render(recorded, tmp_path / "right", RenderOptions(workers=1))
    right = open_demonstrations(tmp_path / "right").episodes[0].frames()[0].astype(int)
    episode = open_demonstrations(recorded).episodes[0]
    view = rendering.View(64, "fast", 8, False, False, False)
    monkeypatch.setattr(rendering, "official_start", lambda task, index, seed: _OTHER(task, index, seed=seed + 1))
    monkeypatch.setattr(rendering, "arrange", lambda *_: None)
    rendering._draw(episode, tmp_path / "wrong.hdf5", view)
    with h5py.File(tmp_path / "wrong.hdf5") as file:
        wrong = file["data/demo_0/obs/agentview_rgb"][0][::-1, ::-1].astype(int)
    old = episode.frames()[0].astype(int)
    assert np.abs(right - old).mean() < 0.5 < np.abs(wrong - old).mean()


_OTHER = rendering.official_start


@pytest.mark.sim
def test_what_cannot_be_drawn_is_said_before(recorded, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (path,) = recorded.glob("*.hdf5")
    (other / "open_the_door_demo.hdf5").write_bytes(path.read_bytes())
    with h5py.File(other / "open_the_door_demo.hdf5", "a") as file:
        file["data"].attrs["task_name"], file["data"].attrs["task_index"] = "open_the_door", 99
    with pytest.raises(UserError, match="no task of libero_spatial"):
        render(other, tmp_path / "out", RenderOptions(workers=1))
    nowhere = dataclasses.replace(open_demonstrations(recorded).episodes[0], suite=None)
    with pytest.raises(UserError, match="demo_0 names no suite"):
        rendering.task_of(nowhere)
    with pytest.raises(UserError, match="--image-size must be at least 1"):
        render(recorded, tmp_path / "out", RenderOptions(image_size=-1))
    with h5py.File(other / "open_the_door_demo.hdf5", "a") as file:
        file["data"].attrs["task_name"], file["data"].attrs["task_index"] = "", 1
        file["data/demo_0"].attrs["model_file"] = '<mujoco><worldbody><body name="a_door"/></worldbody></mujoco>'
    with pytest.raises(UserError, match="'a_door', and this task has not"):
        render(other, tmp_path / "out", RenderOptions(workers=1))


def test_folders_rendered_before_the_difference_was_kept_count_as_none(tmp_path):
    with h5py.File(tmp_path / "a_demo.hdf5", "w") as file:
        file.create_group("data/demo_0")
        file.create_group("data/demo_1").attrs[rendering.DIFFERENCE] = 1.5
    assert rendering._stored_difference(tmp_path / "a_demo.hdf5") == 1.5
    with h5py.File(tmp_path / "a_demo.hdf5", "a") as file:
        del file["data/demo_1"]
    assert rendering._stored_difference(tmp_path / "a_demo.hdf5") == 0.0
