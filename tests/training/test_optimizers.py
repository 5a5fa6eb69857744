"""Which parameters each optimizer trains, and what a step of Muon is."""

import functools

import numpy as np
import pytest
import torch

from helpers import tiny_policy
from la_reconvla.errors import UserError
from la_reconvla.training.optimizers import BETAS, MATRIX_RATE, optimizers_for
from la_reconvla.training.parts import scheduled


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_every_parameter_is_trained_once(kind):
    policy = tiny_policy()
    policy.backbone.queries.requires_grad_(False)
    members = optimizers_for(policy, 1e-3, 0.1, kind).members
    trained = [id(p) for part in members for group in part.param_groups for p in group["params"]]
    assert sorted(trained) == sorted(id(p) for p in policy.parameters() if p.requires_grad)


def test_muon_takes_the_hidden_matrices_only():
    policy = tiny_policy()
    muon, adamw = optimizers_for(policy, 1e-3, 0.1, "muon").members
    names = {id(p): name for name, p in policy.named_parameters()}
    taken = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    left = {names[id(p)] for group in adamw.param_groups for p in group["params"]}
    assert any(name.endswith("q_proj.weight") for name in taken)
    assert any(name.endswith("mlp.fc1.weight") for name in taken)
    assert all(name.startswith("backbone.") for name in taken)
    assert {
        "action_head.logits.weight",
        "action_head.from_instruction.weight",
        "reconstruction_head.enter.weight",
    } <= left
    assert "backbone.queries" in left
    assert not any("embed" in name or "bias" in name or "norm" in name.lower() for name in taken)


def test_weight_decay_is_on_matrices_only():
    (adamw,) = optimizers_for(tiny_policy(), 1e-3, 0.1, "adamw").members
    for group in adamw.param_groups:
        assert group["betas"] == BETAS
        assert {p.ndim >= 2 for p in group["params"]} == {group["weight_decay"] > 0}


def test_a_step_of_muon_is_nearly_orthogonal():
    """By numpy's singular values: all are about the rate, whatever the gradient's were."""
    linear = torch.nn.Linear(24, 24, bias=False)
    before = linear.weight.detach().clone()
    optimizers = optimizers_for(torch.nn.ModuleDict({"backbone": torch.nn.Sequential(linear)}), 1e-3, 0.0, "muon")
    scales = 10.0 ** np.linspace(0, -1.5, 24)
    left, right = (np.linalg.qr(np.random.default_rng(seed).normal(size=(24, 24)))[0] for seed in (0, 1))
    linear.weight.grad = torch.from_numpy((left * scales) @ right).float()
    optimizers.step()
    singular = np.linalg.svd((before - linear.weight.detach()).numpy(), compute_uv=False) / (MATRIX_RATE * 1e-3)
    assert singular.min() > 0.5
    assert singular.max() < 1.5


def test_all_rates_follow_one_schedule():
    optimizers = optimizers_for(tiny_policy(), 1e-3, 0.1, "muon")
    for step in (0, 5, 50, 99):
        optimizers.schedule(functools.partial(scheduled, step, 100, 10))
        rates = [group["lr"] for part in optimizers.members for group in part.param_groups]
        peaks = [MATRIX_RATE * 1e-3, 1e-3, 1e-3]
        assert rates == pytest.approx([scheduled(step, 100, 10, peak) for peak in peaks])


def test_an_unknown_kind_is_refused():
    with pytest.raises(UserError, match="adamw"):
        optimizers_for(tiny_policy(), 1e-3, 0.1, "adam")  # type: ignore[arg-type]
