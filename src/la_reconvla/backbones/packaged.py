"""Weights of the small backbone that come with this package: `docs/base.md` and `docs/words.md`. Light to import."""

from __future__ import annotations

from pathlib import Path

PACKAGED = ("base", "words-7x7")


def weights_file(name: str) -> Path:
    """The file of `la_reconvla.backbones.paligemma.SmallPaliGemma.weights`."""
    return Path(__file__).with_name(f"{name}.safetensors") if name in PACKAGED else Path(name)
