"""What a naive build of this method gets wrong, each with a test that fails on that build."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from helpers import HEAD, INSTRUCTIONS, TINY, random_batch, tiny_policy
from la_reconvla.backbones.attention_probe import IMPLEMENTATION, AttentionProbe
from la_reconvla.conditions import ARMS
from la_reconvla.errors import UserError
from la_reconvla.method.decoder import patchify
from la_reconvla.method.mask import RandomMask
from la_reconvla.method.objective import Reconstruction, losses
from la_reconvla.randomness import generator


def test_the_instruction_changes_actions_features_and_saliency():
    """A build that reads actions or patches before the language model cannot pass."""
    policy, image = tiny_policy(), random_batch(1).images.repeat(2, 1, 1, 1)
    assert (policy.act(image, INSTRUCTIONS[:2])[0] - policy.act(image, INSTRUCTIONS[:2])[1]).abs().max() > 1e-3
    looks = policy.look(image, INSTRUCTIONS[:2])
    assert (looks[0] - looks[1]).abs().max() > 1e-4
    patches = policy.backbone(image, INSTRUCTIONS[:2]).patches
    assert (patches[0] - patches[1]).abs().max() > 1e-3


def test_actions_do_not_change_what_the_instruction_sees():
    """The suffix is invisible to the prefix: other action queries leave saliency and patches bit-identical."""
    policy, batch = tiny_policy(), random_batch()
    before = policy.features(batch, attention=True)
    with torch.no_grad():
        policy.backbone.queries.add_(3.0)
    after = policy.features(batch, attention=True)
    assert torch.equal(before.attention, after.attention)
    assert torch.equal(before.patches, after.patches)
    assert not torch.equal(before.actions, after.actions)


# ---------------------------------------------------------------- leakage


@settings(max_examples=15)
@given(st.integers(0, 10**6))
def test_with_input_masking_no_bit_of_a_masked_patch_reaches_the_decoder(seed):
    policy, batch = tiny_policy(), random_batch(2, seed=seed)
    mask = RandomMask()(None, (2, 16), generator(seed, "mask"))
    noise = random_batch(2, seed=seed + 1).images
    cover = mask.view(2, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    batch_b = copy.copy(batch)
    batch_b.images = torch.where(cover, noise, batch.images)
    a = policy.features(batch, hidden=mask).patches
    b = policy.features(batch_b, hidden=mask).patches
    assert torch.equal(a, b)
    assert torch.equal(policy.reconstructor.picture(a, mask), policy.reconstructor.picture(b, mask))


def test_with_decoder_masking_the_visible_patches_carry_the_masked_pixels():
    """The published variant leaks: changing only masked pixels changes what the decoder is given."""
    policy, batch = tiny_policy(), random_batch(2)
    mask = RandomMask()(None, (2, 16), generator(0, "mask"))
    cover = mask.view(2, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    other = copy.copy(batch)
    other.images = torch.where(cover, 255 - batch.images, batch.images)
    a, b = policy.features(batch).patches, policy.features(other).patches
    assert (a - b)[~mask].abs().max() > 1e-3
    assert (policy.reconstructor.picture(a, mask) - policy.reconstructor.picture(b, mask)).abs().max() > 1e-4


def test_the_objective_uses_the_place_that_it_is_told():
    policy, batch = tiny_policy(), random_batch(2)
    found = {}
    for place in ("decoder", "input"):
        arm = Reconstruction(RandomMask(), HEAD, mask_at=place)
        found[place] = losses(policy, batch, arm, generator(0, "mask"))
    mask = found["input"].mask
    hidden = policy.features(batch, hidden=mask).patches
    target = patchify(batch.images, TINY.patch)
    torch.testing.assert_close(
        found["input"].reconstruction, policy.reconstructor.loss(hidden, mask, target, generator(0, "noise"))
    )
    assert torch.equal(found["input"].action, found["decoder"].action)  # acting always sees the whole image
    assert found["input"].reconstruction != found["decoder"].reconstruction


# ---------------------------------------------------------------- gradients


@pytest.mark.parametrize("place", ["decoder", "input"])
def test_the_reconstruction_gradient_reaches_the_backbone(place):
    policy, batch = tiny_policy(), random_batch()
    loss = losses(policy, batch, Reconstruction(head=HEAD, mask_at=place), generator(0, "mask")).reconstruction
    loss.backward()
    for name, part in (
        ("vision", policy.backbone.model.vision_tower),
        ("language", policy.backbone.model.language_model),
    ):
        total = sum(p.grad.abs().sum() for p in part.parameters() if p.grad is not None)
        assert total > 1e-4, name
    assert all(p.grad is None for p in policy.head.parameters())


@pytest.mark.parametrize("naive", [False, True])
def test_the_action_loss_moves_the_attention_logits_of_every_layer_that_the_saliency_reads(naive):
    """In a decoder read at the action tokens only, the last layer's text rows are dead: no gradient reaches them.

    The naive build is made by cutting the head's path from the instruction; the test must tell the two apart.
    """
    logits: dict[int, torch.Tensor] = {}

    def recorded(module, query, key, value, attention_mask, scaling=None, **kwargs):
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        scores = query @ key.transpose(-1, -2) * scaling
        scores.retain_grad()
        logits[module.layer_idx] = scores
        weights = scores.masked_fill(~attention_mask, -torch.inf).softmax(-1)
        return (weights @ value).transpose(1, 2).contiguous(), None

    AttentionInterface.register("recorded_for_test", recorded)
    AttentionMaskInterface.register("recorded_for_test", sdpa_mask)
    policy, batch = tiny_policy(), random_batch()
    policy.backbone.model.language_model.set_attn_implementation("recorded_for_test")
    if naive:
        torch.nn.init.zeros_(policy.head.from_instruction.weight)
    losses(policy, batch, None, generator(0, "mask")).action.backward()
    _, rows = policy.backbone.encode(batch.instructions)
    for layer in policy.backbone.saliency_layers:
        grad = logits[layer].grad[:, :, 16 : 16 + rows.shape[1], :16]  # text rows over image columns
        live = grad.abs().sum(dim=(1, 3))
        dead = naive and layer == policy.backbone.saliency_layers[-1]
        assert (live[rows] > 1e-9).all() != dead, f"layer {layer}"


# ---------------------------------------------------------------- attention through the fast path


def eager_rows(policy, batch):
    """The same rows from the library's own eager attention, every layer, the whole matrix."""
    model = policy.backbone.model
    model.language_model.set_attn_implementation("eager")
    maps = []
    hooks = [
        layer.self_attn.register_forward_hook(lambda _m, _i, out: maps.append(out[1]))
        for layer in model.language_model.layers
    ]
    features = policy.features(batch)
    for hook in hooks:
        hook.remove()
    model.language_model.set_attn_implementation(IMPLEMENTATION)
    return torch.stack(maps, 1), features


def test_saliency_rows_equal_eager_attention():
    policy, batch = tiny_policy(), random_batch()
    fast = policy.features(batch, attention=True)
    full, slow = eager_rows(policy, batch)
    t = fast.rows.shape[1]
    expected = full[:, -3:, :, 16 : 16 + t, :16]
    picked = fast.rows[:, None, None, :, None].expand_as(expected)
    assert (fast.attention[picked] - expected[picked]).abs().max() < 1e-5
    torch.testing.assert_close(fast.actions, slow.actions, rtol=1e-4, atol=1e-5)


def test_the_probe_changes_no_bit_of_the_features():
    policy, batch = tiny_policy(), random_batch()
    with_probe, without = policy.features(batch, attention=True), policy.features(batch)
    assert torch.equal(with_probe.actions, without.actions)
    assert torch.equal(with_probe.patches, without.patches)
    assert without.attention is None


def test_a_probe_that_nothing_fills_says_so():
    """`output_attentions` on a fused model returns an empty tuple; a mask made of nothing must not follow."""
    policy, batch = tiny_policy(), random_batch()
    policy.backbone.model.language_model.set_attn_implementation("sdpa")
    with pytest.raises(RuntimeError, match="reported no attention"):
        policy.features(batch, attention=True)


def test_two_models_do_not_disturb_each_other():
    a, b, batch = tiny_policy(seed=0), tiny_policy(seed=1), random_batch()
    alone = a.look(batch.images, batch.instructions)
    probe = AttentionProbe((0,), slice(0, 1), slice(0, 1))
    b.look(batch.images, batch.instructions)
    assert torch.equal(a.look(batch.images, batch.instructions), alone)
    assert probe.weights == {}


# ---------------------------------------------------------------- the backbone's own grid, acting, pairing


@pytest.mark.parametrize(("size", "patch", "n"), [(224, 14, 256), (224, 16, 196), (112, 16, 49)])
def test_the_grid_is_the_backbones_own(size, patch, n):
    from dataclasses import replace

    policy = tiny_policy(backbone=replace(TINY, image_size=size, patch=patch), head=None)
    images = torch.zeros(1, 3, size, size, dtype=torch.uint8)
    assert policy.look(images, INSTRUCTIONS[:1]).shape == (1, n)


def test_act_is_bit_identical_without_the_decoder():
    policy, batch = tiny_policy(), random_batch()
    before = policy.act(batch.images, batch.instructions)
    policy.reconstructor = None
    assert torch.equal(before, policy.act(batch.images, batch.instructions))


def test_act_never_calls_the_decoder_or_the_probe(monkeypatch):
    policy, batch = tiny_policy(), random_batch()
    monkeypatch.setattr(type(policy.reconstructor), "decode", lambda *_: pytest.fail("decoder was called"))
    monkeypatch.setattr("la_reconvla.backbones.attention_probe.attention_rows", lambda *_: pytest.fail("probe"))
    policy.act(batch.images, batch.instructions)


def test_all_arms_of_a_seed_start_from_equal_weights_and_draw_masks_apart_from_data():
    policies = [tiny_policy(arm.reconstruction and HEAD) for arm in ARMS]
    first = policies[0].state_dict()
    for policy in policies[1:]:
        assert all(torch.equal(value, policy.state_dict()[name]) for name, value in first.items())


# ---------------------------------------------------------------- bad input


def test_bad_input_is_explained():
    policy, batch = tiny_policy(), random_batch()
    with pytest.raises(UserError, match="context holds"):
        policy.act(batch.images[:1], ["pick the bowl " * 40])
    with pytest.raises(UserError, match="empty"):
        policy.act(batch.images[:1], [" "])
    with pytest.raises(UserError, match="must be uint8"):
        policy.act(batch.images[:1].float(), INSTRUCTIONS[:1])
    with pytest.raises(UserError, match="must be uint8"):
        policy.act(batch.images[:1, :, :16], INSTRUCTIONS[:1])
    with pytest.raises(UserError, match="wrist"):
        policy.act(batch.images[:1], INSTRUCTIONS[:1], wrist=batch.images[:1])
    with pytest.raises(UserError, match="does not divide"):
        type(TINY)(image_size=30, patch=8)


def test_wrist_and_proprioception_are_used_when_asked_for():
    from dataclasses import replace

    policy = tiny_policy(backbone=replace(TINY, wrist=True, proprio="gripper"), head=None)
    batch = random_batch(1)
    other = random_batch(1, seed=9).images
    state = torch.tensor([[0.04]])
    base = policy.act(batch.images, batch.instructions, batch.images, state)
    assert not torch.equal(base, policy.act(batch.images, batch.instructions, other, state))
    assert not torch.equal(base, policy.act(batch.images, batch.instructions, batch.images, state * 10))
    assert policy.look(batch.images, batch.instructions, other, state).shape == (1, 16)  # the first camera's patches
