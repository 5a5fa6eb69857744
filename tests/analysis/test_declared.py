"""What a study judges is declared in a file before it runs, and may not change after that."""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_results import SAID, episodes, evidence

from la_reconvla.analysis.build import build
from la_reconvla.analysis.comparing import all_comparisons, comparison, undeclared
from la_reconvla.analysis.comparisons import Comparison, Hypothesis
from la_reconvla.analysis.declaration import BEFORE, DECLARED, PACKAGED, Declaration, Size, declared_in
from la_reconvla.analysis.evidence import Evidence, by_unit
from la_reconvla.analysis.results import Arm, Results, Study
from la_reconvla.analysis.verdicts import judge
from la_reconvla.conditions import (
    A1,
    ARMS,
    C1,
    C2,
    C2_INPUT,
    C3_HIGH,
    C3_LOW,
    C4,
    FOLLOWING,
    Condition,
    condition,
    nearest,
)
from la_reconvla.errors import UserError
from la_reconvla.method.mask import AttentionMask, RandomMask
from la_reconvla.method.reconstruction import Reconstruction
from la_reconvla.method.variants.denoiser import Denoiser
from la_reconvla.report.summary import undeclared as terminal_lines
from la_reconvla.report.tables import exploratory, exploratory_table
from la_reconvla.storage import write_json
from la_reconvla.study.domains import Recorded, domain
from la_reconvla.study.presets import PRESETS, preset
from la_reconvla.study.requirements import require_beginning, require_declared


def changed(**fields: Any) -> str:
    return json.dumps({**json.loads(DECLARED.text), **fields})


def test_the_packages_own_declaration() -> None:
    assert ("C4", "C2", "tsr") in DECLARED.family
    assert DECLARED.equivalence == ("C4", "R1", "tsr")
    assert hashlib.sha256(PACKAGED.read_bytes()).hexdigest() == DECLARED.hash


@pytest.mark.parametrize("preset_name", list(PRESETS))
def test_a_study_that_begins_now_is_judged_by_the_pooled_rule(tmp_path: Path, preset_name: str) -> None:
    path = tmp_path / "study.json"
    require_beginning(path, domain(preset(preset_name).suite).declared)
    require_beginning(path, Recorded(tmp_path).declared)
    with pytest.raises(UserError, match='must hold "interval": "pooled"'):
        require_beginning(path, Declaration.parse(OLD, "mine.json"))
    told = {"precision": "fp32", "started": "", "hypotheses": OLD, "hypotheses_hash": "x"}
    write_json(path, {"schema": 2, "config": {}, "versions": {}, "commits": [], "hardware": {}, **told})
    require_beginning(path, Declaration.parse(OLD, "mine.json"))  # it goes on


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not valid JSON"),
        ("[]", "must hold exactly"),
        (changed(extra=1), "must hold exactly"),
        (changed(alpha=5), "alpha must be a share"),
        (changed(alpha=0.01), "alpha must be 0.05"),
        (changed(claims={"H9": "x"}), "claims must be about"),
        (changed(claims={"C4>C9": "x"}), "the claim C4>C9 is judged by"),
        (changed(claims={"C4>": "x"}), "which family must name"),
        (changed(family=[["C4", "C22", "tsr"]]), "unknown condition 'C22'"),
        (changed(family=[["C4", "C2", "success"]]), "unknown metric 'success'"),
        (changed(family=[["C4", "C2"]]), "two arms and a metric"),
        (changed(family=[["C4", "C2", "tsr"]] * 2), "is listed twice"),
        (changed(interval="wide"), "interval must be one of hull, pooled"),
        (changed(size=8), "size looks like"),
        (changed(size={"seeds": 0, "episodes": 20}), "size looks like"),
        (changed(interval="pooled", family=[["C4", "C2", "tsr"]]), 'H3 is judged by \\["C4", "C2", "aos"\\]'),
    ],
)
def test_what_is_no_declaration_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        Declaration.read(path)
    with pytest.raises(UserError, match="cannot be read"):
        Declaration.read(tmp_path / "none.json")


def test_a_study_keeps_what_it_began_with() -> None:
    path, other = Path("runs/x/study.json"), Declaration.parse(changed(same_within=0.01), "other")
    begun = {"hypotheses": DECLARED.text, "hypotheses_hash": DECLARED.hash}
    require_declared(begun, None, path)
    require_declared(begun, DECLARED, path)
    with pytest.raises(UserError, match="begun with other hypotheses"):
        require_declared(begun, other, path)
    with pytest.raises(UserError, match="changed after the study began"):
        require_declared({**begun, "hypotheses": other.text}, None, path)


def test_results_are_judged_by_what_the_study_declared() -> None:
    other = changed(same_within=0.1)
    assert declared_in(Study(preset="x", hypotheses=other)).same_within == 0.1
    assert declared_in(Study(preset="x")) is BEFORE
    assert not BEFORE.pooled
    assert not declared_in(Study(preset="x", hypotheses=OLD)).pooled


# ---------------------------------------------------------------- the pooled rule


BY_SUCCESS = [["C4", "C2", "tsr"], ["C4", "C1", "tsr"], ["R1", "R2", "tsr"], ["R1", "R3", "tsr"]]
CLAIMS = {"C4>C2": "more", "H1": "as good", "image": "x", "words": "x"}
POOLED = changed(family=BY_SUCCESS, exploratory=[], claims=CLAIMS)
OLD = json.dumps({name: value for name, value in json.loads(POOLED).items() if name != "interval"})
DATED = PACKAGED.with_name("declared-2026-11.json")
RATES = {"C1": 0.3, "C2": 0.35, "C4": 0.8, "R1": 0.8, "R2": 0.4}


@dataclass(frozen=True)
class Judged:
    comparisons: dict[tuple[str, str, str], Comparison]
    verdicts: dict[str, Hypothesis]

    @property
    def family(self) -> list[Comparison]:
        return [c for c in self.comparisons.values() if c.p_holm is not None]


@functools.cache
def judged(text: str, arms: str = "C1 C2 C4 R1 R2") -> Judged:
    """Three seeds of these arms, judged by success."""
    declared = Declaration.parse(text, "test")
    found = {id: Evidence(episodes=episodes(RATES[id], (0, 1, 2))) for id in arms.split()}
    comparisons = all_comparisons(found, [], [], declared)
    verdicts = judge(comparisons, declared, len(SAID))
    return Judged({(c.a, c.b, c.metric): c for c in comparisons}, {h.id: h for h in verdicts})


def test_the_declaration_of_the_study() -> None:
    declared = Declaration.read(DATED)
    assert declared.pooled
    assert declared.size == Size(seeds=8, episodes=20)
    assert len(declared.family) == 8
    assert {arm for a, b, _ in (*declared.family, declared.equivalence) for arm in (a, b)} == {
        *("C1", "C2", "C4", "C4-inverted", "G1", "R1", "R2", "R3")
    }


def test_a_declaration_without_the_field_is_judged_by_the_rule_of_before() -> None:
    pair, pooled = (judged(text).comparisons["C4", "C2", "tsr"] for text in (OLD, POOLED))
    assert (pair.spread, pair.p_margin) == ("pair", None)
    assert pooled.spread != "pair"
    assert pooled.difference == pair.difference
    assert pooled.high - pooled.low < pair.high - pair.low


@pytest.mark.parametrize("arms", ["C1 C2 C4 R1 R2", "C1 C2 C4"])
def test_holm_counts_what_was_declared_and_not_made(arms: str) -> None:
    """Four comparisons, of which one or two were not made, and H1: the least of their p counts five times."""
    found, before = judged(POOLED, arms), judged(OLD, arms)
    equal = found.comparisons.get(("C4", "R1", "tsr"))
    p = [*(c.p for c in found.family), *([equal.p_margin] if equal else [])]
    assert min(c.p_holm or 0.0 for c in found.family) == pytest.approx(min(1.0, 5 * min(c.p for c in found.family)))
    assert min(p) in [c.p for c in found.family], "otherwise this tests another rank"
    least = min(before.family, key=lambda c: c.p)
    assert least.p_holm == pytest.approx(min(1.0, len(before.family) * least.p))


@pytest.mark.parametrize(("within", "told"), [(0.2, "equivalent"), (0.06, "undecided"), (0.05, "undecided")])
def test_equivalence_is_decided_by_its_corrected_p(within: float, told: str) -> None:
    """H1 is one of five tests: each p times as many as are not smaller, and no less than a smaller one's."""
    text = json.dumps({**json.loads(POOLED), "same_within": within})
    found, declared = judged(text), Declaration.parse(text, "test")
    values = {id: by_unit(Evidence(episodes=episodes(RATES[id], (0, 1, 2))), "tsr") for id in RATES}
    raw = comparison("C4", "R1", values["C4"], values["R1"], same_within=within, study=values).p_margin
    equal = found.comparisons["C4", "R1", "tsr"]
    assert raw is not None
    if within == 0.06:
        assert 0.05 / 2 < raw < 0.05, "this case tests nothing: two of the five have a larger p"
    tests = sorted([*(c.p for c in found.family), raw, *[1.0] * (len(declared.family) - len(found.family))])
    steps = [(5 - rank) * p for rank, p in enumerate(tests)]
    assert equal.p_margin == pytest.approx(min(1.0, max(steps[: tests.index(raw) + 1])))
    assert equal.equivalence == told


def test_without_a_corrected_p_success_is_not_equal() -> None:
    loose = json.dumps({**json.loads(POOLED), "same_within": 0.49})
    assert judged(loose, "C4 R1").comparisons["C4", "R1", "tsr"].equivalence == "undecided"
    before = json.dumps({**json.loads(OLD), "same_within": 0.49})
    assert judged(before, "C4 R1").comparisons["C4", "R1", "tsr"].equivalence == "equivalent"


def test_no_tie_refutes_the_headline_by_the_pooled_rule() -> None:
    """H1's equivalence is in the family, that of C4 and C2 is not."""
    tie = replace(judged(POOLED).comparisons["C4", "C2", "tsr"], equivalence="equivalent", low=-0.02, p_holm=0.9)
    words = [judge([tie], Declaration.parse(text, "test"))[0] for text in (OLD, POOLED)]
    assert [h.verdict for h in words] == ["refuted", "inconclusive"]
    assert all("equal within 5 points" in h.note for h in words)


def test_image_and_words_are_checks_without_a_verdict() -> None:
    assert [judged(POOLED).verdicts[id].verdict for id in ("image", "words")] == ["check", "check"]
    assert [judged(OLD).verdicts[id].verdict for id in ("image", "words")] == ["check", "check"]
    assert "grey image is not part" in judged(POOLED).verdicts["image"].note


@pytest.mark.parametrize(
    ("seeds", "more", "word"),
    [(3, 0, "supported"), (4, 0, "interim"), (2, 0, "exploratory"), (3, 1, "interim"), (3, -1, "exploratory")],
)
def test_a_study_is_judged_at_its_declared_size(seeds: int, more: int, word: str) -> None:
    starts = judged(POOLED).comparisons["C4", "C2", "tsr"].n // (3 * len(SAID))
    size = {"seeds": seeds, "episodes": starts + more}
    found = judged(json.dumps({**json.loads(POOLED), "size": size})).verdicts["C4>C2"]
    assert found.verdict == word
    h4 = replace(
        judged(POOLED).comparisons["C4", "C2", "tsr"], b="R1", kind="retained", metric="retained", agreement=None
    )
    away = replace(h4, kind="elsewhere", metric="elsewhere", starts=starts)
    for at_home in (starts, starts + 1, starts - 1):
        text = json.dumps({**json.loads(POOLED), "claims": {"H4": "x"}, "size": {"seeds": 3, "episodes": starts}})
        shown = [replace(h4, starts=at_home), away, replace(h4, kind="loss", metric="tsr", agreement=None)]
        (of_h4,) = judge(shown, Declaration.parse(text, "test"), None)
        assert (of_h4.verdict == "interim") == (at_home < starts)
        assert (of_h4.verdict == "exploratory") == (at_home > starts)
    if word == "interim":
        assert f"3 of {seeds} declared seeds, {starts} of {starts + more} declared starts" in found.note


@pytest.mark.parametrize(
    ("arms", "seeds", "rate", "spread", "note"),
    [
        ("C1 C2 C4", (0,), 0.5, "pair", "there is one training seed only"),
        ("C2 C4", (0, 1, 2), 0.5, "pair", "fewer than 3 arms"),
        ("C2 C4 C3-1.0", (0, 1, 2), 0.5, "pair", "fewer than 3 arms"),  # no declared comparison names C3
        ("C1 C2 C4", (0, 1), 0.5, "", ""),
        ("C1 C2 C4", (0, 1), 0.0, "all arms", ""),
        ("C1 C2 C4", (0, 1), 1.0, "all arms", ""),
    ],
)
def test_what_is_too_little_to_pool_is_said_and_decides_nothing(
    arms: str, seeds: tuple[int, ...], rate: float, spread: str, note: str
) -> None:
    """By the package's own declaration, for arms that are alike."""
    found = {id: Evidence(episodes=episodes(rate, seeds)) for id in arms.split()}
    comparisons = all_comparisons(found, [], [], DECLARED)
    c = next(c for c in comparisons if (c.a, c.b, c.metric) == ("C4", "C2", "tsr"))
    assert c.spread == spread if spread else c.spread != "pair"
    assert note in c.note
    assert c.low < 0 < c.high, "an interval of some width, also where all is alike"
    assert c.p_holm == 1.0
    if note:
        assert c.equivalence == "undecided", "a tie needs a p that can be corrected"
    verdicts = {h.id: h.verdict for h in judge(comparisons, DECLARED, len(SAID))}
    assert {verdicts[id] for id in ("C4>C2", "H1", "H2", "H3", "H4")} == {"inconclusive"}


def test_one_seed_decides_nothing_however_far_apart_the_arms_are() -> None:
    found = {id: Evidence(episodes=episodes(rate, (0,))) for id, rate in (("C1", 0.0), ("C2", 0.0), ("C4", 1.0))}
    (headline, *_) = judge(all_comparisons(found, [], [], DECLARED), DECLARED, len(SAID))
    assert (headline.verdict, "one seed" in headline.note) == ("inconclusive", True)


# ---------------------------------------------------------------- arms that nobody declared


@dataclass(frozen=True)
class Falling:
    label = "falling"

    def __call__(self, progress: float) -> float:
        return 2 * (1 - progress)


def arm(**fields: Any) -> Condition:
    return Condition("mine", "mine", Reconstruction(**fields))


@pytest.mark.parametrize(
    ("mine", "others"),
    [
        (arm(mask=AttentionMask(0.5)), "C1 C2 C4"),  # another mask, and all else as in these two
        (arm(weight=0.9), "C1 C3-1.0"),  # lambda alone, and that one's is the nearest
        (arm(weight=Falling()), "C1 C3-1.0"),  # halfway through it is 1
        (arm(mask=RandomMask(), reconstruction_head=Denoiser(depth=1)), "C1 C2"),
        (arm(mask_at="input"), "C1 C4"),
        (Condition("mine", "grey", blind=True), "C1"),
    ],
)
def test_the_nearest_arms_are_those_that_differ_least_whatever_their_names(mine: Condition, others: str) -> None:
    assert " ".join(other.id for other in nearest(mine, ARMS)) == others
    assert nearest(replace(mine, id="C4"), [C1]) == [C1]
    renamed = [replace(other, id=f"x{i}", name="") for i, other in enumerate(ARMS)]
    expected = [f"x{[a.id for a in ARMS].index(id)}" for id in others.split()]
    assert [other.id for other in nearest(mine, renamed)] == expected


def test_of_many_ties_the_first_three_stay() -> None:
    masks = [replace(arm(mask=AttentionMask(share)), id=str(share)) for share in (0.1, 0.2, 0.3, 0.4, 0.5)]
    assert [other.id for other in nearest(C4, masks)] == ["0.1", "0.2", "0.3"]


def pairs(*arms: Condition) -> set[tuple[str, str]]:
    return {(a, b) for a, b, _ in undeclared(arms, DECLARED)}


def test_only_arms_that_no_declared_comparison_of_the_study_names_are_added() -> None:
    assert pairs(C1, C2, C4) == set()
    assert pairs(*ARMS) == {(low.id, other) for low in (C3_LOW, C3_HIGH) for other in ("C1", "C4")}
    assert pairs(C1, C2, C4, C2_INPUT) == {("C2-input", "C1"), ("C2-input", "C2")}
    assert pairs(C1, A1) == {("A1", "C1")}, "what it is declared against is not here; one of the two is enough"
    assert pairs(C1) == set()


TRUTH = {C1: 0.4, C2: 0.5, C4: 0.75, next(one for one in FOLLOWING if one.id == "C4-two"): 0.6}


def study_of(*arms: Condition, declared: str = "") -> Results:
    """A study of these of `TRUTH`: the higher their success, the smaller their action error."""
    seen = [(Arm.of(one), evidence(TRUTH[one], 0.0, 0.2 - 0.1 * TRUTH[one], (0, 1))) for one in arms]
    return build(Study(preset="quick", tasks=SAID, hypotheses=declared), seen, conditions=arms)


def test_an_arm_of_ones_own_is_compared_without_a_file_of_hypotheses() -> None:
    results = study_of(*TRUTH)
    rates = {c.id: c.tsr.rate for c in results.conditions if c.tsr}
    found = {(c.b, c.metric): c for c in results.comparisons if c.a == "C4-two"}
    assert set(found) == {(other, metric) for other in ("C1", "C2", "C4") for metric in ("tsr", "action_error")}
    for (other, metric), c in found.items():
        assert c.p_holm is None
        if metric == "tsr":
            np.testing.assert_allclose(c.difference, rates["C4-two"] - rates[other])
        else:
            np.testing.assert_allclose(c.difference, 0.1 * (TRUTH[condition(other)] - 0.6))
    assert [c for c in exploratory(results) if c.a == "C4-two"] == list(found.values())
    shown = exploratory_table(results).markdown()
    assert all(f"| C4-two - {other} |" in shown for other in ("C1", "C2", "C4"))
    lines = terminal_lines(results)
    assert [line.split()[3] for line in lines] == ["C1", "C2", "C4"]
    assert all("C4-two" in line and len(line) <= 80 for line in lines)


@pytest.mark.parametrize("declared", [DECLARED.text, POOLED], ids=["package", "test"])
def test_it_changes_no_declared_comparison_and_no_verdict(declared: str) -> None:
    results, without = study_of(*TRUTH, declared=declared), study_of(C1, C2, C4, declared=declared)
    assert results.comparisons[0].spread != "pair"
    alone = [one for one in results.comparisons if one.a != "C4-two"]
    assert (alone, results.hypotheses) == (list(without.comparisons), without.hypotheses)


def test_declared_by_the_user_it_is_in_the_family_alone() -> None:
    declared = changed(family=[["C4", "C2", "tsr"], ["C4-two", "C4", "tsr"]], claims=CLAIMS)
    results = study_of(*TRUTH, declared=declared)
    assert [(c.b, c.metric) for c in results.comparisons if c.a == "C4-two" and c.p_holm is not None] == [("C4", "tsr")]
    assert not [c for c in exploratory(results) if c.a == "C4-two"]


def test_a_declaration_of_the_package_is_read_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Declaration.read("declared-2026-11.json").interval == "pooled"
    (tmp_path / "declared-2026-11.json").write_text("{}")
    with pytest.raises(UserError):
        Declaration.read("declared-2026-11.json")
    with pytest.raises(UserError, match=r"give a JSON file like .*declared-2026-11"):
        Declaration.read("nowhere.json")
