"""Paired comparisons and the verdicts that rest on them, as `results.json` holds them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from la_reconvla.analysis.decisions import Equivalence, Verdict
from la_reconvla.analysis.intervals import Agreement
from la_reconvla.analysis.paired import EffectSize

ComparisonKind = Literal["difference", "loss", "retained", "elsewhere"]
Spread = Literal["pair", "all arms", "pair varies more"]


@dataclass(frozen=True)
class ComparisonKey:
    """Name of a comparison: two arms, or an arm and a floor, a metric and, of a loss, the other suite."""

    a: str
    b: str
    metric: str
    suite: str = ""


@dataclass(frozen=True)
class Comparison:
    """A paired difference a - b.

    Attributes:
        a: first arm.
        b: second arm, or a floor.
        metric: ``tsr``, ``aos``, ``action_error``, a stage, or another field of the records; of a loss ``tsr``.
        difference: mean of a - b over the pairs, of losses loss of a minus that of b.
        low: lower end of the 95 % interval.
        high: upper end of the 95 % interval.
        p: two-sided p-value.
        p_holm: corrected over the declared family; None outside it.
        n: number of paired episodes, of held-out frames scenes of each seed.
        a_mean: mean of a over the pairs.
        b_mean: mean of b over the pairs.
        unmatched: episodes of either side without a partner, not used.
        seeds: number of training seeds among the pairs.
        agreement: the 2 x 2 table of successes.
        equivalence: whether two success rates are equal within the declared margin.
        note: what the interval does not cover.
        scenes: of held-out frames, the number of different scenes, however many seeds met them; else None.
        effect: size of the difference free of units; None in results of an earlier version.
        kind: what was compared: the metric itself, or what success loses on another suite.
        suite: of a loss, the other suite; else empty.
        a_home: of a loss, success of a at home; else None.
        b_home: the same of b.
        spread: whose trainings the variance between trainings was taken from (`la_reconvla.analysis.pooled`): of the
            pair alone; of all arms; of the pair, because it varies more than the others.
        p_margin: of two success rates, where all arms were taken, one-sided p of the side of the declared margin that
            they are on (`la_reconvla.analysis.pooled.Student.p_margin`), of the declared equivalence corrected too; of
            those elsewhere, that of the side of minus the margin: of being worse, or of not being.
        starts: of H4's two kinds, starts of each task, of the task with the fewest: of ``retained`` at home, of
            ``elsewhere`` there; else None.
    """

    a: str
    b: str
    metric: str
    difference: float
    low: float
    high: float
    p: float
    p_holm: float | None
    n: int
    a_mean: float | None = None
    b_mean: float | None = None
    unmatched: int = 0
    seeds: int = 1
    agreement: Agreement | None = None
    equivalence: Equivalence | None = None
    note: str = ""
    scenes: int | None = None
    effect: EffectSize | None = None
    kind: ComparisonKind = "difference"
    suite: str = ""
    a_home: float | None = None
    b_home: float | None = None
    spread: Spread = "pair"
    p_margin: float | None = None
    starts: int | None = None

    @property
    def key(self) -> ComparisonKey:
        """Its name among the comparisons of a study."""
        return ComparisonKey(self.a, self.b, self.metric, self.suite)


@dataclass(frozen=True)
class Hypothesis:
    """A claim and its verdict.

    Attributes:
        id: its name.
        verdict: what the data show.
        comparisons: those that it was judged by, in their order; empty if nothing was compared.
        note: what was weighed beside their numbers, in words; empty if nothing was.
        claim: what was declared.
    """

    id: str
    verdict: Verdict
    comparisons: tuple[ComparisonKey, ...] = ()
    note: str = ""
    claim: str = ""
