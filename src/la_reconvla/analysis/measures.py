"""Numbers of a study as `results.json` holds them: rates, means, overlaps, effects."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

STAGES = ("approached", "distractor_approached", "grasped", "lifted", "placed")
EPISODE_METRICS = ("tsr", "smallest_distance", *STAGES)
UNBOUNDED = ("smallest_distance", "action_error", "mass_over_area")  # all other metrics are shares, within 0 and 1

MapPart = Literal["target", "destination", "distractor"]
MapPhase = Literal["all", "reach", "carry", "place"]
MapKind = Literal["policy", "uniform", "centre", "mean_map", "shuffled"]


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
    """Share of episodes that reached each stage, and the mean smallest distance (m). None: not recorded.

    `episodes` are those of which it is known: a goal that puts nothing anywhere has no stages.
    """

    approached: float | None = None
    distractor_approached: float | None = None
    grasped: float | None = None
    lifted: float | None = None
    placed: float | None = None
    smallest_distance: float | None = None
    episodes: int | None = None


@dataclass(frozen=True, kw_only=True)
class OverlapValues:
    """Overlap of maps with an instance, see `la_reconvla.analysis.attention_overlap.Grounding`; None: not defined."""

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


OVERLAPS = tuple(f.name for f in fields(OverlapValues))


@dataclass(frozen=True, kw_only=True)
class GroundingMeans(OverlapValues):
    """Means over frames that show the instance, `patches` of each on average; other frames are `excluded`.

    `channel` is the source of the attention: ``language``, or the backbone's fallback; None if not recorded.
    """

    frames: int
    excluded: int
    patches: float | None = None
    channel: str | None = None


@dataclass(frozen=True)
class MapRow:
    """Overlap of one kind of map with one thing in one phase of the episodes.

    Attributes:
        part: what the map should cover; the distractor is what it should not.
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
    """Maps on the same held-out frames at one check of a training; see `la_reconvla.training.held_out.save_looks`.

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
class HeadCost:
    """What a reconstruction head costs, see `la_reconvla.study.head_cost`.

    Attributes:
        parameters: numbers that train.
        operations: multiplications and additions of matrix products (2 each multiply-add) for one sample of a training
            step, forward and backward, the head alone.
    """

    parameters: int
    operations: int


@dataclass(frozen=True)
class Effect:
    """How far the distribution of actions moves when something is hidden; see `la_reconvla.study.occlusion`.

    Attributes:
        occluded: what is covered; ``control`` is an equal number of patches elsewhere.
        shift: how far the distribution moves.
        over_control: the paired difference with ``control``; None for the control itself.
    """

    occluded: Literal["target", "distractor", "destination", "control"]
    shift: Measure
    over_control: Measure | None = None


@dataclass(frozen=True)
class Following:
    """Whether the first thing was one asked for, as a share of the episodes in which there was a first thing.

    It needs no success: a policy that takes the right thing and drops it follows its instruction. Of each `Rate`,
    `successes` counts the episodes whose first thing was asked for.

    Attributes:
        touched: of episodes in which the hand touched something; None if there are none, or nothing was watched.
        held: in which both fingers touched something at once.
        moved: in which a thing was moved that could be, of goals that move one.
    """

    touched: Rate | None = None
    held: Rate | None = None
    moved: Rate | None = None


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
        touched: the same of the first thing that the hand touched.
        held: the same of the first thing between both fingers.
    """

    pairs: int
    asked: int
    other: int
    else_moved: int
    neither: int
    followed: int
    preference: Rate | None = None
    touched: Rate | None = None
    held: Rate | None = None


@dataclass(frozen=True)
class Leak:
    """What training and evaluation have in common in one respect; see `la_reconvla.analysis.leakage`.

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
    """What so many episodes can tell apart; see `la_reconvla.analysis.power`.

    Attributes:
        points: difference of success rates, as a share (0.05 is five points).
        rate: of the worse arm, as a share.
        needed: episodes per arm of the `seeds` seeds; None where so many would not do.
        planned: episodes per arm in this study.
        power: probability that the study's own test finds it with those, by simulation.
        between_seeds: standard deviation of an arm's rate between its seeds that was taken, a share: measured in this
            study where that was possible, else `la_reconvla.analysis.power.BETWEEN_SEEDS`. None in results of before.
        seeds: fewest seeds, of `la_reconvla.analysis.power.SEEDS`, with which the study's own test finds it four times
            in five; None where none of these does, and in results of before, where `needed` is for independent arms.
    """

    points: float
    rate: float
    needed: int | None
    planned: int
    power: float
    between_seeds: float | None = None
    seeds: int | None = None
