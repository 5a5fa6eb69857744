"""The loss on a vision-language model of transformers, whose fused attention kernel hands no attention out.

A probe travels with the call and reads the rows that the loss needs beside the kernel. The model here is SmolVLM's
class at a tiny random size, so that this runs in seconds; `from_pretrained` in its place gives the real one.

The order of the tokens decides what the method can mean in a causal model::

    words  image  words      the patches have read the first copy, the second looks at the patches
    image  words             the patches know nothing of the words: `language_reaches_patches` says so
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaConfig, SmolVLMConfig, SmolVLMForConditionalGeneration

from la_reconvla import MaskedReconstruction, language_reaches_patches, saliency
from la_reconvla.backbones.attention_probe import IMPLEMENTATION, AttentionProbe

SIZE, GRID, PATCH, IMAGE = 32, (4, 4), 8, 99  # 8 x 8 patches of 4 px, merged 2 x 2; the number of the image token
LAYERS = 4


def tiny_model() -> Any:
    """SmolVLM at a random size: SigLIP, a merge of 2 x 2 patches, Llama."""
    text = LlamaConfig(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
    )
    vision = {"image_size": SIZE, "patch_size": 4, "hidden_size": 32, "intermediate_size": 64}
    vision |= {"num_hidden_layers": 2, "num_attention_heads": 4}
    config = SmolVLMConfig(
        text_config=text.to_dict(), vision_config=vision, scale_factor=2, image_token_id=IMAGE, pad_token_id=0
    )
    return SmolVLMForConditionalGeneration(config)


def run(model: Any, pixels: torch.Tensor, ids: torch.Tensor, probe: AttentionProbe | None = None) -> torch.Tensor:
    """Final states [b s d]; the probe, if any, comes back filled."""
    more = {} if probe is None else {"probe": probe}
    asked = {"input_ids": ids, "pixel_values": pixels, "use_cache": False, **more}
    return model.model(**asked).last_hidden_state


def reaches(model: Any, pixels: torch.Tensor, ids: torch.Tensor, words: slice, patches: slice) -> bool:
    """Whether the patches depend on the words in this order of tokens."""
    embed = model.get_input_embeddings()
    leaf = embed(ids[:, words]).detach().requires_grad_()

    def replaced(_module: Any, _given: Any, out: torch.Tensor) -> torch.Tensor:
        return torch.cat([out[:, : words.start], leaf, out[:, words.stop :]], dim=1)

    hook = embed.register_forward_hook(replaced)
    try:
        return language_reaches_patches(run(model, pixels, ids)[:, patches], leaf)
    finally:
        hook.remove()


def main() -> dict[str, Any]:
    """One step of training; what it found."""
    torch.manual_seed(0)
    model = tiny_model()
    # The text model alone: the vision tower passes its kernel no keywords, and keeps its own.
    model.model.text_model.set_attn_implementation(IMPLEMENTATION)

    images = torch.randint(0, 256, (2, 3, SIZE, SIZE), dtype=torch.uint8)
    pixels = (images / 127.5 - 1)[:, None]  # [b, one picture, 3, H, W], normalised as SigLIP is
    words, n = torch.randint(1, 99, (2, 5)), GRID[0] * GRID[1]
    ids = torch.cat([words, torch.full((2, n), IMAGE), words], dim=1)
    first, patches, again = slice(0, 5), slice(5, 5 + n), slice(5 + n, 10 + n)

    # Not the last layer alone: nothing reads what its text rows give unless your action head does.
    probe = AttentionProbe(layers=(1, 2, 3), rows=again, columns=patches)
    states = run(model, pixels, ids, probe)
    word_mask = torch.ones(2, 5, dtype=torch.bool)  # the instruction's own words; padding and special tokens are False
    scores = saliency(probe.stacked(), word_mask)  # the probe gives no gradient, the layers get theirs from your loss

    reconstruct = MaskedReconstruction(width=32, grid=GRID, patch=PATCH)
    loss, mask, _ = reconstruct(states[:, patches], images, scores)
    loss.backward()
    image_first = torch.cat([ids[:, patches], words], dim=1)
    found = {
        "words on both sides": reaches(model, pixels, ids, first, patches),
        "image first": reaches(model, pixels, image_first, slice(n, n + 5), slice(0, n)),
    }
    print(f"loss {loss.item():.3f}, {int(mask[0].sum())} of {n} patches; do the words reach the patches? {found}")
    return {**found, "scores": scores, "mask": mask, "model": model, "inputs": (pixels, ids, again, patches)}


if __name__ == "__main__":
    main()
