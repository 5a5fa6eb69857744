"""The bench: how fast arms act, train and draw, what limits them, and whether data keep up.

What runs are the values of `study.cases`. All cases of one section and backbone are built first and then take turns in
one process (`study.timing.interleaved`); only training has two groups, see `cases.GROUPS`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console

from la_reconvla.backbones.pretrained import Dtype
from la_reconvla.conditions import CONDITIONS
from la_reconvla.data.hdf5 import open_demonstrations
from la_reconvla.data.samples import Samples
from la_reconvla.errors import UserError, unknown
from la_reconvla.processes import keep_memory
from la_reconvla.progress import progress
from la_reconvla.storage import atomic_write, write_json
from la_reconvla.study import charts, facts
from la_reconvla.study.cases import (
    BATCH,
    CONTROL,
    EQUAL,
    FAST,
    FIFTH,
    GROUPS,
    MEMORY,
    PAID,
    PICTURE,
    PUBLISHED,
    SHARES,
    Act,
    Draw,
    Load,
    NotRecordedError,
    Place,
    Size,
    Step,
    recording,
)
from la_reconvla.study.tables import TextTable
from la_reconvla.study.timing import (
    Roof,
    Times,
    Work,
    counted,
    difference,
    interleaved,
    measure_roof,
    ratio,
    release,
)
from la_reconvla.train import pick_device, pick_precision

Section = Literal["control", "training", "picture", "limit", "data"]
SECTIONS: tuple[Section, ...] = ("control", "training", "picture", "limit", "data")
Row = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """What is measured and for how long.

    Attributes:
        backbones: presets (their sizes), ids on the hub, or folders with a ``config.json``.
        device: auto, cpu, cuda or mps.
        dtype: of the arithmetic; auto takes what the device does well.
        threads: of the CPU.
        repeats: counted rounds at most.
        seconds: a section of one backbone begins no further round after so many.
        only: sections.
        demonstrations: a folder for the loader; None draws a recording.
        episodes: of the simulator; 0 leaves it out.
    """

    backbones: tuple[str, ...] = ("quick", "small")
    device: str = "auto"
    dtype: Dtype | Literal["auto"] = "auto"
    threads: int = 1
    repeats: int = 20
    seconds: float = 60.0
    only: tuple[Section, ...] = SECTIONS
    demonstrations: Path | None = None
    episodes: int = 3

    def __post_init__(self):
        if self.threads < 1 or self.repeats < 1 or self.episodes < 0 or not self.seconds > 0:
            raise UserError("threads and repeats must be at least 1, seconds above 0 and episodes not negative")
        if not self.backbones:
            raise UserError("name at least one backbone: a preset, an id on the hub or a folder")
        for section in self.only:
            if section not in SECTIONS:
                raise unknown("section", section, SECTIONS)


# ---------------------------------------------------------------- the sections


@dataclass
class Bench:
    """One run of the bench.

    Attributes:
        settings: what is asked for.
        place: where.
        roof: what the machine does at best, once it was measured.
        rows: what was found.
    """

    settings: Settings
    place: Place
    roof: Roof | None = None
    rows: list[Row] = field(default_factory=list)

    def timed(self, size: Size, section: str, works: Mapping[str, Work]) -> dict[str, list[float]]:
        """Seconds of all, in turn; see `timing.interleaved`."""
        s = self.settings
        with progress(f"{size.id}: {section}", len(works) * (s.repeats + 1), "runs") as bar:
            return interleaved(
                works, s.repeats, s.seconds, wait=self.place.wait, ticked=lambda name: bar.advance(note=name)
            )

    def add(self, section: Section, size: Size, case: str, **values: Any) -> None:
        """One more row."""
        self.rows.append({"section": section, "backbone": size.id, "case": case, **values})

    def control(self, size: Size) -> None:
        """Milliseconds a chunk; with ``limit`` also the bound of each."""
        cases = {case.id: case for case in CONTROL if size.takes(case)}
        shared, works = size.acting(1).sharing(self.place), {}
        for name, case in cases.items():
            try:
                works[name] = case.build(shared, self.place)
            except NotRecordedError as reason:
                self.add("control", size, name, unit="not recorded", reason=str(reason))
        for name, seconds in self.timed(size, "control", works).items():
            case, times = cases[name], Times.of(seconds)
            about = {key: value for key, value in asdict(case).items() if key != "side"}
            about |= {"image_tokens": case.side and case.side**2, "hertz": case.chunk / times.median}
            self.add("control", size, name, unit="ms", **times.scaled(1e3), **about)
        if "limit" in self.settings.only:
            self.limit(size, {case.id: works[name] for name, case in cases.items() if not case.fast})

    def limit(self, size: Size, works: Mapping[str, Work]) -> None:
        """The bound of each work beside its time, and beside that of its recording, which has the same products."""
        self.roof = self.roof or measure_roof(self.place.device, self.place.dtype)
        own = [row for row in self.rows if row["section"] == "control" and row["backbone"] == size.id]
        measured = {row["case"]: row["median"] for row in own if row["unit"] == "ms"}
        for name, work in works.items():
            products = counted(work)
            bound = 1e3 * self.roof.bound(products.found)
            self.add(
                *("limit", size, name),
                unit="ms",
                median=measured[name],
                bound=bound,
                ratio=measured[name] / bound,
                fast=(fast := measured.get(f"{name}{FAST}")),
                fast_ratio=None if fast is None else fast / bound,
                operations=products.operations,
                bytes=products.bytes,
            )

    def training(self, size: Size) -> None:
        """Milliseconds and memory of a step, and what an arm pays for; the groups one after the other."""
        for group, steps in GROUPS.items():
            self.group(size, group, steps)
            release(self.place.device)

    def group(self, size: Size, group: str, steps: Sequence[Step]) -> None:
        """Steps in turn; the first is what the others are compared with."""
        shared = size.sharing(self.place, steps)
        arms = {step.id: step.ready(shared, self.place) for step in steps}
        memory = {arm: ready.memory() / 1e6 for arm, ready in arms.items()}
        seconds = self.timed(size, f"training, {group}", {arm: ready.step for arm, ready in arms.items()})
        heads = {arm: ready.head() for arm, ready in arms.items()}
        base = seconds[steps[0].id]
        for step in steps:
            found = seconds[step.id]
            values = {"group": group, "head": heads[step.id], "batch": step.batch, "memory_mb": memory[step.id]}
            times = Times.of(found).scaled(1e3)
            self.add("training", size, step.id, unit="ms", **times, over_c1=ratio(found, base), **values)
        for what, arm, without in PAID:
            if {arm, without} <= seconds.keys():
                paid = 1e3 * difference(seconds[arm], seconds[without])
                values = {"arm": arm, "without": without, "over": ratio(seconds[arm], seconds[without])}
                case = what.format(arm=heads[arm], without=heads[without])
                self.add("training", size, case, unit="ms more", median=paid, n=len(base), **values)
        for mae, diffusion in SHARES:
            if {mae, diffusion} <= seconds.keys():
                added = [1e3 * difference(seconds[arm], base) for arm in (mae, diffusion)]
                share = added[0] / added[1] if added[1] > 0 else None  # below the noise: nothing to divide by
                values = {"arm": mae, "over": diffusion, "mae_ms": added[0], "diffusion_ms": added[1], "n": len(base)}
                values |= {"share": share, "at_most_a_fifth": None if share is None else share <= FIFTH}
                case = f"{heads[mae]} over {heads[diffusion]}"
                self.add("training", size, case, unit="of the added time", **values)

    def picture(self, size: Size) -> None:
        """Milliseconds a picture."""
        cases, shared = {case.id: case for case in PICTURE}, size.acting(1).sharing(self.place)
        seconds = self.timed(size, "picture", {name: case.build(shared, self.place) for name, case in cases.items()})
        for name, found in seconds.items():
            one_pass = seconds[Draw("MAE", seeing=cases[name].seeing).id]
            times = Times.of(found).scaled(1e3)
            about = {"steps": cases[name].steps, "seeing": cases[name].seeing}
            self.add("picture", size, name, unit="ms", **times, over_mae=ratio(found, one_pass), **about)

    def data(self, size: Size) -> None:
        """Samples a second of the loader beside what a step needs."""
        with self.samples(size) as samples:
            steps = tuple(Step(CONDITIONS[arm]) for arm in ("C1", "C4"))
            cases, shared = (Load(samples), *steps), size.sharing(self.place, steps)
            seconds = self.timed(size, "data", {case.id: case.build(shared, self.place) for case in cases})
        loaded = Times.of(seconds[Load.id])
        for arm in ("C1", "C4"):
            needed = Times.of(seconds[arm])
            rates = {"loaded": BATCH / loaded.median, "needed": BATCH / needed.median}
            self.add("data", size, arm, unit="samples/s", n=needed.n, **rates, ratio=needed.median / loaded.median)

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
        with progress("simulator", self.settings.episodes + 1, "episodes") as bar:
            for number in range(self.settings.episodes + 1):
                seconds.append(run_episode(env, expert, official_start(task, number))["seconds"])
                bar.advance()
        env.close()
        times = Times.of([60 / taken for taken in seconds[1:]])
        values = {"section": "data", "backbone": None, "case": "episodes of the scripted expert"}
        self.rows.append({**values, "unit": "episodes/min", **times.scaled(1)})

    def run(self) -> None:
        """All sections of all backbones."""
        wanted = set(self.settings.only) - {"limit"} | ({"control"} if "limit" in self.settings.only else set())
        for name in self.settings.backbones:
            size = Size.of(name, self.place.dtype)
            for section in SECTIONS:
                if section in wanted:
                    getattr(self, section)(size)
                    release(self.place.device)
        if "data" in wanted and self.settings.episodes and importlib.util.find_spec("libero") is not None:
            self.simulator()


# ---------------------------------------------------------------- for people


def claim(rows: Sequence[Row], backbone: str) -> str:
    """What is left of "up to 5 times faster" on one backbone: a sentence, and what it rests on."""
    own = [row for row in rows if row["section"] == "control" and row["backbone"] == backbone]
    hertz = {row["case"]: row["hertz"] for row in own if "hertz" in row}

    def times(ours: Act, theirs: Act, fast: bool = False) -> str:
        names = [replace(case, fast=fast).id for case in (ours, theirs)]
        return f"{hertz[names[0]] / hertz[names[1]]:.1f}" if hertz.keys() >= set(names) else "not measured"

    (five, one, _), (ours, single, theirs) = EQUAL, PUBLISHED
    if times(*five) == "not measured":
        return f'{backbone}: of "up to 5 times faster" nothing is measured here: C4 and ReconVLA are both needed.'
    return (
        f'{backbone}: of "up to 5 times faster" there remains that C4 gives, with equal images and chunks of 5, '
        f"{times(*five)} times as many actions a second as ReconVLA ({times(*five, True)} with both on the fast path), "
        f"with chunks of 1 {times(*one)} times ({times(*one, True)}), and with the published numbers of image tokens "
        f"and action tokens, on this backbone, {times(single, theirs)} times ({times(single, theirs, True)}): 256 and "
        f"one pass for 1 action against 729 and 35 one after the other for 5; with 8 actions, a chunk of our choice, "
        f"{times(ours, theirs)} times ({times(ours, theirs, True)}). All of it comes from decoding in parallel, with "
        "the published numbers also from fewer image tokens, and none from the reconstruction head, which costs "
        "neither anything when it acts; every action of a chunk is taken to be executed."
    )


def spread(row: Row, digits: int = 1) -> tuple[str, str, str]:
    """Median, p5 to p95 and rounds."""
    between = f"{row['p5']:.{digits}f} to {row['p95']:.{digits}f}" if "p5" in row else "–"
    return f"{row['median']:.{digits}f}", between, str(row["n"])


def tables(rows: Sequence[Row], place: Place) -> list[TextTable]:
    """One for each section that has rows."""

    def made(title: str, header: tuple[str, ...], section: Section, cells: Callable[[Row], tuple[str, ...]], **wanted):
        own = [r for r in rows if r["section"] == section and all(r.get(k) == v for k, v in wanted.items())]
        return TextTable(title, ("backbone", *header), [(row["backbone"] or "–", *cells(row)) for row in own])

    statistics = ("median", "p5 to p95", "rounds")
    found = [
        made(
            "Control: milliseconds a chunk, and actions a second if all of it are executed; a backbone's rows in turn",
            ("arm", *statistics, "Hz"),
            "control",
            lambda row: (row["case"], *spread(row), f"{row['hertz']:.0f}"),
            unit="ms",
        ),
        made(
            "Control: no fast path",
            ("arm", "not recorded because"),
            "control",
            lambda row: (row["case"], row["reason"]),
            unit="not recorded",
        ),
        made(
            "Limit: what the machine needs at least for the products of a chunk",
            ("arm", "ms", "at least", "ratio", "fast, ms", "ratio", "Gop", "MB"),
            "limit",
            lambda row: (
                *(row["case"], f"{row['median']:.1f}", f"{row['bound']:.2f}", f"{row['ratio']:.1f}"),
                *("–" if row[key] is None else f"{row[key]:.1f}" for key in ("fast", "fast_ratio")),
                *(f"{row['operations'] / 1e9:.3f}", f"{row['bytes'] / 1e6:.1f}"),
            ),
        ),
        made(
            f"Training: milliseconds a step of {BATCH} samples where no other number is given; a group's rows in turn",
            ("group", "arm", "head", *statistics, "over C1", MEMORY.get(place.device.type, MEMORY["cpu"])),
            "training",
            lambda row: (
                *(row["group"], row["case"], row["head"], *spread(row)),
                *(f"{row['over_c1']:.2f}", f"{row['memory_mb']:.1f}"),
            ),
            unit="ms",
        ),
        made(
            "Training: what an arm pays for, milliseconds a step more",
            ("part", "arm", "over", "median", "ratio"),
            "training",
            lambda row: (row["case"], row["arm"], row["without"], f"{row['median']:.1f}", f"{row['over']:.2f}"),
            unit="ms more",
        ),
        made(
            "Training: what the MAE decoder adds to C1's step over what the diffusion head adds; to be at most 0.2",
            ("heads", "arm", "over", "ms", "over ms", "share"),
            "training",
            lambda row: (
                *(row["case"], row["arm"], row["over"], f"{row['mae_ms']:.1f}", f"{row['diffusion_ms']:.1f}"),
                "–" if row["share"] is None else f"{row['share']:.3f}",
            ),
            unit="of the added time",
        ),
        made(
            "Picture: milliseconds",
            ("head", *statistics, "over MAE"),
            "picture",
            lambda row: (row["case"], *spread(row, 2), f"{row['over_mae']:.1f}"),
        ),
        made(
            "Data: samples a second of the loader, shifted and on the device, and what training needs",
            ("arm", "loaded", "needed", "times enough"),
            "data",
            lambda row: (row["case"], f"{row['loaded']:.0f}", f"{row['needed']:.1f}", f"{row['ratio']:.0f}"),
            unit="samples/s",
        ),
        made(
            "Simulator: episodes a minute of the scripted expert, one process",
            ("", *statistics),
            "data",
            lambda row: (row["case"], *spread(row)),
            unit="episodes/min",
        ),
    ]
    return [table for table in found if table.rows]


def markdown(document: Mapping[str, Any], shown: Sequence[TextTable]) -> str:
    """Facts, sentences and tables."""
    told = {key: document[key] for key in ("command", "commit", "machine", "versions", "settings", "roof")}
    lines = [f"- {key}: {value}" for key, value in told.items() if value]
    parts = ["# Bench", "\n".join(lines), *document["claims"], *(table.markdown() for table in shown)]
    return "\n\n".join(parts) + "\n"


def bench(settings: Settings, out: Path | None = None) -> dict[str, Any]:
    """Measure, print tables and then one line of JSON, and write them to `out` if it is given.

    Returns:
        The JSON document.

    Raises:
        UserError: for a device, a backbone or a folder that cannot be had.
    """
    device = pick_device(settings.device)
    place = Place(device, pick_precision(settings.dtype, device))
    torch.set_num_threads(settings.threads)
    keep_memory()
    run = Bench(settings, place)
    run.run()
    shown = tables(run.rows, place)
    measured = "control" in {row["section"] for row in run.rows}
    document = {
        "command": shlex.join(["la-reconvla", *sys.argv[1:]]),
        "commit": facts.commit(),
        "machine": facts.hardware(),
        "versions": facts.versions(),
        "settings": {**asdict(settings), "device": str(device), "dtype": str(place.dtype).removeprefix("torch.")},
        "roof": asdict(run.roof) if run.roof else None,
        "claims": [claim(run.rows, name) for name in settings.backbones] if measured else [],
        "rows": run.rows,
    }
    console = Console()
    console.width = max(console.width, 120)
    for table in shown:
        console.print(table.rich())
    for sentence in document["claims"]:
        console.print(sentence, soft_wrap=True, highlight=False)
    if out is not None:
        write_json(out / "bench.json", document)
        with atomic_write(out / "bench.md") as temporary:
            temporary.write_text(markdown(document, shown), encoding="utf-8")
        bars = [row for row in run.rows if "p5" in row and row["unit"] == "ms"]
        if bars:
            with atomic_write(out / "bench.svg") as temporary:
                temporary.write_bytes(charts.time_chart(bars))
    print(json.dumps(document, default=str))
    return document
