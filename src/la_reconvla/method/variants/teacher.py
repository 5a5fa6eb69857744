"""Saliency of a teacher, the moving average of the backbone's weights; and the teacher itself."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from la_reconvla.contracts import AttentionRows, Features
from la_reconvla.method.saliency import MEAN, SaliencySource
from la_reconvla.method.variants.learned import LearnedSource


@dataclass(frozen=True)
class EMATeacher(LearnedSource):
    """`source` read from a moving average of the backbone's weights instead of the weights that train.

    ``teacher = decay * teacher + (1 - decay) * backbone`` after each step (mean teacher, Tarvainen and Valpola, arXiv
    1703.01780), as masks follow a teacher's attention in AttMask (Kakogeorgiou et al., arXiv 2203.12719). The mask
    then does not chase its own last step. The teacher exists in training alone; a trained policy's map of this source
    is `source` on its own weights, and that is what is measured.

    Attributes:
        decay: 0.99 averages over the last hundred steps; the papers' 0.996 and more suit longer trainings than ours.
        source: what is read from the teacher.
    """

    decay: float = 0.99  # pyright: ignore[reportIncompatibleVariableOverride]
    source: SaliencySource = MEAN
    label = "teacher"

    def __post_init__(self):
        if not 0.0 <= self.decay < 1.0:
            raise ValueError(f"decay must be at least 0 and below 1, got {self.decay}")
        if self._learned is not None and self._learned.decay is not None:
            raise ValueError("a teacher has no teacher of its own")

    @property
    def _learned(self) -> LearnedSource | None:
        return self.source if isinstance(self.source, LearnedSource) else None

    @property
    def attention_rows(self) -> AttentionRows:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As `source`."""
        return self.source.attention_rows

    @property
    def state_shape(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As `source`."""
        return () if self._learned is None else self._learned.state_shape

    @property
    def refresh(self) -> int | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As `source`."""
        return None if self._learned is None else self._learned.refresh

    @property
    def frames(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As `source`."""
        return 0 if self._learned is None else self._learned.frames

    def require(self, instructions: Iterable[str]) -> None:
        """As `source`."""
        self.source.require(instructions)

    def fit(self, batches: Iterable[Features]) -> Tensor | None:
        """As `source`."""
        return None if self._learned is None else self._learned.fit(batches)

    def __call__(self, features: Features) -> Float[Tensor, "b n"]:
        """`source` of `features`, which the caller has from the teacher."""
        return self.source(features)


def teacher_of(backbone: torch.nn.Module) -> torch.nn.Module:
    """A copy that no gradient reaches. What does not train in the backbone is shared, not copied: it never differs."""
    shared = {id(p): p for p in backbone.parameters() if not p.requires_grad}
    return copy.deepcopy(backbone, shared).requires_grad_(False).eval()


def averaged(teacher: torch.nn.Module, backbone: torch.nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """The parameters of which the teacher has its own: its own and the backbone's."""
    theirs = dict(backbone.named_parameters())
    return {name: (mine, theirs[name]) for name, mine in teacher.named_parameters() if mine is not theirs[name]}


def follow(teacher: torch.nn.Module, backbone: torch.nn.Module, decay: float) -> None:
    """One step of the moving average, in place."""
    with torch.no_grad():
        for mine, theirs in averaged(teacher, backbone).values():
            mine.lerp_(theirs, 1.0 - decay)


POWER, MOST = 0.75, 0.9999


def averaged_decay(step: int) -> float:
    """The decay d after optimizer step `step`, counted from 0, of the average that acts, as Diffusion Policy keeps one
    (arXiv 2303.04137)::

        average = d average + (1 - d) weights    after each step; d = 1 - (1 + step)^-0.75, at most 0.9999

    It grows with the steps, so that the average forgets the first weights (after the first step it is the weights) and,
    later on, smooths the noise of the gradient.
    """
    return min(1.0 - (1.0 + step) ** -POWER, MOST)
