"""Tables of the evidence around success: maps and their controls, causes, pairs of instructions, leakage, power, cost.

Page and ``tables.md`` show the same ones. A table without rows was not measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import get_args

import numpy as np

from la_reconvla.study.results import (
    ConditionResult,
    GroundingMeans,
    MapKind,
    MapPart,
    MapPhase,
    Measure,
    Rate,
    Results,
)
from la_reconvla.study.tables import TextTable, duration, number, percent, scenes

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
OCCLUDED = ("target", "distractor", "destination", "control")


# ---------------------------------------------------------------- maps and causes


def maps_tables(results: Results) -> list[TextTable]:
    """For each thing a table: arm and phase down, the policy's map and its controls across, AOS and AUROC in a cell."""
    return [table for part in get_args(MapPart) if (table := _maps_of(results, part)).rows]


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
    return TextTable(title, header, rows)


def _aos_auroc(means: GroundingMeans | None) -> str:
    if means is None or (means.aos is None and means.auroc is None):
        return "–"
    return f"{number(means.aos)}; AUROC {number(means.auroc)}"


def causal_table(results: Results) -> TextTable:
    """How far the actions move when something is hidden, and by how much more than when the control is."""
    rows = [
        (arm.id, effect.occluded, _measured(effect.shift), _measured(effect.over_control, sign=True))
        for arm in results.conditions
        for effect in sorted(arm.causal, key=lambda effect: OCCLUDED.index(effect.occluded))
    ]
    header = ("arm", "hidden", "shift of the actions", "more than the control")
    return TextTable("What hiding things does to the actions", header, rows)


def counterfactual_table(results: Results) -> TextTable:
    """Which object is moved first when two instructions are given in the same state."""
    rows = []
    for arm in results.conditions:
        if (c := arm.counterfactual) is not None:
            chosen = "–" if c.preference is None else _rate_with_interval(c.preference)
            counts = (c.pairs, c.asked, c.other, c.else_moved, c.neither, c.followed)
            rows.append((arm.id, *map(str, counts), chosen))
    header = ("arm", "pairs", "moved what was asked for", "moved the other", "moved something else", "moved nothing")
    return TextTable(
        "One state, two instructions", (*header, "pairs right both times", "asked / (asked + other)"), rows
    )


# ---------------------------------------------------------------- leakage, power, cost


def leakage_table(results: Results) -> TextTable:
    """What training and evaluation share."""
    rows = [
        (leak.what, str(leak.training), str(leak.evaluation), str(leak.shared), leak.verdict, leak.note or "–")
        for leak in results.leakage
    ]
    return TextTable("Leakage", ("what", "in training", "in evaluation", "in both", "verdict", "note"), rows)


def power_table(results: Results) -> TextTable:
    """Which differences of success so many episodes can find."""
    rows = [
        (
            f"{100 * row.points:.0f} points above {percent(row.rate)}",
            str(row.needed),
            str(row.planned),
            percent(row.power),
        )
        for row in results.power
    ]
    header = ("a difference of", "episodes an arm needed", "episodes an arm here", "chance of finding it here")
    return TextTable("Power", header, rows)


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
        speed, time = _over_seeds(arm, _speed), _over_seeds(arm, lambda facts: _seconds(results, facts))
        weights = _over_seeds(arm, lambda facts: facts.get("parameters"))
        head = "–" if arm.head_parameters is None else f"{arm.head_parameters / 1e6:.2f} M"
        if any(value is not None for value in (speed, time, weights)):
            shown = "–" if weights is None else f"{weights / 1e6:.2f} M"
            rows.append(
                (arm.id, shown, head, number(speed, 0), "–" if time is None else duration(time), str(len(arm.cells)))
            )
    header = ("arm", "weights trained", "of these its head", "samples a second", "training of one seed", "seeds")
    return TextTable("Training of each arm", header, rows)


def _over_seeds(arm: ConditionResult, value: Callable[[dict], float | None]) -> float | None:
    found = [v for cell in arm.cells if (v := value(cell.train)) is not None]
    return float(np.median(found)) if found else None


def _speed(facts: dict) -> float | None:
    return facts.get("samples_per_second")


def _seconds(results: Results, facts: dict) -> float | None:
    """Seconds that a training took: recorded, or from its steps and its median speed."""
    if facts.get("seconds") is not None:
        return facts["seconds"]
    batch = results.study.settings.get("config", {}).get("train", {}).get("batch_size")
    if batch is None or not facts.get("samples_per_second") or facts.get("steps") is None:
        return None
    return facts["steps"] * batch / facts["samples_per_second"]


def all_tables(results: Results) -> Iterable[TextTable]:
    """Those that have rows, in the order of the page."""
    makers = (causal_table, counterfactual_table, power_table, leakage_table, time_table, cost_table)
    return [table for table in (*maps_tables(results), *(make(results) for make in makers)) if table.rows]


# ---------------------------------------------------------------- numbers


def _measured(measure: Measure | None, sign: bool = False) -> str:
    if measure is None:
        return "–"
    between = f"{number(measure.low, 3, sign)} to {number(measure.high, 3, sign)}"
    return f"{number(measure.mean, 3, sign)} ({between}, n = {scenes(measure.n)})"


def _rate_with_interval(rate: Rate) -> str:
    return f"{percent(rate.rate)} ({percent(rate.low)} to {percent(rate.high)})"
