"""What the numbers of a study say beside its claims, one sentence a section of the page, computed from the results."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean

from la_reconvla.analysis.results import CellResult, ConditionResult, Results
from la_reconvla.analysis.verdicts import checked
from la_reconvla.drawing import readable
from la_reconvla.text_table import number

NO_BETTER = 0.95  # of the mean picture's error: a head above this counts as no better than it
STEPS = {"approached": "reached the target", "grasped": "grasped it", "lifted": "lifted it", "placed": "placed it"}

WHAT = "the overlap of attention with the target"


def findings(results: Results) -> dict[str, str]:
    """A sentence for each section of the page with something to say, under the section's id; arms by their codes."""
    made = {
        "sequences": _lengths(results),
        "success": _success(results),
        "stages": _stages(results),
        "curves": _grounding(results),
        "reconstructions": _learned(results),
        "attention": _overlap(results),
        "causal": _causes(results),
        "action-error": checked([c for c in results.comparisons if c.metric == "action_error" and _is_floor(c.b)]),
    }
    return {section: said for section, said in made.items() if said}


def _is_floor(name: str) -> bool:
    return name in ("grey_image", "no_image", "wrong_instruction")


def _success(results: Results) -> str:
    arms = [f"{c.id} {c.tsr.successes}/{c.tsr.episodes}" for c in results.conditions if c.tsr]
    if not arms:
        return ""
    floors = [(f, f.tsr) for f in results.floors if f.tsr]
    if not floors:
        return f"Successes: {', '.join(arms)}; no floor was rolled out."
    floor, rate = max(floors, key=lambda one: one[1].rate)
    name = f"{readable(floor.id)}{f' of {floor.condition}' if floor.condition else ''}"
    return f"Successes: {', '.join(arms)}; the best floor, {name}, has {rate.successes}/{rate.episodes}."


def _lengths(results: Results) -> str:
    if results.sequences is None:
        return ""
    found = [f"{name} {number(length.mean, 2)}" for name, length in results.sequences.policies.items()]
    return f"Subtasks done in a row, of five: {', '.join(found)}."


def _stages(results: Results) -> str:
    """How many episodes of all arms reached each stage, and before which most were lost."""
    arms = [(c.stages, c.tsr) for c in results.conditions if c.stages and c.tsr]
    if any(stages.episodes not in (None, rate.episodes) for stages, rate in arms):
        return ""  # some goals have no stages, and shares of the others are none of all
    counts = {"began": sum(rate.episodes for _, rate in arms)}
    for stage, said in STEPS.items():
        shares = [(getattr(stages, stage), rate.episodes) for stages, rate in arms]
        if all(share is not None for share, _ in shares):
            counts[said] = round(sum(share * episodes for share, episodes in shares))
    counts["succeeded"] = sum(rate.successes for _, rate in arms)
    if len(counts) < 3 or not any(list(counts.values())[1:-1]):
        return ""
    names = list(counts)
    lost = max(range(1, len(names)), key=lambda i: counts[names[i - 1]] - counts[names[i]])
    said = f"Of {counts['began']} episodes of all arms {', '.join(f'{counts[name]} {name}' for name in names[1:])}."
    return f"{said} Most were lost between “{names[lost - 1]}” and “{names[lost]}”."


def _grounding(results: Results) -> str:
    """Whether training raised or lowered the overlap of attention with the target: the first check against the last."""
    looks = {c.id: [(w[0], w[-1]) for cell in c.cells if len(w := _overlaps(cell)) > 1] for c in results.conditions}
    looks = {arm: ends for arm, ends in looks.items() if ends}
    ends = [pair for found in looks.values() for pair in found]
    if not ends:
        return ""
    lower, higher = sum(last < first for first, last in ends), sum(last > first for first, last in ends)
    ways = [(count, verb) for count, verb in ((lower, "lowered"), (higher, "raised")) if count]
    verbs = " and ".join(f"{verb} {'it' if i else WHAT} in {count}" for i, (count, verb) in enumerate(ways))
    watched = [cell.watched for c in results.conditions for cell in c.cells if len(cell.watched) > 1]
    chance = [w.aos_chance for found in watched for w in found if w.aos_chance is not None]
    arms = ", ".join(
        f"{arm} {number(fmean(first for first, _ in found), 3)} to {number(fmean(last for _, last in found), 3)}"
        for arm, found in looks.items()
    )
    span = sorted({(found[0].step, found[-1].step) for found in watched})
    said = f"Training {verbs or f'changed {WHAT} in none'} of {len(ends)} trainings, from "
    said += f"{' or '.join(f'step {first} to step {last}' for first, last in span)}: {arms}"
    return f"{said}{f'; chance is {number(fmean(chance), 3)}' if chance else ''}."


def _learned(results: Results) -> str:
    """Which heads reconstruct better than the mean of the training pictures, and which do not."""
    beside = {c.id: beside_mean_picture(c) for c in results.conditions}
    known = {id: ratio for id, ratio in beside.items() if ratio is not None}
    if not known:
        return ""
    listed = ", ".join(f"{id} {number(ratio, 2)}" for id, ratio in known.items())
    said = f"Pixel error of the heads, in errors of the mean training picture under the same masks: {listed}."
    nothing = [id for id, ratio in known.items() if ratio > NO_BETTER]
    return (
        f"{said} So {_listed(nothing)} reconstruct no better than that picture, which is the same for every frame."
        if nothing
        else said
    )


def beside_mean_picture(arm: ConditionResult) -> float | None:
    """Error of the arm's head at the end of its trainings, in errors of the mean picture; None where not measured."""
    ends = [(cell.train.get("held_out_reconstruction_loss"), cell.train.get("mean_picture_loss")) for cell in arm.cells]
    ratios = [ours / mean for ours, mean in ends if ours is not None and mean]
    return fmean(ratios) if ratios else None


def _overlaps(cell: CellResult) -> list[float]:
    """Overlap of the maps with the target at each check of a training."""
    return [look.aos for look in cell.watched if look.aos is not None]


def _overlap(results: Results) -> str:
    arms = [(c.id, c.aos) for c in results.conditions if c.aos]
    if not arms:
        return ""
    above = [id for id, aos in arms if aos.low > aos.chance]
    means = ", ".join(f"{id} {number(aos.mean, 3)}" for id, aos in arms)
    chance = f"chance is {number(arms[0][1].chance, 2)}, the most that is possible {number(arms[0][1].ceiling, 2)}"
    said = f"Overlap of attention with the target: {means}; {chance}. Above chance, interval and all: {_listed(above)}."
    return f"{said}{_other_words(results)}"


def _other_words(results: Results) -> str:
    """By how much the overlap falls when the map is that of another instruction."""
    falls = []
    for c in results.conditions:
        kinds = {m.map: m.means.aos for m in c.maps if (m.part, m.phase) == ("target", "all")}
        right, shuffled = kinds.get("policy"), kinds.get("shuffled")
        if right is not None and shuffled is not None:
            falls.append(f"{c.id} {number(shuffled - right, 3, True)}")
    return f" Under another instruction it changes by: {', '.join(falls)}." if falls else ""


def _causes(results: Results) -> str:
    """What the actions of which arm depend on: a larger shift than that of the control, interval and all."""
    arms = [c for c in results.conditions if c.causal]
    hidden = [
        kind for kind in ("target", "destination", "distractor") if any(_moved(c, kind) is not None for c in arms)
    ]
    said = [f"the {kind} for {_listed(c.id for c in arms if _moved(c, kind))}" for kind in hidden]
    return f"Hiding a thing moves the actions more than hiding as much of the rest: {'; '.join(said)}." if said else ""


def _moved(arm: ConditionResult, kind: str) -> bool | None:
    return next((e.over_control.low > 0 for e in arm.causal if e.occluded == kind and e.over_control), None)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "no arm"
