"""The method's steps against independent references: numpy, closed forms, drawn cases."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers import BINS, HEAD, INSTRUCTIONS, TINY, dense_targets, random_batch, tiny_policy
from la_reconvla.backbones.paligemma import BOS, PAD, SmallPaliGemma, whiten_patches
from la_reconvla.backbones.shared import average, tower_of
from la_reconvla.contracts import Features, PolicyInput
from la_reconvla.method.actions import ActionBins, action_loss
from la_reconvla.method.decoder import MAEDecoder, position_table
from la_reconvla.method.mask import AttentionMask, MaskContext, MaskSource, RandomMask, masked_count
from la_reconvla.method.objective import losses
from la_reconvla.method.pixels import patchify
from la_reconvla.method.reconstruction import Reconstruction
from la_reconvla.method.saliency import saliency
from la_reconvla.method.variants.targets import unpatchify
from la_reconvla.randomness import derive, generator, seeded

# ---------------------------------------------------------------- saliency


def test_saliency_equals_numpy_mean_over_layers_heads_and_counted_rows():
    draw = np.random.default_rng(0)
    attention = draw.random((2, 3, 4, 5, 9), dtype=np.float32)
    rows = np.array([[0, 1, 1, 0, 0], [0, 1, 1, 1, 0]], dtype=bool)
    expected = np.stack([attention[i][:, :, rows[i]].mean(axis=(0, 1, 2)) for i in range(2)])
    found = saliency(torch.from_numpy(attention), torch.from_numpy(rows))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)


def test_padding_and_special_tokens_never_count():
    attention = torch.rand(1, 2, 2, 6, 8)
    rows = torch.tensor([[False, True, True, False, False, False]])
    poisoned = attention.clone()
    poisoned[:, :, :, ~rows[0]] = 1e6
    assert torch.equal(saliency(attention, rows), saliency(poisoned, rows))
    poisoned[:, :, :, ~rows[0]] = torch.nan
    assert torch.equal(saliency(attention, rows), saliency(poisoned, rows))


def test_the_instructions_state_is_the_mean_over_its_own_words_alone():
    backbone = tiny_policy().backbone
    tokens = backbone.encode(INSTRUCTIONS)
    states = torch.randn(*tokens.ids.shape, 6)
    rows = tokens.token_mask.numpy()
    expected = np.stack([states.numpy()[i][rows[i]].mean(0) for i in range(len(rows))])
    np.testing.assert_allclose(average(tokens, states).numpy(), expected, rtol=1e-4, atol=1e-6)
    assert 0 < rows.sum() < rows.size, "otherwise nothing is left out"


def test_the_backbone_counts_exactly_the_words():
    backbone = tiny_policy().backbone
    told = backbone.encode(INSTRUCTIONS)
    tokens, rows = told.ids, told.token_mask
    words = [backbone.tokenizer.encode(text, add_special_tokens=False).ids for text in INSTRUCTIONS]
    newline = backbone.tokenizer.encode("\n", add_special_tokens=False).ids
    assert rows.sum(1).tolist() == [len(ids) for ids in words]
    for sequence, counted, ids in zip(tokens, rows, words, strict=True):
        assert sequence[counted].tolist() == ids
        text = [BOS, *ids, *newline]
        assert sequence.tolist() == text + [PAD] * (len(sequence) - len(text))
        assert not counted[[0, *range(1 + len(ids), len(sequence))]].any()  # begin of sequence, newline, padding


def test_padding_a_batch_changes_no_saliency_and_no_action():
    policy, batch = tiny_policy(), random_batch(3)
    together = policy.look(batch.inputs), policy.act(batch.inputs)
    for i in range(3):
        one = batch.images[i : i + 1], batch.instructions[i : i + 1]
        torch.testing.assert_close(policy.look(PolicyInput(*one))[0], together[0][i], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(policy.act(PolicyInput(*one))[0], together[1][i], rtol=1e-4, atol=1e-5)


def test_patch_embeddings_start_whitened():
    """Against numpy: inner products of embedded training patches are those of their whitened principal components."""
    backbone = TINY.build()
    embeddings = tower_of(backbone.model.vision_tower).embeddings
    before = embeddings.position_embedding.weight.detach().numpy().copy()
    shape = (80, 3, TINY.image_size, TINY.image_size)
    noise = np.random.default_rng(0).normal(size=shape)
    background = 40 * np.sin(np.arange(TINY.image_size))[None, None, :, None]
    images = torch.from_numpy((128 + background + 10 * noise).clip(0, 255).astype(np.uint8))
    whiten_patches(backbone, images)
    with torch.no_grad():
        embedded = embeddings(images.float() / 127.5 - 1).double().numpy()  # [m n d]
    np.testing.assert_allclose(embedded.mean(0), before, atol=1e-4)  # what every image shows has gone

    p, (rows, columns), d = TINY.patch, TINY.grid, TINY.width
    pixels = images.numpy().astype(np.float64) / 127.5 - 1
    patches = pixels.reshape(80, 3, rows, p, columns, p).transpose(0, 2, 4, 1, 3, 5).reshape(80, rows * columns, -1)
    x = (patches - patches.mean(0)).reshape(80 * rows * columns, -1)
    _, singular, components = np.linalg.svd(x / np.sqrt(len(x)), full_matrices=False)
    kept = min(d, x.shape[1])
    variances, components = singular[:kept] ** 2, components[:kept]
    white = x @ components.T / np.sqrt(variances + 1e-3 * variances[0]) * np.sqrt(d / kept)
    found = (embedded - before).reshape(len(x), d)
    np.testing.assert_allclose(found[:50] @ found[:50].T, white[:50] @ white[:50].T, atol=0.02 * d)
    assert 0.9 < found.var() < 1.01


def test_positions_start_alike_where_patches_are_neighbours():
    weight = tower_of(SmallPaliGemma(image_size=112, patch=16, width=64).build().model.vision_tower).embeddings
    table = weight.position_embedding.weight.detach().numpy()
    place = np.stack(np.divmod(np.arange(49), 7), axis=1)
    apart = np.linalg.norm(place[:, None] - place[None], axis=-1)
    alike = table @ table.T / table.shape[1]
    assert alike.diagonal() == pytest.approx(np.ones(49), abs=1e-5), "unit variance"
    assert alike[apart == 1].min() > alike[apart > 3].max()


def test_saliency_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no token that counts"):
        saliency(torch.rand(1, 1, 1, 2, 4), torch.zeros(1, 2, dtype=torch.bool))


def test_saliency_carries_no_gradient():
    attention = torch.rand(1, 1, 1, 2, 4, requires_grad=True)
    assert not saliency(attention, torch.ones(1, 2, dtype=torch.bool)).requires_grad


# ---------------------------------------------------------------- mask


@given(st.integers(2, 300), st.integers(1, 99), st.integers(0, 10**6))
def test_exactly_the_ceiling_is_masked_in_every_sample(n, percent, seed):
    scores = torch.zeros(3, n)  # all equal: ties must not change the count
    k = -(-percent * n // 100)  # the ceiling in whole numbers
    for source in (AttentionMask(percent / 100), RandomMask(percent / 100)):
        mask = source(MaskContext((3, n), generator(seed, "mask"), saliency=scores))
        assert mask.sum(1).tolist() == [k] * 3


def test_published_counts():
    assert [masked_count(0.25, n) for n in (49, 196, 256)] == [13, 49, 64]


@given(st.integers(4, 64), st.integers(0, 10**6))
def test_attention_mask_takes_the_highest_scores(n, seed):
    scores = torch.rand(2, n, generator=torch.Generator().manual_seed(seed))
    mask = AttentionMask()(MaskContext((2, n), generator(0, "mask"), saliency=scores))
    for row, chosen in zip(scores.numpy(), mask.numpy(), strict=True):
        assert row[chosen].min() >= row[~chosen].max()


def test_random_mask_is_uniform_and_ignores_saliency():
    n, draws = 8, 4000
    saliency = torch.arange(float(n)).repeat(draws, 1)
    masks = RandomMask()(MaskContext((draws, n), generator(0, "mask"), saliency=saliency))
    expected = masked_count(0.25, n) / n
    error = 4 * math.sqrt(expected * (1 - expected) / draws)
    assert (masks.float().mean(0) - expected).abs().max() < error
    assert torch.equal(masks, RandomMask()(MaskContext((draws, n), generator(0, "mask"))))


def test_attention_mask_never_degrades_silently():
    with pytest.raises(ValueError, match="needs_attention"):
        AttentionMask()(MaskContext((1, 4), generator(0, "mask")))
    with pytest.raises(FloatingPointError, match="not finite"):
        AttentionMask()(MaskContext((1, 4), generator(0, "mask"), saliency=torch.full((1, 4), torch.nan)))


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0])
def test_fraction_outside_is_refused(fraction):
    with pytest.raises(ValueError, match="between 0 and 1"):
        masked_count(fraction, 10)


# ---------------------------------------------------------------- decoder


@given(st.sampled_from([4, 8]), st.integers(1, 4), st.integers(1, 4))
def test_patchify_is_row_major_and_invertible(patch, rows, columns):
    size = (2, 3, rows * patch, columns * patch)
    images = torch.randint(0, 256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(rows))
    patches = patchify(images, patch)
    assert patches.shape == (2, rows * columns, 3 * patch * patch)
    assert torch.equal(unpatchify(patches, (rows, columns), patch), images)
    last = images[:, :, -patch:, -patch:].permute(0, 2, 3, 1).reshape(2, -1).float() / 127.5 - 1
    torch.testing.assert_close(patches[:, -1], last)


def test_two_masked_positions_get_different_predictions():
    policy, batch = tiny_policy(), random_batch()
    patches = policy.features(batch).patches
    mask = torch.zeros(patches.shape[:2], dtype=torch.bool)
    mask[:, [2, 9]] = True
    target = patchify(batch.images, TINY.patch)
    picture = policy.reconstruction_head.picture(patches, mask, target)
    assert (picture[:, 2] - picture[:, 9]).abs().max() > 1e-3
    policy.reconstruction_head.positions.zero_()  # the naive build: without positions they are the same
    naive = policy.reconstruction_head.picture(patches, mask, target)
    torch.testing.assert_close(naive[:, 2], naive[:, 9])


def test_positions_are_distinct():
    table = position_table((7, 7), 32)
    distance = torch.cdist(table, table) + torch.eye(49) * 10
    assert distance.min() > 0.1


def test_decoder_reads_nothing_under_the_mask():
    policy, batch = tiny_policy(), random_batch()
    patches = policy.features(batch).patches.detach()
    mask = RandomMask()(MaskContext(patches.shape[:2], generator(0, "mask")))
    poisoned = torch.where(mask[..., None], torch.full_like(patches, 1e3), patches)
    assert torch.equal(
        policy.reconstruction_head.decode(patches, mask), policy.reconstruction_head.decode(poisoned, mask)
    )


@pytest.mark.parametrize("norm_pixels", [False, True])
def test_reconstruction_loss_equals_numpy_and_counts_only_masked_patches(norm_pixels):
    head = replace(HEAD, norm_pixels=norm_pixels)
    policy, batch = tiny_policy(head), random_batch()
    patches = policy.features(batch).patches.detach()
    mask = RandomMask()(MaskContext(patches.shape[:2], generator(1, "mask")))
    target = patchify(batch.images, TINY.patch)
    predicted = policy.reconstruction_head.leave(policy.reconstruction_head.decode(patches, mask)).detach().numpy()
    wanted = target.numpy()
    if norm_pixels:
        mean, variance = wanted.mean(-1, keepdims=True), wanted.var(-1, ddof=1, keepdims=True)
        wanted = (wanted - mean) / np.sqrt(variance + 1e-6)
    chosen = mask.numpy()
    expected = np.mean((predicted[chosen] - wanted[chosen]) ** 2)
    found = policy.reconstruction_head.loss(patches, mask, target, generator(0, "noise"))
    np.testing.assert_allclose(found.item(), expected, rtol=1e-5)
    other = torch.where(mask[..., None], target, target + 5)  # pixels outside the mask do not matter
    assert policy.reconstruction_head.loss(patches, mask, other, generator(0, "noise")) == found


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_the_loss_computes_less_and_equals_the_full_decoder(depth):
    with seeded(0, "decoder"):
        decoder = MAEDecoder(depth=depth, width=32, attention_heads=4).build(TINY.width, (4, 4), TINY.patch)
    draw = torch.Generator().manual_seed(0)
    states, target = (
        torch.randn(5, 16, TINY.width, generator=draw),
        torch.randn(5, 16, decoder.target_width, generator=draw),
    )
    mask = RandomMask()(MaskContext((5, 16), generator(0, "mask")))
    parts = []
    for masked_only in (False, True):
        patches = states.clone().requires_grad_()
        if masked_only:
            torch.testing.assert_close(
                decoder.decode(patches, mask, masked_only=True).flatten(0, 1), decoder.decode(patches, mask)[mask]
            )
            value = decoder.loss(patches, mask, target, generator(0, "noise"))
        else:
            value = (decoder.leave(decoder.decode(patches, mask))[mask] - target[mask]).square().mean()
        parts.append((value, *torch.autograd.grad(value, [patches, *decoder.parameters()])))
    for full, less in zip(*parts, strict=True):
        torch.testing.assert_close(less, full, rtol=1e-5, atol=1e-6)


def test_samples_with_unequal_masks_are_averaged_over_all_masked_patches():
    policy, batch = tiny_policy(), random_batch()
    patches, target = policy.features(batch).patches.detach(), patchify(batch.images, TINY.patch)
    mask = torch.zeros(patches.shape[:2], dtype=torch.bool)
    mask[0, 0] = mask[1, 3] = mask[1, 5] = True
    head = policy.reconstruction_head
    expected = (head.leave(head.decode(patches, mask))[mask] - target[mask]).square().mean()
    torch.testing.assert_close(head.loss(patches, mask, target, generator(0, "noise")), expected)


@pytest.mark.parametrize("norm_pixels", [False, True])
def test_pictures_are_pixels_whatever_the_decoder_predicts(norm_pixels):
    """All patches show one pattern, each in its own light; a decoder that has learned the pattern paints them all."""
    draw = np.random.default_rng(0)
    pattern = draw.uniform(-1, 1, 3 * TINY.patch**2)
    pattern = (pattern - pattern.mean()) / pattern.std(ddof=1)
    brightness, contrast = draw.uniform(-0.4, 0.4, (1, 16, 1)), draw.uniform(0.05, 0.2, (1, 16, 1))
    target = torch.tensor(brightness + contrast * pattern, dtype=torch.float32)
    decoder = tiny_policy(replace(HEAD, norm_pixels=norm_pixels)).reconstruction_head
    decoder.leave.weight.data.zero_()
    decoder.leave.bias.data = torch.tensor(pattern, dtype=torch.float32)
    painted = decoder.picture(torch.zeros(1, 16, TINY.width), torch.ones(1, 16, dtype=torch.bool), target).numpy()
    expected = target.numpy() if norm_pixels else np.broadcast_to(pattern, target.shape)
    np.testing.assert_allclose(painted, expected, atol=1e-4)


def test_published_decoder_size():
    with seeded(0, "decoder"):
        module = MAEDecoder().build(2048, (14, 14), 16)
    blocks = 4 * (12 * 256**2 + 13 * 256)  # attention 4 d^2 + mlp 8 d^2, biases 9 d, two norms 4 d
    rest = (2048 * 256 + 256) + 256 + 2 * 256 + (256 * 768 + 768)
    assert sum(p.numel() for p in module.parameters()) == blocks + rest


# ---------------------------------------------------------------- actions


@given(st.lists(st.floats(-0.9, 0.9), min_size=6, max_size=6), st.booleans(), st.sampled_from([0.0, 4.0]))
def test_bins_roundtrip_within_half_a_bin(values, closed, spread):
    low, high = (-0.95,) * 6 + (-1.0,), (0.97,) * 6 + (1.0,)
    bins = ActionBins(low, high, spread=spread, decision="argmax")
    action = torch.tensor([*values, 1.0 if closed else -1.0])
    back = bins.decide(dense_targets(bins, action).clamp_min(1e-9).log()[None, None])[0, 0]
    assert (back - action).abs()[:6].max() <= (0.97 + 0.95) / 256 / 2 + 1e-6
    assert back[6] == action[6]


def test_expectation_undoes_soft_labels():
    action = torch.tensor([0.11, -0.2, 0.3, 0.0, 0.5, -0.6, 1.0])
    back = BINS.decide(dense_targets(BINS, action).clamp_min(1e-12).log()[None, None])[0, 0]
    assert (back - action).abs().max() < 1e-3


@pytest.mark.parametrize(("count", "spread"), [(256, 4.0), (256, 0.0), (256, 0.3), (32, 8.0), (2, 4.0)])
def test_labels_are_distributions_over_bins_that_exist_and_the_gripper_is_hard(count, spread):
    bins = replace(BINS, count=count, spread=spread)
    actions = torch.rand(5, 40, 7, generator=torch.Generator().manual_seed(0)) * 4 - 2  # outside the range too
    touched, shares = bins.window(actions)
    assert touched.min() == 0
    assert touched.max() == count - 1
    found = torch.zeros(5, 40, 7, count).scatter_add(-1, touched, shares)
    torch.testing.assert_close(found, dense_targets(bins, actions), rtol=1e-4, atol=1e-6)
    assert found[..., 6, :].max(-1).values.eq(1).all()
    assert set(found[..., 6, :].argmax(-1).unique().tolist()) == {0, count - 1}


def test_gripper_is_exactly_two_valued():
    decided = BINS.decide(torch.randn(20, 8, 7, 256))[..., 6]
    assert set(decided.unique().tolist()) == {-1.0, 1.0}


def test_action_loss_equals_numpy_and_skips_what_does_not_exist():
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 7, 256, generator=draw)
    actions = torch.rand(2, 3, 7, generator=draw) * 2.4 - 1.2  # at the ends of the axis too
    targets = dense_targets(BINS, actions)
    valid = torch.tensor([[True, True, False], [True, False, False]])
    x = logits.double().numpy()
    log_p = x - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)) - x.max(-1, keepdims=True)
    per_step = -(targets.numpy() * log_p).sum(-1).mean(-1)
    np.testing.assert_allclose(action_loss(logits, BINS, actions, valid), per_step[valid.numpy()].mean(), rtol=1e-5)
    logits[~valid] = 1e4
    np.testing.assert_allclose(action_loss(logits, BINS, actions, valid), per_step[valid.numpy()].mean(), rtol=1e-5)


def test_one_hot_labels_are_plain_cross_entropy():
    bins = replace(BINS, spread=0.0)
    actions = torch.rand(4, 2, 7) * 2 - 1
    logits = torch.randn(4, 2, 7, 256)
    labels = dense_targets(bins, actions).argmax(-1)
    reference = torch.nn.functional.cross_entropy(logits.reshape(-1, 256), labels.reshape(-1))
    torch.testing.assert_close(action_loss(logits, bins, actions, torch.ones(4, 2, dtype=torch.bool)), reference)


@pytest.mark.parametrize("spread", [0.0, 1.0, 4.0, 50.0])
def test_action_loss_has_the_value_and_gradient_of_labels_over_all_bins(spread):
    bins, draw = replace(BINS, spread=spread), torch.Generator().manual_seed(1)
    actions = torch.rand(6, 5, 7, generator=draw) * 2.4 - 1.2
    valid = torch.rand(6, 5, generator=draw) < 0.8
    logits = (5 * torch.randn(6, 5, 7, 256, generator=draw)).requires_grad_()
    exact = logits.detach().double().requires_grad_()
    per_step = -(dense_targets(bins, actions).double() * exact.log_softmax(-1)).sum(-1).mean(-1)
    (expected := per_step[valid].mean()).backward()
    (found := action_loss(logits, bins, actions, valid)).backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    difference = (logits.grad.double() - exact.grad).abs().max()
    assert difference < 1e-6 * exact.grad.abs().max()


def test_bad_bins_are_refused():
    with pytest.raises(ValueError, match="below its upper edge"):
        ActionBins((0.0,) * 7, (0.0,) * 7)
    still = ActionBins.from_quantiles(np.zeros(7), np.zeros(7))
    assert still.low[6] == -1.0
    assert still.high[6] == 1.0


# ---------------------------------------------------------------- objective


@dataclass(frozen=True)
class Given(MaskSource):
    """Masks what it is given to mask."""

    rows: tuple[tuple[bool, ...], ...]
    label = "given"

    def __call__(self, context):
        return torch.tensor(self.rows)


@pytest.mark.parametrize(
    "rows", [((True, True), (True, False)), ((False, False), (False, False)), ((True,), (True,)), ((1.0, 0.0),) * 2]
)
def test_a_mask_of_unequal_counts_shape_or_type_is_refused(rows):
    features = Features(torch.zeros(2, 2, 4), torch.zeros(2, 1, 4), torch.zeros(2, 4), None, None, (1, 2))
    good = Reconstruction(Given(((True, False), (False, True))))
    assert good.choose_patches(features, None, generator(0, "mask"), 0)[1] is not None
    with pytest.raises(ValueError, match=r"Given must give bool \[2 2\], equally many"):
        Reconstruction(Given(rows)).choose_patches(features, None, generator(0, "mask"), 0)


def test_parts_of_an_arm_are_frozen_dataclasses_with_a_label():
    class NoDataclass(MaskSource):
        label = "no"

    @dataclass(frozen=True)
    class NoLabel(MaskSource):
        pass

    @dataclass
    class NotFrozen(MaskSource):
        label = "not"

    for part in (NoDataclass(), NoLabel(), NotFrozen()):
        with pytest.raises(TypeError, match=rf"{type(part).__name__} must be a frozen dataclass with a label"):
            Reconstruction(part)


@pytest.mark.parametrize("weight", [0.1, 0.5, 1.0])
def test_total_is_action_plus_lambda_times_reconstruction(weight):
    policy, batch = tiny_policy(), random_batch()
    found = losses(policy, batch, Reconstruction(weight=weight), generator(0, "mask"))
    torch.testing.assert_close(found.total, found.action + weight * found.reconstruction)
    plain = losses(policy, batch, None, generator(0, "mask"))
    torch.testing.assert_close(plain.total, found.action)  # decoder masking leaves the action loss alone


# ---------------------------------------------------------------- randomness


def test_streams_are_named_and_repeatable():
    assert derive(0, "mask", 3) == derive(0, "mask", 3)
    assert len({derive(s, n, t) for s in range(3) for n in ("mask", "data") for t in range(3)}) == 18
    before = torch.random.get_rng_state()
    with seeded(0, "weights"):
        torch.rand(3)
    assert torch.equal(before, torch.random.get_rng_state())
