"""Commands on studies: run one, plan its size, draw its report."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from tyro.conf import Positional

from la_reconvla import layout
from la_reconvla.cli.options import Group
from la_reconvla.errors import UserError
from la_reconvla.study.options import IfGiven, PolicyChanges, StudyChanges, TrainingChanges


def ablate(
    study: Group[StudyChanges],
    policy: Group[PolicyChanges],
    training: Group[TrainingChanges],
    preset: str = "quick",
    out: IfGiven[Path] = None,
    hypotheses: IfGiven[Path] = None,
    workers: int = 0,
) -> None:
    """Collect, train every condition, evaluate in closed loop, judge and report. Stopped, it goes on cell by cell.

    Args:
        study: what is compared, where it is not to be as the preset says.
        policy: what is trained in every arm, where it is not to be as the preset says.
        training: how every arm is trained, where that is not to be as the preset says.
        preset: smoke, quick, small, paper or known-answer; the options below replace numbers, for all arms alike.
        out: study folder; ``runs/<preset>`` by default.
        hypotheses: what the study judges, a file like the package's ``analysis/hypotheses.json``; kept with the study
            when it begins, and not to be changed after that.
        workers: processes; 0 takes one a core.
    """
    from la_reconvla.report.summary import terminal_summary
    from la_reconvla.report.write import write_report
    from la_reconvla.study.ablation import ablate as run
    from la_reconvla.study.results import read_results

    folder = run(preset, out, workers, vars(study) | vars(policy) | vars(training), hypotheses)
    page = write_report(folder)
    Console(stderr=True).print(terminal_summary(read_results(folder / layout.RESULTS)))
    print(f"report: {page}")


def power(
    seeds: int = 3, tasks: int = 3, episodes: int = 20, between_seeds: float = 0.0, agreement: float = 0.0
) -> None:
    """Say how many episodes differences need, and how likely a study of this size finds them, before it runs.

    Args:
        seeds: training seeds of each arm.
        tasks: number of tasks.
        episodes: evaluation episodes for each task and trained policy.
        between_seeds: standard deviation of an arm's success rate between its seeds, as a share.
        agreement: correlation of two arms' outcomes on one start, 0 to 1.
    """
    from la_reconvla.analysis.power import planned, power_table

    rows = planned(seeds, tasks, episodes, between_seeds=between_seeds, agreement=agreement)
    Console().print(power_table(rows, seeds).rich())


def report(
    study: Positional[Path],
    other: Positional[IfGiven[Path]] = None,
    out: IfGiven[Path] = None,
    figures: IfGiven[Path] = None,
) -> None:
    """Draw ``report.html`` again from a study's ``results.json``, or compare two studies on one page.

    Args:
        study: study folder.
        other: another study, to compare the first one with.
        out: the page of the comparison; comparison.html in the first study's folder by default.
        figures: folder for the study's charts as SVG files, for a light and a dark page.
    """
    from la_reconvla.report.compare import write_comparison
    from la_reconvla.report.write import write_figures, write_report

    if other is not None and figures is not None:
        raise UserError("--figures is for one study: leave the second out")
    if other is not None:
        print(write_comparison(study, other, out))
    elif out is not None:
        raise UserError("--out is for a comparison: name a second study")
    else:
        for path in [write_report(study), *(write_figures(study, figures) if figures else [])]:
            print(path)
