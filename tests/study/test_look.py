"""`la-reconvla look`: the picture opens, the map is the method's own, and what is missing is said in a sentence."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import BINS, TINY
from la_reconvla.backbones.families import Opened
from la_reconvla.contracts import PolicyInput
from la_reconvla.data.image_files import read_picture
from la_reconvla.data.samples import resize
from la_reconvla.errors import UserError
from la_reconvla.method.decoder import MAEDecoder
from la_reconvla.method.saliency import saliency
from la_reconvla.randomness import seeded
from la_reconvla.robot import LIBERO_INPUTS, proprio_width
from la_reconvla.study.look import look, look_at, open_backbone
from la_reconvla.training.checkpoint import CONFIG, WEIGHTS, PolicyConfig
from la_reconvla.training.tensors import save_tensors
from tiny_models import SIZE, random_model, tokenizer

TOLD, OTHER = "pick up the black bowl", "open the drawer"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "scene.png"
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def model_in(folder: Path, name: str) -> str:
    random_model(name).save_pretrained(folder)
    tokenizer().save(str(folder / "tokenizer.json"))
    return str(folder)


def untrained_in(condition: str = "C1", head=None, **options) -> PolicyConfig:
    return PolicyConfig(
        condition=condition,
        blind=False,
        seed=0,
        backbone=dataclasses.replace(TINY, **options),
        bins=BINS,
        reconstruction_head=head,
        quality="official",
        image_size=64,
        data_hash="",
        train_starts=(),
    )


def run_in(folder: Path, condition: str = "C1", head=None, **options) -> str:
    """A finished run, without its training."""
    config = untrained_in(condition, head, **options)
    config.save(folder)
    save_tensors(folder / WEIGHTS, config.build().state_dict(), steps=1)
    return str(folder)


@pytest.mark.parametrize("name", ["paligemma2", "smolvlm", "mllama", "siglip"])
def test_the_map_of_a_model_is_the_saliency_of_its_features(tmp_path, picture, name):
    source, out = model_in(tmp_path / "model", name), tmp_path / "map.png"
    lines = look(source, picture, TOLD, out, against=OTHER)
    with seeded(1, "queries"):  # the map must not depend on what is new in the backbone
        backbone = Opened(source).build()
    image = resize(read_picture(picture)[None], SIZE)[0]
    found = look_at(backbone, Opened(source), image, TOLD)
    features = backbone(PolicyInput(torch.from_numpy(image).permute(2, 0, 1)[None], [TOLD]), attention="instruction")
    expected = saliency(features.attention, features.token_mask)[0].numpy()
    np.testing.assert_allclose(found.saliency, expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found.heads.mean((0, 1)), expected, rtol=1e-4, atol=1e-6)
    best = np.unravel_index(expected.argmax(), (4, 4))
    assert f"({best[0]}, {best[1]}) {expected.max():.4f}" in lines[3]
    assert f"{expected.sum():.3f}" in lines[2]
    assert lines[0] == ("channel: image self attention" if name == "siglip" else "channel: language")
    apart = float(lines[-2].rpartition(" ")[2])
    assert (apart == 0) == (name == "siglip"), "another instruction, another map; but not in the fallback"
    assert lines[-1] == str(out)
    with Image.open(out) as drawn:
        assert drawn.format == "PNG"
        assert min(drawn.size) > 100


def test_every_head_has_a_place_in_the_grid(tmp_path, picture):
    source = model_in(tmp_path / "model", "llava")
    sizes = []
    for layers in (1, 3):
        out = tmp_path / f"{layers}.png"
        lines = look(source, picture, TOLD, out, per_head=True, layers=layers)
        assert f"layers {', '.join(map(str, range(4 - layers, 4)))}, 4 heads, 4 x 4 patches" in lines
        with Image.open(out) as drawn:
            sizes.append(drawn.size)
    assert sizes[0][0] == sizes[1][0], "as many heads"
    assert sizes[0][1] < sizes[1][1], "more layers"


@pytest.mark.parametrize("fit", ["squeeze", "pad"])
@pytest.mark.parametrize("options", [{}, {"wrist": True, "proprio": "all"}])
def test_a_run_is_looked_at_too(tmp_path, picture, options, fit):
    """It is shown the picture as it was trained to see pictures that are not square."""
    source, out = run_in(tmp_path / "run", **options), tmp_path / "map.png"
    inputs = dataclasses.replace(LIBERO_INPUTS, fit=fit)
    (tmp_path / "run" / CONFIG).unlink()
    dataclasses.replace(untrained_in(**options), inputs=inputs).save(tmp_path / "run")
    lines = look(source, picture, TOLD, out, device="cpu")
    backbone, *_ = open_backbone(source, None)
    image = torch.from_numpy(resize(read_picture(picture)[None], TINY.image_size, fit)).permute(0, 3, 1, 2)
    given = {"wrist": torch.full_like(image, 128), "proprio": torch.zeros(1, proprio_width("all"))} if options else {}
    with torch.no_grad():
        features = backbone(PolicyInput(image, [TOLD], **given), attention="instruction")
    assert f"{saliency(features.attention, features.token_mask).sum():.3f}" in lines[2]
    assert out.exists()
    with pytest.raises(UserError, match="leave --layers out"):
        look(source, picture, TOLD, out, layers=2)


@pytest.mark.parametrize("options", [{}, {"wrist": True, "proprio": "all"}])
def test_a_run_with_a_decoder_shows_image_attention_mask_and_reconstruction(tmp_path, picture, options):
    head = MAEDecoder(depth=1, width=32, attention_heads=4)
    shown = {}
    for name, arm, decoder in (("with", "C4", head), ("shared", "C4", None), ("alone", "C1", None)):
        look(run_in(tmp_path / name, arm, decoder, **options), picture, TOLD, tmp_path / f"{name}.png", device="cpu")
        with Image.open(tmp_path / f"{name}.png") as drawn:
            shown[name] = np.asarray(drawn.convert("RGB")).astype(int)
    assert shown["with"].shape[1] > 1.8 * shown["alone"].shape[1] == 1.8 * shown["shared"].shape[1], "four columns, two"
    grey = (abs(shown["with"] - 128) <= 1).all(-1)
    third = grey[:, grey.shape[1] // 2 : grey.shape[1] * 3 // 4].mean()
    assert 0.1 < third < 0.25, "a quarter of the patches of the third picture is hidden"


def test_what_is_missing_is_said_in_a_sentence(tmp_path, picture):
    out, source = tmp_path / "map.png", run_in(tmp_path / "run")
    with pytest.raises(UserError, match=r"nothing\.png does not exist"):
        look(source, tmp_path / "nothing.png", TOLD, out)
    with pytest.raises(UserError, match="no folder here and no repository on the hub"):
        look("./nowhere", picture, TOLD, out)
    with pytest.raises(UserError, match=r"has no config\.json"):
        look(str(tmp_path), picture, TOLD, out)
    with pytest.raises(UserError, match=r"ends in \.png"):
        look(source, picture, TOLD, tmp_path / "map.jpg")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(UserError, match="is no picture that can be read"):
        look(source, tmp_path / "text.png", TOLD, out)
    with pytest.raises(UserError, match="saliency_layers must be 1 to 4"):
        look(model_in(tmp_path / "model", "siglip"), picture, TOLD, out, layers=9)
    assert not out.exists()


def test_the_ten_lines_of_the_documentation_run(tmp_path):
    page = (Path(__file__).parents[2] / "docs/attention.md").read_text(encoding="utf-8")
    code = page.partition("```python\n")[2].partition("```")[0]
    source = model_in(tmp_path, "smolvlm")
    assert code.count("HuggingFaceTB/SmolVLM-256M-Instruct") == 1
    names: dict = {}
    exec(code.replace("HuggingFaceTB/SmolVLM-256M-Instruct", source), names)
    assert names["where"].shape == (4, 4)
    assert 0 < names["where"].sum() <= 1
