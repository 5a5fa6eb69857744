"""What does it cost to see where the words look? Run: python benchmarks/attention_probe.py --threads 2

Training steps (forward, losses, backward; no optimizer) of one policy on a PaliGemma with 8 language layers of width
1024, in one process, one of each in turn, in changing order, so that what else the machine does falls on all alike:

    without   fused attention, random mask: nobody asks for attention
    rows      fused attention, attention mask: the probe reads the instruction's rows of the last three layers
    eager     attn_implementation="eager", output_attentions=True, attention mask: the library's own way

The same three ways for the attention of one step alone: 8 layers, forward and backward, on random queries, keys and
values. Times are seconds of CPU, which other work on the machine inflates less than the clock; both are in the JSON.

Every round also checks that rows and eager see the same saliency. Memory is measured in fresh processes, one each: what
autograd keeps for the backward pass (weights not counted, every storage once), how much of it are matrices of queries x
keys, and the highest resident memory of one step. Prints a table and a line of JSON a case.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from statistics import median
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from transformers import Gemma2Config, PaliGemmaConfig, PaliGemmaForConditionalGeneration, SiglipVisionConfig
from transformers.models.gemma.modeling_gemma import eager_attention_forward as gemma_eager
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward as gemma2_eager

from la_reconvla.backbones.attention_probe import IMPLEMENTATION, AttentionProbe, sdpa_with_rows
from la_reconvla.backbones.paligemma import BOS, EOS, IMAGE, PAD, PaliGemmaBackbone, SmallPaliGemma, scale_by_fan_in
from la_reconvla.contracts import Batch
from la_reconvla.method.actions import ActionBins
from la_reconvla.method.decoder import MAEDecoder
from la_reconvla.method.mask import AttentionMask, RandomMask
from la_reconvla.method.objective import Losses, losses
from la_reconvla.method.policy import Policy
from la_reconvla.method.reconstruction import Reconstruction
from la_reconvla.randomness import generator, seeded

Way = Literal["without", "rows", "eager"]
WAYS: tuple[Way, ...] = ("without", "rows", "eager")
HEAD = MAEDecoder()
SIZE = SmallPaliGemma(
    image_size=224,
    patch=14,
    width=1024,
    vision_layers=2,
    language_layers=8,
    attention_heads=8,
    kv_heads=1,
    mlp=4,
    chunk=8,
)
CASES: dict[str, tuple[SmallPaliGemma, bool]] = {
    "paligemma-224": (SIZE, False),
    "paligemma2-224": (SIZE, True),
    "paligemma-448": (replace(SIZE, image_size=448), False),
}
"""Sizes, and whether Gemma 2 with its capped logits is inside. 224 px: 256 patches; 448 px: 1024."""


@dataclass(frozen=True)
class Args:
    """What is measured.

    Attributes:
        cases: names of the cases.
        rounds: steps of each way; the first round is not counted.
        batch: samples per step.
        threads: of PyTorch.
        memory: only measure one case and way (``case:way``) in this process; used by the benchmark itself.
    """

    cases: tuple[str, ...] = tuple(CASES)
    rounds: int = 8
    batch: int = 1
    threads: int = 1
    memory: str | None = None


class ProbedPolicy:
    """One policy, and the three ways to take a step with it."""

    def __init__(self, case: str, batch: int):
        size, second = CASES[case]
        with seeded(0, "weights"):
            backbone = gemma2(size) if second else size.build()
            self.policy = Policy(backbone, ActionBins((-1.0,) * 7, (1.0,) * 7))
            self.policy.reconstruction_head = HEAD.build(backbone.width, backbone.grid, backbone.patch_size)
        self.policy.train()
        self.model: Any = backbone.model
        draw = generator(0, "batch")
        told = ["pick up the black bowl next to the ramekin and place it on the plate", "open the middle drawer"]
        self.batch = Batch(
            images=torch.randint(
                0, 256, (batch, 3, size.image_size, size.image_size), dtype=torch.uint8, generator=draw
            ),
            instructions=[told[i % 2] for i in range(batch)],
            actions=torch.rand(batch, size.chunk, 7, generator=draw) * 2 - 1,
            valid=torch.ones(batch, size.chunk, dtype=torch.bool),
        )
        self.hooks: list[Any] = []
        self.held: list[Any] = []

    def choose(self, way: Way) -> Reconstruction:
        """Set the attention up; the condition to train."""
        for hook in self.hooks:
            hook.remove()
        self.hooks.clear()
        self.model.language_model.set_attn_implementation("eager" if way == "eager" else IMPLEMENTATION)
        if way == "eager":
            asked: list[AttentionProbe] = []

            def ask(_module, _args, kwargs):
                kwargs = {**kwargs, "output_attentions": True}
                asked.append(kwargs.pop("probe"))
                return (), kwargs

            def answer(_module, _args, out):
                probe = asked.pop()
                for layer in probe.layers:
                    probe.weights[layer] = out.attentions[layer][:, :, probe.rows, probe.columns].detach()
                self.held.append(out.attentions)

            self.hooks = [
                self.model.register_forward_pre_hook(ask, with_kwargs=True),
                self.model.register_forward_hook(answer),
            ]
        return Reconstruction(RandomMask() if way == "without" else AttentionMask(), HEAD)

    def step(self, reconstruction: Reconstruction) -> Losses:
        self.policy.zero_grad(set_to_none=True)
        found = losses(self.policy, self.batch, reconstruction, generator(0, "mask"))
        found.total.backward()
        self.held.clear()
        return found


def gemma2(size: SmallPaliGemma) -> PaliGemmaBackbone:
    """The same size with Gemma 2 inside, as in PaliGemma 2: capped logits, every second layer with a window."""
    tokenizer = (
        size.build().tokenizer if size.width <= 64 else replace(size, width=64, language_layers=3).build().tokenizer
    )
    config: Any = PaliGemmaConfig(
        vision_config=SiglipVisionConfig(
            image_size=size.image_size,
            patch_size=size.patch,
            hidden_size=size.width,
            intermediate_size=size.mlp * size.width,
            num_hidden_layers=size.vision_layers,
            num_attention_heads=size.attention_heads,
            vision_use_head=False,
        ).to_dict(),
        text_config=Gemma2Config(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=size.width,
            intermediate_size=size.mlp * size.width,
            num_hidden_layers=size.language_layers,
            num_attention_heads=size.attention_heads,
            num_key_value_heads=size.kv_heads,
            head_dim=size.width // size.attention_heads,
            query_pre_attn_scalar=size.width // size.attention_heads,
            pad_token_id=PAD,
            eos_token_id=EOS,
            bos_token_id=BOS,
        ).to_dict(),
        image_token_index=IMAGE,
        projection_dim=size.width,
        hidden_size=size.width,
    )
    model = PaliGemmaForConditionalGeneration._from_config(config)
    scale_by_fan_in(model)
    return PaliGemmaBackbone(model, tokenizer, size)


def memory(case: str, way: Way, batch: int) -> dict[str, float]:
    """MiB of one step: kept for the backward pass, of that matrices, and the process's peak."""
    bench = ProbedPolicy(case, batch)
    reconstruction = bench.choose(way)
    weights = {parameter.untyped_storage().data_ptr() for parameter in bench.policy.parameters()}
    kept: dict[int, tuple[int, bool]] = {}
    held: list[torch.Tensor] = []  # an address is counted once only while its owner lives

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            square = (
                tensor.dim() >= 3
                and tensor.shape[-1] == tensor.shape[-2]
                and tensor.shape[-1] > bench.policy.backbone.grid[0] ** 2
            )
            kept[storage.data_ptr()] = storage.nbytes(), square or kept.get(storage.data_ptr(), (0, False))[1]
            held.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        found = losses(bench.policy, bench.batch, reconstruction, generator(0, "mask"))
    if bench.held:
        for matrix in bench.held[0]:
            kept[matrix.untyped_storage().data_ptr()] = matrix.untyped_storage().nbytes(), True
    mib = {
        "kept": sum(size for size, _ in kept.values()) / 2**20,
        "matrices": sum(size for size, square in kept.values() if square) / 2**20,
    }
    held.clear()
    found.total.backward()
    return {**mib, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10}


def measure(case: str, args: Args) -> dict[str, Any]:
    """Seconds of every way, round by round, and memory from fresh processes."""
    bench = ProbedPolicy(case, args.batch)
    seconds: dict[Way, list[tuple[float, float]]] = {way: [] for way in WAYS}
    apart, seen = 0.0, 0.0
    for turn in range(args.rounds + 1):
        saliency = {}
        for way in (*WAYS[turn % 3 :], *WAYS[: turn % 3]):
            reconstruction = bench.choose(way)
            begun = now()
            found = bench.step(reconstruction)
            seconds[way].append(since(begun))
            saliency[way] = found.saliency
        apart = max(apart, float((saliency["rows"] - saliency["eager"]).abs().max()))
        seen = float(saliency["rows"].max())
    alone = attention_alone(bench)
    del bench
    found: dict[str, dict[str, Any]] = {
        way: {"step": clocks(seconds[way][1:]), "attention": clocks(alone[way][5:])} for way in WAYS
    }
    for way in WAYS:
        command = [sys.executable, __file__, "--memory", f"{case}:{way}", "--batch", str(args.batch)]
        out = subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout
        found[way] |= json.loads(out.splitlines()[-1])
    return {"ways": found, "saliency_apart": apart, "saliency_highest": seen}


def attention_alone(bench: ProbedPolicy, rounds: int = 35) -> dict[Way, list[tuple[float, float]]]:
    """The attention of one step: every layer of the language model, forward and backward, nothing else."""
    text = bench.model.config.text_config
    rows, columns = slice(-24, -8), slice(0, bench.policy.backbone.grid[0] ** 2)
    s, layers = columns.stop + 28, text.num_hidden_layers
    draw = generator(0, "alone")
    shape = text.num_attention_heads, text.num_key_value_heads, text.num_key_value_heads
    tensors = [torch.randn(1, heads, s, text.head_dim, generator=draw, requires_grad=True) for heads in shape]
    allowed = torch.ones(1, 1, s, s, dtype=torch.bool)
    allowed[..., -8:, -8:] = torch.ones(8, 8).tril() > 0
    allowed[..., :-8, -8:] = False
    additive = torch.zeros(1, 1, s, s).masked_fill(~allowed, torch.finfo(torch.float32).min)
    softcap = getattr(text, "attn_logit_softcapping", None)
    options = {"scaling": text.head_dim**-0.5, **({"softcap": softcap} if softcap else {})}
    library = gemma2_eager if softcap else gemma_eager
    modules: list[Any] = [
        SimpleNamespace(layer_idx=i, num_key_value_groups=shape[0] // shape[1], is_causal=True, training=True)
        for i in range(layers)
    ]
    found: dict[Way, list[tuple[float, float]]] = {way: [] for way in WAYS}
    for turn in range(rounds):
        for way in (*WAYS[turn % 3 :], *WAYS[: turn % 3]):
            probe = AttentionProbe(tuple(range(layers - 3, layers)), rows, columns) if way == "rows" else None
            begun = now()
            outs = []
            for module in modules:
                if way == "eager":
                    outs.append(library(module, *tensors, additive, **options))
                else:
                    outs.append(sdpa_with_rows(module, *tensors, allowed, probe, **options))
            torch.stack([out for out, _ in outs]).sum().backward()
            found[way].append(since(begun))
    return found


def now() -> tuple[float, float]:
    """Seconds of CPU of this process, and by the clock."""
    return time.process_time(), time.perf_counter()


def since(begun: tuple[float, float]) -> tuple[float, float]:
    """Seconds since `now` said so."""
    cpu, clock = now()
    return cpu - begun[0], clock - begun[1]


def clocks(times: list[tuple[float, float]]) -> dict[str, list[float]]:
    """The two clocks apart."""
    return {"cpu": [cpu for cpu, _ in times], "clock": [clock for _, clock in times]}


def main(args: Args) -> None:
    """Measure all cases."""
    torch.set_num_threads(args.threads)
    if args.memory:
        case, _, way = args.memory.partition(":")
        print(json.dumps(memory(case, next(known for known in WAYS if known == way), args.batch)))
        return
    for case in args.cases:
        found = measure(case, args)
        show(case, found)
        head = {"case": case, "batch": args.batch, "threads": args.threads, "torch": torch.__version__}
        print(json.dumps({**head, **found}), flush=True)


def show(case: str, found: dict[str, Any]) -> None:
    """One case for people; ratios are medians of the rounds' own ratios."""
    ways = found["ways"]
    for part in ("step", "attention"):
        table = Table(title=f"{case}, {part}, CPU seconds")
        for column in ("", "p5", "median", "p95", "over without", "over rows"):
            table.add_column(column, justify="right")
        for way, values in ways.items():
            times = np.array(values[part]["cpu"])
            ratios = [median(times / np.array(ways[other][part]["cpu"])) for other in ("without", "rows")]
            values[part]["over"] = dict(zip(("without", "rows"), ratios, strict=True))
            low, high = np.percentile(times, [5, 95])
            table.add_row(way, *(f"{value:.4g}" for value in (low, median(times), high, *ratios)))
        Console(width=120).print(table)
    table = Table(title=f"{case}, MiB; saliency of rows and eager differs by at most {found['saliency_apart']:.1e}")
    for column in ("", "kept for backward", "of that matrices", "peak of the process"):
        table.add_column(column, justify="right")
    for way, values in ways.items():
        table.add_row(way, *(f"{values[key]:.0f}" for key in ("kept", "matrices", "peak")))
    Console(width=120).print(table)


if __name__ == "__main__":
    main(tyro.cli(Args))
