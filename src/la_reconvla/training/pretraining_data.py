"""What pretraining learns from: rendered scenes with captions, and demonstrations of tasks that no study tests."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from la_reconvla.backbones.paligemma import PaliGemmaBackbone, SmallPaliGemma, whiten_patches
from la_reconvla.data.demonstrations import same_kind
from la_reconvla.data.hdf5 import open_demonstrations
from la_reconvla.data.relabel import Relabeller
from la_reconvla.data.samples import Samples, spread_indices
from la_reconvla.data.scenes import Scenes
from la_reconvla.errors import UserError
from la_reconvla.sim.tasks import load_task, positions_in

STUDIED = (  # tasks that studies test, so that nothing is to be learnt of them before
    *(f"libero_spatial/{task}" for task in (0, 1, 2)),
    *(f"libero_object/{task}" for task in (7, 8, 9)),
    *(f"libero_goal/{task}" for task in (6, 8)),
)
HELD_OUT = 0.04  # share of each task's scenes; the curve of the action loss needs few
WHITENED = 512  # scenes that the patch embedding starts from


def pictures(images: UInt8[np.ndarray, "b H W 3"]) -> UInt8[Tensor, "b 3 H W"]:
    """Pictures of scenes as backbones take them."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def whiten(backbone: PaliGemmaBackbone, scenes: Scenes) -> None:
    """Fit a random patch embedding to some of these scenes, see `whiten_patches`; other stems stay as they are."""
    if backbone.whitens:
        whiten_patches(backbone, pictures(scenes.images[spread_indices(len(scenes), WHITENED)]))


def base_samples(
    folders: Sequence[Path], backbone: SmallPaliGemma, without: Collection[str] = ()
) -> tuple[Samples, Samples]:
    """Training and held-out samples of the demonstrations in all `folders`.

    Args:
        folders: what the command data collect wrote.
        backbone: what they are for.
        without: instructions whose episodes are left out. A wide scene is shown with two targets, and the second may be
            what a held-out task asks for.

    Raises:
        UserError: as `open_demonstrations`, if the folders differ in how their pictures were made, or nothing is left.
    """
    episodes = [episode for folder in folders for episode in open_demonstrations(folder).episodes]
    kept = [episode for episode in episodes if episode.instruction not in without]
    if not kept:
        raise UserError("all demonstrations are of held-out instructions: collect other tasks, or hold out less")
    training, held_out = same_kind(kept, "the demonstrations").divide(HELD_OUT)
    size, chunk = backbone.image_size, backbone.chunk
    return Samples(training, size, chunk, wrist=backbone.wrist), Samples(held_out, size, chunk, wrist=backbone.wrist)


def relabeller_of(samples: Samples) -> Relabeller:
    """Of the scenes that the demonstrations begin with; their numbers are those of the episodes."""
    episodes = samples.demonstrations.episodes
    places = [
        positions_in(e.suite, e.task, e.first_state()) if e.suite and e.task is not None else {} for e in episodes
    ]
    instances = tuple(sorted({name for scene in places for name in scene}))
    nowhere = np.full(2, np.nan, np.float32)
    positions = np.array([[scene.get(name, nowhere) for name in instances] for scene in places], np.float32)
    positions = positions.reshape(len(episodes), len(instances), 2)
    return Relabeller(instances, positions, [e.target or "" for e in episodes], [e.destination or "" for e in episodes])


def instructions_of(tasks: Sequence[str]) -> frozenset[str]:
    """LIBERO's instruction of each task; tasks are named ``suite/task``.

    Raises:
        UserError: for a name of another form, or an unknown suite or task.
    """
    result = set()
    for name in tasks:
        suite, _, task = name.partition("/")
        if not task.isdecimal():
            raise UserError(f"'{name}' names no task: write suite/task, for example {STUDIED[0]}")
        result.add(load_task(suite, int(task)).instruction)
    return frozenset(result)
