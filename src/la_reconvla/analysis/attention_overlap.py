"""Does attention rest on the object? Overlap metrics of saliency maps with instance masks, each beside its chance.

Inputs are saliency maps [b n] (one score per patch) and coverage [b n] (the fraction of each patch that the instance
covers). Ties never help: wherever equal scores would leave a choice, the expected value over a fair choice is taken,
so that a constant map scores exactly chance. Frames in which the instance is not visible are NaN, so they are counted.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import hypergeom, rankdata

from la_reconvla.analysis.measures import OverlapValues
from la_reconvla.errors import UserError
from la_reconvla.method.mask import masked_count


@dataclass(frozen=True, eq=False)
class Grounding:
    """One value per frame; NaN where the instance is not visible.

    Attributes:
        visible: whether any patch shows the instance.
        patches: number of patches that show it, g.
        aos: attention overlap score, IoU of the top k = ceil(fraction * n) patches with the instance's patches.
        aos_chance: expected `aos` of k patches chosen at random.
        aos_ceiling: highest possible `aos`, min(k, g) / max(k, g).
        aos_g: IoU with k = g; its ceiling is 1.
        aos_g_chance: expected `aos_g` of g patches chosen at random.
        mass: share of the saliency on the instance's patches.
        mass_over_area: `mass` over the instance's share of the patches; 1 is indifference.
        pointing: whether the highest patch is on the instance.
        auroc: probability that a patch on the instance outranks one off it; 0.5 is indifference.
        average_precision: area under the curve of precision over recall; a constant map has g / n.
        entropy: sharpness of the whole map, entropy over that of a constant one; 1 is flat. It knows no instance.
    """

    visible: Bool[np.ndarray, " b"]
    patches: Int[np.ndarray, " b"]
    aos: Float[np.ndarray, " b"]
    aos_chance: Float[np.ndarray, " b"]
    aos_ceiling: Float[np.ndarray, " b"]
    aos_g: Float[np.ndarray, " b"]
    aos_g_chance: Float[np.ndarray, " b"]
    mass: Float[np.ndarray, " b"]
    mass_over_area: Float[np.ndarray, " b"]
    pointing: Float[np.ndarray, " b"]
    auroc: Float[np.ndarray, " b"]
    average_precision: Float[np.ndarray, " b"]
    entropy: Float[np.ndarray, " b"]

    def frames(self) -> list[FrameOverlap]:
        """One value per frame."""
        columns = {f.name: [_known(v) for v in getattr(self, f.name).tolist()] for f in fields(self)}
        return [FrameOverlap(**dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]


@dataclass(frozen=True, kw_only=True)
class FrameOverlap(OverlapValues):
    """Overlap of one map with one instance in one frame; `patches` show it."""

    visible: bool
    patches: int

    def rounded(self) -> FrameOverlap:
        """To five digits after the point."""
        return replace(self, **{k: round(v, 5) for k, v in asdict(self).items() if isinstance(v, float)})


def _known(value: float | int | bool) -> Any:
    return None if isinstance(value, float) and np.isnan(value) else value


def measure(
    saliency: Float[np.ndarray, "b n"],
    coverage: Float[np.ndarray, "b n"],
    *,
    fraction: float = 0.25,
    threshold: float = 0.0,
) -> Grounding:
    """All grounding metrics of `saliency` against one instance.

    Args:
        saliency: non-negative score of each patch, any scale, not all zero.
        coverage: fraction of each patch's pixels on the instance, in [0, 1].
        fraction: share of patches picked for AOS.
        threshold: a patch belongs to the instance if its coverage is **above** this.

    Raises:
        UserError: if shapes differ or saliency is negative, all zero in a frame or not finite.
    """
    saliency, coverage = _maps(saliency), np.asarray(coverage)
    if saliency.shape != coverage.shape:
        raise UserError(f"saliency {saliency.shape} and coverage {coverage.shape} must be of one patch grid")
    n = saliency.shape[1]
    target = coverage > threshold
    g = target.sum(1)
    visible = g > 0
    area = np.where(visible, g / n, np.nan)
    k = np.full_like(g, masked_count(fraction, n))
    mass = (saliency * target).sum(1) / saliency.sum(1)
    return Grounding(
        visible=visible,
        patches=g,
        aos=_seen(visible, overlap(saliency, target, k)),
        aos_chance=_seen(visible, chance(n, k, g)),
        aos_ceiling=_seen(visible, np.minimum(k, g) / np.maximum(k, g)),
        aos_g=_seen(visible, overlap(saliency, target, g)),
        aos_g_chance=_seen(visible, chance(n, g, g)),
        mass=_seen(visible, mass),
        mass_over_area=mass / area,
        pointing=_seen(visible, pointing(saliency, target)),
        auroc=auroc(saliency, target),
        average_precision=average_precision(saliency, target),
        entropy=entropy(saliency),
    )


def _maps(saliency: Float[np.ndarray, "b n"]) -> Float[np.ndarray, "b n"]:
    """`saliency` in double precision, checked."""
    saliency = np.asarray(saliency, dtype=np.float64)
    if saliency.ndim != 2:
        raise UserError(f"saliency must be [frames, patches], got shape {saliency.shape}")
    if not np.isfinite(saliency).all() or (saliency < 0).any() or (saliency.sum(1) == 0).any():
        raise UserError("saliency must be finite, not negative and not all zero in any frame: check the attention rows")
    return saliency


def _seen(visible: Bool[np.ndarray, " b"], values: Float[np.ndarray, " b"]) -> Float[np.ndarray, " b"]:
    return np.where(visible, values, np.nan)


def overlap(
    saliency: Float[np.ndarray, "b n"], target: Bool[np.ndarray, "b n"], k: Int[np.ndarray, " b"]
) -> Float[np.ndarray, " b"]:
    """IoU of the `k` highest patches with `target`, in expectation over a fair choice among equal scores.

    Args:
        saliency: score of each patch.
        target: True where the instance is.
        k: number of patches picked in each frame; where it is 0 the IoU is 0.
    """
    n = saliency.shape[1]
    kth = np.take_along_axis(-np.sort(-saliency, axis=1), np.clip(k - 1, 0, n - 1)[:, None], axis=1)
    above, level = saliency > kth, saliency == kth
    return _expected_iou(
        sure=(above & target).sum(1),
        tied=level.sum(1),
        tied_hits=(level & target).sum(1),
        picks=np.maximum(k - above.sum(1), 0),
        k=k,
        g=target.sum(1),
    )


def chance(n: int, k: Int[np.ndarray, " b"], g: Int[np.ndarray, " b"]) -> Float[np.ndarray, " b"]:
    """Exact expected IoU of `k` of `n` patches, chosen uniformly at random, with a target of `g`.

    The number of hits X is hypergeometric and IoU = X / (k + g - X). This is not IoU of the expected hits.
    """
    k, g = np.broadcast_arrays(np.asarray(k), np.asarray(g))
    return _expected_iou(sure=np.zeros_like(g), tied=np.full_like(g, n), tied_hits=g, picks=k, k=k, g=g)


def _expected_iou(
    sure: Int[np.ndarray, " b"],
    tied: Int[np.ndarray, " b"],
    tied_hits: Int[np.ndarray, " b"],
    picks: Int[np.ndarray, " b"],
    k: Int[np.ndarray, " b"],
    g: Int[np.ndarray, " b"],
) -> Float[np.ndarray, " b"]:
    """Expected IoU: `sure` patches hit, and `picks` more are drawn from `tied`, of which `tied_hits` would hit."""
    extra = np.arange(max(int(picks.max(initial=0)), 0) + 1)
    probability = hypergeom.pmf(extra, tied[:, None], tied_hits[:, None], picks[:, None])
    hits = sure[:, None] + extra
    union = np.maximum((k + g)[:, None] - hits, 1)  # only impossible hits and empty sets touch the floor of 1
    return (probability * hits / union).sum(1)


def pointing(saliency: Float[np.ndarray, "b n"], target: Bool[np.ndarray, "b n"]) -> Float[np.ndarray, " b"]:
    """Pointing game: 1 if the highest patch is on the target; among equal highest ones the share that is."""
    highest = saliency == saliency.max(1, keepdims=True)
    return (highest & target).sum(1) / highest.sum(1)


def auroc(saliency: Float[np.ndarray, "b n"], target: Bool[np.ndarray, "b n"]) -> Float[np.ndarray, " b"]:
    """Area under the ROC curve of patches as target or not, equal scores counted half; NaN if all patches are alike."""
    n, g = saliency.shape[1], target.sum(1)
    positive_ranks = (rankdata(saliency, axis=1) * target).sum(1)
    pairs = g * (n - g)
    return np.where(pairs > 0, (positive_ranks - g * (g + 1) / 2) / np.maximum(pairs, 1), np.nan)


def average_precision(saliency: Float[np.ndarray, "b n"], target: Bool[np.ndarray, "b n"]) -> Float[np.ndarray, " b"]:
    """Average precision of patches as target or not: sum over thresholds of the gain in recall times precision.

    Equal scores are one threshold, so that their order cannot help; NaN where no patch is the target.
    """
    order = np.argsort(-saliency, axis=1, kind="stable")
    ranked, hits = np.take_along_axis(saliency, order, 1), np.take_along_axis(target, order, 1)
    n, g = saliency.shape[1], target.sum(1)
    found = hits.cumsum(1)
    last = np.ones_like(hits)  # of its score: where a threshold lies
    last[:, :-1] = ranked[:, :-1] != ranked[:, 1:]
    before = np.maximum.accumulate(np.where(last, found, 0), axis=1)
    gained = np.diff(before, axis=1, prepend=0)
    precision = found / np.arange(1, n + 1)
    return np.where(g > 0, (gained * precision * last).sum(1) / np.maximum(g, 1), np.nan)


def entropy(saliency: Float[np.ndarray, "b n"]) -> Float[np.ndarray, " b"]:
    """Shannon entropy of the map as a distribution over patches, divided by log n: 1 is flat, 0 is one patch."""
    share = saliency / saliency.sum(1, keepdims=True)
    terms = np.where(share > 0, share * np.log(np.where(share > 0, share, 1.0)), 0.0)
    return -terms.sum(1) / np.log(saliency.shape[1])


# ---------------------------------------------------------------- controls


def uniform(count: int, grid: tuple[int, int]) -> Float[np.ndarray, "b n"]:
    """A constant map [count n]: by how ties are counted here, what random maps score on average."""
    return np.ones((count, grid[0] * grid[1]))


def centre_prior(count: int, grid: tuple[int, int]) -> Float[np.ndarray, "b n"]:
    """A Gaussian about the middle of the picture, a quarter of its side wide [count n]; it sees no image, no words."""
    y, x = ((np.arange(side) + 0.5) / side - 0.5 for side in grid)
    return np.tile(np.exp(-(y[:, None] ** 2 + x**2) / (2 * 0.25**2)).reshape(1, -1), (count, 1))


def averaged(maps: list[Grounding]) -> list[FrameOverlap]:
    """One value per frame: the mean over several maps of one frame and instance, the expected score of one of them.

    Raises:
        UserError: if there is no map.
    """
    if not maps:
        raise UserError("no maps to average: a control by other instructions needs at least two instructions")
    columns = {f.name: np.mean([getattr(one, f.name) for one in maps], axis=0) for f in fields(Grounding)}
    columns |= {name: getattr(maps[0], name) for name in ("visible", "patches")}
    return Grounding(**columns).frames()


def instruction_difference(
    first: Float[np.ndarray, "b n"], second: Float[np.ndarray, "b n"]
) -> Float[np.ndarray, " b"]:
    """AID: 1 - cosine of the maps of one image under two instructions; 0 means that the words move nothing.

    Raises:
        UserError: if shapes differ or a map is negative, all zero or not finite.
    """
    first, second = _maps(first), _maps(second)
    if first.shape != second.shape:
        raise UserError(f"the two maps must be of equal shape, got {first.shape} and {second.shape}")
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return 1.0 - (first * second).sum(1) / norms
