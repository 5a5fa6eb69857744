"""Tables of success, stages, floors, losses, action error and attention: terminal, page and ``tables.md`` show them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from la_reconvla.analysis.comparisons import Comparison
from la_reconvla.analysis.declaration import declared_in
from la_reconvla.analysis.measures import STAGES, Measure, Rate, Stages
from la_reconvla.analysis.results import ConditionResult, Floor, OtherStarts, Reference, Results
from la_reconvla.conditions import GRID
from la_reconvla.drawing import readable
from la_reconvla.report.phrases import EFFECTS_SAID, compared, effect_size, named
from la_reconvla.text_table import TextTable, number, p_value, percent, points

CHANGES = {
    "lan": "changed wording",
    "object": "changed objects",
    "swap": "changed positions",
    "task": "changed task",
}
"""What LIBERO-PRO (arXiv 2510.03827) changes, by its name for it."""
OWN_CHANGES = {
    "paraphrase": "our rewordings",
    "counterfactual": "each state with two instructions",
    "plus": "LIBERO-Plus's rewordings",
}

# One sentence a table, for the page and for tables.md alike.
FLOORS_SAID = (
    "Floors: blind replay repeats a demonstration whatever the scene looks like; no image is a policy trained without "
    "images; grey image and wrong instruction are an arm's own policy shown a grey picture or told another instruction."
)


# ---------------------------------------------------------------- the tables


def success_table(results: Results) -> TextTable:
    """Success of every arm, floor and reference."""
    rows = [(f"{c.id}  {c.name}", c.tsr) for c in results.conditions]
    rows += [(name, found.tsr) for name, found in beside(results) if found.tsr]
    header = ("arm", "successes", "rate", "95 % interval")
    return TextTable("Task success", header, [(name, *_rate(rate)) for name, rate in rows], FLOORS_SAID)


def sequence_tables(results: Results) -> list[TextTable]:
    """CALVIN's sequences: average length of every policy, then differences; none where nothing was rolled out so."""
    found = results.sequences
    if found is None:
        return []
    lengths = [
        (
            readable(name),
            number(length.mean, 2),
            f"{number(length.low, 2)} to {number(length.high, 2)}",
            *(f"{100 * share:.1f} %" for share in length.in_a_row),
            str(length.seeds),
        )
        for name, length in found.policies.items()
    ]
    states = max(length.states for length in found.policies.values())
    note = (
        f"Subtasks done in a row, of five, and the share of sequences with at least so many: the first {found.count} "
        f"of CALVIN's list, from {states} initial states, which intervals draw. Floors: no-image is a policy trained "
        f"without images, random acts at random. {'A GPU' if found.egl else 'No GPU'} drew what policies saw."
    )
    columns = ("policy", "average length", "95 % interval", *(f"{n} in a row" for n in range(1, 6)), "seeds")
    rows = [(f"{c.a} - {c.b}", _signed(c, 2), p_value(c.p), p_value(c.p_holm), str(c.n)) for c in found.comparisons]
    header = ("arms", "difference (95 % interval)", "p", "p (Holm)", "pairs")
    return [
        TextTable("Average length", columns, lengths, note),
        TextTable("Differences of average length, on the same sequences", header, rows),
    ]


def stage_table(results: Results) -> TextTable:
    """Share of episodes that reached each stage: every arm, floor and reference."""
    found = [(c.id, c.stages) for c in results.conditions] + [(name, f.stages) for name, f in beside(results)]
    rows = [(name, *_stages(stages)) for name, stages in found if stages is not None]
    header = ("arm", *(stage.replace("_", " ") for stage in STAGES), "smallest distance (m)")
    return TextTable("How far episodes got", header, rows)


def _stages(stages: Stages) -> tuple[str, ...]:
    return (*(percent(getattr(stages, stage)) for stage in STAGES), number(stages.smallest_distance, 3))


def beside(results: Results) -> list[tuple[str, Floor | Reference]]:
    """What arms are read against, under its name."""
    return [
        *((f"floor: {readable(f.id)} {f.condition or ''}".strip(), f) for f in results.floors),
        *((f"reference: {r.id}", r) for r in results.references),
    ]


def other_starts_tables(results: Results) -> list[TextTable]:
    """Success on other starts, a table for each suite, change and kind of starts: arms, then floors."""

    def where(e: OtherStarts) -> tuple[str, str, str]:
        return e.suite, e.change, e.placement

    groups = groupby(sorted(results.elsewhere, key=where), key=where)
    return [_elsewhere(place(results, *key), list(rows)) for key, rows in groups]


def place(results: Results, suite: str, change: str, placement: str) -> str:
    """A suite, what was changed in it, and the kind of starts, in words; without `suite` the study's own."""
    name = suite or results.study.suite or "the study's own suite"
    changed = f" (LIBERO-PRO {change}: {CHANGES.get(change, change)})" if change else ""
    changed = f" ({OWN_CHANGES[change]})" if change in OWN_CHANGES else changed
    return f"{name}{changed}, {placement} states"


def wording_table(results: Results) -> TextTable:
    """Success by kind of rewording: every policy, every suite with our paraphrases."""
    found = [e for e in results.elsewhere if e.wordings]
    kinds = tuple(dict.fromkeys(kind for e in found for kind in e.wordings))
    rows = [(policy_elsewhere(e), e.suite, *(counted(e.wordings.get(kind)) for kind in kinds)) for e in found]
    note = (
        "Each task is told in one wording of each kind: another verb, another name for an object, another syntax, a "
        "polite request, a subordinate clause."
    )
    return TextTable("Success by kind of rewording", ("policy", "suite", *kinds), rows, note)


def counted(rate: Rate | None) -> str:
    """Successes, rate and interval in one cell."""
    if rate is None:
        return "–"
    return f"{rate.successes} / {rate.episodes}, {percent(rate.rate)} ({percent(rate.low)} to {percent(rate.high)})"


def loss_table(results: Results) -> TextTable:
    """What arms lose on other suites, arm against arm."""
    rows = [
        (
            f"{c.a} - {c.b}",
            c.suite,
            f"{percent(c.a_home)} and {percent(c.b_home)}",
            f"{points(c.a_mean)} and {points(c.b_mean)}",
            f"{points(c.difference)} ({points(c.low)} to {points(c.high)})",
            p_value(c.p),
            str(c.n),
            c.note or "–",
        )
        for c in results.comparisons
        if c.kind == "loss"
    ]
    header = ("arms", "suite", "success at home", "points lost", "difference of losses", "p", "episodes", "note")
    pooled = declared_in(results.study).pooled
    judged = (
        "is judged by the shares that are retained" if pooled else "corrects those it judges for the number of suites"
    )
    note = (
        "A loss is success at home minus success on the other suite; a negative difference means that the first arm "
        f"lost less. p is not corrected here; H4 {judged}."
    )
    return TextTable("Losses on other suites", header, rows, note)


def retained_table(results: Results) -> TextTable:
    """What H4 is judged by where the pooled rule was declared: shares retained, and success elsewhere."""
    shown = {"retained": "share of success at home retained", "elsewhere": "success there"}
    rows = [
        (
            f"{c.a} - {c.b}",
            c.suite,
            shown[c.kind],
            f"{percent(c.a_mean)} and {percent(c.b_mean)}",
            f"{points(c.difference)} ({points(c.low)} to {points(c.high)})",
            p_value(c.p),
            p_value(c.p_holm),
            str(c.n),
        )
        for c in results.comparisons
        if c.kind in shown
    ]
    header = ("arms", "suite", "of", "either arm", "difference, points", "p", "p (Holm)", "episodes")
    note = "The corrected p is that of H4: the largest of all shares', as H4 claims all of them."
    return TextTable("Success retained on other suites", header, rows, note)


def _elsewhere(name: str, found: Sequence[OtherStarts]) -> TextTable:
    arms = [e for e in found if e.condition is not None and e.floor is None]
    others = [e for e in found if e not in arms]
    shown = [(policy_elsewhere(e), e) for e in (*arms, *others)]
    rows: list[tuple[str, ...]] = [
        (name, *_rate(e.tsr), *(percent(getattr(e.stages, s, None)) for s in STAGES)) for name, e in shown
    ]
    if not others:
        rows.append(("floors: none was rolled out here", *["–"] * (3 + len(STAGES))))
    header = ("policy", "successes", "rate", "95 % interval", *(stage.replace("_", " ") for stage in STAGES))
    return TextTable(f"Success elsewhere: {name}", header, rows)


def policy_elsewhere(e: OtherStarts) -> str:
    """Which policy that was, as in the other tables."""
    if e.floor is not None:
        return f"floor: {readable(e.floor)} {e.condition or ''}".strip()
    return e.condition or e.label.replace("_", " ")


def error_table(results: Results) -> TextTable:
    """Held-out action error of every arm and its difference to each floor; n counts the scenes of each interval."""
    floors = ("grey_image", "wrong_instruction", "no_image")
    rows = [
        (c.id, measured(c.action_error), *(_difference(results.comparison(c.id, f, "action_error")) for f in floors))
        for c in results.conditions
        if c.action_error is not None
    ]
    rows += [
        ("floor: no image", measured(f.action_error), *["–"] * len(floors))
        for f in results.floors
        if f.id == "no_image" and f.action_error is not None
    ]
    header = ("arm", "action error", *(f"minus {readable(floor)}" for floor in floors))
    return TextTable("Action error on held-out frames", header, rows)


def overlap_table(results: Results) -> TextTable:
    """Where the words look: overlap with the target beside what chance and a perfect map reach."""
    header = ("arm", "AOS", "95 % interval", "n", "chance", "ceiling", "AOS, k = g", "chance", "pointing", "AUROC")
    header += ("mass", "mass / area")
    rows = []
    for c in results.conditions:
        row = ("not measured", *["–"] * (len(header) - 2))
        if c.aos is not None:
            between = f"{number(c.aos.low)} to {number(c.aos.high)}"
            row = (number(c.aos.mean), between, str(c.aos.n), number(c.aos.chance), number(c.aos.ceiling))
            shown = ("aos_g", "aos_g_chance", "pointing", "auroc", "mass", "mass_over_area")
            row += tuple(number(getattr(c.grounding, name, None)) for name in shown)
        rows.append((named(c), *row))
    return TextTable("Attention overlap with the target", header, rows)


def comparison_table(results: Results) -> TextTable:
    """The declared family of paired comparisons."""
    rows = [(*_compared(c), p_value(c.p), p_value(c.p_holm), str(c.n)) for c in results.family]
    header = ("arms", "of", "difference", "effect size", "p", "p (Holm)", "pairs")
    return TextTable("Declared comparisons", header, rows, EFFECTS_SAID)


def floor_table(results: Results) -> TextTable:
    """Success of each arm minus that of its floors, on the same starts."""
    rows = [(*_compared(c), p_value(c.p), str(c.n)) for c in results.against_floors("tsr")]
    header = ("arm and floor", "of", "difference", "effect size", "p", "pairs")
    note = "An arm that is not above a floor has not shown that it uses what the floor goes without."
    return TextTable("Each arm minus its floors, on the same starts", header, rows, note)


def _compared(c: Comparison) -> tuple[str, str, str, str]:
    return f"{c.a} - {c.b.replace('_', ' ')}", compared(c), _difference(c), effect_size(c)


HEAD_NAMES = {"mae": "MAE, one pass", "diffusion": "diffusion"}
REGIONS = "random", "attention", "gaze", "random crop", "gaze crop", "whole image"


def grid_table(results: Results) -> TextTable:
    """What was reconstructed, down, by which head, across; without rows where no arm has a diffusion head.

    Arms that differ in anything else (lambda, the leak-free variant, another source of attention) are not in it.
    """
    members = {arm.id for arm in GRID}
    found = {(c.mask, c.reconstructor): c for c in results.conditions if c.id in members}
    rows = [
        (region.replace("_", " "), *(_grid_cell(found.get((region, head))) for head in HEAD_NAMES))
        for region in REGIONS
        if any((region, head) in found for head in HEAD_NAMES)
    ]
    none = [c for c in results.conditions if c.reconstructor is None]
    rows += [("nothing", _grid_cell(c), "") for c in none]
    shown = rows if any(head == "diffusion" for _, head in found) else []
    title = "The grid: what is reconstructed, and by which head"
    return TextTable(title, ("what", *HEAD_NAMES.values()), shown)


def _grid_cell(c: ConditionResult | None) -> str:
    if c is None:
        return "–"
    said = [f"{c.id}{'' if c.annotation_free else ' (annotated)'}"]
    if c.tsr is not None:
        said.append(f"success {c.tsr.successes} / {c.tsr.episodes}, {percent(c.tsr.low)} to {percent(c.tsr.high)}")
    if c.stages is not None:
        said.append(f"approached {percent(c.stages.approached)}")
    if c.action_error is not None:
        said.append(f"action error {measured(c.action_error)}")
    if c.aos is not None:
        said.append(f"AOS {number(c.aos.mean)} ({number(c.aos.low)} to {number(c.aos.high)})")
    if c.head_parameters is not None and c.head_operations is not None:
        said.append(f"head {c.head_parameters / 1e6:.2f} M parameters, {c.head_operations / 1e6:.0f} MFLOP a sample")
    return "; ".join(said)


def exploratory(results: Results) -> list[Comparison]:
    """Comparisons of two arms outside of the declared family, not corrected: those declared as such, then those of arms
    that no declared one names (`la_reconvla.analysis.comparing.undeclared`).
    """
    declared, arms = declared_in(results.study), {c.id for c in results.conditions}
    between = {(c.a, c.b, c.metric): c for c in results.comparisons if c.kind == "difference" and {c.a, c.b} <= arms}
    others = (key for key in between if key != declared.equivalence)
    keys = dict.fromkeys((*declared.exploratory, *others))
    return [c for key in keys if (c := between.get(key)) and c.p_holm is None]


def exploratory_table(results: Results) -> TextTable:
    """What `exploratory` gives."""
    rows = [(*_compared(c), p_value(c.p), str(c.n)) for c in exploratory(results)]
    header = ("arms", "of", "difference", "effect size", "p", "pairs")
    return TextTable("Exploratory comparisons, not corrected", header, rows)


def verdict_table(results: Results) -> TextTable:
    """What each hypothesis came to."""
    rows = [(h.id, h.verdict, h.claim) for h in results.hypotheses]
    return TextTable("Hypotheses", ("hypothesis", "verdict", "claim"), rows)


def _rate(rate: Rate | None) -> tuple[str, str, str]:
    if rate is None:
        return "not evaluated", "", ""
    return (
        f"{rate.successes} / {rate.episodes}",
        percent(rate.rate),
        f"{percent(rate.low)} to {percent(rate.high)}",
    )


def measured(measure: Measure | None, sign: bool = False) -> str:
    """A mean, its interval and the number of scenes in one cell."""
    if measure is None:
        return "–"
    between = f"{number(measure.low, 3, sign)} to {number(measure.high, 3, sign)}"
    return f"{number(measure.mean, 3, sign)} ({between}, n = {measure.n})"


def _difference(found: Comparison | None) -> str:
    if found is None:
        return "–"
    if found.agreement or found.kind == "loss":
        return f"{points(found.difference)} points ({points(found.low)} to {points(found.high)})"
    return _signed(found)


def _signed(found: Comparison, digits: int = 3) -> str:
    """A difference that is none of rates, its interval and the number of scenes."""
    mean, low, high = (number(value, digits, sign=True) for value in (found.difference, found.low, found.high))
    return f"{mean} ({low} to {high}{'' if found.scenes is None else f', n = {found.scenes}'})"
