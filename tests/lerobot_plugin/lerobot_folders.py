"""Folders as LeRobot writes them: ours, made without LeRobot; a data set and an ACT, made by it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from helpers import HEAD, TINY, untrained
from la_reconvla.conditions import C4
from la_reconvla.lerobot.sharing import to_lerobot
from la_reconvla.training.checkpoint import WEIGHTS, PolicyConfig, kept
from la_reconvla.training.tensors import save_tensors

WORDS = ("pick up the black bowl", "open the drawer")
SIZE, EPISODES, STEPS = 48, 4, 12


def make_run(folder: Path, backbone: Any = TINY, **fields: Any) -> PolicyConfig:
    """A finished run of C4 with random weights."""
    arm = C4.with_reconstruction_head(HEAD)
    config = untrained(arm, backbone, **{"seed": 3, **fields})
    config.save(folder)
    save_tensors(folder / WEIGHTS, kept(config.build()), steps=7)
    return config


def make_folder(path: Path, backbone: Any = TINY, **fields: Any) -> Path:
    """The same as a policy of LeRobot's."""
    make_run(path.with_name(f"{path.name}-run"), backbone, **fields)
    return to_lerobot(path.with_name(f"{path.name}-run"), path)


def change(path: Path, **fields: Any) -> None:
    """Other values in a JSON file; None takes one out."""
    content = {**json.loads(path.read_text(encoding="utf-8")), **fields}
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}), encoding="utf-8")


def written(root: Path, cameras: tuple[str, ...] = ("images.image", "images.image2")) -> Path:
    """By LeRobot; the first episode's actions are ten times as large as the others'."""
    from lerobot.datasets import LeRobotDataset

    picture = {"dtype": "image", "shape": (SIZE, SIZE, 3), "names": ["height", "width", "channel"]}
    features = {f"observation.{name}": picture for name in cameras}
    features["observation.state"] = {"dtype": "float32", "shape": (8,), "names": [f"s{n}" for n in range(8)]}
    features["action"] = {"dtype": "float32", "shape": (7,), "names": [f"a{n}" for n in range(7)]}
    made = LeRobotDataset.create("local/set", fps=20, features=features, root=root, use_videos=False)
    rng = np.random.default_rng(0)
    for episode in range(EPISODES):
        for _ in range(STEPS):
            shown = {key: rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8) for key in list(features)[:2]}
            action = rng.uniform(-1, 1, 7) * (1.0 if episode == 0 else 0.1)
            numbers = {"observation.state": rng.normal(size=8), "action": action}
            row = {**shown, **{k: v.astype(np.float32) for k, v in numbers.items()}, "task": WORDS[episode % 2]}
            made.add_frame(row)
        made.save_episode()
    made.finalize()
    return root


def act_folder(path: Path, **fields: Any) -> Path:
    """A random ACT of a few thousand weights that takes what LIBERO shows."""
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.policies.act.configuration_act import ACTConfig
    from lerobot.policies.act.modeling_act import ACTPolicy
    from lerobot.policies.factory import make_pre_post_processors

    torch.manual_seed(0)
    inputs = {
        f"observation.images.{name}": PolicyFeature(FeatureType.VISUAL, (3, 64, 64)) for name in ("image", "image2")
    }
    inputs["observation.state"] = PolicyFeature(FeatureType.STATE, (8,))
    outputs = {"action": PolicyFeature(FeatureType.ACTION, (7,))}
    small = {"dim_model": 32, "n_heads": 2, "dim_feedforward": 32, "n_encoder_layers": 1, "n_vae_encoder_layers": 1}
    given = {"chunk_size": 6, "n_action_steps": 4, "latent_dim": 4, "pretrained_backbone_weights": None, **fields}
    config = ACTConfig(
        input_features=inputs, output_features=outputs, device="cpu", push_to_hub=False, **small, **given
    )
    policy = ACTPolicy(config)
    shapes = {k: (3, 1, 1) if "images" in k else v.shape for k, v in {**inputs, **outputs}.items()}
    stats = {k: {"mean": torch.full(s, 0.1), "std": torch.full(s, 0.3)} for k, s in shapes.items()}
    for part in (policy, *make_pre_post_processors(config, dataset_stats=stats)):
        part.save_pretrained(path)
    return path
