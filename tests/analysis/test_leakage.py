"""What training and evaluation share: found by name and by where things stand, and then nothing is decided."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from la_reconvla.analysis.comparisons import Hypothesis
from la_reconvla.analysis.leakage import Shown, audit, pretraining, same_state, wide_scene, withheld
from la_reconvla.analysis.measures import Leak

LAYOUT = ("libero_spatial", 0)


def shown(ids: tuple[str, ...], places: np.ndarray, told: str = "take the bowl", kinds: str = "plate") -> Shown:
    """Starts in which two things stand at `places` (m) [m 2 2]; the first is the target."""
    scenes = frozenset(scene for id in ids if (scene := wide_scene(id)))
    named = frozenset(same_state(id) for id in ids)
    tasks = frozenset("/".join(id.split("/")[:2]) for id in named)
    return Shown(named, scenes, frozenset({told}), frozenset({kinds}), {LAYOUT: places[:, 0]}, {LAYOUT: places}, tasks)


def wide(split: str, *numbers: int) -> tuple[str, ...]:
    return tuple(f"libero_spatial/0/wide/{split}/{number}" for number in numbers)


PLACES = np.random.default_rng(0).uniform(-0.2, 0.2, (4, 2, 2))
TRAINING = shown(wide("train", 0, 1, 2, 3), PLACES)


def found(rows: list[Leak], what: str) -> Leak:
    return next(row for row in rows if row.what.startswith(what))


def test_other_scenes_with_the_same_words_and_things_are_no_leak() -> None:
    rows = audit(TRAINING, shown(wide("test", 0, 1), PLACES[:2] + 0.03))
    assert [row.verdict for row in rows] == ["none", "none", "by design", "by design"]
    gaps = np.linalg.norm(PLACES[:2, None, 0] + 0.03 - PLACES[None, :, 0], axis=-1).min(1)
    assert f"{1000 * gaps.min():.1f} mm at least" in rows[0].note


def test_a_state_is_found_by_its_name() -> None:
    row = audit(TRAINING, shown(wide("train", 3), PLACES[3:] + 0.03))[0]
    assert (row.verdict, row.shared) == ("leak", 1)


def test_a_state_is_found_by_where_things_stand_whatever_it_is_called() -> None:
    settled = PLACES[2:3] + 0.0004
    row = audit(TRAINING, shown(wide("test", 7), settled))[0]
    assert (row.verdict, row.shared) == ("leak", 1)
    settled[0, 1] += 0.005  # the other thing stands elsewhere: another state with the target in the same place
    assert audit(TRAINING, shown(wide("test", 7), settled))[0].verdict == "none"


def test_the_partner_of_a_trained_start_shows_the_same_scene() -> None:
    training = shown(wide("train", 0), PLACES[:1])
    row = found(audit(training, shown(wide("train", 1), PLACES[:1] + 0.03)), "scenes")
    assert (row.verdict, row.shared) == ("leak", 1)


def test_an_official_state_is_one_state_whatever_its_split() -> None:
    one, two = (f"libero_spatial/0/official/{split}/4" for split in ("train", "test"))
    assert same_state(one) == same_state(two)
    assert wide_scene(one) is None


def test_demonstrations_that_name_no_start_leave_it_unknown() -> None:
    foreign = Shown(frozenset(), frozenset(), frozenset({"take the bowl"}), frozenset())
    rows = audit(foreign, shown(wide("test", 0), PLACES[:1]), "home")
    assert [row.verdict for row in rows] == ["unknown", "unknown", "by design", "unknown"]
    assert all(row.what.endswith("(home)") for row in rows)


def test_unheard_words_and_new_things_are_named() -> None:
    rows = audit(TRAINING, shown(wide("test", 0), PLACES[:1] + 0.03, "lift it", "yellow_plate"))
    assert found(rows, "instructions").note.startswith("1 of 1 were never heard")
    assert found(rows, "assets").note.endswith("yellow plate")
    assert {found(rows, what).verdict for what in ("instructions", "assets")} == {"none"}


def test_what_the_backbone_had_seen_is_said() -> None:
    told = "pick the akita black bowl next to the plate and place it on the plate"
    seen = shown(wide("test", 0), PLACES[:1], told)
    assert [row.verdict for row in pretraining(None, None, seen)] == ["none"]
    (row,) = pretraining("words-7x7", None, seen)
    assert (row.verdict, row.shared) == ("by design", 1)
    assert "1 of 1 instructions have the form of a request" in row.note
    (other,) = pretraining("words-7x7", None, replace(seen, instructions=frozenset({"open it"})))
    assert "0 of 1" in other.note
    assert [row.verdict for row in pretraining("other.safetensors", None, seen)] == ["unknown"]
    assert [row.verdict for row in pretraining(None, "google/paligemma-3b-pt-224", seen)] == ["unknown"]


@pytest.mark.parametrize(
    ("tasks", "instructions", "verdicts"),
    [
        ([["libero_spatial", 3]], ["take the bowl"], ["none", "none"]),
        ([["libero_spatial", 0], ["libero_goal", 0]], ["take the bowl"], ["by design", "none"]),
        ([["libero_goal", 0]], ["lift it"], ["none", "by design"]),
    ],
)
def test_tasks_that_pretraining_demonstrated_are_named(tasks, instructions, verdicts) -> None:
    """Weights that have acted are no stranger to the tasks of their demonstrations."""
    seen = shown(wide("test", 0), PLACES[:1], "lift it")
    acted = {"hash": "0", "episodes": 8, "tasks": tasks, "instructions": instructions}
    _, found, heard = pretraining("base.safetensors", None, seen, acted)
    assert [found.verdict, heard.verdict] == verdicts
    assert found.shared == (verdicts[0] != "none")
    assert all(f"{suite}/{task}" in found.note for suite, task in tasks)
    elsewhere = pretraining("base.safetensors", None, seen, acted, "libero_goal, official")
    assert [(row.verdict, row.what) for row in elsewhere[1:]] == [
        (row.verdict, f"{row.what} (libero_goal, official)") for row in (found, heard)
    ]
    assert (found.training, found.evaluation) == (len(tasks), 1)


@pytest.mark.parametrize("verdict", ["none", "by design", "unknown", "leak"])
def test_a_leak_withholds_every_verdict_and_says_so_first(verdict) -> None:
    judged = [Hypothesis("H1", "supported", note="C4 won."), Hypothesis("H3", "refuted", note="C4 lost.")]
    after = withheld(judged, [Leak("initial states", 4, 2, 2, verdict)])
    if verdict != "leak":
        assert after == judged
        return
    assert {h.verdict for h in after} == {"inconclusive"}
    assert all(h.note.startswith("LEAK: training and evaluation share 2 initial states") for h in after)
    assert after[0].note.endswith("C4 won.")
