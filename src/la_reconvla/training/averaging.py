"""A moving average of weights, as Diffusion Policy keeps one (arXiv 2303.04137).

::

    average = d average + (1 - d) weights    after each step; d = 1 - (1 + step)^-0.75, at most 0.9999

The decay grows with the steps, so that the average forgets the first weights and, later on, smooths the noise of the
gradient. What is averaged and how is `method.variants.teacher`, whose teacher is such an average with a fixed decay.
"""

from __future__ import annotations

POWER, MOST = 0.75, 0.9999


def averaged_decay(step: int) -> float:
    """The decay d after optimizer step `step`, counted from 0; after the first the average is the weights."""
    return min(1.0 - (1.0 + step) ** -POWER, MOST)
