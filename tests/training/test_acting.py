"""The fast path acts as the slow one does, on pictures that it was not recorded with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from test_pretrained import save_tiny

import la_reconvla.training.acting as acting
from helpers import BINS, INSTRUCTIONS, TINY, random_batch, tiny_policy, untrained
from la_reconvla.backbones.pretrained import Pretrained
from la_reconvla.conditions import C1
from la_reconvla.contracts import Observation, PolicyInput
from la_reconvla.errors import UserError
from la_reconvla.method.policy import Policy
from la_reconvla.method.variants.autoregressive import TokenHead
from la_reconvla.randomness import generator, seeded
from la_reconvla.robot import proprio_width
from la_reconvla.training.acting import Actor, graph_of, recorded
from la_reconvla.training.trained_policy import Trained, TrainedPolicy
from tiny_models import BUILDERS, Given, backbone


def inputs(b: int, config: Any = TINY, seed: int = 0) -> tuple:
    """What a policy is given; the instructions differ in length."""
    batch = random_batch(b, seed=seed)
    width = proprio_width(config.proprio)
    wrist = random_batch(b, seed=seed + 100).images if config.wrist else None
    proprio = torch.rand(b, width, generator=generator(seed, "state")) if width else None
    return batch.images, batch.instructions, wrist, proprio


def agrees(policy: Policy, b: int, config: Any = TINY) -> Actor:
    actor = Actor(policy)
    for seed in range(3):
        given = inputs(b, config, seed)
        torch.testing.assert_close(actor(PolicyInput(*given)), policy.act(PolicyInput(*given)), rtol=0, atol=1e-4)
    return actor


@pytest.mark.slow
@pytest.mark.parametrize("decoding", ["parallel", "autoregressive"])
@pytest.mark.parametrize(("wrist", "proprio", "b"), [(False, "none", 3), (False, "gripper", 1), (True, "all", 2)])
def test_it_acts_alike(decoding, wrist, proprio, b):
    config = replace(TINY, wrist=wrist, proprio=proprio)
    policy = tiny_policy(None, config, decoding=decoding)
    torch.nn.init.normal_(policy.action_head.norm.weight)
    assert agrees(policy, b, config).records() == 1


@pytest.mark.slow
@pytest.mark.parametrize("decision", ["expectation", "argmax"])
def test_either_decision(decision):
    policy = tiny_policy(None)
    policy.bins = replace(BINS, decision=decision)
    assert agrees(policy, 2).records() == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", list(BUILDERS))
def test_all_families_act_alike(name):
    with seeded(0, "head"):
        policy = Policy(backbone(name, Given()), BINS).eval()
    agrees(policy, 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["paligemma", "paligemma2", "smolvlm", "llava", "llava_window", "qwen"])
def test_all_families_decode_alike(name):
    """What asks a tensor while it is recorded is left to the slow path."""
    inner = backbone(name, Given(chunk=1))
    with seeded(0, "head"):
        policy = Policy(inner, BINS, action_head=TokenHead(inner, BINS, 2)).eval()
    torch.nn.init.normal_(policy.action_head.norm.weight, generator=generator(0, "norm"))
    assert agrees(policy, 2).records() == (name in ("paligemma", "paligemma2", "llava_window"))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_pretrained_weights(dtype, tmp_path):
    with seeded(0, "weights"):
        policy = Policy(Pretrained(str(save_tiny(tmp_path / "m")), chunk=2, dtype=dtype).build(), BINS).eval()
    agrees(policy, 2)


@pytest.mark.slow
def test_no_mask_is_made_and_nothing_is_encoded_again(monkeypatch):
    policy = tiny_policy()
    actor, given = Actor(policy), inputs(1)
    expected = actor(PolicyInput(*given))
    for name in ("encode", "images", "forward"):
        monkeypatch.setattr(type(policy.backbone), name, lambda *_, **__: pytest.fail("the slow path was called"))
    torch.testing.assert_close(actor(PolicyInput(*given)), expected)


def test_what_cannot_be_recorded_or_comes_out_wrong_is_left_to_the_slow_path(monkeypatch):
    policy = tiny_policy(None)
    monkeypatch.setattr(acting, "recorded", lambda *_: lambda *given: torch.zeros(1, 2, 7))
    assert agrees(policy, 1).records() == 0

    def refuse(*_):
        raise RuntimeError("no such operation")

    monkeypatch.setattr(acting, "recorded", refuse)
    assert agrees(policy, 1).records() == 0


@pytest.mark.slow
def test_other_instructions_and_shapes_are_recorded_for_themselves(monkeypatch):
    policy = tiny_policy(None)
    actor = Actor(policy)
    images = random_batch(1).images
    for told in INSTRUCTIONS:
        for _ in range(2):
            torch.testing.assert_close(
                actor(PolicyInput(images, [told])), policy.act(PolicyInput(images, [told])), rtol=0, atol=1e-4
            )
    assert actor.records() == 3
    with pytest.raises(UserError, match="must be uint8"):
        actor(PolicyInput(images[..., :16], INSTRUCTIONS[:1]))
    with pytest.raises(UserError, match="wrist"):
        actor(PolicyInput(images, INSTRUCTIONS[:1], images))
    monkeypatch.setattr(acting, "KEPT", 2)
    actor(PolicyInput(images, ["pick up another bowl"]))
    actor(PolicyInput(images, ["pick up another bowl"]))
    assert actor.records() == 2


@pytest.mark.slow
@pytest.mark.parametrize(("decoding", "slow"), [("parallel", 21), ("autoregressive", 3)])
def test_patience_counts_passes_of_the_language_model(decoding, slow):
    actor = Actor(tiny_policy(None, decoding=decoding), patience=20)
    for call in range(1, slow + 1):
        actor(PolicyInput(*inputs(1)))
        assert actor.records() == (call == slow)


def kinds(fast: Any) -> set[str]:
    """Operations of a recording."""
    return {node.kind() for node in fast.graph.nodes()}


def test_products_are_onednns_or_the_interpreters(monkeypatch):
    """With GELU in the product or not, with bias or not; a product of two inputs is right, too."""
    with seeded(0, "layers"):
        first, then, last = torch.nn.Linear(12, 8), torch.nn.Linear(8, 8, bias=False), torch.nn.Linear(8, 3)
        stem = torch.nn.Conv2d(3, 12, 3, 2, 1)

    def function(images: Any, other: Any) -> Any:
        states = stem(images.float() / 255).flatten(2).transpose(1, 2).contiguous()
        hidden = torch.nn.functional.gelu(then(torch.nn.functional.gelu(first(states))), approximate="tanh")
        return last(hidden)[0] @ other + states.mean()

    examples = random_batch(1).images, torch.ones(3, 5)
    fast = recorded(function, examples)
    assert {"mkldnn::_linear_pointwise", "mkldnn::_convolution_pointwise"} <= kinds(fast)
    assert not {"aten::addmm", "aten::gelu", "aten::_convolution", "mkldnn::_reorder_convolution_weight"} & kinds(fast)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    interpreted = recorded(function, examples)
    assert not any("mkldnn" in kind for kind in kinds(interpreted))
    monkeypatch.undo()
    assert not any("mkldnn" in kind for kind in kinds(recorded(function, examples, few_rows=True)))
    for seed in range(1, 3):
        images, other = random_batch(1, seed=seed).images, torch.randn(3, 5, generator=generator(seed, "other"))
        with torch.no_grad():
            expected = function(images, other)
            torch.testing.assert_close(fast(images, other), expected, rtol=0, atol=1e-5)
            torch.testing.assert_close(interpreted(images, other), expected, rtol=0, atol=1e-5)


def test_what_onednn_does_not_do_is_left_to_the_interpreter():
    with seeded(0, "layer"):
        video = torch.nn.Conv3d(3, 4, (1, 4, 4), (1, 4, 4))
    images = random_batch(1).images
    fast = recorded(lambda images: video(images[:, :, None].float()), (images,))
    assert "aten::_convolution" in kinds(fast)
    other = random_batch(1, seed=1).images
    with torch.no_grad():
        torch.testing.assert_close(fast(other), video(other[:, :, None].float()))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_the_graph_is_one_that_a_gpu_can_be_given_whole(backend):
    policy, given = tiny_policy(None), inputs(1)
    with torch.no_grad():
        graph = graph_of(lambda images: policy.act(PolicyInput(images, given[1])), (given[0],))
        compiled = torch.compile(graph, backend=backend, fullgraph=True)
        other = inputs(1, seed=5)[0]
        torch.testing.assert_close(compiled(other), policy.act(PolicyInput(other, given[1])), rtol=0, atol=1e-4)


@pytest.mark.slow
def test_rollouts_act_the_fast_way(tmp_path, monkeypatch):
    monkeypatch.setattr(TrainedPolicy, "patience", 0)
    config = untrained(C1)
    rolled = TrainedPolicy(config.build().eval(), config, Trained(tmp_path))
    rolled._instruction = INSTRUCTIONS[0]
    images = random_batch(2).images
    for image in images:
        acted = rolled.act(Observation(np.ascontiguousarray(image.permute(1, 2, 0)), INSTRUCTIONS[0]))
        expected = rolled.policy.act(PolicyInput(image[None], INSTRUCTIONS[:1]))[0]
        np.testing.assert_allclose(acted, expected, atol=1e-4)
    assert rolled.actor.records() == 1
