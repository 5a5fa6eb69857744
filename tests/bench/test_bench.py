"""The bench: its statistics, counts and bounds against closed forms; its sentence; the command end to end."""

from __future__ import annotations

import itertools
import json
import re
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_pretrained import save_tiny
from torch import nn

from helpers import HEAD, TINY, random_batch, tiny_policy, untrained
from la_reconvla import cli, kinds
from la_reconvla.bench import acting, sizes
from la_reconvla.bench import rows as rows_module
from la_reconvla.bench import run as bench_module
from la_reconvla.bench.acting import CONTROL, EQUAL, PUBLISHED, Act, BackboneAlone, NotRecordedError, unrecorded
from la_reconvla.bench.draw_pictures import Draw
from la_reconvla.bench.load_batches import Load, recording
from la_reconvla.bench.rows import BenchRow, ControlRow, ExtraRow, LimitRow, NotRecordedRow, ShareRow
from la_reconvla.bench.run import Bench
from la_reconvla.bench.settings import Settings
from la_reconvla.bench.sizes import Compute, Size, require_memory
from la_reconvla.bench.tables import speed_claim, tables
from la_reconvla.bench.timing import (
    Kept,
    Roof,
    Times,
    clock_of,
    counted,
    difference,
    interleaved,
    measure_roof,
    ratio,
)
from la_reconvla.bench.train_steps import GROUPS, TrainStep
from la_reconvla.conditions import C1, C4, CONDITIONS
from la_reconvla.data.samples import Samples, batch_indices
from la_reconvla.errors import UserError
from la_reconvla.method.decoder import MAEDecoder
from la_reconvla.method.variants.autoregressive import DECODINGS
from la_reconvla.method.variants.denoiser import Denoiser
from la_reconvla.method.variants.targets import Pixels

TINY_SIZE = Size("quick", TINY, HEAD, Denoiser(depth=1, width=32, attention_heads=2, repeats=1))
HERE = Compute(torch.device("cpu"), torch.float32)


class Clock:
    """Every arm takes as long as is written down for it, once a round."""

    def __init__(self, **seconds: list[float]):
        self.now, self.left = 0.0, {name: iter(values) for name, values in seconds.items()}
        self.calls: list[str] = []

    def arm(self, name: str):
        def run() -> None:
            self.calls.append(name)
            self.now += next(self.left[name])

        return run

    def arms(self):
        return {name: self.arm(name) for name in self.left}


def test_times_are_numpys() -> None:
    seconds = np.random.default_rng(0).exponential(size=37)
    found = Times.of(list(seconds))
    expected = (np.median(seconds), np.percentile(seconds, 5), np.percentile(seconds, 95))
    np.testing.assert_allclose((found.median, found.p5, found.p95), expected)
    assert found.n == 37
    assert found.scaled(1000)["p95"] == pytest.approx(1000 * expected[2])


def test_arms_take_turns_in_changing_order_and_the_first_round_is_not_counted() -> None:
    slow, fast = [9.0, *np.arange(1.0, 7)], [5.0, *np.arange(1.0, 7) / 2]
    clock = Clock(slow=slow, fast=fast)
    found = interleaved(clock.arms(), repeats=6, clock=lambda: clock.now)
    np.testing.assert_allclose(found["slow"], slow[1:])
    np.testing.assert_allclose(found["fast"], fast[1:])
    rounds = [clock.calls[i : i + 2] for i in range(0, len(clock.calls), 2)]
    assert all(set(names) == {"slow", "fast"} for names in rounds)
    assert len({tuple(names) for names in rounds}) == 2
    again = Clock(slow=slow, fast=fast)
    interleaved(again.arms(), repeats=6, clock=lambda: again.now)
    assert again.calls == clock.calls
    assert ratio(found["slow"], found["fast"]) == pytest.approx(2)
    assert difference(found["slow"], found["fast"]) == pytest.approx(np.median(np.arange(1, 7) / 2))


def test_the_budget_ends_rounds_but_neither_the_warm_up_nor_the_first() -> None:
    forever = {name: itertools.repeat(1.0) for name in ("a", "b")}
    for seconds, counted_rounds in ((7.0, 3), (6.0, 3), (5.9, 2), (4.0, 2), (1.0, 1)):
        clock = Clock()
        clock.left = dict(forever)
        found = interleaved(clock.arms(), 100, seconds, clock=lambda clock=clock: clock.now)
        assert [len(values) for values in found.values()] == [counted_rounds] * 2


def test_a_device_is_waited_for_before_and_after_each_run() -> None:
    told: list[str] = []
    interleaved({"a": lambda: told.append("run")}, 1, wait=lambda: told.append("wait"))
    assert told == ["wait", "run", "wait"] * 2


def test_operations_and_bytes_of_a_linear_layer() -> None:
    layer, rows = nn.Linear(48, 80), torch.randn(5, 48)
    with torch.no_grad():
        found = counted(lambda: layer(rows))
    assert found.operations == 2 * 5 * 48 * 80
    assert found.bytes == 4 * (5 * 48 + 48 * 80 + 80 + 5 * 80)


def test_operations_of_attention_are_counted_on_a_cpu_too() -> None:
    query, key = torch.randn(2, 4, 6, 8), torch.randn(2, 4, 10, 8)
    with torch.no_grad():
        found = counted(lambda: nn.functional.scaled_dot_product_attention(query, key, key))
    assert found.operations == 2 * 2 * (2 * 4 * 6 * 10 * 8)


def test_operations_of_a_whole_policy() -> None:
    policy, batch = tiny_policy(None), random_batch(1)
    found = counted(lambda: policy.act(batch.inputs))
    told = policy.backbone.encode(batch.instructions).ids.shape[1]  # pyright: ignore
    n, d, c = 16, TINY.width, TINY.chunk
    s = n + told + c
    towers = TINY.vision_layers * (4 * d * d + 2 * TINY.mlp * d * d) * n
    kv = TINY.kv_heads * d // TINY.attention_heads
    towers += TINY.language_layers * (2 * d * d + 2 * d * kv + 3 * TINY.mlp * d * d) * s
    ends = n * 3 * TINY.patch**2 * d + n * d * d + c * d * 7 * 256 + d * d  # patches, projector, bins, instruction
    attention = 2 * d * (TINY.vision_layers * n * n + TINY.language_layers * s * s)
    assert found.operations == 2 * (towers + ends + attention + told * d)  # the last is the instruction's average


def test_the_bound_is_the_larger_time_of_each_product_summed() -> None:
    roof = Roof(rate=100.0, bandwidth=10.0)
    assert roof.bound([(200, 5), (10, 40)]) == pytest.approx(2.0 + 4.0)
    assert roof.bound([]) == 0


def test_the_machine_is_measured() -> None:
    roof = measure_roof(HERE.device, HERE.dtype, sides=(64, 128), mebibytes=2)
    assert roof.rate > 1e6
    assert roof.bandwidth > 1e6


def test_what_is_kept_for_the_backward_pass() -> None:
    layer, rows = nn.Linear(8, 4), torch.randn(3, 8)
    with Kept(layer).watch() as kept:
        (layer(rows).exp() + rows.sum()).exp()
    assert kept.bytes == rows.nbytes + 2 * 3 * 4 * 4  # input, and the results of both exponentials


def control(case: Act, hertz: float) -> ControlRow:
    about: Any = {"arm": case.arm, "chunk": case.chunk, "decoding": case.decoding, "fast": case.fast}
    times = Times.of([1.0]).scaled(1)
    return ControlRow(backbone="quick", case=case.id, hertz=hertz, image_tokens=None, **times, **about)


def test_the_sentence_gives_the_ratios_and_what_they_are_of() -> None:
    hertz = dict(zip(EQUAL[0] + EQUAL[1] + PUBLISHED, (60.0, 20.0, 28.0, 4.0, 90.0, 11.0, 10.0), strict=True))
    rows = [control(case, value) for case, value in hertz.items()]
    rows += [control(replace(case, fast=True), value**2) for case, value in hertz.items()]
    said = speed_claim(rows, "quick")
    numbers = re.findall(r"\d+\.\d", said)
    assert numbers == ["3.0", "9.0", "7.0", "49.0", "1.1", "1.2", "9.0", "81.0"]  # chunks of 5, of 1, published, of 8
    for fact in ("equal images and chunks of 5", "256", "729", "35", "on this backbone", "our choice", "executed"):
        assert fact in said
    assert "as published" not in said
    assert "not measured" in speed_claim(rows[:4], "quick")
    assert "nothing is measured" in speed_claim(rows[1:], "quick")
    assert "nothing is measured" in speed_claim(rows, "small")


def test_a_fast_row_that_would_be_slow_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> Any:
        raise ValueError("a tensor was asked\nfor its value")

    monkeypatch.setattr(acting, "recording", refused)
    monkeypatch.setattr(acting.Actor, "records", lambda self: 0)
    monkeypatch.setattr(bench_module, "CONTROL", (Act("C4", 1), Act("C4", 1, fast=True)))
    with pytest.raises(NotRecordedError, match=r"^ValueError: a tensor was asked$"):
        Act("C4", 1, fast=True).build(TINY_SIZE, HERE)
    bench = Bench(Settings(repeats=1, only=("control",)), HERE)
    bench.control(TINY_SIZE)
    reason, fast = "ValueError: a tensor was asked", Act("C4", 1, fast=True).id
    refusal, timed = bench.rows
    assert refusal == NotRecordedRow(backbone="quick", case=fast, reason=reason)
    assert isinstance(timed, ControlRow)
    assert timed.case == Act("C4", 1).id
    shown = {table.title: table.rows for table in tables(bench.rows, "cpu")}
    assert list(shown["Control: no fast path"]) == [("quick", Act("C4", 1, fast=True).id, reason)]


@pytest.mark.parametrize("fast", [False, True])
def test_the_backbone_s_part_and_the_head_s_are_apart(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [Act("C4", 8, "flow", steps=n, fast=fast) for n in (1, 4)]
    monkeypatch.setattr(bench_module, "CONTROL", (*cases, Act("ReconVLA", 8, "autoregressive")))
    taken = {cases[0].id: [0.03, 0.05], cases[1].id: [0.07, 0.09], BackboneAlone(fast).id: [0.01, 0.02]}
    tokens = Act("ReconVLA", 8, "autoregressive").id
    built: list[Any] = []

    def timed(self: Any, size: Any, section: str, works: Any) -> Any:
        built.extend(works)
        shapes = {name: work() for name, work in works.items()}
        assert shapes[BackboneAlone(fast).id][0].shape == (1, 8, TINY.width)
        return {**taken, tokens: [0.5, 0.5]}

    monkeypatch.setattr(Bench, "timed", timed)
    bench = Bench(Settings(repeats=1, only=("control",)), HERE)
    bench.control(TINY_SIZE)
    assert sorted(built) == sorted([*taken, tokens])
    rows: Any = {row.case: row for row in bench.rows}
    assert list(rows) == [cases[0].id, cases[1].id, tokens]
    assert rows[cases[0].id].head_ms == pytest.approx(25)
    assert rows[cases[1].id].head_ms == pytest.approx(65)
    assert rows[cases[1].id].backbone_ms == pytest.approx(15)
    assert rows[cases[1].id].steps == 4
    assert rows[tokens].head_ms is rows[tokens].backbone_ms is None


def test_a_recording_that_differs_is_said_to_differ() -> None:
    policy, batch = tiny_policy(None), random_batch(1)
    assert "differ" in unrecorded(policy, batch.inputs)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Size:
    """A tiny model that is built as a large one is."""
    return Size.of(str(save_tiny(tmp_path_factory.mktemp("model"))), torch.float32)


def places(module: nn.Module) -> dict[str, int]:
    return {name: p.data_ptr() for name, p in module.named_parameters() if not p.requires_grad}


def test_cases_share_one_set_of_weights(large: Size) -> None:
    shared = large.acting(1).sharing(HERE)
    lent = places(shared.like)
    for case in (Act("C4", 5), Act("C4", 1, side=6), Act("ReconVLA", 2, "autoregressive")):
        policy = case.policy(shared, HERE)
        own = places(policy.backbone)  # pyright: ignore
        different = {name.rpartition(".")[0].rpartition(".")[2] for name in own if own[name] != lent[name]}
        assert different == ({"position_embedding"} if case.side else set())
        batch = sizes.drawn(policy.backbone, 1, HERE)
        assert policy.act(batch.inputs).isfinite().all()


def test_shared_weights_give_the_same_actions(large: Size) -> None:
    shared = large.acting(1).sharing(HERE)
    policy = Act("C4", 1).policy(shared, HERE)
    batch = sizes.drawn(policy.backbone, 1, HERE)
    found = policy.act(batch.inputs)
    policy.backbone = shared.like
    assert torch.equal(policy.act(batch.inputs), found)


def test_arms_in_training_share_what_is_frozen_and_nothing_else(large: Size) -> None:
    shared = large.sharing(HERE, GROUPS["preset's heads"])
    small = (HEAD, TINY_SIZE.denoiser)
    one, two = (TrainStep(CONDITIONS[arm], 2, small).ready(shared, HERE) for arm in ("C1", "A1"))
    assert places(one.policy.backbone) == places(two.policy.backbone)  # pyright: ignore
    before = {name: p.detach().clone() for name, p in two.policy.backbone.named_parameters()}  # pyright: ignore
    one.step()
    for name, p in two.policy.backbone.named_parameters():  # pyright: ignore
        assert torch.equal(p, before[name])
    two.step()


def test_what_does_not_fit_is_refused_before_it_is_built(large: Size, monkeypatch: pytest.MonkeyPatch) -> None:
    require_memory("big", 10, 10, "cuda")
    with pytest.raises(UserError, match=r"big needs 12\.0 GB .* 8\.5 GB .*--dtype bf16, --only control"):
        require_memory("big", 12_000_000_000, 8_500_000_000, "cuda")
    monkeypatch.setattr(Size, "build", None)
    monkeypatch.setattr(sizes, "free_bytes", lambda device: 1000)
    with pytest.raises(UserError, match="needs"):
        large.sharing(HERE)


def test_heads_are_counted_without_being_built(large: Size) -> None:
    from la_reconvla.conditions import A1

    backbone = large.build(HERE)
    for step in (TrainStep(C4), TrainStep(A1), TrainStep(C1)):
        head = step.sized(large).reconstruction
        built = head and head.reconstruction_head.build(backbone.width, backbone.grid, backbone.patch_size)
        assert step.head_size(large, backbone) == sum(p.numel() for p in built.parameters()) if built else True


def test_published_heads_are_the_published_ones() -> None:
    base, mae, diffusion = (step.sized(TINY_SIZE).reconstruction for step in GROUPS["published heads"])
    assert base is None
    assert mae is not None
    assert diffusion is not None
    assert mae.reconstruction_head == MAEDecoder(depth=4, width=256, attention_heads=8)
    assert replace(diffusion.reconstruction_head, target=Pixels()) == Denoiser(
        depth=3, width=1024, attention_heads=16, repeats=4
    )
    assert mae.region == diffusion.region


def test_the_share_of_the_added_time(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = {"C1": [0.1, 0.2], "C4": [0.12, 0.22], "A1": [0.3, 0.4]}
    monkeypatch.setattr(Bench, "timed", lambda *_: taken)
    bench = Bench(Settings(), HERE)
    bench.group(TINY_SIZE, "some", tuple(TrainStep(CONDITIONS[arm], 16) for arm in taken))
    (row,) = (row for row in bench.rows if isinstance(row, ShareRow))
    assert (row.mae_ms, row.diffusion_ms, row.share) == pytest.approx((20, 200, 0.1))
    assert row.at_most_a_fifth
    assert row.case == "mae 1 x 32 over diffusion 1 x 32, r = 1, 192 numbers per token"
    (more,) = (r.case for r in bench.rows if isinstance(r, ExtraRow))
    assert more == "diffusion 1 x 32, r = 1, 192 numbers per token instead of mae 1 x 32"


def test_the_loader_shifts_pictures(tmp_path: Path) -> None:
    from la_reconvla.data.hdf5 import open_demonstrations

    recording(tmp_path, 16, episodes=1, length=10)
    samples = Samples(open_demonstrations(tmp_path), 16, 4)
    found = Load(samples, 5).build(TINY_SIZE, HERE)()
    plain = samples.batch(batch_indices(0, 0, 5, len(samples)))
    assert torch.equal(found.actions, plain.actions)
    assert not torch.equal(found.images, plain.images)


def test_one_thread_is_timed_by_the_cpu() -> None:
    """Waiting takes no CPU time; what other programs take is waiting. Several threads' times would add up."""
    (name, clock), (other, wall) = (clock_of(HERE.device, threads) for threads in (1, 2))
    assert (name, other) == ("CPU time", "wall time")
    assert interleaved({"wait": lambda: time.sleep(0.05)}, 1, clock=clock)["wait"][0] < 0.02
    assert interleaved({"wait": lambda: time.sleep(0.05)}, 1, clock=wall)["wait"][0] >= 0.05
    assert clock_of(torch.device("cuda"), 1)[0] == "wall time"
    many = interleaved({"wait": lambda: time.sleep(0.05)}, 100, 0.12, clock=clock, watch=wall)
    assert len(many["wait"]) <= 2, "the budget is by the clock"


def test_a_step_trains_and_its_memory_holds_the_weights() -> None:
    ready = TrainStep(C4, batch=2).ready(TINY_SIZE, HERE)
    before = [p.detach().clone() for p in ready.policy.parameters()]
    weights = sum(p.nbytes for p in before)
    assert ready.memory() > 4 * weights
    assert ready.optimizer.moments == 2 * weights
    muon = TrainStep(C4, batch=2).ready(replace(TINY_SIZE, optimizer="muon"), HERE)
    muon.step()
    remembered = sum(t.nbytes for t in muon.optimizer.tensors().values() if t.ndim)
    assert muon.optimizer.moments == remembered < 2 * weights, "the size's optimizer trains, and Muon remembers less"
    assert all(torch.equal(a, b) for a, b in zip(before, ready.policy.parameters(), strict=True))
    ready.step()
    assert not all(torch.equal(a, b) for a, b in zip(before, ready.policy.parameters(), strict=True))


@pytest.mark.parametrize("arm", ["C1", "C4", "A1", "S2"])
def test_a_step_trains_what_the_arm_trains(arm: str) -> None:
    step = TrainStep(CONDITIONS[arm], batch=2)
    ready, sized = step.ready(TINY_SIZE, HERE), step.sized(TINY_SIZE)
    wanted = {name: p.shape for name, p in untrained(sized).build().named_parameters()}
    assert {name: p.shape for name, p in ready.policy.named_parameters()} == wanted
    before = {name: p.detach().clone() for name, p in ready.policy.named_parameters()}
    ready.step()
    still = {name for name, p in ready.policy.named_parameters() if torch.equal(p, before[name])}
    assert not any(name.startswith(("gate", "action_head")) for name in still)


@pytest.mark.parametrize("decoding", list(DECODINGS))
@pytest.mark.parametrize("chunk", [1, 5])
def test_an_arm_acts_with_its_chunk_and_its_image_tokens(chunk: int, decoding: Any) -> None:
    act = Act("C4", chunk, decoding, side=3)
    size = TINY_SIZE
    assert act.policy(size, HERE).backbone.grid == (3, 3)
    assert act.build(size, HERE)().shape == (1, chunk, 7)


def test_a_pretrained_architecture_takes_another_number_of_image_tokens() -> None:
    size = Size.of("google/paligemma-3b-pt-224", torch.bfloat16)
    assert all(case.fits(size) for case in CONTROL)
    assert size.architecture(27).vision_config.image_size == 27 * 14
    assert size.backbone.image_size == 224


def test_the_drawn_recording_is_one_that_the_loader_reads(tmp_path: Path) -> None:
    from la_reconvla.data.hdf5 import open_demonstrations

    recording(tmp_path, 16, episodes=2, length=10)
    samples = Samples(open_demonstrations(tmp_path), 16, 4)
    assert len(samples) == 10
    assert samples.batch(np.arange(3)).images.shape == (3, 3, 16, 16)


def test_settings_are_checked() -> None:
    for wrong in ({"threads": 0}, {"repeats": 0}, {"seconds": 0.0}, {"episodes": -1}, {"backbones": ()}):
        with pytest.raises(UserError):
            Settings(**wrong)
    with pytest.raises(UserError, match="unknown section"):
        Settings(only=("contrl",))  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_command_prints_tables_and_ends_with_one_line_of_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    size = replace(TINY_SIZE, backbone=replace(TINY, patch=2, image_size=8, width=16, attention_heads=2, kv_heads=1))
    monkeypatch.setattr(sizes.Size, "of", lambda name, dtype: size)
    _, single, theirs = PUBLISHED
    control = (*EQUAL[1], single, theirs, replace(single, fast=True))
    monkeypatch.setattr(bench_module, "CONTROL", control)
    groups = {name: tuple(replace(s, batch=2, heads=()) for s in steps) for name, steps in GROUPS.items()}
    monkeypatch.setattr(bench_module, "GROUPS", groups)
    few = (Draw("MAE"), Draw("diffusion", 3), Draw("MAE", with_backbone=True), Draw("diffusion", 3, with_backbone=True))
    monkeypatch.setattr(bench_module, "PICTURE", few)
    monkeypatch.setattr(bench_module, "measure_roof", lambda device, dtype, **_: Roof(1e9, 1e9))
    command = f"la-reconvla check speed --backbone quick --repeats 1 --seconds 1 --episodes 0 --out {tmp_path}"
    monkeypatch.setattr(sys, "argv", command.split())
    cli.main()
    shown, errors = capsys.readouterr()
    document = json.loads(shown.splitlines()[-1])
    assert document["command"] == command
    described = document["settings"]
    assert (described["kind"], described["device"], described["clock"]) == ("Settings", "cpu", "CPU time")
    assert document["roof"]["kind"] == "Roof"
    assert {row["section"] for row in document["rows"]} == {"control", "training", "picture", "limit", "data"}
    assert all(row["backbone"] == "quick" and row["n"] >= 1 for row in document["rows"] if "n" in row)
    assert {row["image_tokens"] for row in document["rows"] if row["section"] == "control"} == {None, 256, 729}
    known = [kind for kind in vars(rows_module).values() if isinstance(kind, type) and issubclass(kind, BenchRow)]
    rows = [kinds.from_json(row, known) for row in document["rows"]]
    assert [row.to_json() for row in rows] == document["rows"]
    limits = [row for row in rows if isinstance(row, LimitRow)]
    assert [row.ratio for row in limits] == pytest.approx([row.median / row.bound for row in limits])
    for title in ("Control", "Limit", "Training", "Picture", "Data"):
        assert title in shown
        assert f"## {title}" in (tmp_path / "bench.md").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))["rows"] == document["rows"]
    assert (tmp_path / "bench.svg").read_bytes().startswith(b"<?xml")
    assert "runs" in errors
