"""A data set in CALVIN's layout, made here: the real ones have 1.3 to 656 GB."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

INSTRUCTIONS = {"open_drawer": "pull the handle", "close_drawer": "push the handle", "lift_red_block_table": "lift it"}
LENGTH, FIRST = 6, 40


def shown(number: int, camera: str) -> np.ndarray:
    """What a camera saw in a frame."""
    size = {"static": 200, "gripper": 84}[camera]
    rows, columns = np.mgrid[:size, :size]
    return np.stack([(rows + number) % 256, (columns * 2) % 256, rows * 0 + 7 * number % 256], -1).astype(np.uint8)


def frame(number: int) -> dict[str, Any]:
    """A frame as its file holds it; the drawer opens and closes with the segments."""
    rng = np.random.default_rng(number)
    segment, step = divmod(number - FIRST, LENGTH)
    scene = np.zeros(24)
    scene[1] = {0: 0.2 * step / (LENGTH - 1), 1: 0.2 - 0.2 * step / (LENGTH - 1)}.get(segment % 3, 0.0)
    action = np.append(rng.uniform(-1, 1, 6), 1.0 if step < 3 else -1.0)
    return {
        "rgb_static": shown(number, "static"),
        "rgb_gripper": shown(number, "gripper"),
        "rgb_tactile": np.zeros((4, 3, 6), np.uint8),
        "depth_static": np.zeros((4, 4), np.float32),
        "robot_obs": rng.normal(size=15),
        "scene_obs": scene,
        "actions": rng.normal(size=7),
        "rel_actions": action,
    }


def annotations(segments: int) -> dict[str, Any]:
    """As ``auto_lang_ann.npy`` holds them."""
    tasks = [list(INSTRUCTIONS)[number % 3] for number in range(segments)]
    ends = [(FIRST + LENGTH * n, FIRST + LENGTH * (n + 1) - 1) for n in range(segments)]
    said = [INSTRUCTIONS[task] for task in tasks]
    embedding = np.zeros((segments, 1, 384), np.float32)
    return {"language": {"ann": said, "task": tasks, "emb": embedding}, "info": {"episodes": [], "indx": ends}}


def write(root: Path, segments: int = 12, split: str = "training") -> Path:
    """Write a split; returns its folder."""
    folder = root / split
    (folder / "lang_annotations").mkdir(parents=True)
    np.save(folder / "lang_annotations/auto_lang_ann.npy", annotations(segments), allow_pickle=True)
    last = FIRST + LENGTH * segments - 1
    np.save(folder / "ep_start_end_ids.npy", np.array([[FIRST, last]]))
    for number in range(FIRST, last + 1):
        np.savez_compressed(folder / f"episode_{number:07d}.npz", **frame(number))
    return folder
