"""What a naive build of this method gets wrong, each with a test that fails on that build.

What every backbone must keep is in backbones/test_contract.py.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GemmaConfig, GemmaModel

from helpers import HEAD, INSTRUCTIONS, TINY, random_batch, record_logits, tiny_policy
from la_reconvla.backbones import attention_probe
from la_reconvla.backbones.attention_probe import IMPLEMENTATION, AttentionProbe, sdpa_with_rows
from la_reconvla.conditions import ARMS, C2_INPUT
from la_reconvla.contracts import PolicyInput
from la_reconvla.data.samples import batch_indices
from la_reconvla.errors import UserError
from la_reconvla.method.mask import MaskContext, RandomMask
from la_reconvla.method.objective import losses
from la_reconvla.method.pixels import patchify
from la_reconvla.method.reconstruction import Reconstruction
from la_reconvla.method.variants.autoregressive import DECODINGS
from la_reconvla.randomness import derive, generator, seeded

# ---------------------------------------------------------------- leakage


@settings(max_examples=15)
@given(st.integers(0, 10**6))
def test_with_input_masking_no_bit_of_a_masked_patch_reaches_the_decoder(seed):
    policy, batch = tiny_policy(), random_batch(2, seed=seed)
    mask = RandomMask()(MaskContext((2, 16), generator(seed, "mask")))
    noise = random_batch(2, seed=seed + 1).images
    cover = mask.view(2, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    batch_b = copy.copy(batch)
    batch_b.images = torch.where(cover, noise, batch.images)
    a = policy.features(batch, hidden=mask).patches
    b = policy.features(batch_b, hidden=mask).patches
    assert torch.equal(a, b)
    target = torch.zeros(2, 16, 192)
    assert torch.equal(
        policy.reconstruction_head.picture(a, mask, target), policy.reconstruction_head.picture(b, mask, target)
    )


def test_with_decoder_masking_the_visible_patches_carry_the_masked_pixels():
    """The published variant leaks: changing only masked pixels changes what the decoder is given."""
    policy, batch = tiny_policy(), random_batch(2)
    mask = RandomMask()(MaskContext((2, 16), generator(0, "mask")))
    cover = mask.view(2, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    other = copy.copy(batch)
    other.images = torch.where(cover, 255 - batch.images, batch.images)
    a, b = policy.features(batch).patches, policy.features(other).patches
    assert (a - b)[~mask].abs().max() > 1e-3
    painted = [policy.reconstruction_head.picture(patches, mask, torch.zeros(2, 16, 192)) for patches in (a, b)]
    assert (painted[0] - painted[1]).abs().max() > 1e-4


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
        found["input"].reconstruction, policy.reconstruction_head.loss(hidden, mask, target, generator(0, "noise"))
    )
    assert torch.equal(found["input"].action, found["decoder"].action)  # acting always sees the whole image
    assert found["input"].reconstruction != found["decoder"].reconstruction


# ---------------------------------------------------------------- gradients


@pytest.mark.parametrize("place", ["decoder", "input"])
def test_the_reconstruction_gradient_reaches_the_backbone(place):
    policy, batch = tiny_policy(), random_batch()
    loss = losses(
        policy, batch, Reconstruction(reconstruction_head=HEAD, mask_at=place), generator(0, "mask")
    ).reconstruction
    loss.backward()
    for name, part in (
        ("vision", policy.backbone.model.vision_tower),
        ("language", policy.backbone.model.language_model),
    ):
        total = sum(p.grad.abs().sum() for p in part.parameters() if p.grad is not None)
        assert total > 1e-4, name
    assert all(p.grad is None for p in policy.action_head.parameters())


@pytest.mark.parametrize("naive", [False, True])
@pytest.mark.parametrize("decoding", list(DECODINGS))
def test_the_action_loss_moves_the_attention_logits_of_every_layer_that_the_saliency_reads(naive, decoding):
    """In a decoder read at the action tokens only, the last layer's text rows are dead: no gradient reaches them.

    The naive build is made by cutting the head's path from the instruction; the test must tell the two apart.
    """
    policy, batch = tiny_policy(decoding=decoding), random_batch()
    logits = record_logits(policy)
    if naive:
        torch.nn.init.zeros_(policy.action_head.from_instruction.weight)
    for p in getattr(policy.action_head, "network", torch.nn.Module()).parameters():
        torch.nn.init.normal_(p, std=0.1)  # DiT's own start is a network that reads nothing
    losses(policy, batch, None, generator(0, "mask")).action.backward()
    rows = policy.backbone.encode(batch.instructions).token_mask
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


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_saliency_rows_equal_eager_attention(kv_heads):
    """Grouped queries, and padding: the instructions differ in length."""
    policy, batch = tiny_policy(backbone=replace(TINY, kv_heads=kv_heads)), random_batch()
    fast = policy.features(batch, attention="instruction")
    full, slow = eager_rows(policy, batch)
    t = fast.token_mask.shape[1]
    expected = full[:, -3:, :, 16 : 16 + t, :16]
    picked = fast.token_mask[:, None, None, :, None].expand_as(expected)
    assert (fast.attention[picked] - expected[picked]).abs().max() < 1e-5
    torch.testing.assert_close(fast.action_states, slow.action_states, rtol=1e-4, atol=1e-5)


def test_saliency_rows_in_half_precision_are_those_of_eager_attention():
    policy, batch = tiny_policy(), random_batch()
    exact = policy.features(batch, attention="instruction")
    with torch.autocast("cpu", torch.bfloat16):
        fast = policy.features(batch, attention="instruction")
        full, _ = eager_rows(policy, batch)
    assert fast.attention.dtype == torch.float32
    expected = full[:, -3:, :, 16 : 16 + fast.token_mask.shape[1], :16].float()
    picked = fast.token_mask[:, None, None, :, None].expand_as(expected)
    assert 0 < (fast.attention[picked] - exact.attention[picked]).abs().max() < 0.03  # half precision it was
    assert (fast.attention[picked] - expected[picked]).abs().max() < 0.03
    assert exact.attention[picked].max() > 0.2, "against which 0.03 is little"


def causal_model() -> GemmaModel:
    """The library's decoder, causal and with grouped queries."""
    config = GemmaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        initializer_range=0.5,
    )
    with seeded(0, "weights"):
        return GemmaModel(config).eval()


@pytest.mark.parametrize("padding", [None, 0, 3])
def test_rows_of_a_causal_model_equal_eager_attention(padding):
    """Without padding the library gives the kernel no mask at all, only the word `causal`."""
    model = causal_model()
    tokens = torch.randint(5, 50, (2, 12), generator=generator(0, "tokens"))
    mask = None if padding is None else torch.ones_like(tokens)
    if padding:
        mask[1, -padding:] = 0
    rows = slice(4, 9)  # none of them padding
    model.set_attn_implementation("eager")
    expected = torch.stack(model(tokens, attention_mask=mask, output_attentions=True).attentions, 1)[:, :, :, rows]
    for columns in (slice(0, 6), slice(0, 12)):
        probe = AttentionProbe((0, 1, 2), rows, columns)
        model.set_attn_implementation(IMPLEMENTATION)
        model(tokens, attention_mask=mask, probe=probe)
        assert (probe.stacked() - expected[..., columns]).abs().max() < 1e-5
    assert expected[..., 9:].max() == 0, "the future is not seen"


@pytest.mark.parametrize("causal", [False, True, None])
def test_the_call_decides_on_causality_before_the_module(causal):
    """As in the library's own kernel; the reference is its output on an identity of values, which is the weights."""
    draw = generator(0, "qk")
    query, key = (torch.randn(1, heads, 6, 6, generator=draw) for heads in (4, 2))
    value = torch.eye(6).expand(1, 2, 6, 6)
    module = SimpleNamespace(layer_idx=0, is_causal=not causal, num_key_value_groups=2)
    for rows in (slice(0, 6), slice(5, 6)):
        for queries in (6, 1):  # one query is a step of decoding, which sees everything
            probe = AttentionProbe((0,), rows if queries == 6 else slice(0, 1), slice(0, 6))
            asked = query[:, :, :queries]
            out, _ = sdpa_with_rows(module, asked, key, value, None, probe, is_causal=causal)
            expected = out.transpose(1, 2)[:, :, probe.rows]
            torch.testing.assert_close(probe.weights[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated")
def test_rows_are_recorded_once_under_gradient_checkpointing(monkeypatch):
    """Checkpointing runs every layer again in the backward pass; the rows are those of the first time."""
    calls, compute = [], attention_probe.attention_rows
    monkeypatch.setattr(attention_probe, "attention_rows", lambda *a: calls.append(1) or compute(*a))
    policy, batch = tiny_policy().train(), random_batch()
    plain = losses(policy, batch, Reconstruction(reconstruction_head=HEAD), generator(0, "mask"))
    plain.total.backward()
    gradients = [p.grad.clone() for p in policy.parameters() if p.grad is not None]
    policy.zero_grad()
    assert len(calls) == 3

    policy.backbone.model.gradient_checkpointing_enable()
    passes = []
    attention = policy.backbone.model.language_model.layers[0].self_attn
    hook = attention.register_forward_pre_hook(lambda *_: passes.append(1))
    saved = losses(policy, batch, Reconstruction(reconstruction_head=HEAD), generator(0, "mask"))
    saved.total.backward()
    hook.remove()
    assert len(passes) == 2, "the layer was run again"
    assert len(calls) == 6
    assert torch.equal(saved.saliency, plain.saliency)
    assert torch.equal(saved.mask, plain.mask)
    again = [p.grad for p in policy.parameters() if p.grad is not None]
    torch.testing.assert_close(again, gradients)


def test_a_probe_that_nothing_fills_says_so():
    """`output_attentions` on a fused model returns an empty tuple; a mask made of nothing must not follow."""
    policy, batch = tiny_policy(), random_batch()
    policy.backbone.model.language_model.set_attn_implementation("sdpa")
    with pytest.raises(RuntimeError, match="reported no attention"):
        policy.features(batch, attention="instruction")


def test_two_models_do_not_disturb_each_other():
    a, b, batch = tiny_policy(seed=0), tiny_policy(seed=1), random_batch()
    alone = a.look(batch.inputs)
    probe = AttentionProbe((0,), slice(0, 1), slice(0, 1))
    b.look(batch.inputs)
    assert torch.equal(a.look(batch.inputs), alone)
    assert probe.weights == {}


# ---------------------------------------------------------------- the backbone's own grid, acting, pairing


@pytest.mark.parametrize(("size", "patch", "n"), [(224, 14, 256), (224, 16, 196), (112, 16, 49)])
def test_the_grid_is_the_backbones_own(size, patch, n):
    policy = tiny_policy(backbone=replace(TINY, image_size=size, patch=patch), head=None)
    images = torch.zeros(1, 3, size, size, dtype=torch.uint8)
    assert policy.look(PolicyInput(images, INSTRUCTIONS[:1])).shape == (1, n)


def test_act_is_bit_identical_without_the_decoder():
    policy, batch = tiny_policy(), random_batch()
    before = policy.act(batch.inputs)
    policy.reconstruction_head = None
    assert torch.equal(before, policy.act(batch.inputs))


def test_act_never_calls_the_decoder_or_the_probe(monkeypatch):
    policy, batch = tiny_policy(), random_batch()
    monkeypatch.setattr(type(policy.reconstruction_head), "decode", lambda *_: pytest.fail("decoder was called"))
    monkeypatch.setattr("la_reconvla.backbones.attention_probe.attention_rows", lambda *_: pytest.fail("probe"))
    policy.act(batch.inputs)


def test_all_arms_of_a_seed_start_from_equal_weights():
    policies = [tiny_policy(arm.reconstruction and HEAD) for arm in ARMS]
    first = policies[0].state_dict()
    for policy in policies[1:]:
        assert all(torch.equal(value, policy.state_dict()[name]) for name, value in first.items())


def test_drawing_masks_moves_no_other_stream():
    """With one generator for all, an arm that draws a mask would see other batches than one that draws none."""
    policy, batch = tiny_policy(), random_batch()
    expected = [batch_indices(derive(0, "data"), step, 8, 20) for step in range(6)]
    before = torch.random.get_rng_state(), np.random.get_state()  # noqa: NPY002 (the stream that must not move)
    for arm in (*ARMS, C2_INPUT):
        drawn = []
        for step in range(6):
            found = losses(policy, batch, arm.with_reconstruction_head(HEAD).reconstruction, generator(0, "mask", step))
            drawn.append(found.mask)
            assert np.array_equal(batch_indices(derive(0, "data"), step, 8, 20), expected[step]), arm.id
        if arm.reconstruction and isinstance(arm.reconstruction.mask, RandomMask):
            assert any(not torch.equal(mask, drawn[0]) for mask in drawn), "masks were drawn"
    after = torch.random.get_rng_state(), np.random.get_state()  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert before[1][2] == after[1][2]
    assert np.array_equal(before[1][1], after[1][1])


# ---------------------------------------------------------------- bad input


def test_a_patch_that_does_not_divide_the_image_is_refused():
    with pytest.raises(UserError, match="does not divide"):
        type(TINY)(image_size=30, patch=8)
