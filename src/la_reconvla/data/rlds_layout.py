"""The layout of a dataset in RLDS, as TensorFlow Datasets write it: an episode a record, its steps flattened.

::

    bridge_orig/1.0.0/dataset_info.json                               name, splits, number of episodes in each file
    bridge_orig/1.0.0/features.json                                   names, kinds and shapes of all features
    bridge_orig/1.0.0/bridge_dataset-train.tfrecord-00000-of-01024    see `la_reconvla.data.tfrecord`

    steps/action                     float32 [T a]
    steps/observation/state          float32 [T p], may be missing
    steps/observation/image_0, ...   T pictures as JPEG or PNG; the name of the camera is image_0
    steps/language_instruction       T times the words
    episode_metadata/has_image_0     0 where that camera's pictures are black; may be missing

What that format cannot say is in a file of ours beside it, `OURS`, whose fields are those of `Conventions`. For
BridgeData V2 and for OpenVLA's data of LIBERO they are known by the name of the dataset.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from la_reconvla.data.hdf5_layout import checked_cameras, checked_text
from la_reconvla.errors import UserError, unknown
from la_reconvla.robot import LIBERO_ACTIONS, ActionKind, Orientation
from la_reconvla.storage import read_json
from la_reconvla.typed_json import parse

INFO, FEATURES, OURS = "dataset_info.json", "features.json", "la_reconvla.json"
ACTION, OBSERVATION, METADATA = "steps/action", "steps/observation/", "episode_metadata/"
STATE = f"{OBSERVATION}state"
WORDS = ("steps/language_instruction", f"{OBSERVATION}natural_language_instruction")
"""Where the instruction is; the first that there is counts."""
FLOATS = ("float16", "float32", "float64")
AGAIN = "download it again"
FASTEST = 10**6  # steps a second
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
# What Python raises where a damaged file gives another kind of something.
_DAMAGE = (TypeError, KeyError, AttributeError, ValueError, IndexError, OverflowError, RecursionError)


@dataclass(frozen=True)
class Conventions:
    """How a dataset is to be read; fields as in `OURS`.

    Attributes:
        rate: control steps a second.
        orientation: how the pictures stand; they are never turned.
        action_names: of the dimensions; numbered where there are none.
        action_kinds: ``continuous`` or ``binary`` for each; by default those of two values are binary.
        libero_state: whether the state is LIBERO's.
        split: which one is read.
        drop_first_no_op: leave the first step out where its action is all zeros.
        binarise_gripper: the last dimension becomes -1 or 1, see `la_reconvla.data.rlds_steps.binarised`.
        relabel_from_states: the first six dimensions become differences of states, see
            `la_reconvla.data.rlds_steps.relabelled`.
    """

    rate: float | None = None
    orientation: Orientation = "upright"
    action_names: tuple[str, ...] = ()
    action_kinds: tuple[ActionKind, ...] = ()
    libero_state: bool = False
    split: str = "train"
    drop_first_no_op: bool = False
    binarise_gripper: bool = False
    relabel_from_states: bool = False


# Those of OpenVLA. Its gripper is 1 where it is open, LIBERO's is -1 there: by their names the two are not one space.
BRIDGE = Conventions(
    rate=5.0,
    action_names=("x", "y", "z", "roll", "pitch", "yaw", "gripper"),
    action_kinds=LIBERO_ACTIONS.kinds,
    drop_first_no_op=True,
    binarise_gripper=True,
    relabel_from_states=True,
)
LIBERO = Conventions(
    rate=20.0,
    orientation="mirrored",
    action_names=LIBERO_ACTIONS.names,
    action_kinds=LIBERO_ACTIONS.kinds,
    libero_state=True,
)
KNOWN = {r"bridge_(orig|dataset)": BRIDGE, r"libero_.*": LIBERO}
"""Conventions by a pattern of the dataset's name."""


@dataclass(frozen=True)
class Leaf:
    """A feature.

    Attributes:
        kind: ``tensor``, ``image``, ``text``; another one is not read.
        dtype: of its values; empty for text.
        shape: at one step; -1 where it differs.
    """

    kind: str
    dtype: str
    shape: tuple[int, ...]


class Shard(NamedTuple):
    """A file, and how many episodes it holds."""

    path: Path
    episodes: int


@dataclass(frozen=True)
class Layout:
    """What a dataset says of itself.

    Attributes:
        folder: where its files are.
        name: its own, whatever its folder is called.
        conventions: how it is read.
        features: by name, those of the steps and of the episode.
        shards: the files of the split.
        splits: names of all.
    """

    folder: Path
    name: str
    conventions: Conventions
    features: Mapping[str, Leaf]
    shards: tuple[Shard, ...]
    splits: tuple[str, ...]

    @property
    def words(self) -> str:
        """The feature that is the instruction.

        Raises:
            UserError: there is none.
        """
        for name in WORDS:
            if name in self.features and self.features[name].kind in ("text", "tensor"):
                return name
        raise UserError(f"{self.folder / FEATURES}: no instruction there, neither {' nor '.join(WORDS)}")

    @property
    def action_width(self) -> int:
        """Numbers of an action.

        Raises:
            UserError: an action is no row of floats.
        """
        if (width := self._width(ACTION)) is None:
            found = ", ".join(name for name in self.features if name.startswith(ACTION)) or "none"
            raise UserError(
                f"{self.folder / FEATURES}: '{ACTION}' is no row of floats (found: {found}); a dataset whose actions "
                "are made of parts has to be written again with one row of numbers a step"
            )
        return width

    @property
    def state_width(self) -> int | None:
        """Numbers of the state; None where there is none."""
        return self._width(STATE)

    def _width(self, name: str) -> int | None:
        leaf = self.features.get(name)
        if leaf is None or leaf.kind != "tensor" or leaf.dtype not in FLOATS or len(leaf.shape) != 1:
            return None
        return leaf.shape[0] if leaf.shape[0] > 0 else None

    @property
    def cameras(self) -> dict[str, tuple[int, int]]:
        """Rows and columns of the pictures of each camera; depth maps are none.

        Raises:
            UserError: there is no camera, or its pictures have no one size.
        """
        where = str(self.folder / FEATURES)
        found = {
            name.removeprefix(OBSERVATION): leaf.shape[:2]
            for name, leaf in self.features.items()
            if name.startswith(OBSERVATION) and (leaf.kind, leaf.dtype, leaf.shape[2:]) == ("image", "uint8", (3,))
        }
        for name, size in found.items():
            if min(size) < 1:
                raise UserError(
                    f"{where}: pictures of '{name}' have no size that is said there; write them at one size"
                )
        if not found:
            raise UserError(
                f"{where}: no camera (uint8, three colours) among its observations; a policy needs pictures"
            )
        return dict(zip(checked_cameras(where, found, AGAIN), ((r, c) for r, c in found.values()), strict=True))


def rlds_folder(folder: Path) -> Path | None:
    """The folder of a dataset's files: this one, or that of its only version; None where there is no dataset.

    Raises:
        UserError: there is more than one version.
    """
    if os.path.isfile(folder / INFO):
        return folder
    versions = sorted(path.parent for path in folder.glob(f"[0-9]*.[0-9]*/{INFO}"))
    if len(versions) > 1:
        raise UserError(f"{folder} holds {', '.join(path.name for path in versions)}: give the folder of one version")
    return versions[0] if versions else None


def read_layout(folder: Path) -> Layout:
    """What a dataset says of itself, and `OURS` of it.

    Raises:
        UserError: a file is missing or damaged, or the dataset is in another format than TFRecord files.
    """
    info, features = read_json(folder / INFO), read_json(folder / FEATURES)
    path = folder / INFO
    try:
        name = checked_text(str(path), "name", str(info["name"]), AGAIN)
        form = info.get("fileFormat", "tfrecord")
        if form != "tfrecord":
            raise UserError(f"{path}: the files are {form}; only tfrecord is read: write the dataset again as that")
        splits = {str(split["name"]): split for split in info["splits"]}
        conventions = _conventions(folder, name)
        if conventions.split not in splits:
            raise unknown(f"split in {path}", conventions.split, splits)
        shards = _shards(folder, name, splits[conventions.split])
    except _DAMAGE as error:
        raise UserError(f"{path} says nothing that can be used ({error!r}); {AGAIN}") from None
    try:
        leaves = dict(_leaves(features, ()))
    except _DAMAGE as error:
        raise UserError(f"{folder / FEATURES} says nothing that can be used ({error!r}); {AGAIN}") from None
    return Layout(folder, name, conventions, leaves, shards, tuple(splits))


def _conventions(folder: Path, name: str) -> Conventions:
    path = folder / OURS
    known = next((known for pattern, known in KNOWN.items() if re.fullmatch(pattern, name)), Conventions())
    said = read_json(path) if path.is_file() else {}
    if not isinstance(said, dict):
        raise UserError(f"{path}: not a JSON object; delete it, or write one")
    if strange := [key for key in said if key not in asdict(known)]:
        raise UserError(f"{path}: {unknown('field', strange[0], asdict(known))}")
    found: Conventions = parse(Conventions, {**asdict(known), **_lists(asdict(known)), **said}, str(path))
    if found.rate is None or not 0 < found.rate < FASTEST:
        raise UserError(
            f"{path}: '{name}' does not say how many control steps a second has, above 0 and below {FASTEST}: write "
            'that file, such as {"rate": 10}'
        )
    for text in (*found.action_names, found.split):
        checked_text(str(path), "action_names and split", text, "write it again")
    return found


def _lists(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Tuples as JSON has them."""
    return {name: list(value) for name, value in fields.items() if isinstance(value, tuple)}


def _shards(folder: Path, name: str, split: Mapping[str, Any]) -> tuple[Shard, ...]:
    template = split.get("filepathTemplate") or _TEMPLATE
    lengths = [int(length) for length in split["shardLengths"]]
    if re.search("[{}]", re.sub(r"\{[A-Z_]+\}", "", template)):  # another width could fill the memory
        raise ValueError(template)
    shards = []
    for number, length in enumerate(lengths):
        place = {"SHARD_INDEX": f"{number:05d}", "NUM_SHARDS": f"{len(lengths):05d}"}
        place["SHARD_X_OF_Y"] = f"{place['SHARD_INDEX']}-of-{place['NUM_SHARDS']}"
        file = template.format_map({"DATASET": name, "SPLIT": split["name"], "FILEFORMAT": "tfrecord", **place})
        if file in ("", ".", "..") or "/" in file or "\0" in file:
            raise ValueError(f"{file!r} is no name of a file")
        shards.append(Shard(folder / file, length))
    return tuple(shards)


def _leaves(node: Mapping[str, Any], path: tuple[str, ...], lists: int = 0) -> Iterator[tuple[str, Leaf]]:
    """All features; those that are lists within a step are of another kind than what is read."""
    if "featuresDict" in node:
        for name, inner in node["featuresDict"]["features"].items():
            yield from _leaves(inner, (*path, checked_text(FEATURES, "features", name, AGAIN)), lists)
    elif "sequence" in node:
        yield from _leaves(node["sequence"]["feature"], path, lists + 1)
    else:
        kind = next((kind for kind in ("image", "text", "tensor") if kind in node), "other")
        about = node.get(kind, {})
        shape = tuple(int(size) for size in about.get("shape", {}).get("dimensions", ()))
        of_step = lists == (1 if path[:1] == ("steps",) else 0)
        yield "/".join(path), Leaf(kind if of_step else "list", str(about.get("dtype", "")), shape)
