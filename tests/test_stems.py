"""What makes image tokens of pixels: shapes, places, leaks, files."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import TINY, random_batch, tiny_policy
from la_reconvla.backbones.stems import ConvStem, build_stem
from la_reconvla.conditions import C2_INPUT
from la_reconvla.errors import UserError
from la_reconvla.method.mask import RandomMask
from la_reconvla.method.objective import losses
from la_reconvla.randomness import generator, seeded

SIZES = {"patch": TINY, "conv": replace(TINY, stem="conv")}


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize(("patch", "convolutions"), [(8, 3), (16, 4), (32, 5)])
def test_a_token_a_patch_near_unit_variance(patch, convolutions):
    with seeded(0, "weights"):
        stem = ConvStem(patch, 64)
    tokens = stem(noise(4, 3, 3 * patch, 5 * patch))
    assert tokens.shape == (4, 64, 3, 5)
    assert 0.7 < tokens.std() < 1.4
    assert sum(isinstance(layer, torch.nn.Conv2d) for layer in stem.layers) == convolutions
    assert stem.weight.dtype == torch.float32


@pytest.mark.parametrize("patch", [8, 16, 32])
def test_a_token_reads_a_square_around_the_centre_of_its_patch(patch):
    with seeded(0, "weights"):
        stem = ConvStem(patch, 32)
    x = noise(1, 3, 8 * patch, 8 * patch).requires_grad_()
    maps = x
    for layer in stem.layers:  # without GroupNorm, which reads the whole picture
        maps = maps if isinstance(layer, torch.nn.GroupNorm) else layer(maps)
    maps[0, :, 3, 4].abs().sum().backward()
    assert x.grad is not None
    for axis, at in ((2, 3), (1, 4)):
        read = x.grad[0].abs().sum((0, axis)).nonzero().flatten()
        centre = at * patch + patch // 2
        assert (read.min(), read.max()) == (centre - patch, centre + patch)


@pytest.mark.parametrize("patch", [1, 12, 28])
def test_a_patch_that_is_no_power_of_two_is_refused_with_what_to_do(patch):
    with pytest.raises(UserError, match=rf"power of two, not {patch}: take a patch of 8, 16 or 32"):
        replace(TINY, image_size=patch * 4, patch=patch, stem="conv")


def test_an_unknown_stem_is_refused():
    with pytest.raises(UserError, match="unknown stem 'convs': did you mean conv"):
        replace(TINY, stem="convs")  # pyright: ignore[reportArgumentType]
    assert build_stem("patch", 28, 32) is None


@settings(max_examples=6)
@pytest.mark.parametrize("stem", SIZES)
@given(st.integers(0, 10**6))
def test_with_input_masking_no_bit_of_a_masked_patch_passes_the_stem(stem, seed):
    size = SIZES[stem]
    rows, p = size.grid[0], size.patch
    policy, batch = tiny_policy(backbone=size).train(), random_batch(2, size, seed=seed)
    mask = RandomMask()(None, (2, rows**2), generator(seed, "mask"))
    cover = mask.view(2, 1, rows, rows).repeat_interleave(p, 2).repeat_interleave(p, 3)
    other = copy.copy(batch)
    other.images = torch.where(cover, random_batch(2, size, seed=seed + 1).images, batch.images)
    found = [policy.features(x, hidden=mask, attention="instruction") for x in (batch, other)]
    for name in ("patches", "actions", "instruction", "attention"):
        assert torch.equal(*(getattr(features, name) for features in found)), name
    seen = [policy.features(x).patches for x in (batch, other)]
    assert not torch.equal(seen[0][~mask], seen[1][~mask]), "unmasked, neighbours see them"


@pytest.mark.parametrize("stem", SIZES)
def test_gradients_reach_every_weight_of_the_stem(stem):
    policy, batch = tiny_policy(backbone=SIZES[stem]).train(), random_batch(2, SIZES[stem])
    losses(policy, batch, C2_INPUT.reconstruction, generator(0, "mask")).total.backward()
    for name, weight in policy.backbone.model.vision_tower.embeddings.patch_embedding.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().max() > 0, name


@pytest.mark.parametrize("stem", SIZES)
def test_the_same_seed_draws_the_same_stem_and_no_other_weight_of_the_model_changes(stem):
    one, two, plain = (tiny_policy(backbone=SIZES[name]).state_dict() for name in (stem, stem, "patch"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    shared = [name for name in plain if name.startswith("backbone.model.") and "patch_embedding" not in name]
    assert all(torch.equal(one[name], plain[name]) for name in shared)
