"""What the bench runs, as values: a `Case` says what acts, trains, draws or loads, and its `build` makes it ready.

Weights are random: time does not depend on them. Those of a large backbone exist once, whatever is built on it.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn
from transformers.initialization import no_init_weights

from la_reconvla.acting import TOLERANCE, Actor, decoded, whole
from la_reconvla.backbones.continuing import Continuing
from la_reconvla.backbones.paligemma import TOKENIZER, SmallPaliGemma
from la_reconvla.backbones.pretrained import ATTENTION, DTYPES, Freeze, Pretrained, quiet
from la_reconvla.conditions import C1, C2, CONDITIONS, D2, Condition
from la_reconvla.contracts import Backbone, Batch, HeadConfig, Start
from la_reconvla.data.hdf5 import FileHeader, Recording, write_file
from la_reconvla.data.samples import Samples, batch_indices, shifted
from la_reconvla.errors import UserError
from la_reconvla.method.actions import ActionBins
from la_reconvla.method.autoregressive import DECODINGS, DecodingName, TokenHead
from la_reconvla.method.decoder import MAEDecoder
from la_reconvla.method.denoiser import Denoiser
from la_reconvla.method.mask import RandomMask
from la_reconvla.method.policy import Policy
from la_reconvla.optimizers import optimizers_for
from la_reconvla.randomness import generator, seeded
from la_reconvla.study.plan import random_batch
from la_reconvla.study.presets import COARSE, PRESETS
from la_reconvla.study.timing import (
    Kept,
    Work,
    free_bytes,
    synchronise,
)
from la_reconvla.train import backward, half, to_device

BINS = ActionBins((-1.0,) * 7, (1.0,) * 7)
BATCH = 16  # samples of a training step
CLIP = 1.0  # largest norm of the gradient, as in training
FAST = ", fast"  # at the end of a row's name
SHIFT = 4  # pixels that the loader moves pictures by, as DrQ does; by default training moves none


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
        return f"{self.arm}, {self.decoding}, chunk {self.chunk}{tokens}{FAST if self.fast else ''}"

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
        self.optimizer = optimizers_for(policy, 1e-5, 0.01)
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
        self.optimizer.unscale(self.scaler)
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), CLIP)
        self.optimizer.step(self.scaler)
        self.scaler.update()
        self.optimizer.zero_grad()

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
        self.optimizer.zero_grad()
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
