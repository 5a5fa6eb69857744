"""Two trained policies on the same starts, rolled out until it is decided which is better.

The starts, their order and their number are fixed before the first rollout, and the pairs are judged in this order,
whichever episode ends first: a comparison that was stopped and goes on comes to the same decision, with any number of
workers. For its level see `la_reconvla.analysis.sequential`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Literal

from la_reconvla import kinds, layout
from la_reconvla.analysis.measures import Rate
from la_reconvla.analysis.sequential import ALPHA, Sequential, require_package, sequential_decision, step_test
from la_reconvla.analysis.summaries import rate
from la_reconvla.data.starts import PlacementKind, Start
from la_reconvla.episodes import Label, read_episodes
from la_reconvla.errors import UserError
from la_reconvla.progress import progress
from la_reconvla.sim.machine import require_simulator
from la_reconvla.sim.rollout import EnvSettings
from la_reconvla.storage import claim, locked, require_free_space, write_json
from la_reconvla.study.evaluate import Evaluation, evaluate, pending
from la_reconvla.study.options import CompareOptions
from la_reconvla.study.runs import SPACE, home_suite, learned_tasks, open_run, usual_workers
from la_reconvla.study.starts import evaluation_starts, wording
from la_reconvla.text_table import say
from la_reconvla.training.checkpoint import PolicyConfig
from la_reconvla.training.trial import dry_run


@dataclass(frozen=True)
class Plan:
    """What a comparison rolls out, decided before the first rollout.

    Attributes:
        suite: LIBERO suite.
        placement: which starts.
        tasks: indices of its tasks.
        episodes: pairs per task at most.
        one_sided_level: of the test, in either direction.
    """

    suite: str
    placement: PlacementKind
    tasks: tuple[int, ...]
    episodes: int
    one_sided_level: float = ALPHA


@dataclass(frozen=True)
class HeadToHead:
    """What a comparison came to.

    Attributes:
        better: which of the two is better, None if that is not decided.
        pairs: pairs judged, in the order of the starts.
        planned: pairs that there could have been.
        rollouts: episodes run, those included that were under way when the decision fell.
        saved: episodes that did not have to be run.
        a: success of the first policy on the pairs judged.
        b: of the second.
    """

    better: Literal["a", "b"] | None
    pairs: int
    planned: int
    rollouts: int
    saved: int
    a: Rate | None
    b: Rate | None


def until_decided(
    pair: Sequence[Evaluation],
    starts: Sequence[Start],
    settings: EnvSettings,
    workers: int,
    advance: Callable[[int, str], None] = lambda count, note: None,
) -> HeadToHead:
    """Roll two policies out until the pairs decide, or to the end; episodes on disk are not run again.

    Args:
        pair: the two policies.
        starts: the most that they may meet, in the order in which they are judged.
        settings: what the environment shows to both.
        workers: processes, one simulator each.
        advance: told of every finished episode.

    Raises:
        UserError: as `sequential_decision` and `evaluate`.
    """
    evaluate(pair, starts, settings, workers, advance, lambda: _decision(pair, starts).better is not None)
    found, asked = _decision(pair, starts), {start.id for start in starts}
    judged = {start.id for start in starts[: found.pairs]}
    records = [[r for r in read_episodes(e.folder) if r.start.id in asked] for e in pair]
    a, b = (rate([r for r in side if r.start.id in judged]) for side in records)
    run = sum(len(side) for side in records)
    return HeadToHead(found.better, found.pairs, found.planned, run, 2 * len(starts) - run, a, b)


def _decision(pair: Sequence[Evaluation], starts: Sequence[Start]) -> Sequential:
    a, b = (_outcomes(evaluation.folder, starts) for evaluation in pair)
    return sequential_decision(a, b, len(starts))


def _outcomes(folder: Path, starts: Sequence[Start]) -> list[bool]:
    """Success on each start, up to the first whose episode has not ended."""
    ended = {record.start.id: record.success for record in read_episodes(folder)}
    return [ended[start.id] for start in takewhile(lambda start: start.id in ended, starts)]


def compare(runs: tuple[str, str], options: CompareOptions) -> Path:
    """Compare two runs, print what was decided and write ``comparison.json``; see the command ``study compare``.

    Returns:
        Path of the file.

    Raises:
        UserError: before any rollout, if the package of the test is missing or has no table for so many pairs, if the
            runs cannot be compared, or if too few starts are left that neither was trained on.
    """
    out, episodes, placement = options.out, options.episodes, options.placement
    if episodes < 1:
        raise UserError(f"episodes must be at least 1, not {episodes}")
    require_package()
    (policy_a, a, first), (policy_b, b, second) = opened = [open_run(run, "true", options.device) for run in runs]
    if first.run == second.run:
        raise UserError(f"{runs[0]} and {runs[1]} are the same run: name two different ones")
    configs = dict(zip(runs, (a, b), strict=True))
    suite = options.suite or home_suite(a)
    settings = shared_settings(configs, options.allow_any_mujoco)
    tasks = tuple(options.tasks or shared_tasks(configs, suite))
    step_test(episodes * len(tasks))
    told = [text for _, text in wording(suite, tasks, placement)]
    for policy, config in ((policy_a, a), (policy_b, b)):
        dry_run(policy, config.backbone, told)
    require_free_space(out, SPACE)
    require_simulator(allow_any_mujoco=options.allow_any_mujoco)
    starts = evaluation_starts(
        suite,
        tasks,
        placement,
        episodes,
        trained_on=frozenset(a.seen) | frozenset(b.seen),
        cache=out / layout.PLACEMENTS,
        allow_any_mujoco=options.allow_any_mujoco,
    )
    pair = [
        Evaluation(out / name, Label(config.condition, config.seed), policy)
        for name, (_, config, policy) in zip(("a", "b"), opened, strict=True)
    ]
    plan = Plan(suite, placement, tasks, episodes)
    named = {"a": runs[0], "b": runs[1]}
    with locked(out), progress("Rollouts at most", total=pending(pair, starts), unit="episodes") as bar:
        claim_comparison(out, plan, named)
        count = options.workers or usual_workers(a.backbone, b.backbone)
        found = until_decided(pair, starts, settings, count, bar.advance)
        write_json(out / layout.COMPARISON, {**kinds.to_json(plan), "runs": named, "result": found})
    for line in in_words(found, *runs):
        say(line)
    return out / layout.COMPARISON


def claim_comparison(out: Path, plan: Plan, runs: Mapping[str, str]) -> None:
    """Make the folder this comparison's, or see that it is."""
    with_defaults = functools.partial(kinds.with_defaults, value=plan)
    claim(out / layout.COMPARISON, kinds.to_json(plan), with_defaults, runs=runs)


def shared_settings(configs: Mapping[str, PolicyConfig], allow_any_mujoco: bool = False) -> EnvSettings:
    """One environment that shows every run what it takes.

    Raises:
        UserError: if their demonstrations were rendered differently.
    """
    (name, one), *others = configs.items()
    for other, config in others:
        for what, mine, its in (
            ("image size", one.image_size, config.image_size),
            ("render quality", one.quality, config.quality),
        ):
            if mine != its:
                raise UserError(
                    f"{name} and {other} were trained on frames of another {what} ({mine} and {its}): one environment "
                    "cannot show both what they know; train them on the same demonstrations, or evaluate each alone"
                )
    backbones = [config.backbone for config in configs.values()]
    return EnvSettings(
        image_size=one.image_size,
        wrist=any(backbone.wrist for backbone in backbones),
        proprio=any(backbone.proprio != "none" for backbone in backbones),
        quality=one.quality,
        allow_any_mujoco=allow_any_mujoco,
    )


def shared_tasks(configs: Mapping[str, PolicyConfig], suite: str) -> list[int]:
    """Tasks of `suite` that every run would be evaluated on.

    Raises:
        UserError: if there is none.
    """
    tasks = set.intersection(*(set(learned_tasks(run, config, suite)) for run, config in configs.items()))
    if not tasks:
        raise UserError(f"{' and '.join(configs)} share no task of {suite}: name tasks with --tasks")
    return sorted(tasks)


def in_words(result: HeadToHead, a: str, b: str) -> list[str]:
    """The decision and its numbers, one sentence per line; `a` and `b` are the runs' names."""
    winner, loser = (a, b) if result.better == "a" else (b, a)
    level = f"one-sided level {100 * ALPHA:.0f} % in either direction"
    total = result.rollouts + result.saved
    lines = [
        f"{winner} is better than {loser}: decided by {result.pairs} of at most {result.planned} pairs ({level})"
        if result.better
        else f"undecided: {result.pairs} pairs show neither which is better ({level}) nor that they are equal",
        f"rollouts: {result.rollouts} of at most {total} were run, {result.saved} saved",
    ]
    lines += [
        f"{run}: {s.successes} of {s.episodes} of these pairs, {100 * s.rate:.1f} % "
        f"(95 % interval {100 * s.low:.1f} to {100 * s.high:.1f})"
        for run, s in ((a, result.a), (b, result.b))
        if s is not None
    ]
    if result.better:
        lines.append("the rates are those at the decision; after all pairs they would differ less")
    return lines
