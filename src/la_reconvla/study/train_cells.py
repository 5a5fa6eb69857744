"""Training and measuring cells in worker processes that share what was read once, and training a single one."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from la_reconvla import kinds, layout
from la_reconvla.analysis import leakage
from la_reconvla.analysis.frames import FrameRecord, HeldOut
from la_reconvla.data.boxes import Boxes, annotator
from la_reconvla.data.demonstrations import Demonstrations
from la_reconvla.data.hdf5 import open_demonstrations
from la_reconvla.data.samples import Samples, spread_indices
from la_reconvla.episodes import View
from la_reconvla.errors import UserError
from la_reconvla.execution.current import executor
from la_reconvla.execution.jobs import Files, Job, Needs
from la_reconvla.method.actions import ActionBins
from la_reconvla.method.saliency import MEAN
from la_reconvla.progress import progress
from la_reconvla.storage import locked, read_json
from la_reconvla.study.cells import Cell, fitted, samples_of, say_changes
from la_reconvla.study.heldout import measure_run, write_held_out
from la_reconvla.study.parts import boxes_beside
from la_reconvla.study.presets import StudyConfig, preset
from la_reconvla.study.records import without_weights
from la_reconvla.study.requirements import pinned_config, require_heads, require_room
from la_reconvla.text_table import say
from la_reconvla.training.checkpoint import PolicyConfig, origin_of
from la_reconvla.training.devices import pick_device
from la_reconvla.training.loop import SCHEDULE, TrainConfig, train
from la_reconvla.training.origin import Origin
from la_reconvla.training.parts import SHARE, Part
from la_reconvla.training.process_group import ALONE, ProcessGroup
from la_reconvla.training.run_state import (
    STATE,
    drop_state,
    finished,
    hash_of_weights,
    recorded_only,
    require_state,
    trained,
)
from la_reconvla.training.start_weights import StartWeights, bins_of
from la_reconvla.training.trackers import require_service
from la_reconvla.training.trained_policy import Trained

TRAINING_MEMORY = 3_000_000_000  # bytes that a cluster keeps free for a training or measurement of the small presets
Swaps = tuple[tuple[int, str, str], ...]


def train_cells(
    cells: Sequence[Cell],
    config: StudyConfig,
    training: Demonstrations,
    held_out: Demonstrations,
    workers: int,
    console: Console,
    devices: Sequence[str] = (),
) -> None:
    """Train every cell that has no weights yet, each in the next process that is free.

    Args:
        cells: all of the study.
        config: the study.
        training: what they learn from.
        held_out: for the curve of the held-out action loss.
        workers: processes, all on the device of the schedule, where no `devices` are named.
        console: where progress goes.
        devices: one process on each; a line says which cell begins where.

    Raises:
        UserError: a finished cell was trained on other demonstrations or boxes, or otherwise than the others.
    """
    todo = []
    for cell in cells:
        if trained(cell.folder):
            _require_alike(cell, config, training)
            if recorded_only(cell.folder) and stale(cell, boxes_beside(held_out, config.gaze)):
                raise without_weights(cell, "it was measured with other boxes")
            drop_state(cell.folder)  # the cells of a study do not go on: all get the same steps
        else:
            todo.append(cell)
    if not todo:
        return
    boxes_beside(held_out, config.gaze)
    _require_boxes(cells, config, training)
    todo.sort(key=lambda cell: cell.condition.reconstruction is None)  # the long ones first
    with progress("Training", total=len(todo) * config.train.steps, unit="steps", console=console) as bar:
        ticker, setups = executor().ticker(bar), []
        reads = _files(config, training, held_out)
        for device in (devices or (config.train.device,) * workers)[: len(todo)]:
            own = replace(config, train=replace(config.train, device=device))
            setups.append(Job(device, _receive, (own, training, held_out, ticker), reads))
        for cell in _trained(todo, setups, config, console if devices else None):
            drop_state(cell.folder)
            if ticker is None:
                bar.advance(config.train.steps, f"{cell.condition.id} seed {cell.seed}")


def _trained(
    todo: Sequence[Cell], setups: Sequence[Job], config: StudyConfig, console: Console | None
) -> Iterator[Cell]:
    """Train each cell in the next worker that is free, and say so if there is a console; yields those that are done."""

    def begun(job: Job, device: str) -> None:
        if console is not None:
            console.print(f"{device}: {job.name}", highlight=False)

    jobs = {}
    for cell in todo:
        made = Files(cell.folder, without=(str(Path(STATE).parent),))
        jobs[Job(f"{cell.condition.id} seed {cell.seed}", _train_cell, (cell,), writes=(made,))] = cell
    needs = Needs(config.train.threads, int(pick_device(config.train.device).type == "cuda"), TRAINING_MEMORY)
    with closing(executor().map(iter(jobs), setups, needs, "training", begun=begun)) as ended:
        for job, _ in ended:
            yield jobs[job]


def _files(config: StudyConfig, *demonstrations: Demonstrations) -> tuple[Files, ...]:
    """What a worker reads of demonstrations, and of boxes beside them."""
    paths = {path.absolute() for part in demonstrations for episode in part.episodes for path in episode.files}
    folder = Path(os.path.commonpath([path.parent for path in paths]))
    found = [Files(folder, tuple(sorted(str(path.relative_to(folder)) for path in paths)))]
    if config.gaze != "masks":
        found.append(Files(Path(config.gaze).absolute().parent, (Path(config.gaze).name,)))
    return tuple(found)


def _require_alike(cell: Cell, config: StudyConfig, training: Demonstrations) -> None:
    """Raise a `UserError` if a finished cell was trained on other demonstrations, or for other steps than the study's.

    The other steps are those of a run that went on after its end.
    """
    made = PolicyConfig.load(cell.folder)
    if made.data_hash != training.hash:
        raise UserError(f"{cell.folder} was trained on other demonstrations: delete it, or restore those")
    if made.origin is not None:
        raise UserError(
            f"{cell.folder} is different from the others of this study: it started from the weights of "
            f"{made.origin.run}. Move it elsewhere, and the same command trains it again"
        )
    held = read_json(cell.folder / SCHEDULE)
    parts = 1 + len(held.get("earlier", ()))
    if held["steps"] != config.train.steps or parts > 1:
        raise UserError(
            f"{cell.folder} is different from the others of this study: it was trained for {held['steps']} steps in "
            f"{parts} part{'s' * (parts > 1)}, they for {config.train.steps} in one, and only arms of equal training "
            "are compared. Move it elsewhere, and the same command trains it again"
        )


def _require_boxes(cells: Sequence[Cell], config: StudyConfig, training: Demonstrations) -> None:
    """See that every demonstration has its boxes, and that finished arms were given the same, before one trains."""
    annotated = [cell for cell in cells if not cell.condition.annotation_free]
    if not annotated:
        return
    source = annotator(config.gaze)
    for cell in annotated:
        if trained(cell.folder) and read_json(cell.folder / SCHEDULE)["annotation"] != source.identity:
            raise UserError(f"{cell.folder} was trained with other boxes: delete it, or give those with --gaze")
    for episode in training.episodes:
        source(episode)


def measure_cells(
    cells: Sequence[Cell],
    config: StudyConfig,
    held_out: Demonstrations,
    swaps: Swaps,
    device: str,
    workers: int,
    console: Console,
) -> None:
    """Measure every cell on held-out frames whose file is missing, of another version or of other weights."""
    boxes = boxes_beside(held_out, config.gaze)
    todo = [cell for cell in cells if stale(cell, boxes)]
    if not todo:
        return
    with progress("Held-out frames", total=len(todo), unit="policies", console=console) as bar:
        start = Job(device, _receive, (config, held_out, swaps, device, boxes), _files(config, held_out))
        needs = Needs(config.train.threads, "share" if device.startswith("cuda") else 0, TRAINING_MEMORY)
        jobs = {
            Job(
                f"measuring {cell.condition.id} seed {cell.seed}",
                _measure_cell,
                (cell,),
                Trained(cell.folder).files,
                (Files(cell.folder, (layout.HELD_OUT,)),),
            ): cell
            for cell in todo
        }
        with closing(executor().map(iter(jobs), [start] * workers, needs, "measuring", queued=len(todo))) as ended:
            for job, _ in ended:
                bar.advance(note=jobs[job].condition.id)


def stale(cell: Cell, boxes: Boxes | None) -> bool:
    """Whether a cell is to be measured: not yet, in another version, or with other weights or boxes."""
    path = cell.folder / layout.HELD_OUT
    known = read_json(path) if path.exists() else {}
    if known.get("schema") != layout.SCHEMA or known["weights"] != hash_of_weights(cell.folder):
        return True
    return known.get("boxes") != (None if boxes is None else boxes.identity)


# ---------------------------------------------------------------- in worker processes

_inherited: Any = None


def _receive(*shared: Any) -> None:
    global _inherited
    _inherited = shared


@functools.cache
def _read() -> tuple[Samples, Samples | None, ActionBins]:
    """Samples and bins, once in each process, with the first cell, so that a damaged picture is that cell's error."""
    config, training, held_out, _ = _inherited
    samples = samples_of(training, config)
    shown = None if held_out is None else samples_of(held_out, config, samples.inputs)
    return samples, shown, bins_of(StartWeights.of(config.backbone), samples, config.spread, config.decoding)


def _train_cell(cell: Cell, origin: Origin | None = None, group: ProcessGroup = ALONE) -> None:
    config, _, _, ticker = _inherited
    samples, held_out, bins = _read()
    if origin is not None:  # bins of the new data, whatever the start weights of the backbone acted with
        bins = bins_of(None, samples, config.spread, config.decoding)
    if not cell.condition.annotation_free:
        samples = samples.annotated(annotator(config.gaze))
    policy = PolicyConfig.trained_on(
        cell.condition,
        samples,
        seed=cell.seed,
        backbone=config.backbone,
        bins=bins,
        decoding=config.decoding,
        origin=origin,
    )
    train(cell.condition, policy, config.train, samples, held_out, cell.folder, ticker, group)


def _measure_cell(cell: Cell) -> None:
    config, held_out, swaps, device, boxes = _inherited
    torch.set_num_threads(config.train.threads)
    samples = samples_of(held_out, config, PolicyConfig.load(cell.folder).inputs)
    own = cell.condition.saliency or MEAN
    indices = spread_indices(len(samples), config.frames)
    records = measure_run(cell.folder, samples, indices, swaps, device=device, source=own, boxes=boxes)
    views: dict[View, tuple[FrameRecord, ...]] = {view: tuple(each) for view, each in records.items()}
    found = HeldOut(hash_of_weights(cell.folder), views, None if boxes is None else boxes.identity)
    write_held_out(cell.folder, found)


def _continued(config: TrainConfig, run: Path) -> TrainConfig:
    """The training as its folder has it, or where that is finished and more steps are asked for, with one more part.

    Raises:
        UserError: if fewer steps are asked for than it has, if it is not finished, or if it cannot go on.
    """
    if not (run / SCHEDULE).exists():
        return config
    held, asked = read_json(run / SCHEDULE), config.steps
    steps, earlier = held["steps"], kinds.from_json(held.get("earlier", []), (Part,))
    last = Part(steps - sum(part.steps for part in earlier), held["learning_rate"], held["warmup"])
    if asked == steps:
        return replace(config, earlier=earlier, warmup=last.warmup if earlier else config.warmup)
    done = finished(run, steps)
    if asked < steps or not done:
        raise UserError(
            f"{run} is {'finished, after' if done else 'on its way to'} {steps} steps, and not one of {asked}: "
            + (f"give --steps with more than {steps}, and it goes on" if done else f"finish it with --steps {steps}")
            + ", or train in another folder"
        )
    require_state(run)
    more = asked - steps
    say(
        f"{run} is finished after {steps} steps, where its learning rate ended. {more} more are a part of their own: "
        "the same weights, optimizer state and samples, a new warm-up and cosine. That is not one training of "
        f"{asked} steps."
    )
    return replace(config, earlier=(*earlier, last), warmup=min(config.warmup, more // SHARE))


def train_one(
    demonstrations: Path,
    out: Path,
    condition_id: str,
    seed: int,
    preset_name: str,
    changes: Mapping[str, Any],
    init_from: str | None = None,
    group: ProcessGroup = ALONE,
) -> Path:
    """Train one arm with one seed on a folder of demonstrations; see the command ``train``.

    Every process of `group` makes this call; the main one holds the folder.
    """
    origin = None if init_from is None else origin_of(init_from)
    config = pinned_config(preset(preset_name).changed(**changes))
    arm = config.arm(condition_id)
    pick_device(config.train.device)
    require_service(config.train.track)
    config = replace(config, train=_continued(config.train, out))
    opened = open_demonstrations(demonstrations)
    config = fitted(config, opened)
    say_changes(config, opened)
    require_room(config, (episode.instruction for episode in opened.episodes), opened.space)
    require_heads(config, [arm])
    training, held_out = (opened, None) if config.held_out == 0 else opened.divide(config.held_out)
    if origin is not None and held_out is not None:
        _say_seen(origin, held_out)
    with contextlib.ExitStack() as open_here:
        bar = None
        if group.is_main:
            open_here.enter_context(locked(out))
            bar = open_here.enter_context(progress("Training", total=config.train.steps, unit="steps"))
        _read.cache_clear()
        _receive(config, training, held_out, bar)
        _train_cell(Cell(arm, seed, out), origin, group)
    return out


def _say_seen(origin: Origin, held_out: Demonstrations) -> None:
    """A line on the standard error if the run that training starts from may know the held-out scenes."""
    leak = leakage.origin(origin.run, origin.starts, held_out.episodes)
    if leak.verdict == "unknown":
        said = f"whether {origin.run} was trained on the held-out scenes is not known"
    else:
        said = f"LEAK: {origin.run} was trained on {leak.shared} of the {leak.evaluation} held-out scenes"
    if leak.verdict != "none":
        say(f"{said}: the held-out loss tells nothing of new scenes")
