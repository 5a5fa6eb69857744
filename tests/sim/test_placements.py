"""Wide placements: what instructions mean as geometry, what a draw may move, and what the simulator makes of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from expert import placement_summary
from hypothesis import given
from hypothesis import strategies as st

from la_reconvla.sim.env import Pose

pytest.importorskip("libero", reason="needs the sim extra")

from la_reconvla.data.starts import Start, object_kind
from la_reconvla.errors import UserError
from la_reconvla.sim.expert import Expert
from la_reconvla.sim.libero import LiberoEnv
from la_reconvla.sim.placements import target_position, wide_starts
from la_reconvla.sim.tasks import load_suite, load_task, official_start
from la_reconvla.sim.wide_scenes import ROOM, Layout, Wide, propose
from la_reconvla.sim.wide_targets import NEXT_TO, BowlRelation, asks, bowl_relation, instructions

SPATIAL = "libero_spatial"
BOWLS = ("akita_black_bowl_1", "akita_black_bowl_2")
RAMEKIN = "glazed_rim_porcelain_ramekin_1"
FACING = np.array([0.0, 0.0, 0.0, 1.0])
coordinates = st.floats(-0.4, 0.4)


def layout(**places: tuple[float, ...]) -> Layout:
    """Poses from drawn places: x, y and, where it matters, z (m)."""
    return {name: Pose(np.array([*place, 0.9][:3], dtype=float), FACING) for name, place in places.items()}


def drawn(first: tuple[float, ...], second: tuple[float, ...]) -> Layout:
    """A table with a plate, a ramekin and the cookies box where LIBERO puts them, and two bowls."""
    furniture = {"wooden_cabinet_1": (0.04, -0.27), "flat_stove_1": (-0.42, -0.13)}
    standing = {"plate_1": (0.06, 0.20), RAMEKIN: (-0.20, 0.20), "cookies_1": (0.07, 0.03)}
    return layout(akita_black_bowl_1=first, akita_black_bowl_2=second, **standing, **furniture)


# ---------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("task", "first", "second"),
    [
        (0, "between the plate and the ramekin", "next to the ramekin"),
        (1, "next to the ramekin", "next to the cookies box"),
        (2, "from table center", "next to the plate"),
        (3, "on the cookies box", "on the wooden cabinet"),
        (4, "in the top layer of the wooden cabinet", "on the wooden cabinet"),
        (5, "on the ramekin", "on the cookies box"),
        (6, "next to the cookies box", "on the stove"),
        (7, "on the stove", "on the wooden cabinet"),
        (8, "next to the plate", "next to the ramekin"),
        (9, "on the wooden cabinet", "on the stove"),
    ],
)
def test_each_bowl_has_liberos_own_words_for_where_it_is(task, first, second):
    said = instructions(load_task(SPATIAL, task))
    assert list(said) == list(BOWLS)
    for bowl, where in zip(BOWLS, (first, second), strict=True):
        assert said[bowl] == f"pick the akita black bowl {where} and place it on the plate"


@pytest.mark.parametrize(("suite", "able"), [("libero_goal", "1, 2, 4, 6, 8, 9"), ("libero_10", "none")])
def test_scenes_without_two_things_to_ask_for_are_refused(suite, able):
    with pytest.raises(UserError, match=f"have them: {able}.*--placement official"):
        wide_starts(suite, 0, "test", [0])


PICKING = [("libero_object", task) for task in range(10)] + [("libero_goal", task) for task in (1, 2, 4, 6, 8, 9)]


@pytest.mark.parametrize(("suite", "number"), PICKING)
def test_a_second_instruction_of_the_suite_asks_for_another_thing_of_the_scene(suite, number):
    task = load_task(suite, number)
    own, other = asks(task)
    assert (own.target, own.destination, own.instruction) == (task.target, task.destination, task.instruction)
    assert other.target != own.target
    assert other.target in task.objects
    assert task.instance(other.destination)  # named in this scene
    (said,) = [t for t in load_suite(suite) if t.instruction == other.instruction]
    assert (said.target, said.destination) == (other.target, other.destination)
    assert task.goal_for(other.target, other.destination) == said.goal
    assert instructions(task) == {ask.target: ask.instruction for ask in (own, other)}


@pytest.mark.parametrize(("suite", "times"), [("libero_object", (1, 3)), ("libero_goal", (2, 2))])
def test_all_instructions_come_about_equally_often(suite, times):
    said = Counter(ask.instruction for name, task in PICKING if name == suite for ask in asks(load_task(suite, task)))
    assert set(said) == {load_task(suite, task).instruction for name, task in PICKING if name == suite}
    assert (min(said.values()), max(said.values())) == times


@pytest.mark.parametrize("suite", ["libero_object", "libero_goal"])
def test_what_is_asked_for_is_the_only_one_of_its_kind(suite):
    for task in (load_task(name, number) for name, number in PICKING if name == suite):
        kinds = Counter(object_kind(name) for name in task.objects)
        assert all(kinds[object_kind(ask.target)] == 1 for ask in asks(task))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("libero_spatia", 0, "test", [0]), "libero_spatial"),
        ((SPATIAL, 10, "test", [0]), "0 to 9"),
        ((SPATIAL, 0, "tset", [0]), "test"),
        ((SPATIAL, 0, "test", [-1]), "from 0"),
    ],
)
def test_bad_arguments_are_named_before_anything_starts(arguments, message):
    with pytest.raises(UserError, match=message):
        wide_starts(*arguments)


# ---------------------------------------------------------------- geometry


def holds(task: int, bowl: int, first: tuple[float, ...], second: tuple[float, ...]) -> bool:
    """Whether the instruction of a bowl of a table-top task picks it out in a drawn scene."""
    scene = drawn(first, second)
    target, other = BOWLS[bowl - 1], BOWLS[2 - bowl]
    return bowl_relation(load_task(SPATIAL, task), target, scene).picks_out(target, other, scene)


def test_next_to_holds_near_the_thing_and_nearer_than_the_other_bowl():
    beside_ramekin, beside_box, far = (-0.20, 0.31), (0.14, -0.07), (-0.20, -0.05)
    assert holds(1, 1, beside_ramekin, beside_box)
    assert holds(1, 2, beside_ramekin, beside_box)
    assert not holds(1, 1, far, beside_box)  # too far from the ramekin
    assert not holds(1, 1, (-0.20, 0.32), (-0.09, 0.20))  # the other bowl is as near to the ramekin
    assert not holds(1, 2, (0.0, 0.03), beside_box)  # the first bowl is nearer to the box


def test_between_holds_in_the_middle_only():
    beside_ramekin = (-0.20, 0.32)
    assert holds(0, 1, (-0.07, 0.20), beside_ramekin)
    assert not holds(0, 1, (-0.07, 0.27), beside_ramekin)
    assert not holds(0, 1, (0.16, 0.20), beside_ramekin)


def test_the_centre_is_liberos_centre_of_the_table():
    beside_plate = (0.0, 0.31)
    assert holds(2, 1, (-0.075, 0.0), beside_plate)
    assert holds(2, 1, (-0.01, -0.05), beside_plate)
    assert not holds(2, 1, (0.06, 0.0), beside_plate)


def test_on_holds_where_the_bowl_rested_officially():
    resting = drawn((0.07, 0.03, 0.917), (0.02, -0.28, 1.126))
    on_box = bowl_relation(load_task(SPATIAL, 3), BOWLS[0], resting)
    assert on_box.picks_out(*BOWLS, resting)
    assert not on_box.picks_out(*BOWLS, drawn((0.14, 0.03, 0.90), (0.02, -0.28, 1.126)))  # fell beside it
    on_cabinet = bowl_relation(load_task(SPATIAL, 3), BOWLS[1], resting)
    assert on_cabinet.picks_out(*BOWLS[::-1], resting)
    assert not on_cabinet.picks_out(*BOWLS[::-1], drawn((0.07, 0.03, 0.917), (0.02, -0.28, 1.06)))  # in the drawer


@given(coordinates, coordinates, coordinates, coordinates, st.floats(0.01, 0.5))
def test_a_relation_never_picks_out_both_bowls(x1, y1, x2, y2, limit):
    scene = drawn((x1, y1), (x2, y2))
    near = BowlRelation(("plate_1",), (0, 0, 0), limit)
    assert not (near.picks_out(*BOWLS, scene) and near.picks_out(*BOWLS[::-1], scene))


@given(coordinates, coordinates, coordinates, coordinates, coordinates, coordinates)
def test_relations_between_things_do_not_depend_on_where_all_of_them_are(x1, y1, x2, y2, dx, dy):
    scene = drawn((x1, y1), (x2, y2))
    moved = {name: Pose(pose.position + np.array([dx, dy, 0.0]), pose.quaternion) for name, pose in scene.items()}
    for near in (BowlRelation(("plate_1",), (0, 0, 0), NEXT_TO), BowlRelation(("plate_1", RAMEKIN), (0, 0, 0), 0.05)):
        assert near.distance(BOWLS[0], moved) == pytest.approx(near.distance(BOWLS[0], scene))


# ---------------------------------------------------------------- draws


def distances(scene: Layout, names: tuple[str, ...]) -> np.ndarray:
    points = np.array([scene[name].position for name in names])
    return np.linalg.norm(points[:, None] - points[None], axis=-1)


@given(st.integers(0, 2**32 - 1))
def test_without_jitter_what_stands_on_the_table_moves_as_one(seed):
    task, scene = load_task(SPATIAL, 1), drawn((-0.20, 0.32), (0.13, -0.08))
    moved = propose(task, scene, Wide(jitter=0.0), np.random.default_rng(seed))
    assert distances(moved, task.objects) == pytest.approx(distances(scene, task.objects))
    middle = [np.mean([s[name].position for name in task.objects], axis=0) for s in (scene, moved)]
    assert np.linalg.norm(middle[1] - middle[0]) <= Wide().shift + 1e-9
    assert [moved[name].position[2] for name in task.objects] == [0.9] * 5


@given(st.integers(0, 2**32 - 1))
def test_what_stands_on_a_thing_goes_with_it_and_furniture_keeps_its_bowl(seed):
    task, scene = load_task(SPATIAL, 3), drawn((0.075, 0.03, 0.917), (0.02, -0.28, 1.126))
    moved = propose(task, scene, Wide(), np.random.default_rng(seed))
    carried = (BOWLS[0], "cookies_1")
    assert distances(moved, carried) == pytest.approx(distances(scene, carried))
    slid = moved[BOWLS[1]].position - scene[BOWLS[1]].position
    assert np.linalg.norm(slid) <= ROOM["wooden_cabinet_1_top_side"]
    assert slid[2] == 0


@given(st.integers(0, 2**32 - 1))
def test_groceries_turn_with_the_scene_and_the_basket_does_not(seed):
    task = load_task("libero_object", 0)
    scene = {name: Pose(np.array([0.1 * i, -0.05 * i, 0.05]), FACING) for i, name in enumerate(task.objects)}
    moved = propose(task, scene, Wide(jitter=0.0), np.random.default_rng(seed))
    assert distances(moved, task.objects) == pytest.approx(distances(scene, task.objects))
    assert moved["basket_1"].quaternion == pytest.approx(FACING)
    turned = moved["milk_1"].position - moved["butter_1"].position
    before = scene["milk_1"].position - scene["butter_1"].position
    turn = np.arctan2(turned[1], turned[0]) - np.arctan2(before[1], before[0])
    assert abs(np.sin(turn / 2)) == pytest.approx(abs(moved["milk_1"].quaternion[2]))


# ---------------------------------------------------------------- in LIBERO


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("placements")


@pytest.fixture(scope="module")
def pair(cache: Path) -> list[Start]:
    """One test scene of task 1, with either target."""
    return wide_starts(SPATIAL, 1, "test", [0, 1], cache)


@pytest.mark.sim
def test_starts_come_in_pairs_and_are_the_same_every_time_however_they_are_asked_for(pair, cache):
    first, second = pair
    assert np.array_equal(first.state, second.state)
    assert (first.target, second.target) == BOWLS
    assert first.instruction != second.instruction
    assert first.id != second.id
    fresh = wide_starts(SPATIAL, 1, "test", [3, 1])  # other company, other order, no cache
    cached = wide_starts(SPATIAL, 1, "test", [1, 0], cache)
    assert np.array_equal(fresh[1].state, second.state)
    assert [start.index for start in fresh] == [3, 1]
    assert [start.index for start in cached] == [1, 0]
    assert all(np.array_equal(start.state, first.state) for start in cached)
    assert not np.array_equal(fresh[0].state, first.state)
    summary = placement_summary([*fresh, first])
    assert summary["starts"] == 3
    assert summary["apart_median"] == pytest.approx(
        np.linalg.norm((target_position(fresh[0]) - target_position(fresh[1]))[:2])
    )


@pytest.mark.parametrize("allowed", [False, True])
def test_any_mujoco_reaches_the_simulator_that_makes_scenes(monkeypatch, allowed):
    monkeypatch.setattr("mujoco.__version__", "3.4.0")
    monkeypatch.setattr("la_reconvla.sim.wide_scenes.SceneMaker", lambda *_: Mock(make=lambda *_: np.zeros(3)))
    if allowed:
        assert len(wide_starts(SPATIAL, 1, "test", [0, 1], allow_any_mujoco=True)) == 2
    else:
        with pytest.raises(UserError, match=r"MuJoCo 3\.4\.0 is installed"):
            wide_starts(SPATIAL, 1, "test", [0, 1])


@pytest.mark.sim
def test_training_and_test_scenes_differ(pair):
    (train,) = wide_starts(SPATIAL, 1, "train", [0])
    assert np.linalg.norm(target_position(train) - target_position(pair[0])) > 1e-3
    assert train.split == "train"


@pytest.mark.sim
def test_either_bowl_can_be_put_on_the_plate_from_where_the_start_says_it_is(pair):
    with LiberoEnv() as env:
        for start in pair:
            env.reset(start)
            poses = env.poses()
            for name in env.task.objects:
                place = 1 + 9 + 7 * env.task.objects.index(name)
                assert poses[name].position == pytest.approx(start.state[place : place + 3], abs=0.002)
            other = BOWLS[1 - BOWLS.index(start.target)]
            landmark = RAMEKIN if "ramekin" in start.instruction else "cookies_1"
            near, far = (
                np.linalg.norm(poses[bowl].position - poses[landmark].position) for bowl in (start.target, other)
            )
            assert near < NEXT_TO
            assert far > near
            expert = Expert()
            expert.reset(start, env)
            for _ in range(env.max_steps):
                env.step(expert.act(), stop_at_success=False)
            assert env.success()
            away = env.poses()[other].position - poses[other].position
            assert np.linalg.norm(away) < 0.02


@pytest.mark.sim
@pytest.mark.parametrize(("suite", "task"), [("libero_object", 0), ("libero_goal", 9)])
def test_one_scene_is_solved_under_either_instruction_and_judged_by_its_own_goal(suite, task, tmp_path):
    first, second = wide_starts(suite, task, "test", [0, 1], tmp_path)
    assert np.array_equal(first.state, second.state)
    assert first.instruction != second.instruction
    assert (first.index, second.index) == (0, 1)
    summary = placement_summary([first, second])
    assert summary["starts"] == 2
    with LiberoEnv() as env:
        for start in (first, second):
            env.reset(start)
            assert env.poses()[start.target].position == pytest.approx(target_position(start), abs=0.004)
            expert = Expert()
            expert.reset(start, env)
            while not expert.finished and not env.step(expert.act(), stop_at_success=False).done:
                pass
            assert env.success()
            other = second if start is first else first
            env._set_goal(env.task.goal_for(other.target, other.destination))
            assert not env.success()


@pytest.mark.sim
def test_a_damaged_cache_is_named(pair, cache):
    (path,) = cache.glob("*.npz")
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(UserError, match=r"delete the file"):
            wide_starts(SPATIAL, 1, "test", [0], cache)
    finally:
        path.write_bytes(whole)


def test_official_starts_are_liberos():
    start = official_start(load_task(SPATIAL, 8), 3)
    assert (start.placement, start.split, start.index) == ("official", "test", 3)
    assert start.instruction == "pick the akita black bowl next to the plate and place it on the plate"
