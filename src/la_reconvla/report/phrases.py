"""A study in words: its first line, the names of its arms, and the numbers that tables, charts and page share.

Sentences name arms by their codes; `spelled` puts what each reconstructs in the place of the code.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from la_reconvla.analysis.comparisons import Comparison, Hypothesis
from la_reconvla.analysis.declaration import ALPHA, CHECKS, HEADLINE, Rule
from la_reconvla.analysis.measures import EPISODE_METRICS, UNBOUNDED
from la_reconvla.analysis.results import Arm, ConditionResult, Pairing, Results
from la_reconvla.analysis.verdicts import NOT_JUDGED
from la_reconvla.conditions import WEIGHTED
from la_reconvla.text_table import number, points

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

NAMES = {
    "C1": "none",
    "C2": "random",
    "C4": "words",
    "C3-0.1": "words, weight 0.1",
    "C3-1.0": "words, weight 1.0",
    "G1": "boxes",
    "D2": "random, diffusion",
    "A1": "words, diffusion",
    "G2": "boxes, diffusion",
    "G1-shuffled": "wrong boxes",
    "C2-head": "random, trained head",
    "C4-head": "words, trained head",
    "G1-head": "boxes, trained head",
    "R1": "box crop",
    "R2": "random crop",
    "R3": "whole image",
}
"""What the arms reconstruct, in as few words as tell them apart; other arms have the name of their condition."""
REGIONS = {
    None: "nothing",
    "random": "random squares",
    "attention": "what the words look at",
    "gaze": "the target",
    "random crop": "a random crop",
    "gaze crop": "a crop of the target",
    "whole image": "the whole image",
}
"""What an arm reconstructs (`Arm.mask`), for the middle of a sentence."""
MOST_WORDS = 20  # of the first line


def plain(arm: Arm) -> str:
    """The name of an arm for a reader who does not know the codes."""
    weighted = WEIGHTED.fullmatch(arm.id)
    if weighted and weighted[1] in NAMES:
        return NAMES.get(arm.id, f"{NAMES[weighted[1]]}, weight {weighted[2]}")
    return NAMES.get(arm.id, arm.name)


def spelled(text: str, arms: Iterable[Arm], form: Callable[[Arm], str] = lambda arm: f"{plain(arm)} ({arm.id})") -> str:
    """`text` with the code of each arm as `form` gives it; a code already in brackets loses them."""
    known = {arm.id: arm for arm in arms}
    if not known:
        return text
    codes = "|".join(re.escape(id) for id in sorted(known, key=len, reverse=True))
    return re.sub(rf"(?<![\w>-])({codes})(?![\w>-])", lambda found: form(known[found[1]]), text)


def leading(results: Results) -> Hypothesis | None:
    """The claim of the first line: whether C4 beats C2 or, where that was not declared, the first one tested."""
    claims = (h for h in results.hypotheses if h.comparisons and h.id not in CHECKS)
    return results.hypothesis(HEADLINE) or next(claims, None)


def led_by(results: Results) -> Comparison | None:
    """The comparison of the first line: of the leading claim, or of C4 and C2."""
    judged = leading(results)
    return next(iter(results.judged_by(judged)), None) if judged and judged.comparisons else results.comparison(
        "C4", "C2", "tsr"
    )  # fmt: skip


def headline(results: Results) -> str:
    """The first line: what was found, in at most `MOST_WORDS` words, for a reader who does not know the study."""
    if not results.study.judged:
        return NOT_JUDGED
    judged, c = leading(results), led_by(results)
    word = judged.verdict.capitalize() if judged else "Inconclusive"
    arms = {arm.id: arm for arm in results.conditions}
    lines = []
    if c is not None and c.agreement is not None:
        ours, theirs = c.agreement.both + c.agreement.only_a, c.agreement.both + c.agreement.only_b
        regions = [REGIONS.get(arms[id].mask) for id in (c.a, c.b)]
        if all(regions) and regions[0] != regions[1]:
            lines.append(
                f"reconstructing {regions[0]} succeeded in {ours} of {c.n} episodes, {regions[1]} in {theirs}."
            )
        lines.append(f"{plain(arms[c.a])} succeeded in {ours} of {c.n} episodes, {plain(arms[c.b])} in {theirs}.")
    if judged and judged.comparisons:
        lines.append(spelled(judged.claim, results.conditions, plain))
        lines.append(f"the first claim, {judged.id}.")
    lines.append("what was declared first was not compared in this study.")
    return next(line for said in lines if len((line := f"{word}: {said}").split()) <= MOST_WORDS)


def reason(results: Results) -> str:
    """What the first line leaves unsaid: direction and interval, why they cannot decide, and what they do not cover."""
    return " ".join(filter(None, reasons_of_first_line(results)))


def reasons_of_first_line(results: Results) -> tuple[str, str]:
    """`reason` in two parts: direction and interval, for the first screen, and the rest."""
    judged, c = leading(results), led_by(results)
    notes = [judged.note if judged else "", c.note if c else ""]
    return direction(c, judged) if c else "", " ".join(filter(None, notes))


def direction(c: Comparison, hypothesis: Hypothesis | None) -> str:
    """Which way a difference points, seen from the claim, and what cannot decide it where nothing does."""
    better = c.difference * (-1 if c.kind == "loss" else 1)
    way = "points the claimed way" if better > 0 else "points the other way" if better < 0 else "is zero"
    if hypothesis is None or hypothesis.id == "H1":  # no way was claimed
        ahead = c.a if better > 0 else c.b if better < 0 else "neither"
        way = f"puts {ahead} ahead"
    metric = "" if c.metric == "tsr" and c.kind == "difference" else f", {compared(c).replace('AOS', 'overlap')}"
    said = f"{c.a} against {c.b}{metric}: {difference(c)} (95 % interval {between(c)})"
    if c.kind == "elsewhere":
        return f"{said}; to be no worse, {c.a} must not be below by the declared margin."
    said = f"{said}, which {way}"
    if (hypothesis and hypothesis.verdict in ("supported", "refuted")) or _decides(c):
        return f"{said}."
    count = counted(c.n, "episode") if c.scenes is None else counted(c.scenes, "scene")
    return f"{said}; {count}, {counted(c.seeds, 'training')} of each, cannot decide."


def _decides(c: Comparison) -> bool:
    """Whether this comparison by itself leaves zero out, after correction where it has one."""
    value = c.p if c.p_holm is None else c.p_holm
    return (c.low > 0 or c.high < 0) and value < ALPHA and c.seeds > 1


def counted(count: int, thing: str) -> str:
    """So many things, in the plural where there is not one."""
    return f"{count} {thing}{'s' * (count != 1)}"


def difference(c: Comparison) -> str:
    """The difference with its unit."""
    return _in_unit(c, c.difference) + (" points" if _rated(c) else " cm" if c.metric == "smallest_distance" else "")


def between(c: Comparison) -> str:
    """The interval, in the unit of `difference`."""
    return f"{_in_unit(c, c.low)} to {_in_unit(c, c.high)}"


def _rated(c: Comparison) -> bool:
    return c.kind in ("loss", "elsewhere", "retained") or (c.metric in EPISODE_METRICS and c.metric not in UNBOUNDED)


def _in_unit(c: Comparison, value: float) -> str:
    if c.metric == "smallest_distance":
        return number(100 * value, 1, True)
    return points(value) if _rated(c) else number(value, 3, True)


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
    said = {"loss": "loss on", "retained": "share of success retained on", "elsewhere": "success on"}.get(c.kind)
    return f"{said} {c.suite}" if said else metric_name(c.metric)


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
