"""Maps are not causes: hide a thing in the picture, and see how far the distribution of actions moves.

What is hidden is the thing's box, painted in the picture's mean colour. Its control is a box of the same size
that shows none of the things, so that what painting alone does is known: a policy that acts by the target moves more
when the target is hidden than when as much of the rest is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from la_reconvla.analysis.frames import Occlusion
from la_reconvla.analysis.measures import MapPart
from la_reconvla.contracts import Batch
from la_reconvla.method.actions import ActionHead
from la_reconvla.method.policy import Policy
from la_reconvla.study.parts import PARTS

DRAWS = 3  # boxes elsewhere for each thing
TRIES = 64


@torch.no_grad()
def distribution(policy: Policy, batch: Batch) -> Float[Tensor, "b c a v"] | None:
    """Probability of each bin of each action of a chunk; None if it is not known at once, as of tokens or of noise."""
    if not isinstance(policy.action_head, ActionHead):
        return None
    features = policy.features(batch)
    return policy.action_head(features).softmax(-1)


def moved(
    before: Float[Tensor, "b c a v"], after: Float[Tensor, "b c a v"], valid: Float[Tensor, "b c"]
) -> Float[np.ndarray, " b"]:
    """Total variation between two distributions over bins, the mean over dimensions and steps that exist; in [0, 1]."""
    distance = 0.5 * (before - after).abs().sum(-1).mean(-1)
    return ((distance * valid).sum(1) / valid.sum(1)).cpu().numpy()


def occluded(images: UInt8[Tensor, "b 3 H W"], boxes: Float32[np.ndarray, "b 4"]) -> UInt8[Tensor, "b 3 H W"]:
    """The pictures, each with its box (left, top, right, bottom as fractions) in its mean colour; NaN hides nothing."""
    result, (height, width) = images.clone(), images.shape[2:]
    mean = images.float().mean((2, 3)).round().to(images.dtype)
    for row, box in enumerate(boxes):
        if np.isfinite(box).all():
            left, right = round(box[0] * width), max(round(box[2] * width), round(box[0] * width) + 1)
            top, bottom = round(box[1] * height), max(round(box[3] * height), round(box[1] * height) + 1)
            result[row, :, top:bottom, left:right] = mean[row, :, None, None]
    return result


def control_box(
    box: Float32[np.ndarray, "4"], things: Float32[np.ndarray, "m 4"], rng: np.random.Generator
) -> Float32[np.ndarray, "4"]:
    """A box of the size of `box` at random in the picture that touches none of `things`; NaN if none is found."""
    size, known = box[2:] - box[:2], things[np.isfinite(things).all(1)]
    for _ in range(TRIES):
        corner = rng.uniform(0, 1, 2) * (1 - size)
        apart = (corner >= known[:, 2:]) | (corner + size <= known[:, :2])
        if apart.any(1).all():
            return np.concatenate([corner, corner + size]).astype(np.float32)
    return np.full(4, np.nan, dtype=np.float32)


def effects(
    policy: Policy, batch: Batch, boxes: Float32[np.ndarray, "b 3 4"], draws: Sequence[np.random.Generator]
) -> list[dict[MapPart, Occlusion]] | None:
    """How far the actions move when each thing is hidden, and when a control of equal size is.

    Args:
        policy: in evaluation mode, on the batch's device.
        batch: the frames.
        boxes: of the things in `PARTS`, see `la_reconvla.study.parts.part_boxes`.
        draws: one for each frame; they draw the boxes elsewhere, `DRAWS` for each thing.

    Returns:
        For each frame and thing `moved` when it is hidden and when its control is, six digits after the point; None
        where the thing is not to be seen or no room is left elsewhere. None altogether if the head has no distribution.
    """
    before = distribution(policy, batch)
    if before is None:
        return None

    def shift(hidden: Float32[np.ndarray, "b 4"]) -> Float[np.ndarray, " b"]:
        after = distribution(policy, replace(batch, images=occluded(batch.images, hidden)))
        assert after is not None, "the head is the same"
        return np.where(np.isfinite(hidden).all(1), moved(before, after, batch.valid.float()), np.nan)

    found: dict[MapPart, tuple[Float[np.ndarray, " b"], Float[np.ndarray, " b"]]] = {}
    for column, part in enumerate(PARTS):
        alone = shift(boxes[:, column])
        drawn = [
            np.stack([control_box(own[column], own, rng) for own, rng in zip(boxes, draws, strict=True)])
            for _ in range(DRAWS)
        ]
        shifts = np.stack([shift(places) for places in drawn])
        counted = np.isfinite(shifts).sum(0)
        found[part] = alone, np.where(counted > 0, np.nansum(shifts, 0) / np.maximum(counted, 1), np.nan)
    return [
        {part: Occlusion(_known(alone[row]), _known(control[row])) for part, (alone, control) in found.items()}
        for row in range(len(boxes))
    ]


def _known(value: float) -> float | None:
    return round(float(value), 6) if np.isfinite(value) else None
