"""Folders as LeRobot writes them, made without LeRobot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from helpers import HEAD, TINY, untrained
from la_reconvla.conditions import C4
from la_reconvla.lerobot.sharing import to_lerobot
from la_reconvla.training.checkpoint import WEIGHTS, PolicyConfig, kept
from la_reconvla.training.tensors import save_tensors


def make_run(folder: Path, backbone: Any = TINY, **fields: Any) -> PolicyConfig:
    """A finished run of C4 with random weights."""
    arm = C4.with_reconstruction_head(HEAD)
    config = untrained(arm, backbone, **{"seed": 3, **fields})
    config.save(folder)
    save_tensors(folder / WEIGHTS, kept(config.build()), steps=7)
    return config


def make_folder(path: Path, backbone: Any = TINY, **fields: Any) -> Path:
    """The same as a policy of LeRobot's."""
    make_run(path.with_name(f"{path.name}-run"), backbone, **fields)
    return to_lerobot(path.with_name(f"{path.name}-run"), path)


def change(path: Path, **fields: Any) -> None:
    """Other values in a JSON file; None takes one out."""
    content = {**json.loads(path.read_text(encoding="utf-8")), **fields}
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}), encoding="utf-8")
