"""Tables of the evidence around success: maps and their controls, causes, pairs of instructions, leakage, power, cost.

Page and ``tables.md`` show the same ones. A table without rows was not measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import get_args

import numpy as np

from la_reconvla.analysis import power
from la_reconvla.analysis.measures import GroundingMeans, MapKind, MapPart, MapPhase, Rate
from la_reconvla.analysis.results import ConditionResult, Floor, OtherStarts, Reference, Results
from la_reconvla.episodes import WAYS
from la_reconvla.report.findings import beside_mean_picture
from la_reconvla.report.next_step import training_seconds
from la_reconvla.report.tables import beside, counted, measured, place, policy_elsewhere
from la_reconvla.text_table import TextTable, duration, number, percent

MAPS: dict[MapKind, str] = {
    "policy": "the policy's",
    "uniform": "uniform",
    "centre": "centre",
    "mean_map": "its mean map",
    "shuffled": "shuffled words",
}
PARTS: dict[MapPart, str] = {
    "target": "the object to move",
    "destination": "the place to put it",
    "distractor": "the object not asked for",
}
METRICS = {
    "aos": "AOS",
    "aos_chance": "chance",
    "aos_ceiling": "ceiling",
    "aos_g": "AOS, k = g",
    "mass": "mass",
    "mass_over_area": "mass / area",
    "pointing": "pointing",
    "auroc": "AUROC",
    "average_precision": "average precision",
    "entropy": "entropy",
}
OCCLUDED = ("target", "distractor", "destination", "control")


# ---------------------------------------------------------------- maps and causes


def maps_tables(results: Results) -> list[TextTable]:
    """For each thing two tables: AOS and AUROC of the policy's map and its controls by phase, and all their metrics."""
    tables = (make(results, part) for part in get_args(MapPart) for make in (_maps_of, _metrics_of))
    return [table for table in tables if table.rows]


def _maps_of(results: Results, part: MapPart) -> TextTable:
    rows = []
    for arm in results.conditions:
        found = {(row.phase, row.map): row.means for row in arm.maps if row.part == part}
        for phase in get_args(MapPhase):
            if any(key[0] == phase for key in found):
                own = found.get((phase, "policy"))
                cells = [_aos_auroc(found.get((phase, kind))) for kind in MAPS]
                sharpness = number(own.entropy if own else None)
                rows.append((arm.id, phase, *cells, sharpness, "–" if own is None else str(own.frames)))
    title = f"Maps and their controls: {PARTS[part]}"
    header = ("arm", "phase", *MAPS.values(), "entropy", "frames")
    note = (
        "A policy's map is informative only where it beats all four controls, none of which can follow the "
        "instruction; on the object not asked for it should be no better than they are."
    )
    return TextTable(title, header, rows, note)


def _metrics_of(results: Results, part: MapPart) -> TextTable:
    rows = [
        (arm.id, MAPS[row.map], *(number(getattr(row.means, name)) for name in METRICS))
        for arm in results.conditions
        for row in sorted(arm.maps, key=lambda row: list(MAPS).index(row.map))
        if (row.part, row.phase) == (part, "all")
    ]
    note = (
        "All metrics over whole episodes: mass is the share of attention on the thing, mass / area that share over the "
        "thing's share of the picture, pointing how often the highest patch is on it; entropy is 1 for a flat map."
    )
    return TextTable(f"All metrics of the maps: {PARTS[part]}", ("arm", "map", *METRICS.values()), rows, note)


def aid_table(results: Results) -> TextTable:
    """How far another instruction moves the map of an arm."""
    rows = [(arm.id, measured(arm.aid)) for arm in results.conditions if arm.aid is not None]
    note = "AID is 1 - cosine of the maps of one picture under two instructions; 0 means that the words move nothing."
    return TextTable("Maps under another instruction", ("arm", "AID"), rows, note)


def _aos_auroc(means: GroundingMeans | None) -> str:
    if means is None or (means.aos is None and means.auroc is None):
        return "–"
    return f"{number(means.aos)}; AUROC {number(means.auroc)}"


def causal_table(results: Results) -> TextTable:
    """How far the actions move when something is hidden, and by how much more than when the control is."""
    rows = [
        (arm.id, effect.occluded, measured(effect.shift), measured(effect.over_control, sign=True))
        for arm in results.conditions
        for effect in sorted(arm.causal, key=lambda effect: OCCLUDED.index(effect.occluded))
    ]
    header = ("arm", "hidden", "shift of the actions", "more than the control")
    note = (
        "The shift is the total variation between the distributions of actions with and without the cover, 0 to 1; the "
        "control is a cover of the same size elsewhere. An arm depends on a thing if it shifts more than the control."
    )
    return TextTable("What hiding things does to the actions", header, rows, note)


def counterfactual_table(results: Results) -> TextTable:
    """Which object is moved first when two instructions are given in the same state: all policies, all starts."""
    rows = []
    for name, where, found in policies(results):
        if (c := found.counterfactual) is not None:
            counts = (c.pairs, c.asked, c.other, c.else_moved, c.neither, c.followed)
            chosen = map(_rate_or_dash, (c.preference, c.touched, c.held))
            rows.append((name, where, *map(str, counts), *chosen))
    header = ("policy", "starts", "pairs", "moved what was asked for", "moved the other", "moved something else")
    note = (
        "Both episodes of a pair begin in one state, and only the instruction differs; the thing moved first counts, "
        "furniture too once a drawer, door or knob of it has moved. A policy that does not listen has 50 % in the last "
        "three columns: the same of the first thing that was moved, touched, or held between both fingers."
    )
    header = (*header, "moved nothing", "pairs right both times", "asked / (asked + other)", "touched", "held")
    return TextTable("One state, two instructions", header, rows, note)


def following_table(results: Results) -> TextTable:
    """Whether the first thing touched, held or moved was one asked for: all policies, all starts."""
    rows = [
        (name, where, *(counted(getattr(found.following, way)) for way in WAYS))
        for name, where, found in policies(results)
        if found.following is not None
    ]
    note = (
        "Share of the episodes in which anything was touched, held between both fingers, or moved, whose first such "
        "thing was asked for. It needs no success. Where one thing is always asked for, a policy that does not "
        "listen can have 100 %: only pairs of instructions tell."
    )
    header = ("policy", "starts", *(f"first thing {way}" for way in WAYS))
    return TextTable("Was the first thing the one asked for?", header, rows, note)


def policies(results: Results) -> Iterator[tuple[str, str, ConditionResult | Floor | Reference | OtherStarts]]:
    """Everything that was rolled out: the policy and the starts in words, and what was found."""
    for name, found in [*((arm.id, arm) for arm in results.conditions), *beside(results)]:
        yield name, "the study's own", found
    for e in results.elsewhere:
        yield policy_elsewhere(e), place(results, e.suite, e.change, e.placement), e


# ---------------------------------------------------------------- leakage, power, cost


def leakage_table(results: Results) -> TextTable:
    """What training and evaluation share."""
    rows = [
        (leak.what, str(leak.training), str(leak.evaluation), str(leak.shared), leak.verdict, leak.note or "–")
        for leak in results.leakage
    ]
    header = ("what", "in training", "in evaluation", "in both", "verdict", "note")
    note = (
        "What is shared and should not be makes success look better than it is; “by design” means that sharing is what "
        "is asked, for example the same instructions in new scenes."
    )
    return TextTable("Leakage", header, rows, note)


def power_table(results: Results) -> TextTable:
    """Which differences of success so many episodes can find."""
    note = (
        "Points are of success, both arms around 50 %. The power of this study is that of its own test with its seeds "
        "and starts, by simulation, at 5 % without Holm's correction, with which it is lower; how much trainings vary "
        "was measured in it where three arms and two seeds allow."
    )
    seeds = max((len(arm.cells) for arm in results.conditions), default=0)
    return replace(power.power_table(results.power, seeds), note=note)


def time_table(results: Results) -> TextTable:
    """Wall time of each part, and energy."""
    study = results.study
    total = sum(study.wall_seconds.values())
    rows = [
        (part.replace("_", " "), duration(seconds), percent(seconds / total if total else 0.0))
        for part, seconds in study.wall_seconds.items()
    ]
    rows += [("all of it", duration(total), "100 %")] if rows else []
    joules = study.energy_joules
    rows.append(("energy", "not measured here" if joules is None else f"{joules / 3.6e6:.3f} kWh", "–"))
    return TextTable("Time and energy", ("part", "took", "share"), rows)


def cost_table(results: Results) -> TextTable:
    """What training an arm costs: medians over its seeds."""
    rows = []
    for arm in results.conditions:
        speed, time = _over_seeds(arm, _speed), _over_seeds(arm, lambda facts: training_seconds(results, facts))
        weights = _over_seeds(arm, lambda facts: facts.get("parameters"))
        head = "–" if arm.head_parameters is None else f"{arm.head_parameters / 1e6:.2f} M"
        if any(value is not None for value in (speed, time, weights)):
            shown = "–" if weights is None else f"{weights / 1e6:.2f} M"
            took, learned = "–" if time is None else duration(time), number(beside_mean_picture(arm), 2)
            rows.append((arm.id, shown, head, learned, number(speed, 0), took, str(len(arm.cells))))
    header = ("arm", "weights trained", "of these its head", "head's error / mean picture's")
    header += ("samples per second", "training of one seed", "seeds")
    return TextTable("Training of each arm", header, rows)


def _over_seeds(arm: ConditionResult, value: Callable[[dict], float | None]) -> float | None:
    found = [v for cell in arm.cells if (v := value(cell.train)) is not None]
    return float(np.median(found)) if found else None


def _speed(facts: dict) -> float | None:
    return facts.get("samples_per_second")


def all_tables(results: Results) -> Iterable[TextTable]:
    """Those that have rows, in the order of the page."""
    makers = (
        aid_table,
        causal_table,
        counterfactual_table,
        following_table,
        power_table,
        leakage_table,
        time_table,
        cost_table,
    )
    return [table for table in (*maps_tables(results), *(make(results) for make in makers)) if table.rows]


# ---------------------------------------------------------------- numbers


def _rate_or_dash(rate: Rate | None) -> str:
    return "–" if rate is None else f"{percent(rate.rate)} ({percent(rate.low)} to {percent(rate.high)})"
