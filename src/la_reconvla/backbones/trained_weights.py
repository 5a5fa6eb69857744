"""Which weights of a pretrained model train, and how: frozen layers, LoRA adapters, weights in 4 bits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from la_reconvla.backbones.paligemma import BOS, EOS, PAD
from la_reconvla.errors import UserError


@dataclass(frozen=True)
class ModulePaths:
    """Where layers and vision are in a family's models; paths are below the library's ``.model``.

    Attributes:
        layers: path of the list of decoder layers.
        vision: paths of what sees: tower and projector.
        targets: names of the linear layers that get adapters, in decoder layers.
        vision_targets: the same in what sees.
        tokens: special tokens whose numbers the family's class takes as given.
    """

    layers: str = "language_model.layers"
    vision: tuple[str, ...] = ("vision_tower", "multi_modal_projector")
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    vision_targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
    tokens: tuple[tuple[str, int], ...] = ()


MODULE_PATHS = {
    "paligemma": ModulePaths(tokens=(("<pad>", PAD), ("<eos>", EOS), ("<bos>", BOS))),  # PaliGemma 2 too
    "llava": ModulePaths(),
    "smolvlm": ModulePaths("text_model.layers", ("vision_model", "connector")),
    "idefics3": ModulePaths("text_model.layers", ("vision_model", "connector")),
    "qwen2_5_vl": ModulePaths(vision=("visual",), vision_targets=("qkv", "proj", "gate_proj", "up_proj", "down_proj")),
    "mllama": ModulePaths(
        vision=("vision_model", "multi_modal_projector"),
        vision_targets=("q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"),
    ),
}
"""By ``model_type``: the families of `la_reconvla.backbones.families` that have a language model."""


@dataclass(frozen=True)
class Freeze:
    """Which pretrained weights stay as they are.

    Attributes:
        vision: the vision tower and the projector.
        embeddings: the table of token embeddings.
        lower: this many of the lowest layers of the language model.
        last: all of its layers but this many of the last; None for no such limit, 0 for the whole language model.
    """

    vision: bool = True
    embeddings: bool = True
    lower: int = 0
    last: int | None = None

    def __post_init__(self):
        if self.lower < 0 or (self.last is not None and self.last < 0):
            raise UserError(f"freeze: lower and last count layers and cannot be negative ({self.lower}, {self.last})")

    def free(self, layers: int) -> tuple[int, ...]:
        """Numbers of the language layers that train."""
        first = max(self.lower, 0 if self.last is None else layers - self.last)
        return tuple(range(first, layers))


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters (Hu et al., arXiv 2106.09685) on the linear layers that `Freeze` leaves free.

    Attributes:
        rank: of each adapter.
        alpha: an adapter's output is scaled by alpha / rank.
        dropout: of an adapter's input.
        targets: names of linear layers; None for all of them in attention and feed-forward of the family.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] | None = None

    def __post_init__(self):
        if self.rank < 1:
            raise UserError(f"the rank of LoRA must be at least 1, not {self.rank}")


def inject_adapters(core: nn.Module, paths: ModulePaths, lora: Lora, free: tuple[int, ...], vision: bool) -> None:
    """Adapters in the free decoder layers and, on request, in the vision tower; all else is frozen."""
    from peft import LoraConfig, inject_adapter_in_model

    named = [name for name, module in core.named_modules() if isinstance(module, nn.Linear)]
    wanted, inside = lora.targets or paths.targets, tuple(f"{paths.layers}.{i}." for i in free)
    chosen = [name for name in named if name.startswith(inside) and name.rpartition(".")[2] in wanted]
    if vision:
        seeing = tuple(f"{path}." for path in paths.vision)
        wanted = lora.targets or paths.vision_targets
        chosen += [name for name in named if name.startswith(seeing) and name.rpartition(".")[2] in wanted]
    if not chosen:
        raise UserError(f"no linear layer is left for LoRA: freeze fewer layers, or name other targets than {wanted}")
    core.requires_grad_(False)
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=chosen)  # pyright: ignore
    inject_adapter_in_model(config, core)


def nf4(dtype: torch.dtype) -> BitsAndBytesConfig:
    """4-bit NormalFloat with quantized constants, as in QLoRA."""
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
