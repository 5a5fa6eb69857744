"""Layouts of demonstrations that this version knows by sight and does not read.

A reader that arrives takes its line out of `LAYOUTS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Layout:
    """A kind of folder.

    Attributes:
        name: as its users say.
        signs: patterns of files below the folder; one that is there is enough.
        instead: what helps, an imperative.
    """

    name: str
    signs: tuple[str, ...]
    instead: str


_READ = "give a folder of LIBERO's HDF5 files (*_demo.hdf5), a LeRobotDataset, or a dataset of CALVIN"
LAYOUTS = (
    Layout(
        "a dataset in RLDS (TensorFlow Datasets)",
        (*("*/" * depth + name for depth in range(3) for name in ("dataset_info.json", "*.tfrecord*")),),
        f"{_READ}; those that OpenVLA's RLDS data were made from are its script's output, and are read",
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
        for sign in layout.signs:
            if (found := next(folder.glob(sign), None)) is not None:
                here = found.relative_to(folder)
                return f"{folder} is {layout.name} ({here}), which is not read by this version: {layout.instead}"
    return None
