"""What others get: a folder that loads anywhere and a card, on the hub or not."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from test_pretrained import SHORT, batch_of, save_tiny, tiny, train_pretrained
from test_results import episode
from test_train import train_tiny, write_demonstrations
from transformers import PaliGemmaForConditionalGeneration

from la_reconvla.analysis.frames import FrameRecord, HeldOut
from la_reconvla.backbones.pretrained import Pretrained
from la_reconvla.backbones.trained_weights import Lora
from la_reconvla.episodes import append_episodes
from la_reconvla.errors import UserError
from la_reconvla.storage import write_json
from la_reconvla.study.cards import LIMITS, SIMULATED
from la_reconvla.study.heldout import write_held_out
from la_reconvla.study.publish import export
from la_reconvla.study.shareable import CARD
from la_reconvla.training import checkpoint
from la_reconvla.training.checkpoint import CONFIG, WEIGHTS, find_run, load_policy
from la_reconvla.training.tensors import load_tensors
from la_reconvla.training.trackers import METRICS


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("tiny"), gemma=2))


@pytest.fixture(scope="module")
def run(source: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose adapters have really moved."""
    folder = tmp_path_factory.mktemp("runs")
    config = replace(SHORT, learning_rate=0.02)
    backbone = tiny(source, lora=Lora(rank=4)).pinned()
    return train_pretrained(write_demonstrations(folder / "data"), folder / "run", backbone, config=config)


def acts(folder: Path) -> torch.Tensor:
    batch = batch_of()
    return load_policy(folder)[0].act(batch.inputs)


def test_adapters_only_go_and_come_back(run: Path, tmp_path: Path) -> None:
    out = export(run, tmp_path / "out")
    assert {path.name for path in out.iterdir()} == {CONFIG, WEIGHTS, CARD}
    assert (out / WEIGHTS).stat().st_size == pytest.approx((run / WEIGHTS).stat().st_size, rel=0.01)
    assert torch.equal(acts(out), acts(run))


def test_a_merged_policy_needs_no_source(run: Path, source: str, tmp_path: Path) -> None:
    before = acts(run)
    out = export(run, tmp_path / "out", merged=True)
    moved = shutil.move(out, tmp_path / "elsewhere")
    hidden = shutil.move(source, tmp_path / "hidden")
    try:
        policy, config = load_policy(moved)
        after = acts(Path(moved))
    finally:
        shutil.move(hidden, source)
    assert isinstance(config.backbone, Pretrained)
    assert config.backbone.lora is None
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-3)
    names, _ = load_tensors(Path(moved) / WEIGHTS)
    assert names
    assert not any(".model." in name for name in names)
    assert not any(p.requires_grad for p in policy.backbone.inner.model.parameters())  # pyright: ignore
    base: Any = PaliGemmaForConditionalGeneration.from_pretrained(source)
    with_adapters: Any = PaliGemmaForConditionalGeneration.from_pretrained(Path(moved) / "backbone")
    one, other = (dict(model.named_parameters()) for model in (base, with_adapters))
    assert one.keys() == other.keys(), "the folder is the library's own"
    changed = {name for name in one if not torch.equal(one[name], other[name])}
    assert changed
    assert all(".language_model.layers." in name and "_proj." in name for name in changed)


def test_a_merged_folder_that_was_changed_is_refused(run: Path, tmp_path: Path) -> None:
    out = export(run, tmp_path / "out", merged=True)
    config = json.loads((out / CONFIG).read_text())
    config["backbone"]["revision"] = "sha256:0"
    (out / CONFIG).write_text(json.dumps(config))
    with pytest.raises(UserError, match="are not those that this run was trained on"):
        load_policy(out)


def test_the_card_states_data_condition_results_and_limits(run: Path, source: str, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(run, tmp_path / "run"))
    unseen = ModelCard.load(export(copied, tmp_path / "first") / CARD)
    assert "none: it has not been evaluated in closed loop" in unseen.text
    for index, success in enumerate((True, True, False, False)):
        append_episodes(copied / "libero_spatial-wide", [episode(0, 0, index, success)])
    append_episodes(copied / "short", [episode(0, 0, 0, True)])
    write_json(copied / "short/evaluation.json", {"settings": {"max_steps": 9}, "instruction": "lift it"})
    one, two, grey = (FrameRecord(0, 0, "", "", 0, error) for error in (0.25, 0.35, 0.5))
    write_held_out(copied, HeldOut("", {"true": (one, two), "grey_image": (grey,)}))
    card = ModelCard.load(export(copied, tmp_path / "second") / CARD)
    config = checkpoint.PolicyConfig.load(copied)
    loss = json.loads((copied / METRICS).read_text().splitlines()[-1])["action_loss"]
    for said in (
        "C4: attention mask; attention, mae head, lambda 0.5, masked at the decoder",
        f"- backbone: {Path(source).name} at {config.backbone.revision}",  # pyright: ignore
        "LoRA of rank 4 of the language model; the vision tower stayed; base in fp32",
        config.data_hash,
        f"{len(config.train_starts)} initial states",
        "success, libero_spatial-wide: 2 of 4 episodes, 50.0 % (95 % interval 15.0 to 85.0)",
        "success, short, at most 9 steps, told 'lift it': 1 of 1 episodes",
        "action error on held-out frames, true view: 0.300",
        "action error on held-out frames, grey image: 0.500",
        f"training loss of the actions at the end: {loss:.3f}",
        SIMULATED,
        *LIMITS,
    ):
        assert said in card.text
    assert str(Path(source).parent) not in card.text, "nobody else has that folder"
    assert card.data.library_name == "la-reconvla"
    assert card.data.base_model is None, "a folder of this machine means nothing elsewhere"


def test_a_small_policy_goes_too(tmp_path: Path) -> None:
    small = train_tiny(write_demonstrations(tmp_path / "data"), tmp_path / "run")
    out = export(small, tmp_path / "out")
    card = (out / CARD).read_text()
    assert "a small PaliGemma trained from random weights" in card
    assert "an action: x (continuous), y (continuous)" in card
    assert "gripper (binary)" in card
    assert "pictures: agentview, mirrored" in card
    assert torch.equal(acts(out), acts(small))
    with pytest.raises(UserError, match="leave --merged out"):
        export(small, tmp_path / "merged", merged=True)


def test_a_folder_is_not_looked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs/one").mkdir(parents=True)
    assert find_run("runs/one") == Path("runs/one")
    for missing, meant in (
        ("/nowhere/at/all", ""),
        ("runs/xyz", ""),
        ("runs/oen", ": did you mean runs/one?"),
        ("x", ""),
    ):
        with pytest.raises(UserError, match=f"^there is no folder {re.escape(missing + meant)}$"):
            find_run(missing)


def test_a_missing_folder_comes_before_what_the_hub_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unreachable(*_: object, **__: object) -> str:
        raise OSError("no route")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(UserError, match=r"^there is no folder someone/policy, and from the hub: .*no route"):
        find_run("someone/policy")
    with pytest.raises(UserError, match=r"^there is no folder runs/nope$"):  # though there is no folder runs either
        find_run("runs/nope")


def test_a_folder_called_like_a_user_does_not_hide_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("someone/notes").mkdir(parents=True)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda id, **_: str(tmp_path / "kept" / id))
    assert find_run("someone/policy") == tmp_path / "kept/someone/policy"
    Path("someone/police").mkdir()
    Path("someone/police/config.json").write_text("{}")
    with pytest.raises(UserError, match=r"^there is no folder someone/policy: did you mean someone/police\?$"):
        find_run("someone/policy")


def test_a_study_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text("{}")
    with pytest.raises(UserError, match=r"is a study, .*none of them is trained yet .*`la-reconvla study report`"):
        find_run(tmp_path)
    for cell in ("C2/seed3", "C9/seed0"):
        (tmp_path / cell).mkdir(parents=True)
    (tmp_path / "C2/seed3" / WEIGHTS).touch()
    with pytest.raises(UserError, match=r"name one, for example .*C2/seed3 \(two"):
        find_run(tmp_path)
