"""What the bench measures: how fast arms act, train and draw, what limits them, and whether data keep up.

Every arm is a value, a `Case`, whose `build` gives something to run. All cases of one section and backbone are built
first and then take turns in one process (`study.timing.interleaved`); only training has two groups, see `GROUPS`.
Weights are random: time does not depend on them. Those of a large backbone exist once, whatever is built on it.
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
from torch import nn
from transformers.initialization import no_init_weights

from la_reconvla.acting import TOLERANCE, Actor, decoded, whole
from la_reconvla.backbones.continuing import Continuing
from la_reconvla.backbones.paligemma import TOKENIZER, SmallPaliGemma
from la_reconvla.backbones.pretrained import ATTENTION, DTYPES, Dtype, Freeze, Pretrained, quiet
from la_reconvla.conditions import C1, C2, CONDITIONS, D2, Condition
from la_reconvla.contracts import Backbone, Batch, HeadConfig, Start
from la_reconvla.data.hdf5 import FileHeader, Recording, open_demonstrations, write_file
from la_reconvla.data.samples import Samples, batch_indices, shifted
from la_reconvla.errors import UserError, unknown
from la_reconvla.method.actions import ActionBins
from la_reconvla.method.autoregressive import DECODINGS, DecodingName, TokenHead
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
from la_reconvla.study.presets import COARSE, PRESETS
from la_reconvla.study.tables import TextTable
from la_reconvla.study.timing import (
    Kept,
    Roof,
    Times,
    Work,
    counted,
    difference,
    free_bytes,
    interleaved,
    measure_roof,
    ratio,
    release,
    synchronise,
)
from la_reconvla.train import backward, half, optimizer_for, pick_device, pick_precision, to_device

Section = Literal["control", "training", "picture", "limit", "data"]
SECTIONS: tuple[Section, ...] = ("control", "training", "picture", "limit", "data")
Row = dict[str, Any]
BINS = ActionBins((-1.0,) * 7, (1.0,) * 7)
BATCH = 16  # samples of a training step
CLIP = 1.0  # largest norm of the gradient, as in training
SHIFT = 4  # pixels that the loader moves pictures by, as DrQ does; by default training moves none


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
    """A backbone without its weights, and the heads that go with it.

    Attributes:
        id: its name.
        backbone: what it is built from.
        head: the MAE decoder.
        denoiser: the diffusion head.
        like: a built backbone that lends its weights to all that are built from here, see `sharing`.
    """

    id: str
    backbone: SmallPaliGemma | Pretrained
    head: MAEDecoder = field(default_factory=MAEDecoder)
    denoiser: Denoiser = field(default_factory=Denoiser)
    like: Any = None

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
        # what is lent needs no place of its own: a system gives no memory to tensors that nobody writes to
        where, drawing = (
            ("cpu", no_init_weights()) if self.like is not None else (place.device, contextlib.nullcontext())
        )
        with torch.device(where), quiet(), drawing:
            model = self.backbone.family.model._from_config(self.architecture(side), **options)
        backbone = self.backbone.assemble(model, Tokenizer.from_file(str(TOKENIZER)))
        if self.like is not None:
            lend(self.like, backbone)
        return backbone.to(place.device)

    def sharing(self, place: Place, steps: Sequence[Step] = ()) -> Size:
        """The same, with the weights of a large backbone made here, once; small ones are cheaper than the trouble.

        Args:
            place: where.
            steps: what trains on it at once.

        Raises:
            UserError: if these weights, and weights, moments and one gradient of what trains, do not fit into the free
                memory. What a pass needs beside them is not foreseen.
        """
        if isinstance(self.backbone, SmallPaliGemma):
            return self
        bare = self.backbone.skeleton()
        trained = sum(4 * p.numel() for p in bare.parameters() if p.requires_grad)
        weights = sum(p.nbytes for p in bare.parameters()) - trained
        own = [trained + 4 * step.head_size(self, bare) for step in steps] or [trained]
        require_memory(self.id, weights + 3 * sum(own) + max(own), free_bytes(place.device), place.device.type)
        return replace(self, like=self.build(place))


def require_memory(backbone: str, needed: int, free: int, device: str) -> None:
    """Refuse what cannot fit; bytes.

    Raises:
        UserError: with what to do.
    """
    if needed > free:
        raise UserError(
            f"{backbone} needs {needed / 1e9:.1f} GB for weights and optimizers alone, and {free / 1e9:.1f} GB are "
            f"free on {device}: give --dtype bf16, --only control limit if it is training that does not fit, or leave "
            "this --backbone out"
        )


@torch.no_grad()
def lend(lender: nn.Module, backbone: nn.Module) -> None:
    """Put the frozen weights of `lender` into `backbone`, wherever name and shape agree; nothing is copied.

    What trains takes its values, not its place. The rest, which another chunk or picture shapes differently, is drawn.
    """
    theirs = dict(lender.named_parameters())
    for name, own in list(backbone.named_parameters()):
        parent, _, leaf = name.rpartition(".")
        lent = theirs.get(name)
        if lent is None or lent.shape != own.shape:
            nn.init.normal_(own, std=0.02)
        elif own.requires_grad:
            own.copy_(lent)
        else:
            setattr(backbone.get_submodule(parent), leaf, lent)


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


class NotRecordedError(Exception):
    """The fast path is none here; says why."""


class Case(Protocol):
    """Something to run; a frozen dataclass."""

    @property
    def id(self) -> str:
        """Name of its row."""
        ...

    def build(self, size: Size, place: Place) -> Work:
        """Make everything ready; what comes back runs it once.

        Raises:
            NotRecordedError: if it is to run by a recording and there is none.
        """
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

        def work() -> Any:
            return act(batch.images, batch.instructions, batch.wrist, batch.proprio)

        if isinstance(act, Actor):
            work()
            if act.records() != 1:  # it would go on by `Policy.act`, and this row would time that
                raise NotRecordedError(unrecorded(policy, batch))
        return work


def unrecorded(policy: Policy, batch: Batch) -> str:
    """Why `Actor` has no recording of `policy`: it keeps the reason to itself, so what it tried is tried again."""
    given = {"images": batch.images, "wrist": batch.wrist, "proprio": batch.proprio}
    inputs = {name: value for name, value in given.items() if value is not None}
    kind = decoded if isinstance(policy.head, TokenHead) else whole
    try:
        kind(policy, batch.instructions, tuple(inputs), tuple(inputs.values()))(*inputs.values())
    except Exception as error:
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return f"its actions differ by more than {TOLERANCE}"


EQUAL = tuple(
    (Act("C4", chunk), Act("ReconVLA", chunk, "autoregressive"))
    for chunk in (5, 1, 8)  # ReconVLA's, LA-ReconVLA's own published one, ours
)
"""Equal images, of the backbone's own number of tokens, and equal chunks: what is left is how actions are decoded."""
PUBLISHED = (Act("C4", 8, side=16), Act("C4", 1, side=16), Act("ReconVLA", 5, "autoregressive", side=27))
"""The published numbers of tokens: 256 of one picture and one pass (for our chunk, and for the published one of one
action) against 729 of two views in one picture and 35 one after the other.

Neither C4 nor the ReconVLA arm reconstructs when it acts."""
PLAIN = (*itertools.chain(*EQUAL), *PUBLISHED)
CONTROL = (*PLAIN, *(replace(case, fast=True) for case in PLAIN))


@dataclass(frozen=True)
class Step:
    """One optimizer step of an arm: forward, backward, clipping and AdamW.

    Attributes:
        condition: the arm.
        batch: samples.
        heads: as published, say; empty for those of the preset.
    """

    condition: Condition
    batch: int = BATCH
    heads: tuple[HeadConfig, ...] = ()

    @property
    def id(self) -> str:
        """The arm, and what is not the preset's."""
        head = ", published head" if self.heads else ""
        return f"{self.condition.id}{head}{f', {self.batch} samples' if self.batch != BATCH else ''}"

    def sized(self, size: Size) -> Condition:
        """The arm with the head that it is measured with."""
        return self.condition.with_head(*(self.heads or (size.head, size.denoiser)))

    def head_size(self, size: Size, backbone: Any) -> int:
        """Weights of that head on a backbone, which may be without numbers."""
        reconstruction = self.sized(size).reconstruction
        if reconstruction is None:
            return 0
        with torch.device("meta"):
            head: Any = reconstruction.head.build(backbone.width, backbone.grid, backbone.patch_size)
        return sum(p.numel() for p in head.parameters())

    def ready(self, size: Size, place: Place) -> Training:
        """Everything that a step needs."""
        condition = self.sized(size)
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

    def head(self) -> str:
        """Kind and size of the head that reconstructs."""
        head: Any = self.policy.reconstructor
        if head is None:
            return "no head"
        size = f"{head.config.label} {head.config.depth} x {head.config.width}"
        if isinstance(head.config, Denoiser):
            return f"{size}, r = {head.config.repeats}, {head.codec.width} numbers a token"
        return size

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
FEW = 4  # samples of a step of the published diffusion head, which takes half a minute on one core with `small`
HEADS = (MAEDecoder(), Denoiser(target=COARSE))  # 48 numbers a token in the place of a latent's 64
GROUPS = {
    "preset's heads": tuple(Step(CONDITIONS[arm]) for arm in ARMS),
    "published heads": (Step(C1, FEW), Step(C2, FEW, HEADS), Step(D2, FEW, HEADS)),
}
"""Steps that take turns; the first of each group reconstructs nothing.

They are apart because a group's slowest step decides how many rounds fit into its time."""
PAID = (
    ("random mask and {arm}", "C2", "C1"),
    ("attention's rows and mask instead of a random one", "C4", "C2"),
    ("{arm} instead of {without}", "A1", "C4"),
    ("crop and {arm}", "R1", "C1"),
    ("a second pass that keeps masked pixels out", "C4-input", "C4"),
    ("random mask and {arm}", GROUPS["published heads"][1].id, GROUPS["published heads"][0].id),
    ("{arm} instead of {without}", GROUPS["published heads"][2].id, GROUPS["published heads"][1].id),
)
"""What an arm has and another has not; in braces the heads of both."""
SHARES = (("C4", "A1"), (GROUPS["published heads"][1].id, GROUPS["published heads"][2].id))
"""Arms that differ in the head alone. It is said that the MAE decoder adds at most a fifth of the diffusion head's."""
FIFTH = 0.2


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
    """One batch as training takes it: gathered in memory, its pictures shifted, moved to the device."""

    samples: Samples
    batch: int = BATCH
    id: str = "a batch of the loader, shifted and on the device"

    def build(self, size: Size, place: Place) -> Work:
        """See `Case`."""
        steps = itertools.count()

        def work() -> Batch:
            step = next(steps)
            batch = self.samples.batch(batch_indices(0, step, self.batch, len(self.samples)))
            return to_device(shifted(batch, SHIFT, generator(0, "shift", step)), place.device, blind=False)

        return work


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
        """The bound of each work beside its time."""
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
            ("arm", "ms", "at least", "ratio", "Gop", "MB"),
            "limit",
            lambda row: (
                *(row["case"], f"{row['median']:.1f}", f"{row['bound']:.2f}", f"{row['ratio']:.1f}"),
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
                temporary.write_bytes(figures.time_chart(bars))
    print(json.dumps(document, default=str))
    return document
