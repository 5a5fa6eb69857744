"""Weights fit whatever version of transformers wrote them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from helpers import tiny_policy
from la_reconvla.training.checkpoint import kept, restore, weights_hash
from la_reconvla.training.start_weights import StartWeights
from la_reconvla.training.tensors import flat_name, named_as

OLD, NEW = "model.vision_tower.vision_model.encoder.weight", "model.vision_tower.encoder.weight"


@pytest.mark.parametrize("here", [OLD, NEW])
@pytest.mark.parametrize("there", [OLD, NEW])
def test_a_name_of_either_kind_is_found(here, there):
    one, other = torch.ones(1), torch.zeros(1)
    assert named_as({there: one, "queries": other}, [here, "head"]) == {here: one, "queries": other}


@pytest.mark.parametrize("deeper", [True, False])
def test_a_policy_and_its_start_take_weights_of_either_kind(tmp_path, deeper):
    """Of another seed, so that it shows whether they came."""
    policy, other = tiny_policy(None), tiny_policy(None, seed=1)
    wrapped = {flat_name(name): tensor.clone() for name, tensor in kept(other).items()}
    if deeper:
        wrapped = {k.replace("vision_tower.", "vision_tower.vision_model."): v for k, v in wrapped.items()}
    assert weights_hash(policy, "backbone") != weights_hash(other, "backbone")
    restore(policy, wrapped, tmp_path)
    assert weights_hash(policy, "backbone") == weights_hash(other, "backbone")

    model = {k.removeprefix("backbone."): v + 1 for k, v in wrapped.items() if k.startswith("backbone.model.")}
    config = replace(policy.backbone.config, weights=None)
    StartWeights("given", "", config, model, None, None).load_into(policy.backbone)
    found = {flat_name(name): tensor for name, tensor in policy.backbone.model.state_dict().items()}
    for name, tensor in model.items():
        assert torch.equal(found[flat_name(name).removeprefix("model.")], tensor)
