"""Actions drawn from noise: against closed forms, numpy, and distributions whose answer is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from test_train import DENOISER, SHORT, Stop, StopAt, numbers, train_tiny, weights, write_demonstrations

import la_reconvla.training.loop as loop
from helpers import BINS, HEAD, TINY, random_batch, tiny_policy, untrained
from la_reconvla.backbones.packaged import weights_file
from la_reconvla.conditions import C1, C4, CONDITIONS
from la_reconvla.contracts import Batch, Features, Observation
from la_reconvla.data.hdf5 import open_demonstrations
from la_reconvla.data.samples import Samples
from la_reconvla.errors import UserError
from la_reconvla.method.actions import ActionBins, ActionHead
from la_reconvla.method.objective import losses
from la_reconvla.method.variants.action_diffusion import (
    FINE,
    DenoisingHead,
    DiffusionHead,
    FlowHead,
    equal_width,
    scaled,
    unscaled,
)
from la_reconvla.randomness import generator
from la_reconvla.storage import read_jsonl
from la_reconvla.study.occlusion import distribution
from la_reconvla.study.presets import PRESETS, preset
from la_reconvla.training.acting import Actor, stream_of, with_noise
from la_reconvla.training.checkpoint import load_policy
from la_reconvla.training.start_weights import StartWeights, bins_of
from la_reconvla.training.tensors import load_tensors
from la_reconvla.training.trackers import METRICS
from la_reconvla.training.trained_policy import Trained

KINDS: dict[Any, type[DenoisingHead]] = {"diffusion": DiffusionHead, "flow": FlowHead}
T = 100


def kept() -> np.ndarray:
    """k_t of the squared cosine (Nichol and Dhariwal, arXiv 2102.09672), in float64 numpy."""
    share = np.arange(T + 1) / T
    whole = np.cos((share + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.cumprod(1 - np.minimum(1 - whole[1:] / whole[:-1], 0.999))


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def features(b: int, chunk: int = 1, width: int = 8) -> Features:
    """Of one picture that is always the same."""
    zeros = torch.zeros(b, chunk, width)
    return Features(zeros, zeros, zeros[:, 0], None, None, (1, chunk))


# ---------------------------------------------------------------- schedules


def test_diffusion_noises_by_the_squared_cosine() -> None:
    head, a, e = DiffusionHead(8, BINS, 2), normal(T, 2, 7), normal(T, 2, 7, seed=1)
    share = (torch.arange(T) + 0.5) / T
    x, level, wanted = head.noised(a, e, share)
    k = kept()[:, None, None]
    np.testing.assert_allclose(head.kept, kept(), rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(x, np.sqrt(k) * a.numpy() + np.sqrt(1 - k) * e.numpy(), atol=1e-5)
    assert level.tolist() == list(range(T))
    assert torch.equal(wanted, e)


def test_flow_is_pi0s_path_and_distribution_of_times() -> None:
    head, a, e = FlowHead(8, BINS, 2), normal(4000, 2, 7), normal(4000, 2, 7, seed=1)
    x, level, wanted = head.noised(a, e, (torch.arange(4000) + 0.5) / 4000)
    t = (level / FINE).double().numpy()
    assert t.min() > 0.001
    assert t.max() <= 1
    assert stats.kstest((t - 0.001) / 0.999, stats.beta(1.5, 1).cdf).statistic < 1e-3
    at = t[:, None, None]
    np.testing.assert_allclose(x, at * e.numpy() + (1 - at) * a.numpy(), atol=1e-5)
    assert torch.equal(wanted, e - a)


def test_levels_are_uniform_shares_of_the_heads_own_stream() -> None:
    """A network that is perfect for the noise that the stream gives has no loss."""
    batch = random_batch(b=64)
    for kind in KINDS.values():
        head, seen = kind(32, BINS, 2), []
        e = torch.randn(64, 2, 7, generator=generator(0, "a"))
        stream = generator(0, "a")
        a = scaled(BINS, batch.actions)

        def perfect(x: Any, level: Any, states: Any, head: Any = head, seen: Any = seen, a: Any = a, e: Any = e) -> Any:
            seen.append(level)
            return e if isinstance(head, DiffusionHead) else e - a

        head.predict = perfect  # pyright: ignore
        assert float(head.loss(features(64, 2, 32), BINS, batch, stream).detach()) < 1e-10
        assert len(seen[0].unique()) > 25


# ---------------------------------------------------------------- what a perfect network draws

MEAN, SPREAD = 0.2, 0.1


@pytest.mark.parametrize("steps", [T, 10, 1])
def test_ddim_draws_a_known_gaussian(steps: int) -> None:
    """For actions from N(m, s) the best guess of the noise is linear, and so is every step of DDIM: here in numpy."""
    head, x, k = DiffusionHead(8, BINS, 1, steps=steps), normal(2000, 1, 7), kept()

    def noise(x: Any, level: Any) -> Any:
        at = torch.from_numpy(k).float()[level.long(), None, None]
        return (1 - at).sqrt() * (x - at.sqrt() * MEAN) / (at * SPREAD**2 + 1 - at)

    drawn = head.drawn(noise, x)
    found = x.double().numpy()
    for t in range(T - 1, -1, -T // steps):
        e = np.sqrt(1 - k[t]) * (found - np.sqrt(k[t]) * MEAN) / (k[t] * SPREAD**2 + 1 - k[t])
        guess = ((found - np.sqrt(1 - k[t]) * e) / np.sqrt(k[t])).clip(-1, 1)
        before = k[t - T // steps] if t >= T // steps else 1.0
        found = np.sqrt(before) * guess + np.sqrt(1 - before) * e
    np.testing.assert_allclose(drawn, found, atol=2e-3)
    assert abs(drawn.mean() - MEAN) < 0.01
    if steps == T:
        assert abs(drawn.std() / SPREAD - 1) < 0.1


def test_flow_draws_a_known_gaussian() -> None:
    """With many steps that, with those of acting what Euler's method makes of it in numpy."""
    x = normal(500, 1, 7)

    def way(x: Any, level: Any) -> Any:
        """E[e - a | x], both normal."""
        t = level[:, None, None] / FINE
        rest = (x - (1 - t) * MEAN) / (t**2 + (1 - t) ** 2 * SPREAD**2)
        return t * rest - (MEAN + (1 - t) * SPREAD**2 * rest)

    np.testing.assert_allclose(FlowHead(8, BINS, 1, steps=400).drawn(way, x), MEAN + SPREAD * x, atol=0.01)
    found = x.double().numpy()
    for step in range(10):
        t = 1 - step / 10
        rest = (found - (1 - t) * MEAN) / (t**2 + (1 - t) ** 2 * SPREAD**2)
        found = found - 0.1 * (t * rest - (MEAN + (1 - t) * SPREAD**2 * rest))
    np.testing.assert_allclose(FlowHead(8, BINS, 1).drawn(way, x), found, atol=1e-5)


def guessed(kind: type[DenoisingHead], guess: Any) -> Any:
    """What a network answers whose guess of the actions is `guess(x, keeps, noise)`: x = keeps a + noise e."""

    def network(x: Any, level: Any) -> Any:
        if kind is DiffusionHead:
            k = torch.from_numpy(kept()).float()[level.long(), None, None]
            return (x - k.sqrt() * guess(x, k.sqrt(), (1 - k).sqrt())) / (1 - k).sqrt()
        t = level[:, None, None] / FINE
        return (x - guess(x, 1 - t, t)) / t

    return network


@pytest.mark.parametrize("kind", KINDS.values())
def test_one_action_is_copied_and_of_two_either_is_drawn(kind: type[DenoisingHead]) -> None:
    """Both from the ten steps of acting. The expectation over bins of the second is 0, where nothing is."""
    head, x = kind(8, BINS, 1, 10), normal(500, 1, 7)
    one = torch.linspace(-0.9, 0.9, 7)
    copied = head.drawn(guessed(kind, lambda x, keeps, noise: one.expand_as(x)), x)
    torch.testing.assert_close(copied, one.expand_as(copied), rtol=0, atol=1e-5)
    two = guessed(kind, lambda x, keeps, noise: 0.5 * torch.tanh(0.5 * keeps * x / noise**2))  # E[a | x], a = +-0.5
    drawn = head.drawn(two, x)
    assert ((drawn.abs() - 0.5).abs() < 0.1).float().mean() > 0.95
    assert 0.4 < (drawn > 0).float().mean() < 0.6
    logits = torch.full((1, 1, 7, 256), -30.0)
    logits[..., [64, 191]] = 0.0
    assert BINS.decide(logits)[..., :-1].abs().max() < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS.values())
def test_a_trained_head_draws_both_peaks_where_the_bins_give_the_mean(kind: type[DenoisingHead]) -> None:
    torch.manual_seed(0)
    heads: list[Any] = [kind(8, BINS, 1, 10), ActionHead(8, BINS)]
    optimizers = [torch.optim.AdamW(head.parameters(), 2e-3) for head in heads]
    draws = generator(0, "peaks")
    for _ in range(300):
        side = (torch.rand(64, 1, 1, generator=draws) < 0.5).float() * 2 - 1
        batch = Batch(torch.zeros(64), [""] * 64, (0.5 * side).expand(-1, -1, 7), torch.ones(64, 1, dtype=torch.bool))
        for head, optimizer in zip(heads, optimizers, strict=True):
            optimizer.zero_grad()
            head.loss(features(64), BINS, batch, draws).backward()
            optimizer.step()
    with torch.no_grad():
        states = heads[0].states(features(256))
        drawn = heads[0].drawn(lambda x, level: heads[0].predict(x, level, states), normal(256, 1, 7))[..., :-1]
        expected = BINS.decide(heads[1](features(1)))[..., :-1]
    assert expected.abs().max() < 0.15
    near = [((drawn - peak).abs() < 0.25).float().mean() for peak in (-0.5, 0.5)]
    assert min(near) > 0.2
    assert sum(near) > 0.75
    assert (drawn.abs() < 0.15).float().mean() < 0.1
    one_side = drawn.sign().mean(-1).abs() == 1
    assert one_side.float().mean() > 0.8, "a sample is one chunk as a whole; by itself each of 6 numbers gives 0.03"


# ---------------------------------------------------------------- the robot's units


def test_edges_are_minus_one_and_one_and_a_gripper_is_two_valued() -> None:
    bins = ActionBins((-3.0,) * 6 + (-1.0,), (5.0,) * 6 + (1.0,))
    actions = torch.rand(5, 2, 7, generator=generator(0, "a")) * 8 - 3
    x = scaled(bins, actions)
    np.testing.assert_allclose(x[..., :-1], (actions[..., :-1].numpy() + 3) / 4 - 1, atol=1e-6)
    assert set(x[..., -1].unique().tolist()) <= {-1.0, 1.0}
    torch.testing.assert_close(unscaled(bins, x)[..., :-1], actions[..., :-1])
    assert unscaled(bins, torch.full((1, 7), 9.0)).tolist() == [[5.0] * 6 + [1.0]]
    assert unscaled(bins, torch.full((1, 7), -0.1))[0, -1] == -1


def test_data_of_one_action_leave_no_choice() -> None:
    action = np.array([0.3, -0.2, 0.0, 0.1, 0.7, -1.0, 1.0])
    bins = ActionBins.from_quantiles(action, action)
    acted = unscaled(bins, 3 * normal(50, 1, 7))
    np.testing.assert_allclose(acted[..., :-1], np.broadcast_to(action[:-1], (50, 1, 6)), atol=5.1e-4)


def test_edges_are_the_least_and_largest_training_actions(tmp_path: Path) -> None:
    samples = Samples(open_demonstrations(write_demonstrations(tmp_path / "d")), TINY.image_size, TINY.chunk)
    actions = np.concatenate([e.actions for e in samples.demonstrations.episodes])[:, :-1]
    start = StartWeights.read("base")
    for decoding in KINDS:
        bins = bins_of(start, samples, decoding=decoding)
        np.testing.assert_allclose(bins.low[:-1], actions.min(0), atol=1e-3)
        np.testing.assert_allclose(bins.high[:-1], actions.max(0), atol=1e-3)
    assert bins_of(start, samples).low == start.bins.low  # pyright: ignore


# ---------------------------------------------------------------- the network


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "paper"])
def test_it_has_the_parameters_of_the_head_of_bins(name: str) -> None:
    backbone: Any = preset(name).backbone
    counts = [
        sum(p.numel() for p in head.parameters())
        for head in (FlowHead(backbone.width, BINS, backbone.chunk), ActionHead(backbone.width, BINS))
    ]
    assert abs(counts[0] / counts[1] - 1) < 0.05


def test_at_the_size_of_a_large_backbone_too() -> None:
    assert abs(equal_width(2048, BINS, 8) - 280) <= 4


@pytest.mark.parametrize(("kind", "steps"), [(DiffusionHead, 0), (DiffusionHead, 101), (FlowHead, 0)])
def test_impossible_steps_are_refused(kind: type[DenoisingHead], steps: int) -> None:
    with pytest.raises(UserError, match=" not "):
        kind(8, BINS, 1, steps)


@pytest.mark.parametrize("decoding", KINDS)
def test_steps_that_do_not_exist_and_what_is_not_known(decoding: Any) -> None:
    policy, batch = tiny_policy(decoding=decoding), random_batch()
    batch.valid[:, 1] = False
    torch.nn.init.normal_(policy.action_head.network.leave.bias)  # or the untrained network answers 0 everywhere
    before = losses(policy, batch, None, generator(0, "mask")).action
    batch.actions[:, 1] = 0.123
    assert torch.equal(losses(policy, batch, None, generator(0, "mask")).action, before)
    batch.valid[:] = False
    with pytest.raises(ValueError, match="no valid action"):
        losses(policy, batch, None, generator(0, "mask"))
    assert distribution(policy, batch) is None


def test_weights_that_have_acted_bring_backbone_and_queries() -> None:
    config = replace(preset("quick").backbone, chunk=2)
    policy = untrained(C1, config, decoding="flow").start(None)
    held = load_tensors(weights_file("base"))[0]
    assert torch.equal(policy.backbone.queries.detach(), held["queries"][:2])  # pyright: ignore
    fresh = untrained(C1, replace(config, weights=None), decoding="flow").build().action_head
    assert torch.equal(policy.action_head.from_instruction.weight, fresh.from_instruction.weight)


# ---------------------------------------------------------------- noise


def moved(policy: Any) -> Any:
    """A policy whose network does something."""
    with torch.no_grad():
        for number, p in enumerate(policy.action_head.network.parameters()):
            p.copy_(0.1 * normal(*p.shape, seed=number))
    return policy


@pytest.mark.slow
@pytest.mark.parametrize("decoding", KINDS)
def test_the_fast_path_takes_the_noise_that_it_is_given(decoding: Any) -> None:
    policy = moved(tiny_policy(None, decoding=decoding))
    actor, inputs = Actor(policy), random_batch().inputs
    for names in (None, "abc", "def"):
        given = inputs if names is None else with_noise(policy, inputs, streams(names))
        for _ in range(2):
            acted = policy.act(given)
            torch.testing.assert_close(actor(given), acted, rtol=0, atol=1e-4)
            assert set(acted[..., -1].unique().tolist()) <= {-1.0, 1.0}, "a gripper opens or closes"
    assert actor.records() == 2
    one, other = (policy.act(with_noise(policy, inputs, streams(names))) for names in ("abc", "dbc"))
    assert torch.equal(one[1:], other[1:]), "a sample's noise depends on its own stream"
    assert not torch.equal(one[0], other[0])
    assert with_noise(tiny_policy(None), inputs, streams("abc")) is inputs


def streams(names: str) -> list[torch.Generator]:
    return [stream_of(0, name, 0) for name in names]


class Began:
    """As much of a start as a policy reads."""

    suite, instruction, task = "toy", "open the drawer", 0

    def __init__(self, id: str):
        self.id = id


@pytest.mark.parametrize("decoding", KINDS)
def test_rollouts_of_one_start_begin_with_equal_noise(decoding: Any, tmp_path: Path) -> None:
    seen = Observation(np.zeros((32, 32, 3), np.uint8), "")

    def rollout(arm: Any, seed: int, *starts: str) -> list[torch.Tensor]:
        given, policy = [], Trained(tmp_path / f"{arm.id}{seed}").build()
        policy.actor = lambda inputs: given.append(inputs.noise) or torch.zeros(1, 2, 7)  # pyright: ignore
        for start in starts:
            policy.reset(Began(start), None)  # pyright: ignore
            for _ in range(2):
                policy.act(seen)
        return given

    for arm, seed in ((C1, 0), (C4, 0), (C4, 1)):
        run = replace(untrained(arm, decoding=decoding, seed=seed), reconstruction_head=None)
        run.save(tmp_path / f"{arm.id}{seed}")
        loop.save_tensors(tmp_path / f"{arm.id}{seed}" / loop.WEIGHTS, dict(run.build().state_dict()))
    one, other = rollout(C1, 0, "a", "b", "a"), rollout(C4, 0, "a", "b", "a")
    assert all(torch.equal(x, y) for x, y in zip(one, other, strict=True))
    assert torch.equal(one[0], one[4]), "the same start again"
    assert not any(torch.equal(one[0], later) for later in [*one[1:4], rollout(C4, 1, "a")[0]])


# ---------------------------------------------------------------- training


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demonstrations(tmp_path_factory.mktemp("demonstrations"))


@pytest.mark.slow
@pytest.mark.parametrize("decoding", KINDS)
def test_every_arm_trains_acts_and_is_paired(decoding: Any, demonstrations: Path, tmp_path: Path) -> None:
    """All arms draw the same noise for the actions, whatever else they draw: the first action losses are equal."""
    config, first = replace(SHORT, steps=1, warmup=0), {}
    for arm in CONDITIONS.values():
        run = train_tiny(demonstrations, tmp_path / arm.id, arm, config=config, decoding=decoding)
        policy, described = load_policy(run)
        assert described.decoding == decoding
        assert policy.act(random_batch().inputs).isfinite().all()
        if not arm.blind:
            first[arm.id] = read_jsonl(run / METRICS)[1]["action_loss"]
    assert len(first) > 20
    np.testing.assert_allclose(list(first.values()), first["C1"], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("stop", [2, 3])
@pytest.mark.parametrize(("decoding", "ema"), [("diffusion", False), ("flow", True), ("parallel", True)])
def test_a_stopped_run_ends_at_the_same_bits(
    decoding: Any, ema: bool, stop: int, demonstrations: Path, tmp_path: Path
) -> None:
    config = replace(SHORT, ema=ema)
    given: dict[str, Any] = {"config": config, "decoding": decoding}
    whole = train_tiny(demonstrations, tmp_path / "whole", **given)
    with pytest.raises(Stop):
        train_tiny(demonstrations, tmp_path / "halves", ticker=StopAt(stop), **given)
    halves = train_tiny(demonstrations, tmp_path / "halves", **given)
    assert weights(halves) == weights(whole)
    assert numbers(halves) == numbers(whole)


@pytest.mark.slow
def test_the_average_of_the_weights_is_what_acts(
    demonstrations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """d = 1 - (1 + step)^-0.75, in numpy, over the weights after each step; the training itself is not touched."""
    after: list[dict[str, np.ndarray]] = []
    follow = loop.follow

    def watched(average: Any, policy: Any, decay: float) -> None:
        after.append({name: p.detach().double().numpy().copy() for name, p in policy.named_parameters()})
        follow(average, policy, decay)

    monkeypatch.setattr(loop, "follow", watched)
    run = train_tiny(demonstrations, tmp_path / "run", C1, config=replace(SHORT, ema=True))
    expected = after[0]
    for step, now in enumerate(after[1:], 1):
        d = 1 - (1 + step) ** -0.75
        expected = {name: d * expected[name] + (1 - d) * now[name] for name in now}
    found, last = load_tensors(run / loop.WEIGHTS)[0], after[-1]
    assert found.keys() >= expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-6)
    assert any(np.abs(found[name].numpy() - last[name]).max() > 1e-4 for name in last)
    plain = train_tiny(demonstrations, tmp_path / "plain", C1)
    for name, value in load_tensors(plain / loop.WEIGHTS)[0].items():
        if name in last:
            np.testing.assert_array_equal(value, last[name].astype(np.float32))
    with pytest.raises(UserError, match="ema"):
        train_tiny(demonstrations, tmp_path / "plain", C1, config=replace(SHORT, ema=True))


@pytest.mark.parametrize("decoding", KINDS)
def test_reconstruction_draws_from_another_stream(decoding: Any) -> None:
    """The reconstruction's noise and the actions' are different streams."""
    arm = CONDITIONS["D2"].with_reconstruction_head(HEAD, DENOISER)
    policy = replace(untrained(arm, decoding=decoding), reconstruction_head=DENOISER).build()
    batch = random_batch()
    streams = {name: generator(0, name) for name in ("mask", "noise", "action noise")}
    with_arm = losses(policy, batch, arm.reconstruction, *_draws(streams)).action
    alone = losses(policy, batch, None, *_draws({name: generator(0, name) for name in streams})).action
    assert torch.equal(with_arm, alone)
    assert torch.equal(
        torch.rand(1, generator=streams["noise"]),
        _used(DENOISER, batch, generator(0, "noise")),
    )


def _draws(streams: dict[str, torch.Generator]) -> Any:
    return streams["mask"], 0.0, None, streams["noise"], streams["action noise"]


def _used(denoiser: Any, batch: Batch, stream: torch.Generator) -> torch.Tensor:
    """The next number of a stream after one reconstruction has drawn from it."""
    head = denoiser.build(TINY.width, TINY.grid, TINY.patch)
    target = head.target(batch.images)
    mask = torch.zeros(target.shape[:2], dtype=torch.bool)
    mask[:, :4] = True
    head.loss(torch.zeros(*target.shape[:2], TINY.width), mask, target, stream)
    return torch.rand(1, generator=stream)
