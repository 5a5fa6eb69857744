"""What may go to the hub and come from it: a policy, a study, or demonstrations, each known by its files.

The same lists serve both ways, so nothing is downloaded that this package would not have uploaded. All of it is text,
tensors, pictures or demonstrations: nothing is pickled, and nothing runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from la_reconvla import layout
from la_reconvla.data.hdf5_layout import DEMO_SUFFIX
from la_reconvla.errors import UserError
from la_reconvla.training.run_folders import CONFIG, RUN_FILES, WEIGHTS

CARD = "README.md"


@dataclass(frozen=True)
class Kind:
    """One kind of folder.

    Patterns are those of `PurePosixPath.match`; one that begins with a slash is of a whole path.

    Attributes:
        name: for people.
        place: kind of repository on the hub.
        signs: a folder with all of these is of this kind.
        files: what belongs to it.
        weights: what belongs to it too, if it is asked for.
        redrawn: what is uploaded for readers of the page and never downloaded: a command draws it again.
    """

    name: str
    place: Literal["model", "dataset"]
    signs: tuple[str, ...]
    files: tuple[str, ...]
    weights: tuple[str, ...] = ()
    redrawn: tuple[str, ...] = ()


POLICY = Kind("policy", "model", (f"/{CONFIG}", f"/{WEIGHTS}"), tuple(f"/{name}" for name in RUN_FILES))
STUDY = Kind(
    "study",
    "dataset",
    (f"/{layout.STUDY}",),
    (
        *(f"/{name}" for name in (layout.STUDY, layout.RESULTS, layout.TABLES, layout.TIMES, layout.ENERGY)),
        *(CONFIG, "train.json", "metrics.jsonl", layout.EPISODES, layout.EVALUATION, layout.HELD_OUT),
        *(f"/{layout.MAPS}/*.png", f"/{layout.MAPS}/*/*.png"),
    ),
    weights=(f"/*/seed*/{WEIGHTS}",),
    redrawn=(f"/{layout.REPORT}",),
)
LEROBOT = Kind(
    "LeRobotDataset",
    "dataset",
    ("/meta/info.json",),
    (
        *("/meta/*.json", "/meta/*.jsonl", "/meta/*.parquet", "/meta/episodes/*/*.parquet"),
        *("/data/*/*.parquet", "/videos/*/*/*.mp4"),
    ),
)
DEMONSTRATIONS = Kind(
    "set of demonstrations",
    "dataset",
    (f"/*{DEMO_SUFFIX}",),
    (f"/*{DEMO_SUFFIX}", "/collection.json", "/summary.json", "/import.json"),
)
KINDS = (STUDY, POLICY, LEROBOT, DEMONSTRATIONS)


def matching(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """Those of `names` that a pattern knows; none with a hidden part, or one that leads upwards."""
    patterns = tuple(patterns)
    plain = (name for name in names if not any(part.startswith(".") for part in name.split("/")))
    return sorted(name for name in plain if any(PurePosixPath(f"/{name}").match(pattern) for pattern in patterns))


def kind_of(names: Iterable[str]) -> Kind | None:
    """The kind of a folder that holds these files, relative to it; None if it is none of ours."""
    names = list(names)
    return next((kind for kind in KINDS if all(matching(names, [sign]) for sign in kind.signs)), None)


def files_in(folder: Path) -> list[str]:
    """All files of a folder, relative to it, with slashes."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def kind_here(folder: Path) -> Kind:
    """The kind of a folder.

    Raises:
        UserError: if it is none of ours.
    """
    if (kind := kind_of(files_in(folder))) is None:
        raise UserError(
            f"{folder} is no finished run (config.json, model.safetensors), no study (study.json) and no "
            f"demonstrations (*{DEMO_SUFFIX}, or a LeRobotDataset's meta/info.json): give such a folder"
        )
    return kind


def size_text(size: float) -> str:
    """Bytes as people read them."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
