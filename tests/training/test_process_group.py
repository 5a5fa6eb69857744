"""Several processes train as one: real processes, joined by gloo on the CPU."""

from __future__ import annotations

import dataclasses
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as processes
from safetensors.torch import load_file, save_file
from test_pretrained import SIZE, save_tiny, tiny
from test_train import DENOISER, SHORT, Stop, StopAt, numbers, write_demonstrations

from helpers import BINS, HEAD, TINY, random_batch
from la_reconvla.conditions import C1, CONDITIONS, Condition
from la_reconvla.contracts import Batch
from la_reconvla.data.boxes import Masks
from la_reconvla.data.hdf5 import open_demonstrations
from la_reconvla.data.samples import Samples
from la_reconvla.errors import UserError
from la_reconvla.method.objective import losses
from la_reconvla.method.policy import Policy
from la_reconvla.method.variants.autoregressive import DECODINGS, DecodingName
from la_reconvla.randomness import generator, seeded
from la_reconvla.storage import read_jsonl
from la_reconvla.training.checkpoint import WEIGHTS, PolicyConfig
from la_reconvla.training.gradient import backward
from la_reconvla.training.loop import TrainConfig, train
from la_reconvla.training.process_group import ALONE, ProcessGroup, Replicas, Shards, joined
from la_reconvla.training.requirements import require_divisible
from la_reconvla.training.start_weights import bins_of
from la_reconvla.training.trackers import METRICS

pytestmark = pytest.mark.slow
PROCESSES = 2
# The same float32 terms are summed in another order.
CLOSE = {"rtol": 0.0, "atol": 2e-5}


@dataclass(frozen=True)
class Case:
    """An arm whose gradient is taken; `source` names a folder with a tiny PaliGemma, '' stands for the small one."""

    arm: str
    accumulate: int = 1
    decoding: DecodingName = "parallel"
    source: str = ""

    @property
    def name(self) -> str:
        return f"{self.arm}-{self.accumulate}-{self.decoding}"

    @property
    def condition(self) -> Condition:
        return CONDITIONS[self.arm].with_reconstruction_head(HEAD, DENOISER)

    def policy(self) -> Policy:
        given: Any = tiny(self.source) if self.source else TINY
        chosen = DECODINGS[self.decoding]
        with seeded(0, "weights"):
            backbone = chosen.given(given).build()
            policy = Policy(backbone, BINS, action_head=chosen.action_head(backbone, BINS, given.chunk))
        if (recipe := self.condition.reconstruction) is not None:
            with seeded(0, "decoder"):
                inner = policy.backbone
                policy.reconstruction_head = recipe.reconstruction_head.build(inner.width, inner.grid, inner.patch_size)
        return policy.train()

    def batch(self) -> Batch:
        """Eight samples whose second action is missing in three of the first four: halves that weigh differently."""
        batch = random_batch(8, dataclasses.replace(SIZE, chunk=2) if self.source else TINY)
        batch.valid[:3, 1] = False
        corner = torch.rand(8, 2, generator=torch.Generator().manual_seed(1)) / 2
        batch.gaze = None if self.condition.annotation_free else torch.cat([corner, corner + 0.3], 1)
        return batch


SMALL = (
    *(Case(arm) for arm in ("C1", "C2", "C4", "C2-input", "R1", "R2")),
    *(Case("C2", 2), Case("R2", 2), Case("C1", 1, "diffusion"), Case("C1", 2, "flow"), Case("C4", 1, "autoregressive")),
)


def gradient(case: Case, group: ProcessGroup) -> dict[str, torch.Tensor]:
    policy = case.policy()
    group.wrap(policy)
    streams = [generator(3, name) for name in ("mask", "noise", "action noise")]
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    parts = policy, case.batch(), case.condition, case.accumulate, streams[0], scaler, torch.float32
    values = backward(*parts, 0.5, None, *streams[1:], group)
    logged = {name: torch.tensor(value) for name, value in values.items() if isinstance(value, float)}
    return logged | group.full({name: p.grad for name, p in policy.named_parameters() if p.grad is not None})


def in_processes(count: int, work: Any, *arguments: Any) -> None:
    """``work(group, *arguments)`` in so many new processes, as a launcher would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes.spawn(_member, (count, port, work, *arguments), nprocs=count)


def _member(rank: int, count: int, port: int, work: Any, sharded: bool, *arguments: Any) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    torch.set_num_threads(1)
    try:
        with joined("cpu", sharded) as group:
            work(group, *arguments)
    finally:
        # DTensor's own caches keep a sharded group to the end of the process.
        assert sharded or not gloo_threads(), "the group's threads outlive it, and may keep the process from ending"


def gloo_threads() -> list[str]:
    """The threads of this process that gloo started; none where the system does not tell."""
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    return [name for name in names if "gloo" in name]


def save_gradients(group: ProcessGroup, cases: tuple[Case, ...], folder: Path) -> None:
    for case in cases:
        found = gradient(case, group)
        save_file({name: value.contiguous() for name, value in found.items()}, folder / f"{case.name}.{group.rank}")


# ---------------------------------------------------------------- one step


@pytest.fixture(scope="module")
def replicated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("replicated")
    in_processes(PROCESSES, save_gradients, False, SMALL, folder)
    return folder


def require_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name].float(), value.float(), **CLOSE, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_two_replicas_have_the_loss_and_the_gradient_of_one_process(replicated: Path, case: Case) -> None:
    expected = gradient(case, ALONE)
    for rank in range(PROCESSES):
        require_equal(load_file(replicated / f"{case.name}.{rank}"), expected)


def test_the_mean_of_the_halves_is_something_else() -> None:
    """So that the comparison above can fail: what equal weights and masks of each process's own would give."""
    case = Case("C2")
    policy, batch, recipe = case.policy(), case.batch(), case.condition.reconstruction
    whole = losses(policy, batch, recipe, generator(3, "mask"))
    halves = []
    for rows in (slice(0, 4), slice(4, 8)):
        own = {name: value[rows] for name, value in vars(batch).items() if value is not None}
        halves.append(losses(policy, dataclasses.replace(batch, **own), recipe, generator(3, "mask")))
    for term in ("action", "reconstruction"):
        mean = sum(getattr(half, term) for half in halves) / 2
        assert abs(mean - getattr(whole, term)) > 20 * CLOSE["atol"]


@pytest.mark.parametrize("arm", ["C1", "C4"])
def test_two_shards_of_a_paligemma_with_adapters_have_the_gradient_of_one_process(tmp_path: Path, arm: str) -> None:
    case = Case(arm, source=str(save_tiny(tmp_path / "source")))
    in_processes(PROCESSES, save_gradients, True, (case,), tmp_path)
    expected = gradient(case, ALONE)
    assert any("lora" in name for name in expected)
    for rank in range(PROCESSES):
        require_equal(load_file(tmp_path / f"{case.name}.{rank}"), expected)


# ---------------------------------------------------------------- a training


def train_case(
    group: ProcessGroup, case: Case, config: TrainConfig, demonstrations: Path, out: Path, stop: int | None = None
) -> None:
    """As `test_train.train_tiny`, by the processes of `group`; `stop` ends all of them after so many steps."""
    parts = open_demonstrations(demonstrations).divide(0.25)
    training, rest = (Samples(part, TINY.image_size, TINY.chunk) for part in parts)
    if not case.condition.annotation_free:
        training = training.annotated(Masks())
    backbone: Any = tiny(case.source) if case.source else TINY
    fields: Any = {"seed": 0, "backbone": backbone, "bins": bins_of(None, training, 4.0, "parallel")}
    policy = PolicyConfig.trained_on(case.condition, training, **fields)
    try:
        train(case.condition, policy, config, training, rest, out, None if stop is None else StopAt(stop), group)
    except Stop:
        return


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demonstrations(tmp_path_factory.mktemp("demonstrations"))


def require_alike(run: Path, other: Path) -> None:
    """Two runs whose logs and weights are the same but for rounding.

    AdamW's first steps divide a gradient by its size, so that rounding of the smallest gradients can move a weight by
    the learning rate, 7e-4 at most in a step, in either direction.
    """
    for line, same in zip(numbers(run), numbers(other), strict=True):
        assert line.get("batches") == same.get("batches")
        assert line.get("start") == same.get("start")
        for name in ("loss", "action_loss", "reconstruction_loss", "held_out_action_loss", "gradient_norm"):
            assert line.get(name) == (None if name not in same else pytest.approx(same[name], abs=2e-3, rel=2e-3))
    ours, theirs = (load_file(folder / WEIGHTS) for folder in (run, other))
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=2e-3)


LONGER = dataclasses.replace(SHORT, steps=6, save_every=2, check_every=2, accumulate=2, shift=2)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_training_by_replicas_is_that_of_one_process(demonstrations: Path, tmp_path: Path, optimizer: Any) -> None:
    config, case = dataclasses.replace(LONGER, optimizer=optimizer, ema=True), Case("C2")
    train_case(ALONE, case, config, demonstrations, tmp_path / "alone")
    in_processes(PROCESSES, train_case, False, case, config, demonstrations, tmp_path / "both")
    assert read_jsonl(tmp_path / "both" / METRICS)[0]["processes"] == PROCESSES
    require_alike(tmp_path / "both", tmp_path / "alone")


@pytest.mark.parametrize("sharded", [False, True])
def test_a_training_goes_on_in_another_number_of_processes(demonstrations: Path, tmp_path: Path, sharded: bool) -> None:
    source = str(save_tiny(tmp_path / "source")) if sharded else ""
    case = Case("C4", source=source)
    train_case(ALONE, case, LONGER, demonstrations, tmp_path / "alone")

    both = demonstrations, tmp_path / "two then one"
    in_processes(PROCESSES, train_case, sharded, case, LONGER, *both, 4)
    assert not (both[1] / WEIGHTS).exists()
    train_case(ALONE, case, LONGER, *both)
    require_alike(both[1], tmp_path / "alone")

    both = demonstrations, tmp_path / "one then two"
    train_case(ALONE, case, LONGER, *both, 4)
    in_processes(PROCESSES, train_case, sharded, case, LONGER, *both)
    require_alike(both[1], tmp_path / "alone")


def stops_without_waiting(group: ProcessGroup, case: Case) -> None:
    """The loss of the last process is not a number: all must say so."""
    policy, batch = case.policy(), case.batch()
    group.wrap(policy)
    batch.actions[-1] = torch.nan
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    with pytest.raises(FloatingPointError, match="loss is nan"):
        backward(policy, batch, case.condition, 1, generator(0, "mask"), scaler, torch.float32, group=group)


def test_a_loss_that_is_not_finite_ends_all_processes() -> None:
    in_processes(PROCESSES, stops_without_waiting, False, Case("C1", 1, "flow"))


def fails_inside(group: ProcessGroup) -> None:
    """An error whose traceback refers to the wrapped weights."""

    def fail(policy: torch.nn.Module) -> None:
        assert gloo_threads() or not Path("/proc/self/task").exists()
        raise FloatingPointError("of the body")

    policy = Case("C1").policy()
    group.wrap(policy)
    group.run(policy, fail)


def test_an_error_ends_the_threads_of_the_group_too() -> None:
    with pytest.raises(processes.ProcessRaisedException, match="FloatingPointError: of the body") as raised:
        in_processes(PROCESSES, fails_inside, False)
    assert "AssertionError" not in str(raised.value)


# ---------------------------------------------------------------- what is drawn, and what is refused


@pytest.mark.parametrize("draw", [lambda g: torch.rand((3, 5), generator=g), lambda g: torch.randn(3, 7, generator=g)])
def test_rows_together_are_the_draw_of_one_process(draw: Any) -> None:
    def one_of(rank: int) -> torch.Tensor:
        with Replicas(rank, 4, torch.device("cpu")).draws():
            return draw(generator(0, "mask"))

    name = torch.rand if draw(generator(0, "mask")).shape[1] == 5 else torch.randn
    whole = name(12, draw(generator(0, "mask")).shape[1], generator=generator(0, "mask"))
    assert torch.equal(torch.cat([one_of(rank) for rank in range(4)]), whole)


def test_integers_are_divided_too_and_other_draws_are_refused() -> None:
    with Replicas(1, 2, torch.device("cpu")).draws():
        ours = torch.randint(1000, (3,), generator=generator(0, "noise"))
        free = torch.rand(3)  # without a stream: nothing to pair
        with pytest.raises(UserError, match="randperm, whose rows cannot be divided"):
            torch.randperm(5, generator=generator(0, "mask"))
    assert torch.equal(ours, torch.randint(1000, (6,), generator=generator(0, "noise"))[3:])
    assert free.shape == (3,)


@pytest.mark.parametrize(
    ("changes", "dtype", "quantized", "message"),
    [
        ({"optimizer": "muon"}, torch.float32, False, "Muon, which needs whole matrices"),
        ({"ema": True}, torch.float32, False, "--ema"),
        ({}, torch.float16, False, "fp16"),
        ({}, torch.float32, True, "4 bits"),
        ({"accumulate": 4}, torch.float32, False, "do not divide a micro-batch of 1"),
    ],
)
def test_what_shards_cannot_train_right_is_refused(
    changes: dict[str, Any], dtype: torch.dtype, quantized: bool, message: str
) -> None:
    config, cpu = dataclasses.replace(SHORT, **changes), torch.device("cpu")
    with pytest.raises(UserError, match=message):
        require_divisible(Shards(0, 2, cpu), C1, config, dtype, quantized)
    if "divide" not in message:
        require_divisible(Replicas(0, 2, cpu), C1, config, dtype, quantized)


def test_a_teacher_is_refused_in_shards() -> None:
    arm = next(c for c in CONDITIONS.values() if c.learned_saliency and c.learned_saliency.decay is not None)
    with pytest.raises(UserError, match=f"the teacher of {arm.id}"):
        require_divisible(Shards(0, 2, torch.device("cpu")), arm, SHORT, torch.float32, False)


def test_no_launcher_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UserError, match="no launcher started this process"), joined("cpu", False):
        pass
