"""Which backbone class wraps which model of `transformers`, by the ``model_type`` of its configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from transformers import (
    AutoConfig,
    Idefics3ForConditionalGeneration,
    LlavaForConditionalGeneration,
    MllamaForConditionalGeneration,
    PaliGemmaForConditionalGeneration,
    PreTrainedConfig,
    Qwen2_5_VLForConditionalGeneration,
    SiglipVisionModel,
    SmolVLMForConditionalGeneration,
)

from la_reconvla.backbones.causal import LlavaBackbone, Qwen2VLBackbone, SmolVLMBackbone
from la_reconvla.backbones.cross_attention import MllamaBackbone
from la_reconvla.backbones.hub import hub_files, quiet
from la_reconvla.backbones.paligemma import PaliGemmaBackbone
from la_reconvla.backbones.shared import BackboneConfig, Geometry
from la_reconvla.backbones.vision_only import VisionOnlyBackbone
from la_reconvla.contracts import Backbone
from la_reconvla.errors import UserError, unknown
from la_reconvla.robot import Proprioception


class Wrap(Protocol):
    """A family's class: a transformers model, its tokenizer and our options make a backbone."""

    def __call__(self, model: Any, tokenizer: Tokenizer, config: BackboneConfig, /) -> Backbone: ...

    def geometry_of(self, architecture: Any, config: BackboneConfig | None = None) -> Geometry:
        """Size of the picture and of an image token, from the library's configuration."""
        ...


@dataclass(frozen=True)
class Family:
    """One family of models.

    Attributes:
        backbone: our class.
        model: the library's class.
    """

    backbone: Wrap
    model: Any


FAMILIES: dict[str, Family] = {
    "paligemma": Family(PaliGemmaBackbone, PaliGemmaForConditionalGeneration),  # PaliGemma 2 too
    "smolvlm": Family(SmolVLMBackbone, SmolVLMForConditionalGeneration),
    "idefics3": Family(SmolVLMBackbone, Idefics3ForConditionalGeneration),
    "llava": Family(LlavaBackbone, LlavaForConditionalGeneration),
    "qwen2_5_vl": Family(Qwen2VLBackbone, Qwen2_5_VLForConditionalGeneration),
    "mllama": Family(MllamaBackbone, MllamaForConditionalGeneration),
    "siglip": Family(VisionOnlyBackbone, SiglipVisionModel),
    "siglip_vision_model": Family(VisionOnlyBackbone, SiglipVisionModel),
}


def family_of(architecture: PreTrainedConfig) -> Family:
    """The family of a configuration.

    Raises:
        UserError: if there is none, with near misses.
    """
    if architecture.model_type not in FAMILIES:
        raise unknown("family of models", architecture.model_type, FAMILIES)
    return FAMILIES[architecture.model_type]


def architecture_of(source: str, revision: str | None = None, give: str = "") -> PreTrainedConfig:
    """``config.json`` of a local folder or of an id on the hub.

    Args:
        source: the folder or the id.
        revision: commit on the hub.
        give: see `la_reconvla.backbones.hub.hub_files`.

    Raises:
        UserError: if it is not there, not readable, or needs a licence or a network that is missing.
    """
    folder = _file(source, "config.json", revision, give).parent
    try:
        with quiet():
            return AutoConfig.from_pretrained(folder, trust_remote_code=False)  # without it the library asks
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"config.json of {source} is not understood by transformers ({reason})") from error


def tokenizer_of(source: str, revision: str | None = None, give: str = "") -> Tokenizer:
    """``tokenizer.json`` beside it; arguments and errors as `architecture_of`."""
    path = _file(source, "tokenizer.json", revision, give)
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library has no class of its own for it
        raise UserError(f"{path} is no tokenizer that the tokenizers library reads ({error})") from error


def open_model(source: str, **options: Any) -> tuple[Family, Any, Tokenizer]:
    """Family, model and tokenizer of a local folder or of an id on the hub.

    Args:
        source: a folder with ``config.json``, safetensors and ``tokenizer.json``, or an id on the hub.
        options: for the library's ``from_pretrained``; float32 without any.

    Raises:
        UserError: if it is not there, of an unknown family, damaged, or needs a licence or a network that is missing.
    """
    family, tokenizer = family_of(architecture_of(source)), tokenizer_of(source)
    try:
        model = family.model.from_pretrained(source, use_safetensors=True, **{"dtype": torch.float32, **options})
    except (OSError, SafetensorError, ValueError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"the weights of {source} cannot be loaded ({reason}): check its files") from error
    return family, model, tokenizer


def _file(source: str, name: str, revision: str | None, give: str) -> Path:
    """A file of a folder, or of the hub through its cache."""
    path = hub_files(source, revision, (name,), give) / name
    if not path.exists():
        raise UserError(f"{source} has no {name}: save model and fast tokenizer there (save_pretrained)")
    return path


class Sized:
    """A backbone's configuration that names a model: the sizes are those of its `architecture`."""

    @property
    def architecture(self) -> PreTrainedConfig:
        """The library's configuration."""
        raise NotImplementedError

    @property
    def geometry(self) -> Geometry:
        """Of the pictures that it takes."""
        architecture = self.architecture
        return family_of(architecture).backbone.geometry_of(architecture)

    @property
    def image_size(self) -> int:
        """Side of the square input in pixels."""
        return self.geometry.image_size

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of image tokens."""
        return self.geometry.grid


@dataclass(frozen=True)
class Opened(Sized):
    """A model as it is, with its weights in float32. It satisfies `la_reconvla.backbones.shared.BackboneConfig`.

    Attributes:
        source: a folder, or an id on the hub.
        chunk: actions decoded in one pass.
        proprio: robot state as one extra token.
        wrist: a second camera as a second block of image tokens.
        saliency_layers: how many of the last layers the saliency reads.
        max_tokens: maximum length of an instruction in tokens.
    """

    source: str
    chunk: int = 1
    proprio: Proprioception = "none"
    wrist: bool = False
    saliency_layers: int = 3
    max_tokens: int = 64

    @property
    def architecture(self) -> PreTrainedConfig:
        """The library's configuration; raises a `UserError` as `architecture_of`."""
        return architecture_of(self.source)

    def build(self) -> Backbone:
        """The backbone with the model's weights; only action queries and robot state are new.

        Raises:
            UserError: see `open_model`.
        """
        family, model, tokenizer = open_model(self.source)
        return family.backbone(model, tokenizer, self)
