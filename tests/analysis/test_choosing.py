"""Which starts are watched: small cases with the answer by hand."""

from la_reconvla.analysis.choosing import Chosen, choose
from la_reconvla.episodes import EpisodeRecord, Label, Reached, StartName

FAR = Reached(False, False, False, False, False, 0.3)


def episode(index: int, success: bool, reached: Reached = FAR, task: int = 0) -> EpisodeRecord:
    name = StartName("s", task, "wide", "test", index, "lift it", "bowl_1")
    return EpisodeRecord(Label("C1", 0), name, success, 10, 1.0, reached)


def start(index: int, task: int = 0) -> str:
    return f"s/{task}/wide/test/{index}"


def chosen(outcomes: dict[str, str], **reached: dict[int, Reached]) -> list[tuple[str, str]]:
    """`outcomes`: one letter a start, + success; `reached`: of some starts of an arm."""
    episodes = {
        arm: [episode(i, letter == "+", reached.get(arm, {}).get(i, FAR)) for i, letter in enumerate(letters)]
        for arm, letters in outcomes.items()
    }
    return [(one.start, one.reason) for one in choose(episodes)]


def test_disagreement_comes_first_and_the_most_even_of_it() -> None:
    found = chosen({"A": "+--+", "B": "+-++", "C": "+--+", "D": "+-+-"})
    assert found[:3] == [
        (start(2), "the arms disagree"),  # 2 of 4
        (start(3), "the arms disagree"),  # 3 of 4
        (start(0), "every arm succeeds"),
    ]


def test_every_success_is_there() -> None:
    outcomes = {"A": "+-+-" * 10, "B": "--++" * 10}
    found = dict(chosen(outcomes))
    wanted = {start(i) for i in range(40) if outcomes["A"][i] == "+" or outcomes["B"][i] == "+"}
    assert len(wanted) == 30
    assert wanted <= set(found)


def test_a_hand_at_the_wrong_thing_is_no_nearer() -> None:
    near = {0: Reached(False, True, False, False, False, 0.25), 1: Reached(True, False, False, False, False, 0.01)}
    found = chosen({"A": "--", "B": "--"}, B=near)
    assert found[0] == (start(1), "nearest miss")


def test_the_nearest_misses_go_by_the_stage_and_then_by_the_distance() -> None:
    near = {
        0: Reached(True, False, False, False, False, 0.01),  # near, but nothing was grasped
        1: Reached(True, False, True, True, False, 0.07),  # lifted
        2: Reached(True, False, True, False, False, 0.05),
        3: Reached(True, False, True, False, False, 0.04),
        4: FAR,
    }
    found = chosen({"A": "-----", "B": "-----"}, B=near)
    assert found == [
        (start(1), "nearest miss"),
        (start(3), "nearest miss"),
        (start(2), "nearest miss"),
        (start(0), "first of its task"),
    ]


def test_where_nothing_is_put_anywhere_the_first_of_each_task_is_shown() -> None:
    episodes = {"A": [episode(i, False, Reached(), task) for task in (0, 1) for i in (5, 3)]}
    assert choose(episodes) == [Chosen(start(3), "first of its task"), Chosen(start(3, 1), "first of its task")]
    assert choose({}) == []


def test_an_arm_that_has_not_come_so_far_is_no_disagreement() -> None:
    assert chosen({"A": "++", "B": "+"}) == [(start(0), "every arm succeeds"), (start(1), "every arm succeeds")]
