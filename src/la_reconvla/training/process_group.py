"""Several processes that train one policy: who computes which rows of a batch, and how the results come together.

The samples of a step are those of one process, in the same order: each micro-batch is divided into equal parts of
neighbouring rows, one for each process. What is drawn at random is drawn for the whole micro-batch by every process,
which keeps its rows. So the processes together draw what one alone would, and arms stay paired. Every loss is weighted
with its share of the whole batch, and gradients are summed.

Replicas (DDP) hold all weights in each process. Shards (FSDP2) hold a part of them in each, and gather those of a
transformer block while it computes.
"""

from __future__ import annotations

import gc
import os
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.overrides import TorchFunctionMode

from la_reconvla.errors import UserError
from la_reconvla.training.devices import pick_device

PATIENCE = timedelta(minutes=30)  # that one process waits for another: reading demonstrations takes minutes


class ProcessGroup:
    """This process alone; what several do is in `Replicas` and `Shards`.

    Attributes:
        rank: number of this process.
        size: how many there are.
        device: of this process; None for that of the schedule.
    """

    rank, size = 0, 1
    device: torch.device | None = None

    @property
    def is_main(self) -> bool:
        """Whether this process writes what all have computed."""
        return self.rank == 0

    def rows(self, count: int) -> slice:
        """The rows of this process, of `count` in a micro-batch."""
        share = count // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    def draws(self) -> AbstractContextManager[Any]:
        """Inside, draws from a given `torch.Generator` are this process's rows of those of the whole micro-batch."""
        return nullcontext()

    def reduce(self, values: Sequence[float]) -> list[float]:
        """The sums over all processes."""
        return list(values)

    def wrap(self, policy: nn.Module) -> None:
        """Prepare the weights, before an optimizer is made for them."""

    def run(self, policy: nn.Module, function: Callable[..., Any], *arguments: Any) -> Any:
        """``function(policy, *arguments)``, where all weights can be read, and gradients are summed afterwards."""
        return function(policy, *arguments)

    def full(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same tensors, none in shards. All processes must call it."""
        return dict(tensors)

    def like(self, value: Tensor, reference: Tensor) -> Tensor:
        """A full tensor in shards as `reference` is."""
        return value

    def wait(self) -> None:
        """Until all processes are here."""


class Replicas(ProcessGroup):
    """All weights in each process, by torch's `DistributedDataParallel`.

    Args:
        rank: number of this process.
        size: how many there are.
        device: of this process.
    """

    def __init__(self, rank: int, size: int, device: torch.device | None):
        self.rank, self.size, self.device = rank, size, device
        self.module: nn.Module | None = None

    def draws(self) -> AbstractContextManager[Any]:
        return _WholeDraws(self)

    def reduce(self, values: Sequence[float]) -> list[float]:
        found = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(found)
        return found.tolist()

    def wrap(self, policy: nn.Module) -> None:
        own = [self.device] if self.device is not None and self.device.type == "cuda" else None
        # Not every arm's loss reads every weight that trains in every step.
        self.module = nn.parallel.DistributedDataParallel(_Inside(policy), own, find_unused_parameters=True)

    def run(self, policy: nn.Module, function: Callable[..., Any], *arguments: Any) -> Any:
        if self.module is None:
            raise ValueError("the policy of several processes must be wrapped before it runs")
        return self.module(function, *arguments)

    def wait(self) -> None:
        self.reduce([0.0])

    def release(self) -> None:
        """Forget the weights that `wrap` prepared. Nothing can be computed by the group afterwards."""
        self.module = None
        gc.collect()  # its hooks and it refer to each other


class Shards(Replicas):
    """A part of the weights in each process, by torch's `fully_shard` (FSDP2)."""

    def wrap(self, policy: nn.Module) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        device = self.device or torch.device("cpu")
        mesh, inside = init_device_mesh(device.type, (self.size,)), _Inside(policy)
        for blocks in [module for module in policy.modules() if isinstance(module, nn.ModuleList)]:
            for block in blocks:
                if any(True for _ in block.parameters()):
                    fully_shard(block, mesh=mesh)
        fully_shard(inside, mesh=mesh, reshard_after_forward=True)
        self.module = inside

    def full(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: _gathered(value) for name, value in tensors.items()}

    def like(self, value: Tensor, reference: Tensor) -> Tensor:
        from torch.distributed.tensor import DTensor, distribute_tensor

        if not isinstance(reference, DTensor):
            return value
        return distribute_tensor(value.to(reference.device), reference.device_mesh, reference.placements)


def _gathered(value: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor

    return value.full_tensor().detach() if isinstance(value, DTensor) else value


class _Inside(nn.Module):
    """Runs any function of the policy as its forward pass, which is what DDP and FSDP2 prepare the weights for."""

    def __init__(self, policy: nn.Module):
        super().__init__()
        self.policy = policy

    def forward(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(self.policy, *arguments)


class _WholeDraws(TorchFunctionMode):
    """Draws for all processes and gives the rows of one; what cannot be divided so is refused."""

    def __init__(self, group: ProcessGroup):
        super().__init__()
        self.group = group

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if named.get("generator") is None:
            return func(*args, **named)
        if func not in (torch.rand, torch.randn, torch.randint) or "size" in named:
            raise UserError(
                f"an arm draws by {func.__name__}, whose rows cannot be divided among processes: draw by torch.rand, "
                "torch.randn or torch.randint with one row for each sample, or train in one process"
            )
        bounds, shape = (args[:-1], args[-1]) if func is torch.randint or not isinstance(args[0], int) else ((), args)
        rows, *rest = shape
        drawn = func(*bounds, (rows * self.group.size, *rest), **named)
        return drawn[self.group.rank * rows : (self.group.rank + 1) * rows]


@contextmanager
def joined(device: str, sharded: bool) -> Iterator[ProcessGroup]:
    """The group that the launcher of this process made, ended with the body.

    Args:
        device: of the schedule; with several GPUs each process takes its own.
        sharded: whether weights are in shards; also if the launcher's configuration says FSDP.

    Raises:
        UserError: if no launcher started this process, or accelerate is missing.
    """
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise UserError("--launch accelerate needs accelerate: pip install accelerate") from error
    if "RANK" not in os.environ:
        raise UserError("no launcher started this process: start it by `accelerate launch` or `torchrun`")
    state = PartialState(cpu=pick_device(device).type == "cpu", timeout=PATIENCE)
    if state.num_processes == 1:
        raise UserError("the launcher started one process: leave --launch out, or give --processes 2 or more")
    kind = Shards if sharded or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true" else Replicas
    group = kind(state.process_index, state.num_processes, state.device)
    try:
        yield group
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)  # they refer to the wrapped weights
        raise
    finally:
        # DDP must not be the last that refers to the group: it would end the group's threads while it holds Python's
        # lock, for which one of them may be waiting to drop a tensor, and the process would never end.
        group.release()
        state.destroy_process_group()


ALONE = ProcessGroup()
