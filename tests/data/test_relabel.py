"""Other true words for a demonstration: by hand, and that pretraining tells them."""

import numpy as np
import pytest

from la_reconvla.data.captions import NOUNS, Between, Centre, NextTo, Side
from la_reconvla.data.relabel import SAID, Relabeller

INSTANCES = ("akita_black_bowl_1", "akita_black_bowl_2", "cookies_1", "glazed_rim_porcelain_ramekin_1", "plate_1")
NOWHERE = (np.nan, np.nan)
SCENES = np.array(
    [
        # bowl 1 by the ramekin and between it and the plate, bowl 2 by the cookies at the back on the right
        [(0.0, 0.2), (-0.3, -0.2), (-0.2, -0.2), (0.0, 0.08), (0.0, 0.32)],
        # both bowls by the cookies: nothing tells them apart but that one is nearer to the middle of the table
        [(-0.05, 0.0), (-0.05, 0.2), (-0.05, 0.1), (0.3, -0.3), (0.3, 0.3)],
        [(0.0, 0.2), NOWHERE, NOWHERE, NOWHERE, (0.0, 0.5)],  # one bowl alone
    ],
    np.float32,
)
TARGETS = ["akita_black_bowl_1"] * 3


def relabeller(targets: list[str], destination: str = "plate_1") -> Relabeller:
    return Relabeller(INSTANCES, SCENES[: len(targets)], targets, [destination] * len(targets))


def said(index: int, targets: list[str]) -> set[tuple[object, frozenset[str]]]:
    return {(e.relation, frozenset(e.others)) for e in relabeller(targets).true_of(index)}


def test_what_is_true_of_the_target_alone_by_hand():
    ramekin, plate, cookies = "glazed_rim_porcelain_ramekin", "plate", "cookies"
    left = Side("left", 1, 1, 0.12)
    assert said(0, TARGETS) == {
        (NextTo(), frozenset({ramekin})),
        (Between(), frozenset({ramekin, plate})),
        (left, frozenset()),
    }
    other = said(0, ["akita_black_bowl_2"])
    assert (NextTo(), frozenset({cookies})) in other
    assert not any(isinstance(relation, Between) for relation, _ in other)
    alike = said(1, TARGETS)
    assert (NextTo(), frozenset({cookies})) not in alike  # it holds of both
    assert (Centre(), frozenset()) in alike
    assert (None, frozenset()) in said(2, TARGETS)  # a bowl without a twin needs no relation


def test_sentences_name_the_target_s_kind_and_the_destination_and_use_all_that_holds():
    rng, source = np.random.default_rng(0), relabeller(TARGETS)
    sentences = {str(source.sentence(rng, 0)) for _ in range(300)}
    assert all(any(noun in text for noun in NOUNS["akita_black_bowl"]) for text in sentences)
    assert all(any(noun in text for noun in NOUNS["plate"]) for text in sentences)
    for phrase in ("between the", "next to the", "on the left"):
        assert any(phrase in text for text in sentences)
    assert not any("cookie" in text for text in sentences)
    assert len(sentences) > 100


@pytest.mark.parametrize(
    ("target", "destination"),
    [("akita_black_bowl_1", "flat_stove_1_cook_region"), ("wooden_cabinet_1", "plate_1"), ("", "")],
)
def test_nothing_is_said_where_a_name_is_missing(target, destination):
    assert relabeller([target], destination).sentence(np.random.default_rng(0), 0) is None


def test_a_region_of_a_thing_is_called_by_its_owner():
    sentence = relabeller(TARGETS[:1], "plate_1_top_region").sentence(np.random.default_rng(0), 0)
    assert sentence is not None
    assert "plate" in sentence


def test_every_request_says_where_to_put_it():
    assert all("{0}" in wording and "{1}" in wording for wording in SAID)
