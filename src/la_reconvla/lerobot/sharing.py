"""A run of ours as a policy of LeRobot's, and the other way round: files only, LeRobot is not needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn

from la_reconvla.backbones.pretrained import Pretrained
from la_reconvla.errors import UserError
from la_reconvla.kinds import to_json
from la_reconvla.lerobot.description import features_of
from la_reconvla.method.policy import Policy
from la_reconvla.serving.lerobot_folder import (
    CONFIG,
    OURS,
    POSTPROCESSOR,
    PREPROCESSOR,
    RENAMES,
    WEIGHTS,
    LeRobotFolder,
)
from la_reconvla.storage import atomic_write, write_content
from la_reconvla.training.checkpoint import PolicyConfig, kept, load_policy
from la_reconvla.training.tensors import load_tensors, save_tensors

IDENTITY = dict.fromkeys(("VISUAL", "STATE", "ACTION"), "IDENTITY")
DEVICE = {"registry_name": "device_processor", "config": {"device": "cpu", "float_dtype": None}}


class Held(nn.Module):
    """The tensors of LeRobot's ``LaReconVLAPolicy``, under its names.

    Args:
        policy: the policy.
        step: optimizer steps that it was trained for.
    """

    step: torch.Tensor

    def __init__(self, policy: Policy, step: int = 0):
        super().__init__()
        self.policy = policy
        self.register_buffer("step", torch.tensor(step))


def to_lerobot(run: Path, out: Path) -> Path:
    """Write a finished run as LeRobot saves a policy: it loads with ``from_pretrained(strict=True)`` and acts alike.

    Raises:
        UserError: the run is not finished, its weights are in 4 bits, or `out` holds a policy already.
    """
    if (out / CONFIG).exists():
        raise UserError(f"{out} holds a policy already: choose another folder, or delete that one")
    policy, config = load_policy(run)
    if isinstance(config.backbone, Pretrained) and config.backbone.quantize:
        raise UserError(f"{run} has weights in 4 bits, which LeRobot does not load: `share folder --merged` first")
    _, metadata = load_tensors(run / WEIGHTS)
    with atomic_write(out / WEIGHTS) as temporary:
        save_model(Held(policy, int(metadata.get("steps", 0))), str(temporary))
    before, after = processors(config)
    for name, content in ((PREPROCESSOR, before), (POSTPROCESSOR, after), (CONFIG, configuration(config))):
        write_content(out / name, json.dumps(content, indent=4))
    return out


def from_lerobot(folder: Path, out: Path) -> Path:
    """Write a policy that LeRobot trained, one of ours, as a run: for ``eval``, ``look``, ``serve``.

    Raises:
        UserError: it is a policy of another type, holds adapters, or is damaged; `out` holds something else.
    """
    found = LeRobotFolder.read(folder)
    if (config := found.policy) is None:
        raise UserError(
            f"{folder} is a policy of type '{found.type}', which no run can hold: `eval lerobot:` rolls it out"
        )
    if found.base() is not None:
        raise UserError(f"{folder} holds adapters: merge them in LeRobot (merge_and_unload), save that, and take it")
    held = Held(config.build())
    try:
        load_model(held, str(folder / WEIGHTS), strict=True)
    except (RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder / WEIGHTS} does not fit {CONFIG}: {str(error)[:500]}") from error
    config.save(out)
    save_tensors(out / WEIGHTS, kept(held.policy), steps=int(held.step))
    return out


def configuration(policy: PolicyConfig) -> dict[str, Any]:
    """LeRobot's ``config.json`` of a policy."""
    inputs, outputs = features_of(policy)
    unset = ("repo_id", "private", "tags", "license", "pretrained_path", "pretrained_revision")
    return {
        "type": OURS,
        "n_obs_steps": 1,
        "input_features": inputs,
        "output_features": outputs,
        "device": "cpu",
        "use_amp": False,
        "use_peft": False,
        "push_to_hub": False,
        **dict.fromkeys(unset),
        "condition": policy.condition,
        "preset": "paper" if isinstance(policy.backbone, Pretrained) else "small",  # of a schedule, should it train on
        "changes": {},
        "seed": policy.seed,
        "orientation": policy.inputs.orientation,
        "n_action_steps": None,
        "description": to_json(policy),
        "normalization_mapping": IDENTITY,
    }


def processors(policy: PolicyConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """LeRobot's usual pipelines before and after a policy, as it saves them; nothing is normalised in them."""
    inputs, outputs = features_of(policy)
    numbers = {"eps": 1e-8, "norm_map": IDENTITY}
    before = [
        {"registry_name": RENAMES, "config": {"rename_map": {}}},
        {"registry_name": "to_batch_processor", "config": {}},
        DEVICE,
        {"registry_name": "normalizer_processor", "config": {**numbers, "features": {**inputs, **outputs}}},
    ]
    after = [{"registry_name": "unnormalizer_processor", "config": {**numbers, "features": outputs}}, DEVICE]
    names = (Path(name).stem for name in (PREPROCESSOR, POSTPROCESSOR))
    first, last = ({"name": name, "steps": steps} for name, steps in zip(names, (before, after), strict=True))
    return first, last
