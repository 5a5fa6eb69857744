"""Scenes on disk, sentences about them and what they are true of, and the questions that judge attention."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from la_reconvla.data.captions import (
    FALSE,
    HELD_OUT_WORDINGS,
    NOUNS,
    SIDES,
    TRUE,
    UNSURE,
    WORDINGS,
    Between,
    Caption,
    Captioner,
    Centre,
    Expression,
    NextTo,
    held_out_pair,
    say,
)
from la_reconvla.data.scenes import Scenes, load_scenes
from la_reconvla.data.starts import object_kind
from la_reconvla.errors import UserError
from la_reconvla.study import word_questions, words

INSTANCES = ("akita_black_bowl_1", "akita_black_bowl_2", "glazed_rim_porcelain_ramekin_1", "plate_1")
BOWL, RAMEKIN, PLATE = "akita_black_bowl", "glazed_rim_porcelain_ramekin", "plate"


def scenes_of(*places, instances=INSTANCES, size=56, cells=4) -> Scenes:
    """One scene for each list of (x, y) or None; instance i is a square in cell i of the picture's first row."""
    m, o = len(places), len(instances)
    positions = np.full((m, o, 2), np.nan, np.float32)
    maps = np.zeros((m, size, size), np.uint8)
    side = size // cells
    for j, row in enumerate(places):
        for i, place in enumerate(row):
            if place is not None:
                positions[j, i] = place
                maps[j, :side, i * side : (i + 1) * side] = i + 1
    pixels = np.stack([(maps == i + 1).sum((1, 2)) for i in range(o)], 1).astype(np.int32)
    images = np.repeat(maps[..., None] * 40, 3, -1)
    return Scenes(("table",) * m, instances, images, maps, positions, pixels)


ONE = scenes_of([(0.0, 0.0), (0.3, 0.3), (0.1, 0.0), None])


def test_an_expression_means_the_bowl_that_its_relation_holds_of():
    both, near = Expression(BOWL), Expression(BOWL, NextTo(), (RAMEKIN,))
    assert both.meant(ONE, np.array([0]))[0].tolist() == [TRUE, TRUE, FALSE, FALSE]
    assert near.meant(ONE, np.array([0]))[0].tolist() == [TRUE, FALSE, FALSE, FALSE]
    assert Expression(BOWL, NextTo(), (PLATE,)).meant(ONE, np.array([0])).max() == FALSE  # there is no plate


def test_what_is_hidden_or_too_close_to_call_is_neither_true_nor_false():
    scenes = scenes_of([(0.0, 0.0), None, (0.18, 0.0), None])
    assert Expression(BOWL, NextTo(), (RAMEKIN,)).meant(scenes, np.array([0])).max() == UNSURE
    scenes.pixels[0, 0] = 5
    assert Expression(BOWL).meant(scenes, np.array([0])).max() == UNSURE
    scenes.pixels[0, 0] = 0
    assert Expression(BOWL).meant(scenes, np.array([0])).max() == FALSE


coordinates = st.tuples(st.floats(-0.3, 0.3), st.floats(-0.3, 0.3))


@given(at=coordinates, a=coordinates, b=coordinates)
def test_relations_agree_with_their_definitions(at, a, b):
    def graded(distance, yes, no):
        return TRUE if distance <= yes else UNSURE if distance <= no else FALSE

    here, first, second = (np.array([place]) for place in (at, a, b))
    assert NextTo()(here, [first])[0] == graded(np.hypot(at[0] - a[0], at[1] - a[1]), 0.16, 0.20)
    middle = np.hypot(at[0] - (a[0] + b[0]) / 2, at[1] - (a[1] + b[1]) / 2)
    spread = np.hypot(a[0] - b[0], a[1] - b[1])
    assert Between()(here, [first, second])[0] == min(graded(middle, 0.05, 0.08), graded(spread, 0.40, 0.45))
    assert Centre()(here, [])[0] == graded(np.hypot(at[0] + 0.075, at[1]), 0.10, 0.13)
    left, right, front, back = (side(here, [])[0] for side in SIDES)
    assert (left == TRUE) == (at[1] >= 0.12)
    assert (right == TRUE) == (at[1] <= -0.05)
    assert (front == TRUE) == (at[0] >= 0.06)
    assert (back == TRUE) == (at[0] <= -0.12)
    assert min(left, right) == FALSE
    assert min(front, back) == FALSE


def test_sides_are_those_of_the_picture():
    """y grows to the left of the picture and x towards its lower edge: docs/conventions.md."""
    words = [(side.word, side.axis, side.sign) for side in SIDES]
    assert words == [("left", 1, 1), ("right", 1, -1), ("front", 0, 1), ("back", 0, -1)]


def test_positions_that_are_not_there_make_nothing_true():
    nowhere = np.full((1, 2), np.nan)
    here = np.zeros((1, 2))
    for relation in (NextTo(), Between(), Centre(), *SIDES):
        assert relation(nowhere, [here] * relation.places)[0] == FALSE
        if relation.places:
            assert relation(here, [nowhere] * relation.places)[0] == FALSE


def random_scenes(seed: int, m: int = 6) -> Scenes:
    rng = np.random.default_rng(seed)
    places = [[rng.uniform(-0.3, 0.3, 2) if rng.random() < 0.8 else None for _ in INSTANCES] for _ in range(m)]
    places[0][0] = np.zeros(2)
    return scenes_of(*places)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_captions_are_true_of_their_scene_and_name_no_held_out_pair(seed):
    scenes, rng = random_scenes(seed), np.random.default_rng(seed)
    captioner = Captioner(scenes)
    for index in range(len(scenes)):
        caption = captioner.caption(rng, index)
        if caption is None:
            assert not [e for e in captioner.true_of(index) if not e.held_out]
            continue
        assert caption.truth(scenes, np.array([index]))[0] == TRUE
        assert not caption.expression.held_out
        assert any(noun in caption.text for noun in NOUNS[caption.expression.target_kind])


def test_held_out_pairs_and_wordings_are_never_drawn():
    assert not set(WORDINGS) & set(HELD_OUT_WORDINGS)
    assert held_out_pair(BOWL, PLATE)
    assert not held_out_pair(BOWL, RAMEKIN)
    pairs = [(a, b) for a in NOUNS for b in NOUNS if a != b]
    assert 0.1 < np.mean([held_out_pair(*pair) for pair in pairs]) < 0.3
    assert all(held_out_pair(a, b) == held_out_pair(b, a) for a, b in pairs)
    scenes = scenes_of([(0.0, 0.0), None, (0.1, 0.0), (0.0, 0.1)])  # bowl, ramekin and plate, all next to each other
    captioner, rng = Captioner(scenes), np.random.default_rng(0)
    drawn = [captioner.caption(rng, 0) for _ in range(300)]
    said = [c.expression for c in drawn if c and c.expression.others[1:] == ()]
    near = {frozenset((e.target_kind, *e.others)) for e in said}
    assert frozenset((BOWL, RAMEKIN)) in near
    assert frozenset((BOWL, PLATE)) not in near


def test_a_request_presupposes_the_place_that_it_mentions():
    caption = Caption("put the bowl on the plate", Expression(BOWL), onto=PLATE)
    with_plate = scenes_of([(0, 0), None, None, (0.2, 0.2)], [(0, 0), None, None, None], [None, None, None, (0, 0)])
    assert caption.truth(with_plate, np.arange(3)).tolist() == [TRUE, UNSURE, FALSE]


def test_wordings_with_a_place_need_one():
    rng = np.random.default_rng(0)
    for _ in range(50):
        assert "{" not in say(rng, Expression(BOWL, NextTo(), (RAMEKIN,)), None).text
        assert say(rng, Expression(BOWL), PLATE).truth(ONE, np.array([0]))[0] in (TRUE, UNSURE)


# ---------------------------------------------------------------- files


def test_scenes_survive_the_disk_and_join_over_all_instances(tmp_path):
    other = scenes_of([(0.1, 0.1), (0.2, 0.2)], instances=("milk_1", "plate_1"))
    folder = tmp_path / "arena" / "train"
    ONE.save(folder / "0000.safetensors")
    other.save(folder / "0001.safetensors")
    both = load_scenes(tmp_path, "train")
    assert len(both) == 2
    assert both.instances == tuple(sorted({*INSTANCES, "milk_1"}))
    plate, milk = both.instances.index("plate_1"), both.instances.index("milk_1")
    np.testing.assert_allclose(both.positions[1, plate], (0.2, 0.2))
    assert np.isnan(both.positions[0, milk]).all()
    assert both.pixels[1, milk] == other.pixels[0, 0]
    np.testing.assert_array_equal(both.maps[1] == plate + 1, other.maps[0] == 2)
    np.testing.assert_array_equal(both.images[0], ONE.images[0])


def test_missing_and_damaged_scenes_are_named(tmp_path):
    with pytest.raises(UserError, match="la-reconvla data scenes"):
        load_scenes(tmp_path, "test")
    path = tmp_path / "arena" / "test" / "0000.safetensors"
    ONE.save(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match="0000"):
        load_scenes(tmp_path, "test")


# ---------------------------------------------------------------- questions

GRID = (4, 4)


def judged(maps_of, scenes=None):
    scenes = scenes or scenes_of([(0.0, 0.0), (0.3, 0.3), (0.1, 0.0), (0.25, -0.25)])
    asked = word_questions.questions(scenes)
    maps = np.array([maps_of(q) for q in asked])
    return asked, words.judge(asked, maps, np.ones((len(asked), 16)), scenes, words.patch_shares(scenes, GRID))


def spot(column):
    map_ = np.full(16, 0.01)
    map_[column] = 1.0
    return map_


def test_questions_mean_one_thing_and_cover_alike_things():
    asked, _ = judged(lambda q: spot(q.target))
    assert {object_kind(INSTANCES[q.target]) for q in asked} == {BOWL, RAMEKIN, PLATE}
    apart = [q for q in asked if q.alike >= 0]
    assert apart
    assert all({q.target, q.alike} == {0, 1} for q in apart)
    assert any("next to" in q.text or "beside" in q.text or "close to" in q.text for q in apart)
    assert not any(q.target in (0, 1) and q.alike < 0 for q in asked)  # "the bowl" means two things here


def test_an_oracle_wins_every_question_and_a_liar_none():
    asked, answers = judged(lambda q: spot(q.target))
    means = answers.means()
    assert means["named"] == means["distinguished_by_things"] == means["pointing"] == means["auroc"] == 1.0
    _, liar = judged(lambda q: spot(q.alike if q.alike >= 0 else (q.target + 1) % 4))
    means = liar.means()
    assert means["named"] == means["distinguished_by_things"] == means["pointing"] == 0.0
    assert np.isfinite(answers.named).sum() == sum(q.alike < 0 for q in asked)
    assert means["named_chance"] == 0.25


def test_a_map_without_preference_wins_half_of_the_pairs():
    means = judged(lambda q: np.ones(16))[1].means()
    assert means["distinguished_by_things"] == means["distinguished_by_places"] == means["auroc"] == 0.5
    assert means["aid"] == pytest.approx(0.0)


def test_things_that_share_their_patch_share_the_win():
    scenes = scenes_of([None, None, (0.0, 0.0), (0.2, 0.2)], cells=8)  # squares 2 and 3 fill half of patch 1 each
    _, answers = judged(lambda q: spot(1), scenes)
    assert answers.means()["named"] == 0.5


def test_small_things_count_for_pointing_and_large_ones_stand_beside_them():
    """A square covers a sixteenth of its patch."""
    scenes = scenes_of([None, None, (0.0, 0.0), (0.2, 0.2)], size=112, cells=16)
    asked, answers = judged(lambda q: spot(0), scenes)
    assert np.isfinite(answers.pointing).all()
    assert not np.isfinite(answers.pointing_large).any()
    assert answers.means()["pointing"] == 1.0
    assert len(asked) == 2


def test_the_wrong_word_changes_the_name_and_nothing_else():
    scenes = scenes_of([(0.0, 0.0), (0.3, 0.3), (0.1, 0.0), (0.25, -0.25)])
    names = sorted({noun for nouns in NOUNS.values() for noun in nouns}, key=len, reverse=True)

    def frame(text: str, first: str) -> tuple[str, str]:
        noun = next(noun for noun in names if noun in NOUNS[first] and noun in text)
        before, after = text.split(noun, 1)
        return before, after

    for seed in range(10):
        for q in word_questions.questions(scenes, seed):
            assert q.wrong != q.text
            wrong = {object_kind(name) for name in INSTANCES} - {q.expression.target_kind}
            assert frame(q.text, q.expression.target_kind) in [
                frame(q.wrong, head) for head in wrong if any(noun in q.wrong for noun in NOUNS[head])
            ]


def test_a_relation_to_a_thing_has_that_thing_as_its_landmark():
    for q in word_questions.questions(scenes_of([(0.0, 0.0), (0.3, 0.3), (0.1, 0.0), (0.25, -0.25)])):
        assert (q.landmark is None) == (not q.expression.others)
        if q.landmark:
            assert any(noun in q.landmark for noun in NOUNS[q.expression.others[0]])


def test_controls():
    scenes = scenes_of([(0.0, 0.0), None, (0.1, 0.0), None], [(0.0, 0.0), None, None, None])
    prior = words.centre_priors(scenes, GRID)["table"]
    assert prior.argmax() == 0
    assert prior[2] == pytest.approx(0.5, abs=1e-3)
    asked = word_questions.questions(scenes)
    maps = np.random.default_rng(0).random((len(asked), 16))
    means = words.mean_maps(asked, maps)
    first = [i for i, q in enumerate(asked) if q.scene == 0]
    np.testing.assert_allclose(means[first[0]], maps[first].mean(0))


def test_coverage_is_the_share_of_each_patch():
    covered = words.patch_shares(ONE, GRID)
    assert covered.shape == (1, 4, 16)
    assert covered[0, 0].tolist() == [1.0] + [0.0] * 15
    assert covered[0, 3].sum() == 0
