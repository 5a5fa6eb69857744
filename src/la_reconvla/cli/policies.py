"""Commands on trained policies: roll one out, give it to others."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

from la_reconvla.cli.options import Flat, Group
from la_reconvla.study.options import (
    UNTRAINED,
    EvaluateOptions,
    FloorOptions,
    MachineOptions,
    RolloutOptions,
    StartOptions,
)
from la_reconvla.training.run_folders import folder_here


def evaluate(
    run: Positional[str],
    rollouts: Flat[RolloutOptions],
    start: Group[StartOptions],
    floor: Group[FloorOptions],
    machine: Group[MachineOptions],
) -> None:
    """Roll a policy out in closed loop on starts that, by default, it was not trained on.

    Args:
        run: a run folder, expert or random, or user/name on the Hugging Face hub.
        rollouts: how much is rolled out, and where to.
        start: on which starts it is rolled out.
        floor: what it is measured against.
        machine: what rolls out.
    """
    if run not in UNTRAINED:
        folder_here(run)  # before what takes seconds to import
    from la_reconvla.study.evaluate_one import evaluate_one

    evaluate_one(run, EvaluateOptions(**vars(rollouts), **vars(start), **vars(floor), **vars(machine)))


def folder(run: Positional[Path], out: Path, merged: bool = False) -> None:
    """Write a policy and its card to a folder that others can load.

    Args:
        run: run folder.
        out: folder to write to.
        merged: add the adapters to the backbone's weights and write those too; by default only what was trained goes.
    """
    found = _found(run)
    from la_reconvla.study.publish import export

    print(export(found, out, merged))


def hub(run: Positional[Path], repo: str, merged: bool = False, private: bool = False) -> None:
    """Upload a policy and its card to the Hugging Face hub.

    Args:
        run: run folder.
        repo: user/name.
        merged: with the backbone's weights, adapters added; by default only what was trained goes.
        private: make a new repository private.
    """
    found = _found(run)
    from la_reconvla.study.publish import push

    print(f"load it with load_policy('{push(found, repo, merged, private)}')")


def _found(run: Path) -> Path:
    """The folder of a run, or of its download; a missing one shows before anything heavy is imported."""
    if (here := folder_here(run)) is not None:
        return here
    from la_reconvla.training.checkpoint import find_run

    return find_run(run)
