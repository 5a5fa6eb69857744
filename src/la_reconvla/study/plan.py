"""What one training step of a pretrained backbone needs, before anything is downloaded or bought.

`la_reconvla.study.step_memory` runs the step with fake tensors; here its bytes and operations meet a device.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.table import Table
from torch import nn

from la_reconvla.backbones.pretrained import DTYPES, Dtype, Freeze, Lora, Pretrained
from la_reconvla.conditions import condition
from la_reconvla.errors import UserError, unknown
from la_reconvla.study.cells import cells
from la_reconvla.study.options import PlanOptions
from la_reconvla.study.presets import preset
from la_reconvla.study.step_memory import PlannedStep, skeleton, trace

NF4_BYTES = 0.5 + (1 + 4 / 256) / 64  # 4 bits, and for each 64 an 8-bit constant, of which 256 share a float
OPTIMIZER_BYTES = 8  # two moments in float32 for each number that trains
REACHED = 0.4  # share of the vendor's rate that training reaches; on a CPU the rate is measured and all of it is
SPARE = 0.92  # share of the memory that a plan may fill; the rest goes to fragments
PAGED_IN = 0.15e9  # code and buffers that a CPU process has after its first step only: docs/results/plan.md


@dataclass(frozen=True)
class Device:
    """Memory in bytes, dense operations per second (None: not in hardware), bytes per second, and the source."""

    name: str
    memory: float
    rates: dict[Dtype, float | None]
    bandwidth: float
    source: str
    process: float = 0.5e9  # CUDA context and libraries
    reached: float = REACHED


def _gpu(name: str, memory: int, half: float, bf16: float | None, full: float, bandwidth: int, source: str) -> Device:
    rates: dict[Dtype, float | None] = {"fp16": half * 1e12, "bf16": bf16 and bf16 * 1e12, "fp32": full * 1e12}
    return Device(name, memory * 1e9, rates, bandwidth * 1e9, source)


DEVICES = {
    device.name: device
    for device in (
        _gpu("t4", 16, 65, None, 8.1, 320, "NVIDIA T4 Tensor Core GPU, data sheet"),
        _gpu("l4", 24, 121, 121, 30.3, 300, "NVIDIA L4 Tensor Core GPU, data sheet (half of the rate with sparsity)"),
        _gpu("a10g", 24, 70, 70, 35, 600, "NVIDIA A10G, data sheet"),
        _gpu("a100", 80, 312, 312, 19.5, 2039, "NVIDIA A100 80GB SXM, data sheet"),
        _gpu("h100", 80, 989, 989, 67, 3350, "NVIDIA H100 SXM, data sheet (half of the rate with sparsity)"),
    )
}


def device(name: str, dtype: Dtype = "fp32") -> Device:
    """The device of this name; ``cpu`` is this machine, its rate for `dtype` measured now in a second or so.

    Raises:
        UserError: if there is none.
    """
    if name == "cpu":
        return _this_cpu(dtype)
    if name not in DEVICES:
        raise unknown("device", name, [*DEVICES, "cpu"])
    return DEVICES[name]


def _this_cpu(dtype: Dtype) -> Device:
    process = psutil.Process().memory_info().rss + PAGED_IN
    a, b = (torch.ones(rows, 2048, dtype=DTYPES[dtype]) for rows in (256, 2048))
    torch.mm(a, b)  # the first one also makes threads and buffers
    begun = time.perf_counter()
    torch.mm(a, b)
    rate = 2 * a.shape[0] * b.numel() / (time.perf_counter() - begun)
    copied = torch.ones(1 << 26)
    begun = time.perf_counter()
    copied.clone()
    bandwidth = 2 * copied.nbytes / (time.perf_counter() - begun)
    return Device(
        "cpu", psutil.virtual_memory().total, {dtype: rate}, bandwidth, "this machine, measured", process, 1.0
    )


@dataclass(frozen=True)
class Plan:
    """What `PlannedStep` needs on a device; bytes, seconds, operations.

    Attributes:
        step: what was planned.
        device: where.
        trainable: parameters that train.
        frozen: parameters that stay.
        weights: bytes of both.
        gradients: bytes of gradients at the peak.
        optimizer: bytes of AdamW's moments.
        activations: bytes of all else that is alive then.
        rows: bytes of the attention rows, alive in the forward pass, within `activations` where the peak is there.
        operations: floating-point operations of a step.
        seconds: of a step.
    """

    step: PlannedStep
    device: Device
    trainable: int
    frozen: int
    weights: float
    gradients: float
    optimizer: float
    activations: float
    rows: float
    operations: float
    seconds: float

    @property
    def peak(self) -> float:
        """Bytes of the process at its fullest."""
        return self.device.process + self.tensors

    @property
    def tensors(self) -> float:
        """Bytes of all tensors at their fullest."""
        return self.weights + self.gradients + self.optimizer + self.activations

    @property
    def fits(self) -> bool:
        """Whether that leaves the device enough room."""
        return self.peak <= SPARE * self.device.memory


def plan(step: PlannedStep, device: Device) -> Plan:
    """Trace one step without a number in it.

    Raises:
        UserError: if the architecture cannot be had, or the device cannot do what is asked.
    """
    backbone = step.backbone
    rate = device.rates[backbone.dtype]
    if rate is None:
        raise UserError(f"{device.name} has no {backbone.dtype} in hardware: give --dtype fp16")
    if backbone.quantize and device.name == "cpu":
        raise UserError("weights in 4 bits need an NVIDIA GPU: drop --quantize")
    policy = skeleton(backbone, step.condition, step.decoding)
    trainable = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    weights = {name: float(p.nbytes) for name, p in policy.named_parameters()}
    largest = passes = 0.0
    if backbone.quantize:  # the library keeps the table of embeddings and all that is no linear layer as it is
        for name, module in policy.backbone.named_modules():  # pyright: ignore
            path = f"backbone.{name}.weight"
            if isinstance(module, nn.Linear) and path in weights and not module.weight.requires_grad:
                weights[path] = NF4_BYTES * module.weight.numel()
                largest = max(largest, 2.0 * module.weight.numel())  # one layer is unpacked at a time
                passes += 4.0 * module.weight.numel()  # written and read again
    traced = trace(policy, step)
    streamed = sum(weights.values()) + passes
    looks = 3 if backbone.checkpointing else 2  # forward, again, backward
    moved = step.accumulate * looks * streamed + 5 * 4 * trainable
    return Plan(
        step,
        device,
        trainable,
        sum(p.numel() for p in policy.parameters()) - trainable,
        sum(weights.values()),
        traced.gradients,
        OPTIMIZER_BYTES * trainable,
        traced.activations + largest,
        traced.rows,
        step.accumulate * traced.operations,
        step.accumulate * traced.operations / (rate * device.reached) + moved / device.bandwidth,
    )


def fitting(asked: Plan) -> tuple[str, Plan] | None:
    """The first change that makes it fit, or changes if no single one does, and the plan with it; None if none does.

    From what costs nothing but time to what changes what is learned.
    """
    step, names = asked.step, []
    for name, change in CHANGES:
        alone = change(asked.step)
        if alone != asked.step and (fitted := plan(alone, asked.device)).fits:
            return name, fitted
    for name, change in CHANGES:
        if (changed := change(step)) != step:
            step, names = changed, [*names, name]
            if (fitted := plan(step, asked.device)).fits:
                return " and ".join(names), fitted
    return None


def _backbone(**changes: Any):
    def changed(step: PlannedStep) -> PlannedStep:
        return replace(step, backbone=replace(step.backbone, **changes))

    return changed


def _single(step: PlannedStep) -> PlannedStep:
    return replace(step, accumulate=step.batch_size)


def _half(step: PlannedStep) -> PlannedStep:
    return _backbone(dtype="fp16")(step) if step.backbone.dtype == "fp32" else step


def _adapters(step: PlannedStep) -> PlannedStep:
    return _backbone(lora=Lora())(step) if step.backbone.lora is None else step


def _four_bits(step: PlannedStep) -> PlannedStep:
    return _backbone(quantize="nf4")(_adapters(_half(step)))


CHANGES = (
    ("gradient checkpointing (--checkpointing)", _backbone(checkpointing=True)),
    ("micro-batches of one sample (--accumulate as large as --batch-size)", _single),
    ("weights in half precision (--dtype fp16)", _half),
    ("adapters instead of full training (--lora-rank 16)", _adapters),
    ("weights in 4 bits (--quantize nf4)", _four_bits),
)


def plan_one(options: PlanOptions) -> Plan:
    """See the command ``check plan``."""
    dtype = options.dtype
    if dtype == "auto":
        gpu = DEVICES.get(options.device)
        dtype = "fp32" if gpu is None else "bf16" if gpu.rates["bf16"] else "fp16"
    backbone = Pretrained(
        options.backbone,
        chunk=options.chunk,
        freeze=Freeze(vision=not options.train_vision, last=options.last),
        lora=Lora(options.lora_rank) if options.lora_rank else None,
        quantize=None if options.quantize == "none" else options.quantize,
        checkpointing=options.checkpointing,
        dtype=dtype,
    )
    arm = condition(options.condition)
    step = PlannedStep(backbone, arm, options.batch_size, options.accumulate, options.decoding)
    return plan(step, device(options.device, dtype))


def table(planned: Plan) -> Table:
    """Parameters, memory by part, time."""
    device, step = planned.device, planned.step
    what = f"{step.backbone.source}, {step.condition.id}, {step.decoding}"
    shown = Table(title=f"{what} on {device.name} ({device.source})", title_justify="left")
    shown.add_column("")
    shown.add_column("", justify="right")
    memory = {
        "weights": planned.weights,
        "gradients": planned.gradients,
        "optimizer": planned.optimizer,
        "activations": planned.activations,
        "process": device.process,
    }
    shown.add_row("parameters that train", f"{planned.trainable / 1e6:.1f} M")
    shown.add_row("parameters that stay", f"{planned.frozen / 1e6:.1f} M", end_section=True)
    for part, size in memory.items():
        shown.add_row(part, f"{size / 1e9:.2f} GB")
    shown.add_row("(attention rows, while it looks)", f"{planned.rows / 1e9:.4f} GB")
    shown.add_row("peak", f"{planned.peak / 1e9:.2f} GB")
    shown.add_row(f"of {SPARE:.0%} of the memory", f"{SPARE * device.memory / 1e9:.2f} GB", end_section=True)
    shown.add_row("operations per step", f"{planned.operations / 1e12:.1f} T")
    shown.add_row("time per step, at best", f"{planned.seconds:.2f} s")
    return shown


def hours(planned: Plan) -> str:
    """Hours of training by the schedule of `paper`, with steps like the planned one: one policy, and all of them."""
    config = preset("paper")
    one = planned.seconds * config.train.steps / 3600
    arms, seeds = len(config.conditions), len(config.seeds)
    policies = len(cells(config, Path()))
    return (
        f"the preset paper, at best: {one:.1f} hours of training for one policy ({config.train.steps} steps), "
        f"{policies * one:.0f} for study run paper ({policies} policies: {arms} arms and one without an image, "
        f"{seeds} seeds), {seeds * one:.0f} less for each arm that --conditions leaves out; rollouts come on top"
    )


def verdict(planned: Plan) -> str:
    """Whether it fits and, if not, what makes it fit."""
    name = planned.device.name
    if planned.fits:
        return f"fits: {planned.peak / 1e9:.1f} GB of {planned.device.memory / 1e9:.0f} GB"
    if (change_and_plan := fitting(planned)) is None:
        return f"does not fit {name}, whatever is changed: take a larger device or a smaller backbone"
    change, other = change_and_plan
    return f"does not fit {name}; with {change} it does: {other.peak / 1e9:.1f} GB, {other.seconds:.2f} s per step"
