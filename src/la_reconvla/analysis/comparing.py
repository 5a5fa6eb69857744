"""Paired comparisons of a study: the declared family, what is exploratory, floors, and losses on other suites."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from la_reconvla.analysis.comparisons import Comparison
from la_reconvla.analysis.decisions import equivalence, holm
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
from la_reconvla.analysis.measures import EPISODE_METRICS
from la_reconvla.analysis.other_suites import loss
from la_reconvla.analysis.paired import paired_means, paired_successes
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
    binary = metric in EPISODE_METRICS and metric != "smallest_distance"
    found = (
        paired_successes(left.astype(bool), right.astype(bool), seeds, tasks, new_seeds=new_seeds)
        if binary
        else paired_means(left, right, seeds, tasks, new_seeds=new_seeds)
    )
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
        equivalence=equivalence(found.tost, same_within) if binary else None,
        note=found.note,
        scenes=None if metric in EPISODE_METRICS else different(pairs),
        effect=found.effect,
    )


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
    return (
        *_family(evidence, declared.family, declared.same_within),
        *_compared(evidence, list(dict.fromkeys(beside)), declared.same_within),
        *_against_floors(evidence, floors),
        *_losses(evidence, elsewhere, declared.losses),
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


def _family(evidence: Mapping[str, Evidence], family: Sequence[Key], same_within: float) -> list[Comparison]:
    """The declared comparisons whose data exist, corrected together."""
    made = _compared(evidence, family, same_within)
    return [replace(c, p_holm=p) for c, p in zip(made, holm([c.p for c in made]), strict=True)]


def _compared(evidence: Mapping[str, Evidence], keys: Sequence[Key], same_within: float) -> list[Comparison]:
    """The comparisons (a, b, metric) of two arms whose data exist."""
    return [
        comparison(a, b, ours, theirs, metric, same_within=same_within)
        for a, b, metric in keys
        if a in evidence
        and b in evidence
        and (ours := by_unit(evidence[a], metric))
        and (theirs := by_unit(evidence[b], metric))
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
    evidence: Mapping[str, Evidence], elsewhere: Sequence[OtherStartsEvidence], pairs: Sequence[tuple[str, str]]
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
    for (a, b), suite in ((pair, suite) for suite in found for pair in pairs if {*pair} <= {*found[suite]}):
        home = official if {a, b} <= {*official} else {arm: evidence[arm].episodes for arm in (a, b)}
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


def _paired(a: Iterable[EpisodeRecord], b: Iterable[EpisodeRecord]) -> dict[Unit, tuple[bool, bool]]:
    """Success of two arms on the starts that both met."""
    ours, theirs = by_start(a, "tsr"), by_start(b, "tsr")
    return {key: (bool(ours[key]), bool(theirs[key])) for key in ours if key in theirs}
