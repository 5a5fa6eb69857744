"""How the bench measures: arms in turn in one process, statistics, counted work, and what the machine can do at best.

Nothing here knows the method. Seconds, operations (a product and a sum are two) and bytes everywhere.
"""

from __future__ import annotations

import contextlib
import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from la_reconvla.memory import free_memory

Work = Callable[[], Any]


@dataclass(frozen=True)
class Times:
    """Seconds of one arm over the rounds of a measurement.

    Attributes:
        median: of all rounds.
        p5: 5th percentile.
        p95: 95th percentile.
        n: rounds.
    """

    median: float
    p5: float
    p95: float
    n: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Times:
        """The statistics of at least one round."""
        low, middle, high = np.percentile(seconds, (5, 50, 95))
        return cls(float(middle), float(low), float(high), len(seconds))

    def scaled(self, factor: float) -> dict[str, Any]:
        """Median, p5, p95 and n for a JSON row, in another unit (1000 gives milliseconds)."""
        return {"median": factor * self.median, "p5": factor * self.p5, "p95": factor * self.p95, "n": self.n}


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


Clock = Callable[[], float]
"""What tells the seconds."""


def clock_of(device: torch.device, threads: int) -> tuple[str, Clock]:
    """Name and clock: CPU time where one thread does all the work, which that of other programs inflates less."""
    if device.type == "cpu" and threads == 1:
        return "CPU time", time.thread_time
    return "wall time", time.perf_counter


def interleaved(
    arms: Mapping[str, Work],
    repeats: int,
    seconds: float = math.inf,
    *,
    wait: Callable[[], None] = lambda: None,
    clock: Clock = time.perf_counter,
    watch: Clock | None = None,
    ticked: Callable[[str], None] = lambda name: None,
) -> dict[str, list[float]]:
    """Seconds of every arm, round by round: what else the machine does falls on all arms alike.

    A round runs each arm once, in an order that is shuffled anew. A round before the first warms up: it is neither
    counted nor part of the budget, as what it compiles or records may take longer than all others together.

    Args:
        arms: what to run, by name.
        repeats: counted rounds at most.
        seconds: after the first, a round begins only if one as long as the longest so far would end within so many.
        wait: called before and after each run, see `synchronise`.
        clock: of the seconds that are returned.
        watch: of the budget; `clock` by default.
        ticked: called with the name of every run, for a progress bar.

    Returns:
        For each arm a list of equal length; numbers of one index belong to one round.
    """
    order, names = np.random.default_rng(0), list(arms)

    def turn() -> dict[str, float]:
        taken = {}
        for name in order.permutation(names):
            wait()
            before = clock()
            arms[name]()
            wait()
            taken[str(name)] = clock() - before
            ticked(str(name))
        return taken

    turn()
    watch = watch or clock
    begun, longest, rounds = watch(), 0.0, []
    while len(rounds) < repeats and (not rounds or watch() - begun + longest <= seconds):
        started = watch()
        rounds.append(turn())
        longest = max(longest, watch() - started)
    return {name: [taken[name] for taken in rounds] for name in names}


def ratio(of: Sequence[float], over: Sequence[float]) -> float:
    """Median of the ratios within each round: drift from round to round cancels."""
    return float(np.median(np.asarray(of) / np.asarray(over)))


def difference(of: Sequence[float], minus: Sequence[float]) -> float:
    """Median of the differences within each round."""
    return float(np.median(np.asarray(of) - np.asarray(minus)))


# ---------------------------------------------------------------- counted work


class Products(TorchDispatchMode):
    """Operations and bytes of every matrix product, convolution and attention inside.

    Bytes are those of a product's tensors, each read or written once: parameters, states and, for attention over a
    cache, its keys and values. What is between products (norms, softmax of the bins, copies) counts nothing. Reading a
    weight once for each token of a sequence decoded token by token therefore counts once for each token.

    Attributes:
        each: (operations, bytes) of each product, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.each: list[tuple[int, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = getattr(func, "_overloadpacket", func)
        count = _operations(packet, args, kwargs or {}, out)
        if count:
            tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)]
            self.each.append((count, sum(t.numel() * t.element_size() for t in tensors)))
        return out

    @property
    def operations(self) -> int:
        """All operations."""
        return sum(count for count, _ in self.each)

    @property
    def bytes(self) -> int:
        """All bytes."""
        return sum(moved for _, moved in self.each)


ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
"""Torch's table of operations leaves the CPU's kernel out."""


def _operations(packet: Any, args: Any, kwargs: Any, out: Any) -> int:
    if packet is ATTENTION:
        query, key, value = args[:3]
        b, h, s, e = query.shape
        return 2 * b * h * s * key.shape[2] * (e + value.shape[3])
    count = flop_registry.get(packet)
    return int(count(*args, **kwargs, out_val=out)) if count else 0


def counted(work: Work) -> Products:
    """The products of one run of `work`."""
    with Products() as products:
        work()
    return products


@dataclass(frozen=True)
class Roof:
    """What the machine does at best, measured.

    Attributes:
        rate: operations per second in a large matrix product, of the fastest library at hand.
        bandwidth: bytes per second in a large copy, read and written ones together.
    """

    rate: float
    bandwidth: float

    def bound(self, products: Sequence[tuple[int, int]]) -> float:
        """Seconds that these products need at least: the larger of their operations' and their bytes' time, summed.

        One product waits for the one before it, hence the sum; decoding token by token gives a sum over tokens.
        Weights small enough to stay in a cache arrive faster than `bandwidth`, so a time may be below the bound.
        """
        return sum(max(count / self.rate, moved / self.bandwidth) for count, moved in products)


def measure_roof(
    device: torch.device,
    dtype: torch.dtype,
    sides: Sequence[int] | None = None,
    mebibytes: int | None = None,
    clock: Clock = time.perf_counter,
) -> Roof:
    """Measure it with torch's present number of threads.

    Args:
        device: where.
        dtype: of the matrices.
        sides: of square matrices; the fastest counts.
        mebibytes: of the tensor that is copied; much more than any cache.
        clock: see `clock_of`.
    """
    gpu = device.type == "cuda"
    sides = sides or ((2048, 4096, 8192) if gpu else (512, 1024, 2048))
    rates = []
    for side in sides:
        a, b = (
            torch.randn(side, side, dtype=dtype, device=device) for _ in range(2)
        )  # equal bits would draw less power
        out = torch.empty_like(a)
        products: list[Work] = [lambda a=a, b=b, out=out: torch.mm(a, b, out=out)]
        if not gpu and dtype == torch.float32 and torch.backends.mkldnn.is_available():  # what the fast path calls
            products.append(lambda a=a, b=b: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], ""))
        rates += [2 * side**3 / _best(product, device, clock) for product in products]
    source = torch.ones((mebibytes or (2048 if gpu else 256)) << 20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return Roof(max(rates), 2 * source.nbytes / _best(lambda: target.copy_(source), device, clock))


def _best(work: Work, device: torch.device, clock: Clock) -> float:
    """The shortest of five runs, in seconds."""
    return min(interleaved({"": work}, 5, wait=lambda: synchronise(device), clock=clock)[""])


# ---------------------------------------------------------------- memory


def free_bytes(device: torch.device) -> int:
    """Bytes that are free on the device, or on the host for one that shares its memory."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else int(free_memory())


def release(device: torch.device) -> None:
    """Give back what nobody holds any more, compiled recordings too."""
    if device.type == "cuda":
        torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


@dataclass
class Kept:
    """Bytes that autograd keeps for the backward pass, each storage once, those of `module` not counted."""

    module: nn.Module
    bytes: int = 0
    _counted: dict[int, Tensor] = field(default_factory=dict)

    @contextlib.contextmanager
    def watch(self) -> Iterator[Kept]:
        """Count inside."""
        of_module = (*self.module.parameters(), *self.module.buffers())
        known = {tensor.untyped_storage().data_ptr() for tensor in of_module}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known and storage.data_ptr() not in self._counted:
                self._counted[storage.data_ptr()] = tensor  # an address is counted once only while its owner lives
                self.bytes += storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield self
        self._counted.clear()
