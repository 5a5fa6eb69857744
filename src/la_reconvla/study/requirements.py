"""What must be there before a study or a training begins: weights, room for the words, boxes, its own declaration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from la_reconvla.analysis.declaration import Declaration
from la_reconvla.backbones.paligemma import SmallPaliGemma
from la_reconvla.backbones.pretrained import Pretrained
from la_reconvla.conditions import Condition
from la_reconvla.data.boxes import annotator
from la_reconvla.errors import UserError
from la_reconvla.method.actions import ActionBins
from la_reconvla.method.policy import Policy
from la_reconvla.method.variants.autoregressive import DECODINGS
from la_reconvla.robot import LIBERO_ACTIONS, ActionSpace
from la_reconvla.study.begun import read_begun
from la_reconvla.study.presets import StudyConfig
from la_reconvla.training.devices import pick_device
from la_reconvla.training.start_weights import StartWeights, pinned
from la_reconvla.training.trial import dry_run


def require_beginning(path: Path, declared: Declaration) -> None:
    """Raise a `UserError` if this `study.json` is damaged, or a study that begins now has the rule of before."""
    if path.exists():
        read_begun(path)  # damage is named before anything is compared
    elif not declared.pooled:
        raise UserError(
            'the hypotheses must hold "interval": "pooled": files without it are for studies that began with them; add '
            "that line to the file of --hypotheses"
        )


def require_declared(begun: Mapping[str, Any], given: Declaration | None, path: Path) -> None:
    """Raise a `UserError` if the hypotheses are not those that the study began with."""
    declared = Declaration.parse(begun["hypotheses"], f"{path}, hypotheses")
    if declared.hash != begun["hypotheses_hash"]:
        raise UserError(
            f"{path}: the hypotheses were changed after the study began (their SHA-256 is no longer hypotheses_hash): "
            "restore them, or begin another study with --out"
        )
    if given is not None and given.hash != declared.hash:
        raise UserError(
            f"{path.parent} was begun with other hypotheses (SHA-256 {declared.hash[:12]}, now {given.hash[:12]}), and "
            "they may not change after that: leave --hypotheses out to keep those, which are in study.json, or "
            "begin another study with --out"
        )


def pinned_config(config: StudyConfig) -> StudyConfig:
    """The study with its backbone's weights named exactly; a missing licence or file shows now."""
    own = config.backbone
    if isinstance(own, Pretrained):
        return replace(config, backbone=own.pinned())
    return replace(config, backbone=pinned(own)) if isinstance(own, SmallPaliGemma) else config


def require_devices(names: Sequence[str]) -> None:
    """Raise a `UserError` if one of these devices is not there, or if arms on them would not be comparable."""
    found = [pick_device(name) for name in names]
    models = {torch.cuda.get_device_name(one) if one.type == "cuda" else one.type for one in found}
    if len(models) > 1:
        raise UserError(
            f"--devices {' '.join(names)} are of different kinds ({', '.join(sorted(models))}), whose numbers differ, "
            "and arms are compared in pairs: name devices of one kind"
        )


def require_room(config: StudyConfig, instructions: Iterable[str], space: ActionSpace = LIBERO_ACTIONS) -> None:
    """Raise a `UserError` if an instruction does not fit the context, while nothing is written yet.

    Also if the backbone cannot decode as it should.
    """
    bins, decoding = ActionBins((-1.0,) * len(space), (1.0,) * len(space), space=space), DECODINGS[config.decoding]
    backbone = decoding.given(config.backbone)
    if isinstance(backbone, Pretrained):
        built: Any = replace(backbone, dtype="fp32", quantize=None).skeleton(backbone.tokenizer())
    else:
        built = backbone.build()
        if (start := StartWeights.of(backbone)) is not None:
            start.load_into(built)
    action_head = decoding.action_head(built, bins, config.backbone.chunk)
    policy = Policy(built, bins, action_head=action_head).to(next(built.parameters()).device)
    dry_run(policy, backbone, instructions)


def require_heads(config: StudyConfig, arms: Iterable[Condition]) -> None:
    """Raise a `UserError` if boxes or a VAE that an arm needs are not there, while nothing is written yet.

    Also if actions are decoded in a way that an arm cannot have.
    """
    for arm in arms:
        if arm.budget is not None:
            arm.budget.require(config.decoding)
        if not arm.annotation_free:
            annotator(config.gaze)
        if arm.reconstruction is not None:
            size = config.backbone.image_size
            head = arm.reconstruction.reconstruction_head.build(
                4, config.backbone.grid, size // config.backbone.grid[0]
            )
            head.target(torch.zeros(1, 3, size, size, dtype=torch.uint8))
