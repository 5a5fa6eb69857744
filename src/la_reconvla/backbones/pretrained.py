"""A pretrained vision-language model from the hub or a folder, and what of it trains, as data.

`Freeze` says where nothing trains; `Lora` says how the rest trains: by adapters instead of in full; `quantize` says how
what stays is kept. Action queries, robot state, action head and decoder are new and always train in full.
"""

from __future__ import annotations

import functools
import json
import warnings
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig
from transformers.initialization import no_init_weights

from la_reconvla.backbones.families import Family, Sized, architecture_of, family_of, tokenizer_of
from la_reconvla.backbones.hub import BACKBONE, folder_hash, hub_files, quiet
from la_reconvla.backbones.paligemma import TOKENIZER
from la_reconvla.backbones.trained_weights import MODULE_PATHS, Freeze, Lora, inject_adapters, nf4
from la_reconvla.contracts import AttentionRows, Features, PolicyInput
from la_reconvla.errors import UserError, unknown
from la_reconvla.method.variants.autoregressive import Step
from la_reconvla.robot import Proprioception

KNOWN = json.loads(Path(__file__).with_name("known.json").read_text(encoding="utf-8"))
"""Architectures of public checkpoints: their ``config.json``, so that a plan needs no network."""
Dtype = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ATTENTION = {"": "sdpa", "text_config": "eager"}  # until the backbone puts the probe's in: Gemma 2 refuses SDPA
MODEL_FILES = ("config.json", "generation_config.json", "tokenizer.json", "*.safetensors", "*.safetensors.index.json")


@dataclass(frozen=True)
class Pretrained(Sized):
    """A pretrained backbone. It satisfies `la_reconvla.backbones.shared.BackboneConfig`.

    Attributes:
        source: id on the hub, or a folder with ``config.json``, weights and ``tokenizer.json``.
        revision: commit on the hub, or ``sha256:`` and the hash of a folder's weights; see `pinned`.
        chunk: actions decoded in one pass.
        proprio: robot state as one extra token; off by default, as published.
        wrist: a second camera as a second block of image tokens; off by default.
        saliency_layers: how many of the last layers the saliency reads.
        max_tokens: maximum length of an instruction in tokens.
        freeze: where nothing trains.
        lora: adapters where something does; None trains it in full.
        quantize: ``nf4`` keeps the linear layers in 4 bits (QLoRA, arXiv 2305.14314); needs a GPU and `lora`.
        checkpointing: keep only each layer's input and compute the layer again in the backward pass.
        dtype: of the weights that stay, and of the backbone's arithmetic; what trains is float32 (a T4 has no bf16).
    """

    source: str
    revision: str | None = None
    chunk: int = 8
    proprio: Proprioception = "none"
    wrist: bool = False
    saliency_layers: int = 3
    max_tokens: int = 64
    freeze: Freeze = field(default_factory=Freeze)
    lora: Lora | None = field(default_factory=Lora)
    quantize: Literal["nf4"] | None = None
    checkpointing: bool = True
    dtype: Dtype = "bf16"

    def __post_init__(self):
        if self.chunk < 1 or self.saliency_layers < 1:
            raise UserError(f"chunk and saliency_layers must be at least 1, got {self.chunk}, {self.saliency_layers}")
        if self.quantize and self.lora is None:
            raise UserError("weights in 4 bits cannot train in full: give lora, or no quantize")
        if self.quantize and self.dtype == "fp32":
            raise UserError("weights in 4 bits are unpacked to a half precision: give dtype bf16, or fp16 on a T4")

    # ------------------------------------------------------------ what it is, before any weight is read

    @property
    def architecture(self) -> PreTrainedConfig:
        """The library's configuration; known checkpoints need no network.

        Raises:
            UserError: if it cannot be had, or no family here fits it.
        """
        return _architecture(self.source, self.revision)

    @property
    def family(self) -> Family:
        """Classes of the backbone and of the library's model."""
        return family_of(self.architecture)

    @property
    def leaves_some(self) -> bool:
        """Whether some weights of the source stay as they are, so that a run's file lacks them."""
        return self.lora is not None or self.freeze != Freeze(vision=False, embeddings=False)

    def pinned(self) -> Pretrained:
        """The same with `revision` set, so that what is saved names the very weights that it belongs to.

        Asks the hub for its smallest file only, so that a missing licence shows before long work.

        Raises:
            UserError: if the source cannot be had, or a folder's weights are not those of `revision`.
        """
        folder = Path(self.source)
        if folder.is_dir():
            content = f"sha256:{folder_hash(folder)}"
            if self.revision not in (None, content):
                raise UserError(
                    f"the weights in {folder} are not those that this run was trained on ({content} instead of "
                    f"{self.revision}): restore them, or export the run with --merged while you have them"
                )
            return replace(self, revision=content)
        return replace(self, revision=hub_files(self.source, self.revision, ("config.json",)).name)

    # ------------------------------------------------------------ building

    def tokenizer(self) -> Tokenizer:
        """The source's; raises a `UserError` as `tokenizer_of`."""
        return tokenizer_of(self.source, self.revision, BACKBONE)

    def build(self) -> PretrainedBackbone:
        """The backbone with its pretrained weights; what is new is drawn from torch's global generator.

        Raises:
            UserError: if the weights cannot be had, or need a GPU that is not here.
        """
        if self.quantize and not torch.cuda.is_available():
            raise UserError("weights in 4 bits need an NVIDIA GPU: drop quantize, or export the run with --merged")
        tokenizer, pinned = self.tokenizer(), self.pinned()
        folder = hub_files(self.source, pinned.revision, MODEL_FILES)
        options: dict[str, Any] = {"dtype": DTYPES[self.dtype], "attn_implementation": ATTENTION}
        options |= {"local_files_only": True, "use_safetensors": True}
        if self.quantize:
            options |= {"quantization_config": nf4(DTYPES[self.dtype]), "device_map": {"": torch.cuda.current_device()}}
        try:
            with quiet():
                model = self.family.model.from_pretrained(folder, **options)
        except (OSError, ImportError, ValueError, SafetensorError) as error:
            first = str(error).strip().splitlines()[0]
            raise UserError(f"{self.source} cannot be loaded ({first}): check its files") from error
        return self.assemble(model, tokenizer)

    def skeleton(self, tokenizer: Tokenizer | None = None) -> PretrainedBackbone:
        """The same without any number in it, on the meta device: no weights, no memory.

        Args:
            tokenizer: the package's by default.
        """
        with torch.device("meta"), no_init_weights(), quiet():
            model = self.family.model._from_config(
                self.architecture, attn_implementation=ATTENTION, dtype=DTYPES[self.dtype]
            )
            return self.assemble(model, tokenizer or Tokenizer.from_file(str(TOKENIZER)))

    def assemble(self, model: Any, tokenizer: Tokenizer) -> PretrainedBackbone:
        """Freeze, add adapters and wrap a model of the library; the same for real, random and fake weights."""
        paths, core = MODULE_PATHS[self.architecture.model_type], model.model
        layers: Any = core.get_submodule(paths.layers)
        for token, number in paths.tokens:
            if tokenizer.token_to_id(token) != number:
                raise UserError(f"the tokenizer of {self.source} has no {token} number {number}: use the model's own")
        free = self.freeze.free(len(layers))
        if self.lora is None:
            core.requires_grad_(False)
            trained = [layers[i] for i in free]
            if free and not self.freeze.embeddings:
                trained.append(core.get_input_embeddings())
            if not self.freeze.vision:
                trained += [core.get_submodule(path) for path in paths.vision]
            for module in trained:
                module.requires_grad_(True)
        else:
            inject_adapters(core, paths, self.lora, free, vision=not self.freeze.vision)
        for parameter in core.parameters():
            if parameter.requires_grad:  # small steps are lost in half precision, and loss scaling refuses it
                parameter.data = parameter.data.float()
        if self.checkpointing:
            with warnings.catch_warnings():  # newer versions have another name for it, older ones only this
                warnings.simplefilter("ignore", FutureWarning)
                model.gradient_checkpointing_enable({"use_reentrant": False})
        return PretrainedBackbone(self.family.backbone(model, tokenizer, self), self)


class PretrainedBackbone(nn.Module):
    """A family's backbone in the precision of its weights; features come out in float32.

    Args:
        inner: the family's backbone.
        config: what it was made from.
    """

    def __init__(self, inner: Any, config: Pretrained):
        super().__init__()
        self.inner, self.config = inner, config
        self.width: int = inner.width
        self.patch_size: int = inner.patch_size
        self.grid: tuple[int, int] = inner.grid
        self.compute = None if config.dtype == "fp32" else DTYPES[config.dtype]

    def forward(
        self,
        inputs: PolicyInput,
        *,
        attention: AttentionRows | None = None,
        hidden: Bool[Tensor, "b n"] | None = None,
        following: Float[Tensor, "b s d"] | None = None,
    ) -> Features:
        """See `la_reconvla.contracts.Backbone`; `following` is of `SequentialBackbone`."""
        more = {} if following is None else {"following": following}
        with self._computing(inputs.images.device):
            features = self.inner(inputs, attention=attention, hidden=hidden, **more)
        return self._floats(features)

    def vocabulary(self) -> tuple[Float[Tensor, "v d"], float]:
        """See `la_reconvla.method.variants.autoregressive.SequentialBackbone`.

        Raises:
            UserError: if the family is not one.
        """
        return self.inner.vocabulary()

    def begin(self, inputs: PolicyInput) -> tuple[Features, Step]:
        """See `la_reconvla.method.variants.autoregressive.SequentialBackbone`."""
        with self._computing(inputs.images.device):
            features, step = self.inner.begin(inputs)

        def floats(token: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
            with self._computing(token.device):
                return step(token.to(self.inner.queries.dtype if self.compute is None else self.compute)).float()

        return self._floats(features), floats

    def _computing(self, device: torch.device) -> Any:
        return torch.autocast(device.type, self.compute) if self.compute else nullcontext()

    def _floats(self, features: Features) -> Features:
        if self.compute is None:
            return features
        floats = {name: getattr(features, name).float() for name in ("patches", "action_states", "instruction_state")}
        return replace(features, **floats)

    def merge(self) -> None:
        """Merge the adapters into their weights, for good."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        for name, module in list(self.inner.named_modules()):
            if isinstance(module, BaseTunerLayer):
                merging: Any = module
                merging.merge()
                parent, _, child = name.rpartition(".")
                setattr(self.inner.get_submodule(parent), child, merging.get_base_layer())

    def save(self, folder: Path) -> None:
        """Write the library's files: ``config.json``, weights and ``tokenizer.json``; adapters must be merged."""
        full: Any = self.config.family.model
        with quiet(), torch.device("meta"):
            model = full(self.inner.model.config)
        model.model = self.inner.model
        model.tie_weights()  # the output layer is the table of embeddings again
        model.to(dtype=DTYPES[self.config.dtype])
        model.save_pretrained(folder)
        self.inner.tokenizer.save(str(folder / "tokenizer.json"))


@functools.lru_cache
def _architecture(source: str, revision: str | None) -> PreTrainedConfig:
    if source in KNOWN and not Path(source).is_dir():
        raw = dict(KNOWN[source])
        config = AutoConfig.for_model(raw.pop("model_type"), **raw)
    else:
        config = architecture_of(source, revision, BACKBONE)
    if config.model_type not in MODULE_PATHS:
        raise unknown("family of models to train", config.model_type, MODULE_PATHS)
    return config
