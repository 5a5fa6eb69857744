"""A folder of a model that somebody sent is data: its code is never run, and its weights are safetensors or nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from la_reconvla.backbones.families import architecture_of, open_model
from la_reconvla.backbones.paligemma import SmallPaliGemma
from la_reconvla.backbones.pretrained import Pretrained
from la_reconvla.conditions import C1
from la_reconvla.data.detector import _load_detector
from la_reconvla.errors import UserError
from la_reconvla.method.actions import ActionBins
from la_reconvla.training.checkpoint import CONFIG, PolicyConfig
from tiny_models import random_model, tokenizer

READERS: dict[str, Callable[[str], object]] = {
    "look": architecture_of,
    "train": lambda source: Pretrained(source).geometry,
    "boxes": lambda source: _load_detector(source, None, "cpu"),
}


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_code_beside_a_model_is_never_run(
    reader: Callable[[str], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also not where the user says yes to whatever a library asks."""
    ran = tmp_path / "ran"
    config = {"model_type": "sent", "auto_map": {"AutoConfig": "sent.SentConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "sent.py").write_text(
        f"from transformers import PretrainedConfig\nopen({str(ran)!r}, 'w').close()\n"
        "class SentConfig(PretrainedConfig):\n    model_type = 'sent'\n"
    )
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(UserError):
        reader(str(tmp_path))
    assert not ran.exists()


def test_weights_in_another_format_are_not_read(tmp_path: Path) -> None:
    model = random_model("siglip")
    model.save_pretrained(tmp_path)
    tokenizer().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be loaded"):
        open_model(str(tmp_path))


def test_a_class_that_a_run_names_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though Python would find it: it is refused by its name, wherever in the file that stands."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "sent_parts.py").write_text("raise SystemExit('imported')\n")
    bins = ActionBins((-1.0,) * 7, (1.0,) * 7)
    given = {"bins": bins, "quality": "fast", "image_size": 32, "data_hash": "", "train_starts": ()}
    PolicyConfig.of(C1, seed=0, backbone=SmallPaliGemma(image_size=32, patch=8), **given).save(tmp_path)
    saved = json.loads((tmp_path / CONFIG).read_text())
    for name in ("sent_parts.Backbone", "os.system", "builtins.eval"):
        for changed in (
            {**saved, "backbone": {"kind": name}},
            {**saved, "bins": {**saved["bins"], "low": [{"kind": name}]}},
        ):
            (tmp_path / CONFIG).write_text(json.dumps(changed))
            with pytest.raises(UserError, match=f"'{name}' is a class from outside"):
                PolicyConfig.load(tmp_path)
    assert "sent_parts" not in sys.modules
