"""The plan: what it counts against the same step on real tensors, closed forms, and what it says."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_pretrained import policy_of, save_tiny, tiny
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig

from helpers import HEAD, untrained
from la_reconvla import cli
from la_reconvla.backbones.pretrained import DTYPES, KNOWN, Pretrained
from la_reconvla.backbones.trained_weights import Freeze, Lora
from la_reconvla.conditions import C1, C4, CONDITIONS, S2
from la_reconvla.errors import UserError
from la_reconvla.method.objective import losses
from la_reconvla.method.variants.autoregressive import DECODINGS
from la_reconvla.method.variants.denoiser import Denoiser
from la_reconvla.study.plan import DEVICES, NF4_BYTES, device, fitting, hours, plan, verdict
from la_reconvla.study.step_memory import (
    LANGUAGE,
    Live,
    PlannedStep,
    count_gradient,
    random_batch,
    skeleton,
    trace,
    trial,
)

pytestmark = pytest.mark.slow  # the published model's shapes, built on no device, take seconds each
ARM = C4.with_reconstruction_head(HEAD)
T4 = DEVICES["t4"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("tiny")))


def test_live_counts_what_autograd_keeps() -> None:
    """Three linear layers without bias and a ReLU between: by hand, the inputs of each and the outputs of the ReLUs."""
    layers = [nn.Linear(16, 16, bias=False) for _ in range(3)]
    x = torch.randn(8, 16)
    with Live([p for layer in layers for p in layer.parameters()]) as live:
        h = layers[0](x)
        first = live.now
        h = layers[1](h.relu())
        kept = live.now
        del h
        gone = live.now
    size = 8 * 16 * 4
    assert (first, kept, gone) == (size, 2 * size, 0)  # `h` and the ReLU's output, the ReLU's input is not kept
    assert live.peak >= kept


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("lora", [Lora(rank=4), None], ids=["lora", "full"])
def test_fake_tensors_count_as_real_ones_do(source: str, dtype: Any, lora: Lora | None) -> None:
    backbone = tiny(source, dtype=dtype, lora=lora, checkpointing=False)
    planned = trace(skeleton(backbone, ARM), PlannedStep(backbone, ARM, 8, 1))
    policy = policy_of(backbone, HEAD).train()
    batch = random_batch(backbone, 8)
    with Live([*policy.parameters(), *policy.buffers()]) as live:
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(lambda p: count_gradient(live, p))
        rows = trial(policy, batch, ARM, DTYPES[backbone.dtype])
    assert planned.activations + planned.gradients == live.peak
    tokens = policy.backbone.inner.encode([LANGUAGE]).ids.shape[1]  # pyright: ignore
    assert planned.rows == rows == 8 * 3 * 4 * tokens * 16 * 4  # b l h t n in float32


@pytest.mark.parametrize("decoding", DECODINGS)
def test_every_decoding_is_planned(source: str, decoding: Any) -> None:
    """Peak and operations are those of the step that training takes, on real tensors and by its own objective."""
    backbone = tiny(source, checkpointing=False)
    planned = trace(skeleton(backbone, C1, decoding), PlannedStep(backbone, C1, 8, 1, decoding))
    policy = untrained(C1, backbone, decoding=decoding).build().train()
    batch = random_batch(backbone, 8)
    counter = FlopCounterMode(display=False)
    with counter, Live([*policy.parameters(), *policy.buffers()]) as live:
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(lambda p: count_gradient(live, p))
        losses(policy, batch, None, torch.Generator()).total.backward()
    assert planned.operations == counter.get_total_flops()
    assert planned.activations + planned.gradients == pytest.approx(live.peak, rel=0.05)  # labels are smaller than bins
    trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    assert plan(PlannedStep(backbone, C1, 8, 1, decoding), T4).trainable == trained


def test_what_cannot_decode_so_is_refused(source: str) -> None:
    with pytest.raises(UserError, match="autoregressive decoding has several"):
        PlannedStep(tiny(source), S2, decoding="autoregressive")


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_checkpointing_is_planned_too(source: str, dtype: Any) -> None:
    """The plan traces another implementation than training uses, so nearly the same has to do."""
    backbone = tiny(source, dtype=dtype, checkpointing=True)
    planned = trace(skeleton(backbone, ARM), PlannedStep(backbone, ARM, 8, 1))
    policy = policy_of(backbone, HEAD).train()
    with Live([*policy.parameters(), *policy.buffers()]) as live:
        trial(policy, random_batch(backbone, 8), ARM, DTYPES[backbone.dtype])
    assert planned.activations + planned.gradients == pytest.approx(live.peak, rel=0.1)
    plain = replace(backbone, checkpointing=False)
    without = trace(skeleton(plain, ARM), PlannedStep(plain, ARM, 8, 1))
    assert planned.activations < 0.7 * without.activations
    assert planned.operations > 1.2 * without.operations


def test_parameters_and_their_bytes(source: str) -> None:
    backbone = tiny(source, dtype="fp16")
    policy = policy_of(backbone, HEAD)
    planned = plan(PlannedStep(backbone, ARM, 4, 4), T4)
    trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    stays = sum(p.numel() for p in policy.parameters() if not p.requires_grad)
    assert (planned.trainable, planned.frozen) == (trained, stays)
    assert planned.weights == 4 * trained + 2 * stays
    assert planned.optimizer == 8 * trained
    assert planned.gradients == 4 * trained, "with micro-batches all gradients are there from the second one on"
    assert planned.peak == T4.process + planned.weights + planned.optimizer + planned.gradients + planned.activations


def test_four_bits_in_closed_form(source: str) -> None:
    """Linear layers shrink to 4.127 bits a number (QLoRA's own figure), nothing else does."""
    assert round(8 * NF4_BYTES, 3) == 4.127
    half, packed = tiny(source, dtype="fp16"), tiny(source, dtype="fp16", quantize="nf4")
    policy = policy_of(half, HEAD)
    linear = sum(m.weight.numel() for m in policy.modules() if isinstance(m, nn.Linear) and not m.weight.requires_grad)
    plain, small = (plan(PlannedStep(backbone, ARM, 1, 1), T4) for backbone in (half, packed))
    assert plain.weights - small.weights == pytest.approx((2 - NF4_BYTES) * linear)


def test_operations_of_the_language_model(source: str) -> None:
    """C1 without adapters, nothing frozen below: at least 6 operations a weight and token (Kaplan et al., 2020)."""
    backbone = tiny(source, lora=None, checkpointing=False)
    planned = plan(PlannedStep(backbone, C1, 2, 1), device("cpu"))
    policy = policy_of(backbone)
    layers = policy.backbone.inner.model.language_model.layers  # pyright: ignore
    weights = sum(m.weight.numel() for m in layers.modules() if isinstance(m, nn.Linear))
    tokens = 2 * (16 + backbone.chunk + policy.backbone.inner.encode([LANGUAGE]).ids.shape[1])  # pyright: ignore
    assert 6 * weights * tokens < planned.operations < 2.5 * 6 * weights * tokens


def test_what_does_not_fit_is_made_to_fit(source: str) -> None:
    step = PlannedStep(tiny(source, lora=None, checkpointing=False), ARM, 16, 1)
    asked = plan(step, T4)
    assert asked.fits
    assert verdict(asked).startswith("fits: ")
    small = replace(T4, memory=asked.tensors * 0.8, process=0.0)
    tight = plan(step, small)
    assert not tight.fits
    found = fitting(tight)
    assert found is not None
    change, other = found
    assert other.fits
    assert other.step != step
    assert change in verdict(tight)
    assert "whatever is changed" in verdict(plan(step, replace(T4, memory=1000.0)))


def test_hours_are_those_of_all_policies_of_the_preset(source: str) -> None:
    """5000 steps of 3.6 seconds are 5 hours; 5 arms and the policy without an image, with 3 seeds, are 18 policies."""
    planned = replace(plan(PlannedStep(tiny(source), ARM, 1, 1), T4), seconds=3.6)
    told = hours(planned)
    for part in ("5.0 hours of training for one policy (5000 steps)", "90 for study run paper (18 policies", "15 less"):
        assert part in told


def test_what_a_device_cannot_do_is_said(source: str) -> None:
    with pytest.raises(UserError, match="t4 has no bf16 in hardware: give --dtype fp16"):
        plan(PlannedStep(tiny(source, dtype="bf16")), T4)
    with pytest.raises(UserError, match="unknown device 'tpu'"):
        device("tpu")
    with pytest.raises(UserError, match="need an NVIDIA GPU"):
        plan(PlannedStep(tiny(source, dtype="fp16", quantize="nf4")), device("cpu", "fp16"))
    with pytest.raises(UserError, match="accumulate 3 does not divide"):
        PlannedStep(tiny(source), accumulate=3)


def test_the_published_model_on_a_t4_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("asked the hub")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    backbone = Pretrained("google/paligemma-3b-pt-224", dtype="fp16", freeze=Freeze(last=3))
    planned = plan(PlannedStep(backbone, C4, 4, 4), T4)
    assert planned.frozen == 2_923_466_480
    assert planned.weights == pytest.approx(2 * planned.frozen + 4 * planned.trainable)
    assert planned.fits


def test_known_architectures_are_what_the_library_makes_of_them() -> None:
    for id, raw in KNOWN.items():
        config: Any = Pretrained(id).architecture
        assert type(config) is type(AutoConfig.for_model("paligemma"))
        for part in ("text_config", "vision_config"):
            for name, value in raw[part].items():
                assert getattr(getattr(config, part), name) == value, (id, name)


def test_the_command_reads_a_folder(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """A ``config.json`` alone is enough."""
    (tmp_path / "config.json").write_text(json.dumps(json.loads((Path(source) / "config.json").read_text())))
    words = [
        "la-reconvla",
        "check",
        "plan",
        "--backbone",
        str(tmp_path),
        "--device",
        "t4",
        "--lora-rank",
        "2",
        "--decoding",
        "flow",
        "--chunk",
        "2",
    ]
    monkeypatch.setattr(sys, "argv", words)
    cli.main()
    shown = capsys.readouterr().out
    for part in (
        "C4, flow on t4",
        "weights",
        "gradients",
        "optimizer",
        "activations",
        "attention rows",
        "peak",
        "time per step",
        "fits: ",
        "18 policies",
        "its disk: about",
        "it downloads nothing",
    ):
        assert part in shown


@pytest.mark.parametrize("arm", ["A1", "R1", "G1"])
def test_a_plan_knows_every_head_of_the_grid(source: str, arm: str) -> None:
    """Noise in one level a sample or in four: the head's operations are four times as many."""
    backbone = tiny(source, checkpointing=False)
    base = trace(skeleton(backbone, C1), PlannedStep(backbone, C1, 8, 1)).operations

    def of_head(repeats: int) -> float:
        condition = CONDITIONS[arm].with_reconstruction_head(HEAD, Denoiser(1, 16, 4, repeats=repeats))
        return trace(skeleton(backbone, condition), PlannedStep(backbone, condition, 8, 1)).operations - base

    assert of_head(4) == pytest.approx((1 if arm == "G1" else 4) * of_head(1), rel=0.05)
