"""The reconstruction loss alone, for a policy of your own: no protocol, no batch, any action head.

::

    reconstruct = MaskedReconstruction(width=256, grid=(14, 14), patch=16)   # its parameters train with yours
    loss, mask, scores = reconstruct(patch_tokens, images, attention, word_mask)
    (action_loss + 0.5 * loss).backward()

It composes the steps of `la_reconvla.method` and refuses what would train something else without a word.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from la_reconvla.errors import UserError, unknown
from la_reconvla.method.decoder import MAEDecoder
from la_reconvla.method.mask import AttentionMask, MaskContext, MaskSource
from la_reconvla.method.reconstruction import ReconstructorConfig
from la_reconvla.method.saliency import saliency

Pixels = Literal["uint8", "unit", "signed", "imagenet", "clip"]
CONVENTIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "unit": ((0.0,) * 3, (1.0,) * 3),  # [0, 1]
    "signed": ((0.5,) * 3, (0.5,) * 3),  # [-1, 1], as SigLIP and PaliGemma take them
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}
"""Mean and standard deviation by which each convention has normalised pixels of [0, 1], for red, green and blue."""
FOLLOWING, DECODER = AttentionMask(), MAEDecoder()  # as published
TOLERANCE = 1e-2  # of a pixel in [0, 1]: what half precision and interpolation leave


class Reconstructed(NamedTuple):
    """What one call gives.

    Attributes:
        loss: float32, to be added to the action loss; its gradient reaches the patch tokens and the decoder.
        mask: bool [b n], True where a patch was hidden and reconstructed.
        scores: float32 [b n], what the mask follows, detached; None where nothing was given.
    """

    loss: Float[Tensor, ""]
    mask: Bool[Tensor, "b n"]
    scores: Float[Tensor, "b n"] | None


class MaskedReconstruction(nn.Module):
    """Picks patches, hides them from a decoder, and measures how well it draws them. Only training needs it.

    Args:
        width: numbers in one of your patch tokens.
        grid: rows and columns of the patches.
        patch: side of a patch in pixels of the pictures that you pass.
        pixels: how these are coded: ``uint8`` (0 to 255), or as floats ``unit`` ([0, 1]), ``signed`` ([-1, 1]),
            ``imagenet`` or ``clip`` (normalised by that mean and deviation).
        mask: which patches; ``RandomMask()`` is the control that looks nowhere.
        head: kind and size of what reconstructs.

    Raises:
        UserError: for a grid of one number, an unknown coding, or a mask that needs more than one map, such as boxes of
            the target.
    """

    def __init__(
        self,
        width: int,
        grid: tuple[int, int],
        patch: int,
        *,
        pixels: Pixels = "uint8",
        mask: MaskSource = FOLLOWING,
        head: ReconstructorConfig = DECODER,
    ):
        super().__init__()
        if not (isinstance(grid, tuple | list) and len(grid) == 2 and min(grid) > 0):
            raise UserError(f"grid is the rows and columns of the patches, for example (14, 14), not {grid}")
        if pixels != "uint8" and pixels not in CONVENTIONS:
            raise unknown("coding of pixels", pixels, ("uint8", *CONVENTIONS))
        if mask.needs_gaze or mask.sources:
            raise UserError(
                f"{type(mask).__name__} needs boxes or further maps, which this module is not given: pass your own "
                "[b n] scores with AttentionMask, or train with la_reconvla.losses"
            )
        self.width, self.grid, self.patch, self.pixels, self.mask = width, grid, patch, pixels, mask
        self.head: Any = head.build(width, grid, patch)
        self._warned: set[str] = set()
        self._warnings: list[str] = []

    def forward(
        self,
        patch_tokens: Float[Tensor, "b n d"],
        images: Tensor,
        attention: Tensor | None = None,
        word_mask: Bool[Tensor, "b t"] | None = None,
        *,
        progress: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Reconstructed:
        """The loss of one batch.

        Args:
            patch_tokens: your model's states of the image patches, row by row, *after* they have met the words
                (`language_reaches_patches` tells); any floating dtype.
            images: [b 3 H W], RGB, coded as in `pixels`.
            attention: weights that t text tokens pay to the n patches, float [b ... t n] with layers and heads between
                in any number; or your own scores, float [b n]. A random mask needs neither. The batch comes first:
                stack layers by torch.stack(layers, 1), since [l b h t n] is not told apart where l = b. Take layers
                whose states of these tokens something reads: nothing reads those of most models' last layer, so no
                loss shapes their attention, and neither its gradient nor a warning tells. Scores are not asked for
                a gradient at all.
            word_mask: bool [b t], True for the instruction's own words: no padding, no special tokens. Not read beside
                your own scores.
            progress: share of the training that is done, in [0, 1], for a mask that depends on it: `WarmUp` stays
                random without.
            generator: of random masks, on the CPU; None for PyTorch's own.

        Raises:
            UserError: for what does not fit together, each with the repair.
            ValueError: if a mask of your own is not bool [b n], with equally many patches in each sample.
            FloatingPointError: if attention or scores are not finite.
        """
        if not 0 <= progress <= 1:
            raise UserError(f"progress is the share of the training that is done, in [0, 1], not {progress}")
        b, n = self._require_tokens(patch_tokens)
        pictures = self._uint8(images, b)
        scores = self._scores(attention, word_mask, b, n)
        while self._warnings:
            warnings.warn(self._warnings.pop(0), stacklevel=4)  # from here: nn.Module calls this by two functions
        draws = generator or torch.default_generator
        context = MaskContext((b, n), draws, scores, self.grid, progress)
        mask = self.mask.pick(context, count=True).to(patch_tokens.device)
        own = next(self.head.parameters()).dtype
        loss = self.head.loss(patch_tokens.to(own), mask, self.head.target(pictures), draws)
        return Reconstructed(loss, mask, scores)

    def _require_tokens(self, tokens: Tensor) -> tuple[int, int]:
        n = self.grid[0] * self.grid[1]
        if tokens.dim() != 3 or tuple(tokens.shape[1:]) != (n, self.width):
            hint = "; leave out class and register tokens" if tokens.dim() == 3 and tokens.shape[1] > n else ""
            raise UserError(f"patch tokens must be [b {n} {self.width}], got {list(tokens.shape)}{hint}")
        if not len(tokens):
            raise UserError("the batch is empty, and a mean over nothing is no loss: leave such a batch out")
        if torch.is_grad_enabled() and not tokens.requires_grad:
            self._warn(
                "the patch tokens carry no gradient, so the reconstruction trains its decoder and not your policy: do "
                "not detach them, and train something before them"
            )
        return len(tokens), n

    def _uint8(self, images: Tensor, b: int) -> UInt8[Tensor, "b 3 H W"]:
        """The pictures in the coding that reconstruction targets are made of."""
        height, width = (side * self.patch for side in self.grid)
        if tuple(images.shape) != (b, 3, height, width):
            hint = ": permute(0, 3, 1, 2) puts channels first" if images.dim() == 4 and images.shape[-1] == 3 else ""
            raise UserError(
                f"images must be [{b} 3 {height} {width}] for {self.grid[0]} x {self.grid[1]} patches of {self.patch} "
                f"pixels, got {list(images.shape)}{hint or ': resize them, or give the grid and patch that they have'}"
            )
        low, high = (float(value) for value in torch.aminmax(images.detach()))
        if self.pixels == "uint8":
            if images.dtype != torch.uint8 or high == 1:
                raise UserError(
                    f"images are {images.dtype} in [{low:.3g}, {high:.3g}], not uint8 in [0, 255]: tell how they are "
                    f"coded, MaskedReconstruction(..., pixels='unit'), or {', '.join(list(CONVENTIONS)[1:])}"
                )
            return images
        if not images.is_floating_point():
            raise UserError(f"images are {images.dtype}, not floats coded as '{self.pixels}': pass pixels='uint8'")
        mean, deviation = (images.new_tensor(part, dtype=torch.float32) for part in CONVENTIONS[self.pixels])
        unit = images.detach().float() * deviation.view(3, 1, 1) + mean.view(3, 1, 1)
        if not (unit.min() >= -TOLERANCE and unit.max() <= 1 + TOLERANCE):  # NaN is refused too
            raise UserError(
                f"images in [{low:.3g}, {high:.3g}] are not coded as '{self.pixels}': pixels= must be one of uint8, "
                f"{', '.join(CONVENTIONS)}; or clamp what interpolation overshoots"
            )
        if self.pixels != "unit" and low >= 0 and high <= 1:
            self._warn(
                f"images in [0, 1] look like 'unit' and are read as '{self.pixels}', which makes dark pixels grey: "
                "pass pixels='unit', unless your pictures are that bright"
            )
        return (unit * 255).round().clamp(0, 255).to(torch.uint8)

    def _scores(
        self, attention: Tensor | None, word_mask: Tensor | None, b: int, n: int
    ) -> Float[Tensor, "b n"] | None:
        if attention is None:
            if self.mask.needs_attention:
                raise UserError(
                    "the mask follows attention and got none: pass attention and word_mask, or your own [b n] scores, "
                    "or ask for a random mask, MaskedReconstruction(..., mask=RandomMask())"
                )
            return None
        if attention.dim() == 2:
            scores = _fits(attention, (b, n), f"scores must be [{b} {n}]").detach().float()
        else:
            scores = self._mean(attention, word_mask, b, n)
        if self.mask.needs_attention and bool((scores == scores[:, :1]).all()):
            self._warn(
                "the scores are equal at all patches, so that the mask follows nothing: is every query masked, or the "
                "attention still at its start?"
            )
        return scores

    def _mean(self, attention: Tensor, word_mask: Tensor | None, b: int, n: int) -> Float[Tensor, "b n"]:
        if word_mask is None or word_mask.dtype != torch.bool or word_mask.dim() != 2:
            raise UserError("give word_mask, bool [b t]: True for the words of the instruction, False for padding")
        wanted = (b, word_mask.shape[1], n)
        shape = f"attention must be [b ... t n] with b, t, n = {b}, {wanted[1]}, {n}: rows of words, columns of patches"
        layers = (
            "; layers come after the batch, torch.stack(layers, 1)"
            if attention.dim() == 5 and attention.shape[1] == b
            else ""
        )
        _fits(attention, wanted, shape + layers, (0, -2, -1))
        if attention.min() < 0 or attention.sum(-1).max() > 1 + TOLERANCE:
            raise UserError(
                "the attention is no softmax: its rows have negative weights or add up to more than 1. Pass the "
                "weights after the softmax, or scores of your own, [b n]"
            )
        if empty := [number for number, any in enumerate(word_mask.any(1).tolist()) if not any]:
            raise UserError(f"word_mask is empty in samples {empty[:8]}: a mask made of no word would be made of NaN")
        if torch.is_grad_enabled() and not attention.requires_grad and self.mask.needs_attention:
            self._warn(
                "the attention carries no gradient: if no loss shapes the layers that made it, the mask follows noise. "
                "If one does (a probe beside a fused kernel, a teacher), pass la_reconvla.saliency(attention, "
                "word_mask) in its place"
            )
        return saliency(attention.reshape(b, -1, 1, *wanted[1:]), word_mask)

    def _warn(self, reason: str) -> None:
        """Make `forward` warn once."""
        if reason not in self._warned:
            self._warned.add(reason)
            self._warnings.append(reason)


def _fits(tensor: Tensor, wanted: tuple[int, ...], message: str, axes: tuple[int, ...] = (0, 1)) -> Tensor:
    if tensor.dim() < len(wanted) or tuple(tensor.shape[axis] for axis in axes) != wanted:
        raise UserError(f"{message}; got {list(tensor.shape)}")
    return tensor


def language_reaches_patches(patch_tokens: Float[Tensor, "b n d"], words: Float[Tensor, "b t d"]) -> bool:
    """Whether the patch tokens depend on the words at all.

    In a causal model with the image before the instruction they do not: their gradient with respect to the words is
    exactly 0, and reconstructing from them teaches the policy nothing of its instruction. Put a copy of the instruction
    in front of the image, or read the patches behind it.

    Args:
        patch_tokens: as passed to `MaskedReconstruction`.
        words: the embedded words that they were computed from, with ``requires_grad``; keep it before the model runs.

    Raises:
        UserError: if `words` carry no gradient.
        FloatingPointError: if the gradient is not finite, which would tell nothing.
    """
    if not words.requires_grad:
        raise UserError("words carry no gradient: call words.requires_grad_() before your model reads them")
    if not patch_tokens.requires_grad:
        return False
    draw = torch.Generator().manual_seed(0)  # a plain sum has no gradient behind a layer normalisation
    direction = torch.randn(patch_tokens.shape, generator=draw).to(patch_tokens)
    (gradient,) = torch.autograd.grad(patch_tokens, words, direction, retain_graph=True, allow_unused=True)
    if gradient is not None and not torch.isfinite(gradient).all():
        raise FloatingPointError(
            "the gradient is not finite: do the patch tokens overflow, or is a row of them masked?"
        )
    return gradient is not None and bool((gradient != 0).any())
