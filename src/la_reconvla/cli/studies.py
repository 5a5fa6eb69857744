"""Commands on studies: run one, draw its report, compare two of its policies."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.text import Text
from tyro.conf import Positional

from la_reconvla import layout
from la_reconvla.cli.options import Flat, Group
from la_reconvla.errors import UserError
from la_reconvla.study.options import (
    CompareOptions,
    FilmOptions,
    IfGiven,
    MachineOptions,
    PairOptions,
    PolicyChanges,
    StartOptions,
    StudyChanges,
    TrainingChanges,
)


def run(
    study: Group[StudyChanges],
    policy: Group[PolicyChanges],
    training: Group[TrainingChanges],
    name: Positional[IfGiven[str]] = None,
    preset: IfGiven[str] = None,
    out: IfGiven[Path] = None,
    hypotheses: IfGiven[Path] = None,
    demonstrations: IfGiven[Path] = None,
    offline: bool = False,
    workers: int = 0,
) -> None:
    """Collect, train every condition, evaluate in closed loop, judge and report. Stopped, it goes on cell by cell.

    Args:
        study: what is compared, where it is not to be as the preset says.
        policy: what is trained in every arm, where it is not to be as the preset says.
        training: how every arm is trained, where that is not to be as the preset says.
        name: the preset: smoke, quick, small, paper or known-answer; quick by default. The options below replace
            numbers, for all arms alike.
        preset: the same as an option.
        out: study folder; runs/<preset> by default.
        hypotheses: what the study judges, a file like the package's analysis/hypotheses.json; kept with the study
            when it begins, and not to be changed after that.
        demonstrations: a folder of your own, for --offline.
        offline: train on those and judge on held-out frames of them, without a simulator (docs/own-robot.md).
        workers: processes; 0 takes one per core.
    """
    if offline != (demonstrations is not None):
        raise UserError(
            "give both --demonstrations FOLDER and --offline, or none: in a simulator a study collects its own"
        )
    if name is not None and preset is not None:
        raise UserError(f"two presets, {name} and {preset}: name one")
    from la_reconvla.report.summary import terminal_summary
    from la_reconvla.report.write import write_report
    from la_reconvla.study.ablation import ablate
    from la_reconvla.study.results import read_results

    changes = vars(study) | vars(policy) | vars(training)
    folder = ablate(name or preset or "quick", out, workers, changes, hypotheses, demonstrations)
    page = write_report(folder)
    Console(stderr=True).print(terminal_summary(read_results(folder / layout.RESULTS)))
    Console().print(Text.assemble("report: ", (str(page), f"link {page.resolve().as_uri()}")), soft_wrap=True)


def compare(
    run: Positional[str],
    other: Positional[str],
    rollouts: Flat[PairOptions],
    starts: Group[StartOptions],
    machine: Group[MachineOptions],
) -> None:
    """Roll two trained policies out on the same starts and stop as soon as it is decided which is better.

    Stopped before, it goes on by the same command and decides the same. Needs a package for a test made for looking
    after every pair (in the checkout: pip install -e '.[sequential]'), whose licence, CC BY-NC 4.0, allows no
    commercial use. Its level is 5 %, one-sided, for either policy. It speaks of these two policies, not of training
    again. Finished studies are compared by study report.

    Args:
        run: a run folder.
        other: another, of the same image size and render quality.
        rollouts: how much is rolled out, and where to.
        starts: on which starts, of which neither policy was trained on any.
        machine: what rolls out.
    """
    from la_reconvla.study.head_to_head import compare as run_both

    print(run_both((run, other), CompareOptions(**vars(rollouts), **vars(starts), **vars(machine))))


def report(
    study: Positional[Path],
    other: Positional[IfGiven[Path]] = None,
    out: IfGiven[Path] = None,
    figures: IfGiven[Path] = None,
) -> None:
    """Draw report.html again from a study's results.json, or compare two studies on one page.

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


def film(runs: Positional[tuple[str, ...]], out: Path, options: Flat[FilmOptions]) -> None:
    """Film several policies side by side on one start, attention over the picture, as a GIF.

    Args:
        runs: run folders, such as runs/quick/C4/seed0, and expert for the scripted expert.
        out: the .gif file.
        options: which start, and how large.
    """
    from la_reconvla.study.film import film as film_runs

    for record in film_runs(runs, out, options):
        print(f"{record.label}: {'success' if record.success else 'failure'} in {record.steps} steps")
    print(out)
