"""Where a run is, by its name. Light: a command looks before it imports what can load one."""

from __future__ import annotations

import re
from pathlib import Path

from la_reconvla import layout
from la_reconvla.backbones.packaged import PACKAGED
from la_reconvla.errors import UserError, nearest

CONFIG, WEIGHTS = "config.json", "model.safetensors"
WEIGHTS_NAMED = "weights.json"
"""In place of the weights where a run came from records (`la_reconvla.study.records`): the hash that their file had."""
MERGED_BACKBONE = "backbone"  # folder of a run that was exported with its backbone's weights
RUN_FILES = (CONFIG, WEIGHTS, f"{MERGED_BACKBONE}/*.json", f"{MERGED_BACKBONE}/*.safetensors")
"""What is downloaded of a run on the hub; nothing else there is asked for."""


def folder_here(run: Path | str) -> Path | None:
    """The folder of a run; None for weights that come with this package, and for what only the hub can have.

    Raises:
        UserError: if it holds a whole study, or is not there and no name on the hub.
    """
    folder = Path(run)
    if (folder / layout.STUDY).exists():
        trained = min((file.parent for file in folder.glob(f"*/seed*/{WEIGHTS}")), default=None)
        raise UserError(
            f"{folder} is a study, and a run is one of its policies: "
            + (f"name one, for example {trained}" if trained else "none of them is trained yet")
            + " (two studies are compared by `la-reconvla study report`)"
        )
    if folder.exists():
        return folder
    if str(run) not in PACKAGED and not _on_hub(run):
        raise UserError(missing(run))
    return None


def missing(run: Path | str) -> str:
    """That there is no such folder, and which near it were perhaps meant."""
    folder = Path(run)
    beside = [one for one in folder.parent.iterdir() if one.is_dir()] if folder.parent.is_dir() else []
    near = nearest(folder.name, (one.name for one in beside))
    meant = f": did you mean {' or '.join(str(folder.parent / name) for name in near)}?" if near else ""
    return f"there is no folder {folder}{meant}"


def public_name(run: str) -> str:
    """What others may read of where something is: its name on the hub, or that of its folder, not the way there."""
    return run if _on_hub(run) and not Path(run).exists() else Path(run).resolve().name


def _on_hub(run: Path | str) -> bool:
    """Whether this may be ``user/name`` there. A folder here named like the user does not tell, runs in it do."""
    parent = Path(run).parent
    holds_runs = parent == layout.RUNS or any(parent.glob(f"*/{CONFIG}"))
    return not holds_runs and re.fullmatch(r"[\w.-]+/[\w.-]+", str(run)) is not None
