"""Commands on trained policies: roll one out, give it to others."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

from la_reconvla.cli.options import Flat, Group
from la_reconvla.serving.lerobot_folder import SCHEME
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
    """Evaluate a policy in closed loop, by default on starts that it was not trained on.

    Args:
        run: a run folder, expert, random, user/name on the Hugging Face hub, a policy server, ws://host:port, or a
            policy that LeRobot saved, lerobot:folder.
        rollouts: how many episodes, and where results go.
        start: initial states of the rollouts.
        floor: the floors that success is compared with.
        machine: processes and device.
    """
    if run not in UNTRAINED and "://" not in run and not run.startswith(SCHEME):
        folder_here(run)  # before what takes seconds to import
    from la_reconvla.study.evaluate_one import evaluate_one

    evaluate_one(run, EvaluateOptions(**vars(rollouts), **vars(start), **vars(floor), **vars(machine)))


def folder(run: Positional[Path], out: Path, merged: bool = False) -> None:
    """Write a policy and its model card to a folder.

    Args:
        run: run folder.
        out: folder to write to.
        merged: merge the adapters into the backbone's weights and write all of them; by default only trained weights.
    """
    found = _found(run)
    from la_reconvla.study.publish import export

    print(export(found, out, merged))


def hub(run: Positional[Path], repo: str, merged: bool = False, private: bool = False) -> None:
    """Upload a policy and its model card to the Hugging Face hub.

    Args:
        run: run folder.
        repo: user/name.
        merged: upload the backbone's weights with the adapters merged; by default only trained weights.
        private: make a new repository private.
    """
    found = _found(run)
    from la_reconvla.study.publish import push

    print(f"load it with load_policy('{push(found, repo, merged, private)}')")


def lerobot(run: Positional[Path], out: Path) -> None:
    """Write a policy as LeRobot saves one. LeRobot itself is not needed for it.

    Args:
        run: run folder.
        out: folder to write to, a pretrained_model of LeRobot's.
    """
    found = _found(run)
    from la_reconvla.lerobot.sharing import to_lerobot

    print(to_lerobot(found, out))


def from_lerobot(folder: Positional[Path], out: Path) -> None:
    """Write a policy of this package that LeRobot trained as a run. LeRobot itself is not needed for it.

    Args:
        folder: pretrained_model of a checkpoint of LeRobot's.
        out: run folder to write to.
    """
    from la_reconvla.lerobot.sharing import from_lerobot as run

    print(run(folder, out))


def _found(run: Path) -> Path:
    """The folder of a run, or of its download; a missing one shows before anything heavy is imported."""
    if (here := folder_here(run)) is not None:
        return here
    from la_reconvla.training.checkpoint import find_run

    return find_run(run)
