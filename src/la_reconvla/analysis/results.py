"""The results of a study, as values. `results.json` is `Results`.

The schema grows by adding; a reader ignores what it does not know. How it is built from records:
`la_reconvla.analysis.evidence`; how hypotheses are judged: `la_reconvla.analysis.verdicts`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from la_reconvla.analysis.comparisons import Comparison, ComparisonKey, Hypothesis
from la_reconvla.analysis.measures import (
    Counterfactual,
    Effect,
    Following,
    GroundingMeans,
    HeadCost,
    Leak,
    MapRow,
    Measure,
    Overlap,
    Power,
    Rate,
    Stages,
    Tally,
    Watched,
)
from la_reconvla.analysis.sequences import SequenceResults

if TYPE_CHECKING:
    from la_reconvla.conditions import Condition

FloorId = Literal["blind_replay", "no_image", "grey_image", "wrong_instruction"]


@dataclass(frozen=True)
class Pairing:
    """What the arms of one seed had in common; see `la_reconvla.study.pairing`.

    Attributes:
        seed: training seed.
        arms: those that were compared.
        backbone: hash of the backbone's weights before the first step.
        action_head: the same of the action head.
        batches: hash of the samples of all batches, in order.
    """

    seed: int
    arms: tuple[str, ...]
    backbone: str
    action_head: str
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
        said: all instructions that were said, of each task; empty in results of before.
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
        judged: whether hypotheses have verdicts; False for a preset that is too small to mean anything.
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
    said: dict[str, tuple[str, ...]] = field(default_factory=dict)
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
    judged: bool = True


@dataclass(frozen=True)
class Look:
    """One time that a study of one size was judged: who looks often and stops when it suits finds what is not there.

    Attributes:
        date: when, ISO 8601.
        seeds: training seeds of each arm.
        episodes: starts of each task.
        arms: conditions.
        verdicts: of each hypothesis.
        elsewhere: other suites.
        elsewhere_episodes: starts of each task there; 0 without other suites.
        also_official: official starts of each task beside the study's own.
    """

    date: str
    seeds: int
    episodes: int
    arms: tuple[str, ...]
    verdicts: dict[str, str]
    elsewhere: tuple[str, ...] = ()
    elsewhere_episodes: int = 0
    also_official: int = 0

    @property
    def size(self) -> tuple[object, ...]:
        """What a look is one of; the same study judged again is no further look."""
        return self.seeds, self.episodes, self.arms, self.elsewhere, self.elsewhere_episodes, self.also_official


@dataclass(frozen=True)
class CellResult:
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

    `mask` names what is reconstructed, masked patches or a crop, or what is hidden for good; `fraction` is the share of
    the patches that are masked, `saliency` names what the mask follows, `weight` is lambda, at the end of the training
    where it changes, and `schedule` then names how; the two of the head are those of `la_reconvla.study.head_cost`.
    """

    id: str
    name: str
    mask: str | None
    reconstructor: str | None
    weight: float | None
    annotation_free: bool
    mask_at: str | None = None
    fraction: float | None = None
    saliency: str | None = None
    head_parameters: int | None = None
    head_operations: int | None = None
    schedule: str | None = None

    @classmethod
    def of(cls, condition: Condition, cost: HeadCost | None = None) -> Arm:
        """The description of `condition`; `cost` is that of its head."""
        extra, budget = condition.reconstruction, condition.budget
        hidden = budget if extra is None else extra.region
        return cls(
            id=condition.id,
            name=condition.name,
            mask=None if hidden is None else hidden.label,
            reconstructor=None if extra is None else extra.reconstruction_head.label,
            weight=None if extra is None else extra.weight_at(1.0),
            annotation_free=condition.annotation_free,
            mask_at=("input" if budget else None) if extra is None or extra.mask is None else extra.mask_at,
            fraction=getattr(hidden, "fraction", None),
            saliency=None if condition.saliency is None else condition.saliency.label,
            head_parameters=None if cost is None else cost.parameters,
            head_operations=None if cost is None else cost.operations,
            schedule=None if extra is None else getattr(extra.weight, "label", None),
        )


@dataclass(frozen=True)
class ConditionResult(Arm):
    """An arm, its cells, and their summary.

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
        following: whether the first thing touched, held or moved was one asked for.
    """

    cells: tuple[CellResult, ...] = ()
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
    following: Following | None = None


@dataclass(frozen=True)
class Floor:
    """What can be had without the image or the words. `condition`: the arm whose policy was shown the wrong thing."""

    id: FloorId
    condition: str | None = None
    tsr: Rate | None = None
    action_error: Measure | None = None
    stages: Stages | None = None
    counterfactual: Counterfactual | None = None
    following: Following | None = None


@dataclass(frozen=True)
class Reference:
    """A policy that bounds the harness itself: the scripted expert, a random policy."""

    id: str
    tsr: Rate
    stages: Stages | None = None
    counterfactual: Counterfactual | None = None
    following: Following | None = None


@dataclass(frozen=True)
class OtherStarts:
    """Success of one policy on other starts than the study's own: official ones, other suites, LIBERO-PRO's.

    Attributes:
        placement: kind of starts.
        label: the policy, for people.
        tsr: task success rate.
        stages: how far episodes got.
        suite: LIBERO suite, empty if it is the study's own.
        condition: arm, None for references and floors that are no arm's.
        floor: floor that it is, None for the policy as trained.
        change: what LIBERO-PRO changed: ``lan`` (wording), ``object``, ``swap`` (positions) or ``task``; or what
            `la_reconvla.sim.suite_changes` did: ``paraphrase``, ``counterfactual`` or ``plus``; else empty.
        counterfactual: which object is moved when two instructions are given in the same state.
        following: whether the first thing touched, held or moved was one asked for.
        wordings: success by kind of rewording, of suites with paraphrases.
    """

    placement: str
    label: str
    tsr: Rate
    stages: Stages | None = None
    suite: str = ""
    condition: str | None = None
    floor: str | None = None
    change: str = ""
    counterfactual: Counterfactual | None = None
    following: Following | None = None
    wordings: dict[str, Rate] = field(default_factory=dict)


@dataclass(frozen=True)
class Picture:
    """A picture of the study; `path` relative to its folder."""

    path: str
    kind: Literal["attention", "reconstruction", "training"]
    caption: str = ""


@dataclass(frozen=True)
class Video:
    """A rollout; `path` relative to the study's folder. Videos of equal `start` show arms on the same initial state.

    `data` is the path of what the player draws over it (`la_reconvla.analysis.film_data`), `reason` why this start.
    """

    path: str
    caption: str
    success: bool | None = None
    condition: str = ""
    start: str = ""
    instruction: str = ""
    data: str = ""
    reason: str = ""


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
    """Everything in `results.json`.

    `sequences`: where the study's place has a protocol of its own; None elsewhere. `unfilmed`: starts with a success
    that no film shows.
    """

    schema: Literal[2]
    study: Study
    conditions: tuple[ConditionResult, ...]
    floors: tuple[Floor, ...] = ()
    references: tuple[Reference, ...] = ()
    elsewhere: tuple[OtherStarts, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    hypotheses: tuple[Hypothesis, ...] = ()
    pictures: tuple[Picture, ...] = ()
    videos: tuple[Video, ...] = ()
    leakage: tuple[Leak, ...] = ()
    power: tuple[Power, ...] = ()
    timelines: tuple[Timeline, ...] = ()
    looks: tuple[Look, ...] = ()
    sequences: SequenceResults | None = None
    unfilmed: int = 0

    def hypothesis(self, id: str) -> Hypothesis | None:
        """The hypothesis of this id."""
        return next((h for h in self.hypotheses if h.id == id), None)

    def comparison(self, a: str, b: str, metric: str, suite: str = "") -> Comparison | None:
        """The comparison of this name; see `ComparisonKey`."""
        return self.by_key.get(ComparisonKey(a, b, metric, suite))

    @functools.cached_property
    def by_key(self) -> dict[ComparisonKey, Comparison]:
        """All comparisons by their name."""
        return {c.key: c for c in self.comparisons}

    @property
    def family(self) -> list[Comparison]:
        """The comparisons of the declared family, which are corrected together."""
        return [c for c in self.comparisons if c.p_holm is not None and c.kind == "difference"]

    def judged_by(self, hypothesis: Hypothesis) -> list[Comparison]:
        """The comparisons that a verdict rests on."""
        return [self.by_key[key] for key in hypothesis.comparisons]

    def against_floors(self, metric: str) -> list[Comparison]:
        """The comparisons of arms with floors, by `metric`."""
        return [c for c in self.comparisons if c.b in get_args(FloorId) and c.metric == metric]
