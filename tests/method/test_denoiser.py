"""The diffusion head and the arms that need the target's box, against closed forms and known answers."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import untrained
from la_reconvla.backbones.latents import Latents
from la_reconvla.backbones.paligemma import SmallPaliGemma
from la_reconvla.conditions import CONDITIONS, GRID, R1, R2, R3, Condition
from la_reconvla.contracts import Batch, PolicyInput
from la_reconvla.data.samples import patch_coverage
from la_reconvla.errors import UserError
from la_reconvla.method.decoder import MAEDecoder
from la_reconvla.method.mask import MaskContext, RandomMask, masked_count
from la_reconvla.method.objective import losses
from la_reconvla.method.pixels import patchify
from la_reconvla.method.reconstruction import Reconstruction
from la_reconvla.method.variants.denoiser import Denoiser
from la_reconvla.method.variants.gaze import GazeCrop, GazeMask, RandomCrop, WholeImage, cut
from la_reconvla.method.variants.targets import Pixels, unpatchify
from la_reconvla.randomness import generator
from la_reconvla.study.presets import PRESETS
from la_reconvla.training.checkpoint import PolicyConfig

SMALL = Denoiser(depth=2, width=32, attention_heads=4, repeats=1, target=Pixels(4))
BACKBONE = SmallPaliGemma(
    image_size=32, patch=8, width=32, vision_layers=1, language_layers=2, attention_heads=2, saliency_layers=2
)


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def boxes(n: int):
    """Boxes with some area, as (left, top, right, bottom)."""
    edge = st.tuples(st.floats(0, 0.9), st.floats(0.02, 1)).map(lambda e: (e[0], min(1.0, e[0] + max(0.02, e[1]))))
    one = st.tuples(edge, edge).map(lambda b: [b[0][0], b[1][0], b[0][1], b[1][1]])
    return st.lists(one, min_size=n, max_size=n).map(torch.tensor)


# ---------------------------------------------------------------- the schedule and the size


def test_noise_levels_are_the_cosine_schedule() -> None:
    """Nichol and Dhariwal, equation 17, with their cap of 0.999 on each step."""
    schedule = SMALL.build(16, (2, 2), 8).schedule
    s, T = 0.008, 1000
    f = np.cos((np.arange(T + 1) / T + s) / (1 + s) * math.pi / 2) ** 2
    betas = np.minimum(1 - f[1:] / f[:-1], 0.999)
    np.testing.assert_allclose(schedule.alphas_cumprod.numpy(), np.cumprod(1 - betas), rtol=2e-4, atol=1e-9)
    np.testing.assert_allclose(schedule.alphas_cumprod[:-1].numpy(), (f[1:] / f[0])[:-1], rtol=2e-3, atol=1e-7)
    x = torch.ones(1, 4, 48)
    head = SMALL.build(16, (2, 2), 8)
    seen = []
    head.network.forward = lambda noised, t, *_: seen.append((noised, t)) or torch.zeros_like(noised)
    wrong = head.loss(torch.zeros(1, 4, 16), None, x, torch.Generator().manual_seed(1))
    ((noised, t),) = seen
    g = torch.Generator().manual_seed(1)
    a, e = f[int(t) + 1] / f[0], torch.randn(1, 4, 48, generator=(torch.randint(1000, (1,), generator=g), g)[1])
    np.testing.assert_allclose(noised.numpy(), math.sqrt(a) + e.numpy() * math.sqrt(1 - a), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(wrong.item(), e.square().mean().item(), rtol=1e-5)


@pytest.mark.parametrize("hidden", [[[0, 2], [1, 3]], [[0], [1, 3]]], ids=["equally many", "unequally many"])
def test_under_a_mask_only_the_noise_of_masked_patches_counts(hidden: list[list[int]]) -> None:
    """A network that answers zero is wrong by the noise itself, drawn here again from the same generator."""
    head = SMALL.build(16, (2, 2), 8)
    mask = torch.zeros(2, 4, dtype=torch.bool)
    for row, patches in enumerate(hidden):
        mask[row, patches] = True
    head.network.forward = lambda noised, t, patches, mask, masked_only=False: torch.zeros_like(
        noised[mask].view(len(noised), -1, noised.shape[-1]) if masked_only else noised
    )
    found = head.loss(torch.zeros(2, 4, 16), mask, torch.ones(2, 4, 48), torch.Generator().manual_seed(3))
    draws = torch.Generator().manual_seed(3)
    torch.randint(1000, (2,), generator=draws)
    noise = torch.randn(2, 4, 48, generator=draws)
    wrong = [noise[row, patch].square().mean().item() for row, patches in enumerate(hidden) for patch in patches]
    assert found.item() == pytest.approx(np.mean(wrong), rel=1e-5)


def test_the_published_head_has_64_million_parameters() -> None:
    """Latents of 27 x 27 x 64 from states of Qwen2-7B (width 3584); counted by hand from the paper's description."""
    d, q, z = 1024, 64, 3584
    block = (4 * d * d + 4 * d) + (8 * d * d + 5 * d) + (6 * d * d + 6 * d)  # attention, MLP, modulation
    level = (256 * d + d) + (d * d + d)
    by_hand = 3 * block + level + (z * d + d) + (q * d + d) + (2 * d * d + 2 * d) + (d * q + q) + d
    with torch.device("meta"):
        head = Denoiser(target=Latents("nowhere")).build(z, (27, 27), 14)
    assert parameters(head) == by_hand
    assert round(by_hand / 1e6) == 64


@pytest.mark.parametrize("preset", ["smoke", "quick", "small"])
def test_small_presets_give_both_heads_equal_parameters(preset: str) -> None:
    config = PRESETS[preset]
    b = config.backbone
    assert isinstance(b, SmallPaliGemma)
    mae, diffusion = (parameters(head.build(b.width, b.grid, b.patch)) for head in (config.decoder, config.denoiser))
    assert diffusion == pytest.approx(mae, rel=0.05)
    assert config.denoiser.repeats == 1


@pytest.mark.parametrize("depth", [1, 3])
def test_the_loss_under_a_mask_computes_less_and_equals_the_full_network(depth: int) -> None:
    draw = torch.Generator().manual_seed(0)
    head = Denoiser(depth=depth, width=32, attention_heads=4, repeats=2, target=Pixels(4)).build(24, (4, 4), 8)
    with torch.no_grad():  # a new network silences its blocks and predicts zero
        for name, parameter in head.named_parameters():
            if "modulation" in name or "leave" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=draw))
    states, target = torch.randn(3, 16, 24, generator=draw), torch.randn(3, 16, head.target_width, generator=draw)
    mask = RandomMask()(MaskContext((3, 16), generator(0, "mask")))
    noise = generator(0, "noise")
    t, e = torch.randint(1000, (6,), generator=noise), torch.randn(6, 16, head.target_width, generator=noise)
    a = head.kept[t, None, None]
    parts = []
    for masked_only in (False, True):
        patches = states.clone().requires_grad_()
        if masked_only:
            value = head.loss(patches, mask, target, generator(0, "noise"))
        else:
            seen, twice = patches.repeat_interleave(2, 0), mask.repeat_interleave(2, 0)
            noised = a.sqrt() * target.repeat_interleave(2, 0) + (1 - a).sqrt() * e
            value = (head.network(noised, t, seen, twice) - e)[twice].square().mean()
        parts.append((value, *torch.autograd.grad(value, [patches, *head.parameters()])))
    for full, less in zip(*parts, strict=True):
        torch.testing.assert_close(less, full, rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------- targets


@given(side=st.sampled_from([1, 2, 4, 8]))
@settings(max_examples=8, deadline=None)
def test_pixels_average_and_come_back(side: int) -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 16, 24), dtype=np.uint8))
    codec = Pixels(side).codec((2, 3), 8)
    rows = codec.encode(images)
    block = 8 // side
    mean = images.numpy().astype(np.float64).reshape(2, 3, 2, side, block, 3, side, block).mean((4, 7)) / 127.5 - 1
    wanted = mean.transpose(0, 2, 4, 3, 5, 1).reshape(2, 6, -1)
    np.testing.assert_allclose(rows.numpy(), wanted, atol=1e-5)
    assert codec.width == rows.shape[2] == 3 * side**2
    assert codec.decode(rows).shape == patchify(images, 8).shape
    if side == 8:
        assert torch.equal(unpatchify(codec.decode(rows), (2, 3), 8), images)


@pytest.fixture(scope="module")
def vae_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.5,
        shift_factor=0.25,
    )
    folder = tmp_path_factory.mktemp("vae")
    vae.save_pretrained(folder)
    return str(folder)


def test_latents_are_those_of_the_vae_in_its_own_folder(vae_folder: str) -> None:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    latents = Latents.of(vae_folder)
    assert (latents.channels, latents.factor) == (4, 2)
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 16, 16), dtype=np.uint8))
    codec = latents.codec((4, 4), 4)
    rows = codec.encode(images)
    assert rows.shape == (2, 16, codec.width) == (2, 16, 16)
    assert not rows.requires_grad
    vae = AutoencoderKL.from_pretrained(vae_folder)
    with torch.no_grad():
        whole = (vae.encode(images / 127.5 - 1).latent_dist.mean - 0.25) * 0.5
    for n, (r, c) in enumerate(np.ndindex(4, 4)):
        patch = whole[:, :, 2 * r : 2 * r + 2, 2 * c : 2 * c + 2]
        torch.testing.assert_close(rows[:, n], patch.permute(0, 2, 3, 1).flatten(1), atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        back = vae.decode(whole / 0.5 + 0.25).sample.clamp(-1, 1)
    found = unpatchify(codec.decode(rows), (4, 4), 4)
    assert (found.float() - (back + 1) * 127.5).abs().max() < 1


def test_a_vae_is_no_part_of_the_policy(vae_folder: str) -> None:
    head = Denoiser(depth=1, width=16, attention_heads=2, target=Latents.of(vae_folder)).build(16, (4, 4), 4)
    head.target(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
    assert not any("vae" in name or "codec" in name for name in head.state_dict())


def test_a_vae_that_is_missing_or_another_is_a_clear_error(vae_folder: str, tmp_path) -> None:
    (tmp_path / "config.json").write_text('{"hidden_size": 3}')
    with pytest.raises(UserError, match="not that of an AutoencoderKL"):
        Latents.of(str(tmp_path))
    with pytest.raises(UserError, match=r"--latents FOLDER|no repository"):
        Latents.of("nobody/nothing-of-this-name")
    other = Latents(vae_folder, channels=16, factor=8)
    with pytest.raises(UserError, match="4 channels and a factor of 2, not 16 and 8"):
        other.codec((4, 4), 4).encode(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))


def test_a_vae_of_other_weights_is_refused(vae_folder: str, tmp_path) -> None:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    known = Latents.of(vae_folder)
    vae = AutoencoderKL.from_pretrained(vae_folder)
    vae.encoder.conv_in.bias.data += 1
    vae.save_pretrained(tmp_path)
    assert Latents.of(str(tmp_path)) != replace(known, source=str(tmp_path))
    with pytest.raises(UserError, match="are not those that this was trained with"):
        replace(known, source=str(tmp_path)).codec((4, 4), 4).encode(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))


def test_latents_are_exact_under_autocast(vae_folder: str) -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, 16, 16), dtype=np.uint8))
    codec = Latents.of(vae_folder).codec((4, 4), 4)
    plain = codec.encode(images)
    with torch.autocast("cpu", torch.bfloat16):
        found = codec.encode(images)
    assert found.dtype == torch.float32
    assert torch.equal(found, plain)


def test_a_saved_head_is_read_again(vae_folder: str, tmp_path) -> None:
    for number, target in enumerate((Pixels(4), Pixels(), Latents.of(vae_folder))):
        head = Denoiser(depth=1, width=16, attention_heads=2, target=target)
        config = policy_config(R1.with_reconstruction_head(head))
        config.save(tmp_path / str(number))
        assert PolicyConfig.load(tmp_path / str(number)) == config


# ---------------------------------------------------------------- boxes


@given(at=st.tuples(*[st.integers(0, 5)] * 4))
@settings(deadline=None)
def test_cut_is_a_crop_stretched_over_the_picture(at) -> None:
    """Where box and picture are whole pixels, against repeated pixels: the middle of each is its own colour."""
    top, left = at[0], at[1]
    height, width = max(1, min(at[2] + 1, 8 - top)), max(1, min(at[3] + 1, 8 - left))
    images = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (1, 3, 8, 8), dtype=np.uint8))
    box = torch.tensor([[left, top, left + width, top + height]]) / 8
    big = torch.nn.functional.interpolate(images.float(), 8 * 9, mode="nearest").to(torch.uint8)  # room for the middle
    found = cut(big, box)[0].numpy()
    wanted = images[0, :, top : top + height, left : left + width].numpy()
    rows = ((np.arange(height) + 0.5) * 72 / height).astype(int)
    columns = ((np.arange(width) + 0.5) * 72 / width).astype(int)
    np.testing.assert_allclose(found[:, rows][:, :, columns].astype(int), wanted.astype(int), atol=1)


def test_the_whole_image_is_cut_to_itself() -> None:
    images = torch.from_numpy(np.random.default_rng(2).integers(0, 256, (2, 3, 12, 12), dtype=np.uint8))
    assert torch.equal(cut(images, WholeImage()(None, 2, torch.Generator())), images)


@given(gaze=boxes(3), seed=st.integers(0, 99))
@settings(deadline=None)
def test_crops_lie_in_the_picture_and_are_equally_large(gaze, seed: int) -> None:
    near, anywhere = GazeCrop(), RandomCrop()
    a = near(gaze, 3, generator(seed, "x"))
    b = anywhere(gaze, 3, generator(seed, "x"))
    for found in (a, b):
        assert (found >= -1e-6).all()
        assert (found <= 1 + 1e-6).all()
    edges = gaze.numpy()
    side = np.clip(1.5 * (edges[:, 2:] - edges[:, :2]).max(1), 0.25, 1)
    for found in (a, b):
        np.testing.assert_allclose((found[:, 2] - found[:, 0]).numpy(), side, atol=1e-6)
        np.testing.assert_allclose((found[:, 3] - found[:, 1]).numpy(), side, atol=1e-6)
    for box, crop, length in zip(gaze, a, side, strict=True):
        if length < 1 or 1.5 * max(box[2] - box[0], box[3] - box[1]) <= 1:  # the target is all in its own crop
            assert (crop[:2] <= box[:2] + 1e-6).all()
            assert (crop[2:] >= box[2:] - 1e-6).all()


def test_a_target_that_was_shifted_out_of_the_picture_still_has_a_region() -> None:
    """`data.samples.shifted` may leave a box without area at an edge."""
    gaze = torch.tensor([[1.0, 0.4, 1.0, 0.6], [0.2, 0.0, 0.4, 0.0], [0.0, 0.0, 0.0, 0.0]])
    for crop in (GazeCrop(), RandomCrop()):
        found = crop(gaze, 3, generator(0, "x"))
        assert torch.isfinite(found).all()
        assert (found[:, 2:] - found[:, :2] >= 0.25 - 1e-6).all()
        assert found.min() >= 0
        assert found.max() <= 1
    near = GazeCrop()(gaze, 3, generator(0, "x"))
    torch.testing.assert_close(near[0, 2], torch.tensor(1.0))
    torch.testing.assert_close(near[2], torch.tensor([0.0, 0.0, 0.25, 0.25]))
    mask = GazeMask()(MaskContext((3, 16), torch.Generator(), grid=(4, 4), boxes=gaze))
    assert mask.sum(1).tolist() == [4, 4, 4]
    assert mask[2].nonzero().flatten().tolist()[0] == 0


def test_random_crops_are_uniform_and_do_not_know_the_place() -> None:
    gaze = torch.tensor([[0.7, 0.7, 0.9, 0.8]]).expand(4000, 4)
    moved = gaze - torch.tensor([0.6, 0.5, 0.6, 0.5])
    a, b = (RandomCrop()(boxes, 4000, generator(0, "x")) for boxes in (gaze, moved))
    torch.testing.assert_close(a, b)
    places = a[:, :2] / (1 - 0.3)
    np.testing.assert_allclose(places.mean(0), 0.5, atol=0.02)
    np.testing.assert_allclose(places.var(0), 1 / 12, atol=0.005)


@given(gaze=boxes(2), rows=st.integers(2, 9), columns=st.integers(2, 9))
@settings(deadline=None)
def test_a_gaze_mask_takes_the_patches_of_the_target_first(gaze, rows: int, columns: int) -> None:
    n = rows * columns
    mask = GazeMask()(MaskContext((2, n), torch.Generator(), grid=(rows, columns), boxes=gaze)).numpy()
    assert (mask.sum(1) == masked_count(0.25, n)).all()
    for box, chosen in zip(gaze.double().numpy(), mask, strict=True):
        low = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), -1).reshape(-1, 2) / [columns, rows]
        high = low + np.array([1 / columns, 1 / rows])
        gap = np.hypot(*np.maximum(np.maximum(box[:2] - high, low - box[2:]), 0).T)
        assert gap[chosen].max() <= gap[~chosen].min() + 2e-3


def test_a_gaze_mask_covers_a_target_that_it_has_room_for() -> None:
    drawn = np.zeros((1, 32, 32), dtype=bool)
    drawn[0, 5:11, 17:23] = True
    box = torch.tensor([[17 / 32, 5 / 32, 23 / 32, 11 / 32]])
    mask = GazeMask()(MaskContext((1, 64), torch.Generator(), grid=(8, 8), boxes=box))
    assert mask.numpy()[patch_coverage(drawn, (8, 8)) > 0].all()


# ---------------------------------------------------------------- arms


def policy_config(arm: Condition) -> PolicyConfig:
    return untrained(arm, BACKBONE, data_hash="x")


def batch_of(b: int = 3, gaze: bool = False) -> Batch:
    rng = np.random.default_rng(0)
    return Batch(
        images=torch.from_numpy(rng.integers(0, 256, (b, 3, 32, 32), dtype=np.uint8)),
        instructions=["pick up the bowl", "open the drawer", "close it"][:b],
        actions=torch.from_numpy(rng.uniform(-1, 1, (b, 8, 7)).astype(np.float32)),
        valid=torch.ones(b, 8, dtype=torch.bool),
        gaze=torch.tensor([[0.1, 0.2, 0.4, 0.5]]).expand(b, 4) if gaze else None,
    )


SIZES = (MAEDecoder(1, 32, 4), SMALL)


@pytest.mark.parametrize("arm", [arm.id for arm in GRID])
def test_every_arm_of_the_grid_trains_and_acts_without_its_head(arm: str) -> None:
    condition = CONDITIONS[arm].with_reconstruction_head(*SIZES)
    policy = policy_config(condition).build()
    batch = batch_of(gaze=not condition.annotation_free)
    found = losses(policy, batch, condition.reconstruction, generator(0, "mask"), noise=generator(0, "noise"))
    found.total.backward()
    if condition.reconstruction is None:
        assert found.reconstruction is None
        return
    assert found.reconstruction is not None
    torch.testing.assert_close(found.total, found.action + 0.5 * found.reconstruction)
    acting = policy.act(batch.inputs)
    policy.reconstruction_head = None
    assert torch.equal(policy.act(batch.inputs), acting)


def test_annotation_is_declared_by_those_arms_that_read_it() -> None:
    told = {id for id, arm in CONDITIONS.items() if not arm.annotation_free}
    assert told == {"R1", "R2", "G1", "G2", "G1-shuffled", "G1-head"}
    for id in told:
        condition = CONDITIONS[id].with_reconstruction_head(*SIZES)
        with pytest.raises(ValueError, match="needs the target's boxes"):
            losses(policy_config(condition).build(), batch_of(), condition.reconstruction, generator(0, "mask"))
    for id in {arm.id for arm in GRID} - told:  # whatever stands in the field, they do not read it
        condition = CONDITIONS[id].with_reconstruction_head(*SIZES)
        policy = policy_config(condition).build()
        with_box, without = (
            losses(policy, batch_of(gaze=g), condition.reconstruction, generator(0, "mask")).total
            for g in (True, False)
        )
        assert torch.equal(with_box, without)


def test_an_arm_has_either_a_mask_or_a_crop() -> None:
    for mask, crop in ((None, None), (GazeMask(), GazeCrop())):
        with pytest.raises(ValueError, match="either"):
            Reconstruction(mask, crop=crop)


@pytest.mark.parametrize("arm", ["R1", "A1"])
def test_the_gradient_of_the_head_reaches_the_backbone(arm: str) -> None:
    """Also through a head whose blocks start at nothing, from the second step on."""
    condition = CONDITIONS[arm].with_reconstruction_head(*SIZES)
    policy = policy_config(condition).build()
    batch = batch_of(gaze=not condition.annotation_free)
    step = torch.optim.SGD(policy.reconstruction_head.parameters(), lr=0.1)
    for number in range(3):
        policy.zero_grad()
        losses(policy, batch, condition.reconstruction, generator(0, "mask", number)).reconstruction.backward()
        step.step()
    reached = policy.backbone.model.language_model.layers[0].self_attn.q_proj.weight.grad
    assert reached.abs().max() > 0


def test_masked_states_and_visible_pixels_are_not_read() -> None:
    network = SMALL.build(16, (4, 4), 8).network
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    g = torch.Generator().manual_seed(0)
    mask = torch.rand(2, 16, generator=g) < 0.25
    states, rows, t = torch.randn(2, 16, 16, generator=g), torch.randn(2, 16, 48, generator=g), torch.tensor([3, 700])
    told = network(rows, t, states, mask)
    other = network(
        torch.where(mask[..., None], rows, torch.randn(2, 16, 48)), t,
        torch.where(mask[..., None], torch.randn(2, 16, 16), states), mask,
    )  # fmt: skip
    torch.testing.assert_close(told, other)
    assert not torch.allclose(told, network(rows + mask[..., None], t, states, mask))
    assert not torch.allclose(told, network(rows, t, states + ~mask[..., None], mask))


def test_at_first_zero_is_predicted_and_the_loss_is_the_noise() -> None:
    """adaLN-Zero: the loss of an untrained head is the mean square of the noise that it drew."""
    head = Denoiser(depth=1, width=16, attention_heads=2, repeats=3, target=Pixels(2)).build(16, (2, 2), 8)
    target = torch.rand(2, 4, 12)
    found = head.loss(torch.randn(2, 4, 16), None, target, torch.Generator().manual_seed(5))
    g = torch.Generator().manual_seed(5)
    torch.randint(1000, (6,), generator=g)
    torch.testing.assert_close(found, torch.randn(6, 4, 12, generator=g).square().mean())


# ---------------------------------------------------------------- known answers


def toy(b: int, seed: int) -> torch.Tensor:
    """A scene where only the target's pixels vary: a grey table with one square that is dark or bright."""
    images = torch.full((b, 3, 32, 32), 128, dtype=torch.uint8)
    bright = torch.rand(b, 1, 1, 1, generator=generator(seed, "toy")) < 0.5
    images[:, :, 16:24, 8:16] = torch.where(bright, 255, 0).to(torch.uint8)
    return images


@pytest.mark.slow
@pytest.mark.parametrize("blind", [False, True])
def test_the_gaze_arm_draws_what_a_blinded_backbone_cannot(blind: bool) -> None:
    """All there is to know is whether the target is bright: a policy that sees it draws it, a blind one guesses."""
    torch.manual_seed(0)
    backbone = BACKBONE.build()
    head = Denoiser(depth=1, width=32, attention_heads=4, repeats=4, target=Pixels(1)).build(32, (4, 4), 8)
    optimizer = torch.optim.AdamW([*backbone.parameters(), *head.parameters()], lr=3e-3)
    box = torch.tensor([[8 / 32, 16 / 32, 16 / 32, 24 / 32]])

    def states_and_target(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        told = torch.full_like(images, 128) if blind else images
        states = backbone(PolicyInput(told, ["pick up the square"] * len(images))).patches
        return states, head.target(cut(images, GazeCrop()(box.expand(len(images), 4), len(images), torch.Generator())))

    for step in range(150):
        optimizer.zero_grad()
        states, target = states_and_target(toy(16, step))
        head.loss(states, None, target, generator(0, "noise", step)).backward()
        optimizer.step()
    with torch.no_grad():
        images = toy(200, 10_000)
        states, target = states_and_target(images)
        drawn = head.picture(states, None, target, steps=10)[:, [5, 6, 9, 10]].mean((1, 2))  # the middle of the crop
    right = ((drawn > 0) == (images[:, 0, 20, 12] == 255)).float().mean().item()
    assert right < 0.65 if blind else right > 0.95


@pytest.mark.slow
@pytest.mark.parametrize("masked", [False, True])
def test_sampling_recovers_a_trained_image(masked: bool) -> None:
    """One picture, learnt by heart: drawn again from noise, in any number of steps, also under a mask."""
    torch.manual_seed(0)
    images = torch.from_numpy(np.random.default_rng(3).integers(0, 256, (1, 3, 8, 8), dtype=np.uint8))
    head = Denoiser(depth=1, width=32, attention_heads=4, repeats=16).build(16, (4, 4), 2)
    states, target = torch.randn(1, 16, 16), head.target(images)
    mask = torch.tensor([[i % 3 == 0 for i in range(16)]]) if masked else None
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3)
    for step in range(400):
        optimizer.param_groups[0]["lr"] = 5e-3 * (1 - step / 400)
        optimizer.zero_grad()
        head.loss(states, mask, target, generator(0, "noise", step)).backward()
        optimizer.step()
    chosen = slice(None) if mask is None else mask
    for steps in (10, 50):
        drawn = head.picture(states, mask, target, steps=steps)
        assert torch.equal(drawn, head.picture(states, mask, target, steps=steps))
        assert (drawn - patchify(images, 2))[chosen].square().mean() < 0.01
        if mask is not None:
            assert torch.equal(drawn[~mask], patchify(images, 2)[~mask])
    assert not torch.equal(head.picture(states, mask, target, 10), head.picture(states, mask, target, 50))


@pytest.mark.parametrize("steps", [1, 2, 4, 20, 250, 1000])
def test_sampling_with_the_exact_noise_gives_the_distribution_in_any_number_of_steps(steps: int) -> None:
    """For pixels that are N(0.3, 0.1^2) the best prediction of the noise has a closed form; DDIM must end at them.

    One step can only give the mean; the more there are, the nearer the deviation comes to its own.
    """
    head = SMALL.build(16, (16, 16), 4)
    mean, deviation = 0.3, 0.1

    def exact(x: torch.Tensor, t: torch.Tensor, *_) -> torch.Tensor:
        a = head.kept[t, None, None].double()
        return ((1 - a).sqrt() * (x.double() - a.sqrt() * mean) / (a * deviation**2 + 1 - a)).float()

    head.network.forward = exact
    drawn = head.picture(torch.zeros(4, 256, 16), None, torch.zeros(4, 256, 48), steps=steps)
    assert drawn.mean().item() == pytest.approx(mean, abs=0.01)
    if steps >= 250:
        assert drawn.std().item() == pytest.approx(deviation, rel=0.1)
    else:
        assert drawn.std().item() < deviation


def test_pairs_of_arms_draw_the_same_noise_and_levels() -> None:
    """R1, R2 and R3 differ in what is cut and in nothing else: noise has a stream of its own."""
    drawn = []
    for arm in (R1, R2, R3):
        condition = arm.with_reconstruction_head(SMALL)
        policy = policy_config(condition).build()
        batch, seen = batch_of(gaze=True), []
        head = policy.reconstruction_head
        inner = head.network.forward
        head.network.forward = lambda x, t, *rest, seen=seen, inner=inner: seen.append((x, t)) or inner(x, t, *rest)
        target = head.target(condition.reconstruction.picture(batch, generator(0, "mask")))
        losses(policy, batch, condition.reconstruction, generator(0, "mask"), noise=generator(0, "noise"))
        ((noised, level),) = seen
        a = head.kept[level, None, None]
        drawn.append(((noised - a.sqrt() * target) / (1 - a).sqrt(), level))
    for noise, level in drawn[1:]:
        torch.testing.assert_close(noise, drawn[0][0], atol=1e-3, rtol=1e-3)
        assert torch.equal(level, drawn[0][1])
