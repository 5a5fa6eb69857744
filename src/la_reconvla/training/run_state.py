"""What a training keeps on disk so that it can go on, and the room that it takes."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from la_reconvla.errors import UserError
from la_reconvla.storage import read_json, require_free_space
from la_reconvla.training.run_folders import WEIGHTS, WEIGHTS_NAMED
from la_reconvla.training.tensors import file_hash, load_metadata

STATE = "state/latest.safetensors"
SMALL_FILES = 20_000_000  # bytes of configuration and curves, generously


def trained(folder: Path) -> bool:
    """Whether a run is complete: its weights are there, or records of it say which they were."""
    return (folder / WEIGHTS).exists() or (folder / WEIGHTS_NAMED).exists()


def recorded_only(folder: Path) -> bool:
    """Whether a complete run is here without its weights, and so cannot act."""
    return trained(folder) and not (folder / WEIGHTS).exists()


def hash_of_weights(folder: Path) -> str:
    """`file_hash` of a run's weights, also where only records of it are here.

    Raises:
        UserError: if it is not complete.
    """
    return read_json(folder / WEIGHTS_NAMED)["weights"] if recorded_only(folder) else file_hash(folder / WEIGHTS)


def finished(folder: Path, steps: int) -> bool:
    """Whether a run of so many steps is complete; while a second part trains, the weights of the first are there.

    Raises:
        UserError: if the weights are damaged.
    """
    path = folder / WEIGHTS
    return path.exists() and load_metadata(path).get("steps", steps) == steps


def require_room(folder: Path, weights: dict[str, torch.Tensor], averages: int, going_on: bool = False) -> None:
    """See that the states of a training that is not finished fit on the disk.

    A state is the weights, two moments and the averages of each; the next is complete before the last goes.

    Args:
        folder: of the run.
        weights: what trains.
        averages: how many moving averages of them are kept too.
        going_on: whether an earlier part of the training has left a state.

    Raises:
        UserError: if there is too little space, or no such state.
    """
    if going_on:
        require_state(folder)
    states = 1 if (folder / STATE).exists() else 2
    size = sum(tensor.nbytes for tensor in weights.values())
    require_free_space(folder, states * (3 + averages) * size + SMALL_FILES)


def require_state(folder: Path) -> None:
    """Raise a `UserError` if a finished run did not keep the state of its optimizer, as those of studies do not."""
    if not (folder / STATE).exists():
        raise UserError(
            f"{folder} kept its weights only, not the state of its optimizer ({STATE}), and cannot go on: start "
            f"another run from its weights with --init-from {folder}"
        )


def drop_state(folder: Path) -> None:
    """Remove what only a training that goes on needs."""
    shutil.rmtree((folder / STATE).parent, ignore_errors=True)
