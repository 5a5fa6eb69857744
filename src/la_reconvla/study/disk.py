"""What a study takes of a disk, and what it downloads, from its configuration alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from la_reconvla.backbones.hub import hub_files
from la_reconvla.backbones.pretrained import Pretrained
from la_reconvla.backbones.trained_weights import Freeze, Lora
from la_reconvla.storage import read_json
from la_reconvla.study.cells import cells
from la_reconvla.study.evaluate import TRACKS_BYTES
from la_reconvla.study.plan import Plan
from la_reconvla.study.presets import StudyConfig, preset
from la_reconvla.study.shareable import size_text

# Measured on 1500 demonstrations of LIBERO-Spatial, -Goal and -Object (docs/results/plan.md).
STEPS = 90  # of a demonstration
EPISODE = 100_000  # bytes of an episode: the description of its scene
STEP = 1_050  # bytes of a control step: states and actions
PIXEL = 1.5  # bytes of a pixel of a colour picture after compression, of 3; 1.3 at 224 pixels a side
MAP_PIXEL = 0.05  # the same of an instance map
FRAME = 10_200  # bytes that a held-out frame leaves in held_out.json
CELL = 100_000  # videos, curves and looks of a policy
TRACK = 32_000  # of an episode that can be drawn again, 220 control steps of LIBERO-Spatial
PAGES = 1_200_000  # an arm's share of the report, its pictures, results.json
PUBLISHED = {"google/paligemma-3b-pt-224": 4, "google/paligemma2-3b-pt-224": 2}
"""Bytes of a number in the files on the hub, where config.json is not asked: float32 and bfloat16. Of others it is."""


@dataclass(frozen=True)
class Disk:
    """Bytes of a study.

    Attributes:
        demonstrations: files of the demonstrations; twice as many while they are collected, in shards and merged.
        pictures: of the training samples at the policy's size; in memory where they fit, else on the disk.
        weights: of all policies.
        state: what one policy keeps while it trains: weights and two moments, the next beside the last.
        records: of held-out frames and episodes, the report.
        tracks: of episodes, to draw them again.
    """

    demonstrations: float
    pictures: float
    weights: float
    state: float
    records: float
    tracks: float

    @property
    def finished(self) -> float:
        """What stays in its folder."""
        return self.demonstrations + self.weights + self.records + self.tracks


def disk(config: StudyConfig, weights: float) -> Disk:
    """What a study takes.

    With T tasks of D demonstrations and E episodes, s the frame stride, S a picture's side, k cameras, A arms and P
    policies::

        demonstrations = T D (EPISODE + STEPS (STEP + S² (k PIXEL + MAP_PIXEL) / s))
        pictures       = T D STEPS / s (1 - held out) 3 k S²
        weights        = P w
        state          = 2 · 3 w
        records        = P (FRAME · frames + CELL) + A PAGES
        tracks         = A seeds min(T E TRACK, TRACKS_BYTES)

    Args:
        config: the study.
        weights: w, bytes of what one policy saves: 4 for each number that trains.
    """
    episodes, pixels = len(config.tasks) * config.demos, config.backbone.image_size**2
    cameras, frames = 1 + config.backbone.wrist, STEPS / config.frame_stride
    policies = len(cells(config, Path()))
    return Disk(
        demonstrations=episodes * (EPISODE + STEPS * STEP + frames * pixels * (cameras * PIXEL + MAP_PIXEL)),
        pictures=episodes * frames * (1 - config.held_out) * 3 * cameras * pixels,
        weights=policies * weights,
        state=2 * 3 * weights,
        records=policies * (FRAME * config.frames + CELL) + len(config.conditions) * PAGES,
        tracks=len(config.conditions)
        * len(config.seeds)
        * min(len(config.tasks) * config.episodes * TRACK, TRACKS_BYTES),
    )


def download(backbone: Pretrained) -> float:
    """About the bytes of a backbone's files on the hub: its parameters, as they are published; 0 for a folder here."""
    if Path(backbone.source).is_dir():
        return 0.0
    bare = replace(backbone, freeze=Freeze(), lora=Lora(), quantize=None).skeleton()
    parameters = sum(p.numel() for p in bare.parameters() if not p.requires_grad)
    size = PUBLISHED.get(backbone.source) or _named_bytes(backbone)
    return float(parameters * size)


def _named_bytes(backbone: Pretrained) -> int:
    """Bytes of a number by ``config.json``, read again: the library writes into one that it has built from."""
    raw = read_json(hub_files(backbone.source, backbone.revision, ("config.json",)) / "config.json")
    named = getattr(torch, str(raw.get("dtype") or raw.get("torch_dtype")), None)
    return named.itemsize if isinstance(named, torch.dtype) else 4


def space(planned: Plan) -> str:
    """Disk and downloads of the preset `paper` whose policies are like the planned one, in sentences."""
    backbone = planned.step.backbone
    config = replace(preset("paper"), backbone=backbone)
    needs, one = disk(config, 4.0 * planned.trainable), len(cells(config, Path()))
    sizes = {part: size_text(value) for part, value in vars(needs).items()}
    fetched = download(backbone)
    kept = f"{sizes['weights']} of weights ({one} policies), {sizes['records']} of records and pictures, "
    kept += f"{sizes['tracks']} of episodes that can be drawn again"
    fetch = f"about {size_text(fetched)} once, the weights of {backbone.source}, to the hub's cache (HF_HOME)"
    return (
        f"its disk: about {sizes['demonstrations']} of demonstrations (twice that while they are collected), {kept}; "
        f"{size_text(needs.finished)} when it is finished, and {sizes['state']} for the policy that trains. Pictures "
        f"of the training samples, {sizes['pictures']}, are in memory, or on the disk where they do not fit there\n"
        f"it downloads {fetch if fetched else f'nothing: the weights are in {backbone.source}'}"
    )
