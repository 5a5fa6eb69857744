"""What one training step of a pretrained backbone needs, before anything is downloaded or bought.

The step is run with fake tensors (`torch._subclasses.fake_tensor`): every operation happens with its true shapes and
dtypes, autocast, adapters and gradient checkpointing included, and none has numbers. `Live` counts the bytes that are
alive after each of them, and the library's counter the floating-point operations.
"""

from __future__ import annotations

import time
import warnings
import weakref
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import psutil
import torch
from rich.table import Table
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from la_reconvla.backbones.pretrained import DTYPES, Dtype, Freeze, Lora, Pretrained
from la_reconvla.conditions import C4, Condition, condition
from la_reconvla.contracts import ACTION_DIM, PROPRIO_WIDTH, BackboneConfig, Batch
from la_reconvla.errors import UserError, unknown
from la_reconvla.method.actions import ActionBins
from la_reconvla.method.decoder import MAEReconstructor
from la_reconvla.method.mask import masked_count
from la_reconvla.method.policy import Policy

NF4_BYTES = 0.5 + (1 + 4 / 256) / 64  # 4 bits, and for each 64 an 8-bit constant, of which 256 share a float
OPTIMIZER_BYTES = 8  # two moments in float32 for each number that trains
REACHED = 0.4  # share of the vendor's rate that training reaches; on a CPU the rate is measured and all of it is
SPARE = 0.92  # share of the memory that a plan may fill; the rest goes to fragments
PAGED_IN = 0.15e9  # code and buffers that a CPU process has after its first step only: docs/results/plan.md
LANGUAGE = "pick up the black bowl next to the plate"


@dataclass(frozen=True)
class Device:
    """Memory in bytes, dense rates in operations a second (None: not in hardware), bytes a second, and who says so."""

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
    own = psutil.Process().memory_info().rss + PAGED_IN
    a, b = (torch.ones(rows, 2048, dtype=DTYPES[dtype]) for rows in (256, 2048))
    torch.mm(a, b)  # the first one also makes threads and buffers
    begun = time.perf_counter()
    torch.mm(a, b)
    rate = 2 * a.shape[0] * b.numel() / (time.perf_counter() - begun)
    whole = torch.ones(1 << 26)
    begun = time.perf_counter()
    whole.clone()
    bandwidth = 2 * whole.nbytes / (time.perf_counter() - begun)
    return Device("cpu", psutil.virtual_memory().total, {dtype: rate}, bandwidth, "this machine, measured", own, 1.0)


@dataclass(frozen=True)
class Step:
    """One optimizer step.

    Attributes:
        backbone: what is trained, and how.
        condition: the arm.
        batch_size: samples.
        accumulate: micro-batches that they are divided into.
    """

    backbone: Pretrained
    condition: Condition = C4
    batch_size: int = 16
    accumulate: int = 4

    def __post_init__(self):
        if self.batch_size % self.accumulate:
            raise UserError(f"accumulate {self.accumulate} does not divide the batch of {self.batch_size}")


@dataclass(frozen=True)
class Plan:
    """What `Step` needs on a device; bytes, seconds, operations.

    Attributes:
        step: what was planned.
        device: where.
        trainable: parameters that train.
        frozen: parameters that stay.
        weights: bytes of both.
        gradients: bytes of gradients at the moment of the peak.
        optimizer: bytes of AdamW's moments.
        activations: bytes of all else that is alive at that moment.
        rows: bytes of the attention rows, alive in the forward pass, within `activations` where the peak is there.
        operations: floating-point operations of a step.
        seconds: of a step.
    """

    step: Step
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


def plan(step: Step, device: Device) -> Plan:
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
    policy = _skeleton(backbone, step.condition)
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
    traced = _trace(policy, step)
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
        if alone != asked.step and (found := plan(alone, asked.device)).fits:
            return name, found
    for name, change in CHANGES:
        if (changed := change(step)) != step:
            step, names = changed, [*names, name]
            if (found := plan(step, asked.device)).fits:
                return " and ".join(names), found
    return None


def _backbone(**changes: Any):
    def changed(step: Step) -> Step:
        return replace(step, backbone=replace(step.backbone, **changes))

    return changed


def _single(step: Step) -> Step:
    return replace(step, accumulate=step.batch_size)


def _half(step: Step) -> Step:
    return _backbone(dtype="fp16")(step) if step.backbone.dtype == "fp32" else step


def _adapters(step: Step) -> Step:
    return _backbone(lora=Lora())(step) if step.backbone.lora is None else step


def _four_bits(step: Step) -> Step:
    return _backbone(quantize="nf4")(_adapters(_half(step)))


CHANGES = (
    ("gradient checkpointing (--checkpointing)", _backbone(checkpointing=True)),
    ("micro-batches of one sample (--accumulate as large as --batch-size)", _single),
    ("weights in half precision (--dtype fp16)", _half),
    ("adapters instead of full training (--lora-rank 16)", _adapters),
    ("weights in 4 bits (--quantize nf4)", _four_bits),
)


# ---------------------------------------------------------------- the trace


class Live(TorchDispatchMode):
    """Bytes of the storages that operations inside made and that still live, and their highest sum.

    Attributes:
        now: bytes alive.
        peak: the highest `now` so far.
        at_peak: what `gradients` was then.
        gradients: bytes of the gradients alive; its owner counts them.
    """

    def __init__(self, known: list[Tensor] | None = None):
        super().__init__()
        self.now = self.peak = self.at_peak = self.gradients = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet(t.untyped_storage() for t in known or [])

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage())
        if self.now > self.peak:
            self.peak, self.at_peak = self.now, self.gradients
        return out

    def _see(self, storage: Any) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self.now += size
        weakref.finalize(storage, self._freed, size)

    def _freed(self, size: int) -> None:
        self.now -= size


@dataclass(frozen=True)
class Trace:
    """Bytes at the peak of one micro-batch, without weights and moments, and its operations."""

    activations: float
    gradients: float
    rows: float
    operations: float


def _skeleton(backbone: Pretrained, condition: Condition) -> Policy:
    """The policy on the meta device."""
    inner = backbone.skeleton()
    if backbone.checkpointing:  # the other implementation frees fake tensors late; both keep the same of real ones
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            inner.inner.model.gradient_checkpointing_enable({"use_reentrant": True})
    with torch.device("meta"):
        policy = Policy(inner, ActionBins((-1.0,) * ACTION_DIM, (1.0,) * ACTION_DIM))
        if condition.reconstruction is not None:
            policy.reconstructor = condition.reconstruction.head.build(inner.width, inner.grid, inner.patch_size)
    return policy.train()


def _trace(policy: Policy, step: Step) -> Trace:
    with FakeTensorMode():
        _fake(policy)
        trained = [p for p in policy.parameters() if p.requires_grad]
        batch = random_batch(step.backbone, step.batch_size // step.accumulate)
        counter = FlopCounterMode(display=False)
        with warnings.catch_warnings(), counter, Live([*policy.parameters(), *policy.buffers()]) as live:
            warnings.simplefilter("ignore")  # a frozen vision tower has nothing to compute again
            if step.accumulate > 1:  # from the second micro-batch on all gradients are there
                for parameter in trained:
                    parameter.grad = torch.empty_like(parameter)
                live.gradients = sum(p.nbytes for p in trained)
            else:
                for parameter in trained:
                    parameter.register_post_accumulate_grad_hook(lambda p: _count(live, p))
            rows = trial(policy, batch, step.condition, DTYPES[step.backbone.dtype])
        return Trace(live.peak - live.at_peak, live.at_peak, rows, counter.get_total_flops())


def _count(live: Live, parameter: Tensor) -> None:
    live.gradients += parameter.nbytes


def _fake(policy: nn.Module) -> None:
    """Put fake tensors in the place of those on the meta device; autocast knows nothing of the latter."""
    for module in policy.modules():
        for name, parameter in module.named_parameters(recurse=False):
            empty = torch.empty(parameter.shape, dtype=parameter.dtype)
            setattr(module, name, nn.Parameter(empty, requires_grad=parameter.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))


def random_batch(backbone: BackboneConfig, size: int) -> Batch:
    """A batch of the shapes that `backbone` takes, with an instruction of LIBERO's length."""
    pixels, width = (size, 3, backbone.image_size, backbone.image_size), PROPRIO_WIDTH[backbone.proprio]
    return Batch(
        images=torch.zeros(pixels, dtype=torch.uint8),
        instructions=[LANGUAGE] * size,
        actions=torch.zeros(size, backbone.chunk, ACTION_DIM),
        valid=torch.ones(size, backbone.chunk, dtype=torch.bool),
        wrist=torch.zeros(pixels, dtype=torch.uint8) if backbone.wrist else None,
        proprio=torch.zeros(size, width) if width else None,
    )


def trial(policy: Policy, batch: Batch, condition: Condition, dtype: torch.dtype) -> float:
    """Forward and backward pass as `la_reconvla.method.objective.losses` has them, but for what depends on numbers:

    which patches are masked, and which steps exist. Returns the bytes of the attention rows.
    """
    with nullcontext() if dtype == torch.float32 else torch.autocast("cpu", dtype):
        total, rows = _objective(policy, batch, condition)
    total.backward()
    return rows


def _objective(policy: Policy, batch: Batch, condition: Condition) -> tuple[Tensor, float]:
    extra = condition.reconstruction
    features = policy.features(batch, attention=condition.saliency.rows if condition.saliency else None)
    rows = float(features.attention.nbytes) if features.attention is not None else 0.0
    logits = policy.head(features.actions, features.instruction)
    action = -(torch.zeros_like(logits) * logits.log_softmax(-1)).sum(-1).mean()
    if extra is None:
        return action, rows
    patches, reconstructor = features.patches, policy.reconstructor
    mask = torch.zeros(patches.shape[:2], dtype=torch.bool)
    if extra.mask_at == "input":
        patches = policy.features(batch, hidden=mask).patches
    head: Any = reconstructor
    target = head.target(batch.images)
    if not isinstance(head, MAEReconstructor):  # it draws everything, whatever the loss is taken of
        return action + extra.weight * head.loss(patches, None, target, torch.Generator()), rows
    few = slice(0, masked_count(0.25, patches.shape[1]))
    predicted = head.leave(head.decode(patches, mask)[:, few]).float()
    return action + extra.weight * (predicted - target[:, few]).square().mean(), rows


# ---------------------------------------------------------------- for people


def plan_one(
    source: str,
    device_name: str,
    condition_id: str,
    batch_size: int,
    accumulate: int,
    chunk: int,
    lora_rank: int,
    quantize: Literal["none", "nf4"],
    dtype: Dtype | Literal["auto"],
    checkpointing: bool,
    train_vision: bool,
    last: int | None,
) -> Plan:
    """See the command ``plan``."""
    if dtype == "auto":
        gpu = DEVICES.get(device_name)
        dtype = "fp32" if gpu is None else "bf16" if gpu.rates["bf16"] else "fp16"
    backbone = Pretrained(
        source,
        chunk=chunk,
        freeze=Freeze(vision=not train_vision, last=last),
        lora=Lora(lora_rank) if lora_rank else None,
        quantize=None if quantize == "none" else quantize,
        checkpointing=checkpointing,
        dtype=dtype,
    )
    return plan(Step(backbone, condition(condition_id), batch_size, accumulate), device(device_name, dtype))


def table(planned: Plan) -> Table:
    """Parameters, memory by part, time."""
    device, step = planned.device, planned.step
    shown = Table(title=f"{step.backbone.source} on {device.name} ({device.source})", title_justify="left")
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
    shown.add_row("operations a step", f"{planned.operations / 1e12:.1f} T")
    shown.add_row("time a step, at best", f"{planned.seconds:.2f} s")
    return shown


def verdict(planned: Plan) -> str:
    """Whether it fits and, if not, what makes it fit."""
    name = planned.device.name
    if planned.fits:
        return f"fits: {planned.peak / 1e9:.1f} GB of {planned.device.memory / 1e9:.0f} GB"
    if (found := fitting(planned)) is None:
        return f"does not fit {name}, whatever is changed: take a larger device or a smaller backbone"
    change, other = found
    return f"does not fit {name}; with {change} it does: {other.peak / 1e9:.1f} GB, {other.seconds:.2f} s a step"
