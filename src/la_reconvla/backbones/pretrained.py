"""A pretrained vision-language model from the hub or a folder, and what of it trains, as data.

`Freeze` says where nothing trains; `Lora` says how the rest trains: by adapters instead of in full; `quantize` says how
what stays is kept. Action queries, robot state, action head and decoder are new and always train in full.
"""

from __future__ import annotations

import functools
import hashlib
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, UInt8
from safetensors import SafetensorError
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoConfig, BitsAndBytesConfig, PreTrainedConfig
from transformers.initialization import no_init_weights
from transformers.utils import logging as transformers_logging

from la_reconvla.backbones.families import Family, family_of
from la_reconvla.backbones.paligemma import BOS, EOS, PAD, TOKENIZER
from la_reconvla.backbones.shared import Geometry
from la_reconvla.contracts import Features, Proprioception, Rows, Step
from la_reconvla.errors import UserError, unknown

KNOWN = json.loads(Path(__file__).with_name("known.json").read_text(encoding="utf-8"))
"""Architectures of public checkpoints: their ``config.json``, so that a plan needs no network."""
Dtype = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ATTENTION = {"": "sdpa", "text_config": "eager"}  # until the backbone puts the probe's in: Gemma 2 refuses SDPA
MODEL_FILES = ("config.json", "generation_config.json", "tokenizer.json", "*.safetensors", "*.safetensors.index.json")


@dataclass(frozen=True)
class Parts:
    """Where the parts of a family's models are; paths are below the library's ``.model``.

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


PARTS = {
    "paligemma": Parts(tokens=(("<pad>", PAD), ("<eos>", EOS), ("<bos>", BOS))),  # PaliGemma 2 too
    "llava": Parts(),
    "smolvlm": Parts("text_model.layers", ("vision_model", "connector")),
    "idefics3": Parts("text_model.layers", ("vision_model", "connector")),
    "qwen2_5_vl": Parts(vision=("visual",), vision_targets=("qkv", "proj", "gate_proj", "up_proj", "down_proj")),
    "mllama": Parts(
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
        lower: so many of the lowest layers of the language model.
        last: all of its layers but the last so many; None for no such limit, 0 for the whole language model.
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


@dataclass(frozen=True)
class Pretrained:
    """A pretrained backbone. It satisfies `la_reconvla.contracts.BackboneConfig`.

    Attributes:
        source: id on the hub, or a folder with ``config.json``, weights and ``tokenizer.json``.
        revision: commit on the hub, or ``sha256:`` and the hash of a folder's weights; see `pinned`.
        chunk: actions decoded in one pass.
        proprio: robot state as one extra token; off by default, as published.
        wrist: a second camera as a second block of image tokens; off by default, as published.
        saliency_layers: how many of the last layers the saliency reads.
        max_tokens: longest instruction in tokens.
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

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Pretrained:
        """The value that `dataclasses.asdict` was called on, also after JSON."""
        lora = dict(raw["lora"]) if raw["lora"] else None
        if lora and lora["targets"] is not None:
            lora["targets"] = tuple(lora["targets"])
        return cls(**{**raw, "freeze": Freeze(**raw["freeze"]), "lora": Lora(**lora) if lora else None})

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
    def geometry(self) -> Geometry:
        """Of the pictures that it takes."""
        return self.family.backbone.geometry_of(self.architecture)

    @property
    def image_size(self) -> int:
        """Side of the square input in pixels."""
        return self.geometry.image_size

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of image tokens."""
        return self.geometry.grid

    def pinned(self) -> Pretrained:
        """The same with `revision` set, so that what is saved names the very weights that it belongs to.

        Asks the hub for its smallest file only, so that a missing licence shows before long work.

        Raises:
            UserError: if the source cannot be had, or a folder's weights are not those of `revision`.
        """
        folder = Path(self.source)
        if folder.is_dir():
            found = f"sha256:{folder_hash(folder)}"
            if self.revision not in (None, found):
                raise UserError(
                    f"the weights in {folder} are not those that this run was trained on ({found} instead of "
                    f"{self.revision}): restore them, or export the run with --merged while you have them"
                )
            return replace(self, revision=found)
        return replace(self, revision=hub_files(self.source, self.revision, ("config.json",)).name)

    # ------------------------------------------------------------ building

    def tokenizer(self) -> Tokenizer:
        """The source's tokenizer.

        Raises:
            UserError: if it has none.
        """
        path = hub_files(self.source, self.revision, ("tokenizer.json",)) / "tokenizer.json"
        if not path.exists():
            raise UserError(
                f"{self.source} has no tokenizer.json: save the fast tokenizer beside the weights (save_pretrained)"
            )
        return Tokenizer.from_file(str(path))

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
        if self.quantize:
            options |= {"quantization_config": nf4(DTYPES[self.dtype]), "device_map": {"": torch.cuda.current_device()}}
        try:
            with quiet():
                model = self.family.model.from_pretrained(folder, local_files_only=True, **options)
        except (OSError, ImportError, ValueError, SafetensorError) as error:
            first = str(error).strip().splitlines()[0]
            raise UserError(f"{self.source} cannot be loaded ({first}): check its files") from error
        return self.assemble(model, tokenizer)

    def skeleton(self, tokenizer: Tokenizer | None = None) -> PretrainedBackbone:
        """The same without any number in it, on the meta device: no weights, no memory.

        Args:
            tokenizer: the package's own one by default.
        """
        with torch.device("meta"), no_init_weights(), quiet():
            model = self.family.model._from_config(
                self.architecture, attn_implementation=ATTENTION, dtype=DTYPES[self.dtype]
            )
            return self.assemble(model, tokenizer or Tokenizer.from_file(str(TOKENIZER)))

    def assemble(self, model: Any, tokenizer: Tokenizer) -> PretrainedBackbone:
        """Freeze, add adapters and wrap a model of the library; the same for real, random and fake weights."""
        parts, core = PARTS[self.architecture.model_type], model.model
        layers: Any = core.get_submodule(parts.layers)
        for token, number in parts.tokens:
            if tokenizer.token_to_id(token) != number:
                raise UserError(f"the tokenizer of {self.source} has no {token} with number {number}: take its own one")
        free = self.freeze.free(len(layers))
        if self.lora is None:
            core.requires_grad_(False)
            trained = [layers[i] for i in free]
            if free and not self.freeze.embeddings:
                trained.append(core.get_input_embeddings())
            if not self.freeze.vision:
                trained += [core.get_submodule(path) for path in parts.vision]
            for module in trained:
                module.requires_grad_(True)
        else:
            _inject(core, parts, self.lora, free, vision=not self.freeze.vision)
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
        images: UInt8[Tensor, "b 3 H W"],
        instructions: list[str],
        *,
        attention: Rows | None = None,
        hidden: Bool[Tensor, "b n"] | None = None,
        wrist: UInt8[Tensor, "b 3 H W"] | None = None,
        proprio: Float[Tensor, "b p"] | None = None,
        following: Float[Tensor, "b s d"] | None = None,
    ) -> Features:
        """See `la_reconvla.contracts.Backbone`; `following` is of `la_reconvla.contracts.SequentialBackbone`."""
        more = {} if following is None else {"following": following}
        with self._computing(images.device):
            features = self.inner(
                images, instructions, attention=attention, hidden=hidden, wrist=wrist, proprio=proprio, **more
            )
        return self._floats(features)

    def vocabulary(self) -> tuple[Float[Tensor, "v d"], float]:
        """See `la_reconvla.contracts.SequentialBackbone`.

        Raises:
            UserError: if the family is not one.
        """
        return self.inner.vocabulary()

    def begin(
        self,
        images: UInt8[Tensor, "b 3 H W"],
        instructions: list[str],
        *,
        wrist: UInt8[Tensor, "b 3 H W"] | None = None,
        proprio: Float[Tensor, "b p"] | None = None,
    ) -> tuple[Features, Step]:
        """See `la_reconvla.contracts.SequentialBackbone`."""
        with self._computing(images.device):
            features, step = self.inner.begin(images, instructions, wrist=wrist, proprio=proprio)

        def floats(token: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
            with self._computing(token.device):
                return step(token.to(self.inner.queries.dtype if self.compute is None else self.compute)).float()

        return self._floats(features), floats

    def _computing(self, device: torch.device) -> Any:
        return torch.autocast(device.type, self.compute) if self.compute else nullcontext()

    def _floats(self, features: Features) -> Features:
        if self.compute is None:
            return features
        floats = {name: getattr(features, name).float() for name in ("patches", "actions", "instruction")}
        return replace(features, **floats)

    def merge(self) -> None:
        """Add the adapters to the weights that they stand beside, for good."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        for name, module in list(self.inner.named_modules()):
            if isinstance(module, BaseTunerLayer):
                merging: Any = module
                merging.merge()
                parent, _, child = name.rpartition(".")
                setattr(self.inner.get_submodule(parent), child, merging.get_base_layer())

    def save(self, folder: Path) -> None:
        """Write the library's own files: ``config.json``, weights and ``tokenizer.json``; adapters must be merged."""
        full: Any = self.config.family.model
        with quiet(), torch.device("meta"):
            whole = full(self.inner.model.config)
        whole.model = self.inner.model
        whole.tie_weights()  # the output layer is the table of embeddings again
        whole.to(dtype=DTYPES[self.config.dtype])
        whole.save_pretrained(folder)
        self.inner.tokenizer.save(str(folder / "tokenizer.json"))


def nf4(dtype: torch.dtype) -> BitsAndBytesConfig:
    """4-bit NormalFloat with quantized constants, as in QLoRA."""
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings and no progress bars of the library inside."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def _inject(core: nn.Module, parts: Parts, lora: Lora, free: tuple[int, ...], vision: bool) -> None:
    """Adapters in the free decoder layers and, on request, in the vision tower; all else is frozen."""
    from peft import LoraConfig, inject_adapter_in_model

    named = [name for name, module in core.named_modules() if isinstance(module, nn.Linear)]
    wanted, inside = lora.targets or parts.targets, tuple(f"{parts.layers}.{i}." for i in free)
    chosen = [name for name in named if name.startswith(inside) and name.rpartition(".")[2] in wanted]
    if vision:
        seeing = tuple(f"{path}." for path in parts.vision)
        wanted = lora.targets or parts.vision_targets
        chosen += [name for name in named if name.startswith(seeing) and name.rpartition(".")[2] in wanted]
    if not chosen:
        raise UserError(f"no linear layer is left for LoRA: freeze fewer layers, or name other targets than {wanted}")
    core.requires_grad_(False)
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=chosen)  # pyright: ignore
    inject_adapter_in_model(config, core)


@functools.lru_cache
def _architecture(source: str, revision: str | None) -> PreTrainedConfig:
    folder = Path(source)
    try:
        if source in KNOWN and not folder.is_dir():
            raw = dict(KNOWN[source])
            config = AutoConfig.for_model(raw.pop("model_type"), **raw)
        else:
            with quiet():
                config = AutoConfig.from_pretrained(hub_files(source, revision, ("config.json",)))
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"{source} has no config.json that transformers understands ({first})") from error
    if config.model_type not in PARTS:
        raise unknown("family of models to train", config.model_type, PARTS)
    return config


def hub_files(source: str, revision: str | None, patterns: tuple[str, ...] | None, give: str = "--backbone ") -> Path:
    """Folder with these files (None: all), downloaded if need be; on the hub its name is the commit.

    Raises:
        UserError: in one sentence, with what to do.
    """
    from huggingface_hub import errors, snapshot_download

    if Path(source).is_dir():
        return Path(source)
    how = f"`hf download {source} --local-dir FOLDER` where there is a network, then {give}FOLDER"
    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=list(patterns) if patterns else None))
    except errors.GatedRepoError as error:
        raise UserError(
            f"{source} is gated: accept its licence on its page of the Hugging Face hub, run `hf auth login`, and then "
            "the same command again"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{source} has no revision {revision} on the hub: check it, or leave it out") from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise UserError(
            f"{source} is no folder here and no repository on the hub that you may see: check the name, or run "
            "`hf auth login` if it is private"
        ) from error
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{source} cannot be downloaded ({first}): {how}") from error


def folder_hash(folder: Path) -> str:
    """Hash of all weights in a folder.

    Raises:
        UserError: if there are none.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder} holds no *.safetensors: give the folder that save_pretrained wrote the weights to")
    facts = tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files)
    return _hash_of(facts)


@functools.lru_cache
def _hash_of(facts: tuple[tuple[str, int, int], ...]) -> str:
    """SHA-256 over names and bytes; once a process, as size and time of change are part of the key."""
    digest = hashlib.sha256()
    for name, _, _ in facts:
        digest.update(Path(name).name.encode())
        with open(name, "rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()[:32]
