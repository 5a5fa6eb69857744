"""Backbones of the bench: of a preset's size or a public model's, with random weights, and where they run.

Time does not depend on the weights. Those of a large backbone exist once, whatever is built on it.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers.initialization import no_init_weights

from la_reconvla.backbones.paligemma import TOKENIZER, SmallPaliGemma
from la_reconvla.backbones.pretrained import ATTENTION, DTYPES, Freeze, Pretrained, quiet
from la_reconvla.bench.timing import Work, free_bytes, synchronise
from la_reconvla.contracts import Backbone, Batch
from la_reconvla.errors import UserError
from la_reconvla.method.actions import ActionBins
from la_reconvla.method.decoder import MAEDecoder
from la_reconvla.method.variants.denoiser import Denoiser
from la_reconvla.randomness import generator
from la_reconvla.robot import LIBERO_ACTIONS
from la_reconvla.study.presets import PRESETS
from la_reconvla.study.step_memory import random_batch
from la_reconvla.training.optimizers import OptimizerName

BINS = ActionBins((-1.0,) * len(LIBERO_ACTIONS), (1.0,) * len(LIBERO_ACTIONS))


@dataclass(frozen=True)
class Compute:
    """Where and in which precision."""

    device: torch.device
    dtype: torch.dtype

    def wait(self) -> None:
        """See `timing.synchronise`."""
        synchronise(self.device)


class WithHead(Protocol):
    """What trains a reconstruction head on a backbone."""

    def head_size(self, size: Size, backbone: Any) -> int:
        """Weights of that head."""
        ...


@dataclass(frozen=True)
class Size:
    """A backbone without its weights, and the reconstruction heads that go with it.

    Attributes:
        id: its name.
        backbone: what it is built from.
        decoder: the MAE decoder.
        denoiser: the diffusion head.
        optimizer: what the preset trains with; a model that is no preset takes AdamW.
        like: a built backbone that lends its weights to all that are built from here, see `sharing`.
    """

    id: str
    backbone: SmallPaliGemma | Pretrained
    decoder: MAEDecoder = field(default_factory=MAEDecoder)
    denoiser: Denoiser = field(default_factory=Denoiser)
    optimizer: OptimizerName = "adamw"
    like: Any = None

    @classmethod
    def of(cls, name: str, dtype: torch.dtype) -> Size:
        """That of a preset, or else of a model.

        Raises:
            UserError: if its configuration cannot be had.
        """
        name_of_dtype: Any = next(key for key, value in DTYPES.items() if value == dtype)
        if name not in PRESETS:
            return cls(name, Pretrained(name, dtype=name_of_dtype))
        preset = PRESETS[name]
        backbone: Any = preset.backbone
        changed = {"dtype": name_of_dtype} if isinstance(backbone, Pretrained) else {"weights": None}
        return cls(name, replace(backbone, **changed), preset.decoder, preset.denoiser, preset.train.optimizer)

    def acting(self, chunk: int) -> Size:
        """As it acts, with `chunk` actions: nothing trains."""
        changes: dict[str, Any] = {"chunk": chunk}
        if isinstance(self.backbone, Pretrained):
            changes |= {"freeze": Freeze(last=0), "lora": None, "checkpointing": False}
        return replace(self, backbone=replace(self.backbone, **changes))

    def architecture(self, side: int | None) -> Any:
        """The library's configuration of a pretrained backbone with `side` x `side` image tokens."""
        assert isinstance(self.backbone, Pretrained)
        architecture = copy.deepcopy(self.backbone.architecture)
        if side is not None:
            architecture.vision_config.image_size = side * self.backbone.geometry.patch
        return architecture

    def build(self, compute: Compute, side: int | None = None) -> Backbone:
        """The backbone with random weights and `side` x `side` image tokens, on its device."""
        if isinstance(self.backbone, SmallPaliGemma):
            pixels = self.backbone.image_size if side is None else side * self.backbone.patch
            return replace(self.backbone, image_size=pixels).build().to(compute.device)
        options: dict[str, Any] = {"attn_implementation": ATTENTION, "dtype": DTYPES[self.backbone.dtype]}
        # what is lent takes no memory: a system gives no memory to tensors that nobody writes to
        where, drawing = (
            ("cpu", no_init_weights()) if self.like is not None else (compute.device, contextlib.nullcontext())
        )
        with torch.device(where), quiet(), drawing:
            model = self.backbone.family.model._from_config(self.architecture(side), **options)
        backbone = self.backbone.assemble(model, Tokenizer.from_file(str(TOKENIZER)))
        if self.like is not None:
            lend(self.like, backbone)
        return backbone.to(compute.device)

    def sharing(self, compute: Compute, steps: Sequence[WithHead] = ()) -> Size:
        """The same, with the weights of a large backbone made here, once; small ones are cheaper than the trouble.

        Args:
            compute: where.
            steps: what trains on it at once, each with a reconstruction head.

        Raises:
            UserError: if these weights, and weights, moments and one gradient of what trains, do not fit into the free
                memory. What a pass needs beside them is not foreseen.
        """
        if isinstance(self.backbone, SmallPaliGemma):
            return self
        bare = self.backbone.skeleton()
        trained = sum(4 * p.numel() for p in bare.parameters() if p.requires_grad)
        weights = sum(p.nbytes for p in bare.parameters()) - trained
        each = [trained + 4 * step.head_size(self, bare) for step in steps] or [trained]
        require_memory(self.id, weights + 3 * sum(each) + max(each), free_bytes(compute.device), compute.device.type)
        return replace(self, like=self.build(compute))


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

    What trains takes its values, not its memory. The rest, which another chunk or picture shapes differently, is drawn.
    """
    lent_by_name = dict(lender.named_parameters())
    for name, parameter in list(backbone.named_parameters()):
        parent, _, leaf = name.rpartition(".")
        lent = lent_by_name.get(name)
        if lent is None or lent.shape != parameter.shape:
            nn.init.normal_(parameter, std=0.02)
        elif parameter.requires_grad:
            parameter.copy_(lent)
        else:
            setattr(backbone.get_submodule(parent), leaf, lent)


def drawn(backbone: Any, count: int, compute: Compute) -> Batch:
    """Random pictures, zero actions and an instruction of LIBERO's length, for a backbone that was built."""
    side = backbone.grid[0] * backbone.patch_size  # may differ from the configuration's, see `Size.build`
    batch = random_batch(backbone.config, count)
    shape = (count, 3, side, side)
    batch.images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator(0, "bench"))
    batch.wrist = None if batch.wrist is None else batch.images
    tensors = {name: value for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
    return replace(batch, **{name: value.to(compute.device) for name, value in tensors.items()})


class Case(Protocol):
    """Something to run; a frozen dataclass."""

    @property
    def id(self) -> str:
        """Name of its row."""
        ...

    def build(self, size: Size, compute: Compute) -> Work:
        """Make everything ready; what comes back runs it once.

        Raises:
            NotRecordedError: if it is to run by a recording and there is none.
        """
        ...
