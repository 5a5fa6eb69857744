"""The command ``eval``: one run, the scripted expert or a random policy, and if asked its floors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from la_reconvla import layout
from la_reconvla.analysis.comparing import comparison
from la_reconvla.analysis.counterfactual import counterfactual
from la_reconvla.analysis.evidence import by_start
from la_reconvla.analysis.measures import STAGES
from la_reconvla.analysis.summaries import following, rate
from la_reconvla.analysis.verdicts import in_words
from la_reconvla.data.starts import Start
from la_reconvla.episodes import WAYS, EpisodeRecord, Label, read_episodes
from la_reconvla.errors import UserError
from la_reconvla.execution.current import executor
from la_reconvla.method.policy import Policy
from la_reconvla.progress import progress
from la_reconvla.serving.client import SHOWN, Remote, is_address
from la_reconvla.serving.lerobot_folder import SCHEME, SMALL, LeRobotFolder, is_lerobot
from la_reconvla.serving.lerobot_policy import LeRobot
from la_reconvla.sim.expert_tasks import require_feasible
from la_reconvla.sim.machine import default_workers, require_simulator
from la_reconvla.sim.policies import Scripted, Specification, Uniform
from la_reconvla.sim.rollout import EnvSettings
from la_reconvla.sim.suite_changes import KINDS, kind_of_wording
from la_reconvla.storage import locked, require_free_space
from la_reconvla.study import calvin
from la_reconvla.study.evaluate import Evaluation, evaluate, pending, settings_for
from la_reconvla.study.films import evaluation_films
from la_reconvla.study.floors import floors_of, view_floors
from la_reconvla.study.options import UNTRAINED, EvaluateOptions
from la_reconvla.study.runs import SPACE, learned_tasks, open_run, suite_of_run, tell_unnamed, usual_workers
from la_reconvla.study.starts import evaluation_starts, met, was_trained_on, wording, wrong_words
from la_reconvla.text_table import say, tell
from la_reconvla.training.checkpoint import PolicyConfig
from la_reconvla.training.devices import pick_device
from la_reconvla.training.trained_policy import Trained
from la_reconvla.training.trial import dry_run


@dataclass(frozen=True, eq=False)
class Subject:
    """What is evaluated.

    Attributes:
        policy: what acts.
        label: for its records.
        settings: the environment that it acts in.
        folder: where its episodes go.
        workers: usual number of processes.
        trained: the policy itself, None if it was not trained; `config` likewise.
        config: what it is.
        trained_on: starts of its training, as far as they are known.
    """

    policy: Specification
    label: Label
    settings: EnvSettings
    folder: Path
    workers: int
    trained: Policy | None = None
    config: PolicyConfig | None = None
    trained_on: frozenset[str] = frozenset()  # starts of its training, and of the run that this began from


def evaluate_one(run: str, options: EvaluateOptions) -> Path:
    """Evaluate a run folder, ``expert`` or ``random`` and print success and stages; see the command ``eval``."""
    if options.max_steps is not None and options.max_steps < 1:
        raise UserError(f"max_steps must be at least 1, not {options.max_steps}")
    if options.suite == calvin.SUITE:
        return calvin.evaluate_one(run, options)
    placement, view = options.placement, options.view
    if options.dataset is not None:
        raise UserError("--dataset is for --suite calvin: leave it out")
    if options.episodes < 1:
        raise UserError(f"episodes must be at least 1, not {options.episodes}")
    others = is_address(run) or is_lerobot(run)
    if options.execute is not None and (not others or options.execute < 1):
        raise UserError(
            "--execute is how many actions of a chunk of others' policies are carried out: at least 1, for ws://... "
            "and lerobot:..."
        )
    if options.words != "files" and not others:
        raise UserError("--words is for others' policies, ws://... and lerobot:...: ours are told what they learned")
    _require_listener(run, options)
    if options.floors and (run in UNTRAINED or view != "true"):
        raise UserError("--floors is for a trained policy under its true view: it adds the other views itself")
    suite = options.suite or suite_of_run(run)
    options = replace(options, suite=suite)
    subject = _subject(run, options)
    tasks = _tasks(run, subject, suite, options.tasks)
    if subject.trained is not None and subject.config is not None:
        words = [text for _, text in wording(suite, tasks, placement)]
        dry_run(subject.trained, subject.config.backbone, [options.instruction] if options.instruction else words)
    if isinstance(subject.policy, Trained | Remote | LeRobot) and view == "wrong_instruction":
        subject = replace(subject, policy=replace(subject.policy, swaps=wrong_words(suite, tasks, placement)))
    require_free_space(subject.folder, SPACE)
    require_simulator(allow_any_mujoco=options.allow_any_mujoco)
    starts = evaluation_starts(
        suite,
        tasks,
        placement,
        options.episodes,
        trained_on=frozenset() if options.allow_train_starts else subject.trained_on,
        split="train" if options.allow_train_starts else "test",
        cache=subject.folder / layout.PLACEMENTS,
        allow_any_mujoco=options.allow_any_mujoco,
    )
    grid = None if subject.config is None else subject.config.backbone.grid
    told = options.instruction
    evaluations = [Evaluation(subject.folder, subject.label, subject.policy, films=True, instruction=told)]
    if options.floors and isinstance(subject.policy, Trained):
        swaps = wrong_words(suite, tasks, placement)
        evaluations += floors_of(subject.policy, subject.folder, subject.label, swaps, starts, options.demonstrations)
    elif options.floors and isinstance(subject.policy, Remote | LeRobot):
        swaps = wrong_words(suite, tasks, placement)
        evaluations += view_floors(subject.policy, subject.folder, subject.label, swaps)
    workers = options.workers or executor().workers or subject.workers
    with locked(subject.folder), progress("Rollouts", total=pending(evaluations, starts), unit="episodes") as bar:
        evaluate(evaluations, starts, subject.settings, workers, bar.advance)
    _print_all(run if view == "true" else f"{run} ({view.replace('_', ' ')})", run, evaluations, starts)
    if options.allow_train_starts and subject.trained is not None:
        known = sum(was_trained_on(start, subject.trained_on) for start in starts)
        say(f"{known} of these {len(starts)} starts were used in training")
    evaluation_films(subject.folder, starts, grid, subject.settings, workers)
    return subject.folder


def _require_listener(run: str, options: EvaluateOptions) -> None:
    """Refuse an instruction that nobody would hear, or whose floor would be told another one."""
    if options.instruction is None:
        return
    if not options.instruction.strip():
        raise UserError("--instruction is empty: leave it out for the task's own words")
    if run in UNTRAINED:
        raise UserError(f"{run} reads no words: --instruction is for a trained policy, give its run folder")
    if options.floors or options.view == "wrong_instruction":
        raise UserError("--instruction takes the place of the wrong one: leave it out for --floors and that view")


def _subject(run: str, options: EvaluateOptions) -> Subject:
    """What `run` names."""
    view, out, allow_any_mujoco = options.view, options.out, options.allow_any_mujoco
    parts = (
        options.suite,
        options.placement,
        "train" if options.allow_train_starts else "",
        view if view != "true" else "",
        f"{options.max_steps}-steps" if options.max_steps else "",
        re.sub(r"\W+", "_", options.instruction or "")[:60],
        options.words if options.words != "files" else "",
    )
    name = "-".join(filter(None, parts))
    if run in UNTRAINED:
        if view != "true":
            raise UserError(f"{run} uses no image: --view {view} is for a trained policy, give its run folder")
        settings = EnvSettings(quality="fast", allow_any_mujoco=allow_any_mujoco, max_steps=options.max_steps)
        policy: Specification = Scripted() if run == "expert" else Uniform()
        return Subject(policy, Label(run, None), settings, out or layout.RUNS / run / name, default_workers())
    if is_address(run):
        settings = replace(SHOWN, allow_any_mujoco=allow_any_mujoco, max_steps=options.max_steps)
        label = Label("remote", None, None if view == "true" else view)
        folder = out or layout.RUNS / re.sub(r"\W+", "_", run) / name
        remote = Remote(run, view, words=options.words, execute=options.execute)
        remote.identity()  # somebody answers there, before anything is made
        return Subject(remote, label, settings, folder, default_workers())
    if is_lerobot(run):
        theirs = LeRobot(
            Path(run.removeprefix(SCHEME)),
            view,
            words=options.words,
            execute=options.execute,
            device=str(pick_device(options.device)),
        )
        found = LeRobotFolder.read(theirs.path)
        theirs.identity()  # LeRobot is there, before anything is made
        if options.execute is not None and found.each_step:
            raise UserError(
                f"{theirs.path} gives one action at a time, as it has a history or averages its chunks: leave "
                "--execute out"
            )
        own = found.policy
        arm, seed = (found.type, None) if own is None else (own.condition, own.seed)
        label = Label(arm, seed, None if view == "true" else view)
        settings = theirs.settings(allow_any_mujoco=allow_any_mujoco, max_steps=options.max_steps)
        folder = out or layout.RUNS / re.sub(r"\W+", "_", run) / name
        tell_unnamed(run, own)
        if own is None:
            return Subject(theirs, label, settings, folder, default_workers() if found.type in SMALL else 1)
        return Subject(theirs, label, settings, folder, usual_workers(own.backbone), trained_on=frozenset(own.seen))
    trained, config, policy = open_run(run, view, options.device)
    settings = settings_for(config.backbone, config.image_size, config.quality, allow_any_mujoco)
    return Subject(
        policy,
        Label(config.condition, config.seed, None if view == "true" else view),
        replace(settings, max_steps=options.max_steps),
        out or (Path(run) if Path(run).exists() else layout.RUNS / run) / name,
        usual_workers(config.backbone),
        trained,
        config,
        frozenset(config.seen),
    )


def _tasks(run: str, subject: Subject, suite: str, tasks: Sequence[int] | None) -> Sequence[int]:
    """Those asked for, else those that it has learned; raises a `UserError` for what the expert cannot do."""
    if tasks is None:
        tasks = (0, 1, 2) if subject.config is None else learned_tasks(run, subject.config, suite)
    if run == "expert":
        require_feasible(task for index in tasks for task in met(suite, index))
    return tasks


def _print_all(shown: str, run: str, evaluations: Sequence[Evaluation], starts: Sequence[Start]) -> None:
    """What the policy did on these starts, and then what each floor did beside it."""
    asked = {start.id for start in starts}
    records = [[r for r in read_episodes(e.folder) if r.start.id in asked] for e in evaluations]
    first = evaluations[0]
    _print_summary(shown, records[0], first.folder / layout.EPISODES, asked=first.instruction is None)
    for floor, found in zip(evaluations[1:], records[1:], strict=True):
        name = floor.label.floor or "no_image"
        _print_summary(f"floor: {name.replace('_', ' ')}", found, floor.folder / layout.EPISODES)
        if found:
            compared = comparison(run, name, by_start(records[0], "tsr"), by_start(found, "tsr"))
            say(in_words(compared))


def _print_summary(name: str, records: Sequence[EpisodeRecord], path: Path, asked: bool = True) -> None:
    """Success with its interval, stages, and what pairs of instructions moved, if it was `asked` for what counts."""
    console = Console(stderr=True)
    if found := rate(records):
        tell(
            f"{name}: {found.successes} of {found.episodes} episodes succeeded, {100 * found.rate:.1f} % "
            f"(95 % interval {100 * found.low:.1f} to {100 * found.high:.1f})",
            console,
        )
        reached = ", ".join(f"{stage} {sum(bool(r.value(stage)) for r in records)}" for stage in STAGES)
        tell(f"stages: {reached}; details: {path}", console)
    if told := [(kind, r.success) for r in records if (kind := kind_of_wording(r.start.instruction))]:
        counts = (f"{kind} {told.count((kind, True))} of {[k for k, _ in told].count(kind)}" for kind in KINDS)
        tell(f"successes by kind of wording: {', '.join(counts)}", console)
    if asked and (first := following(records)):
        shares = ((way, getattr(first, way)) for way in WAYS)
        said = ", ".join(f"{way} {share.successes} of {share.episodes}" for way, share in shares if share)
        tell(f"the first thing was asked for, of the episodes in which there was one: {said}", console)
    if asked and (two := counterfactual(records)):
        tell(
            f"{two.pairs} states with two instructions each: first moved the object asked for {two.asked} times, "
            f"the other instruction's object {two.other}, something else {two.else_moved}, nothing {two.neither}",
            console,
        )
