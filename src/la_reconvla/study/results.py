"""`results.json`: what a study found. The schema (version 1), its reader, and how it is built from records.

Two kinds of records go in, both plain dicts as they stand in JSON lines:

- **episodes**: ``seed``, ``task``, ``start_id``, ``success``, and where known the stages (`STAGES`) and
  ``smallest_distance`` (m). One a rollout. ``seed`` is None for what was not trained, such as blind replay.
- **frames**: ``seed``, ``task``, ``episode``, ``frame`` and any of ``action_error``, ``aid``, the fields of
  `la_reconvla.study.grounding.Grounding` for the target and, with the prefix ``destination_``, for the destination;
  None where not measured. One a held-out frame. Frames are averaged to episodes before anything is compared, because
  frames of one episode are nearly copies of each other.

The schema grows by adding; a reader ignores what it does not know.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from la_reconvla.errors import UserError
from la_reconvla.storage import read_json, write_json
from la_reconvla.study import statistics
from la_reconvla.study.statistics import Agreement, Equivalence, Interval, Verdict

if TYPE_CHECKING:
    from la_reconvla.conditions import Condition
    from la_reconvla.study.cost import HeadCost

SCHEMA = 1
STAGES = ("approached", "distractor_approached", "grasped", "lifted", "placed")
OVERLAPS = ("aos", "aos_chance", "aos_ceiling", "aos_g", "aos_g_chance", "mass", "mass_over_area", "pointing", "auroc")
EPISODE_METRICS = {"tsr": "success", "smallest_distance": "smallest_distance"} | {stage: stage for stage in STAGES}
SAME_WITHIN = 0.05  # success rates closer than this count as equal: five points
FAMILY = (
    *(("C4", other, metric) for metric in ("tsr", "aos") for other in ("C2", "C1")),
    *(("R1", other, "tsr") for other in ("R2", "R3")),
)
"""Comparisons declared before the data were seen; Holm's correction runs over these."""
ARM = "C4", "R1", "tsr"
"""What H1 judges, by equivalence."""
WHAT = ("R1", "R2"), ("R1", "R3"), ("A1", "D2"), ("G1", "C2"), ("G2", "D2"), ("C4", "G1")
"""Pairs of the grid with one head and two regions."""
HEADS = ("A1", "C4"), ("D2", "C2"), ("G2", "G1")
"""Pairs of the grid with one region and two heads."""
EXPLORATORY = (
    *(("C4", o, metric) for metric in ("approached", "grasped", "lifted", "smallest_distance") for o in ("C2", "C1")),
    *((a, b, metric) for a, b in (*WHAT, *HEADS) for metric in ("tsr", "approached", "action_error", "aos")),
    *((*ARM[:2], metric) for metric in ("approached", "action_error", "aos")),
)
"""Comparisons outside of the declared family, not corrected for their number."""

FloorId = Literal["blind_replay", "no_image", "grey_image", "wrong_instruction"]
Record = Mapping[str, Any]
Records = Sequence[Record]
T = TypeVar("T")


# ---------------------------------------------------------------- schema


@dataclass(frozen=True)
class Pairing:
    """What the arms of one seed had in common; see `la_reconvla.study.pairing`.

    Attributes:
        seed: training seed.
        arms: those that were compared.
        backbone: hash of the backbone's weights before the first step.
        head: the same of the action head.
        batches: hash of the samples of all batches, in order.
    """

    seed: int
    arms: tuple[str, ...]
    backbone: str
    head: str
    batches: str


@dataclass(frozen=True)
class Study:
    """Facts of the run: enough to repeat it.

    Attributes:
        preset: its name.
        command: the command line that ran it.
        commit: git commit of the code.
        data_hash: hash of the demonstrations.
        started: when, ISO 8601.
        finished: when, ISO 8601.
        suite: LIBERO suite.
        placement: where evaluation starts come from.
        tasks: instruction of each task.
        versions: version of each package that matters.
        hardware: processor, memory, accelerator.
        wall_seconds: duration of each part in seconds.
        settings: anything else worth showing (patch grid, steps, episodes).
        action_error_unit: what an action error of 1 means.
        pairing: for each seed, the start and the batches that all arms shared; empty where that was not checked.
        limits: sentences for "What this does not show", beyond those that follow from the numbers.
    """

    preset: str
    command: str = ""
    commit: str = ""
    data_hash: str = ""
    started: str = ""
    finished: str = ""
    suite: str = ""
    placement: str = ""
    tasks: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    hardware: dict[str, Any] = field(default_factory=dict)
    wall_seconds: dict[str, float] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    action_error_unit: str = "mean absolute error in the environment's action units"
    pairing: tuple[Pairing, ...] = ()
    limits: tuple[str, ...] = ()


@dataclass(frozen=True)
class Count:
    """Successes among episodes."""

    successes: int
    episodes: int


@dataclass(frozen=True)
class Tally:
    """Successes of one cell, by task and altogether."""

    per_task: dict[str, Count]
    successes: int
    episodes: int


@dataclass(frozen=True)
class Rate:
    """A success rate with its Wilson 95 % interval, widened to the bootstrap's where several seeds share the starts."""

    rate: float
    low: float
    high: float
    successes: int = 0
    episodes: int = 0


@dataclass(frozen=True)
class Measure:
    """A mean with its bootstrap 95 % interval; `n` different scenes, however many seeds met them."""

    mean: float
    low: float
    high: float
    n: int = 0


@dataclass(frozen=True)
class Overlap:
    """AOS beside its chance level and its ceiling; `n` different scenes."""

    mean: float
    low: float
    high: float
    chance: float
    ceiling: float
    n: int = 0


@dataclass(frozen=True)
class Stages:
    """Share of episodes that reached each stage, and the mean smallest distance (m). None: not recorded."""

    approached: float | None = None
    distractor_approached: float | None = None
    grasped: float | None = None
    lifted: float | None = None
    placed: float | None = None
    smallest_distance: float | None = None


@dataclass(frozen=True)
class GroundingMeans:
    """Means of `la_reconvla.study.grounding.Grounding` over frames that show the target; others are `excluded`.

    `channel` says whose attention it was: ``language``, or the fallback that the backbone named; None if not recorded.
    """

    frames: int
    excluded: int
    patches: float | None = None
    aos: float | None = None
    aos_chance: float | None = None
    aos_ceiling: float | None = None
    aos_g: float | None = None
    aos_g_chance: float | None = None
    mass: float | None = None
    mass_over_area: float | None = None
    pointing: float | None = None
    auroc: float | None = None
    channel: str | None = None


@dataclass(frozen=True)
class Cell:
    """One condition trained with one seed. `metrics` is the path of its training curves, relative to the study."""

    seed: int
    train: dict[str, Any] = field(default_factory=dict)
    tsr: Tally | None = None
    stages: Stages | None = None
    grounding: GroundingMeans | None = None
    action_error: Measure | None = None
    metrics: str | None = None


@dataclass(frozen=True)
class Arm:
    """What a condition is, in words and numbers; None where it has no such part.

    `mask` names what is reconstructed, masked patches or a crop; the last two are those of `la_reconvla.study.cost`.
    """

    id: str
    name: str
    mask: str | None
    reconstructor: str | None
    weight: float | None
    annotation_free: bool
    mask_at: str | None = None
    head_parameters: int | None = None
    head_operations: int | None = None

    @classmethod
    def of(cls, condition: Condition, cost: HeadCost | None = None) -> Arm:
        """The description of `condition`; `cost` is that of its head."""
        extra = condition.reconstruction
        return cls(
            id=condition.id,
            name=condition.name,
            mask=None if extra is None else extra.region.label,
            reconstructor=None if extra is None else extra.head.label,
            weight=None if extra is None else extra.weight,
            annotation_free=condition.annotation_free,
            mask_at=None if extra is None or extra.mask is None else extra.mask_at,
            head_parameters=None if cost is None else cost.parameters,
            head_operations=None if cost is None else cost.operations,
        )


@dataclass(frozen=True)
class ConditionResult(Arm):
    """An arm, its cells, and what they say together.

    Attributes:
        cells: one for each seed.
        tsr: task success rate.
        aos: attention overlap with the target, beside chance and ceiling.
        stages: how far episodes got.
        grounding: all grounding metrics for the target.
        destination: the same for where the target must go.
        aid: 1 - cosine of the maps of one image under two instructions.
        action_error: on held-out frames.
    """

    cells: tuple[Cell, ...] = ()
    tsr: Rate | None = None
    aos: Overlap | None = None
    stages: Stages | None = None
    grounding: GroundingMeans | None = None
    destination: GroundingMeans | None = None
    aid: Measure | None = None
    action_error: Measure | None = None


@dataclass(frozen=True)
class Floor:
    """What can be had without the image or the words. `condition`: the arm whose policy was shown the wrong thing."""

    id: FloorId
    condition: str | None = None
    tsr: Rate | None = None
    action_error: Measure | None = None
    stages: Stages | None = None


@dataclass(frozen=True)
class Reference:
    """A policy that bounds the harness itself: the scripted expert, a random policy."""

    id: str
    tsr: Rate
    stages: Stages | None = None


@dataclass(frozen=True)
class Elsewhere:
    """Success of one policy on other starts than the study's own, for example LIBERO's official ones."""

    placement: str
    label: str
    tsr: Rate
    stages: Stages | None = None


@dataclass(frozen=True)
class Comparison:
    """A paired difference a - b.

    Attributes:
        a: first arm.
        b: second arm, or a floor.
        metric: ``tsr``, ``aos``, ``action_error``, a stage, or another field of the records.
        difference: mean of a - b over the pairs.
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
        equivalence: whether two success rates are equal within `SAME_WITHIN`.
        note: what the interval does not cover.
        scenes: of held-out frames, the number of different scenes, however many seeds met them; else None.
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


@dataclass(frozen=True)
class Hypothesis:
    """A claim, its verdict, and the numbers that say so."""

    id: str
    verdict: Verdict
    because: str
    claim: str = ""


@dataclass(frozen=True)
class Picture:
    """A picture of the study; `path` relative to its folder."""

    path: str
    kind: Literal["attention", "reconstruction"]
    caption: str = ""


@dataclass(frozen=True)
class Video:
    """A rollout; `path` relative to the study's folder."""

    path: str
    caption: str
    success: bool | None = None


@dataclass(frozen=True)
class Results:
    """The whole of `results.json`."""

    schema: Literal[1]
    study: Study
    conditions: tuple[ConditionResult, ...]
    floors: tuple[Floor, ...] = ()
    references: tuple[Reference, ...] = ()
    elsewhere: tuple[Elsewhere, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    hypotheses: tuple[Hypothesis, ...] = ()
    pictures: tuple[Picture, ...] = ()
    videos: tuple[Video, ...] = ()

    def hypothesis(self, id: str) -> Hypothesis | None:
        """The hypothesis of this id."""
        return next((h for h in self.hypotheses if h.id == id), None)

    def comparison(self, a: str, b: str, metric: str) -> Comparison | None:
        """The comparison of `a` with `b`."""
        return next((c for c in self.comparisons if (c.a, c.b, c.metric) == (a, b, metric)), None)

    def against_floors(self, metric: str) -> list[Comparison]:
        """The comparisons of arms with floors, by `metric`."""
        return [c for c in self.comparisons if c.b in get_args(FloorId) and c.metric == metric]


# ---------------------------------------------------------------- reading and writing


def write_results(path: Path | str, results: Results) -> None:
    """Write `results` as JSON, atomically."""
    write_json(path, results)


def read_results(path: Path | str) -> Results:
    """Read and check a `results.json`.

    Raises:
        UserError: the file is missing, not JSON, of another schema, or has a field that is missing or of another type;
            the message names the field.
    """
    value = read_json(path)
    found = value.get("schema") if isinstance(value, dict) else None
    if found != SCHEMA:
        raise UserError(f"{path}: schema {found!r} is not {SCHEMA}; read it with the version that wrote it")
    return _parse(Results, value, str(path))


def _parse(kind: Any, value: Any, where: str) -> Any:
    """`value`, as JSON gave it, as an instance of `kind`; `where` names it in messages."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if is_dataclass(kind) and isinstance(kind, type):
        return _parse_fields(kind, _expect(value, where, dict), where)
    if origin in (Union, types.UnionType):
        return None if value is None else _parse(next(a for a in arguments if a is not type(None)), value, where)
    if origin is Literal:
        if value not in arguments:
            raise UserError(f"{where} is {value!r}; expected one of {', '.join(map(str, arguments))}")
        return value
    if origin is tuple:
        return tuple(_parse(arguments[0], v, f"{where}[{i}]") for i, v in enumerate(_expect(value, where, list)))
    if origin is dict:
        return {key: _parse(arguments[1], v, f"{where}.{key}") for key, v in _expect(value, where, dict).items()}
    return float(_expect(value, where, int, float)) if kind is float else _expect(value, where, kind)


def _parse_fields(kind: type[T], value: dict[str, Any], where: str) -> T:
    """A dataclass from its fields; what the schema does not know is left out."""
    hints = get_type_hints(kind)
    given: dict[str, Any] = {}
    for f in fields(kind):  # type: ignore[arg-type]
        if f.name in value:
            given[f.name] = _parse(hints[f.name], value[f.name], f"{where}.{f.name}")
        elif f.default is MISSING and f.default_factory is MISSING:
            raise UserError(f"{where}.{f.name} is missing; write the results again with this version")
    return kind(**given)


def _expect(value: Any, where: str, *kinds: Any) -> Any:
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise UserError(f"{where} is {value!r}; expected {' or '.join(kind.__name__ for kind in kinds)}")
    return value


# ---------------------------------------------------------------- from records


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
    elsewhere: Mapping[tuple[str, str], Records] | None = None,
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
        elsewhere: episodes on other starts, by (placement, label).
        pictures: for the report.
        videos: for the report.
        family: comparisons (a, b, metric) declared beforehand; those whose data exist are made and Holm-corrected.
    """
    evidence = {arm.id: found for arm, found in arms}
    comparisons = (
        *_family(evidence, family),
        *_compared(evidence, [key for key in (ARM, *EXPLORATORY) if key not in family]),
        *_against_floors(evidence, floors),
    )
    return Results(
        schema=SCHEMA,
        study=study,
        conditions=tuple(condition_summary(arm, found) for arm, found in arms),
        floors=tuple(
            Floor(f.id, f.condition, rate(f.episodes), measure(f.frames, "action_error"), _stages(f.episodes))
            for f in floors
        ),
        references=tuple(
            Reference(name, found, _stages(episodes))
            for name, episodes in (references or {}).items()
            if (found := rate(episodes)) is not None
        ),
        elsewhere=tuple(
            Elsewhere(placement, label, found, _stages(episodes))
            for (placement, label), episodes in (elsewhere or {}).items()
            if (found := rate(episodes)) is not None
        ),
        comparisons=comparisons,
        hypotheses=tuple(judge(comparisons)),
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


def _records(evidence: Evidence | FloorEvidence, metric: str) -> Records:
    return evidence.episodes if metric in EPISODE_METRICS else evidence.frames


def _both(a: Records, b: Records, metric: str) -> bool:
    return bool(by_unit(a, metric)) and bool(by_unit(b, metric))


# ---------------------------------------------------------------- verdicts

HEADLINE = "C4>C2"
CLAIMS = {
    HEADLINE: "Reconstructing where the instruction looks (C4) gives more successes than reconstructing anywhere (C2).",
    "H1": "C4 succeeds within five points of the ReconVLA arm, without annotation.",
    "H2": "C4 is three to five times faster than ReconVLA.",
    "H3": "Attention rests more on the task's object under C4 than under C1 and C2.",
    "H4": "Under changed wording, objects and suites C4 loses less than the ReconVLA arm.",
    "image": "The policies use the image: their action error is lower than with a grey image and than that of a policy "
    "trained without images.",
    "words": "The policies use the words: their action error is lower than under a wrong instruction.",
}
NOT_COMPARED = "The data for this comparison are not part of this study."
NO_RECONVLA = (
    "This needs the ReconVLA arm (R1), a diffusion head that reconstructs an annotated crop. "
    "That arm is not part of this study."
)
NOT_SPEED = (
    "A study measures no speed, and neither arm reconstructs when it acts: `la-reconvla bench` measures control, "
    "training and pictures apart."
)
NOT_ELSEWHERE = "Changed wording, objects and suites are not part of this study."
ONE_SEED = "Both arms were trained with one seed only, and such a difference may be luck of that seed."


def judge(comparisons: Sequence[Comparison]) -> list[Hypothesis]:
    """The headline question first, then H1-H4, then whether the policies use image and words."""
    known = {(c.a, c.b, c.metric): c for c in comparisons}
    grounding = [known.get(("C4", other, "aos")) for other in ("C2", "C1")]
    judged = {
        HEADLINE: _judge_headline(known.get(("C4", "C2", "tsr"))),
        "H1": _judge_equal(known.get(ARM)),
        "H2": ("inconclusive", NOT_SPEED),
        "H3": _together([_judge_arms(c) for c in grounding]),
        "H4": ("inconclusive", NOT_ELSEWHERE),
        # A grey image is foreign to a policy trained on images; one trained without images is the fairer floor.
        "image": _judge_floor(comparisons, "grey_image", "no_image"),
        "words": _judge_floor(comparisons, "wrong_instruction"),
    }
    return [Hypothesis(id, verdict, because, CLAIMS[id]) for id, (verdict, because) in judged.items()]


Judgement = tuple[Verdict, str]


def _judge_headline(c: Comparison | None) -> Judgement:
    """C4 against C2 on success. A tie within `SAME_WITHIN` refutes: then the auxiliary task did it, not grounding.

    A tie of policies that (nearly) always fail or (nearly) always succeed refutes nothing: there all policies tie.
    """
    word, because = _judge_arms(c)
    if c is None or c.agreement is None or word != "inconclusive":
        return word, because
    if _tells_nothing(c):
        return word, f"{because} {_tells_nothing(c)}"
    if c.equivalence == "equivalent" and c.seeds > 1:
        return "refuted", f"{because} The two are equal within {100 * SAME_WITHIN:.0f} points."
    if c.a_mean is not None and c.b_mean is not None and c.a_mean != c.b_mean:
        needed = statistics.rollouts_needed(c.a_mean, c.b_mean)
        because += (
            f" To tell such rates apart, about {needed} independent episodes an arm are needed; there were {c.n}."
        )
    return word, because


def _judge_equal(c: Comparison | None) -> Judgement:
    """Success within `SAME_WITHIN` by two one-sided tests; with more than one seed, and where success tells at all."""
    if c is None or c.agreement is None:
        return "inconclusive", NO_RECONVLA
    if _tells_nothing(c):
        return "inconclusive", f"{in_words(c)} {_tells_nothing(c)}"
    decided: dict[str | None, Verdict] = {"equivalent": "supported", "different": "refuted"}
    word = decided.get(c.equivalence, "inconclusive")
    if word != "inconclusive" and c.seeds < 2:
        return "inconclusive", f"{in_words(c)} {ONE_SEED}"
    return word, in_words(c)


def _tells_nothing(c: Comparison) -> str:
    """Why a tie of successes says nothing; empty if it may say something."""
    assert c.agreement is not None
    if c.agreement.neither == c.n:
        return "Neither policy ever succeeded, so success cannot tell them apart."
    rates = [(c.agreement.both + only) / c.n for only in (c.agreement.only_a, c.agreement.only_b)]
    if max(rates) < SAME_WITHIN or min(rates) > 1 - SAME_WITHIN:
        return "Both are at the floor or ceiling, where five points say nothing."
    return ""


def _judge_arms(c: Comparison | None) -> Judgement:
    """ "a above b", decided by interval and corrected p, and only with more than one training seed."""
    if c is None:
        return "inconclusive", NOT_COMPARED
    word = statistics.verdict(Interval(c.low, c.high), "above", p=c.p if c.p_holm is None else c.p_holm)
    if word != "inconclusive" and c.seeds < 2:
        return "inconclusive", f"{in_words(c)} {ONE_SEED}"
    return word, in_words(c)


def _judge_floor(comparisons: Sequence[Comparison], *floors: FloorId) -> Judgement:
    """Action error below each floor in every arm. A claim about these very policies, so one seed will do."""
    judged: list[Judgement] = []
    for floor in floors:
        against = [c for c in comparisons if c.b == floor and c.metric == "action_error"]
        judged.extend((statistics.verdict(Interval(c.low, c.high), "below"), in_words(c)) for c in against)
        if not against:
            judged.append(("inconclusive", f"The floor {floor.replace('_', ' ')} is not part of this study."))
    return _together(judged)


def _together(judged: Sequence[Judgement]) -> Judgement:
    """Supported if all are, refuted if one is."""
    words = [word for word, _ in judged]
    word: Verdict = "inconclusive"
    if "refuted" in words:
        word = "refuted"
    elif all(w == "supported" for w in words):
        word = "supported"
    return word, " ".join(dict.fromkeys(because for _, because in judged))


def in_words(c: Comparison) -> str:
    """The comparison as a sentence with its numbers."""
    value = c.p if c.p_holm is None else c.p_holm
    p = ("p < 0.001" if value < 0.001 else f"p = {value:.3f}") + (
        "" if c.p_holm is None else " after Holm's correction"
    )
    if c.agreement is not None:
        ours, theirs = c.agreement.both + c.agreement.only_a, c.agreement.both + c.agreement.only_b
        return (
            f"{c.a} succeeded in {ours} and {c.b.replace('_', ' ')} in {theirs} of the same {c.n} episodes: "
            f"{100 * c.difference:+.1f} points (95 % interval {100 * c.low:+.1f} to {100 * c.high:+.1f}, {p})."
        )
    count = f"{c.n} episodes" if c.scenes is None else f"{c.scenes} scenes"
    metric = "AOS" if c.metric == "aos" else c.metric.replace("_", " ").capitalize()
    return (
        f"{metric} of {c.a} minus {c.b.replace('_', ' ')}: {c.difference:+.3f} "
        f"(95 % interval {c.low:+.3f} to {c.high:+.3f}, {p}, {count})."
    )
