"""Actions token by token: the cache changes nothing, no token sees the future, and what is learnt is acted."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_pretrained import save_tiny
from test_train import SHORT, write_demonstrations

from helpers import BINS, HEAD, INSTRUCTIONS, TINY, dense_targets, random_batch, untrained
from la_reconvla.backbones.paligemma import SmallPaliGemma
from la_reconvla.backbones.pretrained import Pretrained
from la_reconvla.backbones.trained_weights import Lora
from la_reconvla.conditions import C1, C2_INPUT, C4, Condition
from la_reconvla.contracts import PolicyInput
from la_reconvla.data.hdf5 import open_demonstrations
from la_reconvla.data.samples import Samples
from la_reconvla.errors import UserError
from la_reconvla.method.actions import ActionBins
from la_reconvla.method.objective import losses
from la_reconvla.method.policy import Policy
from la_reconvla.method.variants.autoregressive import DECODINGS, TokenHead, bin_values
from la_reconvla.randomness import generator, seeded
from la_reconvla.study.presets import preset
from la_reconvla.training.checkpoint import CONFIG, PolicyConfig, load_policy
from la_reconvla.training.exporting import export_policy
from la_reconvla.training.loop import train
from la_reconvla.training.trial import dry_run
from tiny_models import LANGUAGE, Given, backbone

CHUNK = 2
FAMILIES = [name for name in LANGUAGE if name != "mllama"]
SEEING = replace(TINY, wrist=True, proprio="all")


def policy_over(inner: Any, chunk: int = CHUNK) -> Policy:
    with seeded(0, "head"):
        return Policy(inner, BINS, action_head=TokenHead(inner, BINS, chunk)).eval()


def small(config: SmallPaliGemma = TINY, seed: int = 0) -> Policy:
    with seeded(seed, "weights"):
        return policy_over(replace(config, chunk=1).build(), config.chunk)


def policy_named(name: str) -> Policy:
    """Whose fresh weights do not just say the last token again, as a table that is input and output does."""
    own = {"small": TINY, "small, seeing all": SEEING}
    policy = small(own[name]) if name in own else policy_over(backbone(name, Given(chunk=1)))
    torch.nn.init.normal_(policy.action_head.norm.weight, generator=generator(0, "norm"))
    return policy


def batch_for(policy: Policy, b: int = 3):
    batch = random_batch(b)
    if policy.backbone.config.wrist:  # pyright: ignore
        batch.wrist = random_batch(b, seed=1).images
        batch.proprio = torch.rand(b, 8, generator=generator(0, "state"))
    return batch


ALL = ["small", "small, seeing all", *FAMILIES]


@pytest.mark.parametrize("name", ALL)
@torch.no_grad()
def test_cached_greedy_decoding_is_the_argmax_of_one_pass_over_its_own_tokens(name, monkeypatch):
    """With padding between the instruction and what follows: the instructions differ in length."""
    policy = policy_named(name)
    batch = batch_for(policy)
    plain, stepped = policy.action_head.next, []
    monkeypatch.setattr(policy.action_head, "next", lambda *given: stepped.append(plain(*given)) or stepped[-1])
    tokens = policy.action_head.decode(policy.backbone, batch.inputs)
    monkeypatch.undo()
    batch.actions = bin_values(BINS, tokens)
    assert torch.equal(BINS.labels(batch.actions).round().long()[..., :6], tokens[..., :6])
    following = policy.action_head.embed(tokens.flatten(1)[:, :-1])
    features = policy.backbone(batch.inputs, following=following)
    logits = policy.action_head(features)
    assert torch.equal(logits.argmax(-1), tokens)
    torch.testing.assert_close(torch.stack(stepped, 1), logits.flatten(1, 2), rtol=1e-4, atol=1e-4)
    assert tokens.unique().numel() > 3
    assert torch.equal(policy.act(batch.inputs), batch.actions)


@pytest.mark.parametrize("name", ALL)
@torch.no_grad()
def test_a_token_changes_nothing_before_it(name):
    policy = policy_named(name)
    batch = batch_for(policy)
    before = policy.features(batch, attention="instruction")
    logits = policy.action_head(before).flatten(1, 2)
    at = 9  # the token of the second step's third dimension is the input of position 10
    batch.actions = batch.actions.clone()
    batch.actions[:, 1, 2] *= -1
    after = policy.features(batch, attention="instruction")
    changed = policy.action_head(after).flatten(1, 2)
    torch.testing.assert_close(changed[:, : at + 1], logits[:, : at + 1], rtol=0, atol=1e-6)
    assert ((changed - logits).abs().amax(-1)[:, at + 1 :] > 1e-4).all()
    assert torch.equal(before.attention, after.attention)
    assert torch.equal(before.patches, after.patches)
    assert torch.equal(before.instruction_state, after.instruction_state)


@pytest.mark.parametrize("name", ALL)
def test_a_batch_is_its_samples(name):
    policy = policy_named(name)
    batch = batch_for(policy)
    together = policy.act(batch.inputs)
    for i in range(3):
        own = {key: None if value is None else value[i : i + 1] for key, value in vars(batch.inputs).items()}
        torch.testing.assert_close(policy.act(PolicyInput(**own))[0], together[i])


@pytest.mark.slow
def test_what_is_learnt_is_acted():
    """Two pictures with one instruction, another one with the first picture: three chunks to know by heart.

    Actions at the middle of their bins, so that the likeliest bin is one and each token acted is the token trained on.
    """
    policy, batch = small(), random_batch(3)
    policy.train()
    policy.bins = replace(BINS, spread=1.0)
    batch.images[2] = batch.images[0]
    batch.instructions[1] = batch.instructions[0]
    batch.actions = bin_values(BINS, BINS.labels(batch.actions).round().long())
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3)
    targets = dense_targets(policy.bins, batch.actions)
    least = -(targets * targets.clamp_min(1e-30).log()).sum(-1).mean()
    loss = torch.tensor(math.inf)
    for _ in range(200):
        loss = losses(policy, batch, None, generator(0, "mask")).action
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
    assert loss < least + 0.1, f"{loss} of {least}"
    torch.testing.assert_close(policy.eval().act(batch.inputs), batch.actions)


# ---------------------------------------------------------------- the head


def test_the_table_begins_as_the_last_rows_of_the_vocabulary_and_enters_as_words_do():
    policy = small()
    words: Any = policy.backbone.language.get_input_embeddings()
    assert torch.equal(policy.action_head.table, words.weight[-256:])
    last = torch.arange(len(words.weight) - 256, len(words.weight))
    torch.testing.assert_close(policy.action_head.embed(torch.arange(256)), words(last))
    assert policy.action_head.table.data_ptr() != words.weight[-256:].data_ptr(), "of its own"


def test_a_vocabulary_without_rows_to_spare_leaves_the_table_random(monkeypatch):
    inner: Any = replace(TINY, chunk=1).build()
    monkeypatch.setattr(inner, "vocabulary", lambda: (torch.zeros(256, 32), 1.0))
    assert TokenHead(inner, BINS, 2).table.std() > 0.1


def test_values_are_centres_and_the_gripper_is_two_valued():
    bins = ActionBins((-0.5,) * 6 + (-1.0,), (1.5,) * 6 + (1.0,))
    tokens = torch.tensor([0, 255, 128, 127, 64, 1, 127])
    found = bin_values(bins, tokens)
    expected = [-0.5 + 2 * (t + 0.5) / 256 for t in tokens[:6].tolist()]
    torch.testing.assert_close(found, torch.tensor([*expected, -1.0]))
    assert bin_values(bins, torch.tensor([[0] * 6 + [128]]))[0, 6] == 1.0
    assert torch.equal(bins.labels(found).round().long()[:6], tokens[:6])


def test_steps_that_do_not_exist_have_no_loss():
    policy, batch = small(), random_batch()
    batch.valid[:, 1] = False
    before = losses(policy, batch, None, generator(0, "mask")).action
    batch.actions[:, 1] *= -1
    torch.testing.assert_close(losses(policy, batch, None, generator(0, "mask")).action, before)


def test_a_pass_that_only_reconstructs_is_shown_no_action():
    policy, batch = small(), random_batch()
    hidden = torch.zeros(3, 16, dtype=torch.bool)
    assert policy.features(batch, hidden=hidden).action_states.shape[1] == 1
    assert policy.features(batch).action_states.shape[1] == 14
    for arm in (C4, C2_INPUT):
        arm = arm.with_reconstruction_head(HEAD)
        policy.reconstruction_head = HEAD.build(32, (4, 4), 8)
        assert losses(policy, batch, arm.reconstruction, generator(0, "mask")).total.isfinite()


@pytest.mark.parametrize("name", ["mllama", "siglip"])
def test_a_backbone_that_cannot_says_so(name):
    with pytest.raises(UserError, match="--decoding parallel"):
        policy_over(backbone(name, Given(chunk=1)))
    inner = backbone(name, Given(chunk=1))
    with pytest.raises(UserError, match="--decoding parallel"):
        inner.vocabulary()


# ---------------------------------------------------------------- on disk, from the command line, pretrained


def trained(folder: Path, demonstrations: Path, backbone: Any, arm: Condition = C1) -> Path:
    whole = open_demonstrations(demonstrations)
    parts = whole.divide(0.25)
    training, rest = (Samples(part, backbone.image_size, backbone.chunk) for part in parts)
    config = PolicyConfig.of(
        arm.with_reconstruction_head(HEAD),
        seed=0,
        backbone=backbone,
        bins=ActionBins.from_quantiles(*training.quantiles()),
        quality=whole.quality,
        image_size=whole.image_size,
        data_hash=whole.hash,
        train_starts=training.demonstrations.starts,
        decoding="autoregressive",
    )
    return train(arm.with_reconstruction_head(HEAD), config, SHORT, training, rest, folder)


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory) -> Path:
    return write_demonstrations(tmp_path_factory.mktemp("demonstrations"))


def test_a_run_is_trained_saved_exported_and_read_again(demonstrations, tmp_path):
    run = trained(tmp_path / "run", demonstrations, TINY, C4)
    policy, config = load_policy(run)
    assert config.decoding == "autoregressive"
    assert config.backbone.chunk == 2
    assert policy.backbone.queries.shape[0] == 1  # pyright: ignore
    assert policy.act(random_batch().inputs).shape == (3, 2, 7)
    export_policy(run, tmp_path / "out", merged=False)
    again, _ = load_policy(tmp_path / "out")
    assert torch.equal(again.act(random_batch().inputs), policy.act(random_batch().inputs))
    raw = json.loads((run / CONFIG).read_text())
    del raw["decoding"]
    (run / CONFIG).write_text(json.dumps(raw))
    assert PolicyConfig.load(run).decoding == "parallel", "as all older runs are"


def test_weights_to_start_from_reach_the_table(demonstrations):
    config = replace(preset("quick").backbone, chunk=2)
    policy = untrained(C1, config, decoding="autoregressive").start(None)
    assert torch.equal(policy.action_head.table, policy.backbone.vocabulary()[0][-256:])  # pyright: ignore


@pytest.mark.slow
def test_a_pretrained_backbone_trains_with_adapters_and_checkpointing(demonstrations, tmp_path):
    source = str(save_tiny(tmp_path / "model"))
    config = Pretrained(source, chunk=2, lora=Lora(rank=2), dtype="fp32").pinned()
    policy, _ = load_policy(trained(tmp_path / "run", demonstrations, config))
    assert policy.act(random_batch().inputs).shape == (3, 2, 7)


def test_half_precision_decodes(tmp_path):
    source = str(save_tiny(tmp_path / "model"))
    policies = []
    for dtype in ("bf16", "fp32"):
        with seeded(0, "weights"):
            policies.append(policy_over(Pretrained(source, chunk=1, dtype=dtype).build()))
    half, full = (policy.features(random_batch()) for policy in policies)
    torch.testing.assert_close(half.action_states, full.action_states, atol=0.2, rtol=0.1)
    assert policies[0].act(random_batch().inputs).shape == (3, 2, 7)


def test_a_dry_run_leaves_the_mode_as_it_was():
    policy = small().train()
    dry_run(policy, TINY, INSTRUCTIONS)
    assert policy.training


def test_the_command_line_chooses():
    assert preset("quick").decoding == "parallel"
    changed = preset("quick").changed(decoding="autoregressive", chunk=4)
    assert changed.decoding == "autoregressive"
    assert DECODINGS[changed.decoding].given(changed.backbone).chunk == 1
    assert changed.backbone.chunk == 4
