"""Weights fit whatever version of transformers wrote them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from helpers import tiny_policy
from la_reconvla.training.checkpoint import kept, restore, weights_hash
from la_reconvla.training.start_weights import StartWeights
from la_reconvla.training.tensors import file_hash, flat_name, load_metadata, load_tensors, named_as, save_tensors

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


def test_equal_tensors_give_equal_files(tmp_path):
    facts = {name: [name] for name in "abcdefgh"}
    for count in range(8):
        save_tensors(tmp_path / f"{count}.safetensors", {"w": torch.ones(2)}, **facts)
    assert len({file_hash(path) for path in tmp_path.iterdir()}) == 1
    assert load_metadata(tmp_path / "0.safetensors") == facts


def test_files_with_many_keys_are_read(tmp_path):
    save_file({"w": torch.ones(2)}, tmp_path / "old.safetensors", metadata={"step": "7", "arm": '"C1"'})
    tensors, facts = load_tensors(tmp_path / "old.safetensors")
    assert facts == {"step": 7, "arm": "C1"}
    assert tensors["w"].tolist() == [1, 1]
