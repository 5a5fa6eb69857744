"""What a study takes of a disk, beside what studies took, and what is downloaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from test_pretrained import save_tiny, tiny
from transformers import PaliGemmaForConditionalGeneration

from la_reconvla.backbones.pretrained import Pretrained
from la_reconvla.study.disk import disk, download
from la_reconvla.study.presets import preset


def test_the_sizes_of_the_preset_quick() -> None:
    """As one run of it left them: docs/results/quick.md."""
    needs = disk(preset("quick"), 7_545_440)
    assert needs.demonstrations == pytest.approx(22_100_198, rel=0.2)
    assert needs.weights == pytest.approx(4 * 7_539_320 + 2 * 5_485_888, rel=0.12)
    assert needs.finished - needs.tracks == pytest.approx(73_980_786, rel=0.1), "that run left no tracks"
    assert needs.records == pytest.approx(73_980_786 - 22_100_198 - 41_129_056, rel=0.25)


def test_every_part_grows_as_it_should() -> None:
    small = preset("quick").changed(wrist=False)
    needs, twice = disk(small, 1e6), disk(replace(small, demos=2 * small.demos), 1e6)
    assert twice.demonstrations == 2 * needs.demonstrations
    assert twice.pictures == 2 * needs.pictures == 2 * (2 * 12 * 22.5 * 0.85 * 3 * 112**2)
    seen = disk(small.changed(wrist=True), 1e6)
    assert seen.pictures == 2 * needs.pictures
    assert 1.5 < seen.demonstrations / needs.demonstrations < 2
    assert disk(small.changed(seeds=(0, 1, 2)), 1e6).weights == 3 * needs.weights == 18e6
    assert needs.state == 6e6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "gigabytes"), [("google/paligemma-3b-pt-224", 11.7), ("google/paligemma2-3b-pt-224", 6.1)]
)
def test_downloads_are_those_of_the_published_files(source: str, gigabytes: float) -> None:
    assert download(Pretrained(source)) == pytest.approx(1e9 * gigabytes, rel=0.01)
    assert download(Pretrained(source, lora=None)) == download(Pretrained(source)), "what trains makes no difference"


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_downloads_are_the_bytes_of_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    """A folder is downloaded by nobody; here it stands for what is on the hub."""
    folder = save_tiny(tmp_path / "float32")
    PaliGemmaForConditionalGeneration.from_pretrained(folder, dtype=dtype).save_pretrained(tmp_path / "published")
    real = sum(path.stat().st_size for path in (tmp_path / "published").glob("*.safetensors"))
    backbone = tiny(str(tmp_path / "published"))
    assert download(backbone) == 0
    monkeypatch.setattr("la_reconvla.study.disk.Path", lambda name: tmp_path / "nowhere")
    assert download(backbone) == pytest.approx(real, rel=0.1)
