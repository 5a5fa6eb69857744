"""Do the intervals and tests of a study keep what they promise? Writes ``docs/results/calibration.md``.

    python benchmarks/calibration.py --out docs/results/calibration.md

Simulated studies whose truth is known, a minute on one core; see `la_reconvla.study.calibration`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from la_reconvla.study.calibration import STUDIES, tables

TEXT = """# Calibration of the statistics

`python benchmarks/calibration.py --out docs/results/calibration.md`: simulated studies whose truth is known,
{studies} a row (`la_reconvla.study.calibration`). Numbers are per cent; a share near 5 or 95 % has a standard error
of {error:.1f} points. Spreads are standard deviations on the logit scale (first table) or in units of an episode's
noise (second). Three tasks of 20 starts unless it is said. The intervals are claimed for trainings with new seeds
and for new starts of these tasks, not for other tasks. "Called better" must stay below 2.5, "decided" below 5, 95 %
intervals above 94 and 90 % ones above 89. Wilson's interval covers on average over rates, not at each; Clopper and
Pearson's at each.

The price: a bootstrap of shared starts counts noise more than once, so that without spread the tests are far more
cautious than 5 %, and Student's t over three seeds asks for twice what five ask. Hence the power in the last table,
lower than that of independent episodes. Without Student's t the same worlds (3 seeds, spreads 0.8, 1, 1, 0, rate
0.3) are decided in 8.1 % and covered in 91.8 % (`la_reconvla.study.statistics.many_paired_successes` with
`new_seeds=False`).
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--studies", type=int, default=STUDIES)
    given = parser.parse_args()
    parts = [TEXT.format(studies=given.studies, error=100 * (0.05 * 0.95 / given.studies) ** 0.5)]
    for table in tables(given.studies):
        Console().print(table.rich())
        parts.append(table.markdown() + "\n")
    if given.out:
        given.out.write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
