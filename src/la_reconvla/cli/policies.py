"""Commands on trained policies: roll them out, compare two, give them to others."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

from la_reconvla.cli.options import Flat
from la_reconvla.study.options import CompareOptions, EvaluateOptions


def evaluate(run: Positional[str], options: Flat[EvaluateOptions]) -> None:
    """Roll a policy out in closed loop on starts that, by default, it was not trained on.

    Args:
        run: a run folder, or ``expert`` or ``random``.
        options: on which starts, and how.
    """
    from la_reconvla.study.evaluate_one import evaluate_one

    evaluate_one(run, options)


def compare(run: Positional[str], other: Positional[str], options: Flat[CompareOptions]) -> None:
    """Roll two trained policies out on the same starts and stop as soon as it is decided which is better.

    Stopped before, it goes on by the same command and decides the same. Needs a package for a test
    made for looking after every pair (in the checkout: pip install -e '.[sequential]'), whose licence, CC BY-NC 4.0,
    allows no commercial use. Its level is 5 %, one-sided, for either policy. It speaks of these two policies, not of
    training again. Finished studies are compared by the command report.

    Args:
        run: a run folder.
        other: another, of the same image size and render quality.
        options: on which starts, and how.
    """
    from la_reconvla.study.head_to_head import compare as run_both

    print(run_both((run, other), options))


def export(run: Positional[Path], out: Path, merged: bool = False) -> None:
    """Write a policy and its card to a folder that others can load.

    Args:
        run: run folder.
        out: folder to write to.
        merged: add the adapters to the backbone's weights and write those too; by default only what was trained goes.
    """
    from la_reconvla.study.publish import export as write

    print(write(run, out, merged))


def push(run: Positional[Path], repo: str, merged: bool = False, private: bool = False) -> None:
    """Upload a policy and its card to the Hugging Face hub.

    Args:
        run: run folder.
        repo: user/name.
        merged: with the backbone's weights, adapters added; by default only what was trained goes.
        private: make a new repository private.
    """
    from la_reconvla.study.publish import push as upload

    print(f"load it with load_policy('{upload(run, repo, merged, private)}')")
