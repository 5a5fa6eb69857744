"""What the bench measures: how fast arms act, train and draw, what limits them, and whether data keep up.

Every arm is a value, a `Case`, whose `build` gives something to run. All cases of one section and backbone are built
first and then take turns in one process (`study.timing.interleaved`). Weights are random: time does not depend on them.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import itertools
import json
import math
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from rich.console import Console
from tokenizers import Tokenizer

from la_reconvla.acting import Actor
from la_reconvla.backbones.continuing import Continuing
from la_reconvla.backbones.paligemma import TOKENIZER, SmallPaliGemma
from la_reconvla.backbones.pretrained import ATTENTION, DTYPES, Dtype, Freeze, Pretrained, quiet
from la_reconvla.conditions import CONDITIONS, Condition
from la_reconvla.contracts import Backbone, Batch, Start
from la_reconvla.data.hdf5 import FileHeader, Recording, open_demonstrations, write_file
from la_reconvla.data.samples import Samples, batch_indices
from la_reconvla.errors import UserError, unknown
from la_reconvla.method.actions import ActionBins
from la_reconvla.method.autoregressive import DECODINGS, DecodingName
from la_reconvla.method.decoder import MAEDecoder
from la_reconvla.method.denoiser import Denoiser
from la_reconvla.method.mask import RandomMask
from la_reconvla.method.policy import Policy
from la_reconvla.processes import keep_memory
from la_reconvla.progress import progress
from la_reconvla.randomness import generator, seeded
from la_reconvla.storage import atomic_write, write_json
from la_reconvla.study import facts, figures
from la_reconvla.study.plan import random_batch
from la_reconvla.study.presets import PRESETS
from la_reconvla.study.tables import TextTable
from la_reconvla.study.timing import (
    Kept,
    Roof,
    Times,
    Work,
    counted,
    difference,
    interleaved,
    measure_roof,
    ratio,
    synchronise,
)
from la_reconvla.train import backward, half, optimizer_for, pick_device, pick_precision

Section = Literal["control", "training", "picture", "limit", "data"]
SECTIONS: tuple[Section, ...] = ("control", "training", "picture", "limit", "data")
Row = dict[str, Any]
BINS = ActionBins((-1.0,) * 7, (1.0,) * 7)
BATCH = 16  # samples of a training step
CLIP = 1.0  # largest norm of the gradient, as in training


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


@dataclass(frozen=True)
class Place:
    """Where and in which precision."""

    device: torch.device
    dtype: torch.dtype

    def wait(self) -> None:
        """See `timing.synchronise`."""
        synchronise(self.device)


# ---------------------------------------------------------------- backbones with random weights


@dataclass(frozen=True)
class Size:
    """A backbone without its weights, and the heads that go with it."""

    id: str
    backbone: SmallPaliGemma | Pretrained
    head: MAEDecoder = field(default_factory=MAEDecoder)
    denoiser: Denoiser = field(default_factory=Denoiser)

    @classmethod
    def of(cls, name: str, dtype: torch.dtype) -> Size:
        """That of a preset, or else of a model.

        Raises:
            UserError: if its configuration cannot be had.
        """
        own: Any = next(key for key, value in DTYPES.items() if value == dtype)
        if name not in PRESETS:
            return cls(name, Pretrained(name, dtype=own))
        preset = PRESETS[name]
        backbone: Any = preset.backbone
        changed = {"dtype": own} if isinstance(backbone, Pretrained) else {"weights": None}
        return cls(name, replace(backbone, **changed), preset.head, preset.denoiser)

    def acting(self, chunk: int) -> Size:
        """As it acts, with `chunk` actions: nothing trains."""
        changes: dict[str, Any] = {"chunk": chunk}
        if isinstance(self.backbone, Pretrained):
            changes |= {"freeze": Freeze(last=0), "lora": None, "checkpointing": False}
        return replace(self, backbone=replace(self.backbone, **changes))

    def architecture(self, side: int | None) -> Any:
        """The library's configuration of a pretrained backbone with `side` x `side` image tokens."""
        assert isinstance(self.backbone, Pretrained)
        found = copy.deepcopy(self.backbone.architecture)
        if side is not None:
            found.vision_config.image_size = side * self.backbone.geometry.patch
        return found

    def takes(self, case: Act) -> bool:
        """Whether the family has a form that acts so."""
        if isinstance(self.backbone, SmallPaliGemma):
            return True
        family = self.backbone.family.backbone
        if case.decoding == "autoregressive" and not (isinstance(family, type) and issubclass(family, Continuing)):
            return False
        grid = self.backbone.family.backbone.geometry_of(self.architecture(case.side), self.backbone).grid
        return case.side is None or grid == (case.side, case.side)

    def build(self, place: Place, side: int | None = None) -> Backbone:
        """The backbone with random weights and `side` x `side` image tokens, on its device."""
        if isinstance(self.backbone, SmallPaliGemma):
            pixels = self.backbone.image_size if side is None else side * self.backbone.patch
            return replace(self.backbone, image_size=pixels).build().to(place.device)
        options: dict[str, Any] = {"attn_implementation": ATTENTION, "dtype": DTYPES[self.backbone.dtype]}
        with torch.device(place.device), quiet():
            model = self.backbone.family.model._from_config(self.architecture(side), **options)
        return self.backbone.assemble(model, Tokenizer.from_file(str(TOKENIZER))).to(place.device)


def drawn(backbone: Any, count: int, place: Place) -> Batch:
    """Random pictures, zero actions and an instruction of LIBERO's length, for a backbone that was built."""
    side = backbone.grid[0] * backbone.patch_size  # may differ from the configuration's, see `Size.build`
    batch = random_batch(backbone.config, count)
    shape = (count, 3, side, side)
    batch.images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator(0, "bench"))
    batch.wrist = None if batch.wrist is None else batch.images
    moved = {name: value.to(place.device) for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
    return replace(batch, **moved)


# ---------------------------------------------------------------- what is timed


class Case(Protocol):
    """Something to run; a frozen dataclass."""

    @property
    def id(self) -> str:
        """Name of its row."""
        ...

    def build(self, size: Size, place: Place) -> Work:
        """Make everything ready; what comes back runs it once."""
        ...


@dataclass(frozen=True)
class Act:
    """One chunk of actions from one picture.

    Attributes:
        arm: whose way it is.
        chunk: actions.
        decoding: all in one pass, or token by token.
        side: rows and columns of image tokens; None for the backbone's own.
        fast: by a recording of the policy, see `la_reconvla.acting`.
    """

    arm: str
    chunk: int
    decoding: DecodingName = "parallel"
    side: int | None = None
    fast: bool = False

    @property
    def id(self) -> str:
        """All of it."""
        tokens = f", {self.side**2} tokens" if self.side else ""
        return f"{self.arm}, {self.decoding}, chunk {self.chunk}{tokens}{', fast' if self.fast else ''}"

    def policy(self, size: Size, place: Place) -> Policy:
        """What acts, with random weights."""
        size, decoding = size.acting(self.chunk), DECODINGS[self.decoding]
        with seeded(0, "weights"):
            backbone = replace(size, backbone=decoding.given(size.backbone)).build(place, self.side)
            policy = Policy(backbone, BINS, head=decoding.head(backbone, BINS, self.chunk)).to(place.device).eval()
        return policy if isinstance(size.backbone, Pretrained) else policy.to(place.dtype)

    def build(self, size: Size, place: Place) -> Work:
        """See `Case`."""
        policy = self.policy(size, place)
        batch = drawn(policy.backbone, 1, place)
        act = Actor(policy) if self.fast else policy.act
        return lambda: act(batch.images, batch.instructions, batch.wrist, batch.proprio)


PLAIN = (
    *(Act("C4", chunk) for chunk in (1, 5, 8)),
    *(Act("ReconVLA", chunk, "autoregressive") for chunk in (1, 5, 8)),
    Act("C4", 8, side=16),
    Act("ReconVLA", 5, "autoregressive", side=27),  # two views in one picture, 35 tokens one after the other
)
"""With the backbone's own number of image tokens, then both as published.

Neither C4 nor the ReconVLA arm reconstructs when it acts: what is left between them is how actions are decoded."""
CONTROL = (*PLAIN, *(replace(case, fast=True) for case in PLAIN))


@dataclass(frozen=True)
class Step:
    """One optimizer step of an arm: forward, backward, clipping and AdamW."""

    condition: Condition
    batch: int = BATCH

    @property
    def id(self) -> str:
        """The arm."""
        return self.condition.id

    def ready(self, size: Size, place: Place) -> Training:
        """Everything that a step needs."""
        condition = self.condition.with_head(size.head, size.denoiser)
        with seeded(0, "weights"):
            backbone = size.build(place)
            policy = Policy(backbone, BINS, state_shape=condition.saliency.state_shape if condition.saliency else ())
            if condition.reconstruction is not None:
                head = condition.reconstruction.head
                policy.reconstructor = head.build(backbone.width, backbone.grid, backbone.patch_size)
        policy.to(place.device).train()
        batch = drawn(backbone, self.batch, place)
        if not condition.annotation_free:
            batch.gaze = torch.tensor([[0.25, 0.25, 0.5, 0.5]], device=place.device).repeat(self.batch, 1)
        return Training(condition, policy, batch, place)

    def build(self, size: Size, place: Place) -> Work:
        """See `Case`."""
        return self.ready(size, place).step


class Training:
    """An arm in training, on one batch again and again, as `la_reconvla.train.train` has its steps."""

    def __init__(self, condition: Condition, policy: Policy, batch: Batch, place: Place):
        self.condition, self.policy, self.batch, self.place = condition, policy, batch, place
        self.optimizer = optimizer_for(policy, 1e-5, 0.01)
        self.scaler = torch.amp.GradScaler(place.device.type, enabled=place.dtype == torch.float16)
        self.numbers = itertools.count()

    def gradient(self) -> None:
        """Forward and backward pass."""
        number = next(self.numbers)
        draws, noise = generator(0, "mask", number), generator(0, "noise", number)
        backward(
            *(self.policy, self.batch, self.condition, 1, draws, self.scaler, self.place.dtype, number), noise=noise
        )

    def step(self) -> None:
        """One optimizer step."""
        self.gradient()
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), CLIP)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def memory(self) -> float:
        """Bytes of weights, moments and gradients, and of what a step needs beside them; see `MEMORY`."""
        trained = sum(p.nbytes for p in self.policy.parameters() if p.requires_grad)
        weights = sum(p.nbytes for p in self.policy.parameters())
        if self.place.device.type == "cuda":
            self.step()  # the moments are there from now on
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self.step()
            torch.cuda.synchronize()
            return weights + 2 * trained + torch.cuda.max_memory_allocated() - before
        with Kept(self.policy).watch() as kept:
            self.gradient()
        self.optimizer.zero_grad(set_to_none=True)
        return weights + 3 * trained + kept.bytes


MEMORY = {
    "cuda": "MB: weights, moments and the peak of a step (max_memory_allocated)",
    "cpu": "MB: weights, moments, gradients and what is saved for the backward pass",
}
ARMS = ("C1", "C2", "C4", "A1", "R1", "C4-input")
PAID = (
    ("random mask and MAE head", "C2", "C1"),
    ("attention's rows and mask instead of a random one", "C4", "C2"),
    ("diffusion head instead of the MAE decoder", "A1", "C4"),
    ("crop and diffusion head", "R1", "C1"),
    ("a second pass that keeps masked pixels out", "C4-input", "C4"),
)
"""What an arm has and another has not."""


@dataclass(frozen=True)
class Draw:
    """One picture by a reconstruction head.

    Attributes:
        head: its kind, see `Size`.
        steps: denoising steps; None for one pass.
        seeing: the backbone's pass counts too.
    """

    head: Literal["MAE", "diffusion"]
    steps: int | None = None
    seeing: bool = False

    @property
    def id(self) -> str:
        """Head, steps, and what is counted."""
        steps = f", T = {self.steps}" if self.steps else ""
        return f"{self.head}{steps}{', backbone included' if self.seeing else ''}"

    def build(self, size: Size, place: Place) -> Work:
        """See `Case`."""
        size = size.acting(1)
        with seeded(0, "weights"):
            backbone = size.build(place).eval()  # pyright: ignore[reportAttributeAccessIssue] (a module, too)
            config = {"MAE": size.head, "diffusion": size.denoiser}[self.head]
            head: Any = config.build(backbone.width, backbone.grid, backbone.patch_size)
        head.to(place.device).eval()
        batch = drawn(backbone, 1, place)
        mask = RandomMask()(None, (1, math.prod(backbone.grid)), generator(0, "mask")).to(place.device)
        target = head.target(batch.images)
        more = {} if self.steps is None else {"steps": self.steps}

        @torch.no_grad()
        def see() -> Any:
            return backbone(batch.images, batch.instructions, wrist=batch.wrist, proprio=batch.proprio).patches

        states = see().float()

        @torch.no_grad()
        def work() -> Any:
            with half(place.dtype, place.device.type):
                return head.picture(see() if self.seeing else states, mask, target, **more)

        return work


PICTURE = tuple(
    case
    for seeing in (False, True)
    for case in (Draw("MAE", None, seeing), *(Draw("diffusion", steps, seeing) for steps in (10, 50, 250, 1000)))
)


@dataclass(frozen=True)
class Load:
    """One batch from the loader, in memory: a few gathers."""

    samples: Samples
    batch: int = BATCH
    id: str = "a batch of the loader"

    def build(self, size: Size, place: Place) -> Work:
        """See `Case`."""
        steps = itertools.count()
        return lambda: self.samples.batch(batch_indices(0, next(steps), self.batch, len(self.samples)))


def recording(folder: Path, image_size: int, episodes: int = 4, length: int = 100) -> None:
    """Write a drawn recording: noise for pictures, in the layout of a collected one."""
    rng = np.random.default_rng(0)
    name = "bench"
    header = FileHeader(
        suite="libero_spatial",
        task=0,
        name=name,
        language="pick up the black bowl and place it on the plate",
        bddl_file=f"libero_spatial/{name}.bddl",
        bddl_content="",
        env_args="{}",
        problem="libero_tabletop_manipulation",
        quality="fast",
        image_size=image_size,
        frame_stride=2,
    )
    frames = (length + 1) // 2
    recordings = [
        Recording(
            start=Start(
                *("libero_spatial", 0, "wide", "train", number, number),
                state=np.zeros(5),
                instruction=header.language,
                target="akita_black_bowl_1",
                destination="plate_1",
            ),
            actions=(actions := rng.uniform(-1, 1, (length, 7))),
            executed=actions,
            states=np.zeros((length, 5)),
            robot_states=np.zeros((length, 9)),
            proprio=np.zeros((length, 8), np.float32),
            joints=np.zeros((length, 7)),
            frames=rng.integers(0, 256, (frames, image_size, image_size, 3), dtype=np.uint8),
            wrist=None,
            instances=None,
            instance_names=(),
            model_xml="<mujoco/>",
            success_step=length - 1,
            noise=0.0,
            seed=number,
        )
        for number in range(episodes)
    ]
    write_file(folder / f"{name}_demo.hdf5", header, recordings)


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
        works = {name: case.build(size, self.place) for name, case in cases.items()}
        for name, seconds in self.timed(size, "control", works).items():
            case, times = cases[name], Times.of(seconds)
            about = {key: value for key, value in asdict(case).items() if key != "side"}
            about |= {"image_tokens": case.side and case.side**2, "hertz": case.chunk / times.median}
            self.add("control", size, name, unit="ms", **times.scaled(1e3), **about)
        if "limit" in self.settings.only:
            self.limit(size, {case.id: works[name] for name, case in cases.items() if not case.fast})

    def limit(self, size: Size, works: Mapping[str, Work]) -> None:
        """The bound of each work beside its time."""
        self.roof = self.roof or measure_roof(self.place.device, self.place.dtype)
        measured = {row["case"]: row["median"] for row in self.rows if row["backbone"] == size.id}
        for name, work in works.items():
            products = counted(work)
            bound = 1e3 * self.roof.bound(products.found)
            self.add(
                *("limit", size, name),
                unit="ms",
                median=measured[name],
                bound=bound,
                ratio=measured[name] / bound,
                operations=products.operations,
                bytes=products.bytes,
            )

    def training(self, size: Size) -> None:
        """Milliseconds and memory of a step, and what an arm pays for."""
        arms = {arm: Step(CONDITIONS[arm]).ready(size, self.place) for arm in ARMS}
        memory = {arm: ready.memory() / 1e6 for arm, ready in arms.items()}
        seconds = self.timed(size, "training", {arm: ready.step for arm, ready in arms.items()})
        for arm, found in seconds.items():
            over = ratio(found, seconds["C1"])
            values = {"over_c1": over, "memory_mb": memory[arm], "batch": BATCH}
            self.add("training", size, arm, unit="ms", **Times.of(found).scaled(1e3), **values)
        for what, arm, without in PAID:
            if {arm, without} <= seconds.keys():
                paid = difference(seconds[arm], seconds[without])
                values = {"arm": arm, "without": without, "over": ratio(seconds[arm], seconds[without])}
                self.add("training", size, what, unit="ms more", median=1e3 * paid, n=len(seconds[arm]), **values)

    def picture(self, size: Size) -> None:
        """Milliseconds a picture."""
        cases = {case.id: case for case in PICTURE}
        seconds = self.timed(size, "picture", {name: case.build(size, self.place) for name, case in cases.items()})
        for name, found in seconds.items():
            one_pass = seconds[Draw("MAE", seeing=cases[name].seeing).id]
            times = Times.of(found).scaled(1e3)
            about = {"steps": cases[name].steps, "seeing": cases[name].seeing}
            self.add("picture", size, name, unit="ms", **times, over_mae=ratio(found, one_pass), **about)

    def data(self, size: Size) -> None:
        """Samples a second of the loader beside what a step needs."""
        with self.samples(size) as samples:
            cases = (Load(samples), *(Step(CONDITIONS[arm]) for arm in ("C1", "C4")))
            seconds = self.timed(size, "data", {case.id: case.build(size, self.place) for case in cases})
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
        if "data" in wanted and self.settings.episodes and importlib.util.find_spec("libero") is not None:
            self.simulator()


# ---------------------------------------------------------------- for people


def claim(rows: Sequence[Row], backbone: str) -> str:
    """What is left of "up to 5 times faster" on one backbone, as a sentence."""

    def found(**wanted: Any) -> Row | None:
        wanted |= {"section": "control", "backbone": backbone, "fast": False}
        return next((row for row in rows if all(row.get(key) == value for key, value in wanted.items())), None)

    def faster(ours: Row, theirs: Row) -> str:
        return f"{ours['hertz'] / theirs['hertz']:.1f} times as many actions a second"

    ours = found(arm="C4", image_tokens=256)
    theirs = found(arm="ReconVLA", image_tokens=729)
    alike = [found(decoding=decoding, chunk=5, image_tokens=None) for decoding in ("parallel", "autoregressive")]
    if ours is None or theirs is None:
        return f'{backbone}: of "up to 5 times faster" nothing is measured here: both arms as published are needed.'
    text = (
        f'{backbone}: of "up to 5 times faster" there remains, as published, that C4 gives {ours["chunk"]} actions in '
        f"{ours['median']:.1f} ms and ReconVLA {theirs['chunk']} in {theirs['median']:.1f} ms, {faster(ours, theirs)}"
    )
    if alike[0] is not None and alike[1] is not None:
        text += f"; with equal images and chunks of 5, by decoding in parallel alone, {faster(alike[0], alike[1])}"
    return text + ". Nothing of it is due to the reconstruction, which neither does when it acts."


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
            "Control: milliseconds a chunk, and actions a second that this allows",
            ("arm", *statistics, "Hz"),
            "control",
            lambda row: (row["case"], *spread(row), f"{row['hertz']:.0f}"),
        ),
        made(
            "Limit: what the machine needs at least for the products of a chunk",
            ("arm", "ms", "at least", "ratio", "Gop", "MB"),
            "limit",
            lambda row: (
                *(row["case"], f"{row['median']:.1f}", f"{row['bound']:.2f}", f"{row['ratio']:.1f}"),
                *(f"{row['operations'] / 1e9:.3f}", f"{row['bytes'] / 1e6:.1f}"),
            ),
        ),
        made(
            f"Training: milliseconds a step of {BATCH} samples",
            ("arm", *statistics, "over C1", MEMORY.get(place.device.type, MEMORY["cpu"])),
            "training",
            lambda row: (row["case"], *spread(row), f"{row['over_c1']:.2f}", f"{row['memory_mb']:.1f}"),
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
            "Picture: milliseconds",
            ("head", *statistics, "over MAE"),
            "picture",
            lambda row: (row["case"], *spread(row, 2), f"{row['over_mae']:.1f}"),
        ),
        made(
            "Data: samples a second of the loader, and what training needs",
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
                temporary.write_bytes(figures.time_chart(bars))
    print(json.dumps(document, default=str))
    return document
