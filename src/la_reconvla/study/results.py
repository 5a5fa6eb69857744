"""`results.json`: what a study found. The schema (version 1) and its reader.

The schema grows by adding; a reader ignores what it does not know. How it is built from records:
`la_reconvla.study.evidence`; how hypotheses are judged: `la_reconvla.study.verdicts`.
"""

from __future__ import annotations

import types
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from la_reconvla.errors import UserError
from la_reconvla.storage import read_json, write_json
from la_reconvla.study.statistics import Agreement, EffectSize, Equivalence, Verdict

if TYPE_CHECKING:
    from la_reconvla.conditions import Condition
    from la_reconvla.study.cost import HeadCost

SCHEMA = 1
STAGES = ("approached", "distractor_approached", "grasped", "lifted", "placed")
OVERLAPS = (
    "aos", "aos_chance", "aos_ceiling", "aos_g", "aos_g_chance", "mass", "mass_over_area", "pointing", "auroc",
    "average_precision", "entropy",
)  # fmt: skip
MAP_FIELDS = ("visible", "patches", *OVERLAPS)
"""What a record of a held-out frame keeps of each map in ``maps[part][kind]``, in this order."""
EPISODE_METRICS = {"tsr": "success", "smallest_distance": "smallest_distance"} | {stage: stage for stage in STAGES}
FloorId = Literal["blind_replay", "no_image", "grey_image", "wrong_instruction"]
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
        hypotheses: the hypotheses as they were declared before the run.
        hypotheses_hash: SHA-256 of that declaration, also written when the study began.
        energy_joules: of the processors over the study's parts, where the machine tells; else None.
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
    hypotheses: str = ""
    hypotheses_hash: str = ""
    energy_joules: float | None = None
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
    average_precision: float | None = None
    entropy: float | None = None
    channel: str | None = None


MapPart = Literal["target", "destination", "distractor"]
MapPhase = Literal["all", "reach", "carry", "place"]
MapKind = Literal["policy", "uniform", "centre", "mean_map", "shuffled"]


@dataclass(frozen=True)
class MapRow:
    """Overlap of one kind of map with one thing in one phase of the episodes.

    Attributes:
        part: what the map should lie on; the distractor is what it should not.
        phase: ``reach`` until the target is held, ``carry`` until it is over the destination, ``place`` after that.
        map: the policy's own, or a control: uniform random, centre prior, the mean of the policy's maps over all
            instructions, or its maps under shuffled instructions.
        means: over the frames of that phase.
    """

    part: MapPart
    phase: MapPhase
    map: MapKind
    means: GroundingMeans


@dataclass(frozen=True)
class Watched:
    """Maps on the same held-out frames at one check of a training; see `la_reconvla.train.save_looks`.

    Attributes:
        step: optimizer steps done.
        aos: overlap with the target.
        aos_chance: of random patches.
        drift: mean of 1 - cosine with the maps of the check before; None at the first.
        entropy: sharpness, entropy of the map over that of a uniform one; 1 is flat.
    """

    step: int
    aos: float | None = None
    aos_chance: float | None = None
    drift: float | None = None
    entropy: float | None = None


@dataclass(frozen=True)
class Effect:
    """How far the distribution of actions moves when something is hidden; see `la_reconvla.study.causal`.

    Attributes:
        occluded: what is covered; ``control`` is an equal number of patches elsewhere.
        shift: how far the distribution moves.
        over_control: the paired difference with ``control``; None for the control itself.
    """

    occluded: Literal["target", "distractor", "destination", "control"]
    shift: Measure
    over_control: Measure | None = None


@dataclass(frozen=True)
class Counterfactual:
    """Episodes in pairs: one initial state, two instructions that ask for different objects.

    Attributes:
        pairs: number of pairs.
        asked: episodes in which the object that was asked for was the first to be moved.
        other: in which the object of the other instruction was.
        else_moved: in which something else was.
        neither: in which nothing was moved.
        followed: pairs in which both episodes moved what was asked for.
        preference: asked / (asked + other) with its interval, 0.5 where words do not matter; None if neither was moved.
    """

    pairs: int
    asked: int
    other: int
    else_moved: int
    neither: int
    followed: int
    preference: Rate | None = None


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
    watched: tuple[Watched, ...] = ()


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
        maps: overlap by thing, phase and kind of map, controls included.
        causal: what hiding things does to the actions.
        counterfactual: which object is moved when two instructions are given in the same state.
    """

    cells: tuple[Cell, ...] = ()
    tsr: Rate | None = None
    aos: Overlap | None = None
    stages: Stages | None = None
    grounding: GroundingMeans | None = None
    destination: GroundingMeans | None = None
    aid: Measure | None = None
    action_error: Measure | None = None
    maps: tuple[MapRow, ...] = ()
    causal: tuple[Effect, ...] = ()
    counterfactual: Counterfactual | None = None


@dataclass(frozen=True)
class Floor:
    """What can be had without the image or the words. `condition`: the arm whose policy was shown the wrong thing."""

    id: FloorId
    condition: str | None = None
    tsr: Rate | None = None
    action_error: Measure | None = None
    stages: Stages | None = None
    counterfactual: Counterfactual | None = None


@dataclass(frozen=True)
class Reference:
    """A policy that bounds the harness itself: the scripted expert, a random policy."""

    id: str
    tsr: Rate
    stages: Stages | None = None
    counterfactual: Counterfactual | None = None


@dataclass(frozen=True)
class Elsewhere:
    """Success of one policy on other starts than the study's own: official ones, other suites, LIBERO-PRO's.

    Attributes:
        placement: kind of starts.
        label: the policy, for people.
        tsr: task success rate.
        stages: how far episodes got.
        suite: LIBERO suite, empty if it is the study's own.
        condition: arm, None for references and floors that are no arm's.
        floor: floor that it is, None for the policy as trained.
        change: what LIBERO-PRO changed: ``lan`` (wording), ``object``, ``swap`` (positions) or ``task``; else empty.
    """

    placement: str
    label: str
    tsr: Rate
    stages: Stages | None = None
    suite: str = ""
    condition: str | None = None
    floor: str | None = None
    change: str = ""


@dataclass(frozen=True)
class Leak:
    """What training and evaluation have in common in one respect; see `la_reconvla.study.leakage`.

    Attributes:
        what: for example ``initial states``, ``scenes``, ``instructions``, ``assets``, ``pretraining scenes``.
        training: how many different ones training had.
        evaluation: how many evaluation has.
        shared: how many both have.
        verdict: ``none``; ``by design`` where sharing is what is asked (the same instructions); ``leak``; ``unknown``.
        note: in words.
    """

    what: str
    training: int
    evaluation: int
    shared: int
    verdict: Literal["none", "by design", "leak", "unknown"]
    note: str = ""


@dataclass(frozen=True)
class Power:
    """What so many episodes can tell apart; see `la_reconvla.study.statistics`.

    Attributes:
        points: difference of success rates, as a share (0.05 is five points).
        rate: of the worse arm, as a share.
        needed: episodes an arm to find it with a power of 80 % at 5 %, arms independent.
        planned: episodes an arm in this study.
        power: probability that the study's own test finds it with those, by simulation.
    """

    points: float
    rate: float
    needed: int
    planned: int
    power: float


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
        equivalence: whether two success rates are equal within the declared margin.
        note: what the interval does not cover.
        scenes: of held-out frames, the number of different scenes, however many seeds met them; else None.
        effect: size of the difference free of units; None in results of an earlier version.
        a_home: of a loss (metric ``loss:<suite>``, success at home minus elsewhere), success of a at home; else None.
        b_home: the same of b.
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
    a_home: float | None = None
    b_home: float | None = None


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
    """A rollout; `path` relative to the study's folder. Videos of equal `start` show arms on the same initial state."""

    path: str
    caption: str
    success: bool | None = None
    condition: str = ""
    start: str = ""


@dataclass(frozen=True)
class Timeline:
    """One held-out episode under one arm, picture by picture; all arms show the same episode and steps.

    Attributes:
        condition: arm.
        episode: name of the episode.
        instruction: what the policy was told.
        steps: control step of each picture.
        phases: phase of the episode at each picture, empty if unknown.
        attention: paths of the frames with the map over them, relative to the study's folder.
        reconstruction: paths of the reconstructions; empty for an arm without.
        frames: paths of the frames themselves, the same for all arms.
    """

    condition: str
    episode: str
    instruction: str
    steps: tuple[int, ...]
    phases: tuple[str, ...]
    attention: tuple[str, ...]
    reconstruction: tuple[str, ...] = ()
    frames: tuple[str, ...] = ()


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
    leakage: tuple[Leak, ...] = ()
    power: tuple[Power, ...] = ()
    timelines: tuple[Timeline, ...] = ()

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
