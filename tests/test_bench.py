"""The bench: its statistics, counts and bounds against closed forms; its sentence; the command end to end."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from helpers import HEAD, TINY, random_batch, tiny_policy
from la_reconvla import cli
from la_reconvla.conditions import C4
from la_reconvla.data.samples import Samples
from la_reconvla.errors import UserError
from la_reconvla.method.denoiser import Denoiser
from la_reconvla.study import bench as bench_module
from la_reconvla.study.bench import CONTROL, Act, Draw, Place, Settings, Size, Step, claim, recording
from la_reconvla.study.timing import Kept, Roof, Times, counted, difference, interleaved, measure_roof, ratio

TINY_SIZE = Size("quick", TINY, HEAD, Denoiser(depth=1, width=32, heads=2, repeats=1))
HERE = Place(torch.device("cpu"), torch.float32)


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
    """Against torch's own counter, which leaves attention out on a CPU, and against the closed form with it."""
    policy, batch = tiny_policy(None), random_batch(1)
    found = counted(lambda: policy.act(batch.images, batch.instructions))
    with FlopCounterMode(display=False) as theirs:
        policy.act(batch.images, batch.instructions)
    told = policy.backbone.encode(batch.instructions).ids.shape[1]  # pyright: ignore
    n, d, c = 16, TINY.width, TINY.chunk
    s = n + told + c
    towers = TINY.vision_layers * (4 * d * d + 2 * TINY.mlp * d * d) * n
    kv = TINY.kv_heads * d // TINY.heads
    towers += TINY.language_layers * (2 * d * d + 2 * d * kv + 3 * TINY.mlp * d * d) * s
    ends = n * 3 * TINY.patch**2 * d + n * d * d + c * d * 7 * 256 + d * d  # patches, projector, bins, instruction
    attention = 2 * d * (TINY.vision_layers * n * n + TINY.language_layers * s * s)
    assert found.operations - theirs.get_total_flops() in (0, 2 * attention)
    average = found.operations - 2 * (towers + ends + attention)
    assert 0 <= average <= 2 * told * d + 2 * s * 16  # the instruction's average, and rotary angles


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


def control(arm: str, decoding: str, chunk: int, median: float, tokens: int | None = None) -> dict[str, Any]:
    about = {"arm": arm, "decoding": decoding, "chunk": chunk, "image_tokens": tokens, "fast": False}
    about |= {"section": "control", "backbone": "quick", "median": median, "hertz": 1000 * chunk / median}
    return about


def test_the_sentence() -> None:
    ours, theirs = control("C4", "parallel", 8, 20.0, 256), control("ReconVLA", "autoregressive", 5, 100.0, 729)
    said = claim([ours, theirs], "quick")
    assert "8 actions in 20.0 ms and ReconVLA 5 in 100.0 ms, 8.0 times as many actions a second." in said
    alike = [control("C4", "parallel", 5, 10.0), control("ReconVLA", "autoregressive", 5, 30.0)]
    assert "by decoding in parallel alone, 3.0 times as many" in claim([ours, theirs, *alike], "quick")
    assert "nothing is measured" in claim([ours], "quick")
    assert "nothing is measured" in claim([ours, theirs], "small")


def test_a_step_trains_and_its_memory_holds_the_weights() -> None:
    ready = Step(C4, batch=2).ready(TINY_SIZE, HERE)
    before = [p.detach().clone() for p in ready.policy.parameters()]
    weights = sum(p.nbytes for p in before)
    assert ready.memory() > 4 * weights
    assert all(torch.equal(a, b) for a, b in zip(before, ready.policy.parameters(), strict=True))
    ready.step()
    assert not all(torch.equal(a, b) for a, b in zip(before, ready.policy.parameters(), strict=True))


@pytest.mark.parametrize("decoding", ["parallel", "autoregressive"])
@pytest.mark.parametrize("chunk", [1, 5])
def test_an_arm_acts_with_its_chunk_and_its_image_tokens(chunk: int, decoding: Any) -> None:
    act = Act("C4", chunk, decoding, side=3)
    size = TINY_SIZE
    assert act.policy(size, HERE).backbone.grid == (3, 3)
    assert act.build(size, HERE)().shape == (1, chunk, 7)


def test_a_pretrained_architecture_takes_another_number_of_image_tokens() -> None:
    size = Size.of("google/paligemma-3b-pt-224", torch.bfloat16)
    assert all(size.takes(case) for case in CONTROL)
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


def test_the_command_prints_tables_and_ends_with_one_line_of_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_module.Size, "of", lambda name, dtype: TINY_SIZE)
    control = tuple(case for case in CONTROL if case.chunk < 8)
    monkeypatch.setattr(bench_module, "CONTROL", control)
    few = (Draw("MAE"), Draw("diffusion", 3), Draw("MAE", seeing=True), Draw("diffusion", 3, seeing=True))
    monkeypatch.setattr(bench_module, "PICTURE", few)
    monkeypatch.setattr(bench_module, "measure_roof", lambda device, dtype: Roof(1e9, 1e9))
    command = f"la-reconvla bench --backbone quick --repeats 1 --seconds 1 --episodes 0 --out {tmp_path}"
    monkeypatch.setattr(sys, "argv", command.split())
    cli.main()
    shown, errors = capsys.readouterr()
    document = json.loads(shown.splitlines()[-1])
    assert document["command"] == command
    assert {row["section"] for row in document["rows"]} == {"control", "training", "picture", "limit", "data"}
    assert all(row["backbone"] == "quick" and row["n"] >= 1 for row in document["rows"] if "n" in row)
    limits = [row for row in document["rows"] if row["section"] == "limit"]
    assert [row["ratio"] for row in limits] == pytest.approx([row["median"] / row["bound"] for row in limits])
    for title in ("Control", "Limit", "Training", "Picture", "Data"):
        assert title in shown
        assert f"## {title}" in (tmp_path / "bench.md").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))["rows"] == document["rows"]
    assert (tmp_path / "bench.svg").read_bytes().startswith(b"<?xml")
    assert "runs" in errors
