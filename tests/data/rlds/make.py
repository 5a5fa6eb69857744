"""Writes the datasets of this folder with TensorFlow Datasets itself, and what it reads of them; see README.md."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

SIZE = 32
WORDS = ("put the carrot on the plate", "", "open the drawer", "put the carrot on the plate")
F = tfds.features


def picture(episode: int, step: int, camera: int) -> np.ndarray:
    """Smooth, so that JPEG keeps it nearly."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    shown = [columns * 4 + step * 6, rows * 4 + episode * 20, rows * 2 + columns * 2 + camera * 30]
    return np.stack(shown, axis=-1).clip(0, 255).astype(np.uint8)


def image(kind: str = "jpeg") -> Any:
    return F.Image(shape=(SIZE, SIZE, 3), dtype=np.uint8, encoding_format=kind)


def steps(observation: dict[str, Any]) -> Any:
    flags = {name: F.Scalar(np.bool_) for name in ("is_first", "is_last", "is_terminal")}
    return F.Dataset(
        {
            "observation": observation,
            "action": F.Tensor(shape=(7,), dtype=np.float32),
            "discount": F.Scalar(np.float32),
            "reward": F.Scalar(np.float32),
            "language_instruction": F.Text(),
            "language_embedding": F.Tensor(shape=(16,), dtype=np.float32),
            **flags,
        }
    )


def step(number: int, length: int, words: str) -> dict[str, Any]:
    last = number == length - 1
    return {
        "discount": 1.0,
        "reward": float(last),
        "is_first": number == 0,
        "is_last": last,
        "is_terminal": last,
        "language_instruction": words,
        "language_embedding": np.zeros(16, np.float32),
    }


class BridgeOrig(tfds.core.GeneratorBasedBuilder):
    """Names and shapes of the release, but smaller pictures."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> Any:
        observation = {f"image_{n}": image() for n in range(4)}
        observation["depth_0"] = F.Image(shape=(SIZE, SIZE, 1), dtype=np.uint16, encoding_format="png")
        observation["state"] = F.Tensor(shape=(7,), dtype=np.float32)
        flags = {f"has_image_{n}": F.Scalar(np.bool_) for n in range(4)}
        flags |= {"has_language": F.Scalar(np.bool_), "has_depth_0": F.Scalar(np.bool_)}
        metadata = F.FeaturesDict({"episode_id": F.Scalar(np.int32), "file_path": F.Text(), **flags})
        return tfds.core.DatasetInfo(
            builder=self, features=F.FeaturesDict({"steps": steps(observation), "episode_metadata": metadata})
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {"train": self._generate_examples(range(4)), "val": self._generate_examples(range(4, 6))}

    def _generate_examples(self, numbers: Any) -> Any:
        for number in numbers:
            draws, length, words = np.random.default_rng(number), 6 + number if number < 4 else 3, WORDS[number % 4]
            states = np.cumsum(draws.normal(0, 0.02, (length, 7)), axis=0).astype(np.float32)
            actions = draws.normal(0, 0.02, (length, 7)).astype(np.float32)
            actions[:, 6] = np.resize([1, 1, 0.6, 0.2, 0, 0.5], length)
            actions[0] = 0
            told = []
            for at in range(length):
                shown = {f"image_{n}": picture(number, at, n) * (n != 2) for n in range(4)}
                shown["depth_0"] = np.full((SIZE, SIZE, 1), 1000 + at, np.uint16)
                told.append(
                    {**step(at, length, words), "observation": {**shown, "state": states[at]}, "action": actions[at]}
                )
            metadata = {"episode_id": number, "file_path": f"traj{number}", "has_language": bool(words)}
            metadata |= {"has_depth_0": True, **{f"has_image_{n}": n != 2 for n in range(4)}}
            yield f"traj{number}", {"steps": told, "episode_metadata": metadata}


class LiberoGoalNoNoops(tfds.core.GeneratorBasedBuilder):
    """Names and shapes of OpenVLA's release, but smaller pictures, as PNG."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> Any:
        observation = {"image": image("png"), "wrist_image": image("png")}
        observation |= {name: F.Tensor(shape=(n,), dtype=np.float32) for name, n in (("state", 8), ("joint_state", 7))}
        metadata = F.FeaturesDict({"file_path": F.Text()})
        return tfds.core.DatasetInfo(
            builder=self, features=F.FeaturesDict({"steps": steps(observation), "episode_metadata": metadata})
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Any:
        for number in range(4):
            draws, length = np.random.default_rng(100 + number), 5 + number
            actions = draws.uniform(-1, 1, (length, 7)).astype(np.float32)
            actions[:, 6] = np.resize([-1, -1, 1], length)
            told = []
            for at in range(length):
                observed = {"image": picture(number, at, 0), "wrist_image": picture(number, at, 1)}
                observed |= {n: draws.normal(size=w).astype(np.float32) for n, w in (("state", 8), ("joint_state", 7))}
                words = ("open the middle drawer of the cabinet", "turn on the stove")[number % 2]
                told.append({**step(at, length, words), "observation": observed, "action": actions[at]})
            yield number, {"steps": told, "episode_metadata": {"file_path": f"demo_{number}"}}


def written(kind: Any, root: Path, shards: int) -> None:
    builder = kind(data_dir=root)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=shards))
    found: dict[str, np.ndarray] = {}
    order = tfds.ReadConfig(interleave_cycle_length=1)
    for number, episode in enumerate(builder.as_dataset(split="train", read_config=order)):
        told = list(episode["steps"].as_numpy_iterator())
        found[f"{number}/action"] = np.stack([one["action"] for one in told])
        found[f"{number}/state"] = np.stack([one["observation"]["state"] for one in told])
        found[f"{number}/words"] = np.array(told[0]["language_instruction"].decode())
        for name in ("image_0", "image_3", "image", "wrist_image"):
            if name in told[0]["observation"]:
                found[f"{number}/{name}"] = told[1]["observation"][name]
    np.savez_compressed(root / f"{builder.name}.npz", **found)  # pyright: ignore[reportArgumentType]


if __name__ == "__main__":
    tf.random.set_seed(0)
    here = Path(sys.argv[1])
    written(BridgeOrig, here, 2)
    written(LiberoGoalNoNoops, here, 1)
