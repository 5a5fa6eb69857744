"""Drawing: one picture by a reconstruction head, in one pass or in many denoising steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch

from la_reconvla.bench.sizes import Compute, Size, drawn
from la_reconvla.bench.timing import Work
from la_reconvla.method.mask import MaskContext, RandomMask
from la_reconvla.randomness import generator, seeded
from la_reconvla.training.gradient import half


@dataclass(frozen=True)
class Draw:
    """One picture by a reconstruction head.

    Attributes:
        reconstruction_head: its kind, see `Size`.
        steps: denoising steps; None for one pass.
        with_backbone: the backbone's pass counts too.
    """

    reconstruction_head: Literal["MAE", "diffusion"]
    steps: int | None = None
    with_backbone: bool = False

    @property
    def id(self) -> str:
        """Head, steps, and what is counted."""
        steps = f", T = {self.steps}" if self.steps else ""
        return f"{self.reconstruction_head}{steps}{', backbone included' if self.with_backbone else ''}"

    def build(self, size: Size, compute: Compute) -> Work:
        """See `Case`."""
        size = size.acting(1)
        with seeded(0, "weights"):
            backbone = size.build(compute).eval()  # pyright: ignore[reportAttributeAccessIssue] (a module, too)
            config = {"MAE": size.decoder, "diffusion": size.denoiser}[self.reconstruction_head]
            head: Any = config.build(backbone.width, backbone.grid, backbone.patch_size)
        head.to(compute.device).eval()
        batch = drawn(backbone, 1, compute)
        context = MaskContext((1, math.prod(backbone.grid)), generator(0, "mask"))
        mask = RandomMask()(context).to(compute.device)
        target = head.target(batch.images)
        more = {} if self.steps is None else {"steps": self.steps}

        @torch.no_grad()
        def patches() -> Any:
            return backbone(batch.inputs).patches

        states = patches().float()

        @torch.no_grad()
        def work() -> Any:
            with half(compute.dtype, compute.device.type):
                return head.picture(patches() if self.with_backbone else states, mask, target, **more)

        return work


PICTURE = tuple(
    case
    for with_backbone in (False, True)
    for case in (Draw("MAE", None, with_backbone), *(Draw("diffusion", n, with_backbone) for n in (10, 50, 250, 1000)))
)
