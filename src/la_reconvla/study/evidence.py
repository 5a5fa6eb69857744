"""From records to results: summaries, paired comparisons and corrections.

Two kinds of records go in, both plain dicts as they stand in JSON lines:

- **episodes**: ``seed``, ``task``, ``start_id``, ``success``, and where known the stages (`STAGES`) and
  ``smallest_distance`` (m). One a rollout. ``seed`` is None for what was not trained, such as blind replay.
- **frames**: ``seed``, ``task``, ``episode``, ``frame`` and any of ``action_error``, ``aid``, the fields of
  `la_reconvla.study.grounding.Grounding` for the target and, with the prefix ``destination_``, for the destination;
  None where not measured. One a held-out frame. Frames are averaged to episodes before anything is compared, because
  frames of one episode are nearly copies of each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from la_reconvla.errors import UserError
from la_reconvla.study import statistics
from la_reconvla.study.counterfactual import counterfactual
from la_reconvla.study.declared import ARM, EXPLORATORY, FAMILY, LOSSES, SAME_WITHIN
from la_reconvla.study.elsewhere import loss
from la_reconvla.study.leakage import withheld
from la_reconvla.study.results import (
    EPISODE_METRICS,
    OVERLAPS,
    SCHEMA,
    STAGES,
    Arm,
    Cell,
    Comparison,
    ConditionResult,
    Count,
    Elsewhere,
    Floor,
    FloorId,
    GroundingMeans,
    Leak,
    Measure,
    Overlap,
    Picture,
    Rate,
    Reference,
    Results,
    Stages,
    Study,
    Tally,
    Video,
)
from la_reconvla.study.verdicts import judge

Record = Mapping[str, Any]
Records = Sequence[Record]


@dataclass(frozen=True)
class Evidence:
    """Everything measured of one policy, over all its seeds.

    Attributes:
        episodes: rollouts.
        frames: held-out frames.
        train: facts of each seed's training.
        metrics: path of each seed's training curves, relative to the study.
    """

    episodes: Records = ()
    frames: Records = ()
    train: Mapping[int, dict[str, Any]] = field(default_factory=dict)
    metrics: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class FloorEvidence:
    """Everything measured of one floor. `condition`: the arm whose policy it is, None if it is none's."""

    id: FloorId
    condition: str | None = None
    episodes: Records = ()
    frames: Records = ()


@dataclass(frozen=True)
class ElsewhereEvidence:
    """Episodes of one policy on other starts than the study's own.

    Attributes:
        placement: kind of starts.
        suite: LIBERO suite, empty if it is the study's own.
        change: what LIBERO-PRO changed in it, empty if nothing.
        condition: arm, None for references and floors that are no arm's.
        floor: floor that it is, None for a policy as trained.
        label: the policy, for people.
        episodes: records, seeds of one policy together.
    """

    placement: str
    label: str
    episodes: Records
    suite: str = ""
    change: str = ""
    condition: str | None = None
    floor: str | None = None


Key = tuple[Any, str, str]


def by_unit(records: Records, metric: str) -> dict[Key, float]:
    """One value of `metric` for each (seed, task, start), or for frames each (seed, task, scene), averaged.

    Episodes of one scene show nearly the same pictures, so the scene is what counts. What was not measured is left out.

    Sorted by start within each seed and task, as the bootstrap over starts wants it.

    Raises:
        UserError: a record lacks a key, or an episode metric occurs twice for one episode.
    """
    name = EPISODE_METRICS.get(metric, metric)
    unit = "start_id" if metric in EPISODE_METRICS else "scene"
    values: dict[Key, list[float]] = {}
    for record in records:
        missing = [key for key in ("seed", "task", unit) if key not in record]
        if missing:
            raise UserError(f"a record of {metric} lacks {', '.join(missing)}: {dict(record)}")
        if record.get(name) is not None:
            values.setdefault((record["seed"], str(record["task"]), str(record[unit])), []).append(float(record[name]))
    if metric in EPISODE_METRICS and any(len(v) > 1 for v in values.values()):
        twice = next(key for key, v in values.items() if len(v) > 1)
        raise UserError(f"episode (seed, task, start) = {twice} is recorded twice: remove one line from its episodes")
    return {key: float(np.mean(values[key])) for key in sorted(values, key=str)}


def comparison(a: str, b: str, a_records: Records, b_records: Records, metric: str = "tsr") -> Comparison:
    """Paired difference of `metric` between two policies, over the starts (or held-out episodes) that both have.

    A record of b with seed None is the partner of every seed of a: a floor without training meets each trained policy.

    Args:
        a: name of the first policy.
        b: name of the second.
        a_records: its episodes, or its frames for a metric of frames.
        b_records: the same of b.
        metric: see `Comparison`.

    Raises:
        UserError: nothing is paired, or as `by_unit`.
    """
    ours, theirs = by_unit(a_records, metric), by_unit(b_records, metric)
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
        statistics.paired_successes(left.astype(bool), right.astype(bool), seeds, tasks)
        if binary
        else statistics.paired_means(left, right, seeds, tasks)
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
        equivalence=statistics.equivalence(found.tost, SAME_WITHIN) if binary else None,
        note=found.note,
        scenes=None if metric in EPISODE_METRICS else _starts(pairs),
    )


def condition_summary(arm: Arm, evidence: Evidence) -> ConditionResult:
    """One arm: a cell for each seed, and success, stages, grounding and action error over all of them."""
    seeds = sorted({r["seed"] for r in (*evidence.episodes, *evidence.frames)} | set(evidence.train))
    return ConditionResult(
        **{f.name: getattr(arm, f.name) for f in fields(Arm)},
        cells=tuple(_cell(seed, evidence) for seed in seeds),
        tsr=rate(evidence.episodes),
        aos=_overlap(evidence.frames),
        stages=_stages(evidence.episodes),
        grounding=_grounding(evidence.frames),
        destination=_grounding(evidence.frames, "destination_"),
        aid=measure(evidence.frames, "aid"),
        action_error=measure(evidence.frames, "action_error"),
        counterfactual=counterfactual(evidence.episodes),
    )


def _cell(seed: int, evidence: Evidence) -> Cell:
    episodes = [r for r in evidence.episodes if r["seed"] == seed]
    frames = [r for r in evidence.frames if r["seed"] == seed]
    return Cell(
        seed=seed,
        train=dict(evidence.train.get(seed, {})),
        tsr=_tally(episodes),
        stages=_stages(episodes),
        grounding=_grounding(frames),
        action_error=measure(frames, "action_error"),
        metrics=evidence.metrics.get(seed),
    )


def rate(episodes: Records) -> Rate | None:
    """Success rate with its interval; None without episodes.

    Wilson's interval takes episodes for independent. Seeds share their starts, so with more than one the interval is
    the hull of Wilson's and the bootstrap's.
    """
    values = by_unit(episodes, "tsr")
    if not values:
        return None
    successes, n = int(sum(values.values())), len(values)
    interval, seeds = statistics.wilson(successes, n), [key[0] for key in values]
    if len(set(seeds)) > 1:
        tasks = [key[1] for key in values]
        interval = interval.hull(statistics.mean_interval(np.array(list(values.values())), seeds, tasks))
    return Rate(successes / n, interval.low, interval.high, successes, n)


def _tally(episodes: Records) -> Tally | None:
    by_task: dict[str, list[float]] = {}
    for (_, task, _), success in by_unit(episodes, "tsr").items():
        by_task.setdefault(task, []).append(success)
    counts = {task: Count(int(sum(values)), len(values)) for task, values in sorted(by_task.items())}
    total = Tally(counts, sum(c.successes for c in counts.values()), sum(c.episodes for c in counts.values()))
    return total if counts else None


def measure(records: Records, metric: str) -> Measure | None:
    """Mean of `metric` over episodes or scenes with its bootstrap interval; None if nothing was measured."""
    values = by_unit(records, metric)
    if not values:
        return None
    array = np.array(list(values.values()))
    interval = statistics.mean_interval(array, [key[0] for key in values], [key[1] for key in values])
    return Measure(float(array.mean()), interval.low, interval.high, _starts(values))


def _starts(keys: Iterable[Key]) -> int:
    """How many different starts or scenes there are: seeds meet the same ones."""
    return len({key[1:] for key in keys})


def _mean(records: Records, metric: str) -> float | None:
    values = by_unit(records, metric)
    return float(np.mean(list(values.values()))) if values else None


def _overlap(frames: Records) -> Overlap | None:
    found, chance, ceiling = measure(frames, "aos"), _mean(frames, "aos_chance"), _mean(frames, "aos_ceiling")
    if found is None or chance is None or ceiling is None:
        return None
    return Overlap(found.mean, found.low, found.high, chance, ceiling, found.n)


def _stages(episodes: Records) -> Stages | None:
    values = {name: _mean(episodes, name) for name in (*STAGES, "smallest_distance")}
    return Stages(**values) if any(v is not None for v in values.values()) else None


def _grounding(frames: Records, prefix: str = "") -> GroundingMeans | None:
    measured = [r for r in frames if f"{prefix}visible" in r]
    if not measured:
        return None
    visible = [r for r in measured if r[f"{prefix}visible"]]
    means = {name: _mean(visible, prefix + name) for name in ("patches", *OVERLAPS)}
    channels = sorted({str(r["channel"]) for r in measured if r.get("channel")})
    return GroundingMeans(
        frames=len(visible), excluded=len(measured) - len(visible), **means, channel=" and ".join(channels) or None
    )


def build(
    study: Study,
    arms: Sequence[tuple[Arm, Evidence]],
    floors: Sequence[FloorEvidence] = (),
    references: Mapping[str, Records] | None = None,
    *,
    elsewhere: Sequence[ElsewhereEvidence] = (),
    leakage: Sequence[Leak] = (),
    pictures: Iterable[Picture] = (),
    videos: Iterable[Video] = (),
    family: Sequence[tuple[str, str, str]] = FAMILY,
) -> Results:
    """All results of a study from its records: summaries, comparisons, corrections and verdicts.

    Args:
        study: facts of the run.
        arms: each condition with what was measured of it.
        floors: what was measured without image, with a grey one, with a wrong instruction, or by blind replay.
        references: episodes of the scripted expert, of a random policy.
        elsewhere: episodes on other starts.
        leakage: what training and evaluation share; where they share what they must not, nothing is decided.
        pictures: for the report.
        videos: for the report.
        family: comparisons (a, b, metric) declared beforehand; those whose data exist are made and Holm-corrected.
    """
    evidence = {arm.id: found for arm, found in arms}
    comparisons = (
        *_family(evidence, family),
        *_compared(evidence, [key for key in (ARM, *EXPLORATORY) if key not in family]),
        *_against_floors(evidence, floors),
        *_losses(evidence, elsewhere),
    )
    return Results(
        schema=SCHEMA,
        study=study,
        conditions=tuple(condition_summary(arm, found) for arm, found in arms),
        floors=tuple(
            Floor(
                f.id,
                f.condition,
                rate(f.episodes),
                measure(f.frames, "action_error"),
                _stages(f.episodes),
                counterfactual(f.episodes),
            )
            for f in floors
        ),
        references=tuple(
            Reference(name, found, _stages(episodes), counterfactual(episodes))
            for name, episodes in (references or {}).items()
            if (found := rate(episodes)) is not None
        ),
        elsewhere=tuple(
            Elsewhere(e.placement, e.label, found, _stages(e.episodes), e.suite, e.condition, e.floor, e.change)
            for e in elsewhere
            if (found := rate(e.episodes)) is not None
        ),
        comparisons=comparisons,
        hypotheses=tuple(withheld(judge(comparisons), leakage)),
        leakage=tuple(leakage),
        pictures=tuple(pictures),
        videos=tuple(videos),
    )


def _family(evidence: Mapping[str, Evidence], family: Sequence[tuple[str, str, str]]) -> list[Comparison]:
    """The declared comparisons whose data exist, corrected together."""
    made = _compared(evidence, family)
    return [replace(c, p_holm=p) for c, p in zip(made, statistics.holm([c.p for c in made]), strict=True)]


def _compared(evidence: Mapping[str, Evidence], keys: Sequence[tuple[str, str, str]]) -> list[Comparison]:
    """The comparisons (a, b, metric) of two arms whose data exist."""
    return [
        comparison(a, b, _records(evidence[a], metric), _records(evidence[b], metric), metric)
        for a, b, metric in keys
        if a in evidence
        and b in evidence
        and _both(_records(evidence[a], metric), _records(evidence[b], metric), metric)
    ]


def _against_floors(evidence: Mapping[str, Evidence], floors: Sequence[FloorEvidence]) -> list[Comparison]:
    """Each arm against its own floors, and against those that are nobody's."""
    return [
        comparison(arm, floor.id, _records(found, metric), _records(floor, metric), metric)
        for floor in floors
        for arm, found in evidence.items()
        for metric in ("tsr", "action_error")
        if floor.condition in (None, arm) and _both(_records(found, metric), _records(floor, metric), metric)
    ]


def _losses(evidence: Mapping[str, Evidence], elsewhere: Sequence[ElsewhereEvidence]) -> list[Comparison]:
    """By how much more one arm loses than another on each other suite; see `la_reconvla.study.elsewhere`.

    Home is the study's own suite on official states, which other suites are met on, where the study has both arms
    there, else the study's own starts.
    """
    trained = [e for e in elsewhere if e.floor is None and e.condition in evidence and e.episodes]
    found: dict[str, dict[str, Records]] = {}
    for e in trained:
        found.setdefault(e.suite, {})[str(e.condition)] = e.episodes
    official, made = found.pop("", {}), []
    for (a, b), suite in ((pair, suite) for suite in found for pair in LOSSES if {*pair} <= {*found[suite]}):
        home = official if {a, b} <= {*official} else {arm: evidence[arm].episodes for arm in (a, b)}
        here, there = _paired(home[a], home[b]), _paired(found[suite][a], found[suite][b])
        if not {key[0] for key in here} & {key[0] for key in there}:
            continue
        lost = loss(here, there)
        made.append(
            Comparison(
                a=a,
                b=b,
                metric=f"loss:{suite}",
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


def _paired(a: Records, b: Records) -> dict[Key, tuple[bool, bool]]:
    """Success of two arms on the starts that both met."""
    ours, theirs = by_unit(a, "tsr"), by_unit(b, "tsr")
    return {key: (bool(ours[key]), bool(theirs[key])) for key in ours if key in theirs}


def _records(evidence: Evidence | FloorEvidence, metric: str) -> Records:
    return evidence.episodes if metric in EPISODE_METRICS else evidence.frames


def _both(a: Records, b: Records, metric: str) -> bool:
    return bool(by_unit(a, metric)) and bool(by_unit(b, metric))
