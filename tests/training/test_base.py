"""A base policy: one training on captions and demonstrations, and what trainings that start from it take over."""

from dataclasses import replace

import pytest
import torch
from test_pretrain import Killed, KilledAt, training_scenes
from test_train import write_demonstrations

from helpers import TINY, random_batch, untrained
from la_reconvla.conditions import C1, C4
from la_reconvla.data.hdf5 import open_demonstrations
from la_reconvla.errors import UserError
from la_reconvla.method.actions import ActionBins
from la_reconvla.method.decoder import MAEDecoder
from la_reconvla.sim.tasks import load_task
from la_reconvla.storage import read_jsonl
from la_reconvla.training.checkpoint import find_run, load_policy, unpacked
from la_reconvla.training.pretraining import WEIGHTS, PretrainConfig, pretrain
from la_reconvla.training.pretraining_data import STUDIED, base_samples, instructions_of
from la_reconvla.training.run_state import STATE
from la_reconvla.training.start_weights import StartWeights, bins_of, pinned
from la_reconvla.training.tensors import load_tensors, save_tensors

CONFIG = PretrainConfig(
    replace(TINY, stem="conv"), steps=8, batch_size=4, demonstration_batch=6, warmup=2, log_every=2, save_every=3
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folders = [write_demonstrations(tmp_path_factory.mktemp(name), pictures=i) for i, name in enumerate("ab")]
    return base_samples(folders, CONFIG.backbone)


@pytest.fixture(scope="module")
def base(data, tmp_path_factory):
    return pretrain(training_scenes(), CONFIG, tmp_path_factory.mktemp("base"), None, *data)


def policy_from(weights, condition=C1, seed=0, **changes):
    head = MAEDecoder(depth=1, width=32, attention_heads=2)
    backbone = pinned(replace(CONFIG.backbone, weights=str(weights), **changes))
    arm = condition.with_reconstruction_head(head)
    config = untrained(arm, backbone, seed=seed, image_size=TINY.image_size)
    return config.start(random_batch().images)


def test_several_folders_are_one_set(data):
    training, held_out = data
    episodes = training.demonstrations.episodes + held_out.demonstrations.episodes
    assert len({episode.path for episode in episodes}) == 2
    assert not {e.scene for e in training.demonstrations.episodes} & {e.scene for e in held_out.demonstrations.episodes}


def test_episodes_that_say_what_held_out_tasks_say_are_left_out(tmp_path):
    """A wide scene is shown with two targets; the second may be what another task asks for."""
    folder = write_demonstrations(tmp_path, episodes=6)
    told = sorted({e.instruction for e in open_demonstrations(folder).episodes})
    training, held_out = base_samples([folder], CONFIG.backbone, without=told[:1])
    kept = training.demonstrations.episodes + held_out.demonstrations.episodes
    assert {e.instruction for e in kept} == set(told[1:])
    with pytest.raises(UserError, match="held-out instructions"):
        base_samples([folder], CONFIG.backbone, without=told)


def test_tasks_of_studies_are_held_out_by_their_own_instructions():
    said = StartWeights.read("base").demonstrations
    assert said is not None
    assert not set(said["instructions"]) & instructions_of(STUDIED)  # of the weights in the package
    assert not {f"{suite}/{task}" for suite, task in said["tasks"]} & set(STUDIED)
    found = instructions_of(("libero_spatial/1", "libero_goal/6"))
    assert found == {load_task("libero_spatial", 1).instruction, load_task("libero_goal", 6).instruction}
    with pytest.raises(UserError, match="suite/task"):
        instructions_of(("libero_spatial",))


@pytest.mark.slow
def test_its_folder_is_a_run_that_acts(base):
    policy, config = load_policy(base.parent)
    batch = random_batch()
    assert policy.act(batch.inputs).shape == (3, TINY.chunk, 7)
    assert config.backbone.weights is None
    assert policy.reconstruction_head is None


def test_weights_that_acted_are_unpacked_as_a_run(base, tmp_path):
    """To half precision the policy of the training itself; twice is once."""
    batch = random_batch()
    expected = load_policy(base.parent)[0].act(batch.inputs)
    for _ in range(2):
        policy, config = load_policy(unpacked(str(base), tmp_path / "unpacked"))
    torch.testing.assert_close(policy.act(batch.inputs), expected, atol=2e-2, rtol=0)
    assert (config.quality, config.image_size) == ("fast", TINY.image_size)
    with pytest.raises(UserError, match="--weights words-7x7"):
        find_run("words-7x7")


def test_every_arm_starts_from_its_backbone_queries_and_head(base):
    """To half precision: the same actions, whatever the seed, with and without a reconstruction head."""
    trained, config = load_policy(base.parent)
    batch = random_batch()
    expected = trained.act(batch.inputs)
    for condition in (C1, C4):
        for seed in (0, 1):
            policy = policy_from(base, condition, seed).eval()
            policy.bins = config.bins
            torch.testing.assert_close(policy.act(batch.inputs), expected, atol=2e-2, rtol=0)


def test_bins_and_demonstrations_come_with_the_weights(base, data):
    start = StartWeights.of(replace(CONFIG.backbone, weights=str(base)))
    assert start is not None
    bins = bins_of(start, data[0], spread=2.0)
    _, trained = load_policy(base.parent)
    assert (bins.low, bins.high, bins.spread) == (trained.bins.low, trained.bins.high, 2.0)
    said = start.demonstrations
    assert said is not None
    assert said["hash"] == data[0].demonstrations.hash
    assert said["tasks"] == [["libero_spatial", 0]]
    assert StartWeights.of(CONFIG.backbone) is None
    words = StartWeights.read("words-7x7")
    assert words.bins is None
    assert words.demonstrations is None
    fresh = ActionBins.from_quantiles(*data[0].quantiles(), spread=2.0)
    assert bins_of(None, data[0], 2.0) == bins_of(words, data[0], 2.0) == fresh


def test_a_shorter_chunk_takes_the_first_queries_and_a_longer_one_is_refused(base):
    queries = load_tensors(base)[0]["queries"]
    torch.testing.assert_close(policy_from(base, chunk=1).backbone.queries.detach(), queries[:1])
    with pytest.raises(UserError, match="chunks of 2 actions"):
        policy_from(base, chunk=3)


def test_a_base_may_see_the_wrist_camera_which_captions_do_not_have(tmp_path):
    """It acts by it, and a policy with a wrist camera starts from it."""
    config = replace(CONFIG, steps=2, backbone=replace(CONFIG.backbone, wrist=True))
    data = base_samples([write_demonstrations(tmp_path / "demos", wrist=True)], config.backbone)
    weights = pretrain(training_scenes(), config, tmp_path / "run", None, *data)
    policy, read = load_policy(weights.parent)
    assert read.backbone.wrist
    batch = data[0].batch([0, 1])
    acted, other = policy.act(batch.inputs), policy.act(replace(batch.inputs, wrist=255 - batch.wrist))
    assert not torch.equal(acted, other)
    started = policy_from(weights, wrist=True).eval()
    started.bins = read.bins
    torch.testing.assert_close(started.act(batch.inputs), acted, atol=2e-2, rtol=0)


@pytest.mark.slow
def test_the_log_names_both_losses_and_what_is_minimised(data, tmp_path):
    pretrain(training_scenes(), CONFIG, tmp_path, None, *data)
    lines = read_jsonl(tmp_path / "metrics.jsonl")
    last = lines[-1]
    assert last["loss"] == pytest.approx(last["action_loss"] + CONFIG.words_weight * last["words_loss"], rel=1e-5)
    assert last["held_out_action_loss"] > 0
    silent = pretrain(training_scenes(), replace(CONFIG, words_weight=0.0), tmp_path / "silent", None, *data)
    lines = read_jsonl(silent.with_name("metrics.jsonl"))
    assert lines[-1]["loss"] == pytest.approx(lines[-1]["action_loss"], rel=1e-6)


def test_a_killed_run_goes_on_to_the_same_bits(base, data, tmp_path):
    with pytest.raises(Killed):
        pretrain(training_scenes(), CONFIG, tmp_path, KilledAt(5), *data)
    assert (tmp_path / STATE).exists()
    cut = pretrain(training_scenes(), CONFIG, tmp_path, None, *data)
    for name in (WEIGHTS, "model.safetensors"):
        (ours, _), (expected, _) = load_tensors(cut.with_name(name)), load_tensors(base.with_name(name))
        assert ours.keys() == expected.keys()
        assert all(torch.equal(ours[key], tensor) for key, tensor in expected.items())


def test_training_goes_on_from_other_weights(base, data, tmp_path):
    """A vanishing rate shows the start: damping and fitting are for fresh weights only."""
    config = replace(CONFIG, backbone=pinned(replace(CONFIG.backbone, weights=str(base))), steps=1, learning_rate=1e-12)
    after, facts = load_tensors(pretrain(training_scenes(), config, tmp_path, None, *data))
    before = load_tensors(base)[0]
    assert all(torch.allclose(after[name].float(), before[name].float(), atol=1e-3) for name in before)
    assert facts["backbone"]["weights"] is None
    assert facts["began_with"] == config.backbone.weights_hash


def test_what_earlier_weights_learnt_from_is_not_forgotten(base, tmp_path):
    """Weights that go on, with words alone or with other tasks, still name the tasks of those before."""
    before = StartWeights.read(str(base)).demonstrations
    config = replace(CONFIG, backbone=pinned(replace(CONFIG.backbone, weights=str(base))), steps=1)
    _, facts = load_tensors(pretrain(training_scenes(), config, tmp_path))
    assert facts["demonstrations"] == before


def test_weights_of_before_their_file_named_classes_are_read(base, tmp_path):
    tensors, facts = load_tensors(base)
    kinds = {name: facts[name].pop("kind") for name in ("backbone", "bins")}
    assert kinds == {"backbone": "SmallPaliGemma", "bins": "ActionBins"}
    facts["bins"] = {name: facts["bins"][name] for name in ("low", "high")}
    save_tensors(tmp_path / "before.safetensors", tensors, **facts)
    before, now = StartWeights.read(str(tmp_path / "before.safetensors")), StartWeights.read(str(base))
    assert (before.backbone, before.bins) == (now.backbone, now.bins)


def test_damaged_facts_are_refused_with_the_file_s_name(base, tmp_path):
    tensors, facts = load_tensors(base)
    for name, damaged in (("bins", {"low": [0.0] * 7}), ("demonstrations", {"hash": "0"})):
        save_tensors(tmp_path / f"{name}.safetensors", tensors, **{**facts, name: damaged})
        with pytest.raises(UserError, match=f"{name}.safetensors"):
            StartWeights.read(str(tmp_path / f"{name}.safetensors"))


def test_demonstrations_are_part_of_what_a_folder_was_made_of(base, data):
    with pytest.raises(UserError, match="demonstrations"):
        pretrain(training_scenes(), CONFIG, base.parent, None, data[1], data[0])
