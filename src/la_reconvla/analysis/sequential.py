"""Stop rolling out two policies as soon as the pairs so far decide which is better.

Looking at an ordinary test after every pair and stopping at the first p below 5 % finds a difference that is not
there far more often than in 5 %. The test used here, STEP (Snyder et al. 2025, arXiv 2503.10966), is made for
looking after every pair. It comes with the package ``sequentialized-barnard-tests`` (extra ``sequential``), whose
licence, CC BY-NC 4.0, allows no commercial use. Its decision tables are read from that package; only tables that it
ships are used.

The result is about **two policies** on new starts. Its level is one-sided, 5 % for each of them: equal ones are told
apart in up to 10 % of the comparisons, either way. How much trainings vary it does not know. It takes the two outcomes
of a pair for independent; on shared starts they agree more than that, which makes it cautious.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from la_reconvla.errors import UserError, install_command

ALPHA = 0.05
HORIZONS = 200, 500  # longest comparisons for which the package ships a table, all at `ALPHA`


@dataclass(frozen=True)
class Sequential:
    """What a sequential test came to.

    Attributes:
        better: the policy that is better, None if that is not decided.
        pairs: pairs that it took.
        planned: pairs that it could have taken.
    """

    better: Literal["a", "b"] | None
    pairs: int
    planned: int


def sequential_decision(
    successes_a: Iterable[bool], successes_b: Iterable[bool], n_max: int, alpha: float = ALPHA, rng_seed: int = 0
) -> Sequential:
    """Go through pairs in their order until they decide; later pairs are not read.

    Args:
        successes_a: of the first policy, in the order that was fixed before the first rollout.
        successes_b: of the second on the same starts.
        n_max: pairs planned at most, at most 500. Fixed before the first rollout.
        alpha: one-sided level, 0.05.
        rng_seed: between its two thresholds the test draws; fixed before the first rollout.

    Raises:
        UserError: the package is missing, there is no table for this length or level, or more pairs than planned.
    """
    test, package = step_test(n_max, alpha)
    test.random_seed = rng_seed
    test.reset()
    pairs = list(zip(successes_a, successes_b, strict=False))
    if len(pairs) > n_max:
        raise UserError(
            f"{len(pairs)} pairs were given, {n_max} are planned: the plan may not grow during the comparison"
        )
    for count, (a, b) in enumerate(pairs, start=1):
        decision = test.step(bool(a), bool(b)).decision
        if decision != package.Decision.FailToDecide:
            return Sequential("a" if decision == package.Decision.AcceptAlternative else "b", count, n_max)
    return Sequential(None, len(pairs), n_max)


def require_package() -> Any:
    """The package of the test.

    Raises:
        UserError: it is not installed.
    """
    try:
        import sequentialized_barnard_tests as package  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            f"stopping early needs the package sequentialized-barnard-tests ({error}). Its licence, CC BY-NC 4.0, "
            f"allows no commercial use. Install it with: {install_command('sequential')}"
        ) from None
    return package


@functools.lru_cache(maxsize=2)  # reading the table takes longer than a comparison
def step_test(n_max: int, alpha: float = ALPHA) -> tuple[Any, Any]:
    """A mirrored STEP test and its package; arguments and errors as in `sequential_decision`."""
    package = require_package()
    horizon = next((h for h in HORIZONS if 0 < n_max <= h), None)
    if horizon is None or alpha != ALPHA:
        raise UserError(
            f"tables exist for up to {HORIZONS[-1]} pairs at level {ALPHA}, not for {n_max} at {alpha}: plan fewer"
        )
    # A longer horizon than is planned only spends less of the level.
    test = package.MirroredStepTest(package.Hypothesis.P0MoreThanP1, horizon, ALPHA, random_seed=0)
    test.load_existing_policy()  # 0.0.9 does not manage that in its constructor
    if test.policy is None:
        raise UserError("sequentialized-barnard-tests came without its decision tables: install version 0.0.9 of it")
    return test, package
