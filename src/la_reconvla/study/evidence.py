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

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, get_args

import numpy as np

from la_reconvla.errors import UserError
from la_reconvla.study import statistics
from la_reconvla.study.counterfactual import counterfactual
from la_reconvla.study.declared import DECLARED, Key, declared_in
from la_reconvla.study.elsewhere import loss
from la_reconvla.study.leakage import withheld
from la_reconvla.study.results import (
    EPISODE_METRICS,
    MAP_FIELDS,
    OVERLAPS,
    SCHEMA,
    STAGES,
    Arm,
    Cell,
    Comparison,
    ConditionResult,
    Count,
    Effect,
    Elsewhere,
    Floor,
    FloorId,
    GroundingMeans,
    Leak,
    MapKind,
    MapPart,
    MapPhase,
    MapRow,
    Measure,
    Overlap,
    Picture,
    Rate,
    Reference,
    Results,
    Stages,
    Study,
    Tally,
    Timeline,
    Video,
    Watched,
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
        watched: how each seed's maps changed in training.
    """

    episodes: Records = ()
    frames: Records = ()
    train: Mapping[int, dict[str, Any]] = field(default_factory=dict)
    metrics: Mapping[int, str] = field(default_factory=dict)
    watched: Mapping[int, tuple[Watched, ...]] = field(default_factory=dict)


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


Unit = tuple[Any, str, str]


def by_unit(records: Records, metric: str) -> dict[Unit, float]:
    """One value of `metric` for each (seed, task, start), or for frames each (seed, task, scene), averaged.

    Episodes of one scene show nearly the same pictures, so the scene is what counts. What was not measured is left out.

    Sorted by start within each seed and task, as the bootstrap over starts wants it.

    Raises:
        UserError: a record lacks a key, or an episode metric occurs twice for one episode.
    """
    name = EPISODE_METRICS.get(metric, metric)
    unit = "start_id" if metric in EPISODE_METRICS else "scene"
    values: dict[Unit, list[float]] = {}
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


def comparison(
    a: str,
    b: str,
    a_records: Records,
    b_records: Records,
    metric: str = "tsr",
    *,
    new_seeds: bool = True,
    same_within: float = DECLARED.same_within,
) -> Comparison:
    """Paired difference of `metric` between two policies, over the starts (or held-out episodes) that both have.

    A record of b with seed None is the partner of every seed of a: a floor without training meets each trained policy.

    Args:
        a: name of the first policy.
        b: name of the second.
        a_records: its episodes, or its frames for a metric of frames.
        b_records: the same of b.
        metric: see `Comparison`.
        new_seeds: speak of training again with new seeds; False speaks of these very policies.
        same_within: margin of the equivalence of success rates.

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
        statistics.paired_successes(left.astype(bool), right.astype(bool), seeds, tasks, new_seeds=new_seeds)
        if binary
        else statistics.paired_means(left, right, seeds, tasks, new_seeds=new_seeds)
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
        equivalence=statistics.equivalence(found.tost, same_within) if binary else None,
        note=found.note,
        scenes=None if metric in EPISODE_METRICS else _starts(pairs),
        effect=found.effect,
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
        maps=tuple(_maps(evidence.frames)),
        causal=tuple(_causal(evidence.frames)),
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
        watched=evidence.watched.get(seed, ()),
    )


def rate(episodes: Records) -> Rate | None:
    """Success rate with its interval; None without episodes.

    Wilson's interval takes episodes for independent. Seeds share their starts and differ in how well they learnt, so
    with more than one the interval is the hull of Wilson's and that of a mean over seeds.
    """
    values = by_unit(episodes, "tsr")
    if not values:
        return None
    successes, n = int(sum(values.values())), len(values)
    interval, seeds = statistics.wilson(successes, n), [key[0] for key in values]
    if len(set(seeds)) > 1:
        tasks = [key[1] for key in values]
        interval = interval.hull(statistics.mean_interval(np.array(list(values.values())), seeds, tasks))
    return Rate(successes / n, max(interval.low, 0.0), min(interval.high, 1.0), successes, n)


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


def _starts(keys: Iterable[Unit]) -> int:
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


def _maps(frames: Records) -> Iterator[MapRow]:
    """Overlap of each kind of map with each thing in each phase; what no frame shows is left out."""
    told = [record for record in frames if "maps" in record]
    for part, phase, kind in itertools.product(get_args(MapPart), get_args(MapPhase), get_args(MapKind)):
        flat = [
            {key: record[key] for key in ("seed", "task", "scene")} | dict(zip(MAP_FIELDS, values, strict=True))
            for record in told
            if phase in ("all", record["phase"]) and (values := record["maps"][part].get(kind)) is not None
        ]
        means = _grounding(flat)
        if means is not None and means.frames:
            yield MapRow(part, phase, kind, means)


def _causal(frames: Records) -> Iterator[Effect]:
    """How far the actions move when a thing is hidden, and how much farther than when as much is hidden elsewhere."""
    told = [record for record in frames if record.get("causal")]
    keys = ("seed", "task", "scene")
    for part in (*get_args(MapPart), "control"):
        name = "target_control" if part == "control" else part
        both = [r for r in told if r["causal"][name] is not None and r["causal"].get(f"{part}_control", 0) is not None]
        flat = [{**{key: r[key] for key in keys}, "shift": r["causal"][name]} for r in both]
        if (shift := measure(flat, "shift")) is None:
            continue
        over = [
            {**{key: r[key] for key in keys}, "over": r["causal"][part] - r["causal"][f"{part}_control"]}
            for r in (both if part != "control" else ())
        ]
        yield Effect(part, shift, measure(over, "over"))


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
    timelines: Iterable[Timeline] = (),
) -> Results:
    """All results of a study from its records: summaries, comparisons, corrections and verdicts.

    Args:
        study: facts of the run, and what it declared: those of the declared comparisons whose data exist are made.
        arms: each condition with what was measured of it.
        floors: what was measured without image, with a grey one, with a wrong instruction, or by blind replay.
        references: episodes of the scripted expert, of a random policy.
        elsewhere: episodes on other starts.
        leakage: what training and evaluation share; where they share what they must not, nothing is decided.
        pictures: for the report.
        videos: for the report.
        timelines: for the report.
    """
    evidence, declared = {arm.id: found for arm, found in arms}, declared_in(study)
    beside = [key for key in (declared.equivalence, *declared.exploratory) if key not in declared.family]
    comparisons = (
        *_family(evidence, declared.family, declared.same_within),
        *_compared(evidence, list(dict.fromkeys(beside)), declared.same_within),
        *_against_floors(evidence, floors),
        *_losses(evidence, elsewhere, declared.losses),
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
        hypotheses=tuple(withheld(judge(comparisons, declared), leakage)),
        leakage=tuple(leakage),
        pictures=tuple(pictures),
        videos=tuple(videos),
        timelines=tuple(timelines),
    )


def _family(evidence: Mapping[str, Evidence], family: Sequence[Key], same_within: float) -> list[Comparison]:
    """The declared comparisons whose data exist, corrected together."""
    made = _compared(evidence, family, same_within)
    return [replace(c, p_holm=p) for c, p in zip(made, statistics.holm([c.p for c in made]), strict=True)]


def _compared(evidence: Mapping[str, Evidence], keys: Sequence[Key], same_within: float) -> list[Comparison]:
    """The comparisons (a, b, metric) of two arms whose data exist."""
    return [
        comparison(a, b, _records(evidence[a], metric), _records(evidence[b], metric), metric, same_within=same_within)
        for a, b, metric in keys
        if a in evidence
        and b in evidence
        and _both(_records(evidence[a], metric), _records(evidence[b], metric), metric)
    ]


def _against_floors(evidence: Mapping[str, Evidence], floors: Sequence[FloorEvidence]) -> list[Comparison]:
    """Each arm against its own floors, and against those that are nobody's: these very policies are judged."""
    return [
        comparison(arm, floor.id, _records(found, metric), _records(floor, metric), metric, new_seeds=False)
        for floor in floors
        for arm, found in evidence.items()
        for metric in ("tsr", "action_error")
        if floor.condition in (None, arm) and _both(_records(found, metric), _records(floor, metric), metric)
    ]


def _losses(
    evidence: Mapping[str, Evidence], elsewhere: Sequence[ElsewhereEvidence], pairs: Sequence[tuple[str, str]]
) -> list[Comparison]:
    """By how much more one arm loses than another on each other suite; see `la_reconvla.study.elsewhere`.

    Home is the study's own suite on official states, which other suites are met on, where the study has both arms
    there, else the study's own starts.
    """
    trained = [e for e in elsewhere if e.floor is None and e.condition in evidence and e.episodes]
    found: dict[str, dict[str, Records]] = {}
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


def _paired(a: Records, b: Records) -> dict[Unit, tuple[bool, bool]]:
    """Success of two arms on the starts that both met."""
    ours, theirs = by_unit(a, "tsr"), by_unit(b, "tsr")
    return {key: (bool(ours[key]), bool(theirs[key])) for key in ours if key in theirs}


def _records(evidence: Evidence | FloorEvidence, metric: str) -> Records:
    return evidence.episodes if metric in EPISODE_METRICS else evidence.frames


def _both(a: Records, b: Records, metric: str) -> bool:
    return bool(by_unit(a, metric)) and bool(by_unit(b, metric))
