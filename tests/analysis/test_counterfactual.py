"""Two instructions in one state: counts and intervals worked out by hand, and the expert in a simulator."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from la_reconvla.analysis.counterfactual import counterfactual
from la_reconvla.analysis.intervals import wilson
from la_reconvla.analysis.summaries import following
from la_reconvla.episodes import EpisodeRecord, First, Label, Reached, StartName
from la_reconvla.sim.placements import wide_starts
from la_reconvla.sim.policies import Scripted
from la_reconvla.sim.rollout import EnvSettings, run_episode

BOWLS = ("bowl_1", "bowl_2")


def records(moved: list[tuple[str | None, str | None]], seed: int = 0, task: int = 0) -> list[EpisodeRecord]:
    """Both episodes of each scene: what was moved first when bowl 1 was asked for, and when bowl 2 was."""
    return [
        EpisodeRecord(
            Label("C4", seed),
            StartName("toy", task, "wide", "test", 2 * scene + part, "take it", BOWLS[part]),
            success=False,
            steps=1,
            seconds=0.1,
            moved=first,
        )
        for scene, two in enumerate(moved)
        for part, first in enumerate(two)
    ]


def test_every_outcome_is_counted_once() -> None:
    found = counterfactual(
        records([("bowl_1", "bowl_2"), ("bowl_1", "bowl_1"), ("plate_1", None), ("bowl_2", "bowl_1")])
    )
    assert found is not None
    assert (found.pairs, found.asked, found.other, found.else_moved, found.neither, found.followed) == (
        4,
        3,
        3,
        1,
        1,
        1,
    )
    assert found.preference is not None
    assert (found.preference.rate, found.preference.successes, found.preference.episodes) == (0.5, 3, 6)


def test_going_for_one_thing_whatever_is_said_is_no_preference() -> None:
    found = counterfactual([r for seed in range(3) for r in records([("bowl_1", "bowl_1")] * 20, seed)])
    assert found is not None
    assert found.preference is not None
    assert found.followed == 0
    assert found.preference.rate == 0.5
    assert found.preference.low < 0.5 < found.preference.high


def test_doing_what_is_said_is_told_from_chance() -> None:
    found = counterfactual(records([("bowl_1", "bowl_2")] * 20))
    assert found is not None
    assert found.preference is not None
    assert found.followed == found.pairs == 20
    assert found.preference.low > 0.9
    assert found.preference.high <= 1.0


def test_scenes_that_differ_widen_the_interval_beyond_that_of_independent_episodes() -> None:
    """Half of the scenes obeyed twice, half disobeyed twice: the episodes of a scene count as one."""
    together = counterfactual(records([("bowl_1", "bowl_2"), ("bowl_2", "bowl_1")] * 10))
    apart = counterfactual(records([("bowl_1", "bowl_1")] * 20))
    assert together is not None
    assert apart is not None
    one, two = together.preference, apart.preference
    assert one is not None
    assert two is not None
    assert one.rate == two.rate == 0.5
    assert one.high - one.low > 1.2 * (two.high - two.low)


@pytest.mark.slow
def test_the_interval_covers_what_new_trainings_prefer() -> None:
    """Three seeds whose preference differs (0.8 on the logit scale, about 0.7), twenty scenes, 200 studies."""
    rng = np.random.default_rng(0)
    draws = 1 / (1 + np.exp(-(0.85 + 0.8 * rng.standard_normal(100_000))))
    held = 0
    for _ in range(200):
        found = counterfactual(
            [
                record
                for seed, share in enumerate(rng.choice(draws, 3))
                for record in records(
                    [tuple(BOWLS[i if rng.random() < share else 1 - i] for i in (0, 1)) for _ in range(20)], seed
                )
            ]
        )
        assert found is not None
        assert found.preference is not None
        held += found.preference.low <= draws.mean() <= found.preference.high
    assert held >= 0.94 * 200


def test_what_is_touched_first_is_judged_by_itself() -> None:
    """Both episodes touch bowl 1 and then move what was asked for; a record of before knows of no touch."""
    moved = records([("bowl_1", "bowl_2")] * 4)
    touched = [replace(r, first=First((r.start.target,), "bowl_1", r.moved)) for r in moved]
    found = counterfactual(touched)
    assert found is not None
    assert [(rate.successes, rate.episodes) for rate in (found.preference, found.touched, found.held) if rate] == [
        (8, 8),
        (4, 8),
        (8, 8),
    ]
    before = counterfactual(moved)
    assert before is not None
    assert (before.preference, before.touched, before.held) == (found.preference, None, None)


def test_any_part_of_a_goal_may_come_first() -> None:
    """Two things asked for at once, two others in the other instruction: each of them counts."""
    asked = (("soup", "sauce"), ("cheese", "butter"))
    two = [
        replace(record, first=First(asked[part], thing), moved=thing)
        for record, part, thing in zip(records([(None, None)]), (0, 1), ("sauce", "soup"), strict=True)
    ]
    found = counterfactual(two)
    assert found is not None
    assert (found.asked, found.other, found.followed) == (1, 1, 0)
    assert found.touched is not None
    assert (found.touched.successes, found.touched.episodes) == (1, 2)


def test_following_counts_episodes_in_which_there_was_a_first_thing() -> None:
    """Of ten: 6 touch what was asked for, 2 another thing, 1 nothing, 1 is from before; all move it."""
    things = ["bowl_1"] * 6 + ["plate_1"] * 2 + [None]
    episodes = [
        replace(record, first=First(("bowl_1",), touched), moved="bowl_1")
        for record, touched in zip(records([("bowl_1", None)] * 10)[::2], [*things, None], strict=True)
    ]
    episodes[-1] = replace(episodes[-1], first=None)
    found = following(episodes)
    assert found is not None
    assert found.touched is not None
    interval = wilson(6, 8)
    assert (found.touched.successes, found.touched.episodes) == (6, 8)
    assert (found.touched.low, found.touched.high) == pytest.approx((interval.low, interval.high))
    assert found.held is None
    assert found.moved is not None
    assert (found.moved.successes, found.moved.episodes) == (10, 10), "what is meant is known without the first touch"
    stages = [replace(record, reached=Reached(approached=False)) for record in episodes]
    moved = following(stages)
    assert moved is not None
    assert moved.moved is not None
    assert (moved.moved.successes, moved.moved.episodes) == (10, 10)
    assert following(records([(None, None)])) is None


def test_without_pairs_there_is_nothing_to_say() -> None:
    official = [replace(r, start=replace(r.start, placement="official")) for r in records([("bowl_1", "bowl_2")])]
    for episodes in ([], official, records([("bowl_1", "bowl_2")])[:1]):
        assert counterfactual(episodes) is None
    nothing = counterfactual(records([(None, None)]))
    assert nothing is not None
    assert (nothing.neither, nothing.preference) == (2, None)


@pytest.mark.sim
def test_the_expert_moves_what_it_is_asked_for_first(tmp_path) -> None:
    two = wide_starts("libero_object", 0, "test", [0, 1], tmp_path)
    with EnvSettings().build() as env:
        done = [run_episode(env, Scripted().build(), start) for start in two]
    assert [r.moved for r in done] == [start.target for start in two]
    found = counterfactual(done)
    assert found is not None
    assert (found.pairs, found.asked, found.followed) == (1, 2, 1)
