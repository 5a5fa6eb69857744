"""Closed-loop evaluation: many policies on the same starts, one pool of workers, one line an episode on disk.

A run that is stopped goes on where it was: what stands in ``episodes.jsonl`` is not run again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

from rich.console import Console

from la_reconvla.backbones.pretrained import Pretrained
from la_reconvla.checkpoint import WEIGHTS, PolicyConfig, dry_run, find_run, load_policy
from la_reconvla.conditions import NO_IMAGE
from la_reconvla.contracts import BackboneConfig, PlacementKind, Quality, Split, Start
from la_reconvla.data.hdf5 import Demonstrations, open_demonstrations
from la_reconvla.errors import UserError
from la_reconvla.method.policy import Policy
from la_reconvla.progress import progress
from la_reconvla.sim.collect import default_workers
from la_reconvla.sim.expert import feasible, require_feasible
from la_reconvla.sim.machine import require_simulator
from la_reconvla.sim.placements import SCHEME, instructions, wide_starts
from la_reconvla.sim.policies import Replay, Scripted, Specification, Trained, Uniform, View, replayable, swapped
from la_reconvla.sim.rollout import CONTROL_RATE, FILM_EVERY, EnvSettings, Film, Job, rollouts
from la_reconvla.sim.tasks import base_of, load_suite, load_task, official_start, official_states
from la_reconvla.storage import append_jsonl, claim, locked, read_jsonl, require_free_space
from la_reconvla.study.counterfactual import counterfactual
from la_reconvla.study.evidence import comparison, rate
from la_reconvla.study.figures import overlay, write_video
from la_reconvla.study.results import STAGES
from la_reconvla.study.verdicts import in_words
from la_reconvla.train import pick_device

EPISODES = "episodes.jsonl"
FILMS = 2  # videos of either outcome, beside the first start of each task
SPACE = 100_000_000  # bytes of records and videos, generously
TURN = 4  # starts that a policy does before the next has its turn, so that its weights are loaded once for all of them


@dataclass(frozen=True)
class Evaluation:
    """One policy to evaluate.

    Attributes:
        folder: where ``episodes.jsonl`` and ``videos/`` go.
        label: what identifies the policy in its records: condition, seed, and the floor's id.
        policy: what acts.
        episodes: use the first so many starts; None for all.
        films: keep videos of the first start of each task, and of up to two successes and two failures.
        grid: patch grid of the saliency, drawn over the videos.
        only: which starts it can do; the others are left out for it.
    """

    folder: Path
    label: dict[str, Any]
    policy: Specification
    episodes: int | None = None
    films: bool = False
    grid: tuple[int, int] | None = None
    only: Callable[[Start], bool] = lambda start: True

    def takes(self, starts: Sequence[Start]) -> list[Start]:
        """Those of `starts` that it is evaluated on."""
        return [start for start in starts[: self.episodes] if self.only(start)]


def wording(suite: str, tasks: Sequence[int], placement: PlacementKind) -> set[tuple[int, str]]:
    """What a policy can be told: (task, instruction) of all starts of these tasks; no start is made for it.

    Raises:
        UserError: for unknown names.
    """
    if placement == "wide" and base_of(suite) != suite:
        raise UserError(
            f"{suite} has no wide placements: they would move again what LIBERO-PRO has changed; "
            "use --placement official"
        )
    told = set()
    for index in tasks:
        task = load_task(suite, index)
        words = instructions(task).values() if placement == "wide" else [task.instruction]
        told |= {(index, text) for text in words}
    return told


def tasks_of(suite: str, learned: Iterable[tuple[str, int]]) -> tuple[int, ...]:
    """Tasks of `suite` to evaluate a policy on: those it has learned, before or after LIBERO-PRO's change; else all.

    Args:
        suite: LIBERO suite.
        learned: (suite, task) of everything that the policy was trained on.

    Raises:
        UserError: for an unknown suite.
    """
    here = {index for other, index in learned if base_of(other) == base_of(suite)}
    return tuple(sorted(here)) or tuple(range(len(load_suite(suite))))


def wrong_words(suite: str, tasks: Sequence[int], placement: PlacementKind) -> tuple[tuple[int, str, str], ...]:
    """What the wrong-instruction floor is told on these tasks (see `swapped`): only what is said in this suite.

    Another suite's words may mean the same thing. Where these tasks have one instruction, the suite's others join.

    Raises:
        UserError: if the whole suite has one.
    """
    told = wording(suite, tasks, placement)
    if len({text for _, text in told}) < 2:
        told |= wording(suite, range(len(load_suite(suite))), placement)
    return swapped(told)


def evaluation_starts(
    suite: str,
    tasks: Sequence[int],
    placement: PlacementKind,
    episodes: int,
    *,
    trained_on: frozenset[str] = frozenset(),
    split: Split = "test",
    cache: Path | None = None,
    allow_any_mujoco: bool = False,
) -> list[Start]:
    """`episodes` starts of each task, interleaved by task, none of which is in `trained_on`.

    Args:
        suite: LIBERO suite.
        tasks: indices of the tasks.
        placement: ``official`` or ``wide``.
        episodes: number for each task.
        trained_on: ids of the starts to leave out. An official state counts as trained on whatever its split is called.
        split: ``train`` takes the placements that training takes, and official states from number 0 up; ``test`` the
            others, and official states from the last one down.
        cache: where settled wide placements are kept.
        allow_any_mujoco: accept a MuJoCo whose physics is known to differ.

    Raises:
        UserError: for unknown names, or if fewer official states are left than asked for.
    """
    per_task: list[list[Start]] = []
    for index in tasks:
        task = load_task(suite, index)
        if placement == "wide":
            starts = wide_starts(suite, index, split, range(episodes), cache, allow_any_mujoco=allow_any_mujoco)
            starts = [start for start in starts if not was_trained_on(start, trained_on)]
        else:
            numbers = range(len(official_states(task)))
            starts = [official_start(task, i, split=split) for i in (numbers if split == "train" else numbers[::-1])]
            starts = [start for start in starts if not was_trained_on(start, trained_on)][:episodes]
        if len(starts) < episodes:
            raise UserError(
                f"{suite} task {index}: {len(starts)} {placement} starts were not trained on, {episodes} are wanted: "
                "ask for fewer episodes or evaluate on wide placements"
            )
        per_task.append(starts)
    return [start for group in zip(*per_task, strict=True) for start in group]


def was_trained_on(start: Start, trained_on: frozenset[str]) -> bool:
    """Whether a policy with these training starts knows `start`; an official state is one whatever its split."""
    names = {start.id}
    if start.placement == "official":
        names = {replace(start, split=split).id for split in get_args(Split)}
    return not trained_on.isdisjoint(names)


def settings_for(
    backbone: BackboneConfig, image_size: int, quality: Quality, allow_any_mujoco: bool = False
) -> EnvSettings:
    """The environment that shows what `backbone` takes, rendered as the training data were."""
    return EnvSettings(
        image_size=image_size,
        wrist=backbone.wrist,
        proprio=backbone.proprio != "none",
        quality=quality,
        allow_any_mujoco=allow_any_mujoco,
    )


def evaluate(
    evaluations: Sequence[Evaluation],
    starts: Sequence[Start],
    settings: EnvSettings,
    workers: int,
    advance: Callable[[int, str], None] = lambda count, note: None,
    enough: Callable[[], bool] | None = None,
) -> None:
    """Run all episodes that are not on disk yet, or so many of them as are needed.

    Args:
        evaluations: the policies.
        starts: the initial states, the same for all of them.
        settings: what the environment shows.
        workers: processes, one simulator each.
        advance: told of every finished episode.
        enough: asked before the first episode and after each; True ends the others. With it episodes run in the order
            of `starts`, `TURN` of them by each policy in turn, not sorted by task.
    """
    by_folder = {evaluation.folder: evaluation for evaluation in evaluations}
    jobs, first = [], {start.task: start.id for start in reversed(starts)}
    for evaluation in evaluations:
        claim(evaluation.folder / "evaluation.json", _identity(evaluation, settings))
        label = {**evaluation.label, "folder": str(evaluation.folder)}
        jobs += [
            Job(label, evaluation.policy, start, settings, evaluation.films) for start in _missing(evaluation, starts)
        ]
    if enough is None:
        jobs.sort(key=lambda job: (job.start.task, job.label["folder"]))  # another task means another simulator
    else:
        turn = {start.id: number // TURN for number, start in enumerate(starts)}
        jobs.sort(key=lambda job: turn[job.start.id])
        if enough():
            return
    ahead = None if enough is None else workers + TURN  # one slow episode must not let the others run on
    with closing(rollouts(jobs, workers, ahead)) as finished:
        for job, record, film in finished:
            folder, outcome = Path(record.pop("folder")), "success" if record["success"] else "failure"
            if film is not None:
                kept = list((folder / "videos").glob(f"*_{outcome}.mp4"))
                if job.start.id == first[job.start.task] or len(kept) < FILMS:
                    record["video"] = f"videos/task{job.start.task}_{job.start.index}_{outcome}.mp4"
                    save_film(folder / record["video"], film, by_folder[folder].grid)
            append_jsonl(folder / EPISODES, record)
            advance(1, f"{record.get('condition') or record.get('floor')}: {outcome}")
            if enough is not None and enough():
                return


def _identity(evaluation: Evaluation, settings: EnvSettings) -> dict[str, Any]:
    """What all episodes of one file have in common."""
    return {
        "label": evaluation.label,
        "policy": evaluation.policy.identity(),
        "settings": asdict(settings),
        "mujoco": version("mujoco"),
        "placements": SCHEME,
    }


def _missing(evaluation: Evaluation, starts: Sequence[Start]) -> list[Start]:
    done = {record["start_id"] for record in read_jsonl(evaluation.folder / EPISODES)}
    return [start for start in evaluation.takes(starts) if start.id not in done]


def pending(evaluations: Sequence[Evaluation], starts: Sequence[Start]) -> int:
    """How many episodes `evaluate` would run."""
    return sum(len(_missing(evaluation, starts)) for evaluation in evaluations)


def save_film(path: Path, film: Film, grid: tuple[int, int] | None) -> None:
    """Write a video, at twice real time; where the policy looked is drawn over the frames if it looked anywhere."""
    frames = film.frames
    if film.saliency and grid is not None:
        frames = [overlay(frame, look, grid) for frame, look in zip(frames, film.saliency, strict=True)]
    write_video(path, frames, fps=2 * CONTROL_RATE // FILM_EVERY)


def open_run(run: str, view: View, device: str) -> tuple[Policy, PolicyConfig, Trained]:
    """A run as it is evaluated: its policy, loaded to find damage before the simulator starts, and its specification.

    Where its training data do not name their starts, so that none can be left out, it says so.

    Args:
        run: its folder, or ``user/name`` on the hub.
        view: what it is shown.
        device: where it acts: auto, cpu, cuda or mps.

    Raises:
        UserError: if it is no finished run, or the device is not there.
    """
    found = find_run(run)
    policy, config = load_policy(found)
    if not config.train_starts:
        Console(stderr=True).print(
            f"the training data of {run} do not name their initial states: none can be left out", soft_wrap=True
        )
    return policy, config, Trained(found.resolve(), view, device=str(pick_device(device)))


def learned_tasks(run: str, config: PolicyConfig, suite: str) -> tuple[int, ...]:
    """Tasks of `suite` to evaluate a run on, see `tasks_of`.

    Raises:
        UserError: if the run does not say what it was trained on.
    """
    learned = [(str(parts[0]), int(parts[1])) for parts in (id.split("/") for id in config.train_starts)]
    if not learned:
        raise UserError(f"{run} does not say that it was trained on tasks of {suite}: name them with --tasks")
    return tasks_of(suite, learned)


def usual_workers(*backbones: BackboneConfig) -> int:
    """Processes that evaluate policies over these backbones: one device holds one model of billions of weights."""
    return 1 if any(isinstance(backbone, Pretrained) for backbone in backbones) else default_workers()


def evaluate_one(
    run: str,
    episodes: int,
    suite: str,
    tasks: Sequence[int] | None,
    placement: PlacementKind,
    workers: int,
    out: Path | None,
    allow_any_mujoco: bool = False,
    device: str = "auto",
    allow_train_starts: bool = False,
    view: View = "true",
    floors: bool = False,
    demonstrations: Path | None = None,
) -> Path:
    """Evaluate a run folder, ``expert`` or ``random`` and print success and stages; see the command ``evaluate``."""
    if episodes < 1:
        raise UserError(f"episodes must be at least 1, not {episodes}")
    name = "-".join([suite, placement, *(["train"] if allow_train_starts else []), *([view] if view != "true" else [])])
    trained_on: frozenset[str] = frozenset()
    trained, config, beside = None, None, []
    if floors and (run in ("expert", "random") or view != "true"):
        raise UserError("--floors is for a trained policy under its true view: it adds the other views itself")
    if run in ("expert", "random"):
        if view != "true":
            raise UserError(f"{run} does not look: --view {view} is for a trained policy, give its run folder")
        settings = EnvSettings(quality="fast", allow_any_mujoco=allow_any_mujoco)
        policy: Specification = Scripted() if run == "expert" else Uniform()
        folder = out or Path("runs") / run / name
        label, grid, usual = {"condition": run, "seed": None}, None, default_workers()
    else:
        trained, config, policy = open_run(run, view, device)
        settings = settings_for(config.backbone, config.image_size, config.quality, allow_any_mujoco)
        trained_on = frozenset(config.train_starts)
        folder = out or (Path(run) if Path(run).exists() else Path("runs") / run) / name
        label = {"condition": config.condition, "seed": config.seed, **({"floor": view} if view != "true" else {})}
        grid, usual = config.backbone.grid, usual_workers(config.backbone)
    if tasks is None:
        tasks = (0, 1, 2) if config is None else learned_tasks(run, config, suite)
    if run == "expert":
        require_feasible(load_task(suite, index) for index in tasks)
    told = wording(suite, tasks, placement)
    if trained is not None:
        dry_run(trained, [text for _, text in told])
    if isinstance(policy, Trained) and view == "wrong_instruction":
        policy = replace(policy, swaps=wrong_words(suite, tasks, placement))
    require_free_space(folder, SPACE)
    require_simulator(allow_any_mujoco=allow_any_mujoco)
    starts = evaluation_starts(
        suite,
        tasks,
        placement,
        episodes,
        trained_on=frozenset() if allow_train_starts else trained_on,
        split="train" if allow_train_starts else "test",
        cache=folder / "placements",
        allow_any_mujoco=allow_any_mujoco,
    )
    evaluations = [Evaluation(folder, label, policy, films=True, grid=grid)]
    if floors and isinstance(policy, Trained):
        beside = floors_of(policy, folder, label, wrong_words(suite, tasks, placement), starts, demonstrations)
        evaluations += beside
    with locked(folder), progress("Rollouts", total=pending(evaluations, starts), unit="episodes") as bar:
        evaluate(evaluations, starts, settings, workers or usual, bar.advance)
    asked = {start.id for start in starts}
    shown = run if view == "true" else f"{run} ({view.replace('_', ' ')})"
    records = [[r for r in read_jsonl(e.folder / EPISODES) if r["start_id"] in asked] for e in evaluations]
    _print_summary(shown, records[0], folder / EPISODES)
    for floor, found in zip(beside, records[1:], strict=True):
        name = str(floor.label.get("floor") or "no_image")
        _print_summary(f"floor: {name.replace('_', ' ')}", found, floor.folder / EPISODES)
        if found:
            Console(stderr=True).print(in_words(comparison(run, name, records[0], found)), soft_wrap=True)
    if allow_train_starts and trained is not None:
        known = sum(was_trained_on(start, trained_on) for start in starts)
        Console(stderr=True).print(f"{known} of these {len(starts)} starts had been trained on")
    return folder


def floors_of(
    policy: Trained,
    folder: Path,
    label: dict[str, Any],
    swaps: tuple[tuple[int, str, str], ...],
    starts: Sequence[Start],
    demonstrations: Path | None = None,
) -> list[Evaluation]:
    """The floors of one trained policy, each in a folder below `folder`; what a study has beside its runs is found.

    Those are the policy itself shown a grey image and told something else, the run without image of the same seed and
    data, and blind replay of the demonstrations, on the starts that they have the task and target of. What is left out
    is said.

    Args:
        policy: the trained policy.
        folder: where its episodes are.
        label: of its episodes.
        swaps: what it is told instead.
        starts: that it is evaluated on.
        demonstrations: what to replay; by default those of the study that the run is part of.
    """
    views: tuple[View, ...] = ("grey_image", "wrong_instruction")
    below, say = folder / "floors", Console(stderr=True).print
    result = [
        Evaluation(below / view, {**label, "floor": view}, replace(policy, view=view, swaps=swaps)) for view in views
    ]
    study = policy.run.parent.parent
    blind = study / NO_IMAGE.id / policy.run.name
    if (blind / WEIGHTS).exists() and PolicyConfig.load(blind).data_hash == PolicyConfig.load(policy.run).data_hash:
        own = {"condition": NO_IMAGE.id, "seed": label["seed"]}
        result.append(Evaluation(below / "no_image", own, replace(policy, run=blind)))
    else:
        say(f"floor without image: there is no such run at {blind}, it is left out")
    replayed = demonstrations or study / "demonstrations"
    if demonstrations is None and not replayed.is_dir():
        say("floor blind replay: give --demonstrations to have it; it is left out")
    else:
        known = functools.partial(has_replay, open_demonstrations(replayed))
        if any(map(known, starts)):
            alone = {"condition": None, "seed": None, "floor": "blind_replay"}
            result.append(Evaluation(below / "blind_replay", alone, Replay(replayed.resolve()), only=known))
        if lacking := len(starts) - sum(map(known, starts)):
            say(
                f"floor blind replay: {replayed} has no demonstration of what {lacking} of {len(starts)} starts ask for"
            )
    return result


def has_replay(demonstrations: Demonstrations, start: Start) -> bool:
    """Whether blind replay has a demonstration of what a start asks for."""
    return bool(replayable(start, demonstrations.episodes))


def expert_can(start: Start) -> bool:
    """Whether the scripted expert knows how to do what is asked for."""
    return feasible(load_task(start.suite, start.task))


def _print_summary(name: str, records: Sequence[dict[str, Any]], path: Path) -> None:
    """Success with its interval, how many episodes reached each stage, and what pairs of instructions moved."""
    console = Console(stderr=True)
    if found := rate(records):
        console.print(
            f"{name}: {found.successes} of {found.episodes} episodes succeeded, {100 * found.rate:.1f} % "
            f"(95 % interval {100 * found.low:.1f} to {100 * found.high:.1f})",
            soft_wrap=True,
        )
        reached = ", ".join(f"{stage} {sum(bool(r[stage]) for r in records)}" for stage in STAGES)
        console.print(f"stages: {reached}; all of it in {path}", soft_wrap=True)
    if two := counterfactual(records):
        console.print(
            f"{two.pairs} states with two instructions each: moved first what was asked for {two.asked} times, "
            f"what the other instruction asks for {two.other}, something else {two.else_moved}, nothing {two.neither}",
            soft_wrap=True,
        )
