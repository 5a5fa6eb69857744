"""Does a plan hold? One training step of an architecture with random weights, its peak of memory beside the plan's.

    python benchmarks/full_size.py --backbone google/paligemma-3b-pt-224 --dtype fp32
    python benchmarks/full_size.py --width 512 --layers 8

Needs no download: a known id or a size gives the architecture, and the weights are noise. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from tokenizers import Tokenizer
from transformers import GemmaConfig, PaliGemmaConfig, SiglipVisionConfig
from transformers.initialization import no_init_weights

from la_reconvla.backbones.hub import quiet
from la_reconvla.backbones.paligemma import TOKENIZER
from la_reconvla.backbones.pretrained import ATTENTION, DTYPES, Pretrained
from la_reconvla.backbones.trained_weights import Freeze, Lora
from la_reconvla.conditions import condition
from la_reconvla.method.actions import ActionBins
from la_reconvla.method.policy import Policy
from la_reconvla.study.plan import device, plan
from la_reconvla.study.step_memory import PlannedStep, random_batch
from la_reconvla.training.gradient import backward
from la_reconvla.training.loop import TrainConfig
from la_reconvla.training.optimizers import optimizers_for


def sized(width: int, layers: int, folder: Path) -> str:
    """A folder with the configuration of a PaliGemma of this width, heads of 64, half as many layers of vision."""
    vision = SiglipVisionConfig(
        image_size=224,
        patch_size=14,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers // 2,
        num_attention_heads=width // 64,
        vision_use_head=False,
    )
    text = GemmaConfig(
        vocab_size=32_000,
        hidden_size=width,
        intermediate_size=8 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=1,
        head_dim=64,
    )
    config: Any = PaliGemmaConfig(
        vision_config=vision.to_dict(), text_config=text.to_dict(), projection_dim=width, hidden_size=width
    )
    config.save_pretrained(folder)
    return str(folder)


def noisy(backbone: Pretrained) -> torch.nn.Module:
    """The backbone with noise for weights, never in memory twice."""
    noise = torch.randn(1 << 20) * 0.02
    with no_init_weights(), quiet():
        model = backbone.family.model._from_config(
            backbone.architecture, attn_implementation=ATTENTION, dtype=DTYPES[backbone.dtype]
        )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("lm_head"):
                continue  # never used, and so never really there
            for part in parameter.view(-1).split(len(noise)):
                part.copy_(noise[: len(part)])
    return backbone.assemble(model, Tokenizer.from_file(str(TOKENIZER)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--dtype", choices=list(DTYPES), default="fp32")
    parser.add_argument("--lora-rank", type=int, default=16)
    parser.add_argument("--full", action="store_true", help="train all of it")
    parser.add_argument("--no-checkpointing", action="store_true")
    parser.add_argument("--condition", default="C4")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    with tempfile.TemporaryDirectory() as folder:
        measure(chosen, chosen.backbone or sized(chosen.width, chosen.layers, Path(folder)))


def measure(chosen: argparse.Namespace, source: str) -> None:
    backbone = Pretrained(
        source,
        freeze=Freeze(vision=False, embeddings=False) if chosen.full else Freeze(),
        lora=None if chosen.full else Lora(chosen.lora_rank),
        checkpointing=not chosen.no_checkpointing,
        dtype=chosen.dtype,
    )
    arm = condition(chosen.condition)
    predicted = plan(PlannedStep(backbone, arm, chosen.batch_size, chosen.accumulate), device("cpu", chosen.dtype))
    process = psutil.Process()
    before = process.memory_info().rss
    free = psutil.virtual_memory().available
    if predicted.peak > 0.9 * free:
        raise SystemExit(f"the plan needs {predicted.peak / 1e9:.1f} GB and {free / 1e9:.1f} GB are free: --dtype bf16")

    begun = time.perf_counter()
    policy = Policy(noisy(backbone), ActionBins((-1.0,) * 7, (1.0,) * 7))  # pyright: ignore
    inner = policy.backbone
    if arm.reconstruction is not None:
        policy.reconstruction_head = arm.reconstruction.reconstruction_head.build(
            inner.width, inner.grid, inner.patch_size
        )
    built = time.perf_counter() - begun
    config = TrainConfig()
    optimizer = optimizers_for(policy.train(), config.learning_rate, config.weight_decay)
    scaler = torch.amp.GradScaler("cpu", enabled=chosen.dtype == "fp16")
    batch, draws, seconds = random_batch(backbone, chosen.batch_size), torch.Generator(), []
    batch.images.random_(0, 256)
    for _ in range(chosen.steps):
        begun = time.perf_counter()
        values = backward(policy, batch, arm, chosen.accumulate, draws, scaler, DTYPES[chosen.dtype])
        optimizer.unscale(scaler)
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step(scaler)
        scaler.update()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - begun)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found = {
        "backbone": chosen.backbone or f"width {chosen.width}, {chosen.layers} layers",
        "options": {k: v for k, v in vars(chosen).items() if k not in ("backbone", "width", "layers")},
        "parameters": predicted.trainable + predicted.frozen,
        "trainable": predicted.trainable,
        "predicted_peak_gb": predicted.peak / 1e9,
        "measured_peak_gb": peak / 1e9,
        "before_gb": before / 1e9,
        "peak_error": predicted.peak / peak - 1,
        "tensors_error": predicted.tensors / (peak - before) - 1,
        "parts_gb": {
            part: getattr(predicted, part) / 1e9
            for part in ("weights", "gradients", "optimizer", "activations", "rows")
        },
        "predicted_seconds": predicted.seconds,
        "measured_seconds": seconds,
        "build_seconds": built,
        "loss": values,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
