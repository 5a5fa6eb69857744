"""A study in words: its first line, and the names and numbers that tables, charts and page share."""

from __future__ import annotations

from la_reconvla.analysis.comparisons import Comparison, Hypothesis
from la_reconvla.analysis.declaration import HEADLINE, Rule
from la_reconvla.analysis.results import ConditionResult, Pairing, Results
from la_reconvla.analysis.verdicts import NOT_JUDGED, reasons
from la_reconvla.text_table import number, percent, points

EFFECTS_SAID = (
    "Effect size: Cohen's h of two rates with the odds ratio of the starts that only one of both solved; for other "
    "metrics d, the mean difference in standard deviations of the differences. Of h and d 0.2 is small, 0.8 large."
)

RULES_SAID: dict[Rule, str] = {
    "hull": (
        "Intervals: bootstrap over seeds and, drawn once for all seeds, tasks and starts; for success never narrower "
        "than Newcombe’s score interval. p: exact McNemar test for success, with more than one seed never below the "
        "bootstrap’s; bootstrap otherwise."
    ),
    "pooled": (
        "Intervals and p: Student’s t for new trainings and new starts of these tasks. How much trainings vary is "
        "taken from all arms that a declared comparison names, or from the two where these vary more. With fewer than "
        "three arms, one seed, too few scenes or missing starts both come from the two alone, as a note then says, and "
        "no tie is decided. Holm’s correction counts what was declared and not made."
    ),
}


def leading(results: Results) -> Hypothesis | None:
    """The hypothesis of the first line: whether C4 beats C2 or, where that was not declared, the first one tested."""
    return results.hypothesis(HEADLINE) or next((h for h in results.hypotheses if h.comparisons), None)


def headline(results: Results) -> str:
    """The first line: what was found, for a reader who does not know the study."""
    if not results.study.judged:
        return NOT_JUDGED
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
    decided = judged is not None and judged.verdict in ("supported", "refuted")
    ending = "" if decided else " That does not decide which is better."
    return (
        f"{word}: the robot policy that learned to reconstruct what its instruction looks at (C4) succeeded in {ours} "
        f"of {n} episodes ({percent(ours / n)}), the one that learned to reconstruct random patches (C2) in {theirs} "
        f"of the same {n} ({percent(theirs / n)}): a difference of {points(found.difference)} points, "
        f"95 % interval {points(found.low)} to {points(found.high)}.{ending}"
    )


def reason(results: Results) -> str:
    """What the first line leaves unsaid: why the data cannot decide, and what the interval does not cover."""
    found, judged = results.comparison("C4", "C2", "tsr"), leading(results)
    if judged is None:
        return ""
    if judged.id != HEADLINE or found is None:
        return reasons(results, judged)
    return f"{judged.note} {found.note}".strip()


def paired(pairing: Pairing) -> str:
    """The hashes that the arms of one seed share, as a sentence without its end."""
    arms = ", ".join(pairing.arms)
    return (
        f"with seed {pairing.seed} {arms} started from equal weights (backbone {pairing.backbone}, action head "
        f"{pairing.action_head}) and saw equal batches ({pairing.batches})"
    )


def named(condition: ConditionResult) -> str:
    """An arm's id, and whose attention its map is made of where that is not the words'."""
    channel = condition.grounding.channel if condition.grounding else None
    return condition.id if channel in (None, "language") else f"{condition.id} ({channel.replace('_', ' ')})"


def metric_name(metric: str) -> str:
    """A metric for people."""
    return {"tsr": "success", "aos": "AOS", "aid": "AID"}.get(metric, metric.replace("_", " "))


def compared(c: Comparison) -> str:
    """What was compared, for people: a metric, or what success loses on another suite."""
    return f"loss on {c.suite}" if c.kind == "loss" else metric_name(c.metric)


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
