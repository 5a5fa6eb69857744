"""Does the sequential test of ``la-reconvla study compare`` keep its level, and how early does it stop?

    pip install -e '.[sequential]'      # CC BY-NC 4.0: no commercial use
    python benchmarks/sequential.py

Equal policies must be told apart in at most 5 % of the comparisons for either of them, up to three standard errors;
exits 1 if they are not.
"""

from __future__ import annotations

import numpy as np

from la_reconvla.analysis.power import pairs
from la_reconvla.analysis.sequential import ALPHA, HORIZONS, sequential_decision

COMPARISONS = 300


def told_apart(rate: float, agreement: float, planned: int = HORIZONS[0]) -> float:
    """Share of comparisons of equal policies that call one of them better, for the one of which that happens more."""
    rates = np.full((COMPARISONS, planned), rate)
    drawn = zip(*pairs(rates, rates, agreement, np.random.default_rng(0)), strict=True)
    better = [sequential_decision(a, b, planned, rng_seed=k).better for k, (a, b) in enumerate(drawn)]
    return max(better.count("a"), better.count("b")) / COMPARISONS


def main() -> None:
    for planned in HORIZONS:
        found = sequential_decision([True] * planned, [False] * planned, planned)
        print(f"always right against always wrong: decided by {found.pairs} of {planned} pairs")
    most, failed = ALPHA + 3 * (ALPHA * (1 - ALPHA) / COMPARISONS) ** 0.5, False
    for rate in (0.05, 0.5, 0.8):
        for agreement in (0.0, 0.5):
            share = told_apart(rate, agreement)
            failed |= share > most
            print(
                f"equal policies at {rate:.0%}, agreement {agreement}: told apart in {share:.1%} (at most {most:.1%})"
            )
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
