"""What every backbone keeps: the tests need `contracts.Backbone` and the fields of `BackboneConfig`, and nothing else.

Add a new backbone to `CONFIGS`: a tiny configuration of it, with pictures of a few patches and random weights.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_train import SHORT, write_demonstrations

from helpers import BINS, HEAD, INSTRUCTIONS, TINY, untrained
from la_reconvla import kinds
from la_reconvla.conditions import C1, C4
from la_reconvla.contracts import Features, PolicyInput
from la_reconvla.data.hdf5 import open_demonstrations
from la_reconvla.data.samples import Samples
from la_reconvla.errors import UserError
from la_reconvla.method.actions import action_loss
from la_reconvla.method.mask import MaskContext, RandomMask
from la_reconvla.method.policy import Policy
from la_reconvla.method.saliency import saliency
from la_reconvla.randomness import generator, seeded
from la_reconvla.robot import proprio_width
from la_reconvla.study.gathering import shared
from la_reconvla.study.presets import StudyConfig
from la_reconvla.study.requirements import pinned_config
from la_reconvla.training.checkpoint import CONFIG, WEIGHTS, PolicyConfig, kept, load_policy
from la_reconvla.training.loop import train
from la_reconvla.training.tensors import save_tensors
from la_reconvla.training.trial import dry_run
from tiny_models import BUILDERS, Given, backbone


class Plain(torch.nn.Module):
    """What `contracts.Backbone` asks for and nothing more, by another backbone."""

    def __init__(self, inside: Any):
        super().__init__()
        self.inside = inside
        self.width, self.patch_size, self.grid = inside.width, inside.patch_size, inside.grid

    def forward(self, inputs: PolicyInput, **asked: Any) -> Features:
        return self.inside(inputs, **asked)


@dataclass(frozen=True)
class Tiny(Given):
    """A family's random model as a configuration: a third kind, neither small nor pretrained."""

    family: str = "paligemma"

    def build(self) -> Any:
        return Plain(backbone(self.family, self))


CONFIGS: dict[str, Any] = {
    "small": TINY,
    "small_conv": replace(TINY, stem="conv"),
    **{name: Tiny(family=name) for name in BUILDERS},
}
FALLBACK = ("siglip",)  # attention of the image to itself, as the channel says
FIELDS = ("patches", "action_states", "instruction_state")
every_backbone = pytest.mark.parametrize("name", CONFIGS)


@pytest.fixture(scope="module")
def built():
    """Each backbone as it is by default, built once; for tests that change no weight."""
    return {name: build(config) for name, config in CONFIGS.items()}


def build(config: Any) -> Any:
    with seeded(0, "weights"):
        return config.build().eval()


def inputs_of(config: Any, b: int = 3, seed: int = 0) -> PolicyInput:
    """All that the configuration asks for, at random."""
    draw, size, width = generator(seed, "inputs"), config.image_size, proprio_width(config.proprio)
    images, wrist = (torch.randint(0, 256, (b, 3, size, size), dtype=torch.uint8, generator=draw) for _ in range(2))
    state = 0.04 * torch.randn(b, width, generator=draw) if width else None
    return PolicyInput(images, INSTRUCTIONS[:b], wrist if config.wrist else None, state)


def map_of(features: Features) -> torch.Tensor:
    return saliency(features.attention, features.token_mask)


# ---------------------------------------------------------------- what is returned


@every_backbone
@pytest.mark.parametrize("asked", ["instruction", "actions"])
@torch.no_grad()
def test_shapes_are_those_of_the_contract(name, asked):
    config = replace(CONFIGS[name], chunk=5, proprio="all", wrist=True, saliency_layers=2)
    built = build(config)
    features = built(inputs_of(config), attention=asked)
    rows, columns = built.grid
    n, language = rows * columns, features.channel == "language"
    assert built.grid == features.grid == config.grid
    assert (rows * built.patch_size, columns * built.patch_size) == (config.image_size, config.image_size)
    assert features.patches.shape == (3, n, built.width)
    assert features.action_states.shape == (3, 5, built.width)
    assert features.instruction_state.shape == (3, built.width)
    assert language == (name not in FALLBACK)

    tokens = features.token_mask.shape[1]
    assert features.token_mask.dtype == torch.bool
    assert features.attention.shape[:2] == (3, 2)
    assert features.attention.shape[3:] == (tokens, n)
    counted = features.attention.movedim(3, 1)[features.token_mask]
    assert (counted >= 0).all()
    assert (counted.sum(-1) <= 1 + 1e-5).all(), "each row shares out one, image and all"
    if asked == "actions" or not language:
        assert features.spans is None
        assert features.token_mask.all()
        assert tokens == (5 if language else n)
        return
    for text, own, spans in zip(INSTRUCTIONS, features.token_mask, features.spans, strict=True):
        pieces = [text[a:b] for a, b in spans[own].tolist()]
        assert all(pieces), "no special token, no padding"
        assert "".join(pieces).replace(" ", "") == text.replace(" ", ""), "every word"
        assert (spans[~own] == -1).all()


@every_backbone
@torch.no_grad()
def test_the_probe_changes_no_bit(built, name):
    inputs = inputs_of(CONFIGS[name])
    watched, plain = built[name](inputs, attention="instruction"), built[name](inputs)
    for field in FIELDS:
        assert torch.equal(getattr(watched, field), getattr(plain, field)), field
    assert plain.attention is None
    assert plain.token_mask is None
    assert plain.spans is None


# ---------------------------------------------------------------- what depends on what


@every_backbone
@torch.no_grad()
def test_words_and_image_matter(built, name):
    """A build that reads actions or patches before the language has entered cannot pass.

    Both instructions have the same number of tokens, so that no position moves. The action states are looked at too:
    the actions alone could change through the head's own path from the instruction.
    """
    said, policy = ("pick up the left bowl", "pick up the right bowl"), policy_of(built[name])
    images = [inputs_of(CONFIGS[name], 1, seed).images for seed in (0, 1)]
    asked = [PolicyInput(images[0], [said[0]]), PolicyInput(images[0], [said[1]]), PolicyInput(images[1], [said[0]])]
    first, told, seen = (built[name](each, attention="instruction") for each in asked)
    assert torch.equal(first.token_mask, told.token_mask)
    acted = [policy.act(each) for each in asked]
    for which, other in enumerate((told, seen), start=1):
        assert (other.patches - first.patches).abs().max() > 1e-2
        assert (other.action_states - first.action_states).abs().max() > 1e-2
        assert (acted[which] - acted[0]).abs().max() > 1e-4
    assert (map_of(seen) - map_of(first)).abs().max() > 1e-4, "another image"
    if name in FALLBACK:
        assert torch.equal(map_of(told), map_of(first)), "there are no words in this map, as its channel says"
    else:
        assert (map_of(told) - map_of(first)).abs().max() > 1e-4, "another instruction"


@every_backbone
@settings(max_examples=8)
@given(seed=st.integers(0, 10**6))
@torch.no_grad()
def test_no_bit_of_a_hidden_patch_enters(built, name, seed):
    config, wrapped = CONFIGS[name], built[name]
    (rows, columns), p = wrapped.grid, wrapped.patch_size
    one, noise = inputs_of(config, seed=seed), inputs_of(config, seed=seed + 1).images
    hidden = RandomMask()(MaskContext((3, rows * columns), generator(seed, "mask")))
    cover = hidden.view(3, 1, rows, columns).repeat_interleave(p, 2).repeat_interleave(p, 3)
    other = replace(one, images=torch.where(cover, noise, one.images))
    found = [wrapped(inputs, hidden=hidden, attention="instruction") for inputs in (one, other)]
    for field in (*FIELDS, "attention"):
        assert torch.equal(*(getattr(features, field) for features in found)), field
    seen = [wrapped(inputs).patches for inputs in (one, other)]
    assert not torch.equal(seen[0][~hidden], seen[1][~hidden]), "unmasked, neighbours see them"


@every_backbone
@torch.no_grad()
def test_everything_may_be_hidden(built, name):
    hidden = torch.ones(3, built[name].grid[0] * built[name].grid[1], dtype=torch.bool)
    features = built[name](inputs_of(CONFIGS[name]), hidden=hidden)
    assert all(getattr(features, field).isfinite().all() for field in FIELDS)


@every_backbone
@torch.no_grad()
def test_queries_and_robot_state_do_not_change_what_the_words_and_patches_see(name):
    """Bit by bit. Queries are known by their shape: a row for each action of a chunk."""
    config = replace(CONFIGS[name], chunk=5, proprio="gripper")
    wrapped, inputs = build(config), inputs_of(config)
    found = [wrapped(inputs, attention="instruction")]
    found.append(wrapped(replace(inputs, proprio=inputs.proprio + 3), attention="instruction"))
    for parameter in wrapped.parameters():
        if parameter.shape[-2:] == (5, wrapped.width):
            parameter.add_(3.0)
    found.append(wrapped(inputs, attention="instruction"))
    for other in found[1:]:
        for field in ("patches", "instruction_state", "attention"):
            assert torch.equal(getattr(other, field), getattr(found[0], field)), field
        assert not torch.equal(other.action_states, found[0].action_states)


@every_backbone
@torch.no_grad()
def test_wrist_and_robot_state_are_used_when_asked_for(name):
    config = replace(CONFIGS[name], wrist=True, proprio="gripper")
    policy, inputs = policy_of(build(config)), inputs_of(config)
    base = policy.act(inputs)
    for change in ({"wrist": inputs.images}, {"proprio": inputs.proprio * 10}):
        assert not torch.equal(policy.act(replace(inputs, **change)), base), change.keys()


@every_backbone
@torch.no_grad()
def test_padding_changes_nothing(built, name):
    """The shortest instruction alone, and beside longer ones."""
    inputs = inputs_of(CONFIGS[name])
    shortest = min(range(3), key=lambda i: len(INSTRUCTIONS[i]))
    together = built[name](inputs, attention="instruction")
    one = PolicyInput(inputs.images[shortest, None], [INSTRUCTIONS[shortest]])
    alone = built[name](one, attention="instruction")
    for field in FIELDS:
        torch.testing.assert_close(
            getattr(together, field)[shortest, None], getattr(alone, field), rtol=1e-5, atol=1e-5, msg=field
        )
    torch.testing.assert_close(map_of(together)[shortest], map_of(alone)[0], rtol=1e-4, atol=1e-6)


# ---------------------------------------------------------------- gradients


def policy_of(wrapped: Any) -> Policy:
    with seeded(0, "head"):
        return Policy(wrapped, BINS).eval()


@every_backbone
def test_gradients_reach_every_matrix_that_the_attention_depends_on(name):
    """From the action loss; and from the instruction's state alone, whose rows the map of the words is made of.

    A state taken before the last layer, or from other positions, leaves the last layer's rows of the words with no
    gradient. Which matrices matter is found by changing each of them.
    """
    wrapped = build(CONFIGS[name])
    inputs, policy = inputs_of(CONFIGS[name], 1), policy_of(wrapped)
    features = wrapped(inputs, attention="instruction")
    before = features.attention
    weights = {key: p for key, p in wrapped.named_parameters() if p.requires_grad and p.dim() > 1}
    logits = policy.action_head(features)
    actions = torch.rand(logits.shape[:3], generator=generator(0, "actions")) * 2 - 1
    sources = [action_loss(logits, BINS, actions, torch.ones(actions.shape[:2], dtype=torch.bool))]
    if features.channel == "language":
        direction = torch.randn(features.instruction_state.shape, generator=generator(0, "direction"))
        sources.append((features.instruction_state * direction).sum())
    given = list(weights.values())
    found = [torch.autograd.grad(each, given, retain_graph=True, allow_unused=True) for each in sources]
    moving = {}
    with torch.no_grad():
        for place, (key, weight) in enumerate(weights.items()):
            own = weight.clone()
            weight.add_(0.3 * torch.randn(weight.shape, generator=generator(0, key)))
            if (wrapped(inputs, attention="instruction").attention - before).abs().max() > 1e-4:
                moving[key] = place
            weight.copy_(own)
    assert len(moving) >= 10, "towers and language model"
    for gradients in found:
        dead = [key for key, i in moving.items() if gradients[i] is None or not gradients[i].abs().max() > 0]
        assert not dead


# ---------------------------------------------------------------- what goes wrong


@every_backbone
def test_what_does_not_fit_is_refused_in_a_sentence(built, name):
    config, wrapped, inputs = CONFIGS[name], built[name], inputs_of(CONFIGS[name])
    size = config.image_size
    for wrong in (
        {"images": inputs.images.float()},
        {"images": inputs.images[..., : size // 2]},
        {"images": inputs.images.repeat(1, 1, 2, 2)},
        {"wrist": inputs.images},
        {"proprio": torch.zeros(3, 8)},
        {"instructions": [*INSTRUCTIONS[:2], " "]},
        {"instructions": [*INSTRUCTIONS[:2], "open the drawer " * config.max_tokens]},
    ):
        with pytest.raises(UserError, match=next(iter(wrong)).rstrip("s")):
            wrapped(replace(inputs, **wrong))
    with pytest.raises(UserError, match="saliency_layers"):
        replace(config, saliency_layers=99).build()


@every_backbone
def test_what_is_missing_is_refused_in_a_sentence(name):
    config = replace(CONFIGS[name], wrist=True, proprio="gripper")
    wrapped, inputs = build(config), inputs_of(config)
    for wrong in (
        {"wrist": None},
        {"wrist": inputs.wrist[..., : config.image_size // 2]},
        {"proprio": None},
        {"proprio": torch.zeros(3, 8)},
    ):
        with pytest.raises(UserError, match=next(iter(wrong))):
            wrapped(replace(inputs, **wrong))


# ---------------------------------------------------------------- files, studies


@pytest.fixture
def saved(monkeypatch):
    """The classes of these tests can be read from files."""
    monkeypatch.setattr(kinds, "REGISTERED", {})
    kinds.register(Tiny)


@pytest.mark.slow
@pytest.mark.usefixtures("saved")
def test_a_backbone_of_a_third_kind_trains(tmp_path):
    """From the first check to the last weight, with a mask that follows attention and a reconstruction."""
    training = Samples(open_demonstrations(write_demonstrations(tmp_path / "demonstrations")), TINY.image_size, 2)
    arm = C4.with_reconstruction_head(HEAD)
    run = train(arm, untrained(arm, Tiny()), SHORT, training, None, tmp_path / "run")
    policy, config = load_policy(run)
    assert config.backbone == Tiny()
    fresh, trained = (kept(each) for each in (config.build(), policy))
    assert any(not torch.equal(trained[key], fresh[key]) for key in fresh)


@every_backbone
@pytest.mark.usefixtures("saved")
@torch.no_grad()
def test_a_policy_comes_back_from_its_folder_and_acts_alike(tmp_path, name):
    config = untrained(C1, replace(CONFIGS[name], wrist=True, proprio="gripper"))
    policy, inputs = config.build().eval(), inputs_of(config.backbone)
    fresh = policy.act(inputs)
    for number, weight in enumerate(policy.parameters()):  # as after training
        weight.add_(0.01 * torch.randn(weight.shape, generator=generator(number, "step")))
    config.save(tmp_path)
    save_tensors(tmp_path / WEIGHTS, kept(policy))
    loaded, read = load_policy(tmp_path)
    assert read == config
    assert torch.equal(loaded.act(inputs), policy.act(inputs))
    assert not torch.equal(loaded.act(inputs), fresh)


def test_a_configuration_that_could_not_be_read_again_is_not_written(tmp_path):
    with pytest.raises(UserError, match=r"'test_contract\.Tiny'.*import test_contract .*register"):
        untrained(C1, Tiny()).save(tmp_path)
    assert not (tmp_path / CONFIG).exists()


@dataclass(frozen=True)
class Half:
    """A part of what a backbone must have."""

    chunk: int = 2
    image_size: int = 32


@pytest.mark.usefixtures("saved")
def test_a_backbone_that_lacks_what_its_protocol_names_is_refused_by_name(tmp_path):
    kinds.register(Half)
    with pytest.raises(
        UserError, match=r"Half lacks proprio, wrist, saliency_layers, max_tokens, grid, build: .*shared"
    ):
        untrained(C1, Half()).save(tmp_path)


def test_a_file_never_decides_what_is_imported(tmp_path, monkeypatch):
    """A run of somebody else's backbone: refused with what to import; its module is not touched."""
    module = tmp_path / "somebodys.py"
    module.write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    untrained(C1, TINY).save(tmp_path)
    raw = json.loads((tmp_path / CONFIG).read_text())
    for module, name in (("somebodys", "Backbone"), ("os", "system")):
        raw["backbone"]["kind"] = f"{module}.{name}"
        (tmp_path / CONFIG).write_text(json.dumps(raw))
        with pytest.raises(UserError, match=f"import {module} before .* {name}"):
            PolicyConfig.load(tmp_path)
    raw["backbone"] = raw["bins"]  # a class that may be there, elsewhere
    (tmp_path / CONFIG).write_text(json.dumps(raw))
    with pytest.raises(UserError, match="ActionBins lacks chunk"):
        PolicyConfig.load(tmp_path)


def test_a_study_takes_a_backbone_of_a_third_kind():
    """It has no field `weights` and no `source`: nothing is pinned, and nothing is claimed about them."""
    config = StudyConfig(backbone=Tiny())
    assert pinned_config(config) == config
    simulated = SimpleNamespace(recorded=None)
    evaluations: Any = SimpleNamespace(config=config, domain=simulated, places=[], starts=lambda _place=None: [])
    nothing: Any = SimpleNamespace(episodes=[])
    found = shared(evaluations, (nothing, nothing))
    known = {leak.what: leak.verdict for leak in found}
    assert known["pretraining"] == "unknown", "what it was trained on, its class does not say"
    dry_run(policy_of(config.backbone.build()), config.backbone, INSTRUCTIONS)
