"""A trained policy as a folder for others."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from la_reconvla.backbones.paligemma import SmallPaliGemma
from la_reconvla.backbones.pretrained import Freeze, Pretrained
from la_reconvla.errors import UserError
from la_reconvla.training.checkpoint import MERGED_BACKBONE, WEIGHTS, PolicyConfig, kept, restore
from la_reconvla.training.run_folders import public_name
from la_reconvla.training.tensors import load_tensors, save_tensors


def export_policy(run: Path, out: Path, merged: bool) -> PolicyConfig:
    """Copy what makes the policy: configuration and weights, with the backbone's on request.

    Args:
        run: folder of a finished run.
        out: folder to write to.
        merged: add adapters to the backbone's weights and write them too, as the library does; the folder then loads
            without the source.

    Raises:
        UserError: if the run is not finished, or `out` holds something else.
    """
    config = _without_paths(PolicyConfig.load(run))
    tensors, metadata = load_tensors(run / WEIGHTS)
    if not merged:
        config.save(out)
        save_tensors(out / WEIGHTS, tensors, **metadata)
        return config
    if not isinstance(config.backbone, Pretrained):
        raise UserError(f"{run} has no pretrained backbone, all its weights are in it: leave --merged out")
    policy = dataclasses.replace(config, backbone=dataclasses.replace(config.backbone, quantize=None)).build()
    restore(policy, tensors, run / WEIGHTS)
    backbone: Any = policy.backbone
    backbone.merge()
    backbone.save(out / MERGED_BACKBONE)
    merged_backbone = dataclasses.replace(
        config.backbone,
        source=str(out / MERGED_BACKBONE),
        revision=None,
        freeze=Freeze(last=0),
        lora=None,
        quantize=None,
    ).pinned()
    config = dataclasses.replace(config, backbone=dataclasses.replace(merged_backbone, source=MERGED_BACKBONE))
    config.save(out)
    beside = {name: tensor for name, tensor in kept(policy).items() if not name.startswith("backbone.inner.model.")}
    save_tensors(out / WEIGHTS, beside, **metadata)
    return config


def _without_paths(config: PolicyConfig) -> PolicyConfig:
    """The same, without the way to what its training began with on this machine; hashes still say what that was."""
    if config.origin is not None:
        origin = dataclasses.replace(config.origin, run=public_name(config.origin.run))
        config = dataclasses.replace(config, origin=origin)
    if isinstance(config.backbone, SmallPaliGemma) and config.backbone.weights is not None:
        backbone = dataclasses.replace(config.backbone, weights=public_name(config.backbone.weights))
        config = dataclasses.replace(config, backbone=backbone)
    return config
