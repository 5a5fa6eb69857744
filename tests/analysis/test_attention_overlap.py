"""Grounding metrics against drawn maps, brute force over all choices, and rank statistics."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import mannwhitneyu

from la_reconvla.analysis import attention_overlap as grounding
from la_reconvla.errors import UserError

SMALL = 8
scores = hnp.arrays(np.int64, SMALL, elements=st.integers(0, 3)).filter(lambda x: x.sum() > 0)  # many ties
targets = hnp.arrays(bool, SMALL)


def iou(picked: set[int], target: set[int]) -> float:
    return len(picked & target) / len(picked | target)


def brute_overlap(saliency: np.ndarray, target: np.ndarray, k: int) -> float:
    """Mean IoU over all k-subsets that no other k-subset beats in summed score."""
    subsets = [set(c) for c in combinations(range(saliency.size), k)]
    best = max(sum(saliency[i] for i in s) for s in subsets)
    wanted = set(np.flatnonzero(target).tolist())
    return float(np.mean([iou(s, wanted) for s in subsets if sum(saliency[i] for i in s) == best]))


def draw(rows: str) -> np.ndarray:
    return np.array([[float(c) for c in rows.replace("/", "")]])


def test_a_map_drawn_on_the_target_scores_its_ceiling() -> None:
    coverage = draw("0000/0110/0110/0000")
    found = grounding.measure(coverage + 0.01, coverage)
    assert found.patches.item() == 4
    assert found.aos.item() == found.aos_ceiling.item() == found.aos_g.item() == 1.0  # k = ceil(16/4) = 4 = g
    assert found.auroc.item() == found.pointing.item() == 1.0
    assert found.mass.item() == pytest.approx(4.04 / 4.16)
    assert found.mass_over_area.item() == pytest.approx(4.04 / 4.16 / 0.25)


def test_a_map_drawn_beside_the_target_scores_nothing() -> None:
    found = grounding.measure(draw("9900/9900/0000/0000"), draw("0000/0000/0011/0011"))
    assert found.aos.item() == found.aos_g.item() == found.mass.item() == found.pointing.item() == 0.0
    assert found.auroc.item() == pytest.approx(4 * 8 / 2 / (4 * 12))  # it ties with the 8 other zeros, loses to 4


def test_the_published_ceiling_of_a_small_object() -> None:
    """Six of 196 patches: 49 picks cannot overlap by more than 6/49, however good the map."""
    coverage = np.zeros((1, 196))
    coverage[0, :6] = 1
    found = grounding.measure(coverage + 1e-3, coverage)
    assert found.aos_ceiling.item() == pytest.approx(6 / 49)
    assert found.aos.item() == pytest.approx(6 / 49)
    assert found.aos_g.item() == 1.0


@pytest.mark.parametrize("g", [1, 3, 16])
def test_a_constant_map_scores_exactly_chance(g: int) -> None:
    coverage = np.zeros((1, 16))
    coverage[0, :g] = 0.5
    found = grounding.measure(np.full((1, 16), 0.3), coverage)
    assert found.aos.item() == pytest.approx(found.aos_chance.item())
    assert found.aos_g.item() == pytest.approx(found.aos_g_chance.item())
    assert found.pointing.item() == pytest.approx(g / 16)
    assert found.mass_over_area.item() == pytest.approx(1.0)


@given(k=st.integers(1, SMALL), g=st.integers(1, SMALL))
def test_chance_is_the_mean_over_all_choices(k: int, g: int) -> None:
    every = [iou(set(c), set(range(g))) for c in combinations(range(SMALL), k)]
    assert grounding.chance(SMALL, np.array([k]), np.array([g])).item() == pytest.approx(np.mean(every))


@given(saliency=scores, target=targets, k=st.integers(1, SMALL))
def test_overlap_is_the_mean_over_all_best_choices(saliency: np.ndarray, target: np.ndarray, k: int) -> None:
    found = grounding.overlap(saliency[None].astype(float), target[None], np.array([k])).item()
    assert found == pytest.approx(brute_overlap(saliency, target, k))


@given(saliency=scores, target=targets.filter(lambda t: 0 < t.sum() < SMALL))
def test_auroc_is_the_mann_whitney_statistic(saliency: np.ndarray, target: np.ndarray) -> None:
    statistic = mannwhitneyu(saliency[target], saliency[~target]).statistic
    expected = statistic / (target.sum() * (~target).sum())
    assert grounding.auroc(saliency[None].astype(float), target[None]).item() == pytest.approx(expected)


@given(saliency=scores, target=targets.filter(lambda t: t.any()), scale=st.floats(0.1, 10))
def test_scores_are_bounded_and_scale_free(saliency: np.ndarray, target: np.ndarray, scale: float) -> None:
    coverage = target[None].astype(float)
    first = grounding.measure(saliency[None].astype(float), coverage)
    second = grounding.measure(saliency[None] * scale, coverage)
    assert 0 <= first.aos.item() <= first.aos_ceiling.item() + 1e-12
    assert 0 < first.aos_chance.item() <= first.aos_ceiling.item() + 1e-12
    for metric in ("aos", "aos_g", "mass", "pointing"):
        assert getattr(first, metric).item() == pytest.approx(getattr(second, metric).item())


def test_frames_without_the_target_are_excluded_and_counted() -> None:
    coverage = np.array([[0.0, 0.0, 0.0, 0.0], [0.5, 0.0, 0.0, 0.0]])
    found = grounding.measure(np.ones((2, 4)), coverage)
    assert found.visible.tolist() == [False, True]
    hidden, shown = found.frames()
    assert hidden.visible is False
    shown_only = ("aos", "aos_chance", "aos_ceiling", "mass", "pointing", "auroc")
    assert {getattr(hidden, name) for name in shown_only} == {None}
    assert None not in vars(shown).values()


def test_threshold_is_exclusive() -> None:
    coverage = np.array([[0.1, 0.2, 0.3, 0.0]])
    assert grounding.measure(np.ones((1, 4)), coverage, threshold=0.2).patches.item() == 1
    assert grounding.measure(np.ones((1, 4)), coverage).patches.item() == 3


@pytest.mark.parametrize(
    "saliency", [np.full((1, 4), np.nan), np.zeros((1, 4)), -np.ones((1, 4)), np.ones((1, 5)), np.ones(4)]
)
def test_maps_that_cannot_be_measured_are_refused(saliency: np.ndarray) -> None:
    with pytest.raises(UserError, match="saliency"):
        grounding.measure(saliency, np.ones((1, 4)))


def test_instruction_difference() -> None:
    first = np.array([[1.0, 0.0], [1.0, 1.0], [2.0, 0.0]])
    second = np.array([[0.0, 3.0], [2.0, 2.0], [1.0, 1.0]])
    expected = [1.0, 0.0, 1 - np.sqrt(0.5)]
    np.testing.assert_allclose(grounding.instruction_difference(first, second), expected, atol=1e-12)


# ---------------------------------------------------------------- average precision, sharpness, controls


def by_thresholds(saliency: np.ndarray, target: np.ndarray) -> float:
    """Average precision as its definition has it: one threshold after the other."""
    total, recall = 0.0, 0.0
    for threshold in sorted(set(saliency.tolist()), reverse=True):
        picked = saliency >= threshold
        hits = int((picked & target).sum())
        total += (hits / target.sum() - recall) * hits / picked.sum()
        recall = hits / target.sum()
    return total


@given(scores, targets.filter(lambda x: x.any()))
def test_average_precision_is_that_of_its_definition(saliency: np.ndarray, target: np.ndarray) -> None:
    found = grounding.average_precision(saliency[None].astype(float), target[None]).item()
    assert found == pytest.approx(by_thresholds(saliency, target))
    assert 0 < found <= 1
    assert found == pytest.approx(grounding.average_precision(7.0 * saliency[None] ** 3, target[None]).item())


def test_average_precision_by_hand() -> None:
    target = np.array([[True, False, True, False]])
    assert grounding.average_precision(np.array([[4.0, 1, 3, 2]]), target).item() == 1.0
    assert grounding.average_precision(np.array([[1.0, 4, 2, 3]]), target).item() == pytest.approx((1 / 3 + 2 / 4) / 2)
    assert grounding.average_precision(np.ones((1, 4)), target).item() == 0.5  # g / n
    assert np.isnan(grounding.average_precision(np.ones((1, 4)), np.zeros((1, 4), bool)).item())


def test_sharpness_by_hand() -> None:
    maps = np.array([[1.0, 1, 1, 1], [0, 3, 0, 0], [1, 1, 0, 0]])
    assert grounding.entropy(maps).tolist() == pytest.approx([1.0, 0.0, 0.5])


@given(targets.filter(lambda x: 0 < x.sum() < SMALL))
def test_a_constant_map_scores_chance_in_everything(target: np.ndarray) -> None:
    found = grounding.measure(grounding.uniform(1, (2, 4)), target[None].astype(float))
    assert found.aos.item() == pytest.approx(found.aos_chance.item())
    assert found.aos_g.item() == pytest.approx(found.aos_g_chance.item())
    assert found.auroc.item() == 0.5
    assert found.average_precision.item() == pytest.approx(target.mean())
    assert found.mass_over_area.item() == pytest.approx(1.0)
    assert found.pointing.item() == pytest.approx(target.mean())


def test_the_centre_prior_is_highest_in_the_middle_and_symmetric() -> None:
    prior = grounding.centre_prior(2, (4, 6)).reshape(2, 4, 6)
    assert np.allclose(prior, prior[:, ::-1])
    assert np.allclose(prior, prior[:, :, ::-1])
    assert prior[0].argmax() in (8, 9, 14, 15)
    assert prior[0, 0, 0] == prior[0].min()


def test_the_mean_over_maps_is_the_mean_of_their_scores() -> None:
    coverage = draw("1100/0000")
    both = [grounding.measure(m, coverage) for m in (draw("9911/1111"), draw("1111/1199"))]
    (found,) = grounding.averaged(both)
    assert found.pointing == 0.5
    assert found.visible is True
    assert found.patches == 2
    assert found.aos == pytest.approx(np.mean([one.aos.item() for one in both]))
    with pytest.raises(UserError, match="at least two instructions"):
        grounding.averaged([])
