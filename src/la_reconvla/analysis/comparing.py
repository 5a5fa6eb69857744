"""Paired comparisons of a study: the declared family, what is exploratory, floors, and losses on other suites."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from la_reconvla.analysis.comparisons import Comparison, ComparisonKind, Spread
from la_reconvla.analysis.decisions import Equivalence, equivalence, holm
from la_reconvla.analysis.declaration import DECLARED, Declaration, Key
from la_reconvla.analysis.evidence import (
    Evidence,
    FloorEvidence,
    OtherStartsEvidence,
    Unit,
    by_start,
    by_unit,
    different,
)
from la_reconvla.analysis.intervals import LEVEL, Interval
from la_reconvla.analysis.measures import EPISODE_METRICS, UNBOUNDED
from la_reconvla.analysis.other_suites import loss
from la_reconvla.analysis.paired import paired_means, paired_successes
from la_reconvla.analysis.pooled import Student, pooled
from la_reconvla.analysis.retained import retained
from la_reconvla.analysis.trainings import grid
from la_reconvla.conditions import Condition, nearest
from la_reconvla.episodes import EpisodeRecord
from la_reconvla.errors import UserError


def comparison(
    a: str,
    b: str,
    ours: Mapping[Unit, float],
    theirs: Mapping[Unit, float],
    metric: str = "tsr",
    *,
    new_seeds: bool = True,
    same_within: float = DECLARED.same_within,
    study: Mapping[str, Mapping[Unit, float]] | None = None,
) -> Comparison:
    """Paired difference of `metric` between two policies, over the starts (or held-out scenes) that both have.

    A value of b with seed None is the partner of every seed of a: a floor without training meets each trained policy.

    Args:
        a: name of the first policy.
        b: name of the second.
        ours: values of the first policy (`la_reconvla.analysis.evidence.by_unit`).
        theirs: values of the second.
        metric: see `Comparison`.
        new_seeds: speak of training again with new seeds; False speaks of these very policies.
        same_within: margin of the equivalence of success rates.
        study: values of these two and of all declared arms of the study, of whose trainings the variance is then pooled
            where they suffice (`la_reconvla.analysis.trainings`); None for the pair alone.

    Raises:
        UserError: nothing is paired.
    """
    partner = {key: key if key in theirs else (None, *key[1:]) for key in ours}
    pairs = [key for key, other in partner.items() if other in theirs]
    if not pairs:
        raise UserError(
            f"{a} and {b} have no (seed, task, start) in common for {metric}: evaluate both on the same starts"
        )
    left, right = np.array([ours[k] for k in pairs]), np.array([theirs[partner[k]] for k in pairs])
    seeds, tasks = [k[0] for k in pairs], [k[1] for k in pairs]
    binary = _successes(metric)
    found = (
        paired_successes(left.astype(bool), right.astype(bool), seeds, tasks, new_seeds=new_seeds)
        if binary
        else paired_means(left, right, seeds, tasks, new_seeds=new_seeds)
    )
    bounds = (-np.inf, np.inf) if metric in UNBOUNDED else (-1.0, 1.0)
    found = replace(found, interval=found.interval.within(*bounds))
    told = equivalence(found.tost, same_within) if binary else None
    spread, p_margin, student = (
        "pair",
        None,
        None if study is None else _over_all_arms(a, b, pairs, metric, study, bounds),
    )
    if isinstance(student, str):
        found = replace(found, note=f"The spread is that of these two alone: {student}. {found.note}".strip())
        told = told and "undecided"  # without the p of the margin it cannot be corrected
    elif student is not None:
        spread = "pair varies more" if student.own else "all arms"
        interval, tost = (Interval(*map(float, student.ends(level))) for level in (LEVEL, 0.90))
        note = f"{SPREADS[spread]} {found.note}".strip()
        found = replace(found, interval=interval, tost=tost, p=float(student.p), note=note)
        if binary:
            told, p_margin = equivalence(tost, same_within), float(student.p_margin(same_within))
    return Comparison(
        a=a,
        b=b,
        metric=metric,
        difference=found.estimate,
        low=found.interval.low,
        high=found.interval.high,
        p=found.p,
        p_holm=None,
        n=found.n,
        a_mean=float(left.mean()),
        b_mean=float(right.mean()),
        unmatched=len(ours) - len(pairs) + len(set(theirs) - {partner[k] for k in pairs}),
        seeds=len(set(seeds)),
        agreement=found.agreement,
        equivalence=told,
        note=found.note,
        scenes=None if metric in EPISODE_METRICS else different(pairs),
        effect=found.effect,
        spread=spread,
        p_margin=p_margin,
    )


def _over_all_arms(
    a: str,
    b: str,
    pairs: Sequence[Unit],
    metric: str,
    study: Mapping[str, Mapping[Unit, float]],
    bounds: tuple[float, float],
) -> Student | str:
    """The difference with the spread of all arms that met these starts under these seeds, or why there is none."""
    found = grid(study, pairs, metric, (a, b))
    if isinstance(found, str):
        return found
    student = pooled(found.values, found.tasks, found.scenes, successes=_successes(metric), bounds=bounds)
    return student if student.error > 0 else "nothing varies"


def _successes(metric: str) -> bool:
    return metric in EPISODE_METRICS and metric != "smallest_distance"


SPREADS: dict[Spread, str] = {
    "all arms": "How much trainings vary was taken from all declared arms.",
    "pair varies more": "Trainings of these two vary more than those of the other arms: their own spread was taken.",
}


def all_comparisons(
    evidence: Mapping[str, Evidence],
    floors: Sequence[FloorEvidence],
    elsewhere: Sequence[OtherStartsEvidence],
    declared: Declaration,
    arms: Sequence[Condition] = (),
) -> tuple[Comparison, ...]:
    """Those of the declared comparisons whose data exist, what is exploratory, each arm against its floors, and losses
    on other suites; `arms` as in `undeclared`.
    """
    beside = [key for key in (declared.equivalence, *declared.exploratory) if key not in declared.family]
    beside += undeclared(arms, declared)
    compared = [_compared(evidence, keys, declared) for keys in (declared.family, list(dict.fromkeys(beside)))]
    losses = _losses(evidence, elsewhere, declared)
    correct = _corrected if declared.pooled else _corrected_of_before
    family, others, losses = correct(compared[0], compared[1], losses, declared)
    return (*family, *others, *_against_floors(evidence, floors), *losses)


Compared = tuple[list[Comparison], list[Comparison], list[Comparison]]


def _corrected_of_before(
    family: list[Comparison], others: list[Comparison], losses: list[Comparison], _: Declaration
) -> Compared:
    """Holm's correction over those of the family that were made."""
    adjusted = holm([c.p for c in family])
    return [replace(c, p_holm=p) for c, p in zip(family, adjusted, strict=True)], others, losses


def _corrected(
    family: list[Comparison], others: list[Comparison], losses: list[Comparison], declared: Declaration
) -> Compared:
    """Holm's correction over all that is declared: the family, whether it was made or not, H1's equivalence and H4.

    What was not made has p = 1, so that no family shrinks because an arm was not run. H4 claims all of its comparisons,
    so the largest of their p stands for them: of the shares that are retained, and of being no worse by the margin.
    """
    equal = {c.key: c.p_margin for c in (*family, *others) if (c.a, c.b, c.metric) == declared.equivalence}
    retained = [c for c in losses if c.kind == "retained"]
    no_worse = [
        min(1.0, 2 * c.p_margin) if c.difference > -declared.same_within else 1.0
        for c in losses
        if c.kind == "elsewhere" and c.p_margin is not None
    ]
    claimed = {
        "H1": max((p for p in equal.values() if p is not None), default=1.0),
        "H4": max((*(c.p for c in retained), *no_worse), default=1.0),
    }
    beside = [id for id in claimed if id in declared.claims]
    absent = len(declared.family) - len(family)
    adjusted = holm([*(c.p for c in family), *(claimed[id] for id in beside), *absent * [1.0]])
    of_claim = dict(zip(beside, adjusted[len(family) :], strict=False))

    def told(c: Comparison) -> Comparison:
        if "H1" not in of_claim or equal.get(c.key) is None:
            return c
        side: Equivalence = "equivalent" if abs(c.difference) < declared.same_within else "different"
        decided = of_claim["H1"] < declared.alpha
        return replace(c, p_margin=of_claim["H1"], equivalence=side if decided else "undecided")

    return (
        [told(replace(c, p_holm=p)) for c, p in zip(family, adjusted, strict=False)],
        [told(c) for c in others],
        [replace(c, p_holm=of_claim["H4"]) if c in retained and "H4" in of_claim else c for c in losses],
    )


def undeclared(arms: Sequence[Condition], declared: Declaration) -> list[Key]:
    """Comparisons of each arm that no declared comparison between two of `arms` names, with `nearest` of them.

    They are by success and action error, and exploratory: nobody said before the run that they would be made.
    """
    ids = {arm.id for arm in arms}
    keys = (*declared.family, declared.equivalence, *declared.exploratory)
    named = {id for a, b, _ in keys if {a, b} <= ids for id in (a, b)}
    pairs = {
        frozenset((arm.id, other.id)): (arm.id, other.id)  # each pair once, whichever of the two asked for it
        for arm in arms
        if arm.id not in named
        for other in nearest(arm, arms)
    }
    return [(a, b, metric) for a, b in pairs.values() for metric in ("tsr", "action_error")]


def _compared(evidence: Mapping[str, Evidence], keys: Sequence[Key], declared: Declaration) -> list[Comparison]:
    """The comparisons (a, b, metric) of two arms whose data exist, by the declared rule."""
    metrics = {metric for _, _, metric in keys}
    of_metric = {metric: {arm: by_unit(found, metric) for arm, found in evidence.items()} for metric in metrics}
    return [
        comparison(
            a,
            b,
            values[a],
            values[b],
            metric,
            same_within=declared.same_within,
            study={arm: values[arm] for arm in values if arm in {a, b, *declared.arms}} if declared.pooled else None,
        )
        for a, b, metric in keys
        for values in [of_metric[metric]]
        if values.get(a) and values.get(b)
    ]


def _against_floors(evidence: Mapping[str, Evidence], floors: Sequence[FloorEvidence]) -> list[Comparison]:
    """Each arm against its own floors, and against those that are nobody's: these very policies are judged."""
    return [
        comparison(arm, floor.id, ours, theirs, metric, new_seeds=False)
        for floor in floors
        for arm, found in evidence.items()
        for metric in ("tsr", "action_error")
        if floor.condition in (None, arm) and (ours := by_unit(found, metric)) and (theirs := by_unit(floor, metric))
    ]


def _losses(
    evidence: Mapping[str, Evidence], elsewhere: Sequence[OtherStartsEvidence], declared: Declaration
) -> list[Comparison]:
    """By how much more one arm loses than another on each other suite; see `la_reconvla.analysis.other_suites`.

    Home is the study's own suite on official states, which other suites are met on, where the study has both arms
    there, else the study's own starts.
    """
    # Where each state has two instructions, half of the episodes are those of home: nothing was changed for them.
    changed = [e for e in elsewhere if e.change != "counterfactual"]
    trained = [e for e in changed if e.floor is None and e.condition in evidence and e.episodes]
    found: dict[str, dict[str, Sequence[EpisodeRecord]]] = {}
    for e in trained:
        found.setdefault(e.suite, {})[str(e.condition)] = e.episodes
    official, made = found.pop("", {}), []
    for (a, b), suite in ((pair, suite) for suite in found for pair in declared.losses if {*pair} <= {*found[suite]}):
        home = official if {a, b} <= {*official} else {arm: seen.episodes for arm, seen in evidence.items()}
        if declared.pooled and (a, b) == declared.losses[0]:
            made += _retained(a, b, suite, home, found[suite], declared)
        here, there = _paired(home[a], home[b]), _paired(found[suite][a], found[suite][b])
        if not {key[0] for key in here} & {key[0] for key in there}:
            continue
        lost = loss(here, there)
        made.append(
            Comparison(
                a=a,
                b=b,
                metric="tsr",
                kind="loss",
                suite=suite,
                difference=lost.a - lost.b,
                low=lost.interval.low,
                high=lost.interval.high,
                p=lost.p,
                p_holm=None,
                n=lost.n,
                a_mean=lost.a,
                b_mean=lost.b,
                a_home=lost.a_home,
                b_home=lost.b_home,
                seeds=lost.seeds,
                note=f"At home: {'official states' if home is official else 'own starts'}. {lost.note}".strip(),
            )
        )
    return made


def _retained(
    a: str,
    b: str,
    suite: str,
    home: Mapping[str, Sequence[EpisodeRecord]],
    away: Mapping[str, Sequence[EpisodeRecord]],
    declared: Declaration,
) -> list[Comparison]:
    """What both retain on this suite and how they succeed there, by the pooled rule; nothing where that is too little.

    See `la_reconvla.analysis.retained`.
    """
    values = [
        {arm: by_start(episodes, "tsr") for arm, episodes in place.items() if arm in declared.arms}
        for place in (home, away)
    ]
    found = retained(a, b, values[0], values[1], declared.same_within)
    if found is None:
        return []
    kinds: tuple[tuple[ComparisonKind, Student, tuple[float, float], int], ...] = (
        ("retained", found.share, found.shares, found.starts[0]),
        ("elsewhere", found.elsewhere, found.away, found.starts[1]),
    )
    return [
        Comparison(
            a=a,
            b=b,
            metric=kind,
            kind=kind,
            suite=suite,
            difference=float(student.estimate),
            low=float(student.ends(LEVEL)[0]),
            high=float(student.ends(LEVEL)[1]),
            p=float(student.p),
            p_holm=None,
            n=found.n,
            a_mean=means[0],
            b_mean=means[1],
            a_home=found.home[0],
            b_home=found.home[1],
            seeds=found.seeds,
            spread="all arms" if not student.own else "pair varies more" if found.pooled else "pair",
            p_margin=float(student.p_side(-declared.same_within)) if kind == "elsewhere" else None,
            starts=starts,
        )
        for kind, student, means, starts in kinds
        if student.error > 0
    ]


def _paired(a: Iterable[EpisodeRecord], b: Iterable[EpisodeRecord]) -> dict[Unit, tuple[bool, bool]]:
    """Success of two arms on the starts that both met."""
    ours, theirs = by_start(a, "tsr"), by_start(b, "tsr")
    return {key: (bool(ours[key]), bool(theirs[key])) for key in ours if key in theirs}
