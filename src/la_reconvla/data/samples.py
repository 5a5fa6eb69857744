"""Training samples: numpy and files in, tensors out.

A sample is one picture of one episode at control step t, with the actions of steps t, t + 1, ..., t + c - 1. Pictures
are uint8 at the policy's size, so that a batch is a few gathers. All is held in memory; pictures that do not fit are
read from a file (`picture_store`), and batches are the same bit for bit.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64, UInt8
from PIL import Image

from la_reconvla.contracts import Batch
from la_reconvla.data.boxes import Annotator, in_square
from la_reconvla.data.demonstrations import Demonstrations, Episode
from la_reconvla.data.picture_store import fits_in_memory, gathered, stored
from la_reconvla.errors import UserError, unknown
from la_reconvla.robot import LIBERO_ACTIONS, ActionSpace, Fit, Inputs, Proprioception, Standard, StateChoice

GREY = 128  # pixel value of an image that shows nothing


class Samples:
    """All samples of some demonstrations.

    Args:
        demonstrations: where they come from.
        image_size: side of the policy's square pictures; stored ones are resized with antialiasing.
        chunk: actions per sample, c.
        stride: control steps between samples of an episode; a multiple of the recorded frame stride (the default).
        wrist: whether batches carry wrist pictures.
        proprio: how much of the robot's own state batches carry, see `proprio_view`.
        gaze: source of the target's boxes; None for arms that need no annotation.
        inputs: which cameras, and how pictures and state are prepared; by default as the demonstrations are. A state
            that is standardised is so by these demonstrations unless `inputs` has statistics: give held-out samples
            the `inputs` of the training ones.

    Raises:
        UserError: the stride does not fit the recorded one, a recording lacks what is asked for, its pictures stand
            otherwise than `inputs` say, or `gaze` has no box for an episode.
    """

    def __init__(
        self,
        demonstrations: Demonstrations,
        image_size: int,
        chunk: int,
        *,
        stride: int | None = None,
        wrist: bool = False,
        proprio: Proprioception = "none",
        gaze: Annotator | None = None,
        inputs: Inputs | None = None,
    ) -> None:
        if image_size < 1 or chunk < 1:
            raise UserError(f"image size and chunk must be at least 1, not {image_size} and {chunk}")
        self.demonstrations, self.image_size, self.chunk = demonstrations, image_size, chunk
        self.inputs: Inputs = inputs or Inputs(demonstrations.cameras[:2], demonstrations.orientation)
        self._require_fit(wrist)
        self.stride = demonstrations.frame_stride if stride is None else stride
        episodes = demonstrations.episodes
        steps = [np.arange(0, len(e.actions), self._checked_stride(e)) for e in episodes]
        self._episode = np.repeat(np.arange(len(episodes)), [len(s) for s in steps])
        self._step = np.concatenate(steps)
        self._instructions = np.array([e.instruction for e in episodes], dtype=object)
        padded = [pad_actions(e.actions, chunk, demonstrations.space) for e in episodes]
        first = np.cumsum([0] + [len(actions) for actions in padded[:-1]])
        self._actions = torch.from_numpy(np.concatenate(padded))
        self._valid = torch.from_numpy(
            np.concatenate([np.arange(len(p)) < len(e.actions) for p, e in zip(padded, episodes, strict=True)])
        )
        self._row = torch.from_numpy(first[self._episode] + self._step)
        self._proprio = self._states(proprio)
        shape = (len(self), 3, image_size, image_size)
        self._whole = fits_in_memory(math.prod(shape) * (2 if wrist else 1))
        self._images = self._pictures(self.inputs.cameras[0], shape)
        self._wrist = self._pictures(self.inputs.cameras[-1], shape) if wrist else None
        self._gaze, self.annotation = None, None
        if gaze is not None:
            self._annotate(gaze)

    def __len__(self) -> int:
        return len(self._step)

    def annotated(self, gaze: Annotator) -> Samples:
        """The same samples with the target's boxes; pictures are shared, not copied.

        Raises:
            UserError: `gaze` has no box for an episode.
        """
        result = copy.copy(self)
        result._annotate(gaze)
        return result

    def to(self, device: torch.device | str) -> Samples:
        """The same samples with all that batches are made of on another device, where there is room for it.

        Pictures that are read from a file stay there.
        """
        result = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, torch.Tensor):
                setattr(result, name, value.to(device))
        return result

    def batch(self, indices: Int64[np.ndarray, " b"]) -> Batch:
        """The samples of these numbers, on the device of the samples: the CPU, unless they were moved."""
        chosen = torch.from_numpy(np.asarray(indices, dtype=np.int64)).to(self._row.device)
        rows = self._row[chosen][:, None] + torch.arange(self.chunk, device=self._row.device)
        return Batch(
            images=self._images[chosen].to(chosen.device),
            instructions=list(self._instructions[self._episode[indices]]),
            actions=self._actions[rows],
            valid=self._valid[rows],
            wrist=None if self._wrist is None else self._wrist[chosen].to(chosen.device),
            proprio=None if self._proprio is None else self._proprio[chosen],
            gaze=None if self._gaze is None else self._gaze[chosen],
        )

    def quantiles(self, low: float = 0.01, high: float = 0.99) -> tuple[np.ndarray, np.ndarray]:
        """Quantiles of all actions of the demonstrations, float64 [a] each: the range of the bins."""
        actions = np.concatenate([e.actions for e in self.demonstrations.episodes]).astype(np.float64)
        lower, upper = np.quantile(actions, (low, high), axis=0)
        return lower, upper

    def episode_of(self, indices: Int64[np.ndarray, " b"]) -> Int64[np.ndarray, " b"]:
        """Number of each sample's episode in ``demonstrations.episodes``."""
        return self._episode[indices]

    def origin(self, index: int) -> tuple[Episode, int]:
        """Episode and control step of a sample."""
        return self.demonstrations.episodes[self._episode[index]], int(self._step[index])

    def _checked_stride(self, episode: Episode) -> int:
        if self.stride < 1 or self.stride % episode.frame_stride:
            raise UserError(
                f"{episode.path}: pictures exist at every {episode.frame_stride} control steps; "
                f"a sample stride of {self.stride} is not a multiple of that"
            )
        return self.stride

    def _require_fit(self, wrist: bool) -> None:
        inputs, demonstrations = self.inputs, self.demonstrations
        if len(inputs.cameras) < 1 + wrist:
            raise UserError(
                f"a second camera was asked for, and there is only {inputs.cameras[0]}: name two with --cameras, of "
                f"{', '.join(demonstrations.cameras)}, or give --no-wrist"
            )
        for name in inputs.cameras[: 1 + wrist]:
            if name not in demonstrations.cameras:
                raise unknown("camera in these demonstrations", name, demonstrations.cameras)
        if inputs.orientation != demonstrations.orientation:
            raise UserError(
                f"the policy takes pictures that are {inputs.orientation}, those of {demonstrations.episodes[0].path} "
                f"are {demonstrations.orientation}: turn them and import them again (la-reconvla data import), or "
                "train on them"
            )

    def _pictures(self, camera: str, shape: tuple[int, int, int, int]) -> Any:
        """uint8 [N 3 S S], a tensor or `StoredPictures`."""
        pictures = self._resized(camera)
        if self._whole:
            return gathered(pictures, shape)
        return stored(pictures, shape, self.demonstrations, f"{camera}/{self.stride}/{self.inputs.fit}")

    def _resized(self, camera: str) -> Iterator[UInt8[np.ndarray, "3 S S"]]:
        """Pictures of all samples in order, one at a time: those of one episode may be a gigabyte as stored."""
        for episode in self.demonstrations.episodes:
            every = self.stride // episode.frame_stride
            for picture in episode.stream(camera, range(0, len(episode.frame_steps), every)):
                yield resize(picture[None], self.image_size, self.inputs.fit)[0].transpose(2, 0, 1)

    def squared(self, boxes: Float32[np.ndarray, "F 4"], episode: Episode) -> Float32[np.ndarray, "F 4"]:
        """Boxes of recorded pictures of the main camera as fractions of the samples' squares."""
        return in_square(boxes, *episode.picture_size(self.inputs.cameras[0]), self.inputs.fit)

    def _annotate(self, gaze: Annotator) -> None:
        """Take the boxes; `annotation` then identifies their source, None without boxes."""
        every = [self.squared(gaze(e), e)[:: self.stride // e.frame_stride] for e in self.demonstrations.episodes]
        self._gaze, self.annotation = torch.from_numpy(np.concatenate(every)), gaze.identity

    def _states(self, kind: Proprioception) -> Float[torch.Tensor, "N p"] | None:
        if not isinstance(kind, int) and kind not in get_args(StateChoice):
            raise unknown("proprioception", kind, get_args(StateChoice))
        if kind == "none":
            return None
        width = self.demonstrations.state_width
        if width != (kind if isinstance(kind, int) else None):
            has, wants = ("LIBERO's" if one is None else f"{one} numbers" for one in (width, kind))
            raise UserError(f"the robot's state in these demonstrations is {has}, not {wants}: take --proprio all")
        gripper = kind == "gripper"  # files may have the one without the other
        states = [e.fingers() if gripper else e.proprio() for e in self.demonstrations.episodes]
        if isinstance(kind, int) and self.inputs.standard is None:
            self.inputs = replace(self.inputs, standard=Standard.of(np.concatenate(states)))
        every = np.concatenate([state[:: self.stride] for state in states])
        return torch.from_numpy(proprio_view(every, kind, self.inputs.standard))


def batch_indices(seed: int, step: int, batch_size: int, n: int) -> Int64[np.ndarray, " b"]:
    """Which of `n` samples training step `step` sees: a pure function, so that a resumed run needs no saved state.

    Samples come in a fresh random order each epoch, none twice before all came once; a batch may span two epochs.

    Args:
        seed: of the stream of batches.
        step: training step, counted from 0.
        batch_size: b; may exceed `n`.
        n: number of samples, at least 1.
    """
    places = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs = places // n
    orders = {epoch: np.random.default_rng((seed, int(epoch))).permutation(n) for epoch in np.unique(epochs)}
    return np.array([orders[e][p] for e, p in zip(epochs, places % n, strict=True)], dtype=np.int64)


def spread_indices(length: int, count: int) -> Int64[np.ndarray, " m"]:
    """Up to `count` evenly spaced numbers below `length`."""
    return np.linspace(0, length - 1, min(count, length)).round().astype(np.int64)


def shifted(batch: Batch, pixels: int, generator: torch.Generator) -> Batch:
    """The batch with every picture moved by up to `pixels` along both axes, its edge repeated: DrQ (arXiv 2004.13649).

    What the hand must do depends on relative positions of objects, not on their place in the image; a few
    dozen demonstrations do not teach that. Both cameras of a sample move together, and so does the box of `gaze`;
    what of it leaves the picture is cut off, all of it in the worst case: a box without area at the edge.
    """
    b, _, height, width = batch.images.shape
    device = batch.images.device
    offsets = torch.randint(-pixels, pixels + 1, (2, b, 1), generator=generator).to(device)
    rows = (torch.arange(height, device=device) + offsets[0]).clamp(0, height - 1)[:, None, :, None]
    columns = (torch.arange(width, device=device) + offsets[1]).clamp(0, width - 1)[:, None, None, :]
    sample = torch.arange(b, device=device)[:, None, None, None]
    channel = torch.arange(3, device=device)[None, :, None, None]
    moved = (p if p is None else p[sample, channel, rows, columns] for p in (batch.images, batch.wrist))
    gaze = batch.gaze
    if gaze is not None:  # row r shows what row r + offset did, so things move against the offset
        moved_by = offsets.flip(0)[..., 0].T / torch.tensor([width, height], device=device)
        gaze = (gaze - moved_by.repeat(1, 2)).clamp(0, 1)
    return replace(batch, gaze=gaze, **dict(zip(("images", "wrist"), moved, strict=True)))


def greyed(batch: Batch) -> Batch:
    """The same batch with every picture grey: what a blind arm and the grey-image floor are shown."""
    wrist = None if batch.wrist is None else torch.full_like(batch.wrist, GREY)
    return replace(batch, images=torch.full_like(batch.images, GREY), wrist=wrist)


def pad_actions(
    actions: Float32[np.ndarray, "T a"], chunk: int, space: ActionSpace = LIBERO_ACTIONS
) -> Float32[np.ndarray, "T+c-1 a"]:
    """Actions followed by c - 1 of what a robot does that is finished: no motion, the gripper as it was."""
    rest = np.zeros((chunk - 1, len(space)), dtype=np.float32)
    rest[:, space.binary] = actions[-1, space.binary]
    return np.concatenate([actions, rest])


def resize(images: UInt8[np.ndarray, "F H W 3"], size: int, fit: Fit = "squeeze") -> UInt8[np.ndarray, "F S S 3"]:
    """Pictures at another size, antialiased (Lanczos); the same pictures if the size is right.

    Training and rollouts must use this same function. `fit` says what becomes of those that are not square.
    """
    rows, columns = images.shape[1:3]
    if fit == "pad" and rows != columns:
        missing = [max(rows, columns) - length for length in (rows, columns)]
        images = np.pad(images, ((0, 0), *((m // 2, m - m // 2) for m in missing), (0, 0)))
    if images.shape[1:3] == (size, size):
        return images
    return np.stack([np.asarray(Image.fromarray(i).resize((size, size), Image.Resampling.LANCZOS)) for i in images])


def proprio_view(
    proprio: Float32[np.ndarray, "... _"], kind: Proprioception, standard: Standard | None = None
) -> Float32[np.ndarray, "... p"]:
    """What the policy is shown of the robot's own state: ``gripper`` is the width between the fingers (m), p = 1.

    The fingers are the last two of what is known of it.
    """
    if standard is not None:
        return standard(proprio)
    if kind == "gripper":
        return proprio[..., -2:-1] - proprio[..., -1:]
    return proprio


def patch_coverage(masks: Bool[np.ndarray, "b H W"], grid: tuple[int, int]) -> Float32[np.ndarray, "b n"]:
    """Share of each patch that a mask covers; exact also where patches cut through pixels."""
    rows, columns = _overlap(grid[0], masks.shape[1]), _overlap(grid[1], masks.shape[2])
    covered = np.einsum("rh,bhw,cw->brc", rows, masks.astype(np.float32), columns, optimize=True)
    return covered.reshape(len(masks), -1).astype(np.float32)


def _overlap(cells: int, pixels: int) -> Float[np.ndarray, "cells pixels"]:
    """Share of each of `cells` equal intervals that is in each of `pixels` equal intervals; rows sum to 1."""
    edges, borders = np.arange(cells + 1) / cells * pixels, np.arange(pixels)
    low, high = edges[:-1, None], edges[1:, None]
    return np.clip(np.minimum(high, borders + 1) - np.maximum(low, borders), 0, None) / (pixels / cells)
