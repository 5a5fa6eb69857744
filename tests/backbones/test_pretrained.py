"""A pretrained backbone: what is loaded, what trains, what is saved, and what is said where it cannot be had."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import errors
from test_train import SHORT, Stop, StopAt, numbers, weights, write_demonstrations
from tokenizers import Tokenizer
from transformers import (
    Gemma2Config,
    GemmaConfig,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    SiglipVisionConfig,
)

from helpers import BINS, HEAD, INSTRUCTIONS, random_batch
from la_reconvla.backbones import pretrained
from la_reconvla.backbones.paligemma import BOS, EOS, IMAGE, PAD, TOKENIZER, SmallPaliGemma
from la_reconvla.backbones.pretrained import KNOWN, Pretrained
from la_reconvla.backbones.trained_weights import Freeze, Lora
from la_reconvla.conditions import C1, C2, C4, Condition
from la_reconvla.contracts import PolicyInput
from la_reconvla.data.hdf5 import open_demonstrations
from la_reconvla.data.samples import Samples
from la_reconvla.errors import UserError
from la_reconvla.kinds import from_json, to_json
from la_reconvla.method.objective import losses
from la_reconvla.method.policy import Policy
from la_reconvla.randomness import seeded
from la_reconvla.study.presets import PRESETS, preset
from la_reconvla.training import loop as train_module
from la_reconvla.training.checkpoint import WEIGHTS, PolicyConfig, kept, load_policy
from la_reconvla.training.gradient import backward
from la_reconvla.training.loop import TrainConfig, train
from la_reconvla.training.run_state import STATE
from la_reconvla.training.tensors import load_tensors
from la_reconvla.training.trackers import METRICS

LAYERS = 4
SIZE = SmallPaliGemma(image_size=32, patch=8, width=32)  # what `helpers.random_batch` reads of a backbone


def save_tiny(folder: Path, gemma: int = 1, seed: int = 0) -> Path:
    """A random PaliGemma of either generation with the packaged tokenizer, as `save_pretrained` leaves it."""
    common: dict[str, Any] = {
        "vocab_size": Tokenizer.from_file(str(TOKENIZER)).get_vocab_size(),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "pad_token_id": PAD,
        "eos_token_id": EOS,
        "bos_token_id": BOS,
    }
    softcap = {"attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 8, "sliding_window": 4096}
    text = GemmaConfig(**common) if gemma == 1 else Gemma2Config(**common, **softcap)
    vision = SiglipVisionConfig(
        image_size=32,
        patch_size=8,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        vision_use_head=False,
    )
    config: Any = PaliGemmaConfig(
        vision_config=vision.to_dict(),
        text_config=text.to_dict(),
        image_token_index=IMAGE,
        projection_dim=32,
        hidden_size=32,
    )
    torch.manual_seed(seed)
    model = PaliGemmaForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2:
            torch.nn.init.normal_(parameter, std=0.15, generator=torch.Generator().manual_seed(len(name)))
    model.save_pretrained(folder)
    shutil.copy(TOKENIZER, folder / "tokenizer.json")
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demonstrations(tmp_path_factory.mktemp("demonstrations"))


def tiny(source: str, **changes: Any) -> Pretrained:
    return Pretrained(**{"source": source, "chunk": 2, "dtype": "fp32", "lora": Lora(rank=4), **changes})


def policy_of(config: Pretrained, head: Any = None) -> Policy:
    with seeded(0, "weights"):
        policy = Policy(config.build(), BINS)
    if head:
        with seeded(0, "decoder"):
            policy.reconstruction_head = head.build(
                policy.backbone.width, policy.backbone.grid, policy.backbone.patch_size
            )
    return policy.eval()


def batch_of(b: int = 3):
    return random_batch(b, replace(SIZE, chunk=2))


def names(policy: Policy) -> set[str]:
    return {name for name, parameter in policy.named_parameters() if parameter.requires_grad}


# ---------------------------------------------------------------- what it is


def test_the_published_sizes_are_the_hubs() -> None:
    """Parameters as the hub's pages state them: 2.92 and 3.03 billion."""
    skeletons = {id: Pretrained(id).skeleton() for id in KNOWN}
    bare = {id: sum(p.numel() for p in one.parameters() if not p.requires_grad) for id, one in skeletons.items()}
    assert bare["google/paligemma-3b-pt-224"] == 2_923_466_480
    assert bare["google/paligemma2-3b-pt-224"] == 3_032_242_416
    assert Pretrained("google/paligemma-3b-pt-224").grid == (16, 16)
    assert Pretrained("google/paligemma2-3b-pt-224").image_size == 224


def test_the_size_of_a_folder_is_read_without_its_weights(source: str, tmp_path: Path) -> None:
    shutil.copy(Path(source) / "config.json", tmp_path / "config.json")
    config = tiny(str(tmp_path))
    assert (config.image_size, config.grid, config.geometry.patch) == (32, (4, 4), 8)


@pytest.mark.parametrize("gemma", [1, 2])
def test_a_folder_acts_as_the_librarys_own_model(tmp_path: Path, gemma: int) -> None:
    """The states at the patches equal those of the library's eager model on its own inputs: bos, text, newline."""
    folder = save_tiny(tmp_path / "model", gemma)
    backbone = tiny(str(folder)).build().eval()
    image = batch_of(1).images
    told = [INSTRUCTIONS[0]]
    with torch.no_grad():
        found = backbone(PolicyInput(image, told), attention="instruction")
        model: Any = PaliGemmaForConditionalGeneration.from_pretrained(folder, attn_implementation="eager").eval()
        ids = [BOS, *backbone.inner.tokenizer.encode(told[0], add_special_tokens=False).ids]
        ids += backbone.inner.tokenizer.encode("\n", add_special_tokens=False).ids
        ids = torch.tensor([[IMAGE] * 16 + ids])
        out = model.model(
            input_ids=ids,
            pixel_values=image / 127.5 - 1.0,
            token_type_ids=torch.zeros_like(ids),
            attention_mask=torch.ones_like(ids),
            output_attentions=True,
        )
    torch.testing.assert_close(found.patches, out.last_hidden_state[:, :16], atol=1e-5, rtol=1e-4)
    expected = torch.stack(out.attentions[-3:], 1)[..., 16:, :16]
    torch.testing.assert_close(found.attention, expected, atol=1e-5, rtol=1e-4)


# ---------------------------------------------------------------- what trains


def test_new_parts_train_and_adapters_do_and_nothing_else(source: str) -> None:
    found = names(policy_of(tiny(source), HEAD))
    own = {name for name in found if name.startswith("backbone.inner.model.")}
    new = {name for name in policy_of(tiny(source), HEAD).state_dict() if not name.startswith("backbone.inner.model.")}
    assert found - own == new
    assert len(own) == 2 * 7 * LAYERS
    assert all(".lora_" in name and ".language_model.layers." in name for name in own)


@pytest.mark.parametrize(
    ("freeze", "layers", "vision"),
    [
        (Freeze(lower=3), {3}, False),
        (Freeze(last=2), {2, 3}, False),
        (Freeze(last=2, lower=3), {3}, False),
        (Freeze(vision=False), {0, 1, 2, 3}, True),
        (Freeze(vision=False, last=0), set(), True),
    ],
)
@pytest.mark.parametrize("lora", [None, Lora(rank=2)])
def test_freeze_says_where(source: str, freeze: Freeze, layers: set[int], vision: bool, lora: Lora | None) -> None:
    found = names(policy_of(tiny(source, freeze=freeze, lora=lora)))
    assert {
        int(name.split(".layers.")[1].split(".")[0]) for name in found if "language_model.layers." in name
    } == layers
    assert any("vision_tower" in name for name in found) is vision
    assert not any("embed_tokens" in name for name in found)
    assert any("lora_" in name for name in found) is (lora is not None)


def test_targets_can_be_named(source: str) -> None:
    found = names(policy_of(tiny(source, lora=Lora(rank=2, targets=("q_proj", "v_proj")))))
    assert {name.split(".")[-4] for name in found if "lora_" in name} == {"q_proj", "v_proj"}
    with pytest.raises(UserError, match="no linear layer is left for LoRA"):
        tiny(source, lora=Lora(targets=("nothing",))).build()


def test_both_losses_reach_the_adapters(source: str) -> None:
    """Trap 4: the gradient of the reconstruction must reach what the policy acts with."""
    policy = policy_of(tiny(source), HEAD).train()
    loss = losses(policy, batch_of(), C4.with_reconstruction_head(HEAD).reconstruction, torch.Generator())
    adapters = [p for name, p in policy.named_parameters() if "lora_B" in name]  # A has none while B is zero
    assert loss.reconstruction is not None
    for term in (loss.action, loss.reconstruction):
        found = torch.autograd.grad(term, adapters, retain_graph=True, allow_unused=True)
        reached = sum(g is not None and bool(g.abs().sum() > 0) for g in found)
        assert reached > 0.9 * len(adapters)


def test_checkpointing_changes_memory_and_nothing_else(source: str) -> None:
    results = []
    for checkpointing in (False, True):
        policy = policy_of(tiny(source, checkpointing=checkpointing), HEAD).train()
        loss = losses(policy, batch_of(), C4.with_reconstruction_head(HEAD).reconstruction, torch.Generator())
        loss.total.backward()
        gradients = {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}
        results.append((loss.total, loss.saliency, gradients))
    (a, look, first), (b, other, second) = results
    assert torch.equal(a, b)
    assert torch.equal(look, other)
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name])


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_acts_nearly_as_full_precision_does(source: str, dtype: Any) -> None:
    half, full = policy_of(tiny(source, dtype=dtype)), policy_of(tiny(source))
    assert {p.dtype for p in half.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in half.parameters() if not p.requires_grad} == {half.backbone.compute}
    one, other = (policy.features(batch_of()) for policy in (half, full))
    assert one.patches.dtype == torch.float32
    assert not torch.equal(one.patches, other.patches)
    torch.testing.assert_close(one.patches, other.patches, atol=0.15, rtol=0.1)


def test_four_bits_need_a_gpu(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="need an NVIDIA GPU"):
        tiny(source, quantize="nf4", dtype="fp16").build()
    with pytest.raises(UserError, match="cannot train in full"):
        tiny(source, quantize="nf4", dtype="fp16", lora=None)
    with pytest.raises(UserError, match="half precision"):
        tiny(source, quantize="nf4")
    options = pretrained.nf4(torch.float16)
    assert (options.load_in_4bit, options.bnb_4bit_quant_type, options.bnb_4bit_compute_dtype) == (
        True,
        "nf4",
        torch.float16,
    )


# ---------------------------------------------------------------- training


def train_pretrained(
    demonstrations: Path,
    out: Path,
    backbone: Pretrained,
    condition: Condition = C4,
    config: TrainConfig = SHORT,
    ticker=None,
) -> Path:
    parts = open_demonstrations(demonstrations).divide(0.25)
    training, rest = (Samples(part, backbone.image_size, backbone.chunk) for part in parts)
    condition = condition.with_reconstruction_head(HEAD)
    policy = PolicyConfig.trained_on(condition, training, seed=0, backbone=backbone)
    return train(condition, policy, config, training, rest, out, ticker)


def test_a_run_keeps_what_it_trained_and_names_the_rest(source: str, demonstrations: Path, tmp_path: Path) -> None:
    backbone = tiny(source, lora=Lora(rank=4, dropout=0.1)).pinned()
    run = train_pretrained(demonstrations, tmp_path / "run", backbone)
    saved, _ = load_tensors(run / WEIGHTS)
    assert not any(".base_layer." in name or "embed_tokens" in name or "vision_tower" in name for name in saved)
    policy, config = load_policy(run)
    assert config.backbone == backbone
    assert set(kept(policy)) == set(saved)
    fresh = policy_of(backbone, HEAD)
    base = {name: p for name, p in fresh.named_parameters() if not p.requires_grad}
    assert base
    for name, parameter in policy.named_parameters():
        assert torch.equal(parameter, saved[name] if parameter.requires_grad else base[name])
    moved = [name for name in saved if "lora_B" in name and saved[name].abs().sum() > 0]
    assert len(moved) == 7 * LAYERS
    log = json.loads((run / METRICS).read_text().splitlines()[0])
    assert log["frozen"] == sum(p.numel() for p in base.values())


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("stop", [1, 3])
def test_a_stopped_run_ends_at_the_same_bits(
    source: str, demonstrations: Path, tmp_path: Path, precision: Any, stop: int
) -> None:
    """With dropout, loss scaling, micro-batches and frozen weights, whose state is not saved."""
    backbone = tiny(source, lora=Lora(rank=4, dropout=0.2), dtype=precision).pinned()
    config = replace(SHORT, precision=precision, accumulate=2)
    whole = train_pretrained(demonstrations, tmp_path / "whole", backbone, config=config)
    with pytest.raises(Stop):
        train_pretrained(demonstrations, tmp_path / "halves", backbone, config=config, ticker=StopAt(stop))
    if stop == 3:
        state, _ = load_tensors(tmp_path / "halves" / STATE)
        assert not any(".base_layer." in name for name in state)
    halves = train_pretrained(demonstrations, tmp_path / "halves", backbone, config=config)
    assert weights(halves) == weights(whole)
    assert numbers(halves) == numbers(whole)


def test_other_weights_at_the_source_are_refused(demonstrations: Path, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    run = train_pretrained(demonstrations, tmp_path / "run", tiny(str(folder)).pinned(), C1)
    save_tiny(folder, seed=1)
    with pytest.raises(UserError, match="are not those that this run was trained on"):
        load_policy(run)


@pytest.mark.parametrize("condition", [C1, C2, C4], ids=lambda c: c.id)
@pytest.mark.parametrize("parts", [2, 3, 6])
def test_micro_batches_add_up_to_the_gradient_of_the_batch(condition: Condition, parts: int) -> None:
    """Against an independent sum: each sample's loss alone, weighted by its own steps, and their gradients added."""
    from helpers import TINY, tiny_policy

    batch = random_batch(6)
    batch.valid[0, 1], batch.valid[3, 1], batch.valid[4, 1] = False, False, False
    arm = condition.with_reconstruction_head(HEAD)
    scaler = torch.amp.GradScaler("cpu", enabled=False)

    def gradients(count: int) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        policy = tiny_policy(HEAD, TINY).train()
        draws = torch.Generator().manual_seed(1)
        values = backward(policy, batch, arm, count, draws, scaler, torch.float32)
        return values, {n: p.grad.numpy() for n, p in policy.named_parameters() if p.grad is not None}

    values, found = gradients(parts)
    whole, expected = gradients(1)
    assert values.pop("attention_channel", None) == whole.pop("attention_channel", None)
    assert values == pytest.approx(whole, rel=1e-5)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-3, atol=1e-6, err_msg=name)

    policy = tiny_policy(HEAD, TINY).train()
    draws, total = torch.Generator().manual_seed(1), 0.0
    for i in range(6):
        own = {k: v[i : i + 1] for k, v in vars(batch).items() if v is not None}
        loss = losses(policy, type(batch)(**own), arm.reconstruction, draws)
        extra = 0.0 if loss.reconstruction is None else arm.reconstruction.weight * loss.reconstruction / 6  # pyright: ignore
        total = total + loss.action * int(own["valid"].sum()) / 9 + extra
    assert values["loss"] == pytest.approx(total.item(), rel=1e-5)  # pyright: ignore
    total.backward()  # pyright: ignore
    for name, parameter in policy.named_parameters():
        if parameter.grad is not None:
            np.testing.assert_allclose(found[name], parameter.grad.numpy(), rtol=1e-3, atol=1e-6, err_msg=name)


def test_micro_batches_divide_the_batch() -> None:
    with pytest.raises(UserError, match="accumulate 3 does not divide the batch of 8"):
        TrainConfig(batch_size=8, accumulate=3)
    with pytest.raises(UserError, match="accumulate must be at least 1"):
        TrainConfig(accumulate=0)


def test_half_precision_weights_are_trained_with_loss_scaling(
    source: str, demonstrations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the rest of the policy is in full precision: the backbone's gradients are half all the same."""
    made: list[Any] = []
    plain = torch.amp.GradScaler

    def scaler(*arguments: Any, **options: Any) -> Any:
        made.append(plain(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(train_module.torch.amp, "GradScaler", scaler)
    for dtype in ("fp32", "fp16"):
        train_pretrained(demonstrations, tmp_path / dtype, tiny(source, dtype=dtype), C1)
    assert [one.is_enabled() for one in made] == [False, True]


# ---------------------------------------------------------------- as part of a study


def test_a_preset_takes_another_backbone(source: str) -> None:
    quick = preset("quick").changed(backbone=source, wrist=True)
    assert quick.backbone == Pretrained(source, chunk=preset("quick").backbone.chunk, wrist=True)
    assert quick.backbone.image_size == 32
    paper = PRESETS["paper"].changed(backbone=source)
    assert isinstance(paper.backbone, Pretrained)
    assert (paper.backbone.source, paper.backbone.dtype) == (source, "fp16")
    assert (len(paper.tasks), paper.demos) == (3, 50)


def test_options_of_the_command_line_reach_the_backbone(source: str) -> None:
    changed = PRESETS["paper"].changed(backbone=source, lora_rank=4, quantize="nf4", chunk=2).backbone
    assert isinstance(changed, Pretrained)
    assert (changed.lora, changed.quantize, changed.dtype, changed.chunk) == (Lora(rank=4), "nf4", "fp16", 2)
    full = preset("quick").changed(backbone=source, lora_rank=0, dtype="fp32").backbone
    assert isinstance(full, Pretrained)
    assert (full.lora, full.dtype) == (None, "fp32")
    with pytest.raises(UserError, match="for a pretrained backbone: give --backbone too"):
        preset("quick").changed(quantize="nf4")


def test_its_configuration_survives_json(source: str) -> None:
    for config in (
        tiny(source),
        tiny(source, lora=None, freeze=Freeze(last=1)),
        tiny(source, lora=Lora(targets=("a",))),
    ):
        assert from_json(json.loads(json.dumps(to_json(config))), (Pretrained, Freeze, Lora)) == config


# ---------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (errors.GatedRepoError, r"is gated: accept its licence on its page .*`hf auth login`"),
        (errors.RepositoryNotFoundError, "no folder here and no repository on the hub that you may see"),
        (errors.RevisionNotFoundError, "has no revision v2"),
        (errors.HfHubHTTPError, "cannot be downloaded"),
    ],
)
def test_what_the_hub_refuses_is_explained(monkeypatch: pytest.MonkeyPatch, error: Any, said: str) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        refusal = error.__new__(error)  # its constructor takes an answer of whichever HTTP client the hub's library has
        refusal.args = ("no",)
        raise refusal

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(UserError, match=said):
        Pretrained("someone/model", revision="v2").build()


def test_no_network_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise errors.LocalEntryNotFoundError("cannot find the file in the cache and there is no connection")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(
        UserError, match=r"google/paligemma-3b-pt-224 cannot be downloaded .*`hf download .* --backbone FOLDER"
    ):
        Pretrained("google/paligemma-3b-pt-224").build()
    monkeypatch.undo()
    with pytest.raises(UserError, match="no folder here and no repository"):
        Pretrained("not a name/at all").image_size  # noqa: B018


def test_files_that_are_missing_are_named(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"has no tokenizer\.json"):
        tiny(str(folder)).build()
    shutil.copy(TOKENIZER, folder / "tokenizer.json")
    text = (folder / "tokenizer.json").read_text().replace('"<bos>"', '"<other>"')
    (folder / "tokenizer.json").write_text(text)
    with pytest.raises(UserError, match="no <bos> number 2"):
        tiny(str(folder)).build()
    shutil.copy(TOKENIZER, folder / "tokenizer.json")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"holds no \*\.safetensors"):
        tiny(str(folder)).build()
    (folder / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be loaded"):
        tiny(str(folder)).build()
    (folder / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match=r"unknown family of models to train 'bert': choose from .*paligemma"):
        tiny(str(folder), revision="x").image_size  # noqa: B018
    with pytest.raises(UserError, match="saliency_layers must be 1 to 4, got 5"):
        tiny(str(save_tiny(tmp_path / "other")), saliency_layers=5).build()
