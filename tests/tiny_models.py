"""One tiny random model of each family, from the library's own classes, wrapped as the package wraps the real ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import (
    BertTokenizerFast,
    CLIPTokenizerFast,
    CLIPVisionConfig,
    Gemma2Config,
    GemmaConfig,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    MllamaConfig,
    MllamaForConditionalGeneration,
    Owlv2Config,
    Owlv2ForObjectDetection,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    SiglipVisionConfig,
    SiglipVisionModel,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SwinConfig,
)

from la_reconvla.backbones.families import family_of
from la_reconvla.backbones.paligemma import BOS, EOS, IMAGE, PAD, TOKENIZER
from la_reconvla.randomness import seeded
from la_reconvla.robot import Proprioception

WIDTH, SIZE, VOCABULARY = 32, 32, 1100
TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": PAD,
    "eos_token_id": EOS,
    "bos_token_id": BOS,
}
VISION: dict[str, Any] = {
    "image_size": SIZE,
    "patch_size": 8,
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
MARKERS = ["<|vision_start|>", "<|vision_end|>", "<fake_token_around_image>", "<global-img>", "<|image|>"]


@dataclass(frozen=True)
class Given:
    """What a backbone is told beside its model."""

    chunk: int = 2
    proprio: Proprioception = "none"
    wrist: bool = False
    saliency_layers: int = 3
    max_tokens: int = 40
    image_size: int = SIZE

    @property
    def grid(self):
        return 4, 4

    def build(self):
        raise NotImplementedError


def tokenizer(markers: bool = True) -> Tokenizer:
    """The package's own, with the special tokens of the families."""
    found = Tokenizer.from_file(str(TOKENIZER))
    if markers:
        found.add_special_tokens(MARKERS)
    return found


def _paligemma(text: Any) -> Any:
    config: Any = PaliGemmaConfig(
        vision_config=SiglipVisionConfig(**VISION, vision_use_head=False).to_dict(),
        text_config=text.to_dict(),
        image_token_index=IMAGE,
        projection_dim=WIDTH,
        hidden_size=WIDTH,
    )
    return PaliGemmaForConditionalGeneration(config)


def paligemma() -> Any:
    return _paligemma(GemmaConfig(**TEXT, head_dim=8))


def paligemma2() -> Any:
    """Logits that the cap squashes, and a window shorter than the sequence."""
    return _paligemma(
        Gemma2Config(**TEXT, head_dim=8, query_pre_attn_scalar=8, attn_logit_softcapping=1.5, sliding_window=6)
    )


def smolvlm() -> Any:
    text = LlamaConfig(**TEXT).to_dict()
    vision = {**VISION, "patch_size": 4}
    return SmolVLMForConditionalGeneration(
        SmolVLMConfig(text_config=text, vision_config=vision, scale_factor=2, image_token_id=IMAGE, pad_token_id=PAD)
    )


def idefics3() -> Any:
    text = LlamaConfig(**TEXT).to_dict()
    vision = {**VISION, "patch_size": 4}
    return Idefics3ForConditionalGeneration(
        Idefics3Config(text_config=text, vision_config=vision, scale_factor=2, image_token_id=IMAGE, pad_token_id=PAD)
    )


def llava() -> Any:
    return LlavaForConditionalGeneration(
        LlavaConfig(text_config=LlamaConfig(**TEXT), vision_config=CLIPVisionConfig(**VISION), image_token_index=IMAGE)
    )


def llava_window() -> Any:
    """Mistral inside, whose causal window is shorter than the sequence."""
    return LlavaForConditionalGeneration(
        LlavaConfig(
            text_config=MistralConfig(**TEXT, head_dim=8, sliding_window=12),
            vision_config=SiglipVisionConfig(**VISION, vision_use_head=False),
            vision_feature_select_strategy="full",
            image_token_index=IMAGE,
        )
    )


def qwen() -> Any:
    config: Any = Qwen2_5_VLConfig(
        text_config={**TEXT, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}},
        vision_config={
            "depth": 2,
            "hidden_size": WIDTH,
            "intermediate_size": 64,
            "num_heads": 4,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "window_size": 16,
            "out_hidden_size": WIDTH,
            "fullatt_block_indexes": [1],
        },
        image_token_id=IMAGE,
        vision_start_token_id=1024,
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def mllama() -> Any:
    vision = {
        "image_size": SIZE,
        "patch_size": 8,
        "hidden_size": WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_global_layers": 1,
        "attention_heads": 4,
        "intermediate_layers_indices": [0, 1],
        "vision_output_dim": 3 * WIDTH,
    }
    text = {**TEXT, "num_hidden_layers": 7, "cross_attention_layers": [1, 3, 5]}
    return MllamaForConditionalGeneration(MllamaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE))


def siglip() -> Any:
    return SiglipVisionModel(SiglipVisionConfig(**{**VISION, "num_hidden_layers": 4}))


BUILDERS: dict[str, Callable[[], Any]] = {
    build.__name__: build
    for build in (paligemma, paligemma2, smolvlm, idefics3, llava, llava_window, qwen, mllama, siglip)
}
LANGUAGE = [name for name in BUILDERS if name != "siglip"]


@torch.no_grad()
def enliven(model: torch.nn.Module) -> None:
    """Weights with a standard deviation of 1/sqrt(fan-in), open gates: attention that is far from uniform."""
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            fan_in = 1 if "embed" in name else parameter.flatten(1).shape[1]
            parameter.normal_(0.0, fan_in**-0.5)
        elif "gate" in name.rpartition(".")[2]:
            parameter.fill_(0.7)


def random_model(name: str, seed: int = 0) -> Any:
    """A transformers model with lively weights."""
    with seeded(seed, "weights"):
        model = BUILDERS[name]()
        enliven(model)
    return model.eval()


def backbone(name: str, given: Given = Given(), seed: int = 0, markers: bool = True) -> Any:
    """A backbone of the family, in evaluation mode."""
    model = random_model(name, seed)
    with seeded(seed, "backbone"):
        return family_of(model.config).backbone(model, tokenizer(markers), given).eval()


# ---------------------------------------------------------------- detectors, saved as the hub has them


def grounding_dino(folder: Path) -> None:
    """BERT over ten words beside Swin."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", "black", "bowl", "plate"]
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(
            image_size=128,
            embed_dim=8,
            depths=[1, 1, 1, 1],
            num_heads=[1, 1, 2, 2],
            window_size=2,
            out_features=["stage2", "stage3", "stage4"],
        ),
        text_config={
            "model_type": "bert",
            "vocab_size": len(words),
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 16,
        },
        d_model=WIDTH,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_queries=6,
        max_text_len=WIDTH,
    )
    _save(GroundingDinoForObjectDetection(config), folder)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    reader = {"image_processor_type": "GroundingDinoImageProcessor", "processor_class": "GroundingDinoProcessor"}
    reader |= {"size": {"shortest_edge": 128, "longest_edge": 160}, "format": "coco_detection"}
    (folder / "preprocessor_config.json").write_text(json.dumps(reader))


def owlv2(folder: Path) -> None:
    """CLIP whose words are letters."""
    letters = [chr(number) for number in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    part = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1, "pad_token_id": len(words) - 1}
    config = Owlv2Config(
        text_config={**part, **ends, "vocab_size": len(words), "max_position_embeddings": 32},
        vision_config={**part, "image_size": SIZE, "patch_size": 8},
        projection_dim=16,
    )
    _save(Owlv2ForObjectDetection(config), folder)
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=32)
    tokenizer.save_pretrained(folder)
    reader = {"image_processor_type": "Owlv2ImageProcessor", "processor_class": "Owlv2Processor"}
    (folder / "preprocessor_config.json").write_text(json.dumps({**reader, "size": {"height": SIZE, "width": SIZE}}))


def _save(model: Any, folder: Path) -> None:
    with seeded(0, "weights"), torch.no_grad():
        enliven(model)
        for name, parameter in model.named_parameters():
            if "bbox_embed" in name or "box_head" in name:
                parameter *= 0.3  # else every edge is at one end of its sigmoid
    model.save_pretrained(folder)


DETECTORS: dict[str, Callable[[Path], None]] = {build.__name__: build for build in (grounding_dino, owlv2)}
