"""Layouts of demonstrations that this version knows by sight and does not read.

A reader that arrives takes its line out of `LAYOUTS`.
"""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass
from pathlib import Path, PurePath

from la_reconvla.data.rlds_layout import FEATURES, INFO

FOLDERS = 2000  # that are looked into for files at any depth


@dataclass(frozen=True)
class Layout:
    """A kind of folder.

    Attributes:
        name: as its users say.
        signs: patterns of files below the folder; one that is there is enough.
        instead: what helps, an imperative.
        deep: patterns of the last parts of a file's path, wherever below the folder it is.
    """

    name: str
    signs: tuple[str, ...]
    instead: str
    deep: tuple[str, ...] = ()


LAYOUTS = (
    Layout(
        "a folder of datasets in RLDS (TensorFlow Datasets)",
        (f"*/{INFO}", f"*/*/{INFO}"),
        f"give the folder of one of them, which holds {INFO}",
    ),
    Layout(
        "a dataset in RLDS (TensorFlow Datasets) without what says of it what it is",
        tuple("*/" * depth + "*.tfrecord*" for depth in range(3)),
        f"download {INFO} and {FEATURES} to the folder of these files",
    ),
    Layout(
        "a raw release of BridgeData V2, which is pickled",
        (),
        "unpickling runs whatever code a file holds. Download the same data in RLDS, bridge_dataset/1.0.0 below "
        "data/tfds of the release, which OpenVLA calls bridge_orig",
        deep=("policy_out.pkl", "obs_dict.pkl", "train/out.npy", "val/out.npy"),
    ),
    Layout(
        "episodes of one's own",
        ("*/actions.csv", "*/actions.npy"),
        "make demonstrations of them with `la-reconvla data import`",
    ),
)


def explained(folder: Path) -> str | None:
    """What to say of a folder in one of `LAYOUTS`; None for any other."""
    for layout in LAYOUTS:
        found = next(itertools.chain.from_iterable(map(folder.glob, layout.signs)), None) or _below(folder, layout.deep)
        if found is not None:
            here = found.relative_to(folder)
            return f"{folder} is {layout.name} ({here}), which is not read by this version: {layout.instead}"
    return None


def _below(folder: Path, patterns: tuple[str, ...]) -> Path | None:
    """The first such file in some thousand folders: whatever the folder is, nobody waits long for a message."""
    for root, _, files in itertools.islice(os.walk(folder), FOLDERS if patterns else 0):
        for pattern in patterns:
            path = Path(root, PurePath(pattern).name)
            if path.name in files and path.match(pattern):
                return path
    return None
