"""Small things that several tests build on."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from la_reconvla.backbones.paligemma import SmallPaliGemma
from la_reconvla.conditions import Condition
from la_reconvla.contracts import Batch
from la_reconvla.method.actions import ActionBins
from la_reconvla.method.decoder import MAEDecoder
from la_reconvla.method.policy import Policy
from la_reconvla.method.variants.autoregressive import DECODINGS, DecodingName
from la_reconvla.randomness import seeded
from la_reconvla.training.checkpoint import PolicyConfig

TINY = SmallPaliGemma(
    image_size=32, patch=8, width=32, vision_layers=1, language_layers=3, attention_heads=4, kv_heads=2, chunk=2
)
HEAD = MAEDecoder(depth=1, width=32, attention_heads=2)
BINS = ActionBins((-1.0,) * 7, (1.0,) * 7)
INSTRUCTIONS = ["pick up the black bowl next to the plate", "open the drawer", "put the cheese on the stove top now"]


def untrained(arm: Condition, backbone: Any = TINY, **fields: Any) -> PolicyConfig:
    """The configuration of a policy that has seen no data."""
    made = {"seed": 0, "bins": BINS, "quality": "fast", "image_size": backbone.image_size, "data_hash": ""}
    return PolicyConfig.of(arm, backbone=backbone, **({"train_starts": ()} | made | fields))


def tiny_policy(
    head: MAEDecoder | None = HEAD,
    backbone: SmallPaliGemma = TINY,
    seed: int = 0,
    decoding: DecodingName = "parallel",
) -> Policy:
    """A policy of a few thousand weights, real transformers classes inside."""
    chosen = DECODINGS[decoding]
    with seeded(seed, "weights"):
        inner = chosen.given(backbone).build()
        policy = Policy(inner, BINS, action_head=chosen.action_head(inner, BINS, backbone.chunk))
    if head is not None:
        with seeded(seed, "decoder"):
            policy.reconstruction_head = head.build(
                policy.backbone.width, policy.backbone.grid, policy.backbone.patch_size
            )
    return policy.eval()


def random_batch(b: int = 3, backbone: SmallPaliGemma = TINY, seed: int = 0) -> Batch:
    """Random images and actions with instructions of different lengths."""
    draw = torch.Generator().manual_seed(seed)
    size = backbone.image_size
    return Batch(
        images=torch.randint(0, 256, (b, 3, size, size), dtype=torch.uint8, generator=draw),
        instructions=[INSTRUCTIONS[i % len(INSTRUCTIONS)] for i in range(b)],
        actions=torch.rand(b, backbone.chunk, 7, generator=draw) * 2 - 1,
        valid=torch.ones(b, backbone.chunk, dtype=torch.bool),
    )


def record_logits(policy: Policy) -> dict[int, torch.Tensor]:
    """Attention logits of each layer [b h t s], with their gradient, of what `policy` computes from now on."""
    logits: dict[int, torch.Tensor] = {}

    def recorded(module, query, key, value, attention_mask, scaling=None, **kwargs):
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        scores = query @ key.transpose(-1, -2) * scaling
        scores.retain_grad()
        logits[module.layer_idx] = scores
        weights = scores.masked_fill(~attention_mask, -torch.inf).softmax(-1)
        return (weights @ value).transpose(1, 2).contiguous(), None

    AttentionInterface.register("recorded", recorded)
    AttentionMaskInterface.register("recorded", sdpa_mask)
    policy.backbone.model.language_model.set_attn_implementation("recorded")
    return logits


def dense_targets(bins: ActionBins, actions: torch.Tensor) -> torch.Tensor:
    """The label of each action over all bins, in float64 numpy: softmax of a Gaussian, one-hot for the gripper."""
    low, high = np.array(bins.low), np.array(bins.high)
    place = ((actions.double().numpy() - low) / (high - low) * bins.count - 0.5).clip(0, bins.count - 1)
    place[..., -1] = np.where(actions[..., -1] > 0, bins.count - 1, 0)
    away = np.arange(bins.count) - place[..., None]
    hard = np.arange(bins.count) == np.round(place)[..., None]
    if bins.spread == 0:
        return torch.from_numpy(hard).float()
    soft = np.exp(-0.5 * (away / bins.spread) ** 2)
    soft /= soft.sum(-1, keepdims=True)
    soft[..., -1, :] = hard[..., -1, :]
    return torch.from_numpy(soft).float()
