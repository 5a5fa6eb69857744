"""Commands on studies: run one, draw its report, compare two of its policies."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.text import Text
from tyro.conf import Positional

from la_reconvla.cli.options import Flat, Group
from la_reconvla.errors import UserError
from la_reconvla.sim.options import IfGiven
from la_reconvla.study.options import (
    CompareOptions,
    FilmOptions,
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
    devices: IfGiven[tuple[str, ...]] = None,
    cluster: IfGiven[str] = None,
    records: IfGiven[Path] = None,
    shard: IfGiven[str] = None,
    separate: bool = False,
) -> None:
    """Collect data, train and evaluate every arm, and report. Rerun the command to resume.

    Args:
        study: what is compared, where it differs from the preset.
        policy: what is trained in every arm, where it differs from the preset.
        training: how every arm is trained, where it differs from the preset.
        name: the preset: smoke, quick, small, paper or known-answer; quick by default. The options below override its
            values, for all arms alike.
        preset: the preset, as an option.
        out: study folder; runs/<preset> by default.
        hypotheses: what the study tests, a file like the package's analysis/hypotheses.json; fixed when the study
            begins.
        demonstrations: a folder of your own, for --offline; a dataset of CALVIN, for --suite calvin (docs/calvin.md).
        offline: train on those and judge on held-out frames of them, without a simulator (docs/own-robot.md).
        workers: processes; 0 takes one per core.
        devices: train policies on several devices side by side, for example cuda:0 cuda:1, one process on each; the
            rest is done on the first. In the place of --device.
        cluster: collect, train, roll out and measure on a cluster of Ray, auto or ray://HOST:10001 (docs/ray.md).
        records: records of this study, by study records, from another machine: what they hold is not done again.
        shard: one of several processes of this study, such as 0/8 or 7/8: policies are trained, rolled out and
            measured one by one, and nothing is judged (docs/cluster.md). study merge ends it.
        separate: the shards share no folder: do this one's part and no other.
    """
    changes = vars(study) | vars(policy) | vars(training)
    on_recorded = changes["suite"] == "calvin"
    if on_recorded and demonstrations is None:
        raise UserError("--suite calvin trains on CALVIN's own data: give --demonstrations FOLDER (docs/calvin.md)")
    if on_recorded and offline:
        raise UserError("--suite calvin rolls out in its simulator, --offline nothing: leave one of the two out")
    if not on_recorded and offline != (demonstrations is not None):
        raise UserError(
            "give both --demonstrations FOLDER and --offline, or none: in a simulator a study collects its own"
        )
    if name is not None and preset is not None:
        raise UserError(f"two presets, {name} and {preset}: name one")
    if separate and shard is None:
        raise UserError("--separate says how shards work: give --shard, such as 0/8")
    from la_reconvla.execution.on_ray import cluster as jobs_on
    from la_reconvla.study.ablation import ablate
    from la_reconvla.study.shards import Share

    share = None if shard is None else Share.of(shard, separate)
    given = hypotheses, demonstrations, devices or (), records, share
    with jobs_on(cluster):
        folder = ablate(name or preset or "quick", out, workers, changes, *given)
    if share is None:
        _reported(folder)


def _reported(folder: Path) -> None:
    """Draw the report of a study that was judged, and say what it shows."""
    from la_reconvla.report.summary import print_summary
    from la_reconvla.report.write import write_report
    from la_reconvla.study.results import results_of

    page = write_report(folder)
    Console().print(Text.assemble("report: ", (str(page), f"link {page.resolve().as_uri()}")), soft_wrap=True)
    print_summary(results_of(folder), Console(stderr=True))  # its last line is what to do next


def plan(
    study: Group[StudyChanges],
    preset: Positional[str] = "quick",
    cells: int = 0,
    machines: int = 1,
    workers: int = 0,
    measured: IfGiven[Path] = None,
) -> None:
    """Predict hours, disk and memory of a study of any size, on one machine and on several. Nothing is run.

    Args:
        study: what is compared, where it differs from the preset.
        preset: the preset.
        cells: policies to train, arms times seeds; by default as many as the preset has.
        machines: equal ones.
        workers: processes of each; 0 takes one per core of this machine.
        measured: a finished study on such a machine, whose times are the measure; by default those of
            docs/results/quick.md.
    """
    from la_reconvla.study.outlook import asked, outlook, said, table, usual
    from la_reconvla.study.outlook import measured as rates_of
    from la_reconvla.study.runs import usual_workers
    from la_reconvla.text_table import tell

    config = asked(preset, vars(study), cells)
    if measured is not None:
        rates, source = rates_of(measured, config.backbone), f"measured in {measured}"
    else:
        count = workers or usual_workers(config.backbone)
        rates, source = usual(config, count), f"docs/results/quick.md, {count} workers a machine"
    found = outlook(config, machines, rates)
    Console().print(table(found))
    tell(said(found))
    tell(f"rates: {source}")


def merge(out: Positional[Path], shards: Positional[tuple[Path, ...]] = (), workers: int = 0) -> None:
    """Put the shards of a study, or records of it, into one folder, do what is missing there, and judge it.

    Shards of another configuration, of other versions or demonstrations are refused, and so are two records of one
    policy that differ.

    Args:
        out: folder of the study. Shards that shared a folder: name that one alone.
        shards: folders of the shards, or of records.
        workers: processes; 0 takes one per core.
    """
    from la_reconvla.study.merging import merged

    _reported(merged(out, shards, workers))


def records(study: Positional[Path], out: Path) -> None:
    """Write what a study measured into small files without weights, for git: study run --records goes on from them.

    A policy comes once it is trained, rolled out and measured; the study may be running. When the command runs again,
    files of equal content stay as they are.

    Args:
        study: study folder.
        out: folder for the records, one file for each policy.
    """
    from la_reconvla.study.records import write_records

    for line in write_records(study, out):
        print(line)


def compare(
    run: Positional[str],
    other: Positional[str],
    rollouts: Flat[PairOptions],
    start: Group[StartOptions],
    machine: Group[MachineOptions],
) -> None:
    """Evaluate two policies on the same starts and stop as soon as one is shown to be better.

    Rerun the command to resume; the decision is the same. The sequential test needs an extra package (in the checkout:
    pip install -e '.[sequential]'), whose licence, CC BY-NC 4.0, forbids commercial use. Its level is 5 %, one-sided,
    for either policy. The result holds for these two policies, not for training them again. To compare finished
    studies, use study report.

    Args:
        run: a run folder.
        other: a second run folder, with the same image size and render quality.
        rollouts: how many episodes, and where results go.
        start: initial states of the rollouts; neither policy was trained on any of them.
        machine: processes and device.
    """
    from la_reconvla.study.head_to_head import compare as run_both

    print(run_both((run, other), CompareOptions(**vars(rollouts), **vars(start), **vars(machine))))


def report(
    study: Positional[Path],
    other: Positional[IfGiven[Path]] = None,
    out: IfGiven[Path] = None,
    figures: IfGiven[Path] = None,
    csv: IfGiven[Path] = None,
    gif: IfGiven[Path] = None,
    rrd: IfGiven[Path] = None,
) -> None:
    """Redraw report.html from a study's results.json, compare two studies on one page, or write episodes or films.

    Args:
        study: study folder.
        other: a second study, to compare with the first.
        out: page of the comparison; comparison.html in the first study's folder by default.
        figures: folder for the study's charts as SVG files, light and dark.
        csv: .csv file for all its episodes, one per row, and nothing else; also of a folder that eval wrote.
        gif: .gif file for two arms side by side on the report's first start, and nothing else.
        rrd: .rrd file for all films, attention, actions and stages, for Rerun's viewer, and nothing else.
    """
    alone = {name: path for name, path in (("csv", csv), ("gif", gif), ("rrd", rrd)) if path is not None}
    if alone:
        (name, path), *more = alone.items()
        if more or any(given is not None for given in (other, out, figures)):
            raise UserError(f"--{name} writes one file of one study and nothing else: leave the other words out")
        print(_written(name, study, path))
        return
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


def _written(name: str, study: Path, path: Path) -> Path:
    """A file of a study in a form of its own."""
    if name == "csv":
        from la_reconvla.report.episode_table import write_episode_table

        return write_episode_table(study, path)
    from la_reconvla.report.film_exports import write_film_gif, write_recording

    return write_film_gif(study, path) if name == "gif" else write_recording(study, path)


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
