"""Step 3 of the ReconVLA arm (arXiv 2508.10333): a diffusion head, trained to find the noise in a picture.

::

    x_t = sqrt(a_t) x + sqrt(1 - a_t) e      a_t falls with t = 0 ... T - 1 as a cosine squared (arXiv 2102.09672)
    loss = | e - f(x_t, t, states) |^2       one random t per sample, `repeats` times; f is `method.variants.dit.DiT`

In training it costs about what the MAE decoder of equal size does, times `repeats`. A picture costs one pass per step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from la_reconvla.method.pixels import at, equally_many
from la_reconvla.method.variants.dit import DiT
from la_reconvla.method.variants.targets import Pixels, Target


@dataclass(frozen=True)
class Denoiser:
    """The head's size, as published: 3 blocks, width 1024, 16 heads; 64 M parameters on ReconVLA's 7-B backbone.

    Attributes:
        depth: transformer blocks.
        width: hidden size.
        attention_heads: of each block.
        repeats: noise levels drawn for each sample of a batch; 4 as published.
        sampling: denoising steps of a picture.
        target: what is drawn: pixels, or latents of a VAE as published.
        timesteps: T.
    """

    depth: int = 3
    width: int = 1024
    attention_heads: int = 16
    repeats: int = 4
    sampling: int = 50
    target: Target = field(default_factory=Pixels)
    timesteps: int = 1000
    label = "diffusion"

    def __post_init__(self):
        if self.width % self.attention_heads or self.width % 4:
            raise ValueError(
                f"width {self.width} must be divisible by 4 and by the {self.attention_heads} attention heads"
            )
        if min(self.depth, self.repeats, self.sampling) < 1 or self.sampling > self.timesteps:
            raise ValueError(f"depth, repeats and sampling must be at least 1, sampling at most {self.timesteps}")

    def build(self, backbone_width: int, grid: tuple[int, int], patch: int) -> DiffusionReconstructor:
        """The trainable module for a backbone of this width, grid and patch size."""
        return DiffusionReconstructor(self, backbone_width, grid, patch)


class DiffusionReconstructor(nn.Module):
    """Predicts the noise in a picture from the backbone's states at each of its patches."""

    kept: Tensor

    def __init__(self, config: Denoiser, backbone_width: int, grid: tuple[int, int], patch: int):
        super().__init__()
        from diffusers.schedulers.scheduling_ddpm import (
            DDPMScheduler,  # here, because it takes seconds, which no other arm should wait for
        )

        self.config, self.codec = config, config.target.codec(grid, patch)
        self.schedule: Any = DDPMScheduler(
            config.timesteps, beta_schedule="squaredcos_cap_v2", clip_sample=self.codec.bounded
        )
        self.register_buffer("kept", self.schedule.alphas_cumprod, persistent=False)  # a_t
        self.target_width = self.codec.width
        self.network = DiT(config.depth, config.width, config.attention_heads, self.codec.width, backbone_width, grid)

    def target(self, images: UInt8[Tensor, "b 3 H W"]) -> Float[Tensor, "b n q"]:
        """What is drawn of these pictures, patch by patch."""
        return self.codec.encode(images)

    def loss(
        self,
        patches: Float[Tensor, "b n d"],
        mask: Bool[Tensor, "b n"] | None,
        target: Float[Tensor, "b n q"],
        generator: torch.Generator,
    ) -> Float[Tensor, ""]:
        """Mean squared error of the noise over masked patches; over all without a mask, for a picture of its own.

        Noise comes from the CPU's `generator`, so that every device draws the same.
        """
        r = self.config.repeats
        patches, target = patches.repeat_interleave(r, 0), target.repeat_interleave(r, 0)
        mask = None if mask is None else mask.repeat_interleave(r, 0)
        t = torch.randint(self.config.timesteps, (len(target),), generator=generator).to(target.device)
        noise = torch.randn(target.shape, generator=generator).to(target.device)
        a = self.kept[t, None, None]
        noised = a.sqrt() * target.float() + (1 - a).sqrt() * noise
        if mask is not None and equally_many(mask):
            return (self.network(noised, t, patches, mask, masked_only=True).float() - at(noise, mask)).square().mean()
        wrong = (self.network(noised, t, patches, mask).float() - noise).square().mean(-1)
        return (wrong if mask is None else wrong[mask]).mean()

    @torch.no_grad()
    def picture(
        self,
        patches: Float[Tensor, "b n d"],
        mask: Bool[Tensor, "b n"] | None,
        target: Float[Tensor, "b n q"],
        steps: int | None = None,
    ) -> Float[Tensor, "b n r"]:
        """Pixels of every patch in [-1, 1], drawn in `steps` steps by DDIM (arXiv 2010.02502).

        It begins with the same noise in every call. Under a mask, visible patches are those of `target`, which a codec
        that blends neighbours must know; nothing else of it is read.
        """
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler

        # trailing: the first step is taken at t = T - 1, where there is nothing but noise, however few steps there are
        sampler: Any = DDIMScheduler.from_config(self.schedule.config, timestep_spacing="trailing")
        sampler.set_timesteps(steps or self.config.sampling)
        drawn = torch.randn(target.shape, generator=torch.Generator().manual_seed(0)).to(patches.device)
        for t in sampler.timesteps:
            level = t.to(patches.device).expand(len(drawn))
            drawn = sampler.step(self.network(drawn, level, patches, mask).float(), t, drawn).prev_sample
        return self.codec.decode(drawn if mask is None else torch.where(mask[..., None], drawn, target))
