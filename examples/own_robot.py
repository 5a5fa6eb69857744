"""Your own robot, from recorded episodes to a judged comparison of arms, without a simulator: see docs/own-robot.md.

The data here are made up, six episodes of a 6-DoF arm with two cameras and a gripper, so that this runs in a minute or
two. With your own, leave `record` out and begin with the commands.

    python examples/own_robot.py my_robot
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

JOINTS = tuple(f"joint_{number}" for number in range(1, 7))
COLOURS = {"red": (200, 40, 40), "blue": (40, 60, 200)}
STEPS, ROWS, COLUMNS = 10, 48, 64  # of an episode, and of a picture: it is not square


def record(folder: Path, number: int) -> None:
    """Write one episode: the arm turns its base towards the block that the instruction names, then closes."""
    rng = np.random.default_rng(number)
    colour = list(COLOURS)[number % 2]
    places = rng.permutation([12, 44])  # columns of the red and of the blue block
    way = (places[number % 2] - COLUMNS / 2) / COLUMNS  # degrees a step
    actions = np.zeros((STEPS, 7))
    actions[:, 0] = way + rng.normal(0, 0.01, STEPS)
    actions[:, 1:5] = rng.normal(0, 0.05, (STEPS, 4))
    actions[-3:, 6] = 1  # 0 is open, 1 is closed; joint_6 never moves
    state = np.concatenate([np.cumsum(actions[:, :6], axis=0), actions[:, 6:]], axis=1)
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("actions", actions), ("state", state)):
        np.savetxt(folder / f"{name}.csv", rows, delimiter=",", header=",".join((*JOINTS, "gripper")), comments="")
    (folder / "instruction.txt").write_text(f"reach for the {colour} block\n", encoding="utf-8")
    for camera in ("main", "wrist"):
        (folder / camera).mkdir(exist_ok=True)
        for step in range(STEPS):
            picture = np.full((ROWS, COLUMNS, 3), 110, np.uint8)
            for place, paint in zip(places, COLOURS.values(), strict=True):
                left = place - (round(2 * state[step, 0]) if camera == "wrist" else 0)
                picture[30:40, max(0, left - 5) : left + 5] = paint
            Image.fromarray(picture).save(folder / camera / f"{step:03d}.png")


def la_reconvla(*words: object) -> None:
    """Run a command of the package, as in a terminal."""
    print("$ la-reconvla", *words, flush=True)
    subprocess.run([sys.executable, "-m", "la_reconvla", *map(str, words)], check=True)


def main(folder: Path) -> None:
    """Record, import, look, train one policy, compare three arms."""
    for number in range(6):
        record(folder / "episodes" / f"{number:02d}", number)
    told = ("--rate", 10, "--orientation", "upright", "--binary", "gripper")
    la_reconvla("data", "import", folder / "episodes", "--out", folder / "demos", *told)
    la_reconvla("data", "check", folder / "demos")
    policy = ("--proprio", "all", "--wrist", "--fit", "pad")
    one = ("--demonstrations", folder / "demos", "--preset", "smoke", "--condition", "C4", "--steps", 5)
    la_reconvla("train", *one, "--out", folder / "run", "--held-out", 0, *policy)
    study = ("--demonstrations", folder / "demos", "--offline", "--conditions", "C1", "C2", "C4", "--workers", 1)
    la_reconvla("study", "run", "smoke", *study, "--out", folder / "study", "--steps", 10, *policy)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "my_robot"))
