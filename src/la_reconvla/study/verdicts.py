"""The verdicts of a study, each with the numbers that say so in one sentence."""

from __future__ import annotations

from collections.abc import Sequence

from la_reconvla.study import statistics
from la_reconvla.study.declared import DECLARED, HEADLINE, OVER, Declaration
from la_reconvla.study.results import Comparison, FloorId, Hypothesis
from la_reconvla.study.statistics import Interval, Verdict

NOT_COMPARED = "The data for this comparison are not part of this study."
NO_RECONVLA = (
    "This needs the ReconVLA arm (R1), a diffusion head that reconstructs an annotated crop. "
    "That arm is not part of this study."
)
NOT_SPEED = (
    "A study measures no speed, and neither arm reconstructs when it acts: `la-reconvla bench` measures control, "
    "training and pictures apart."
)
NOT_ELSEWHERE = "Changed wording, objects and suites are not part of this study."
ONE_SEED = "Both arms were trained with one seed only, and such a difference may be luck of that seed."


def judge(comparisons: Sequence[Comparison], declared: Declaration = DECLARED) -> list[Hypothesis]:
    """What `declared` claims, in its order: the package's own asks the headline question first, then H1-H4, then
    whether the policies use image and words. Level and margin are its own too.
    """
    known = {(c.a, c.b, c.metric): c for c in comparisons}
    grounding = [known.get(("C4", other, "aos")) for other in ("C2", "C1")]
    judged = {
        HEADLINE: _judge_headline(known.get(("C4", "C2", "tsr")), declared),
        "H1": _judge_equal(known.get(declared.equivalence), declared),
        "H2": ("inconclusive", NOT_SPEED),
        "H3": _together([_judge_arms(c, declared.alpha) for c in grounding]),
        "H4": _judge_losses(
            [c for c in comparisons if (c.a, c.b) == declared.losses[0] and c.metric.startswith("loss:")], declared
        ),
        # A grey image is foreign to a policy trained on images; one trained without images is the fairer floor.
        "image": _judge_floor(comparisons, "grey_image", "no_image"),
        "words": _judge_floor(comparisons, "wrong_instruction"),
    }
    for id in declared.claims:
        if id not in judged:
            a, _, b = id.partition(OVER)
            judged[id] = _judge_arms(known.get((a, b, "tsr")), declared.alpha)
    return [Hypothesis(id, judged[id][0], judged[id][1], claim) for id, claim in declared.claims.items()]


Judgement = tuple[Verdict, str]


def _judge_headline(c: Comparison | None, declared: Declaration) -> Judgement:
    """C4 against C2 on success. A tie within the margin refutes: then the auxiliary task did it, not grounding.

    A tie of policies that (nearly) always fail or (nearly) always succeed refutes nothing: there all policies tie.
    """
    word, because = _judge_arms(c, declared.alpha)
    if c is None or c.agreement is None or word != "inconclusive":
        return word, because
    if nothing := _tells_nothing(c, declared.same_within):
        return word, f"{because} {nothing}"
    if c.equivalence == "equivalent" and c.seeds > 1:
        return "refuted", f"{because} The two are equal within {100 * declared.same_within:.0f} points."
    if c.a_mean is not None and c.b_mean is not None and c.a_mean != c.b_mean:
        needed = statistics.rollouts_needed(c.a_mean, c.b_mean)
        because += (
            f" To tell such rates apart, about {needed} independent episodes an arm are needed; there were {c.n}."
        )
    return word, because


def _judge_equal(c: Comparison | None, declared: Declaration) -> Judgement:
    """Success within the margin by two one-sided tests; with more than one seed, and where success tells at all."""
    if c is None or c.agreement is None:
        return "inconclusive", NO_RECONVLA
    if nothing := _tells_nothing(c, declared.same_within):
        return "inconclusive", f"{in_words(c)} {nothing}"
    decided: dict[str | None, Verdict] = {"equivalent": "supported", "different": "refuted"}
    word = decided.get(c.equivalence, "inconclusive")
    if word != "inconclusive" and c.seeds < 2:
        return "inconclusive", f"{in_words(c)} {ONE_SEED}"
    better = f" {c.a if c.difference > 0 else c.b} is the better one." if word == "refuted" else ""
    return word, in_words(c) + better


def _judge_losses(losses: Sequence[Comparison], declared: Declaration) -> Judgement:
    """C4 loses less than ReconVLA's arm on every other suite; who has nothing at home has nothing to lose.

    "All of them" needs no correction for their number, "one of them" does (Holm's).
    """
    if not losses:
        return "inconclusive", NOT_ELSEWHERE
    judged: list[Judgement] = []
    for c, p in zip(losses, statistics.holm([c.p for c in losses]), strict=True):
        word = statistics.verdict(Interval(c.low, c.high), "below", p=c.p, alpha=declared.alpha)
        because, home = in_words(c), (c.a_home or 0.0, c.b_home or 0.0)
        if not any((*home, c.a_mean, c.b_mean)):
            word, because = "inconclusive", f"{because} Neither arm ever succeeded, at home or elsewhere."
        elif min(home) < declared.same_within:
            word, because = "inconclusive", f"{because} An arm that hardly succeeds at home has nothing to lose."
        elif word != "inconclusive" and c.seeds < 2:
            word, because = "inconclusive", f"{because} {ONE_SEED}"
        elif word == "refuted" and p >= declared.alpha:
            word = "inconclusive"
        judged.append((word, because))
    return _together(judged)


def _tells_nothing(c: Comparison, margin: float) -> str:
    """Why a tie of successes says nothing; empty if it may say something."""
    assert c.agreement is not None
    if c.agreement.neither == c.n:
        return "Neither policy ever succeeded, so success cannot tell them apart."
    rates = [(c.agreement.both + only) / c.n for only in (c.agreement.only_a, c.agreement.only_b)]
    if max(rates) < margin or min(rates) > 1 - margin:
        return f"Both are at the floor or ceiling, where {100 * margin:.0f} points say nothing."
    return ""


def _judge_arms(c: Comparison | None, alpha: float) -> Judgement:
    """ "a above b", decided by interval and corrected p, and only with more than one training seed."""
    if c is None:
        return "inconclusive", NOT_COMPARED
    word = statistics.verdict(Interval(c.low, c.high), "above", p=c.p if c.p_holm is None else c.p_holm, alpha=alpha)
    if word != "inconclusive" and c.seeds < 2:
        return "inconclusive", f"{in_words(c)} {ONE_SEED}"
    return word, in_words(c)


def _judge_floor(comparisons: Sequence[Comparison], *floors: FloorId) -> Judgement:
    """Action error below each floor in every arm. A claim about these very policies, so one seed will do."""
    judged: list[Judgement] = []
    for floor in floors:
        against = [c for c in comparisons if c.b == floor and c.metric == "action_error"]
        judged.extend((statistics.verdict(Interval(c.low, c.high), "below"), in_words(c)) for c in against)
        if not against:
            judged.append(("inconclusive", f"The floor {floor.replace('_', ' ')} is not part of this study."))
    return _together(judged)


def _together(judged: Sequence[Judgement]) -> Judgement:
    """Supported if all are, refuted if one is."""
    words = [word for word, _ in judged]
    word: Verdict = "inconclusive"
    if "refuted" in words:
        word = "refuted"
    elif all(w == "supported" for w in words):
        word = "supported"
    return word, " ".join(dict.fromkeys(because for _, because in judged))


def in_words(c: Comparison) -> str:
    """The comparison as a sentence with its numbers."""
    value = c.p if c.p_holm is None else c.p_holm
    p = ("p < 0.001" if value < 0.001 else f"p = {value:.3f}") + (
        "" if c.p_holm is None else " after Holm's correction"
    )
    if c.agreement is not None:
        ours, theirs = c.agreement.both + c.agreement.only_a, c.agreement.both + c.agreement.only_b
        return (
            f"{c.a} succeeded in {ours} and {c.b.replace('_', ' ')} in {theirs} of the same {c.n} episodes: "
            f"{100 * c.difference:+.1f} points (95 % interval {100 * c.low:+.1f} to {100 * c.high:+.1f}, {p})."
        )
    if c.metric.startswith("loss:"):
        return (
            f"On {c.metric.removeprefix('loss:')} {c.a} lost {100 * (c.a_mean or 0):.1f} and {c.b} "
            f"{100 * (c.b_mean or 0):.1f} points against home: {100 * c.difference:+.1f} points "
            f"(95 % interval {100 * c.low:+.1f} to {100 * c.high:+.1f}, {p}, {c.n} episodes)."
        )
    count = f"{c.n} episodes" if c.scenes is None else f"{c.scenes} scenes"
    metric = "AOS" if c.metric == "aos" else c.metric.replace("_", " ").capitalize()
    return (
        f"{metric} of {c.a} minus {c.b.replace('_', ' ')}: {c.difference:+.3f} "
        f"(95 % interval {c.low:+.3f} to {c.high:+.3f}, {p}, {count})."
    )
