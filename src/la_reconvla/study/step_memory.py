"""The memory of one training step, measured on fake tensors (`torch._subclasses.fake_tensor`).

Every operation happens with its true shapes and dtypes, autocast, adapters and gradient checkpointing included, and
none has numbers. `Live` counts the bytes that are alive after each of them, and the library's counter the
floating-point operations.
"""

from __future__ import annotations

import warnings
import weakref
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from la_reconvla.backbones.pretrained import DTYPES, Pretrained
from la_reconvla.backbones.shared import BackboneConfig
from la_reconvla.conditions import C4, Condition
from la_reconvla.contracts import Batch, Features
from la_reconvla.errors import UserError
from la_reconvla.method.actions import ActionBins
from la_reconvla.method.decoder import MAEReconstructor
from la_reconvla.method.mask import masked_count
from la_reconvla.method.policy import Policy
from la_reconvla.method.variants.action_diffusion import DenoisingHead
from la_reconvla.method.variants.autoregressive import DECODINGS, DecodingName
from la_reconvla.method.variants.budget import BudgetedPolicy
from la_reconvla.robot import LIBERO_ACTIONS, proprio_width

LANGUAGE = "pick up the black bowl next to the plate"


@dataclass(frozen=True)
class PlannedStep:
    """One optimizer step.

    Attributes:
        backbone: what is trained, and how.
        condition: the arm.
        batch_size: samples.
        accumulate: micro-batches per step.
        decoding: of actions.
    """

    backbone: Pretrained
    condition: Condition = C4
    batch_size: int = 16
    accumulate: int = 4
    decoding: DecodingName = "parallel"

    def __post_init__(self):
        if self.condition.budget is not None:
            self.condition.budget.require(self.decoding)
        if self.batch_size % self.accumulate:
            raise UserError(f"accumulate {self.accumulate} does not divide the batch of {self.batch_size}")


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
                self._add(tensor.untyped_storage())
        if self.now > self.peak:
            self.peak, self.at_peak = self.now, self.gradients
        return out

    def _add(self, storage: Any) -> None:
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


def skeleton(backbone: Pretrained, condition: Condition, decoding: DecodingName = "parallel") -> Policy:
    """The policy on the meta device."""
    bins = ActionBins((-1.0,) * len(LIBERO_ACTIONS), (1.0,) * len(LIBERO_ACTIONS))
    inner = DECODINGS[decoding].given(backbone).skeleton()
    if backbone.checkpointing:  # the other implementation frees fake tensors late; both keep the same of real ones
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            inner.inner.model.gradient_checkpointing_enable({"use_reentrant": True})
    with torch.device("meta"):
        policy = Policy(inner, bins, action_head=DECODINGS[decoding].action_head(inner, bins, backbone.chunk))
        if condition.reconstruction is not None:
            policy.reconstruction_head = condition.reconstruction.reconstruction_head.build(
                inner.width, inner.grid, inner.patch_size
            )
        if condition.budget is not None:
            policy = BudgetedPolicy(policy, condition.budget)
    return policy.train()


def trace(policy: Policy, step: PlannedStep) -> Trace:
    """Run one micro-batch of `step` on the policy of `skeleton`, without a number in it."""
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
                    parameter.register_post_accumulate_grad_hook(lambda p: count_gradient(live, p))
            rows = trial(policy, batch, step.condition, DTYPES[step.backbone.dtype])
        return Trace(live.peak - live.at_peak, live.at_peak, rows, counter.get_total_flops())


def count_gradient(live: Live, parameter: Tensor) -> None:
    """Add a gradient that is there now."""
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
    pixels, width = (size, 3, backbone.image_size, backbone.image_size), proprio_width(backbone.proprio)
    return Batch(
        images=torch.zeros(pixels, dtype=torch.uint8),
        instructions=[LANGUAGE] * size,
        actions=torch.zeros(size, backbone.chunk, len(LIBERO_ACTIONS)),
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


def _action_loss(head: Any, features: Features, actions: Tensor) -> Tensor:
    if isinstance(head, DenoisingHead):
        x, level, wanted = head.noised(actions, torch.zeros_like(actions), torch.zeros(len(actions)))
        return (head.predict(x, level, head.states(features)) - wanted).square().mean()
    logits = head(features)
    return -(torch.zeros_like(logits) * logits.log_softmax(-1)).sum(-1).mean()


def _objective(policy: Policy, batch: Batch, condition: Condition) -> tuple[Tensor, float]:
    extra = condition.reconstruction
    features = policy.features(batch, attention=condition.saliency.attention_rows if condition.saliency else None)
    rows = float(features.attention.nbytes) if features.attention is not None else 0.0
    action = _action_loss(policy.action_head, features, batch.actions)
    if extra is None:
        return action, rows
    patches, reconstructor = features.patches, policy.reconstruction_head
    mask = torch.zeros(patches.shape[:2], dtype=torch.bool)
    if extra.mask_at == "input":
        patches = policy.features(batch, hidden=mask).patches
    head: Any = reconstructor
    target = head.target(batch.images)
    if not isinstance(head, MAEReconstructor):  # it draws everything, whatever the loss is taken of
        return action + extra.weight_at(0.0) * head.loss(patches, None, target, torch.Generator()), rows
    few = slice(0, masked_count(0.25, patches.shape[1]))
    predicted = head.leave(head.decode(patches, mask)[:, few]).float()
    return action + extra.weight_at(0.0) * (predicted - target[:, few]).square().mean(), rows
