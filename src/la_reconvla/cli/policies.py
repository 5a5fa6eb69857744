"""Commands on trained policies: roll one out, give it to others."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

from la_reconvla.cli.options import Flat, Group
from la_reconvla.study.options import EvaluateOptions, FloorOptions, MachineOptions, RolloutOptions, StartOptions


def evaluate(
    run: Positional[str],
    rollouts: Flat[RolloutOptions],
    starts: Group[StartOptions],
    floors: Group[FloorOptions],
    machine: Group[MachineOptions],
) -> None:
    """Roll a policy out in closed loop on starts that, by default, it was not trained on.

    Args:
        run: a run folder, ``expert`` or ``random``, or ``user/name`` on the Hugging Face hub.
        rollouts: how much is rolled out, and where to.
        starts: on which starts it is rolled out.
        floors: what it is measured against.
        machine: what rolls out.
    """
    from la_reconvla.study.evaluate_one import evaluate_one

    evaluate_one(run, EvaluateOptions(**vars(rollouts), **vars(starts), **vars(floors), **vars(machine)))


def folder(run: Positional[Path], out: Path, merged: bool = False) -> None:
    """Write a policy and its card to a folder that others can load.

    Args:
        run: run folder.
        out: folder to write to.
        merged: add the adapters to the backbone's weights and write those too; by default only what was trained goes.
    """
    from la_reconvla.study.publish import export

    print(export(run, out, merged))


def hub(run: Positional[Path], repo: str, merged: bool = False, private: bool = False) -> None:
    """Upload a policy and its card to the Hugging Face hub.

    Args:
        run: run folder.
        repo: user/name.
        merged: with the backbone's weights, adapters added; by default only what was trained goes.
        private: make a new repository private.
    """
    from la_reconvla.study.publish import push

    print(f"load it with load_policy('{push(run, repo, merged, private)}')")
