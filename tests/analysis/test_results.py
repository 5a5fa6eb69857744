"""The results file: built from records whose answer is known, written, read back, and refused when it is damaged."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from la_reconvla.analysis import attention_overlap as grounding
from la_reconvla.analysis.bootstrap import student_interval
from la_reconvla.analysis.build import build
from la_reconvla.analysis.comparing import comparison
from la_reconvla.analysis.comparisons import Comparison, ComparisonKey, Hypothesis
from la_reconvla.analysis.declaration import BEFORE, DECLARED, HEADLINE
from la_reconvla.analysis.evidence import Evidence, FloorEvidence, OtherStartsEvidence, by_scene, by_start
from la_reconvla.analysis.frames import FrameMap, FrameRecord, HeldOut
from la_reconvla.analysis.intervals import wilson
from la_reconvla.analysis.measures import EPISODE_METRICS
from la_reconvla.analysis.results import Arm, Results, Study
from la_reconvla.analysis.summaries import measure_frames, rate
from la_reconvla.analysis.verdicts import NO_RECONVLA, NOT_COMPARED, ONE_SEED, in_words, judge
from la_reconvla.conditions import ARMS, C1, C2, C4, CONDITIONS
from la_reconvla.episodes import EpisodeRecord, Label, Reached, StartName, append_episodes, read_episodes
from la_reconvla.errors import UserError
from la_reconvla.method.decoder import MAEDecoder
from la_reconvla.method.variants.denoiser import Denoiser
from la_reconvla.method.variants.targets import Pixels
from la_reconvla.report.tables import grid_table
from la_reconvla.storage import append_jsonl, write_json
from la_reconvla.study.head_cost import head_cost
from la_reconvla.study.heldout import read_held_out, write_held_out
from la_reconvla.study.results import read_results

TASKS = (0, 1, 2)
SAID = {
    str(task): f"pick up the black bowl {where} and place it on the plate"
    for task, where in enumerate(("between", "ramekin", "drawer"))
}
GRID = (7, 7)


NOTHING = Reached()


def episode(
    seed: int | None, task: int, index: int, success: bool, reached: Reached = NOTHING, suite: str = "libero_spatial"
) -> EpisodeRecord:
    start = StartName(suite, task, "official", "test", index, "take the bowl", "bowl_1")
    return EpisodeRecord(Label("?", seed), start, success, steps=120, seconds=4.0, reached=reached)


def episodes(rate: float, seeds: tuple[int | None, ...] = (0,), starts: int = 12, draw: int = 0) -> list[EpisodeRecord]:
    """Rollouts at about `rate`; one draw number gives every policy the same luck, so that pairs agree as in truth."""
    rng = np.random.default_rng(draw)
    records = []
    for seed, task, start in itertools.product(seeds, TASKS, range(starts)):
        luck = rng.random()
        reached = Reached(
            approached=bool(luck < rate + 0.4),
            distractor_approached=bool(luck > 0.95),
            grasped=bool(luck < rate + 0.2),
            lifted=bool(luck < rate + 0.1),
            placed=bool(luck < rate),
            smallest_distance=0.01 + 0.05 * luck,
        )
        records.append(episode(seed, task, start, bool(luck < rate), reached))
    return records


def frames(pull: float, error: float, seeds: tuple[int, ...] = (0,), draw: int = 0) -> list[FrameRecord]:
    """Held-out frames: attention pulled to the target, action error around `error`; every 7th target is hidden."""
    records = []
    for seed in seeds:
        rng = np.random.default_rng([seed, draw])
        where = list(itertools.product(TASKS, range(4), range(5)))
        coverage = np.zeros((len(where), 49))
        for i in range(len(where)):
            coverage[i, rng.integers(0, 47) + np.arange(2)] = 0.0 if i % 7 == 0 else 0.6
        measured = grounding.measure(rng.random(coverage.shape) + pull * coverage, coverage).frames()
        for (task, scene, frame), overlap in zip(where, measured, strict=True):
            name, seen = f"{task}/{scene}", FrameMap("mean", "language", overlap, overlap, aid=0.1 * pull)
            off = float(error + 0.01 * rng.random())
            records.append(FrameRecord(seed, task, name, name, frame, off, mean_map=seen))
    return records


def channelled(records: list[FrameRecord], channel: str) -> list[FrameRecord]:
    """The same frames with the attention of another channel."""
    return [
        dataclasses.replace(r, mean_map=dataclasses.replace(r.mean_map, channel=channel)) for r in records if r.mean_map
    ]


def compared(a: Any, b: Any, metric: str = "tsr", names: tuple[str, str] = ("C4", "C2")) -> Comparison:
    """Two policies' records, compared."""
    if metric in EPISODE_METRICS:
        return comparison(*names, by_start(a, metric), by_start(b, metric), metric)
    values = (by_scene((r, r.value(metric)) for r in side) for side in (a, b))
    return comparison(*names, *values, metric)


FIVE = (0, 1, 2, 3, 4)


def evidence(rate: float, pull: float, error: float, seeds: tuple[int, ...]) -> Evidence:
    return Evidence(
        episodes=episodes(rate, seeds),
        frames=frames(pull, error, seeds),
        train={seed: {"steps": 300, "seconds": 61.5} for seed in seeds},
        metrics={seed: f"metrics-{seed}.jsonl" for seed in seeds},
    )


@cache
def study_results(c4: float = 0.75, seeds: tuple[int, ...] = (0, 1, 2), pull: float = 1.0) -> Results:
    """A study of C1, C2 and C4 in which C4 succeeds in about `c4` and C2 in half of the episodes."""
    truth = ((C1, 0.4, 0.0), (C2, 0.5, 0.0), (C4, c4, pull))
    arms = [(Arm.of(condition), evidence(rate, pulled, 0.10, seeds)) for condition, rate, pulled in truth]
    floors = [FloorEvidence("blind_replay", episodes=episodes(0.03, (None,)))]
    for arm, _ in arms:
        floors.append(FloorEvidence("grey_image", arm.id, episodes(0.05, seeds), frames(0, 0.2, seeds, draw=1)))
        floors.append(FloorEvidence("wrong_instruction", arm.id, frames=frames(0, 0.15, seeds, draw=1)))
    floors.append(FloorEvidence("no_image", None, episodes(0.05, seeds), frames(0, 0.18, seeds, draw=2)))
    return build(
        Study(
            preset="quick",
            tasks=SAID,
        ),
        arms,
        floors,
        {"expert": episodes(1.0, (None,)), "random": episodes(0.0, (None,))},
    )


# ---------------------------------------------------------------- summaries and comparisons


def test_arms_describe_the_conditions() -> None:
    described = {arm.id: (arm.mask, arm.reconstructor, arm.weight) for arm in map(Arm.of, ARMS)}
    assert described["C1"] == (None, None, None)
    assert described["C2"] == ("random", "mae", 0.5)
    assert described["C4"] == ("attention", "mae", 0.5)


def test_counts_add_up() -> None:
    results = study_results(seeds=(0, 1))
    for condition in results.conditions:
        tallies = [cell.tsr for cell in condition.cells if cell.tsr]
        assert [t.episodes for t in tallies] == [36, 36]
        assert all(sum(c.successes for c in t.per_task.values()) == t.successes for t in tallies)
        assert condition.tsr is not None
        assert condition.tsr.successes == sum(t.successes for t in tallies)
        assert condition.tsr.low < condition.tsr.rate == condition.tsr.successes / 72 < condition.tsr.high


def test_grounding_excludes_frames_without_the_target_and_counts_them() -> None:
    c4 = study_results(seeds=(0,)).conditions[-1]
    assert c4.grounding is not None
    assert c4.aos is not None
    assert (c4.grounding.frames, c4.grounding.excluded) == (51, 9)
    assert c4.aos.chance < c4.aos.low < c4.aos.mean < c4.aos.high <= c4.aos.ceiling
    assert c4.grounding.aos == pytest.approx(c4.aos.mean)
    assert c4.destination == c4.grounding
    assert c4.aid is not None
    assert c4.aid.mean == pytest.approx(0.1)


def test_a_comparison_pairs_by_start_and_not_by_order() -> None:
    a, b = episodes(0.7), episodes(0.4, draw=3)
    forward = compared(a, b)
    shuffled = compared(a, b[::-1])
    assert forward == shuffled
    wins = sum(x.success and not y.success for x, y in zip(a, b, strict=True))
    losses = sum(y.success and not x.success for x, y in zip(a, b, strict=True))
    assert forward.agreement is not None
    assert (forward.agreement.only_a, forward.agreement.only_b) == (wins, losses)
    assert forward.p == pytest.approx(binomtest(wins, wins + losses).pvalue)
    assert forward.difference == pytest.approx((wins - losses) / 36)


def test_frames_are_averaged_to_scenes_before_they_are_compared() -> None:
    """Copying a frame ten times must add no certainty."""
    a, b = frames(0, 0.1), frames(0, 0.1, draw=2)
    once = compared(a, b, "action_error")
    assert once.n == 12
    copies = compared([r for r in a for _ in range(10)], [r for r in b for _ in range(10)], "action_error")
    assert (copies.n, copies.low) == (12, pytest.approx(once.low))


def test_episodes_without_a_partner_are_left_out_and_counted() -> None:
    found = compared(episodes(0.7, starts=12), episodes(0.4, starts=10))
    assert (found.n, found.unmatched) == (30, 6)


def test_a_floor_without_training_meets_every_seed() -> None:
    found = compared(episodes(0.7, (0, 1, 2)), episodes(0.1, (None,)), names=("C1", "blind_replay"))
    assert (found.n, found.seeds, found.unmatched) == (108, 3, 0)


def test_nothing_in_common_is_refused() -> None:
    with pytest.raises(UserError, match="evaluate both on the same starts"):
        compared(episodes(0.5, (0,)), episodes(0.5, (1,)))


def test_an_episode_recorded_twice_is_refused() -> None:
    records = episodes(0.5)
    with pytest.raises(UserError, match="recorded twice"):
        by_start([*records, records[3]], "tsr")


def test_holm_runs_over_the_declared_family_only() -> None:
    results = study_results()
    corrected = [c for c in results.comparisons if c.p_holm is not None]
    assert {(c.a, c.b, c.metric) for c in corrected} == {
        ("C4", "C2", "tsr"), ("C4", "C1", "tsr"), ("C4", "C2", "aos"), ("C4", "C1", "aos")
    }  # fmt: skip
    assert min(c.p_holm / c.p for c in corrected if c.p_holm is not None and c.p_holm < 1) >= 1
    smallest = min(corrected, key=lambda c: c.p)
    assert smallest.p_holm == pytest.approx(min(1.0, 4 * smallest.p))


def test_stages_are_compared_without_correction() -> None:
    results = study_results()
    corrected = {(c.a, c.b, c.metric) for c in results.comparisons if c.p_holm is not None}
    for other, metric in itertools.product(("C2", "C1"), ("approached", "grasped", "lifted", "smallest_distance")):
        found = results.comparison("C4", other, metric)
        assert found is not None
        assert found.n == 108
        assert ("C4", other, metric) not in corrected
    lifted = results.comparison("C4", "C2", "lifted")
    _, c2, c4 = (c.stages for c in results.conditions)
    assert lifted is not None
    assert (c4 and c4.lifted, c2 and c2.lifted) == pytest.approx((lifted.a_mean, lifted.b_mean))
    assert {c.b for c in results.against_floors("tsr")} == {"blind_replay", "grey_image", "no_image"}


def test_floors_and_references_have_stages_too() -> None:
    """Shares counted by hand from the records that went in."""
    official = OtherStartsEvidence("official", "C1", episodes(0.3, (0,), starts=4), condition="C1")
    floors = [FloorEvidence("grey_image", "C1", episodes(0.05)), FloorEvidence("no_image", frames=frames(0, 0.2))]
    references = {"expert": episodes(1.0, (None,))}
    arms = [(Arm.of(C1), evidence(0.5, 0, 0.1, (0,)))]
    results = build(Study(preset="quick"), arms, floors, references, elsewhere=[official])
    grey, unrolled = results.floors
    for found, records in (
        (grey, floors[0].episodes),
        (results.references[0], references["expert"]),
        (results.elsewhere[0], official.episodes),
    ):
        assert found.stages is not None
        for stage in ("approached", "distractor_approached", "grasped", "lifted", "placed", "smallest_distance"):
            assert getattr(found.stages, stage) == pytest.approx(np.mean([r.value(stage) for r in records]))
    assert unrolled.stages is None


def test_scenes_count_once_however_many_seeds_met_them() -> None:
    """Three tasks of four scenes are twelve scenes, with one seed and with three."""
    for seeds in ((0,), (0, 1, 2)):
        results = study_results(seeds=seeds)
        c4 = results.conditions[-1]
        assert c4.action_error is not None
        assert c4.aos is not None
        assert (c4.action_error.n, c4.aos.n) == (12, 12)
        against = results.comparison("C4", "grey_image", "action_error")
        assert against is not None
        assert (against.n, against.scenes) == (12 * len(seeds), 12)
        assert "12 scenes" in in_words(against)
        success = results.comparison("C4", "C2", "tsr")
        assert success is not None
        assert success.scenes is None


def test_a_fallback_of_the_attention_is_carried_from_the_frames() -> None:
    seen = frames(1.0, 0.1)
    fallback = channelled(seen, "image_self_attention")
    plain = [dataclasses.replace(r, mean_map=None) for r in seen]
    arms = [(Arm.of(c), Evidence(frames=found)) for c, found in ((C1, plain), (C2, seen), (C4, fallback))]
    results = build(Study(preset="quick"), arms)
    channels = [c.grounding.channel for c in results.conditions if c.grounding]
    assert channels == ["language", "image_self_attention"]
    assert results.conditions[0].grounding is None


def test_a_declared_stage_is_not_exploratory_as_well() -> None:
    arms = [(Arm.of(condition), evidence(0.5, 0, 0.1, (0,))) for condition in (C2, C4)]
    declared = json.dumps(
        {
            **json.loads(DECLARED.text),
            "family": [["C4", "C2", "tsr"], ["C4", "C2", "grasped"]],
            "claims": {"C4>C2": "x"},
        }
    )
    results = build(Study(preset="quick", hypotheses=declared), arms)
    found = [c for c in results.comparisons if c.metric == "grasped"]
    assert [c.p_holm is None for c in found] == [False]


def test_the_interval_of_a_rate_knows_that_seeds_share_starts() -> None:
    """A start that always succeeds under every seed is one success, not three."""
    once = [episode(0, task, start, start < 5) for task in TASKS for start in range(10)]
    thrice = [episode(seed, task, start, start < 5) for seed in (0, 1, 2) for task in TASKS for start in range(10)]
    one, three = rate(once), rate(thrice[::-1])
    pooled = wilson(45, 90)
    assert one is not None
    assert three is not None
    assert (one.low, one.high) == (wilson(15, 30).low, wilson(15, 30).high)
    assert (three.rate, three.successes, three.episodes) == (0.5, 45, 90)
    assert three.high - three.low > 1.4 * (pooled.high - pooled.low)


def test_the_order_of_records_does_not_matter() -> None:
    """Starts are lined up across seeds before they are drawn, whatever the order in which they were evaluated."""
    records = frames(0, 0.1, (0, 1))
    shuffled = [records[i] for i in np.random.default_rng(0).permutation(len(records))]
    straight, other = measure_frames(records, "action_error"), measure_frames(shuffled, "action_error")
    assert straight is not None
    assert other is not None
    assert (other.low, other.high) == pytest.approx((straight.low, straight.high), rel=1e-12)


# ---------------------------------------------------------------- verdicts


def word(results: Results, id: str) -> str:
    found = results.hypothesis(id)
    assert found is not None
    return found.verdict


def test_a_clear_study_is_decided() -> None:
    results = study_results(seeds=FIVE)
    assert word(results, HEADLINE) == "supported"
    assert word(results, "H3") == "supported"
    assert word(results, "image") == word(results, "words") == "check", "these are no claims of the family"
    assert [word(results, h) for h in ("H1", "H2", "H4")] == ["inconclusive"] * 3
    found = results.hypothesis("H1")
    assert found is not None
    assert (found.comparisons, found.note) == ((), NO_RECONVLA)


def test_the_opposite_study_is_refuted() -> None:
    assert word(study_results(c4=0.2, seeds=FIVE), HEADLINE) == "refuted"


def test_three_trainings_say_little_about_training() -> None:
    """The same 25 points that five seeds decide, in 180 episodes: t of two degrees of freedom asks for more."""
    assert word(study_results(), HEADLINE) == "inconclusive"


def test_one_seed_decides_nothing_about_arms() -> None:
    results = study_results(seeds=(0,))
    headline = results.hypothesis(HEADLINE)
    assert headline is not None
    assert headline.verdict == "inconclusive"
    assert headline.note.startswith(ONE_SEED)
    assert word(results, "H3") == "inconclusive"


def outcomes(successes: int, episodes: int = 180, seeds: int = 3) -> list[EpisodeRecord]:
    """`successes` of `episodes`, spread evenly over seeds, tasks and starts."""
    return [episode(i % seeds, TASKS[i // seeds % 3], i // (3 * seeds), i < successes) for i in range(episodes)]


def headline(a: list[EpisodeRecord], b: list[EpisodeRecord]) -> tuple[Hypothesis, Comparison]:
    found = compared(a, b)
    return judge([found], BEFORE)[0], found


@pytest.mark.parametrize("successes", [90, 20, 160])
def test_a_tie_within_five_points_refutes(successes: int) -> None:
    judged, found = headline(outcomes(successes), outcomes(successes))
    assert found.equivalence == "equivalent"
    assert judged.verdict == "refuted"
    assert judged.comparisons == (found.key,)


@pytest.mark.parametrize(("ours", "theirs"), [(0, 0), (1, 0), (2, 2), (180, 180), (178, 180)])
def test_a_tie_at_the_floor_or_the_ceiling_refutes_nothing(ours: int, theirs: int) -> None:
    judged, found = headline(outcomes(ours), outcomes(theirs))
    assert found.equivalence == "equivalent"  # which is why it needs its own rule
    assert judged.verdict == "inconclusive"
    assert judged.note


def test_missing_arms_are_said() -> None:
    results = build(Study(preset="quick"), [(Arm.of(C1), evidence(0.5, 0, 0.1, (0,)))])
    assert results.comparisons == ()
    assert {h.verdict for h in results.hypotheses} == {"inconclusive", "check"}
    assert results.hypotheses[0].note == NOT_COMPARED


def test_a_policy_that_ignores_the_image_is_found_out() -> None:
    arm, same = Arm.of(C1), evidence(0.5, 0, 0.1, (0, 1))
    floor = FloorEvidence(
        "grey_image", "C1", frames=[dataclasses.replace(r, action_error=r.action_error - 0.05) for r in same.frames]
    )
    found = build(Study(preset="quick"), [(arm, same)], [floor]).hypothesis("image")
    assert found is not None
    assert "in 0 of 1 comparisons and above it in 1; n = 12 scenes" in found.note


@pytest.mark.parametrize(("blind_error", "said"), [(0.2, "in 2 of 2"), (0.05, "in 1 of 2"), (None, "in 1 of 1")])
def test_use_of_the_image_is_checked_against_a_policy_without_one_too(blind_error: float | None, said: str) -> None:
    """Bad actions under a grey image may only mean that grey is foreign to a policy trained on images."""
    floors = [FloorEvidence("grey_image", "C1", frames=frames(0, 0.2, (0, 1), draw=1))]
    if blind_error is not None:
        floors.append(FloorEvidence("no_image", None, frames=frames(0, blind_error, (0, 1), draw=1)))
    results = build(Study(preset="quick"), [(Arm.of(C1), evidence(0.5, 0, 0.1, (0, 1)))], floors)
    found = results.hypothesis("image")
    assert found is not None
    assert found.verdict == "check"
    assert said in found.note
    assert ("The floor no image is not part" in found.note) == (blind_error is None)
    assert [key.b for key in found.comparisons] == ["grey_image", *(["no_image"] if blind_error is not None else [])]


def test_a_check_says_of_how_many_scenes_it_is() -> None:
    """Frames of one scene are nearly copies of each other."""
    few = [frame for frame in frames(0, 0.1, (0, 1)) if frame.scene in ("0/0", "0/1")]
    worse = [dataclasses.replace(frame, action_error=frame.action_error + 0.05) for frame in few]
    same = dataclasses.replace(evidence(0.5, 0, 0.1, (0, 1)), frames=few)
    floors = [FloorEvidence("grey_image", "C1", frames=worse), FloorEvidence("no_image", None, frames=worse)]
    found = build(Study(preset="quick"), [(Arm.of(C1), same)], floors).hypothesis("image")
    assert found is not None
    assert found.verdict == "check"
    assert found.note.endswith("in 2 of 2 comparisons; n = 2 scenes.")


def test_intervals_of_bounded_numbers_stay_in_bounds() -> None:
    """Two trainings far apart: Student's t of one degree of freedom reaches far beyond what an overlap can be."""
    apart = [*frames(0.0, 0.1, (0,)), *frames(9.0, 0.9, (1,))]
    met = {C1: outcomes(180), C2: outcomes(90, seeds=2), C4: [r for r in outcomes(90, seeds=2) if r.label.seed == 0]}
    met[C4] += [dataclasses.replace(r, success=not r.success) for r in met[C2] if r.label.seed == 1]
    arms = [(Arm.of(arm), Evidence(episodes=rolled, frames=apart)) for arm, rolled in met.items()]
    means = [np.mean([r.value("aos") for r in apart if r.seed == s and r.value("aos") is not None]) for s in (0, 1)]
    assert student_interval(np.array(means)).low < 0, "without bounds it is below zero"  # type: ignore[union-attr]
    results = build(Study(preset="quick"), arms)
    for arm in results.conditions:
        assert arm.aos is not None
        assert arm.action_error is not None
        assert 0 <= arm.aos.low <= arm.aos.mean <= arm.aos.high <= 1
        assert arm.action_error.low >= 0
    rated = [c for c in results.comparisons if c.metric in ("tsr", "aos")]
    assert rated
    assert all(-1 <= c.low <= c.difference <= c.high <= 1 for c in rated)


# ---------------------------------------------------------------- the file


def test_results_survive_the_file(tmp_path: Path) -> None:
    results = study_results(seeds=(0, 1))
    write_json(tmp_path / "results.json", results)
    assert read_results(tmp_path / "results.json") == results


def damaged(path: Path, change: Any) -> Path:
    write_json(path, study_results(seeds=(0, 1)))
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(schema=1), r"schema 1 is not 2: read it with the version that wrote it, or run it again"),
        (lambda v: v["study"].pop("preset"), r"study\.preset is missing"),
        (lambda v: v["conditions"][1]["tsr"].update(rate="high"), r"conditions\[1\]\.tsr\.rate is 'high'"),
        (lambda v: v["conditions"][0].update(annotation_free=1), r"annotation_free is 1; expected bool"),
        (lambda v: v["conditions"][0]["cells"][0].update(seed=True), r"cells\[0\]\.seed is True; expected int"),
        (lambda v: v["hypotheses"][0].update(verdict="proven"), "verdict is 'proven'; expected one of supported"),
        (lambda v: v.update(conditions={}), r"conditions is \{\}; expected list"),
    ],
)
def test_damage_is_named(tmp_path: Path, change: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_results(damaged(tmp_path / "results.json", change))


def test_a_reader_ignores_what_it_does_not_know(tmp_path: Path) -> None:
    path = damaged(tmp_path / "results.json", lambda v: v["study"].update(weather="fine"))
    assert read_results(path).study.preset == "quick"


def test_no_results_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_results(tmp_path / "results.json")


def test_episodes_and_held_out_frames_survive_their_files(tmp_path: Path) -> None:
    rolled, held_out = episodes(0.5, (0, None)), HeldOut("aa", {"true": tuple(frames(1.0, 0.1)), "grey_image": ()})
    append_episodes(tmp_path, rolled)
    write_held_out(tmp_path, held_out)
    assert read_episodes(tmp_path) == rolled
    assert read_held_out(tmp_path) == held_out


def test_records_of_an_earlier_version_are_refused(tmp_path: Path) -> None:
    append_jsonl(tmp_path / "episodes.jsonl", {"condition": "C1", "seed": 0, "success": True})
    with pytest.raises(UserError, match=r"episodes.jsonl, line 1: schema None is not 2: read it with the version"):
        read_episodes(tmp_path)
    (tmp_path / "held_out.json").write_text('{"version": 2, "true": []}')
    with pytest.raises(UserError, match=r"held_out.json: schema None is not 2"):
        read_held_out(tmp_path)


# ---------------------------------------------------------------- the grid and ReconVLA's arm


def grid_results(r1: float = 0.5, c4: float = 0.5, seeds: tuple[int, ...] = (0, 1), starts: int = 1) -> Results:
    sizes = MAEDecoder(1, 32, 4), Denoiser(1, 32, 4, repeats=1, target=Pixels(2))
    arms = []
    for condition in (C2, C4, CONDITIONS["R1"], CONDITIONS["R2"], CONDITIONS["A1"]):
        rate = {"C4": c4, "R1": r1}.get(condition.id, 0.5)
        cost = head_cost(condition.with_reconstruction_head(*sizes), 32, (4, 4), 8)
        seen = evidence(rate, 0.0, 0.1, seeds)
        many = [
            dataclasses.replace(r, start=dataclasses.replace(r.start, index=100 * copy + r.start.index))
            for copy in range(starts)
            for r in seen.episodes
        ]
        arms.append((Arm.of(condition, cost), dataclasses.replace(seen, episodes=many)))
    return build(Study(preset="quick"), arms)


@pytest.mark.slow
def test_h1_is_judged_by_equivalence() -> None:
    """Equal rates on the very same starts: supported once there are enough of them; far ones are refuted."""
    assert word(grid_results(starts=12), "H1") == "supported"
    assert word(grid_results(r1=0.9, c4=0.3), "H1") == "refuted"
    few = grid_results(r1=0.55)
    found = few.comparison("C4", "R1", "tsr")
    assert found is not None
    assert word(few, "H1") == "inconclusive"
    assert found.p_holm is None, "an equivalence is not among the differences that Holm corrects"
    one = grid_results(starts=12, seeds=(0,))
    assert word(one, "H1") == "inconclusive"
    assert one.hypothesis("H1").note == ONE_SEED
    never = grid_results(r1=-1, c4=-1)
    assert word(never, "H1") == "inconclusive"
    assert never.hypothesis("H1").comparisons == (ComparisonKey("C4", "R1", "tsr"),)


def test_the_grid_stands_by_region_and_head(tmp_path) -> None:
    table = grid_table(grid_results())
    rows = {row[0]: row[1:] for row in table.rows}
    assert list(rows) == ["random", "attention", "random crop", "gaze crop"]
    assert [cell.split(";")[0] for cell in rows["attention"]] == ["C4", "A1"]
    assert [cell.split(";")[0] for cell in rows["random"]] == ["C2", "–"]
    assert [cell.split(";")[0] for cell in rows["gaze crop"]] == ["–", "R1 (annotated)"]
    for cell in (rows["attention"][0], rows["gaze crop"][1]):
        assert re.search(r"success \d+ / \d+, \d+ % to \d+ %", cell)
        assert "M parameters" in cell
    assert not grid_table(study_results()).rows, "a study without a diffusion head has no grid"
    write_json(tmp_path / "results.json", grid_results())
    told = {c.id: c.annotation_free for c in read_results(tmp_path / "results.json").conditions}
    assert told == {"C2": True, "C4": True, "R1": False, "R2": False, "A1": True}
