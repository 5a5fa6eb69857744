"""Sliding windows count tokens: padding uses none of them up, and without padding they are the library's own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import tiny_models
from helpers import BINS, INSTRUCTIONS
from la_reconvla.backbones import causal, continuing, paligemma
from la_reconvla.backbones.windows import window_masks
from la_reconvla.contracts import PolicyInput
from la_reconvla.method.policy import Policy
from la_reconvla.method.variants.autoregressive import TokenHead
from la_reconvla.randomness import generator, seeded
from la_reconvla.training.acting import Actor
from tiny_models import Given, backbone

LONG = max(INSTRUCTIONS, key=len)
SHORT = min(INSTRUCTIONS, key=len)
WINDOWED = ("paligemma2", "llava_window", "qwen_window")


def qwen_window() -> Any:
    """Windows in the last two layers."""
    plain = tiny_models.qwen().config
    text = {**plain.text_config.to_dict(), "use_sliding_window": True, "sliding_window": 12, "max_window_layers": 2}
    text["layer_types"] = None
    config = type(plain)(**{**plain.to_dict(), "text_config": text})
    return tiny_models.Qwen2_5_VLForConditionalGeneration(config)


@pytest.fixture(scope="module", autouse=True)
def _windows_in_qwen():
    tiny_models.BUILDERS["qwen_window"] = qwen_window
    yield
    del tiny_models.BUILDERS["qwen_window"]


def policy_of(name: str, decoding: str) -> Policy:
    inner = backbone(name, Given(chunk=1 if decoding == "autoregressive" else 2))
    with seeded(0, "head"):
        policy = Policy(inner, BINS, action_head=TokenHead(inner, BINS, 2)) if decoding == "autoregressive" else None
        policy = (policy or Policy(inner, BINS)).eval()
    torch.nn.init.normal_(policy.action_head.norm.weight, generator=generator(0, "norm"))
    return policy


def pictures(b: int) -> torch.Tensor:
    draw = generator(0, "pictures")
    return torch.randint(0, 256, (1, 3, tiny_models.SIZE, tiny_models.SIZE), dtype=torch.uint8, generator=draw).repeat(
        b, 1, 1, 1
    )


def test_a_mask_is_what_it_says():
    """Counted token by token, for a whole sequence and for its last token."""
    draw = np.random.default_rng(0)
    for prefix, width in ((0, 3), (5, 3), (4, 1), (9, 2)):
        present = draw.random((4, 12)) < 0.6
        present[:, [0, -1]] = True
        config = SimpleNamespace(sliding_window=width, layer_types=["any"])
        masks: Any = window_masks(config, torch.from_numpy(present), 12, prefix)
        last: Any = window_masks(config, torch.from_numpy(present), 1)
        for b, query, key in np.ndindex(4, 12, 12):
            both = query < prefix and key < prefix
            full = present[b, key] and (key <= query or both)
            between = present[b, key + 1 : query + 1].sum()  # tokens, the query among them
            sliding = full and (both or between < width)
            if present[b, query]:
                assert masks["full_attention"][b, 0, query, key] == full
                assert masks["sliding_attention"][b, 0, query, key] == sliding
            if query == 11:
                assert last["full_attention"][b, 0, 0, key] == present[b, key]
                assert last["sliding_attention"][b, 0, 0, key] == (present[b, key] and between < width)


def test_there_is_none_where_no_window_bites():
    present = torch.ones(1, 12)
    for width in (None, 12, 4096):
        assert window_masks(SimpleNamespace(sliding_window=width), present, 12) is None
    assert isinstance(window_masks(SimpleNamespace(sliding_window=11), present, 12), torch.Tensor), "one mask for all"


@pytest.mark.parametrize("decoding", ["parallel", "autoregressive"])
@pytest.mark.parametrize("name", WINDOWED)
@torch.no_grad()
def test_an_instruction_acts_alone_as_beside_a_longer_one(name, decoding, monkeypatch):
    """And with the library's own masks it would not: the windows are short enough to see it."""
    policy = policy_of(name, decoding)
    alone, together = PolicyInput(pictures(1), [SHORT]), PolicyInput(pictures(2), [SHORT, LONG])
    following = None
    if isinstance(policy.action_head, TokenHead):
        following = torch.randn(2, 13, policy.backbone.width, generator=generator(0, "following"))

    def states() -> tuple[torch.Tensor, torch.Tensor]:
        one = policy.backbone(alone, following=None if following is None else following[:1])
        return one.action_states[0], policy.backbone(together, following=following).action_states[0]

    found = policy.act(alone)
    torch.testing.assert_close(policy.act(together)[:1], found, rtol=0, atol=1e-5)
    own = states()
    torch.testing.assert_close(own[1], own[0], rtol=1e-5, atol=1e-5)

    for module in (causal, continuing, paligemma):
        monkeypatch.setattr(module, "window_masks", lambda *_: None)
    library = states()
    torch.testing.assert_close(own[0], library[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found, policy.act(alone), rtol=0, atol=1e-5)
    assert (library[1] - library[0]).abs().max() > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("decoding", ["parallel", "autoregressive"])
@pytest.mark.parametrize("name", WINDOWED)
@torch.no_grad()
def test_the_fast_path_does_too(name, decoding):
    policy = policy_of(name, decoding)
    actor = Actor(policy)
    expected = policy.act(PolicyInput(pictures(1), [SHORT]))
    for _ in range(2):
        for said in ([SHORT], [SHORT, LONG]):
            found = actor(PolicyInput(pictures(len(said)), said))
            torch.testing.assert_close(found[:1], expected, rtol=0, atol=1e-5)
    assert actor.records() == (0 if name == "qwen_window" else 2)
