"""Where an annotated arm looks: what a box around the target makes. The ReconVLA arm and its controls.

A box is (left, top, right, bottom) as fractions of the picture. Each sample has one; where it comes from is not known
here (`la_reconvla.data.boxes`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from la_reconvla.contracts import Batch
from la_reconvla.method.mask import MaskContext, MaskSource, masked_count, top
from la_reconvla.method.reconstruction import CropSource


def cut(images: UInt8[Tensor, "b 3 H W"], boxes: Float[Tensor, "b 4"]) -> UInt8[Tensor, "b 3 H W"]:
    """The part of each picture in its box, stretched over the whole picture (bilinear)."""
    low, high = boxes[:, :2], boxes[:, 2:]
    zeros = torch.zeros_like(low[:, 0])
    width, height = (high - low).unbind(1)
    across, down = (low + high - 1.0).unbind(1)  # centre, where -1 and 1 are the picture's edges
    maps = torch.stack([width, zeros, across, zeros, height, down], dim=1).view(-1, 2, 3)
    places = F.affine_grid(maps, list(images.shape), align_corners=False)
    found = F.grid_sample(images.float(), places, mode="bilinear", padding_mode="border", align_corners=False)
    return found.round().to(torch.uint8)


def known(gaze: Float[Tensor, "b 4"] | None) -> Float[Tensor, "b 4"]:
    """The boxes, if there are any: an arm that needs annotation never does without in silence."""
    if gaze is None:
        raise ValueError(
            "needs the target's boxes and got none: its class must say needs_gaze = True, and the samples hold boxes"
        )
    return gaze


def around(centre: Float[Tensor, "b 2"], side: Float[Tensor, " b"]) -> Float[Tensor, "b 4"]:
    """Squares of this side as near to `centre` as they can be inside the picture."""
    half = side[:, None] / 2
    middle = torch.maximum(torch.minimum(centre, 1 - half), half)
    return torch.cat([middle - half, middle + half], dim=1)


class Crop(CropSource):
    """A part of the picture, stretched over a picture of its own."""

    def __call__(self, gaze: Float[Tensor, "b 4"] | None, b: int, generator: torch.Generator) -> Float[Tensor, "b 4"]:
        """Where to cut: one box per sample, from the target's, if they are known."""
        raise NotImplementedError

    def picture(self, batch: Batch, generator: torch.Generator) -> UInt8[Tensor, "b 3 H W"]:
        """The parts, cut out and stretched; raises ValueError if boxes are needed that the batch lacks."""
        boxes = self(batch.gaze, len(batch.images), generator)
        return cut(batch.images, boxes.to(batch.images.device))


@dataclass(frozen=True)
class GazeCrop(Crop):
    """A square around the target, as ReconVLA's gaze region.

    Attributes:
        scale: its side over the longer side of the target's box.
        smallest: least side, as a fraction of the picture's.
    """

    scale: float = 1.5
    smallest: float = 0.25
    needs_gaze = True
    label = "gaze crop"

    def sides(self, gaze: Float[Tensor, "b 4"] | None) -> Float[Tensor, " b"]:
        """Side of each square, as a fraction of the picture's."""
        boxes = known(gaze)
        return (self.scale * (boxes[:, 2:] - boxes[:, :2]).amax(1)).clamp(self.smallest, 1.0)

    def __call__(self, gaze: Float[Tensor, "b 4"] | None, b: int, generator: torch.Generator) -> Float[Tensor, "b 4"]:
        """Where to cut.

        Raises:
            ValueError: without boxes.
        """
        boxes = known(gaze)
        return around((boxes[:, :2] + boxes[:, 2:]) / 2, self.sides(gaze))


@dataclass(frozen=True)
class RandomCrop(GazeCrop):
    """A square anywhere. It is as large as the gaze crop of the same sample: only *where* differs.

    So it reads the size of the target's box, and counts as annotated, but not its place.
    """

    label = "random crop"

    def __call__(self, gaze: Float[Tensor, "b 4"] | None, b: int, generator: torch.Generator) -> Float[Tensor, "b 4"]:
        """Where to cut, drawn on the CPU; raises ValueError without boxes."""
        side = self.sides(gaze)
        free = torch.rand(b, 2, generator=generator).to(side) * (1 - side[:, None])
        return torch.cat([free, free + side[:, None]], dim=1)


@dataclass(frozen=True)
class WholeImage(Crop):
    """Everything."""

    label = "whole image"

    def __call__(self, gaze: Float[Tensor, "b 4"] | None, b: int, generator: torch.Generator) -> Float[Tensor, "b 4"]:
        """The picture's edges."""
        return torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(b, 4)


@dataclass(frozen=True)
class GazeMask(MaskSource):
    """The patches nearest to the target: first those that its box touches. As many as every other mask has."""

    fraction: float = 0.25
    needs_gaze = True
    label = "gaze"

    def boxes(self, context: MaskContext) -> Float[Tensor, "b 4"]:
        """Each sample's own."""
        return known(context.boxes)

    def __call__(self, context: MaskContext) -> Bool[Tensor, "b n"]:
        """Raises ValueError without boxes or grid."""
        boxes = self.boxes(context)
        if context.grid is None:
            raise ValueError("the mask of boxes needs the patches' grid: pass a context with it")
        rows, columns = context.grid
        cell = boxes.new_tensor([1 / columns, 1 / rows])
        row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        low = torch.stack([column, row], dim=-1).view(1, -1, 2).to(boxes) * cell
        gap = torch.maximum(boxes[:, None, :2] - (low + cell), low - boxes[:, None, 2:]).clamp_min(0).norm(dim=-1)
        off = (low + cell / 2 - (boxes[:, None, :2] + boxes[:, None, 2:]) / 2).norm(dim=-1)
        return top(-(gap + 1e-3 * off), masked_count(self.fraction, context.shape[1]))


@dataclass(frozen=True)
class ShuffledGazeMask(GazeMask):
    """The gaze mask of the sample before it in the batch: as compact, and of a thing nobody asked for.

    A control of `GazeMask`: it is given the same boxes, with the link between box and instruction cut.
    """

    label = "shuffled gaze"

    def boxes(self, context: MaskContext) -> Float[Tensor, "b 4"]:
        """The first sample takes the box of the last."""
        return known(context.boxes).roll(1, 0)
