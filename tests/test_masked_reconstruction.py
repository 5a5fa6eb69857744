"""The loss for one's own policy: against numpy, and what it refuses."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from la_reconvla.errors import UserError
from la_reconvla.masked_reconstruction import MaskedReconstruction, language_reaches_patches
from la_reconvla.method.decoder import MAEDecoder
from la_reconvla.method.mask import MaskSource, RandomMask
from la_reconvla.method.saliency import saliency
from la_reconvla.method.variants.gaze import GazeMask
from la_reconvla.method.variants.warm_up import WarmUp

B, GRID, PATCH, WIDTH, T = 2, (3, 4), 4, 16, 5
ROW = torch.arange(B)[:, None]
N, HEAD = 12, MAEDecoder(depth=1, width=16, attention_heads=2)


def module(**options) -> MaskedReconstruction:
    torch.manual_seed(0)
    return MaskedReconstruction(WIDTH, GRID, PATCH, head=HEAD, **options)


def given(seed: int = 0):
    """Patch tokens, pictures, attention of two heads, and the mask of the words."""
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randn(B, N, WIDTH, generator=draw).requires_grad_()
    images = torch.randint(0, 256, (B, 3, GRID[0] * PATCH, GRID[1] * PATCH), dtype=torch.uint8, generator=draw)
    attention = torch.rand(B, 2, T, N, generator=draw).softmax(-1).requires_grad_()
    words = torch.tensor([[True, True, True, False, False], [False, True, True, True, True]])
    return tokens, images, attention, words


def picked(scores: np.ndarray) -> np.ndarray:
    """The highest quarter of each row, in numpy."""
    mask = np.zeros(scores.shape, dtype=bool)
    np.put_along_axis(mask, np.argsort(-scores, axis=1)[:, : math.ceil(N / 4)], True, axis=1)
    return mask


def patches_of(images: np.ndarray) -> np.ndarray:
    """float64 [b n q] in [-1, 1], loop by loop."""
    found = [
        [
            image[:, r * PATCH : (r + 1) * PATCH, c * PATCH : (c + 1) * PATCH]
            for r in range(GRID[0])
            for c in range(GRID[1])
        ]
        for image in images
    ]
    return np.array(found).transpose(0, 1, 3, 4, 2).reshape(len(images), N, -1) / 127.5 - 1


def test_scores_mask_and_loss_are_those_of_numpy():
    tokens, images, attention, words = given()
    reconstruct = module()
    loss, mask, scores = reconstruct(tokens, images, attention, words)
    assert scores is not None
    maps = attention.detach().double().numpy().mean(1)
    expected = np.stack([maps[i][words[i].numpy()].mean(0) for i in range(B)])
    np.testing.assert_allclose(scores.numpy(), expected, rtol=1e-5)
    np.testing.assert_array_equal(mask.numpy(), picked(expected))
    drawn = reconstruct.head.picture(tokens, mask, reconstruct.head.target(images)).double().numpy()
    error = (drawn - patches_of(images.numpy()))[mask.numpy()]
    np.testing.assert_allclose(loss.item(), (error**2).mean(), rtol=1e-5)


def test_a_decoder_that_says_grey_errs_by_the_pixels_themselves():
    tokens, images, attention, words = given()
    reconstruct = module()
    nn.init.zeros_(reconstruct.head.leave.weight)
    nn.init.zeros_(reconstruct.head.leave.bias)
    loss, mask, _ = reconstruct(tokens, images, attention, words)
    np.testing.assert_allclose(loss.item(), (patches_of(images.numpy())[mask.numpy()] ** 2).mean(), rtol=1e-5)


def test_nothing_of_a_masked_token_is_read_and_the_visible_ones_learn():
    tokens, images, attention, words = given()
    loss, mask, _ = module()(tokens, images, attention, words)
    (gradient,) = torch.autograd.grad(loss, tokens)
    assert torch.equal(gradient.abs().sum(-1) > 0, ~mask)


@pytest.mark.parametrize("shape", [(B, T, N), (B, 2, T, N), (B, 3, 2, T, N)], ids=len)
def test_layers_and_heads_may_be_any_number(shape):
    tokens, images, _, words = given()
    attention = torch.rand(shape).softmax(-1).requires_grad_()
    scores = module()(tokens, images, attention, words).scores
    per_token = attention.detach().numpy().reshape(B, -1, T, N).mean(1)
    expected = [per_token[i][words[i].numpy()].mean(0) for i in range(B)]
    np.testing.assert_allclose(scores.numpy(), expected, rtol=1e-5)


def test_own_scores_and_random_masks():
    tokens, images, attention, words = given()
    own = torch.rand(B, N)
    _, mask, scores = module()(tokens, images, own)
    np.testing.assert_array_equal(mask.numpy(), picked(own.numpy()))
    assert torch.equal(scores, own)
    random = module(mask=RandomMask())
    first, again = (random(tokens, images, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first.mask, again.mask)
    assert first.mask.sum(1).tolist() == [3, 3]
    assert first.scores is None
    assert torch.isfinite(random(tokens, images, attention, words).loss), "the control is called as the method is"
    counts = sum(random(tokens, images).mask.sum(0) for _ in range(300))
    np.testing.assert_allclose(counts / counts.sum(), 1 / N, atol=0.03)


def test_a_mask_that_warms_up_follows_attention_once_its_share_is_done():
    tokens, images, attention, words = given()
    reconstruct, following = module(mask=WarmUp(share=0.25)), module()(tokens, images, attention, words).mask

    def at(**progress):
        return reconstruct(tokens, images, attention, words, **progress, generator=torch.Generator().manual_seed(1))

    random = module(mask=RandomMask())(tokens, images, generator=torch.Generator().manual_seed(1)).mask
    assert not torch.equal(random, following)
    assert torch.equal(at().mask, random)
    assert torch.equal(at(progress=0.2).mask, random)
    assert torch.equal(at(progress=0.25).mask, following)
    with pytest.raises(UserError, match="share of the training"):
        at(progress=100)


MEANS = {
    "unit": (0.0, 1.0),
    "signed": (0.5, 0.5),
    "imagenet": (np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])),
}


@pytest.mark.parametrize("pixels", MEANS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_float_pictures_are_converted_by_the_convention_that_is_named(pixels, dtype):
    tokens, images, attention, words = given()
    mean, deviation = (np.broadcast_to(part, 3).reshape(3, 1, 1) for part in MEANS[pixels])
    coded = torch.from_numpy((images.numpy() / 255 - mean) / deviation).to(dtype)
    expected = module()(tokens, images, attention, words).loss
    loss = module(pixels=pixels)(tokens, coded, attention, words).loss
    torch.testing.assert_close(loss, expected, rtol=1e-6 if dtype == torch.float32 else 1e-2, atol=0.0)


@pytest.mark.parametrize(
    ("pixels", "coded"),
    [
        ("uint8", lambda images: images / 255),
        ("uint8", lambda images: images.float()),
        ("uint8", lambda images: (images / 255).round().byte()),
        ("unit", lambda images: images / 127.5 - 1),
        ("unit", lambda images: images.float()),
        ("unit", lambda images: images),
        ("unit", lambda images: torch.full(images.shape, torch.nan)),
        ("signed", lambda images: images / 255 * 5 - 2),
    ],
)
def test_pictures_of_another_coding_are_refused(pixels, coded):
    tokens, images, attention, words = given()
    with pytest.raises(UserError, match="pixels"):
        module(pixels=pixels)(tokens, coded(images), attention, words)


def test_what_interpolation_overshoots_is_refused_with_the_repair():
    tokens, images, attention, words = given()
    small = images[..., ::2, ::2] / 255
    over = nn.functional.interpolate(small, images.shape[-2:], mode="bicubic")
    with pytest.raises(UserError, match="clamp"):
        module(pixels="unit")(tokens, over, attention, words)
    module(pixels="unit")(tokens, over.clamp(0, 1), attention, words)


@pytest.mark.parametrize("pixels", ["signed", "imagenet", "clip"])
def test_unit_pictures_under_another_coding_are_warned_of(pixels):
    """They lie within that coding too, so that nothing else tells."""
    tokens, images, attention, words = given()
    with pytest.warns(UserWarning, match="'unit'"):
        (reconstruct := module(pixels=pixels))(tokens, images / 255, attention, words)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reconstruct(tokens, images / 300, attention, words)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t, i, a, w: (t[:, :-1], i, a, w), r"\[b 12 16\]"),
        (lambda t, i, a, w: (torch.cat([t[:, :1], t], 1), i, a, w), "class"),
        (lambda t, i, a, w: (t[:0], i[:0], a[:0], w[:0]), "batch is empty"),
        (lambda t, i, a, w: (t, i[..., :-1], a, w), "12 16"),
        (lambda t, i, a, w: (t, i.permute(0, 2, 3, 1), a, w), "permute"),
        (lambda t, i, a, w: (t, i, a, w & False), r"\[0, 1\]"),
        (lambda t, i, a, w: (t, i, a, w.int()), "bool"),
        (lambda t, i, a, w: (t, i, a, None), "word_mask"),
        (lambda t, i, a, w: (t, i, a[..., :-1], w), "columns of patches"),
        (lambda t, i, a, w: (t, i, a.mT, w), "columns of patches"),
        (lambda t, i, a, w: (t, i, a[:, 0, 0, :-1], w), "scores"),
        (lambda t, i, a, w: (t, i), "RandomMask"),
        (lambda t, i, a, w: (t, i, torch.stack([a, a, a]), w), r"torch\.stack\(layers, 1\)"),
        (lambda t, i, a, w: (t, i, a.log(), w), "after the softmax"),
        (lambda t, i, a, w: (t, i, a * 5, w), "after the softmax"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_repair(change, says):
    with pytest.raises(UserError, match=says):
        module()(*change(*given()))


def test_masks_and_codings_that_it_cannot_serve_are_refused_when_it_is_built():
    with pytest.raises(UserError, match="GazeMask"):
        module(mask=GazeMask())
    with pytest.raises(UserError, match="imagenet"):
        module(pixels="imagnet")
    for grid in (4, (4,), (0, 4)):
        with pytest.raises(UserError, match="rows and columns"):
            MaskedReconstruction(WIDTH, grid, PATCH)  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class Given(MaskSource):
    """Masks what it is given to mask."""

    mask: torch.Tensor

    def __call__(self, context):
        return self.mask


@pytest.mark.parametrize(
    "mask",
    [torch.zeros(B, N).bool(), torch.ones(B, N), torch.ones(B, N - 1).bool(), torch.eye(B, N).bool() | (ROW == 0)],
    ids=["none", "float", "short", "unequal"],
)
def test_a_mask_that_is_none_is_refused(mask):
    with pytest.raises(ValueError, match=r"Given must give bool \[2 12\], equally many"):
        module(mask=Given(mask))(*given())


def test_it_warns_once_of_what_trains_nothing():
    tokens, images, attention, words = given()
    reconstruct = module()
    with pytest.warns(UserWarning, match="no loss shapes"):
        reconstruct(tokens, images, attention.detach(), words)
    with pytest.warns(UserWarning, match="decoder and not your policy"):
        reconstruct(tokens.detach(), images, attention, words)
    with pytest.warns(UserWarning, match="equal at all patches"):
        reconstruct(tokens, images, torch.full((B, N), 0.1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reconstruct(tokens, images, attention.detach(), words)
        module()(tokens, images, saliency(attention.detach()[:, None], words))
        module(mask=RandomMask())(tokens, images, attention.detach(), words)


def test_warnings_name_the_line_of_the_caller():
    tokens, images, attention, words = given()
    with pytest.warns(UserWarning, match="unit|policy|noise") as said:
        module(pixels="signed")(tokens.detach(), images / 255, attention.detach(), words)
    assert len(said) == 3
    assert {one.filename for one in said} == {__file__}


class Transformer(nn.Module):
    """One layer of attention over words and patches in an order, causal or not."""

    def __init__(self, image_first: bool, causal: bool):
        super().__init__()
        self.image_first, self.causal = image_first, causal
        self.layer = nn.TransformerEncoderLayer(WIDTH, 2, 32, dropout=0.0, batch_first=True)

    def forward(self, patches, words):
        parts = [patches, words] if self.image_first else [words, patches]
        length = N + words.shape[1]
        hidden = nn.Transformer.generate_square_subsequent_mask(length) if self.causal else None
        states = self.layer(torch.cat(parts, 1), src_mask=hidden, is_causal=self.causal)
        return states[:, :N] if self.image_first else states[:, -N:]


@pytest.mark.parametrize(
    ("image_first", "causal", "reaches"), [(True, True, False), (False, True, True), (True, False, True)]
)
def test_whether_the_patches_can_see_the_words(image_first, causal, reaches):
    torch.manual_seed(0)
    patches, words = torch.randn(B, N, WIDTH), torch.randn(B, T, WIDTH).requires_grad_()
    model = Transformer(image_first, causal)
    seen = model(patches, words)
    assert language_reaches_patches(seen, words) is reaches
    other = model(patches, words + torch.randn_like(words))
    assert torch.equal(seen, other) is not reaches, "as another instruction says"
    seen.sum().backward()  # the graph is still there


def test_a_gradient_that_is_not_finite_tells_nothing():
    """Rows of padding are NaN in some models, and NaN is not 0."""
    words = torch.randn(B, T, WIDTH).requires_grad_()
    with pytest.raises(FloatingPointError, match="not finite"):
        language_reaches_patches(torch.zeros(B, N, WIDTH) + words.sum() * torch.nan, words)


def test_words_without_gradient_and_patches_without_words():
    words = torch.randn(B, T, WIDTH)
    with pytest.raises(UserError, match="requires_grad_"):
        language_reaches_patches(torch.randn(B, N, WIDTH), words)
    assert not language_reaches_patches(torch.randn(B, N, WIDTH), words.requires_grad_())
