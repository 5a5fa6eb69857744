"""What a study's numbers say, as words and as tables: the terminal and ``tables.md`` show these."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table

from la_reconvla.conditions import GRID
from la_reconvla.study.declared import HEADLINE, declared_in
from la_reconvla.study.results import (
    STAGES,
    Comparison,
    ConditionResult,
    Elsewhere,
    Floor,
    Hypothesis,
    Measure,
    Pairing,
    Rate,
    Reference,
    Results,
    Stages,
)
from la_reconvla.study.verdicts import in_words

FLOORS = {
    "grey_image": "grey image",
    "wrong_instruction": "wrong instruction",
    "no_image": "no image",
    "blind_replay": "blind replay",
}
CHANGES = {
    "lan": "changed wording",
    "object": "changed objects",
    "swap": "changed positions",
    "task": "changed task",
}
"""What LIBERO-PRO (arXiv 2510.03827) changes, by its name for it."""

# One sentence a table, for the page and for tables.md alike.
FLOORS_SAID = (
    "Floors: blind replay repeats a demonstration whatever the scene looks like; no image is a policy trained without "
    "images; grey image and wrong instruction are an arm's own policy shown a grey picture or told another instruction."
)
EFFECTS_SAID = (
    "Effect size: Cohen's h of two rates with the odds ratio of the starts that only one of both solved; for other "
    "metrics d, the mean difference in standard deviations of the differences. Of h and d 0.2 is small, 0.8 large."
)


@dataclass(frozen=True)
class TextTable:
    """A table of strings; `note` explains it in one sentence."""

    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str = ""

    def markdown(self) -> str:
        """As Markdown, under its title and its note."""
        lines = [self.header, ("---",) * len(self.header), *self.rows]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return "\n\n".join(part for part in (f"## {self.title}", self.note, table) if part)

    def rich(self) -> Table:
        """For a terminal."""
        table = Table(*self.header, title=self.title)
        for row in self.rows:
            table.add_row(*row)
        return table


# ---------------------------------------------------------------- the tables


def success_table(results: Results) -> TextTable:
    """Success of every arm, floor and reference."""
    rows = [(f"{c.id}  {c.name}", c.tsr) for c in results.conditions]
    rows += [(name, found.tsr) for name, found in beside(results) if found.tsr]
    header = ("arm", "successes", "rate", "95 % interval")
    return TextTable("Task success", header, [(name, *_rate(rate)) for name, rate in rows], FLOORS_SAID)


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
        *((f"floor: {FLOORS[f.id]} {f.condition or ''}".strip(), f) for f in results.floors),
        *((f"reference: {r.id}", r) for r in results.references),
    ]


def elsewhere_tables(results: Results) -> list[TextTable]:
    """Success elsewhere, a table for each suite, change and kind of starts: arms, then floors, or that none was run."""

    def where(e: Elsewhere) -> tuple[str, str, str]:
        return e.suite, e.change, e.placement

    groups = groupby(sorted(results.elsewhere, key=where), key=where)
    return [_elsewhere(place(results, *key), list(rows)) for key, rows in groups]


def place(results: Results, suite: str, change: str, placement: str) -> str:
    """A suite, what LIBERO-PRO changed in it, and the kind of starts, in words; without `suite` the study's own."""
    name = suite or results.study.suite or "the study's own suite"
    changed = f" (LIBERO-PRO {change}: {CHANGES.get(change, change)})" if change else ""
    return f"{name}{changed}, {placement} states"


def loss_table(results: Results) -> TextTable:
    """What arms lose on other suites, arm against arm."""
    rows = [
        (
            f"{c.a} - {c.b}",
            c.metric.removeprefix(LOSS),
            f"{percent(c.a_home)} and {percent(c.b_home)}",
            f"{points(c.a_mean)} and {points(c.b_mean)}",
            f"{points(c.difference)} ({points(c.low)} to {points(c.high)})",
            p_value(c.p),
            str(c.n),
            c.note or "–",
        )
        for c in results.comparisons
        if c.metric.startswith(LOSS)
    ]
    header = ("arms", "suite", "success at home", "points lost", "difference of losses", "p", "episodes", "note")
    note = (
        "A loss is success at home minus success on the other suite; a negative difference says that the first arm "
        "lost less. p is not corrected here; H4 corrects those it judges for the number of suites."
    )
    return TextTable("Losses on other suites", header, rows, note)


def _elsewhere(name: str, found: Sequence[Elsewhere]) -> TextTable:
    arms = [e for e in found if e.condition is not None and e.floor is None]
    others = [e for e in found if e not in arms]
    shown = [(e.condition or "", e) for e in arms] + [(_not_arm(e), e) for e in others]
    rows: list[tuple[str, ...]] = [
        (name, *_rate(e.tsr), *(percent(getattr(e.stages, s, None)) for s in STAGES)) for name, e in shown
    ]
    if not others:
        rows.append(("floors: none was rolled out here", *["–"] * (3 + len(STAGES))))
    header = ("policy", "successes", "rate", "95 % interval", *(stage.replace("_", " ") for stage in STAGES))
    return TextTable(f"Success elsewhere: {name}", header, rows)


def _not_arm(e: Elsewhere) -> str:
    if e.floor is not None:
        return f"floor: {FLOORS.get(e.floor, e.floor.replace('_', ' '))} {e.condition or ''}".strip()
    return e.label.replace("_", " ")


def error_table(results: Results) -> TextTable:
    """Held-out action error of every arm and its difference to each floor; n scenes stand behind each interval."""
    floors = ("grey_image", "wrong_instruction", "no_image")
    rows = [
        (c.id, _interval(c.action_error), *(_difference(results.comparison(c.id, f, "action_error")) for f in floors))
        for c in results.conditions
        if c.action_error is not None
    ]
    rows += [
        ("floor: no image", _interval(f.action_error), *["–"] * len(floors))
        for f in results.floors
        if f.id == "no_image" and f.action_error is not None
    ]
    header = ("arm", "action error", *(f"minus {FLOORS[floor]}" for floor in floors))
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
            row = (number(c.aos.mean), between, scenes(c.aos.n), number(c.aos.chance), number(c.aos.ceiling))
            shown = ("aos_g", "aos_g_chance", "pointing", "auroc", "mass", "mass_over_area")
            row += tuple(number(getattr(c.grounding, name, None)) for name in shown)
        rows.append((named(c), *row))
    return TextTable("Attention overlap with the target", header, rows)


def named(condition: ConditionResult) -> str:
    """An arm's id, and whose attention its map is made of where that is not the words'."""
    channel = condition.grounding.channel if condition.grounding else None
    return condition.id if channel in (None, "language") else f"{condition.id} ({channel.replace('_', ' ')})"


def comparison_table(results: Results) -> TextTable:
    """The declared family of paired comparisons."""
    rows = [
        (*_compared(c), p_value(c.p), p_value(c.p_holm), str(c.n)) for c in results.comparisons if c.p_holm is not None
    ]
    header = ("arms", "of", "difference", "effect size", "p", "p (Holm)", "pairs")
    return TextTable("Declared comparisons", header, rows, EFFECTS_SAID)


def floor_table(results: Results) -> TextTable:
    """Success of each arm minus that of its floors, on the same starts."""
    rows = [(*_compared(c), p_value(c.p), str(c.n)) for c in results.against_floors("tsr")]
    header = ("arm and floor", "of", "difference", "effect size", "p", "pairs")
    note = "An arm that is not above a floor has not shown that it uses what the floor goes without."
    return TextTable("Each arm minus its floors, on the same starts", header, rows, note)


def _compared(c: Comparison) -> tuple[str, str, str, str]:
    return f"{c.a} - {c.b.replace('_', ' ')}", metric_name(c.metric), _difference(c), effect_size(c)


LOSS = "loss:"  # how `la_reconvla.study.evidence` names the metric of what is lost on a suite
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
        said.append(f"action error {_interval(c.action_error)}")
    if c.aos is not None:
        said.append(f"AOS {number(c.aos.mean)} ({number(c.aos.low)} to {number(c.aos.high)})")
    if c.head_parameters is not None and c.head_operations is not None:
        said.append(f"head {c.head_parameters / 1e6:.2f} M parameters, {c.head_operations / 1e6:.0f} MFLOP a sample")
    return "; ".join(said)


def exploratory_table(results: Results) -> TextTable:
    """Comparisons of the grid outside of the declared family."""
    rows = [
        (*_compared(c), p_value(c.p), str(c.n))
        for c in map(lambda key: results.comparison(*key), declared_in(results.study).exploratory)
        if c is not None and c.p_holm is None
    ]
    header = ("arms", "of", "difference", "effect size", "p", "pairs")
    return TextTable("Exploratory comparisons, not corrected", header, rows)


def verdict_table(results: Results) -> TextTable:
    """What each hypothesis came to."""
    rows = [(h.id, h.verdict, h.claim) for h in results.hypotheses]
    return TextTable("Hypotheses", ("hypothesis", "verdict", "claim"), rows)


def markdown(results: Results, further: Iterable[TextTable] = ()) -> str:
    """All of it as Markdown, with what ran, on what and how long, and then `further` tables."""
    s = results.study
    took = ", ".join(f"{part} {duration(seconds)}" for part, seconds in s.wall_seconds.items())
    facts = {
        "command": f"`{s.command}`",
        "commit": s.commit,
        "finished": s.finished,
        "setting": ", ".join(f"{key} {value}" for key, value in s.settings.items() if key != "config"),
        "machine": ", ".join(f"{key} {value}" for key, value in s.hardware.items()),
        "versions": ", ".join(f"{key} {value}" for key, value in s.versions.items()),
        "time": took,
        "action error": s.action_error_unit,
        "pairing": "; ".join(map(paired, s.pairing)) or "not checked",
        "declaration": f"SHA-256 {s.hypotheses_hash}" if s.hypotheses_hash else "no hash of it was kept",
        "intervals": "95 %; n, of held-out frames, is the number of different scenes",
    }
    parts = [f"# {s.preset}: {headline(results)}", "\n".join(f"- {key}: {value}" for key, value in facts.items())]
    makers = (
        success_table,
        floor_table,
        grid_table,
        stage_table,
        error_table,
        overlap_table,
        comparison_table,
        exploratory_table,
        verdict_table,
    )
    tables = [*(make(results) for make in makers), *elsewhere_tables(results), loss_table(results), *further]
    return "\n\n".join([*parts, *(table.markdown() for table in tables if table.rows)]) + "\n"


def terminal_summary(results: Results) -> RenderableType:
    """The verdict with the tables of success, stages and attention overlap, for `rich` to print."""
    judged = leading(results)
    colour = {"supported": "green", "refuted": "red"}.get(judged.verdict if judged else "", "yellow")
    tables = (success_table(results), *elsewhere_tables(results), stage_table(results), overlap_table(results))
    return Group(Panel(headline(results), border_style=colour), *(table.rich() for table in tables if table.rows))


def _rate(rate: Rate | None) -> tuple[str, str, str]:
    if rate is None:
        return "not evaluated", "", ""
    return (
        f"{rate.successes} / {rate.episodes}",
        percent(rate.rate),
        f"{percent(rate.low)} to {percent(rate.high)}",
    )


def _interval(measure: Measure | None) -> str:
    if measure is None:
        return "–"
    between = f"{number(measure.low)} to {number(measure.high)}"
    return f"{number(measure.mean)} ({between}; n = {scenes(measure.n)})"


def _difference(found: Comparison | None) -> str:
    if found is None:
        return "–"
    if found.agreement:
        return f"{points(found.difference)} points ({points(found.low)} to {points(found.high)})"
    between = f"{number(found.low, sign=True)} to {number(found.high, sign=True)}"
    count = "" if found.scenes is None else f"; n = {found.scenes}"
    return f"{number(found.difference, sign=True)} ({between}{count})"


# ---------------------------------------------------------------- words and numbers


def leading(results: Results) -> Hypothesis | None:
    """The hypothesis of the first line: whether C4 beats C2 or, where that was not declared, the first that was."""
    return results.hypothesis(HEADLINE) or next(iter(results.hypotheses), None)


def headline(results: Results) -> str:
    """The first line: what was found, for somebody who knows nothing of the study."""
    found, judged = results.comparison("C4", "C2", "tsr"), leading(results)
    word = judged.verdict.capitalize() if judged else "Inconclusive"
    if judged and judged.id != HEADLINE:
        return f"{word}: {judged.claim}"
    if found is None or found.agreement is None:
        return (
            f"{word}: whether a robot policy acts better when it learns to reconstruct what its instruction looks at "
            "(C4) rather than random patches (C2) stays open, because this study did not evaluate both."
        )
    table, n = found.agreement, found.n
    ours, theirs = table.both + table.only_a, table.both + table.only_b
    ending = " That is not enough to say which is better." if word == "Inconclusive" else ""
    return (
        f"{word}: the robot policy that learned to reconstruct what its instruction looks at (C4) succeeded in {ours} "
        f"of {n} episodes ({percent(ours / n)}), the one that learned to reconstruct random patches (C2) in {theirs} "
        f"of the same {n} ({percent(theirs / n)}): a difference of {points(found.difference)} points, "
        f"95 % interval {points(found.low)} to {points(found.high)}.{ending}"
    )


def reason(results: Results) -> str:
    """What the first line leaves unsaid: why the data cannot decide, and what the interval does not cover."""
    found, judged = results.comparison("C4", "C2", "tsr"), leading(results)
    said = judged.because if judged else ""
    if judged and judged.id != HEADLINE:
        return said
    return f"{said.removeprefix(in_words(found))} {found.note}".strip() if found else said


def paired(found: Pairing) -> str:
    """What the arms of one seed had in common, as a sentence without its end."""
    arms = ", ".join(found.arms)
    return (
        f"with seed {found.seed} {arms} started from equal weights (backbone {found.backbone}, action head "
        f"{found.head}) and saw equal batches ({found.batches})"
    )


def metric_name(metric: str) -> str:
    """A metric for people."""
    if metric.startswith(LOSS):
        return f"loss on {metric.removeprefix(LOSS)}"
    return {"tsr": "success", "aos": "AOS", "aid": "AID"}.get(metric, metric.replace("_", " "))


def effect_size(c: Comparison) -> str:
    """The size of a difference, free of units; see `EFFECTS_SAID`."""
    if c.effect is None:
        return "–"
    ratio = c.effect.odds_ratio
    said = [
        f"{name} {number(value, 2, True)}"
        for name, value in (("h", c.effect.cohen_h), ("d", c.effect.standardised))
        if value is not None
    ]
    return "; ".join([*said, *([] if ratio is None else [f"odds ratio {number(ratio, 2)}"])]) or "–"


def scenes(n: int) -> str:
    """A number of scenes; results of an earlier version do not say it."""
    return str(n) if n else "?"


def percent(value: float | None) -> str:
    """0.5 as "50 %"."""
    return "–" if value is None else f"{100 * value:.0f} %"


def points(value: float | None) -> str:
    """A difference of rates in points, with its sign."""
    return "–" if value is None else f"{100 * value:+.1f}".replace("-", "−")


def number(value: float | None, digits: int = 3, sign: bool = False) -> str:
    """A number with a fixed count of digits."""
    return "–" if value is None else f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def p_value(value: float | None) -> str:
    """A p-value; tiny ones as a bound."""
    if value is None:
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def duration(seconds: float) -> str:
    """Seconds as hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
