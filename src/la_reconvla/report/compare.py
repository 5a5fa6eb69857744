"""Two studies beside each other: what differs between them, then success, AOS and action error arm by arm.

Where both studies' records are on disk and an arm met the same starts with the same seeds in both, their difference is
paired (`la_reconvla.analysis.comparing.comparison`). Everywhere else it is taken from the two intervals alone, and the
page notes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isclose
from pathlib import Path
from statistics import fmean
from typing import Any

from la_reconvla import layout
from la_reconvla.analysis.comparing import comparison
from la_reconvla.analysis.comparisons import Comparison
from la_reconvla.analysis.evidence import Evidence, Unit, by_unit
from la_reconvla.analysis.intervals import Interval, square_and_add
from la_reconvla.analysis.measures import Measure, Overlap, Rate
from la_reconvla.analysis.results import ConditionResult, Results
from la_reconvla.drawing import readable
from la_reconvla.episodes import read_episodes
from la_reconvla.errors import UserError
from la_reconvla.report.page import fill
from la_reconvla.report.phrases import metric_name
from la_reconvla.storage import write_content
from la_reconvla.study.heldout import read_held_out
from la_reconvla.study.results import results_of
from la_reconvla.text_table import number, percent, points

METRICS = ("tsr", "aos", "action_error")
NO_VALUE = "–"


@dataclass(frozen=True)
class Line:
    """One arm and metric in both studies, in words; `paired` tells how the difference was computed."""

    arm: str
    metric: str
    first: str
    second: str
    difference: str
    paired: str


def write_comparison(first: Path | str, second: Path | str, out: Path | str | None = None) -> Path:
    """Compare two studies on one page.

    Args:
        first: folder of a study.
        second: folder of another.
        out: the page; ``comparison.html`` in `first` without it.

    Returns:
        Path of the page.

    Raises:
        UserError: a folder holds no valid results, both are one, or `out` is no ``.html`` file.
    """
    folders = Path(first), Path(second)
    if folders[0].resolve() == folders[1].resolve():
        raise UserError(f"{first} and {second} are one folder: name two studies")
    path = folders[0] / layout.COMPARISON_PAGE if out is None else Path(out)
    if path.suffix != ".html":
        raise UserError(f"the comparison is a page: give --out a name that ends in .html, not {path.name}")
    a, b = (results_of(folder) for folder in folders)
    values = {
        "names": [str(folder) for folder in folders],
        "studies": (a.study, b.study),
        "settings": list(differences(settings(a), settings(b))),
        "lines": list(lines(a, b, *folders)),
        "floors": list(_floors(a, b)),
        "missing": [
            (str(mine), sorted(_ids(other) - _ids(own)))
            for mine, own, other in ((folders[0], a, b), (folders[1], b, a))
        ],
    }
    write_content(path, fill("comparison.html.j2", values))
    return path


def _ids(results: Results) -> set[str]:
    return {c.id for c in results.conditions}


# ---------------------------------------------------------------- what differs


def settings(results: Results) -> dict[str, Any]:
    """The settings and provenance of a study, under flat names."""
    s = results.study
    kept = ("preset", "commit", "data_hash", "suite", "placement", "tasks", "versions", "hardware", "settings")
    return dict(_flat({name: getattr(s, name) for name in kept}))


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _flat(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", inner


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Name and both values of what differs; a value missing in one study is "not recorded"."""
    for name in dict.fromkeys((*first, *second)):
        pair = [str(side[name]) if name in side else "not recorded" for side in (first, second)]
        if pair[0] != pair[1]:
            yield name, pair[0] or "not recorded", pair[1] or "not recorded"


# ---------------------------------------------------------------- arm by arm


def lines(a: Results, b: Results, first: Path, second: Path) -> Iterator[Line]:
    """Success, AOS and action error of every arm that either study has."""
    arms = [{c.id: c for c in results.conditions} for results in (a, b)]
    one_data = a.study.data_hash == b.study.data_hash != ""
    for id in dict.fromkeys((*arms[0], *arms[1])):
        mine, theirs = arms[0].get(id), arms[1].get(id)
        for metric in METRICS:
            x, y = getattr(mine, metric, None), getattr(theirs, metric, None)
            if x is None and y is None:
                continue
            difference, how = NO_VALUE, "only one study has it"
            if mine is not None and theirs is not None and x is not None and y is not None:
                found = _paired(metric, (mine, first), (theirs, second), one_data)
                difference, how = _said(metric, unpaired(x, y)), _why(metric, one_data)
                if found is not None:
                    difference = _said(metric, (found.difference, found.low, found.high))
                    left = f", {found.unmatched} unmatched" if found.unmatched else ""
                    how = f"paired, {f'{found.n} pairs' if found.scenes is None else f'{found.scenes} scenes'}{left}"
            yield Line(id, metric_name(metric), _value(x), _value(y), difference, how)


def unpaired(a: Rate | Measure | Overlap, b: Rate | Measure | Overlap) -> tuple[float, float, float]:
    """a - b with a 95 % interval from the intervals of both alone, as if they were independent.

    See `la_reconvla.analysis.intervals.square_and_add`. Studies that share starts or seeds are not independent; the
    interval is then too wide.
    """
    x, y = _middle(a), _middle(b)
    found = square_and_add(x, Interval(a.low, a.high), y, Interval(b.low, b.high))
    return x - y, found.low, found.high


def _middle(value: Rate | Measure | Overlap) -> float:
    return value.rate if isinstance(value, Rate) else value.mean


Side = tuple[ConditionResult, Path]


def _paired(metric: str, mine: Side, theirs: Side, one_data: bool) -> Comparison | None:
    """The paired comparison; None where records are missing, are not those of the results, or share nothing."""
    if metric != "tsr" and not one_data:
        return None  # scenes of other demonstrations may have the same names
    ours, others = (_units(metric, arm, study) for arm, study in (mine, theirs))
    if not (_belong(ours, mine[0], metric) and _belong(others, theirs[0], metric)):
        return None
    try:
        return comparison("first", "second", ours, others, metric)
    except UserError:
        return None


def _belong(units: Mapping[Unit, float], arm: ConditionResult, metric: str) -> bool:
    """Whether these values are what the results were made of: more episodes may have been run since."""
    value = getattr(arm, metric)
    complete = metric != "tsr" or len(units) == value.episodes
    return bool(units) and complete and isclose(fmean(units.values()), _middle(value), abs_tol=1e-9)


def _units(metric: str, arm: ConditionResult, study: Path) -> dict[Unit, float]:
    """Values of the metric by start or scene, of the records that are still on disk."""
    folders = [layout.cell(study, arm.id, cell.seed) for cell in arm.cells]
    if metric == "tsr":
        return by_unit(Evidence(episodes=[r for folder in folders for r in read_episodes(folder)]), metric)
    held_out = [read_held_out(folder) for folder in folders if (folder / layout.HELD_OUT).exists()]
    return by_unit(Evidence(frames=[r for found in held_out for r in found.views["true"]]), metric)


def _why(metric: str, one_data: bool) -> str:
    if metric != "tsr" and not one_data:
        return "unpaired: other demonstrations"
    return "unpaired: no records of starts that both share"


def _floors(a: Results, b: Results) -> Iterator[tuple[str, str, str]]:
    """Success of the floors of both studies."""
    found = [{(f.id, f.condition): f.tsr for f in results.floors if f.tsr} for results in (a, b)]
    for id, arm in dict.fromkeys((*found[0], *found[1])):
        name = f"{readable(id)} {arm or ''}".strip()
        yield name, _value(found[0].get((id, arm))), _value(found[1].get((id, arm)))


def _value(value: Rate | Measure | Overlap | None) -> str:
    if value is None:
        return "not measured"
    if isinstance(value, Rate):
        between = f"{percent(value.low)} to {percent(value.high)}"
        return f"{percent(value.rate)}, {value.successes} of {value.episodes} ({between})"
    chance = f"; chance {number(value.chance)}, ceiling {number(value.ceiling)}" if isinstance(value, Overlap) else ""
    return f"{number(value.mean)} ({number(value.low)} to {number(value.high)}, n = {value.n}{chance})"


def _said(metric: str, found: tuple[float, float, float]) -> str:
    if metric == "tsr":
        d, low, high = map(points, found)
        return f"{d} points ({low} to {high})"
    d, low, high = (number(value, 3, True) for value in found)
    return f"{d} ({low} to {high})"
