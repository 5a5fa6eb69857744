"""Layouts of demonstrations that this version knows by sight and does not read.

A reader that arrives takes its line out of `LAYOUTS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from la_reconvla.data.rlds_layout import FEATURES, INFO


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


_READ = "give a folder of LIBERO's HDF5 files (*_demo.hdf5), a LeRobotDataset, or a dataset in RLDS"
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
        tuple("*/" * depth + name for depth in range(11) for name in ("policy_out.pkl", "obs_dict.pkl", "out.npy")),
        "unpickling runs whatever code a file holds. Download the same data in RLDS, bridge_dataset/1.0.0 below "
        "data/tfds of the release, which OpenVLA calls bridge_orig",
    ),
    Layout(
        "a dataset of CALVIN",
        (*("*/" * depth + name for depth in range(2) for name in ("episode_*.npz", "lang_annotations")),),
        f"{_READ}; CALVIN's own actions and cameras are other ones",
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
