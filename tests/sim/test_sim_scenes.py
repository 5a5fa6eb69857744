"""Scenes rendered in LIBERO's arenas: what the generator says of them is what is in the picture."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from la_reconvla.data.captions import NOUNS
from la_reconvla.data.scenes import load_scenes
from la_reconvla.data.starts import object_kind
from la_reconvla.errors import UserError
from la_reconvla.sim import scenes as module
from la_reconvla.sim.scenes import APART, ARENAS, Arena, ArenaRenderer, ScenesConfig, arrange, render
from la_reconvla.storage import read_json, write_json


@given(st.integers(0, 2**32 - 1), st.integers(1, 8))
@settings(max_examples=50, deadline=None)
def test_things_stand_apart_and_inside_the_arena(seed, count):
    places = arrange(np.random.default_rng(seed), ARENAS[0], count)
    there = places[~np.isnan(places[:, 0])]
    assert len(there) >= 1
    for axis, (low, high) in enumerate((ARENAS[0].x, ARENAS[0].y)):
        assert ((there[:, axis] >= low) & (there[:, axis] <= high)).all()
    between = np.linalg.norm(there[:, None] - there[None], axis=-1) + np.eye(len(there))
    assert between.min() >= APART - 1e-9


@pytest.fixture(scope="module")
def renderer():
    return ArenaRenderer(ARENAS[0], 112, "fast")


@pytest.mark.sim
def test_a_scene_is_a_function_of_its_seed_and_not_of_those_before(renderer):
    first = renderer.scene(np.random.default_rng(5))
    renderer.scene(np.random.default_rng(6))
    again = renderer.scene(np.random.default_rng(5))
    np.testing.assert_array_equal(first.images, again.images)
    np.testing.assert_array_equal(first.maps, again.maps)
    np.testing.assert_array_equal(first.positions, again.positions)


@pytest.mark.sim
def test_what_is_left_out_cannot_be_seen_and_the_rest_stands_where_it_is_said(renderer):
    for seed in range(6):
        scene = renderer.scene(np.random.default_rng(seed))
        absent = np.isnan(scene.positions[0, :, 0])
        assert (scene.pixels[0, absent] == 0).all()
        counted = np.bincount(scene.maps.ravel(), minlength=len(scene.instances) + 1)[1:]
        np.testing.assert_array_equal(scene.pixels[0], counted)
        poses = renderer.env.poses()
        for i in np.flatnonzero(~absent):
            np.testing.assert_allclose(poses[scene.instances[i]].position[:2], scene.positions[0, i], atol=1e-5)


@pytest.mark.sim
def test_left_and_right_in_the_picture_are_those_of_the_world(renderer):
    """y grows to the left (docs/conventions.md): the order of two things by y is the order of their columns."""
    compared = 0
    for seed in range(12):
        scene = renderer.scene(np.random.default_rng(seed))
        seen = [i for i in range(len(scene.instances)) if scene.pixels[0, i] > 60]
        for a, b in itertools.pairwise(seen):
            if abs(scene.positions[0, a, 1] - scene.positions[0, b, 1]) > 0.15:
                columns = [np.nonzero(scene.maps[0] == i + 1)[1].mean() for i in (a, b)]
                assert (scene.positions[0, a, 1] > scene.positions[0, b, 1]) == (columns[0] < columns[1])
                compared += 1
    assert compared > 3


@pytest.mark.sim
def test_nothing_stands_in_something_else(renderer):
    for seed in range(6):
        renderer.scene(np.random.default_rng(seed))
        assert not renderer._pierced()
    state = renderer.rest.copy()
    one, two = renderer._pose(state, 0), renderer._pose(state, 1)
    two[:3] = one[:3] + np.array([0.04, 0.0, 0.0])
    renderer.env.set_state(state)
    assert renderer._pierced()


@pytest.mark.parametrize("lacks", ["share", "quality", "kind"])
def test_a_folder_of_before_a_choice_grows(lacks, tmp_path):
    config = ScenesConfig(tmp_path, scenes=4, arenas=(Arena("libero_goal", 0), Arena("libero_object", 3)))
    module.claim_folder(config)
    held = read_json(path := tmp_path / module.CONFIG)
    arenas = [{k: v for k, v in arena.items() if k != lacks} for arena in held["arenas"]]
    write_json(path, {k: v for k, v in held.items() if k != lacks} | {"arenas": arenas})
    module.claim_folder(replace(config, scenes=8))
    with pytest.raises(UserError, match="quality"):
        module.claim_folder(replace(config, quality="official"))
    with pytest.raises(UserError, match="arenas"):
        module.claim_folder(replace(config, arenas=config.arenas[:1]))


@pytest.mark.sim
def test_rendering_goes_on_with_the_same_scenes(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SHARD", 2)
    whole = ScenesConfig(tmp_path / "whole", scenes=4, arenas=(replace(ARENAS[0], share=1.0),), image_size=56)
    monkeypatch.setattr(module, "worker_pool", inline_pool)
    assert render(whole) == 6
    cut = replace(whole, out=tmp_path / "cut", scenes=2)
    render(cut)
    render(replace(cut, scenes=4))
    for split in ("train", "test"):
        ours, expected = load_scenes(cut.out, split), load_scenes(whole.out, split)
        np.testing.assert_array_equal(ours.images, expected.images)
    assert {object_kind(name) for name in expected.instances} <= set(NOUNS)


class inline_pool:
    """Work in this process, where `SHARD` is the test's."""

    def __init__(self, *_):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, function, *arguments):
        from concurrent.futures import Future

        future: Future = Future()
        future.set_result(function(*arguments))
        return future
