"""The bench: how fast arms act, train and draw, what limits them, and whether data keep up.

What runs are values: `acting.Act`, `train_steps.TrainStep`, `draw_pictures.Draw`, `load_batches.Load`. All values of
one section and backbone are built first and then take turns in one process (`timing.interleaved`); only training has
two groups, see `train_steps.GROUPS`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from la_reconvla import kinds
from la_reconvla.bench.acting import CONTROL, FAST, NotRecordedError
from la_reconvla.bench.draw_pictures import PICTURE, Draw
from la_reconvla.bench.load_batches import Load, recording
from la_reconvla.bench.rows import (
    SECTIONS,
    BenchRow,
    ControlRow,
    ExtraRow,
    LimitRow,
    LoaderRow,
    NotRecordedRow,
    PictureRow,
    ShareRow,
    SimulatorRow,
    TimedRow,
    TrainRow,
)
from la_reconvla.bench.settings import Settings
from la_reconvla.bench.sizes import Case, Compute, Size
from la_reconvla.bench.tables import markdown, speed_claim, tables
from la_reconvla.bench.timing import (
    Clock,
    Roof,
    Times,
    Work,
    clock_of,
    counted,
    difference,
    interleaved,
    measure_roof,
    ratio,
    release,
)
from la_reconvla.bench.train_steps import BATCH, FIFTH, GROUPS, PAID, SHARES, TrainStep
from la_reconvla.conditions import CONDITIONS
from la_reconvla.data.hdf5 import open_demonstrations
from la_reconvla.data.samples import Samples
from la_reconvla.processes import keep_memory
from la_reconvla.progress import progress
from la_reconvla.report import charts
from la_reconvla.storage import write_content, write_json
from la_reconvla.study import provenance
from la_reconvla.text_table import tell
from la_reconvla.training.devices import pick_device, pick_precision


@dataclass
class Bench:
    """One run of the bench.

    Attributes:
        settings: what is asked for.
        compute: where.
        roof: what the machine does at best, once it was measured.
        rows: what was measured.
    """

    settings: Settings
    compute: Compute
    roof: Roof | None = None
    rows: list[BenchRow] = field(default_factory=list)

    @property
    def clock(self) -> Clock:
        """See `timing.clock_of`."""
        return clock_of(self.compute.device, self.settings.threads)[1]

    def timed(self, size: Size, section: str, works: Mapping[str, Work]) -> dict[str, list[float]]:
        """Seconds of all, in turn; see `timing.interleaved`."""
        s = self.settings
        with progress(section.capitalize(), len(works) * (s.repeats + 1), "runs") as bar:

            def ticked(name: str) -> None:
                bar.advance(note=name)

            return interleaved(
                works,
                s.repeats,
                s.seconds,
                wait=self.compute.wait,
                clock=self.clock,
                watch=time.perf_counter,
                ticked=ticked,
            )

    def control(self, size: Size) -> None:
        """Milliseconds a chunk; with ``limit`` also the bound of each."""
        cases = {case.id: case for case in CONTROL if case.fits(size)}
        shared, works = size.acting(1).sharing(self.compute), {}
        parts = {part.id: part for case in cases.values() if (part := case.backbone) is not None}
        for name, case in {**cases, **parts}.items():
            try:
                works[name] = case.build(shared, self.compute)
            except NotRecordedError as reason:
                self.rows.append(NotRecordedRow(backbone=size.id, case=name, reason=str(reason)))
        timed = self.timed(size, "control", works)
        for name, seconds in timed.items():
            if name in parts:
                continue
            case, times = cases[name], Times.of(seconds)
            alone = None if case.backbone is None else timed.get(case.backbone.id)
            row = ControlRow(
                backbone=size.id,
                case=name,
                **times.scaled(1e3),
                arm=case.arm,
                chunk=case.chunk,
                decoding=case.decoding,
                fast=case.fast,
                image_tokens=case.side and case.side**2,
                hertz=case.chunk / times.median,
                steps=case.steps,
                backbone_ms=None if alone is None else 1e3 * Times.of(alone).median,
                head_ms=None if alone is None else 1e3 * difference(seconds, alone),
            )
            self.rows.append(row)
        if "limit" in self.settings.only:
            self.limit(size, {case.id: works[name] for name, case in cases.items() if not case.fast})

    def limit(self, size: Size, works: Mapping[str, Work]) -> None:
        """The bound of each work beside its time, and beside that of its recording, which has the same products."""
        self.roof = self.roof or measure_roof(self.compute.device, self.compute.dtype, clock=self.clock)
        timed = (row for row in self.rows if isinstance(row, ControlRow) and row.backbone == size.id)
        measured = {row.case: row.median for row in timed}
        for name, work in works.items():
            products = counted(work)
            bound = 1e3 * self.roof.bound(products.each)
            fast = measured.get(f"{name}{FAST}")
            row = LimitRow(
                backbone=size.id,
                case=name,
                median=measured[name],
                bound=bound,
                ratio=measured[name] / bound,
                fast=fast,
                fast_ratio=None if fast is None else fast / bound,
                operations=products.operations,
                bytes=products.bytes,
            )
            self.rows.append(row)

    def training(self, size: Size) -> None:
        """Milliseconds and memory of a step, and what an arm pays for; the groups one after the other."""
        for group, steps in GROUPS.items():
            self.group(size, group, steps)
            release(self.compute.device)

    def group(self, size: Size, group: str, steps: Sequence[TrainStep]) -> None:
        """Steps in turn; the first is what the others are compared with."""
        shared = size.sharing(self.compute, steps)
        arms = {step.id: step.ready(shared, self.compute) for step in steps}
        memory = {arm: ready.memory() / 1e6 for arm, ready in arms.items()}
        seconds = self.timed(size, f"training, {group}", {arm: ready.step for arm, ready in arms.items()})
        heads = {arm: ready.reconstruction_head() for arm, ready in arms.items()}
        for step in steps:
            row = TrainRow(
                backbone=size.id,
                case=step.id,
                **Times.of(seconds[step.id]).scaled(1e3),
                group=group,
                reconstruction_head=heads[step.id],
                batch=step.batch,
                memory_mb=memory[step.id],
                over_c1=ratio(seconds[step.id], seconds[steps[0].id]),
            )
            self.rows.append(row)
        self.rows += extras(size.id, seconds, heads)
        self.rows += shares(size.id, seconds, heads, steps[0].id)

    def picture(self, size: Size) -> None:
        """Milliseconds a picture."""
        cases, shared = {case.id: case for case in PICTURE}, size.acting(1).sharing(self.compute)
        works = {name: case.build(shared, self.compute) for name, case in cases.items()}
        seconds = self.timed(size, "picture", works)
        for name, taken in seconds.items():
            case = cases[name]
            one_pass = seconds[Draw("MAE", with_backbone=case.with_backbone).id]
            row = PictureRow(
                backbone=size.id,
                case=name,
                **Times.of(taken).scaled(1e3),
                steps=case.steps,
                with_backbone=case.with_backbone,
                over_mae=ratio(taken, one_pass),
            )
            self.rows.append(row)

    def data(self, size: Size) -> None:
        """Samples a second of the loader beside what a step needs."""
        with self.samples(size) as samples:
            steps = tuple(TrainStep(CONDITIONS[arm]) for arm in ("C1", "C4"))
            cases: tuple[Case, ...] = (Load(samples), *steps)
            shared = size.sharing(self.compute, steps)
            seconds = self.timed(size, "data", {case.id: case.build(shared, self.compute) for case in cases})
        loaded = Times.of(seconds[Load.id])
        for arm in ("C1", "C4"):
            needed = Times.of(seconds[arm])
            self.rows.append(
                LoaderRow(
                    backbone=size.id,
                    case=arm,
                    loaded=BATCH / loaded.median,
                    needed=BATCH / needed.median,
                    ratio=needed.median / loaded.median,
                    n=needed.n,
                )
            )

    @contextlib.contextmanager
    def samples(self, size: Size) -> Iterator[Samples]:
        """Those of the demonstrations, or of a drawn recording."""
        pixels, chunk = size.backbone.image_size, size.backbone.chunk
        with contextlib.ExitStack() as stack:
            if (folder := self.settings.demonstrations) is None:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                recording(folder, pixels)
            yield Samples(open_demonstrations(folder), pixels, chunk)

    def simulator(self) -> None:
        """Seconds an episode of the scripted expert, in this process; the first one also compiles and is left out."""
        from la_reconvla.sim.policies import Scripted
        from la_reconvla.sim.rollout import EnvSettings, run_episode
        from la_reconvla.sim.tasks import load_task, official_start

        env, expert, seconds = EnvSettings(quality="fast").build(), Scripted().build(), []
        task = load_task("libero_spatial", 0)
        with progress("Simulator", self.settings.episodes + 1, "episodes") as bar:
            for number in range(self.settings.episodes + 1):
                seconds.append(run_episode(env, expert, official_start(task, number)).seconds)
                bar.advance()
        env.close()
        self.rows.append(SimulatorRow(**Times.of([60 / taken for taken in seconds[1:]]).scaled(1)))

    def run(self) -> None:
        """All sections of all backbones."""
        wanted = set(self.settings.only) - {"limit"} | ({"control"} if "limit" in self.settings.only else set())
        simulated = "data" in wanted and self.settings.episodes and importlib.util.find_spec("libero") is not None
        sections, told = [section for section in SECTIONS if section in wanted], Console(stderr=True)
        total, number = len(self.settings.backbones) * len(sections) + bool(simulated), itertools.count(1)
        for name in self.settings.backbones:
            size = Size.of(name, self.compute.dtype)
            for section in sections:
                told.print(f"{next(number)} of {total}  {section} of {size.id}")
                getattr(self, section)(size)
                release(self.compute.device)
        if simulated:
            told.print(f"{next(number)} of {total}  simulator")
            self.simulator()


def extras(backbone: str, seconds: Mapping[str, Sequence[float]], heads: Mapping[str, str]) -> Iterator[ExtraRow]:
    """What an arm's step takes more than another's, for all pairs of `PAID` that were timed."""
    for what, arm, without in PAID:
        if {arm, without} <= seconds.keys():
            yield ExtraRow(
                backbone=backbone,
                case=what.format(arm=heads[arm], without=heads[without]),
                arm=arm,
                without=without,
                median=1e3 * difference(seconds[arm], seconds[without]),
                ratio=ratio(seconds[arm], seconds[without]),
                n=len(seconds[arm]),
            )


def shares(
    backbone: str, seconds: Mapping[str, Sequence[float]], heads: Mapping[str, str], base: str
) -> Iterator[ShareRow]:
    """What the MAE decoder adds to the step of `base` over what the diffusion head adds, for the pairs of `SHARES`."""
    for mae, diffusion in SHARES:
        if {mae, diffusion} <= seconds.keys():
            added = [1e3 * difference(seconds[arm], seconds[base]) for arm in (mae, diffusion)]
            share = added[0] / added[1] if added[1] > 0 else None  # below the noise: nothing to divide by
            yield ShareRow(
                backbone=backbone,
                case=f"{heads[mae]} over {heads[diffusion]}",
                arm=mae,
                diffusion_arm=diffusion,
                mae_ms=added[0],
                diffusion_ms=added[1],
                share=share,
                at_most_a_fifth=None if share is None else share <= FIFTH,
                n=len(seconds[base]),
            )


def bench(settings: Settings, out: Path | None = None) -> dict[str, Any]:
    """Measure, print tables, write them to `out` if it is given; one line of JSON ends what no terminal shows.

    Returns:
        The JSON document.

    Raises:
        UserError: for a device, a backbone or a folder that cannot be had.
    """
    device = pick_device(settings.device)
    compute = Compute(device, pick_precision(settings.dtype, device))
    torch.set_num_threads(settings.threads)
    keep_memory()
    run = Bench(settings, compute)
    run.run()
    shown = tables(run.rows, device.type)
    measured = "control" in {row.section for row in run.rows}
    document = {
        "command": shlex.join(["la-reconvla", *sys.argv[1:]]),
        "commit": provenance.commit(),
        "machine": provenance.hardware(),
        "versions": provenance.versions(),
        "settings": kinds.to_json(settings)
        | {"device": str(device), "dtype": str(compute.dtype).removeprefix("torch.")}
        | {"clock": clock_of(device, settings.threads)[0]},
        "roof": kinds.to_json(run.roof),
        "claims": [speed_claim(run.rows, name) for name in settings.backbones] if measured else [],
        "rows": [row.to_json() for row in run.rows],
    }
    console = Console()
    for table in shown:
        console.print(table)
    for sentence in document["claims"]:
        tell(sentence, console)
    if out is not None:
        write_json(out / "bench.json", document)
        write_content(out / "bench.md", markdown(document, shown))
        bars = [row.to_json() for row in run.rows if isinstance(row, TimedRow) and row.unit == "ms"]
        if bars:
            write_content(out / "bench.svg", charts.time_chart(bars))
    if not console.is_terminal:  # for programs; people have the tables
        print(json.dumps(document, default=str))
    return document
