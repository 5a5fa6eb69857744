"""What does reconstruction add to the gradient? Trains an arm and measures both terms' gradients on the way.

    python benchmarks/gradient_share.py --demonstrations runs/declared/demonstrations --arms C2 C4 R1

At each listed step: the length of the gradient of the action loss and of the reconstruction loss (times no weight) in
the parameters that both reach, their cosine, and the weight at which both would be equally long. Success is not looked
at: it is how the weights of docs/results/dose.md were chosen. The arms train as `study run` trains them.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import tyro

from la_reconvla.method.objective import losses
from la_reconvla.randomness import derive, generator
from la_reconvla.study.train_cells import train_one
from la_reconvla.text_table import TextTable
from la_reconvla.training import loop


@dataclass(frozen=True)
class Options:
    """What is measured."""

    demonstrations: Path
    preset: str = "small"
    arms: tuple[str, ...] = ("C2", "C4", "R1")
    seed: int = 0
    at: tuple[int, ...] = (0, 10, 25, 50, 100, 150, 200, 250, 300, 350, 399)


def lengths(training: Any, step: int) -> dict[str, float]:
    """Of both gradients in the parameters that both reach, for the batch of this step."""
    policy, arm = training.policy, training.condition
    batch, _ = training.drawn(step, derive(training.seed, "data"), "shift")
    draws, noise = generator(training.seed, "mask", step), generator(training.seed, "noise", step)
    loss = losses(policy, batch, arm.reconstruction, draws, training.config.progress(step), training.teacher, noise)
    if loss.reconstruction is None:
        raise SystemExit(f"{arm.id} reconstructs nothing")
    parameters = [p for p in policy.parameters() if p.requires_grad]
    action = torch.autograd.grad(loss.action, parameters, retain_graph=True, allow_unused=True)
    reconstruction = torch.autograd.grad(loss.reconstruction, parameters, allow_unused=True)
    both = [(a, r) for a, r in zip(action, reconstruction, strict=True) if a is not None and r is not None]
    a, r = (torch.cat([pair[i].flatten() for pair in both]) for i in (0, 1))
    return {
        "action": float(a.norm()),
        "reconstruction": float(r.norm()),
        "cosine": float(torch.nn.functional.cosine_similarity(a, r, dim=0)),
        "equal at weight": float(a.norm() / r.norm()),
    }


def main() -> None:
    """Train each arm, print its rows and the median of the weights."""
    options = tyro.cli(Options, description=__doc__)
    rows = []
    step = loop.Training.step
    for arm in options.arms:
        found: dict[int, dict[str, float]] = {}

        def watched(self: Any, number: int, found: Any = found) -> dict[str, Any]:
            if number in options.at:
                found[number] = lengths(self, number)
            return step(self, number)

        loop.Training.step = watched  # pyright: ignore[reportAttributeAccessIssue] (measured from outside)
        with tempfile.TemporaryDirectory() as folder:
            train_one(options.demonstrations, Path(folder) / "run", arm, options.seed, options.preset, {})
        for number, row in found.items():
            rows.append((arm, str(number), *(f"{value:.3g}" for value in row.values())))
        rows.append((arm, "median", "", "", "", f"{median(row['equal at weight'] for row in found.values()):.3g}"))
    header = ("arm", "step", "action", "reconstruction", "cosine", "equal at weight")
    print(TextTable("Lengths of gradients", header, rows).markdown())


if __name__ == "__main__":
    main()
