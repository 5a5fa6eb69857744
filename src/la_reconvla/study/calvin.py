"""CALVIN's protocol over trained policies: ``eval RUN --suite calvin``, and ``study run --suite calvin``.

Sequences that are on disk are not run again. One takes up to 1800 steps of some 50 ms, so the published 1000 take days
on a laptop: fewer are the first of the list, and the interval says what they can tell.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass, fields, replace
from itertools import combinations
from pathlib import Path

from la_reconvla import layout
from la_reconvla.analysis.comparisons import Comparison
from la_reconvla.analysis.decisions import holm
from la_reconvla.analysis.sequences import AverageLength, Runs, SequenceResults, average_length, difference
from la_reconvla.conditions import NO_IMAGE
from la_reconvla.data.calvin import CALVIN_ACTIONS, CALVIN_CAMERAS
from la_reconvla.episodes import Label, SequenceRecord, append_sequences, read_sequences
from la_reconvla.errors import UserError
from la_reconvla.processes import explain_death, worker_pool
from la_reconvla.progress import progress
from la_reconvla.sim import calvin as simulator
from la_reconvla.sim.calvin_sequences import PUBLISHED, SUBTASKS, SUITE, published_sequences
from la_reconvla.sim.calvin_sequences import Sequence as Asked
from la_reconvla.sim.env import RolloutPolicy
from la_reconvla.sim.machine import default_workers
from la_reconvla.sim.policies import Specification, Uniform, swapped
from la_reconvla.storage import claim, locked, require_free_space
from la_reconvla.study.cells import Cell
from la_reconvla.study.options import EvaluateOptions
from la_reconvla.study.runs import SPACE, usual_workers
from la_reconvla.text_table import say
from la_reconvla.training.checkpoint import PolicyConfig, find_run, load_policy
from la_reconvla.training.devices import pick_device
from la_reconvla.training.trained_policy import Trained
from la_reconvla.training.trial import dry_run

TAKEN = ("suite", "dataset", "episodes", "out", "max_steps", "view", "workers", "device")


@dataclass(frozen=True)
class Evaluation:
    """One policy to evaluate.

    Attributes:
        folder: where its records go.
        label: which policy it is, for these.
        policy: what acts.
        settings: what the environment shows.
    """

    folder: Path
    label: Label
    policy: Specification
    settings: simulator.CalvinSettings


def evaluate_one(run: str, options: EvaluateOptions) -> Path:
    """Evaluate a run folder or ``random`` on the first sequences and print what it does in a row.

    Raises:
        UserError: with the way out, before the simulator starts.
    """
    _require_options(run, options)
    if options.dataset is None:
        raise UserError(
            "--suite calvin needs --dataset FOLDER of one of CALVIN's datasets, which says what its scene is"
        )
    asked = published_sequences(options.episodes)
    settings = simulator.CalvinSettings(
        dataset=simulator.environment_of(options.dataset),
        max_steps=simulator.STEPS if options.max_steps is None else options.max_steps,
        egl=simulator.has_gpu(),
    )
    name = "-".join(filter(None, (SUITE, options.view if options.view != "true" else "", _steps(settings))))
    if run == "random":
        evaluation = Evaluation(options.out or layout.RUNS / run / name, Label(run, None), Uniform(), settings)
        usual = default_workers()
    else:
        found = find_run(run)
        policy, config = load_policy(found)
        settings = _settings_for(run, config, settings)
        dry_run(policy, config.backbone, [subtask.says for subtask in SUBTASKS.values()])
        label = Label(config.condition, config.seed, None if options.view == "true" else options.view)
        swaps = wrong_words() if options.view == "wrong_instruction" else ()
        acting = Trained(found.resolve(), options.view, swaps, device=str(pick_device(options.device)))
        folder = options.out or (Path(run) if Path(run).exists() else layout.RUNS / run) / name
        evaluation, usual = Evaluation(folder, label, acting, settings), usual_workers(config.backbone)
    require_free_space(evaluation.folder, SPACE)
    with locked(evaluation.folder):
        evaluate([evaluation], asked, options.workers or usual)
    shown = run if options.view == "true" else f"{run} ({options.view.replace('_', ' ')})"
    for line in told(shown, average_length([records_of(evaluation.folder, asked)])):
        say(line)
    return evaluation.folder


def evaluate(evaluations: Sequence[Evaluation], asked: Sequence[Asked], workers: int) -> None:
    """Run all sequences that are not on disk yet.

    Raises:
        UserError: a folder holds another evaluation, a worker died, or the simulator does not start there.
    """
    jobs = []
    for e in evaluations:
        told_of = hashlib.sha256((e.settings.dataset / simulator.CONFIG).read_bytes()).hexdigest()
        settings = {**asdict(e.settings), "dataset": told_of}  # a dataset that was moved is the same
        identity = {"schema": layout.SCHEMA, "label": asdict(e.label), "policy": e.policy.identity()}
        claim(e.folder / layout.EVALUATION, {**identity, "suite": SUITE, "settings": settings})
        done = {record.index for record in read_sequences(e.folder)}
        jobs += [(e, sequence) for sequence in asked if sequence.index not in done]
    if not jobs:
        return
    with progress("Sequences", total=len(jobs), unit="sequences") as bar, worker_pool(min(workers, len(jobs))) as pool:
        running = {pool.submit(_work, *job): job for job in jobs}
        with explain_death("rollout"):
            for future in as_completed(running):
                evaluation, _ = running[future]
                record = future.result()
                append_sequences(evaluation.folder, [record])
                bar.advance(note=f"{record.label}: {record.completed} in a row")


def records_of(folder: Path, asked: Iterable[Asked]) -> list[SequenceRecord]:
    """Records of the sequences that were asked for: another command may have run more."""
    wanted = {sequence.index for sequence in asked}
    return [record for record in read_sequences(folder) if record.index in wanted]


def wrong_words() -> tuple[tuple[int, str, str], ...]:
    """For each subtask the instruction of another one, as `la_reconvla.sim.policies.swapped`."""
    return swapped((number, subtask.says) for number, subtask in enumerate(SUBTASKS.values()))


def told(name: str, found: AverageLength) -> list[str]:
    """An average length in lines for people."""
    part = "" if found.sequences == PUBLISHED else f", the first of the published {PUBLISHED}"
    rates = ", ".join(f"{100 * share:.1f}" for share in found.in_a_row)
    return [
        f"{name}: average length {found.mean:.2f} of 5 (95 % interval {found.low:.2f} to {found.high:.2f}); "
        f"{found.sequences} sequences from {found.states} initial states{part}",
        f"1 to 5 subtasks in a row: {rates} % of the sequences",
    ]


# ---------------------------------------------------------------- a study


def close_the_loop(
    folder: Path, cells: Sequence[Cell], dataset: Path, count: int, workers: int, device: str
) -> SequenceResults:
    """Roll out every trained policy of a study, and random actions, on the first sequences.

    Args:
        folder: of the study.
        cells: its policies, that without image among them.
        dataset: CALVIN's.
        count: sequences.
        workers: processes.
        device: where policies act.
    """
    asked = published_sequences(count)
    plain = simulator.CalvinSettings(dataset=simulator.environment_of(dataset), egl=simulator.has_gpu())
    evaluations = []
    for cell in cells:
        settings = _settings_for(str(cell.folder), PolicyConfig.load(cell.folder), plain)
        acting, label = Trained(cell.folder.resolve(), device=device), Label(cell.condition.id, cell.seed)
        evaluations.append(Evaluation(cell.folder / SUITE, label, acting, settings))
    evaluations.append(Evaluation(folder / layout.REFERENCES / "random", Label("random", None), Uniform(), plain))
    evaluate(evaluations, asked, workers)
    runs: dict[str, list[list[SequenceRecord]]] = {}
    for e in evaluations:
        runs.setdefault(str(e.label.condition), []).append(records_of(e.folder, asked))
    lengths = {name: average_length(found) for name, found in runs.items()}
    return SequenceResults(count, plain.egl, lengths, compared(runs))


def compared(runs: Mapping[str, Runs]) -> tuple[Comparison, ...]:
    """Every two arms, corrected together by Holm's method, and then each arm and the policy without image."""
    arms = [name for name in runs if name not in ("random", NO_IMAGE.id)]
    means = {name: average_length(found).mean for name, found in runs.items() if name != "random"}  # a bootstrap each

    def against(a: str, b: str) -> Comparison:
        return _comparison((a, b), (runs[a], runs[b]), (means[a], means[b]))

    family = [against(a, b) for a, b in combinations(arms, 2)]
    corrected = [replace(c, p_holm=p) for c, p in zip(family, holm([c.p for c in family]), strict=True)]
    return (*corrected, *(against(arm, NO_IMAGE.id) for arm in arms))


def _comparison(names: tuple[str, str], runs: tuple[Runs, Runs], means: tuple[float, float]) -> Comparison:
    """Average length of the first minus that of the second, in pairs of equal seeds and sequences."""
    found = difference(*runs)
    return Comparison(
        *names,
        metric="average_length",
        difference=found.mean,
        low=found.low,
        high=found.high,
        p=found.p,
        p_holm=None,
        n=found.seeds * found.sequences,
        a_mean=means[0],
        b_mean=means[1],
        seeds=found.seeds,
    )


# ---------------------------------------------------------------- what can be evaluated


def _steps(settings: simulator.CalvinSettings) -> str:
    return "" if settings.max_steps == simulator.STEPS else f"{settings.max_steps}-steps"


def _require_options(run: str, options: EvaluateOptions) -> None:
    """Refuse what has no meaning here, before anything is read."""
    if run == "expert" or "://" in run or re.match(r"lerobot:", run):
        raise UserError(f"{run} cannot be rolled out in CALVIN: give a run folder of `la-reconvla train`, or random")
    usual = EvaluateOptions()
    given = [f.name for f in fields(usual) if getattr(options, f.name) != getattr(usual, f.name)]
    if wrong := [name for name in given if name not in TAKEN]:
        raise UserError(f"{', '.join(wrong)}: CALVIN's protocol has none of that, leave it out (--episodes: sequences)")
    if run == "random" and options.view != "true":
        raise UserError(f"random uses no image: --view {options.view} is for a trained policy, give its run folder")


def _settings_for(run: str, config: PolicyConfig, settings: simulator.CalvinSettings) -> simulator.CalvinSettings:
    """The environment that shows what a policy takes; a `UserError` for one that learnt from another robot."""
    given, own = config.inputs, config.backbone
    if (
        config.bins.space != CALVIN_ACTIONS
        or given.orientation != "upright"
        or set(given.cameras) - set(CALVIN_CAMERAS)
    ):
        raise UserError(
            f"{run} did not learn from CALVIN's data (actions {', '.join(config.bins.space.names)}; cameras "
            f"{', '.join(given.cameras)}, {given.orientation}): train with --demonstrations of a CALVIN dataset"
        )
    return replace(settings, cameras=given.cameras[: 1 + own.wrist], proprio=own.proprio != "none")


# ---------------------------------------------------------------- in worker processes

_env: tuple[simulator.CalvinSettings, simulator.CalvinEnv] | None = None
_policy: tuple[Specification, RolloutPolicy] | None = None


def _work(evaluation: Evaluation, sequence: Asked) -> SequenceRecord:
    global _env, _policy
    if _env is None or _env[0] != evaluation.settings:
        if _env is not None:
            _env[1].close()
        _env = (evaluation.settings, simulator.CalvinEnv(evaluation.settings))
    if _policy is None or _policy[0] != evaluation.policy:
        _policy = (evaluation.policy, evaluation.policy.build())
    return simulator.run_sequence(_env[1], _policy[1], sequence, evaluation.label)
