"""What an arm adds to the action loss, as a value: which patches of the picture, or which part of it, and by what head.

::

    a mask (MAE, He et al.)    image: v v M v M v   the masked patches M of the policy's own picture
    a crop (ReconVLA)          image: . [---] . .   a part of it, stretched over a picture of its own
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, is_dataclass
from typing import Any, Literal, Protocol

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from la_reconvla.contracts import Batch, Features
from la_reconvla.method.decoder import MAEDecoder
from la_reconvla.method.mask import AttentionMask, MaskContext, MaskSource
from la_reconvla.method.saliency import Mean, SaliencySource


class ReconstructorConfig(Protocol):
    """Kind and size of a reconstruction head: a frozen dataclass. `build` makes the trainable `Reconstructor`."""

    @property
    def label(self) -> str: ...

    def build(self, backbone_width: int, grid: tuple[int, int], patch: int) -> Any: ...


class CropSource:
    """Chooses the part of the picture to reconstruct as a picture of its own; see `MaskSource`."""

    label: str
    needs_gaze = False

    def picture(self, batch: Batch, generator: torch.Generator) -> UInt8[Tensor, "b 3 H W"]:
        """The crops, stretched. Raises ValueError if the batch lacks boxes that are needed."""
        raise NotImplementedError


@dataclass(frozen=True)
class Reconstruction:
    """What an arm adds to the action loss.

    Attributes:
        mask: which patches to reconstruct; None for an arm that reconstructs a crop.
        reconstruction_head: what reconstructs.
        weight: lambda, or a frozen dataclass that gives it for the share of the training that is done, with a label.
        mask_at: where the masked pixels are removed, see `method.objective`.
        saliency: which part of the attention the mask follows.
        crop: which part of the picture to reconstruct as a picture of its own; None for an arm with a mask.
    """

    mask: MaskSource | None = field(default_factory=AttentionMask)
    reconstruction_head: ReconstructorConfig = field(default_factory=MAEDecoder)
    weight: float | Callable[[float], float] = 0.5
    mask_at: Literal["decoder", "input"] = "decoder"
    saliency: SaliencySource = field(default_factory=Mean)
    crop: CropSource | None = None

    def __post_init__(self):
        if (self.mask is None) == (self.crop is None) or not isinstance(self.mask, MaskSource | None):
            raise ValueError("an arm reconstructs either masked patches or a crop: give a MaskSource or a crop")
        if self.mask and any(one.attention_rows != self.saliency.attention_rows for one in self.mask.sources):
            raise ValueError("all maps of a mask must read the same attention rows: one pass gives only one kind")
        for part in (self.region, self.saliency, self.reconstruction_head, *[self.weight] * callable(self.weight)):
            if not (is_dataclass(part) and part.__hash__ and hasattr(part, "label")):  # no hash: not frozen
                raise TypeError(f"{type(part).__name__} must be a frozen dataclass with a label")

    @property
    def region(self) -> MaskSource | CropSource:
        """What is reconstructed."""
        return self.mask or self.crop  # pyright: ignore[reportReturnType] (one of them is there, see above)

    @property
    def follows(self) -> SaliencySource | None:
        """What the mask follows; None where it follows no attention."""
        return self.saliency if self.mask and self.mask.needs_attention else None

    def weight_at(self, progress: float) -> float:
        """Lambda where this share of the training is done."""
        return self.weight(progress) if callable(self.weight) else self.weight

    def picture(self, batch: Batch, generator: torch.Generator) -> UInt8[Tensor, "b 3 H W"]:
        """The picture to reconstruct: the policy's own, or the crop."""
        return batch.images if self.crop is None else self.crop.picture(batch, generator)

    def choose_patches(
        self, features: Features, boxes: Float[Tensor, "b 4"] | None, generator: torch.Generator, progress: float
    ) -> tuple[Float[Tensor, "b n"] | None, Bool[Tensor, "b n"] | None]:
        """Saliency and mask, None for what the arm has not; `features` hold the attention that `follows` reads.

        Raises:
            ValueError: if attention or boxes are missing, or for a mask that is none.
            FloatingPointError: if the attention is not finite.
        """
        if self.mask is None:
            return None, None
        scores = None if self.follows is None else self.follows(features)
        b, n, _ = features.patches.shape
        maps = tuple(source(features) for source in self.mask.sources)
        context = MaskContext((b, n), generator, scores, features.grid, progress, maps, boxes)
        return scores, self.mask.pick(context, progress == 0).to(features.patches.device)  # a GPU is asked once
