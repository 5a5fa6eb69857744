"""What an arm adds to the action loss, as a value: which patches of the picture, or which part of it, and by what head.

::

    a mask (MAE, He et al.)    image: v v M v M v   the masked patches M of the policy's own picture
    a crop (ReconVLA)          image: . [---] . .   a part of it, stretched over a picture of its own
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from la_reconvla.contracts import Batch, CropSource, Features, HeadConfig, MaskSource, Moment, SaliencySource
from la_reconvla.method.decoder import MAEDecoder
from la_reconvla.method.gaze import cut
from la_reconvla.method.mask import AttentionMask
from la_reconvla.method.saliency import Mean


@dataclass(frozen=True)
class Reconstruction:
    """What an arm adds to the action loss.

    Attributes:
        mask: which patches to reconstruct; None for an arm that reconstructs a crop.
        head: kind and size of the head; its `build` makes the trainable module.
        weight: lambda.
        mask_at: where the masked pixels are removed, see `method.objective`.
        saliency: which part of the attention the mask follows.
        crop: which part of the picture to reconstruct as a picture of its own; None for an arm with a mask.
    """

    mask: MaskSource | None = field(default_factory=AttentionMask)
    head: HeadConfig = field(default_factory=MAEDecoder)
    weight: float = 0.5
    mask_at: Literal["decoder", "input"] = "decoder"
    saliency: SaliencySource = field(default_factory=Mean)
    crop: CropSource | None = None

    def __post_init__(self):
        if (self.mask is None) == (self.crop is None):
            raise ValueError("an arm reconstructs either masked patches or a crop: give a mask or a crop")
        if self.mask and any(part.rows != self.saliency.rows for part in self.mask.parts):
            raise ValueError("the mask's parts and the saliency must read the same rows: one pass gives only one kind")

    @property
    def region(self) -> MaskSource | CropSource:
        """What is reconstructed."""
        return self.mask or self.crop  # pyright: ignore[reportReturnType] (one of them is there, see above)

    @property
    def follows(self) -> SaliencySource | None:
        """What the mask follows; None where it follows no attention."""
        return self.saliency if self.mask and self.mask.needs_attention else None

    def picture(self, batch: Batch, generator: torch.Generator) -> UInt8[Tensor, "b 3 H W"]:
        """The picture to reconstruct: the policy's own, or the crop.

        Raises:
            ValueError: if the crop needs the target's boxes and the batch has none.
        """
        if self.crop is None:
            return batch.images
        return cut(batch.images, self.crop(batch.gaze, len(batch.images), generator).to(batch.images.device))

    def cover(
        self, seen: Features, state: Tensor | None, gaze: Tensor | None, generator: torch.Generator, step: int
    ) -> tuple[Float[Tensor, "b n"] | None, Bool[Tensor, "b n"] | None]:
        """What the mask follows in these features, and the mask itself; None for what the arm has not.

        Args:
            seen: features with the attention that `follows` reads.
            state: what that source has learned, see `SaliencySource.fit`.
            gaze: the target's boxes [b 4], for a mask that needs them.
            generator: the stream of masks, on the CPU.
            step: optimizer step.

        Raises:
            ValueError: if attention or boxes are missing.
            FloatingPointError: if the attention is not finite.
        """
        if self.mask is None:
            return None, None
        scores = None if self.follows is None else self.follows(seen, state)
        moment = Moment(step, seen.grid, tuple(part(seen, state) for part in self.mask.parts), gaze)
        b, n, _ = seen.patches.shape
        return scores, self.mask(scores, (b, n), generator, moment).to(seen.patches.device)
