"""Two studies beside each other: paired where records allow it, honest where they do not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_report import Page
from test_results import episode, episodes, frames

from la_reconvla import layout
from la_reconvla.analysis.build import build
from la_reconvla.analysis.evidence import Evidence, FloorEvidence
from la_reconvla.analysis.frames import HeldOut
from la_reconvla.analysis.intervals import wilson
from la_reconvla.analysis.measures import Rate
from la_reconvla.analysis.results import Arm, Results, Study
from la_reconvla.conditions import C1, C4, R1
from la_reconvla.episodes import append_episodes
from la_reconvla.errors import UserError
from la_reconvla.report import compare
from la_reconvla.storage import write_json
from la_reconvla.study.heldout import write_held_out
from la_reconvla.study.results import read_results, results_of


def write(folder: Path, rates: dict[str, float], study: Study, pull: float = 0.5) -> Path:
    """A study of C1, C4 or R1 at these rates, with the records that its results are made of."""
    arms = []
    for arm in (C1, C4, R1):
        if arm.id not in rates:
            continue
        rolled, seen = episodes(rates[arm.id], (0, 1)), frames(pull, 0.1, (0, 1), draw=int(100 * pull))
        arms.append((Arm.of(arm), Evidence(rolled, seen)))
        for seed in (0, 1):
            cell = folder / arm.id / f"seed{seed}"
            append_episodes(cell, [r for r in rolled if r.label.seed == seed])
            write_held_out(cell, HeldOut("", {"true": tuple(r for r in seen if r.seed == seed)}))
    floors = [FloorEvidence("blind_replay", None, episodes(0.05, (None,)))]
    write_json(folder / "results.json", build(study, arms, floors))
    return folder


FIRST = Study(preset="quick", data_hash="aa", settings={"seeds": [0, 1], "config": {"train": {"steps": 300}}})
SECOND = replace(FIRST, settings={"seeds": [0, 1], "config": {"train": {"steps": 600}}, "shift": "<4>"})


@pytest.fixture
def studies(tmp_path: Path) -> tuple[Path, Path]:
    one = write(tmp_path / "one", {"C1": 0.4, "C4": 0.5}, FIRST)
    return one, write(tmp_path / "two", {"C1": 0.4, "C4": 0.75, "R1": 0.6}, SECOND, pull=0.7)


def lines(first: Path, second: Path) -> dict[tuple[str, str], compare.Line]:
    a, b = (read_results(folder / "results.json") for folder in (first, second))
    return {(line.arm, line.metric): line for line in compare.lines(a, b, first, second)}


def test_shared_starts_are_paired(studies: tuple[Path, Path]) -> None:
    found = lines(*studies)
    ours, theirs = ({(r.label.seed, r.start.id): r.success for r in episodes(rate, (0, 1))} for rate in (0.5, 0.75))
    difference = 100 * np.mean([float(ours[key]) - float(theirs[key]) for key in ours])
    line = found["C4", "success"]
    assert line.difference.startswith(f"{difference:+.1f} points".replace("-", "−"))
    assert line.paired == "paired, 72 pairs"
    assert found["C1", "success"].difference.startswith("+0.0 points")
    for metric in ("AOS", "action error"):
        assert found["C4", metric].paired == "paired, 12 scenes"


def test_what_only_one_study_has_is_shown_and_not_compared(studies: tuple[Path, Path]) -> None:
    line = lines(*studies)["R1", "success"]
    assert line.difference == "–"
    assert " of 72 (" in line.second
    assert not line.paired.startswith(("paired", "unpaired"))


def test_missing_or_foreign_records_are_not_paired(studies: tuple[Path, Path]) -> None:
    first, second = studies
    append_episodes(second / "C1/seed0", [episode(0, 0, 99, True)])
    (second / "C4/seed1/episodes.jsonl").unlink()
    found = lines(first, second)
    for arm in ("C1", "C4"):
        assert found[arm, "success"].paired.startswith("unpaired")
        assert "points" in found[arm, "success"].difference
    other = write(second.parent / "other", {"C4": 0.5}, replace(FIRST, data_hash="bb"))
    found = lines(first, other)
    assert found["C4", "AOS"].paired.startswith("unpaired")
    assert found["C4", "success"].paired == "paired, 72 pairs"  # a start does not depend on the demonstrations


def test_unpaired_intervals_are_newcombes() -> None:
    """Newcombe 1998, table II, method 10: 56 of 70 against 48 of 80 is 0.2 with 0.0524 to 0.3339."""

    def rate(successes: int, episodes: int) -> Rate:
        interval = wilson(successes, episodes)
        return Rate(successes / episodes, interval.low, interval.high, successes, episodes)

    assert compare.unpaired(rate(56, 70), rate(48, 80)) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)
    d, low, high = compare.unpaired(rate(48, 80), rate(56, 70))
    assert (d, low, high) == pytest.approx((-0.2, -0.3339, -0.0524), abs=5e-5)


def test_settings_that_differ_are_named() -> None:
    a, b = (compare.settings(Results(2, study, ())) for study in (FIRST, SECOND))
    assert list(compare.differences(a, b)) == [
        ("settings.config.train.steps", "300", "600"),
        ("settings.shift", "not recorded", "<4>"),
    ]
    assert list(compare.differences(a, a)) == []


def test_the_page_holds_it_all_and_loads_nothing(studies: tuple[Path, Path], tmp_path: Path) -> None:
    path = compare.write_comparison(*studies)
    assert path == studies[0] / "comparison.html"
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert page.addresses == []
    assert "http" not in text.replace("http-equiv", "")
    for said in ("paired, 72 pairs", "blind replay", "&lt;4&gt;", "has no R1", "first minus second"):
        assert said in text
    elsewhere = compare.write_comparison(*studies, out=tmp_path / "pages/both.html")
    assert elsewhere.read_text(encoding="utf-8") == text


def test_what_cannot_be_compared_is_refused(studies: tuple[Path, Path], tmp_path: Path) -> None:
    first, second = studies
    for arguments, message in (
        ((first, tmp_path / "nowhere"), "nowhere is no study: make one there with `la-reconvla study run quick"),
        ((first, first), "are one folder"),
        ((first, second, tmp_path / "page.pdf"), "ends in .html"),
    ):
        with pytest.raises(UserError, match=message):
            compare.write_comparison(*arguments)
    assert not (first / "comparison.html").exists()


def test_a_study_that_has_no_results_yet_names_its_own_command(tmp_path: Path) -> None:
    command = "la-reconvla study run quick --seeds 0 1"
    facts = {
        "config": {},
        "versions": {},
        "precision": "",
        "started": "",
        "commits": [],
        "hardware": {},
        "hypotheses": "",
        "hypotheses_hash": "",
    }
    write_json(tmp_path / "study" / layout.STUDY, {"schema": layout.SCHEMA, **facts, "command": command})
    with pytest.raises(UserError, match=f"has no results yet: finish it with `{command}`"):
        results_of(tmp_path / "study")
