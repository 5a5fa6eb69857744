"""Does LeRobot read, train on and aggregate what this package writes, and does this package read what LeRobot writes?

`make test-lerobot` runs it. LeRobot has an environment of its own, as its pins and ours do not fit together: this file
is run by our Python, and runs itself by LeRobot's for the half that needs it.

    python scripts/check_lerobot.py LEROBOT_PYTHON
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

CAMERAS = ("observation.images.main", "observation.images.wrist")
WORDS = ("push the red block", "open the drawer")
RATE, EPISODES, STEPS, SIZE = 10, 4, 12, (48, 64)


def picture(episode: int, step: int, camera: int) -> np.ndarray:
    """What a camera saw."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    colours = columns * 3 + step * 5, rows * 4 + episode * 20, (rows + columns) * 2 * (camera + 1)
    return np.stack(colours, -1).astype(np.uint8)


def numbers(episode: int) -> tuple[np.ndarray, np.ndarray]:
    """Actions, the last one binary, and states."""
    rng = np.random.default_rng(episode)
    actions = rng.normal(size=(STEPS, 3)).astype(np.float32)
    actions[:, 2] = np.where(np.arange(STEPS) > 6, 1, -1)
    return actions, rng.normal(size=(STEPS, 5)).astype(np.float32)


# ---------------------------------------------------------------- run by LeRobot's Python


def there(folder: Path, kinds: list[str]) -> None:
    """Read, train on and aggregate our sets ``ours-KIND`` and ``more-KIND``; write sets of LeRobot's own."""
    for kind in kinds:
        dump(folder / f"ours-{kind}")
        train(folder / f"ours-{kind}", folder / f"run-{kind}")
        aggregate(folder, kind)
        dump(folder / f"both-{kind}")
    for kind in ("images", "videos"):
        write(folder / f"theirs-{kind}", videos=kind == "videos")
        dump(folder / f"theirs-{kind}")


def dump(root: Path) -> None:
    """All that LeRobot reads of a set, beside it."""
    from lerobot.datasets import LeRobotDataset

    read = LeRobotDataset("local/set", root=root, video_backend="pyav")
    frames = [read[index] for index in range(len(read))]
    arrays = {key: np.stack([frame[key].numpy() for frame in frames]) for key in ("action", "observation.state")}
    for key in CAMERAS:
        every = np.stack([frame[key].permute(1, 2, 0).numpy() for frame in frames])
        arrays[key] = (every * 255).round().astype(np.uint8)
    arrays["task"] = np.array([frame["task"] for frame in frames])
    arrays["episode"] = np.array([int(frame["episode_index"]) for frame in frames])
    np.savez(root.with_suffix(".npz"), **arrays)


def train(root: Path, out: Path) -> None:
    """Two steps of a policy of LeRobot's."""
    options = {
        "policy.type": "act",
        "policy.push_to_hub": "false",
        "policy.device": "cpu",
        "policy.pretrained_backbone_weights": "null",
        "policy.chunk_size": 4,
        "policy.n_action_steps": 4,
        "policy.dim_model": 64,
        "policy.n_heads": 2,
        "policy.dim_feedforward": 64,
        "dataset.repo_id": "local/set",
        "dataset.root": root,
        "dataset.video_backend": "pyav",
        "steps": 2,
        "batch_size": 2,
        "num_workers": 0,
        "output_dir": out,
        "wandb.enable": "false",
    }
    command = Path(sys.executable).with_name("lerobot-train")
    subprocess.run([command, *(f"--{name}={value}" for name, value in options.items())], check=True)


def aggregate(folder: Path, kind: str) -> None:
    """Two of our sets as one."""
    from lerobot.datasets.aggregate import aggregate_datasets

    roots = [folder / f"ours-{kind}", folder / f"more-{kind}"]
    aggregate_datasets(["local/a", "local/b"], "local/both", roots, folder / f"both-{kind}")


def write(root: Path, videos: bool) -> None:
    """A set of LeRobot's own."""
    from lerobot.datasets import LeRobotDataset

    names = ["height", "width", "channel"]
    features = {key: {"dtype": "video" if videos else "image", "shape": (*SIZE, 3), "names": names} for key in CAMERAS}
    features["observation.state"] = {"dtype": "float32", "shape": (5,), "names": [f"joint {n}" for n in range(5)]}
    features["action"] = {"dtype": "float32", "shape": (3,), "names": ["x", "y", "grip"]}
    made = LeRobotDataset.create("local/set", fps=RATE, features=features, root=root, use_videos=videos)
    for episode in range(EPISODES):
        actions, states = numbers(episode)
        for step in range(STEPS):
            pictures = {key: picture(episode, step, camera) for camera, key in enumerate(CAMERAS)}
            row = {"observation.state": states[step], "action": actions[step], "task": WORDS[episode % 2]}
            made.add_frame({**pictures, **row})
        made.save_episode()
    made.finalize()


# ---------------------------------------------------------------- run by our Python


def import_ours(folder: Path, name: str, first: int) -> Path:
    """Demonstrations in LIBERO's layout, by ``data import``."""
    from PIL import Image

    from la_reconvla.data.importing import Import, import_episodes

    for episode in range(first, first + EPISODES):
        here = folder / f"episodes-{name}" / f"{episode:02d}"
        actions, states = numbers(episode)
        here.mkdir(parents=True)
        np.savetxt(here / "actions.csv", actions, delimiter=",", header="x,y,grip", comments="")
        np.save(here / "state.npy", states)
        (here / "instruction.txt").write_text(WORDS[episode % 2], encoding="utf-8")
        for camera, key in enumerate(("main", "wrist")):
            (here / key).mkdir()
            for step in range(STEPS):
                Image.fromarray(picture(episode, step, camera)).save(here / key / f"{step}.png")
    import_episodes(Import(folder / f"episodes-{name}", folder / f"demos-{name}", RATE, "upright", binary=("grip",)))
    return folder / f"demos-{name}"


def same(root: Path) -> None:
    """What this package reads of a set is what LeRobot read of it, bit by bit."""
    from la_reconvla.data.hdf5 import open_demonstrations

    opened, read = open_demonstrations(root), np.load(root.with_suffix(".npz"))
    for number, episode in enumerate(opened.episodes):
        mine = read["episode"] == number
        np.testing.assert_array_equal(episode.actions, read["action"][mine])
        np.testing.assert_array_equal(episode.proprio(), read["observation.state"][mine])
        assert set(read["task"][mine]) == {episode.instruction}
        for key in CAMERAS:
            np.testing.assert_array_equal(episode.pictures(key.rsplit(".")[-1]), read[key][mine])
    print(f"{root.name}: {len(opened.episodes)} episodes, equal", flush=True)


def main(lerobot: str) -> None:
    """Write ours, let LeRobot work, compare."""
    from la_reconvla.data.converting import convert

    kinds = ("png", "av1", "h264")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, first in (("ours", 0), ("more", EPISODES)):
            demos = import_ours(folder, name, first)
            for kind in kinds:
                convert(demos, folder / f"{name}-{kind}", kind)
        subprocess.run([lerobot, __file__, "--there", str(folder), *kinds], check=True)
        for kind in kinds:
            assert (folder / f"run-{kind}/checkpoints/last").exists()
            same(folder / f"ours-{kind}")
            same(folder / f"both-{kind}")
        for kind in ("images", "videos"):
            same(folder / f"theirs-{kind}")


if __name__ == "__main__":
    if sys.argv[1] == "--there":
        there(Path(sys.argv[2]), sys.argv[3:])
    else:
        main(sys.argv[1])
