"""Arms are compared in pairs: with one seed all start from equal weights and see equal batches. Here that is checked.

Training logs a hash of the weights before the first step and a running hash of the samples seen; this reads the logs.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from la_reconvla.analysis.results import Pairing
from la_reconvla.conditions import Condition
from la_reconvla.errors import UserError
from la_reconvla.storage import read_jsonl
from la_reconvla.training.trackers import METRICS

HASHED = {
    "backbone": "start from equal backbone weights",
    "action_head": "start from equal weights of the action head",
    "batches": "see equal batches",
}


def pairings(runs: Iterable[tuple[Condition, int, Path]], study: Path) -> tuple[Pairing, ...]:
    """What the arms of each seed have in common.

    Args:
        runs: condition, seed and folder of every finished run.
        study: the study's folder, for the message.

    Raises:
        UserError: if two arms of a seed differ, or a run does not record its start; it names the arms.
    """
    by_seed: dict[int, dict[str, dict[str, str]]] = {}
    blind = set()
    for condition, seed, folder in runs:
        by_seed.setdefault(seed, {})[condition.id] = _logged(folder)
        if condition.blind:
            blind.add(condition.id)
    return tuple(_pairing(seed, arms, blind, study) for seed, arms in by_seed.items())


def _pairing(seed: int, arms: dict[str, dict[str, str]], blind: set[str], study: Path) -> Pairing:
    shared: dict[str, str] = {}
    for part, what in HASHED.items():
        groups: dict[str, list[str]] = {}
        for arm, logged in arms.items():
            # Random patches start whitened by the training images (`whiten_patches`), of which a blind arm sees none.
            if part != "backbone" or arm not in blind:
                groups.setdefault(logged[part], []).append(arm)
        if len(groups) > 1:
            found = "; ".join(f"{', '.join(names)}: {value}" for value, names in groups.items())
            raise UserError(
                f"the arms of seed {seed} do not {what} ({found}), so that a difference between them means nothing: "
                f"delete every folder named seed{seed} below {study} and run the same command, which trains them again"
            )
        shared[part] = next(iter(groups), "")
    return Pairing(seed, tuple(arms), **shared)


def _logged(folder: Path) -> dict[str, str]:
    """The hashes in the log of one run."""
    lines = read_jsonl(folder / METRICS)
    start = next((line["start"] for line in lines if "start" in line), {})
    batches = [line["batches"] for line in lines if "batches" in line]
    logged = {**start, "batches": batches[-1] if batches else None}
    if missing := [part for part in HASHED if not logged.get(part)]:
        raise UserError(
            f"{folder / METRICS} lacks what the run began with ({', '.join(missing)}): delete {folder} and run "
            "the same command, which trains it again"
        )
    return {part: str(logged[part]) for part in HASHED}
