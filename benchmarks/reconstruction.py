"""Does the head reconstruct the scene, or only what all pictures have in common?

    python benchmarks/reconstruction.py runs/small/C2/seed0 --demonstrations runs/small/demonstrations

Mean squared pixel error (pixels in [-1, 1]) of held-out frames, under the arm's own masks and under random ones of a
quarter, equal for all runs; and what the mean of the training pictures, the same for every frame, scores under the same
masks. A head that scores no less than that mean says nothing of the frame. For arms that reconstruct masked patches.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import tyro
from run_samples import divided

from la_reconvla.conditions import condition
from la_reconvla.data.boxes import annotator
from la_reconvla.data.samples import spread_indices
from la_reconvla.method.mask import RandomMask
from la_reconvla.method.pixels import patchify
from la_reconvla.text_table import TextTable
from la_reconvla.training.checkpoint import load_policy
from la_reconvla.training.held_out import head_errors


@dataclass(frozen=True)
class Options:
    """What is measured."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    demonstrations: Path
    frames: int = 512
    held_out: float = 0.15


def errors(run: Path, options: Options) -> dict[str, float]:
    """Of one policy: pixel errors of its head and of the mean picture, under both kinds of masks."""
    policy, config = load_policy(run)
    arm = condition(config.condition)
    training, rest = divided(config, options.demonstrations, options.held_out)
    if not arm.annotation_free:
        rest = rest.annotated(annotator("masks"))
    extra = arm.reconstruction
    if extra is None:
        raise SystemExit(f"{run}: {arm.id} reconstructs nothing")
    some = spread_indices(len(training), options.frames)
    mean = patchify(training.batch(some).images, policy.backbone.patch_size).mean(0)
    found: dict[str, float] = {}
    for name, mask in (("own masks", extra.mask), ("random masks", RandomMask())):
        chosen = replace(extra, mask=mask)
        values = head_errors(policy, rest, torch.device("cpu"), chosen, lambda: mean, options.frames)
        if not values:
            raise SystemExit(f"{run}: what {arm.id} reconstructs does not compare with pixels")
        found[name], found[f"{name}, mean picture"] = values.values()
    return found


def main() -> None:
    """A row for each run."""
    options = tyro.cli(Options, description=__doc__)
    found = {str(run): errors(run, options) for run in options.runs}
    rows = [(name, *(f"{value:.4f}" for value in row.values())) for name, row in found.items()]
    print(TextTable("Pixel errors on held-out frames", ("run", *next(iter(found.values()))), rows).markdown())


if __name__ == "__main__":
    main()
