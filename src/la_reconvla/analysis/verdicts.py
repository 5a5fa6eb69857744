"""The verdicts of a study, each with the comparisons that it rests on and what was weighed beside their numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from la_reconvla.analysis import decisions
from la_reconvla.analysis.comparisons import Comparison, ComparisonKey, Hypothesis
from la_reconvla.analysis.decisions import Verdict
from la_reconvla.analysis.declaration import DECLARED, HEADLINE, OVER, Declaration, Size
from la_reconvla.analysis.intervals import Interval
from la_reconvla.analysis.results import FloorId, Results

NOT_JUDGED = "Not judged: this preset only shows that everything runs."
NOT_COMPARED = "The data for this comparison are not part of this study."
NO_RECONVLA = (
    "This needs the ReconVLA arm (R1), a diffusion head that reconstructs an annotated crop. "
    "That arm is not part of this study."
)
NOT_SPEED = (
    "A study measures no speed, and neither arm reconstructs when it acts: `la-reconvla check speed` measures control, "
    "training and pictures apart."
)
NO_OTHER_SUITES = "Changed wording, objects and suites are not part of this study."
NOT_RETAINED = (
    "What is retained needs two seeds and enough scenes at home and on every other suite, and arms that succeed at "
    "home: where they hardly do, there is nothing to retain."
)
ONE_SEED = "Both arms were trained with one seed only, and such a difference may be luck of that seed."


@dataclass(frozen=True)
class Judgement:
    """A verdict before it is written down: the word, the comparisons that it rests on, and what was weighed beside."""

    verdict: Verdict
    comparisons: tuple[Comparison, ...] = ()
    note: str = ""


def judge(
    comparisons: Sequence[Comparison], declared: Declaration = DECLARED, tasks: int | None = None
) -> list[Hypothesis]:
    """What `declared` claims, in its order: the package's own asks the headline question first, then H1-H4, then
    whether the policies use image and words. Level and margin are its own too.

    Args:
        comparisons: all of the study.
        declared: what is judged. Where it names the study's size, nothing is decided at another one.
        tasks: number of tasks of the study; None if it is not known.
    """
    known = {c.key: c for c in comparisons}
    grounding = [known.get(ComparisonKey("C4", other, "aos")) for other in ("C2", "C1")]
    judged = {
        HEADLINE: _judge_headline(known.get(ComparisonKey("C4", "C2", "tsr")), declared),
        "H1": _judge_equal(known.get(ComparisonKey(*declared.equivalence)), declared),
        "H2": Judgement("inconclusive", note=NOT_SPEED),
        "H3": _together([_judge_arms(c, declared.alpha) for c in grounding]),
        "H4": _judge_losses(
            [c for c in comparisons if c.kind == "loss" and (c.a, c.b) == declared.losses[0]], declared
        ),
        # A grey image is foreign to a policy trained on images; one trained without images is the fairer floor.
        "image": _check(comparisons, "grey_image", "no_image"),
        "words": _check(comparisons, "wrong_instruction"),
    }
    if declared.pooled:
        judged["H4"] = _judge_retained(comparisons, declared)
    for id in declared.claims:
        if id not in judged:
            a, _, b = id.partition(OVER)
            judged[id] = _judge_arms(known.get(ComparisonKey(a, b, "tsr")), declared.alpha)
    judged = {id: _at_declared_size(found, declared.size, tasks) for id, found in judged.items()}
    return [
        Hypothesis(id, (j := judged[id]).verdict, tuple(c.key for c in j.comparisons), j.note, claim)
        for id, claim in declared.claims.items()
    ]


def _judge_headline(c: Comparison | None, declared: Declaration) -> Judgement:
    """C4 against C2 on success. A tie within the margin refutes: then the auxiliary task did it, not grounding.

    A tie of policies that (nearly) always fail or (nearly) always succeed refutes nothing: there all policies tie. By
    the pooled rule no tie does: that of this comparison is none of the tests that Holm's correction counts.
    """
    found = _judge_arms(c, declared.alpha)
    if c is None or c.agreement is None or found.verdict != "inconclusive":
        return found
    if nothing := _tells_nothing(c, declared.same_within):
        return Judgement("inconclusive", (c,), _joined(found.note, nothing))
    if c.equivalence == "equivalent" and c.seeds > 1:
        same = f"The two are equal within {100 * declared.same_within:.0f} points."
        if declared.pooled:
            same += " That is not corrected for the number of tests, and refutes nothing."
        return Judgement("inconclusive" if declared.pooled else "refuted", (c,), _joined(found.note, same))
    return found


def _judge_equal(c: Comparison | None, declared: Declaration) -> Judgement:
    """Success within the margin by two one-sided tests; with more than one seed, and where success tells at all."""
    if c is None or c.agreement is None:
        return Judgement("inconclusive", note=NO_RECONVLA)
    if nothing := _tells_nothing(c, declared.same_within):
        return Judgement("inconclusive", (c,), nothing)
    decided: dict[str | None, Verdict] = {"equivalent": "supported", "different": "refuted"}
    word = decided.get(c.equivalence, "inconclusive")
    if word != "inconclusive" and c.seeds < 2:
        return Judgement("inconclusive", (c,), ONE_SEED)
    better = f"{c.a if c.difference > 0 else c.b} is the better one." if word == "refuted" else ""
    return Judgement(word, (c,), better)


def _judge_losses(losses: Sequence[Comparison], declared: Declaration) -> Judgement:
    """C4 loses less than ReconVLA's arm on every other suite; who has nothing at home has nothing to lose.

    "All of them" needs no correction for their number, "one of them" does (Holm's).
    """
    if not losses:
        return Judgement("inconclusive", note=NO_OTHER_SUITES)
    judged: list[Judgement] = []
    for c, p in zip(losses, decisions.holm([c.p for c in losses]), strict=True):
        word = decisions.verdict(Interval(c.low, c.high), "below", p=c.p, alpha=declared.alpha)
        note, home = "", (c.a_home or 0.0, c.b_home or 0.0)
        if not any((*home, c.a_mean, c.b_mean)):
            word, note = "inconclusive", f"{c.suite}: neither arm ever succeeded, there or at home."
        elif min(home) < declared.same_within:
            word, note = "inconclusive", f"{c.suite}: an arm that hardly succeeds at home has nothing to lose."
        elif word != "inconclusive" and c.seeds < 2:
            word, note = "inconclusive", ONE_SEED
        elif word == "refuted" and p >= declared.alpha:
            word = "inconclusive"
        judged.append(Judgement(word, (c,), note))
    return _together(judged)


def _judge_retained(comparisons: Sequence[Comparison], declared: Declaration) -> Judgement:
    """On every other suite C4 retains a larger share of its success than ReconVLA's arm, and is no worse there.

    "No worse" is by less than the margin, and "worse" by more than it: what lies between decides nothing. What all of
    them have to show, both things, needs no correction for their number (`p_holm` is that of the largest p), what one
    of them shows has Bonferroni's: of all tests and all suites.
    """
    shares = [c for c in comparisons if c.kind == "retained"]
    there = {c.suite: c for c in comparisons if c.kind == "elsewhere"}
    suites = {c.suite for c in comparisons if c.kind == "loss" and (c.a, c.b) == declared.losses[0]}
    if not suites:
        return Judgement("inconclusive", note=NO_OTHER_SUITES)
    if suites != {c.suite for c in shares} or suites != set(there):
        return Judgement("inconclusive", tuple(shares), NOT_RETAINED)
    least = declared.alpha / len(suites) / declared.tests(())
    judged: list[Judgement] = []
    for c in shares:
        away, note = there[c.suite], ""
        word: Verdict = "inconclusive"
        # The p of the margin is one-sided; that of retaining less, like all others, two-sided.
        worse = away.high < -declared.same_within and away.p_margin is not None and 2 * away.p_margin < least
        if worse or (c.high < 0 and c.p < least):
            word = "refuted"
        elif c.low > 0 and away.low > -declared.same_within:
            word = "supported" if c.p_holm is not None and c.p_holm < declared.alpha else "inconclusive"
        elif c.low > 0:
            note = f"{c.suite}: {c.a} may be worse there, however much it retains."
        judged.append(Judgement(word, (c, away), note))
    return _together(judged)


def _tells_nothing(c: Comparison, margin: float) -> str:
    """Why a tie of successes means nothing; empty if it may mean something."""
    assert c.agreement is not None
    if c.agreement.neither == c.n:
        return "Neither policy ever succeeded, so success cannot tell them apart."
    rates = [(c.agreement.both + only) / c.n for only in (c.agreement.only_a, c.agreement.only_b)]
    if max(rates) < margin or min(rates) > 1 - margin:
        return f"Both are at the floor or ceiling, where {100 * margin:.0f} points mean nothing."
    return ""


def _judge_arms(c: Comparison | None, alpha: float) -> Judgement:
    """ "a above b", decided by interval and corrected p, and only with more than one training seed."""
    if c is None:
        return Judgement("inconclusive", note=NOT_COMPARED)
    word = decisions.verdict(Interval(c.low, c.high), "above", p=c.p if c.p_holm is None else c.p_holm, alpha=alpha)
    if word != "inconclusive" and c.seeds < 2:
        return Judgement("inconclusive", (c,), ONE_SEED)
    return Judgement(word, (c,))


def checked(against: Sequence[Comparison]) -> str:
    """In how many comparisons with floors the action error is lower, with n; empty without any."""
    if not against:
        return ""
    below, above = sum(c.high < 0 for c in against), sum(c.low > 0 for c in against)
    said = f"The action error is below the floor, interval and all, in {below} of {len(against)} comparisons"
    said += f" and above it in {above}" if above else ""
    scenes = min((c.n if c.scenes is None else c.scenes) for c in against)
    return f"{said}; n = {scenes} scenes."


def _check(comparisons: Sequence[Comparison], *floors: FloorId) -> Judgement:
    """How many arms have an action error below each floor. It is no claim of the family, and its p are not corrected.

    Frames of one scene are nearly copies of each other, so an interval from two or three scenes says little: the number
    of scenes is given.
    """
    of_floors = [[c for c in comparisons if c.b == floor and c.metric == "action_error"] for floor in floors]
    missing = [f"The floor {floor.replace('_', ' ')} is not part of this study."
               for floor, found in zip(floors, of_floors, strict=True) if not found]  # fmt: skip
    against = tuple(c for found in of_floors for c in found)
    if not against:
        return Judgement("check", note=_joined(*missing))
    return Judgement("check", against, _joined(checked(against), *missing))


def _at_declared_size(found: Judgement, size: Size | None, tasks: int | None) -> Judgement:
    """The judgement if all its comparisons are of the declared size; before and after it, what that means instead."""
    if size is None or not found.comparisons or found.verdict == "check":
        return found
    seeds = [c.seeds for c in found.comparisons]
    starts = [c.n // (c.seeds * tasks) for c in found.comparisons if tasks and c.agreement is not None]
    starts += [c.starts for c in found.comparisons if c.starts is not None]
    so_far = f"{min(seeds)} of {size.seeds} declared seeds"
    if starts:
        so_far += f", {min(starts)} of {size.episodes} declared starts a task"
    if min(seeds) < size.seeds or min(starts, default=size.episodes) < size.episodes:
        return Judgement("interim", found.comparisons, f"Interim: {so_far}. Nothing is decided before all of them.")
    if max(seeds) > size.seeds or max(starts, default=size.episodes) > size.episodes:
        beyond = f"Exploratory: the study grew beyond what it declared ({so_far}), so it decides nothing more."
        return Judgement("exploratory", found.comparisons, beyond)
    return found


def _together(judged: Sequence[Judgement]) -> Judgement:
    """Supported if all are, refuted if one is."""
    words = [j.verdict for j in judged]
    word: Verdict = "inconclusive"
    if "refuted" in words:
        word = "refuted"
    elif all(w == "supported" for w in words):
        word = "supported"
    return Judgement(word, tuple(c for j in judged for c in j.comparisons), _joined(*(j.note for j in judged)))


def _joined(*notes: str) -> str:
    """Each sentence once."""
    return " ".join(dict.fromkeys(filter(None, notes)))


def reasons(results: Results, hypothesis: Hypothesis) -> str:
    """Why a verdict is what it is, in words: its note after the numbers of its comparisons."""
    return " ".join(filter(None, (*map(in_words, results.judged_by(hypothesis)), hypothesis.note)))


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
    if c.kind == "loss":
        return (
            f"On {c.suite} {c.a} lost {100 * (c.a_mean or 0):.1f} and {c.b} "
            f"{100 * (c.b_mean or 0):.1f} points against home: {100 * c.difference:+.1f} points "
            f"(95 % interval {100 * c.low:+.1f} to {100 * c.high:+.1f}, {p}, {c.n} episodes)."
        )
    if c.kind in ("retained", "elsewhere"):
        did = "retained" if c.kind == "retained" else "succeeded in"
        of = "their success at home" if c.kind == "retained" else "all episodes"
        return (
            f"On {c.suite} {c.a} {did} {100 * (c.a_mean or 0):.1f} and {c.b} {100 * (c.b_mean or 0):.1f} % of {of}: "
            f"{100 * c.difference:+.1f} points (95 % interval {100 * c.low:+.1f} to {100 * c.high:+.1f}, {p}, {c.n} "
            "episodes)."
        )
    count = f"{c.n} episodes" if c.scenes is None else f"{c.scenes} scenes"
    metric = "AOS" if c.metric == "aos" else c.metric.replace("_", " ").capitalize()
    return (
        f"{metric} of {c.a} minus {c.b.replace('_', ' ')}: {c.difference:+.3f} "
        f"(95 % interval {c.low:+.3f} to {c.high:+.3f}, {p}, {count})."
    )
