"""A study folder with films that are known pixel by pixel: two starts, two arms, no simulator."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from test_results import study_results

from la_reconvla.analysis.film_data import FilmData, Patch, encoded
from la_reconvla.analysis.results import Video
from la_reconvla.drawing import write_video
from la_reconvla.storage import write_json

SIZE, GRID, RATE = 64, (4, 4), 5.0
STARTS = ("suite/0/wide/test/0", "suite/0/wide/test/1")
SUCCESS = {(STARTS[0], "C1"): False, (STARTS[0], "C4"): True, (STARTS[1], "C1"): False, (STARTS[1], "C4"): False}
COUNTS = {"C1": 11, "C4": 7}  # pictures; the arms end at different times


def target(picture: int) -> np.ndarray:
    """The target moves right by two pixels a picture."""
    mask = np.zeros((SIZE, SIZE), bool)
    mask[20:30, 10 + 2 * picture : 22 + 2 * picture] = True
    mask[20, 10 + 2 * picture] = False  # not a rectangle
    return mask


def picture(number: int, arm: str) -> np.ndarray:
    """Grey that rises with the picture's number; the target is green."""
    frame = np.full((SIZE, SIZE, 3), 20 + 18 * number + (60 if arm == "C4" else 0), np.uint8)
    frame[target(number)] = (20, 160, 20)
    return frame


def looks(arm: str) -> np.ndarray:
    """Two chunks: all attention on one patch, then equal shares; C4's is sharper."""
    one = np.full(16, 1.0)
    one[5] = 40.0 if arm == "C4" else 9.0
    return np.stack([one, np.ones(16)])


def film_data(arm: str, success: bool) -> FilmData:
    count = COUNTS[arm]
    text, most = encoded(looks(arm))
    steps = tuple(4 * i for i in range(count))
    return FilmData(
        source="x", size=SIZE, rate=RATE, steps=steps, grid=GRID, looks=text, most=most,
        shown=tuple(int(i >= 4) for i in range(count)), outlines=tuple(Patch.of(target(i)) for i in range(count)),
        distance=tuple(round(0.3 - 0.02 * i, 4) for i in range(count)),
        opening=tuple(0.08 - 0.005 * i for i in range(count)),
        stages={"approached": 8, "grasped": 20} if success else {"approached": 8},
        actions=tuple((0.1 * i, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0) for i in range(steps[-1])), success=success,
    )  # fmt: skip


def write_films(folder: Path) -> list[Video]:
    """Films of both arms on both starts below ``films/`` of `folder`."""
    videos = []
    for number, start in enumerate(STARTS):
        for arm in COUNTS:
            name, success = f"films/{arm}_{number}", SUCCESS[start, arm]
            write_video(folder / f"{name}.mp4", [picture(i, arm) for i in range(COUNTS[arm])], fps=int(RATE))
            write_json(folder / f"{name}.json", film_data(arm, success).to_json())
            reason = "nearest miss" if number else "the arms disagree"
            videos.append(
                Video(f"{name}.mp4", f"{arm}: lift it", success, arm, start, "lift it", f"{name}.json", reason)
            )
    return videos


def write_filmed_study(folder: Path) -> Path:
    """A study's folder with results and films."""
    results = replace(study_results(), videos=tuple(write_films(folder)))
    write_json(folder / "results.json", results)
    return folder
