"""Latents of a pretrained VAE, which the published diffusion head draws; `variants.targets.Pixels` is the other."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from la_reconvla.backbones.hub import folder_hash, hub_files
from la_reconvla.errors import UserError
from la_reconvla.method.pixels import patchify, signed
from la_reconvla.method.variants.targets import unsigned
from la_reconvla.storage import read_json

FILES = ("*.json", "*.safetensors")


@dataclass(frozen=True)
class Latents:
    """Latents of a `diffusers` AutoencoderKL, folded patch by patch; 27 x 27 x 64 in ReconVLA.

    The VAE is frozen and is no part of the policy: its weights stay at their source, and acting never loads them.

    Attributes:
        source: folder, or id on the hub.
        revision: commit or branch on the hub.
        fold: latent pixels per side of each patch.
        channels: numbers a latent pixel; filled in by `of`.
        factor: pixels of the picture per side of each latent pixel; filled in by `of`.
        weights: hash of the VAE's weights; filled in by `of`, so that a run names the very target that it was given.
    """

    source: str
    revision: str | None = None
    fold: int = 2
    channels: int = 16
    factor: int = 8
    weights: str | None = None
    label = "latents"

    @classmethod
    def of(cls, source: str, revision: str | None = None, fold: int = 2) -> Latents:
        """The latents of this VAE, with the numbers that name it.

        Raises:
            UserError: if it cannot be had, or is something else.
        """
        folder = hub_files(source, revision, FILES, give="--latents ")
        settings = read_json(folder / "config.json")
        try:
            levels = len(settings["block_out_channels"])
            channels = int(settings["latent_channels"])
            return cls(source, revision, fold, channels, 2 ** (levels - 1), folder_hash(folder))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{folder}/config.json is not that of an AutoencoderKL ({error})") from error

    def codec(self, grid: tuple[int, int], patch: int) -> LatentCodec:
        """The pair of maps for pictures of this grid and patch size."""
        return LatentCodec(self, grid, patch)


@dataclass(frozen=True)
class LatentCodec:
    """Pictures to `fold` x `fold` x `channels` latents a patch, and back. The VAE is loaded with its first use.

    A picture is resized so that each patch has `fold` latent pixels per side.
    """

    config: Latents
    grid: tuple[int, int]
    patch: int
    bounded = False

    @property
    def width(self) -> int:
        """Numbers of a patch, q."""
        return self.config.channels * self.config.fold**2

    @torch.no_grad()
    @torch.autocast("cuda", enabled=False)
    @torch.autocast("cpu", enabled=False)
    def encode(self, images: UInt8[Tensor, "b 3 H W"]) -> Float[Tensor, "b n q"]:
        """The mean of the latents' distribution, shifted and scaled as the VAE's pipelines do; always in float32.

        Raises:
            UserError: if the VAE cannot be had, or does not match the configuration.
        """
        vae = _vae(self.config, images.device)
        side = self.config.fold * self.config.factor
        size = side * self.grid[0], side * self.grid[1]
        pixels = F.interpolate(signed(images), size, mode="bilinear", antialias=True)
        latents = (vae.encode(pixels).latent_dist.mode() - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor
        return rearrange(latents, "b ch (r s) (c t) -> b (r c) (s t ch)", s=self.config.fold, t=self.config.fold)

    @torch.no_grad()
    @torch.autocast("cuda", enabled=False)
    @torch.autocast("cpu", enabled=False)
    def decode(self, target: Float[Tensor, "b n q"]) -> Float[Tensor, "b n r"]:
        """All pixels of a patch, in [-1, 1]."""
        vae, fold, target = _vae(self.config, target.device), self.config.fold, target.float()
        latents = rearrange(target, "b (r c) (s t ch) -> b ch (r s) (c t)", r=self.grid[0], s=fold, t=fold)
        pixels = vae.decode(latents / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)).sample
        size = self.patch * self.grid[0], self.patch * self.grid[1]
        pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True)
        return patchify(unsigned(pixels), self.patch)


@functools.lru_cache(maxsize=2)
def _vae(config: Latents, device: torch.device) -> Any:
    """The frozen VAE; one per process and device, however many heads use it."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    folder = hub_files(config.source, config.revision, FILES, give="--latents ")
    try:
        vae: Any = AutoencoderKL.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{folder} holds no AutoencoderKL of diffusers ({error}): give one that does") from error
    actual = vae.config.latent_channels, 2 ** (len(vae.config.block_out_channels) - 1)
    if actual != (config.channels, config.factor):
        raise UserError(
            f"the VAE {config.source} has {actual[0]} channels and a factor of {actual[1]}, not {config.channels} and "
            f"{config.factor}: it is not the one that this was trained with"
        )
    if config.weights not in (None, folder_hash(folder)):
        raise UserError(
            f"the weights of the VAE {config.source} are not those that this was trained with: restore them, or begin "
            "in another folder"
        )
    return vae.requires_grad_(False).eval().to(device)
