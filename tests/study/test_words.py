"""Weights that have seen words: training starts from them, and the table says what they know."""

import dataclasses
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_captions import scenes_of

from helpers import BINS, HEAD, TINY
from la_reconvla.backbones.packaged import PACKAGED, weights_file
from la_reconvla.backbones.paligemma import PaliGemmaBackbone, SmallPaliGemma
from la_reconvla.cli import attention, training
from la_reconvla.contracts import PolicyInput
from la_reconvla.data.captions import NOUNS
from la_reconvla.data.starts import object_kind
from la_reconvla.errors import UserError
from la_reconvla.method.saliency import MEAN
from la_reconvla.study import word_questions, words
from la_reconvla.study.presets import PRESETS
from la_reconvla.training.checkpoint import WEIGHTS, PolicyConfig, kept, load_policy
from la_reconvla.training.options import PretrainOptions
from la_reconvla.training.pretraining import PretrainConfig, pretrain
from la_reconvla.training.start_weights import StartWeights, pinned
from la_reconvla.training.tensors import load_tensors, save_tensors

IMAGES = torch.randint(0, 256, (4, 3, 32, 32), generator=torch.Generator().manual_seed(1)).byte()


def small_scenes(m: int):
    rng = np.random.default_rng(m)
    return scenes_of(*([rng.uniform(-0.3, 0.3, 2) for _ in range(4)] for _ in range(m)), size=32)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    config = PretrainConfig(TINY, steps=3, batch_size=4, warmup=1)
    return pretrain(small_scenes(12), config, tmp_path_factory.mktemp("words"))


def config_of(backbone: SmallPaliGemma) -> PolicyConfig:
    return PolicyConfig("C4", False, 0, backbone, BINS, HEAD, "fast", 32, "", ())


def test_training_starts_from_the_weights_of_the_file(file):
    policy = config_of(replace(TINY, weights=str(file))).start(IMAGES)
    fresh = config_of(TINY).start(IMAGES)
    tensors, _ = load_tensors(file)
    state = policy.state_dict()
    assert len(tensors) > 20
    for name, tensor in tensors.items():
        torch.testing.assert_close(state[f"backbone.{name}"], tensor.float())
    rest = {name: t for name, t in fresh.state_dict().items() if name.removeprefix("backbone.") not in tensors}
    assert any(name.startswith("action_head.") for name in rest)
    assert "backbone.queries" in rest
    for name, tensor in rest.items():  # all else starts as without the file: arms differ in one thing
        torch.testing.assert_close(state[name], tensor)


def test_whitening_is_for_random_weights_only(file):
    config = config_of(replace(TINY, weights=str(file)))
    with_images, without = config.start(IMAGES), config.start(None)
    assert all(torch.equal(a, b) for a, b in zip(with_images.parameters(), without.parameters(), strict=True))


def test_a_trained_policy_does_not_need_the_file(file, tmp_path):
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(file.read_bytes())
    config = config_of(replace(TINY, weights=str(copy)))
    policy = config.start(IMAGES)
    config.save(tmp_path / "run")
    save_tensors(tmp_path / "run" / WEIGHTS, kept(policy))
    copy.unlink()
    loaded, again = load_policy(tmp_path / "run")
    assert again == config
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), policy.parameters(), strict=True))


def test_weights_of_another_size_are_refused_by_name(file):
    wider = replace(TINY, weights=str(file), width=48, patch=4)
    with pytest.raises(UserError, match="patch 8, not 4, width 32, not 48"):
        config_of(wider).start(None)


def test_missing_and_foreign_files_are_refused(tmp_path, file):
    with pytest.raises(UserError, match="la-reconvla pretrain"):
        StartWeights.read(str(tmp_path / "none.safetensors"))
    save_tensors(tmp_path / "other.safetensors", {"x": torch.zeros(1)}, steps=1)
    with pytest.raises(UserError, match="not written by la-reconvla pretrain"):
        StartWeights.read(str(tmp_path / "other.safetensors"))
    with pytest.raises(UserError, match="there are no weights"):
        StartWeights.read(str(tmp_path))


@pytest.mark.parametrize("change", ["more", "less", "other shape"])
def test_a_file_that_does_not_fit_whole_is_refused(tmp_path, file, change):
    tensors, facts = load_tensors(file)
    name = next(name for name in tensors if "embed_tokens" in name)
    if change == "more":
        tensors["model.new"] = torch.zeros(1)
    elif change == "less":
        del tensors[name]
    else:
        tensors[name] = tensors[name][:-1]
    save_tensors(tmp_path / "changed.safetensors", tensors, **facts)
    with pytest.raises(UserError, match=r"model\.new" if change == "more" else name):
        config_of(replace(TINY, weights=str(tmp_path / "changed.safetensors"))).start(None)


def test_a_run_refuses_other_weights_under_the_same_name(tmp_path, file):
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(file.read_bytes())
    config = pinned(replace(TINY, weights=str(copy)))
    config_of(config).start(None)
    tensors, facts = load_tensors(file)
    save_tensors(copy, {name: 2 * tensor for name, tensor in tensors.items()}, **facts)
    with pytest.raises(UserError, match="not those that this began with"):
        config_of(config).start(None)


def test_options_take_start_weights_away_and_refuse_them_elsewhere(file):
    quick = PRESETS["quick"]
    given = quick.changed(weights=str(file)).backbone
    assert isinstance(given, SmallPaliGemma)
    assert given.weights == str(file)
    bare = quick.changed(weights="none").backbone
    assert isinstance(bare, SmallPaliGemma)
    assert bare.weights is None
    with pytest.raises(UserError, match="leave --weights out"):
        PRESETS["paper"].changed(weights=str(file))


def test_the_weights_in_the_package_fit_the_presets_that_name_them():
    named = [p for p in PRESETS.values() if isinstance(p.backbone, SmallPaliGemma) and p.backbone.weights]
    assert [preset.preset for preset in named] == ["quick", "small"]
    assert sum(weights_file(name).stat().st_size for name in PACKAGED) < 20e6
    policy = dataclasses.replace(config_of(named[0].backbone), reconstruction_head=None).start(None)
    assert all(bool(p.isfinite().all()) for p in policy.parameters())
    for name in PACKAGED:
        config_of(StartWeights.read(name).config).start(None)


# ---------------------------------------------------------------- the table


def test_looking_is_the_saliency_that_a_mask_is_made_of():
    backbone = TINY.build().eval()
    images = IMAGES.permute(0, 2, 3, 1).numpy()
    texts = ["the plate", "the black bowl", "a ramekin", "the bowl"]
    assert isinstance(backbone, PaliGemmaBackbone)
    with torch.no_grad():
        features = backbone(PolicyInput(IMAGES, texts), attention="instruction")
        expected = MEAN(features)
    np.testing.assert_allclose(words.looking(backbone)(images, texts), expected.numpy(), atol=1e-7)


def test_report_has_every_source_and_control_with_its_count(file, tmp_path):
    train, test = small_scenes(12), small_scenes(5)
    tensors, facts = load_tensors(file)
    facts["backbone"] |= {"wrist": True, "proprio": "gripper"}  # a scene has neither: the same weights without them
    save_tensors(wide := tmp_path / "wrist.safetensors", tensors, **facts)
    tables = words.measure_words([str(file), str(wide)], train, test, tmp_path)
    rows = json.loads((tmp_path / "words.json").read_text())["rows"]
    everywhere = [row for row in rows if row["arenas"] == words.EVERYWHERE]
    whose = ["mean", "wrong word", "mean map", "words", "heads", "sinks", "landmark"]
    whose += [str(wide), "random weights", "centre prior"]
    assert [row["whose"] for row in everywhere] == 2 * whose
    asked = len([q for q in word_questions.questions(test) if q.alike < 0])
    for row in everywhere:
        if row["whose"] == "landmark":
            assert {"distinguished_by_things", "distinguished_held_out"} & row["scores"].keys()
            continue
        named = row["scores"]["named"]
        assert named["questions"] == asked
        assert 0 <= named["low"] <= named["mean"] <= named["high"] <= 1
    controls = {row["whose"]: row["scores"] for row in everywhere}
    assert controls["mean"] == controls[str(wide)]  # the same weights
    assert controls["random weights"] != controls["mean"]
    assert controls["centre prior"]["aid"]["mean"] == pytest.approx(0, abs=1e-6)  # it knows no words
    assert controls["mean map"]["aid"]["mean"] == pytest.approx(0, abs=1e-6)
    assert "## Where words look" in (tmp_path / "words.md").read_text()
    assert (tmp_path / "words.png").read_bytes().startswith(b"\x89PNG")
    assert len(tables) == 2


def test_the_wrong_word_is_judged_as_if_it_were_the_right_one(file, monkeypatch):
    """A model that always looks at what its sentence names wins every name and, told the wrong one, none."""
    test = small_scenes(5)
    covered = words.patch_shares(test, TINY.grid)
    by_image = {image.tobytes(): shown for image, shown in zip(test.images, covered, strict=True)}

    def oracle(_, states=None):
        def look(images, texts):
            maps = []
            for image, text in zip(images, texts, strict=True):
                first = min(
                    (text.find(noun), i)
                    for i, name in enumerate(test.instances)
                    for noun in NOUNS[object_kind(name)]
                    if noun in text
                )[1]
                maps.append(by_image[image.tobytes()][first] + 1e-3)
            return np.stack(maps) if states is None else np.stack([np.stack(maps)] * len(states))

        return look

    monkeypatch.setattr(words, "looking", oracle)
    rows = {row.whose: row for row, _ in words.compare(replace(TINY, weights=str(file)), {}, small_scenes(12), test)}
    assert rows["mean"].answers.means()["named"] == 1.0
    assert rows["wrong word"].answers.means()["named"] == 0.0
    np.testing.assert_allclose(rows["mean"].answers.aid, rows["wrong word"].answers.aid)


@pytest.mark.slow
def test_the_commands_pretrain_and_words_work_on_a_folder_of_scenes(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        rows = [[rng.uniform(-0.3, 0.3, 2) for _ in range(4)] for _ in range(6)]
        scenes_of(*rows, size=112).save(tmp_path / "scenes" / "table" / split / "0000.safetensors")
    training.pretrain(tmp_path / "scenes", tmp_path / "run", PretrainOptions(steps=2), stem="conv")
    made = tmp_path / "run" / "backbone.safetensors"
    assert str(made) in capsys.readouterr().out
    attention.words(tmp_path / "scenes", tmp_path / "words", weights=(str(made),))
    shown = " ".join(capsys.readouterr().out.split())
    assert "Where words look" in shown
    assert "centre" in shown
    assert (tmp_path / "words" / "words.json").exists()
    preset = PRESETS["quick"].changed(weights=str(made))  # the size that the command trains is that of the preset
    assert isinstance(preset.backbone, SmallPaliGemma)
    config_of(preset.backbone).start(None)
