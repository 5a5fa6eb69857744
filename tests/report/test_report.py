"""The report of a drawn study: complete, self-contained, true to its results; and the figures in it."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import itertools
import json
import re
import subprocess
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args
from xml.etree import ElementTree

import imageio_ffmpeg
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from test_results import GRID, SAID, channelled, episodes, frames, study_results
from tiny_films import write_films

from la_reconvla import drawing as figures
from la_reconvla.analysis.build import build
from la_reconvla.analysis.comparisons import Comparison, Hypothesis
from la_reconvla.analysis.decisions import Verdict
from la_reconvla.analysis.declaration import BEFORE, CHECKS, DECLARED, Declaration
from la_reconvla.analysis.evidence import Evidence
from la_reconvla.analysis.measures import (
    Counterfactual,
    Effect,
    Following,
    GroundingMeans,
    Leak,
    MapKind,
    MapPart,
    MapPhase,
    MapRow,
    Measure,
    Power,
    Rate,
    Watched,
)
from la_reconvla.analysis.power import planned
from la_reconvla.analysis.results import (
    Arm,
    ConditionResult,
    OtherStarts,
    Pairing,
    Picture,
    Results,
    Study,
    Timeline,
)
from la_reconvla.conditions import C1, C4
from la_reconvla.episodes import append_episodes
from la_reconvla.errors import UserError
from la_reconvla.method.reconstruction import Reconstruction
from la_reconvla.report import charts, evidence_tables, findings, next_step, phrases, story, summary, tables
from la_reconvla.report import write as report
from la_reconvla.report.next_step import same_power
from la_reconvla.sim.track import Track
from la_reconvla.storage import write_json
from la_reconvla.study.films import shown_over
from la_reconvla.study.results import read_results

STORY = ["episodes", "side-by-side", "asked", "verdicts", "findings", "next", "limits"]
SECTIONS = [
    *STORY, "arms", "success", "comparison", "grid", "stages", "action-error", "counterfactual", "elsewhere",
    "attention", "causal", "curves", "timeline", "maps", "reconstructions", "videos", "power", "leakage", "cost",
    "facts", "hypotheses",
]  # fmt: skip
STUDY = Study(
    preset="quick",
    suite="libero_spatial",
    placement="wide",
    command="la-reconvla ablate --preset quick --seeds 0 1 2 <script>alert(1)</script>",
    commit="0123abc",
    data_hash="sha256:55aa",
    started="2026-01-01T10:00:00",
    finished="2026-01-01T10:14:10",
    tasks=SAID,
    versions={"la-reconvla": "0.1.0", "torch": "2.6.0", "mujoco": "3.3.0"},
    hardware={"processor": "2 cores", "memory": "24 GiB"},
    wall_seconds={"collect": 200.0, "train": 400.4, "evaluate": 3805.0},
    pairing=(Pairing(0, ("C1", "C2", "C4"), "aaaa", "bbbb", "cccc"),),
    settings={"patch_grid": "7 x 7", "masked": 13, "config": {"train": {"steps": 300}}},
    limits=("The policies are small and trained from scratch.",),
    energy_joules=1.8e6,
)
LOSS = Comparison(
    "C4", "R1", "tsr", -0.123, -0.214, -0.031, p=0.02, p_holm=None, n=36, a_mean=0.1, b_mean=0.223, seeds=3,
    kind="loss", suite="libero_object", a_home=0.5, b_home=0.6,
)  # fmt: skip
STEPS = (0, 10, 20, 30)
PHASES = ("reach", "reach", "carry", "place")


def scene(number: int, size: int = 112) -> np.ndarray:
    """A drawn table with a dark bowl and a white plate."""
    y, x = np.mgrid[:size, :size] / size
    image = np.full((size, size, 3), (176, 150, 120), dtype=np.uint8)
    for (cx, cy, r), colour in (
        ((0.3 + 0.1 * (number % 4), 0.45, 0.10), (30, 30, 35)),
        ((0.7, 0.65, 0.14), (235, 235, 235)),
    ):
        image[(x - cx) ** 2 + (y - cy) ** 2 < r * r] = colour
    return image


def evidence_of(arm: ConditionResult, number: int) -> ConditionResult:
    """The arm with all that is measured beside success, every number its own."""

    def means(value: float) -> GroundingMeans:
        return GroundingMeans(frames=80, excluded=3, aos=value, auroc=value + 0.3, entropy=0.9)

    maps = [
        MapRow(part, phase, kind, means(0.2 + number / 10 + i / 1000))
        for i, (part, phase, kind) in enumerate(
            itertools.product(get_args(MapPart), get_args(MapPhase), get_args(MapKind))
        )
    ]
    hidden = {"target": 0.31, "distractor": 0.12, "destination": 0.21, "control": 0.1}
    shifts = {what: Measure(shift + number / 100, shift - 0.05, shift + 0.05, 12) for what, shift in hidden.items()}
    causal = [
        Effect(what, shift, None if what == "control" else Measure(shift.mean - 0.1, 0.01, 0.4, 12))  # type: ignore[arg-type]
        for what, shift in shifts.items()
    ]
    watched = tuple(
        Watched(step, 0.2 + step / 2000 + number / 50, 0.11, None if step == 0 else 0.3 - step / 2000, 0.95)
        for step in (0, 100, 200, 300)
    )
    return replace(
        arm,
        cells=tuple(replace(c, watched=watched, train={**c.train, "samples_per_second": 40.0}) for c in arm.cells),
        maps=tuple(maps),
        causal=tuple(causal),
        counterfactual=Counterfactual(20, 21 + number, 9, 1, 9 - number, 6, Rate(0.7, 0.52, 0.83, 21, 30)),
        following=Following(Rate(0.41, 0.24, 0.59, 9, 22), None, Rate(0.7, 0.52, 0.83, 21, 30)),
    )


def with_evidence(results: Results) -> Results:
    """A study in which everything was measured that the schema knows."""
    rate = Rate(0.25, 0.1, 0.5, 3, 12)
    places = {"suite": "libero_object", "change": "lan"}
    said = {"suite": "libero_object_paraphrase", "change": "paraphrase"}
    return replace(
        results,
        conditions=tuple(evidence_of(arm, number) for number, arm in enumerate(results.conditions)),
        elsewhere=(
            OtherStarts("official", "C4", rate, condition="C4"),
            OtherStarts("official", "C4 grey_image", Rate(0.0, 0.0, 0.3, 0, 9), condition="C4", floor="grey_image"),
            OtherStarts(
                "official", "C4", Rate(0.5, 0.2, 0.8, 6, 12), condition="C4", following=Following(rate), **places
            ),
            OtherStarts("official", "C4", rate, condition="C4", wordings={"verb": Rate(0.75, 0.3, 0.95, 3, 4)}, **said),
        ),
        comparisons=(*results.comparisons, LOSS),
        hypotheses=tuple(replace(h, comparisons=(LOSS.key,)) if h.id == "H4" else h for h in results.hypotheses),
        leakage=(Leak("initial states", 60, 24, 0, "none"), Leak("instructions", 3, 3, 3, "by design", "asked alike")),
        power=(Power(0.05, 0.475, 2304, 108, 0.07, 0.1, 64),),
    )


def draw_timelines(folder: Path, results: Results) -> tuple[Timeline, ...]:
    """One drawn episode under every arm: each picture differs from all others."""
    (folder / "maps/timeline").mkdir(parents=True)

    def save(name: str, tint: int) -> tuple[str, ...]:
        paths = tuple(f"maps/timeline/{name}_{step}.png" for step in STEPS)
        for path, step in zip(paths, STEPS, strict=True):
            picture = scene(step // 10)
            picture[:20, :20] = (tint, step, 90)
            (folder / path).write_bytes(figures.small_png(picture, 80))
        return paths

    frames = save("frame", 0)
    return tuple(
        Timeline(
            c.id, "one_demo.hdf5/demo_3", STUDY.tasks["1"], STEPS, PHASES, save(f"{c.id}_attention", 20 * i + 20),
            save(f"{c.id}_reconstruction", 20 * i + 30) if c.reconstructor else (), frames,
        )
        for i, c in enumerate(results.conditions)
    )  # fmt: skip


def write_study(folder: Path, results: Results) -> Path:
    """A run folder as an ablation leaves it: results, curves, pictures, an episode step by step, videos."""
    rng = np.random.default_rng(0)
    names = [c.id for c in results.conditions]
    images, frames = np.stack([scene(i) for i in range(3)]), 3
    instructions = list(STUDY.tasks.values())[:frames]
    maps = {name: rng.random((frames, 49)) ** (6 if name == "C4" else 2) for name in names}
    masks = {name: scores >= np.sort(scores, 1)[:, [-13]] for name, scores in maps.items() if name != "C1"}
    (folder / "maps").mkdir(parents=True)
    (folder / "maps/attention.png").write_bytes(figures.attention_grid(images, instructions, maps, GRID, masks))
    blurred = (images * 0.8 + 20).astype(np.uint8)
    strip = figures.reconstruction_strip(images, masks["C4"], blurred, GRID, instructions, None)
    (folder / "maps/reconstruction.png").write_bytes(strip)
    timelines = draw_timelines(folder, results)
    conditions = []
    for condition in results.conditions:
        cells = []
        for cell in condition.cells:
            name = f"{condition.id}/seed{cell.seed}/metrics.jsonl"
            (folder / name).parent.mkdir(parents=True)
            lines = [
                {"step": s, "action_loss": 3 * np.exp(-s / 100) + 0.1 * cell.seed + 1}
                | ({"held_out_action_loss": 3 * np.exp(-s / 100) + 1.4} if s % 60 == 0 else {})
                | ({"reconstruction_loss": 0.05 + 0.1 * np.exp(-s / 50)} if condition.reconstructor else {})
                for s in range(0, 301, 20)
            ]
            (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
            cells.append(replace(cell, metrics=name))
        conditions.append(replace(condition, cells=tuple(cells)))
    full = replace(
        results,
        study=STUDY,
        conditions=tuple(conditions),
        pictures=(
            Picture("maps/attention.png", "attention", "Three held-out frames, seed 0"),
            Picture("maps/reconstruction.png", "reconstruction", "C4, seed 0"),
        ),
        videos=tuple(write_films(folder)),
        timelines=timelines,
    )
    write_json(folder / "results.json", full)
    return folder


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_study(tmp_path_factory.mktemp("runs") / "study", with_evidence(study_results()))
    report.write_report(folder)
    return folder


class Page(HTMLParser):
    """What a reader and a browser find in a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.sections: list[str] = []
        self.images_without_alt = self.unnamed = 0
        self.tags: list[str] = []
        self.open: list[str] = []
        self.texts: dict[str, str] = {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        if tag not in ("meta", "img", "source", "br", "link", "input"):
            self.open.append(tag)
        self.addresses += [
            values[k] or "" for k in ("src", "href", "srcset", "poster", "data", "action") if k in values
        ]
        if tag == "section":
            self.sections.append(values["id"] or "")
        self.unnamed += tag in ("video", "svg", "input") and not values.get("aria-label")
        self.images_without_alt += tag == "img" and not values.get("alt")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts[self.open[-1]] = self.texts.get(self.open[-1], "") + data


def page(folder: Path) -> tuple[Page, str]:
    text = (folder / "report.html").read_text(encoding="utf-8")
    return Page(text), text


def test_the_page_is_whole_and_holds_everything_itself(study: Path) -> None:
    found, text = page(study)
    assert found.open == []
    assert found.sections == SECTIONS
    assert found.images_without_alt == 0
    assert found.unnamed == 0
    assert all(a.startswith(("data:", "#")) for a in found.addresses)
    assert {a[1:] for a in found.addresses if a.startswith("#")} <= set(SECTIONS)
    assert "http" not in text.replace("http-equiv", "")
    assert "url(" not in text
    assert "@import" not in text
    assert len(text) < 15_000_000


def test_the_first_line_is_the_verdict_with_its_numbers_in_twenty_words(study: Path) -> None:
    found, _ = page(study)
    results = read_results(study / "results.json")
    comparison, judged = results.comparison("C4", "C2", "tsr"), results.hypothesis("C4>C2")
    assert comparison is not None
    assert comparison.agreement is not None
    assert judged is not None
    line = found.texts["h1"]
    assert line.startswith(judged.verdict.capitalize() + ":")
    table = comparison.agreement
    numbers = [float(n) for n in re.findall(r"[+−]?\d+(?:\.\d+)?(?![\w)])", line.replace("−", "-"))]
    assert numbers == [table.both + table.only_a, table.n, table.both + table.only_b]
    assert len(line.split()) <= 20
    assert not re.search(r"\b[A-Z][0-9A-Z]+\b", line), "no code and no acronym"
    assert phrases.direction(comparison, judged) in phrases.reason(results)
    assert found.tags.index("h1") < min(found.tags.index(tag) for tag in ("p", "table", "h2"))


def test_every_number_of_the_tables_is_that_of_the_results(study: Path) -> None:
    _, text = page(study)
    results = read_results(study / "results.json")
    for condition in results.conditions:
        assert condition.tsr is not None
        assert condition.aos is not None
        assert f"{condition.tsr.successes} / {condition.tsr.episodes}" in text
        assert f"{condition.aos.chance:.3f}" in text
        assert f"{condition.aos.ceiling:.3f}" in text
    for hypothesis in results.hypotheses:
        assert f'<span class="word {hypothesis.verdict}">' in text
    for fact in (
        "0123abc",
        "sha256:55aa",
        "mujoco 3.3.0",
        "1 h 3 min",
        "6 min 40 s",
        "trained from scratch",
        '"steps": 300',
    ):
        assert fact in text


def test_stages_are_compared_and_marked_as_exploratory(study: Path) -> None:
    _, text = page(study)
    stages = text[text.index('<section id="stages">') : text.index('<section id="action-error">')]
    results = read_results(study / "results.json")
    for other in ("C2", "C1"):
        lifted = results.comparison("C4", other, "lifted")
        distance = results.comparison("C4", other, "smallest_distance")
        assert lifted is not None
        assert distance is not None
        assert f"<td>{other}</td><td>lifted</td>" in stages
        assert f"{tables.points(lifted.difference)} points" in stages
        assert f"{tables.number(100 * distance.difference, 1, True)} cm" in stages
    floors = text[text.index("Each arm minus its floors") : text.index('<section id="comparison">')]
    assert "<td>C2</td>" not in floors
    assert "<td>no image</td>" in floors


def section(text: str, first: str, after: str) -> str:
    return text[text.index(f'<section id="{first}"') : text.index(f'<section id="{after}"')]


def test_stages_stand_beside_those_of_floors_and_references(study: Path) -> None:
    """Success is rare in small studies; what is left of the closed loop needs its floors too."""
    results = read_results(study / "results.json")
    _, text = page(study)
    html, markdown = section(text, "stages", "action-error"), (study / "tables.md").read_text(encoding="utf-8")
    markdown = markdown[markdown.index("## How far episodes got") : markdown.index("## Action error")]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(summary.terminal_summary(results))
    terminal = console.export_text()
    rolled = [f for f in results.floors if f.tsr]
    assert {f.id for f in rolled} == {"blind_replay", "grey_image", "no_image"}
    for name, shown, stages in (
        *((f"floor: {figures.readable(f.id)} {f.condition or ''}".strip(), f.id, f.stages) for f in rolled),
        *((f"reference: {r.id}", r.id, r.stages) for r in results.references),
    ):
        assert stages is not None
        lifted = f"{100 * stages.lifted:.0f} %"
        assert any(line.startswith(f"| {name} |") and lifted in line for line in markdown.splitlines()), name
        (line,) = [line for line in terminal.splitlines() if f"│ {name} " in line]
        count, episodes = map(int, line.split("│")[4].split("/"))
        assert f"{100 * count / episodes:.0f} %" == lifted, name
        assert any(figures.readable(shown) in line and lifted in line for line in html.splitlines()), name


def test_the_number_of_scenes_stands_beside_every_interval_of_held_out_frames(study: Path) -> None:
    results = read_results(study / "results.json")
    _, text = page(study)
    errors, attention = section(text, "action-error", "counterfactual"), section(text, "attention", "causal")
    for part in (errors, attention):
        intervals = re.findall(r"[\d.]+ to [+−]?[\d.]+[^<;]*", part.replace("top 25 %", ""))
        assert len(intervals) >= 3
        assert all("n = 12" in interval for interval in intervals), intervals
    tabled = tables.error_table(results).markdown().splitlines()[4:]
    assert all(line.count("n = 12") == line.count(" to ") > 0 for line in tabled)
    header, *rows = (line.split(" | ") for line in tables.overlap_table(results).markdown().splitlines()[2:])
    assert {row[header.index("n")] for row in rows[1:]} == {"12"}


@pytest.mark.parametrize(("kept", "said"), [(2, True), (12, False)])
def test_few_scenes_are_said_in_words(kept: int, said: bool) -> None:
    frames_of = {record.scene for record in frames(0, 0.1)}
    few = sorted(frames_of)[:kept]
    shown = [record for record in frames(0, 0.1) if record.scene in few]
    results = build(Study(preset="quick"), [(Arm.of(C1), Evidence(frames=shown))])
    assert any(f"n = {kept} " in sentence for sentence in report.limits(results)) == said


def test_the_tables_as_text_hold_what_the_page_says_of_attention(study: Path) -> None:
    results = read_results(study / "results.json")
    header, _, *rows = (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in tables.overlap_table(results).markdown().splitlines()[2:]
    )
    at = header.index("AOS, k = g")
    assert header[at + 1] == "chance"
    for condition, row in zip(results.conditions, rows, strict=True):
        means = condition.grounding
        assert means is not None
        assert row[at : at + 2] == [f"{means.aos_g:.3f}", f"{means.aos_g_chance:.3f}"]
        assert row[header.index("mass")] == f"{means.mass:.3f}"


def test_a_lambda_that_changes_is_shown_by_its_name_and_not_as_its_last_value(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Annealed:
        label = "annealed"

        def __call__(self, progress: float) -> float:
            return 1 - progress

    mine = replace(C4, id="mine", reconstruction=Reconstruction(weight=Annealed()))
    arms = [(Arm.of(arm), Evidence(frames=frames(1.0, 0.1))) for arm in (C4, mine)]
    write_json(tmp_path / "results.json", build(Study(preset="quick"), arms))
    report.write_report(tmp_path)
    _, text = page(tmp_path)
    rows = {id: re.search(rf"<tr><th>{id}<small>.*?</tr>", text) for id in ("C4", "mine")}
    assert rows["C4"] is not None
    assert rows["mine"] is not None
    assert '<td class="n">0.5</td>' in rows["C4"].group()
    assert '<td class="n">annealed</td>' in rows["mine"].group()


def test_a_fallback_of_the_attention_is_never_silent(tmp_path: Path) -> None:
    words = frames(1.0, 0.1)
    fallback = channelled(words, "image_self_attention")
    arms = [(Arm.of(C1), Evidence(frames=words)), (Arm.of(C4), Evidence(frames=fallback))]
    write_json(tmp_path / "results.json", build(Study(preset="quick"), arms))
    report.write_report(tmp_path)
    _, text = page(tmp_path)
    attention, limits = section(text, "attention", "causal"), section(text, "limits", "arms")
    assert "<th>C4 (image self attention)</th>" in attention
    assert "<th>C1</th>" in attention
    assert "</abbr>: image self attention" in limits
    assert "| C4 (image self attention) |" in (tmp_path / "tables.md").read_text(encoding="utf-8")
    write_json(tmp_path / "results.json", build(Study(preset="quick"), arms[:1]))
    report.write_report(tmp_path)
    assert "fallback" not in page(tmp_path)[1]


def test_every_verdict_shows_the_intervals_that_it_rests_on(study: Path) -> None:
    results = read_results(study / "results.json")
    _, text = page(study)
    cards = section(text, "verdicts", "findings").split("<article")[1:]
    asked = [h for h in results.hypotheses if h.comparisons and h.id not in CHECKS]
    assert [h.id for h in asked] == ["C4>C2", "H3", "H4"]
    shown = dict(zip((h.id for h in asked), cards, strict=True))
    assert [f'<span class="word {h.verdict}">' in shown[h.id] for h in asked] == [True] * 3
    assert "Not asked: as many successes as ReconVLA’s arm; speed." in cards[-1]
    for id, keys in {"C4>C2": [("C4", "C2", "tsr")], "H3": [("C4", "C2", "aos"), ("C4", "C1", "aos")]}.items():
        for key in keys:
            c = results.comparison(*key)
            assert c is not None
            ends = (c.low, c.high)
            said = map(tables.points, ends) if c.agreement else (tables.number(end, 3, True) for end in ends)
            assert " to ".join(said) in shown[id]
    assert [results.hypothesis(id).comparisons for id in ("H2", "H4")] == [(), (LOSS.key,)]
    assert [shown[id].count("<svg") for id in ("C4>C2", "H3", "H4")] == [1, 2, 1]
    ends = f"{tables.points(LOSS.low)} to {tables.points(LOSS.high)}"
    for said in (phrases.compared(LOSS), LOSS.suite, f"{tables.points(LOSS.difference)} points", ends):
        assert said in shown["H4"]


def test_videos_of_one_start_stand_below_their_instruction(study: Path) -> None:
    assert "“lift it”" in section(page(study)[1], "side-by-side", "asked")


def test_the_mark_of_an_interval_is_drawn_to_scale(study: Path) -> None:
    """Zero is in the middle, and ends and estimate stand in the proportions of the numbers."""
    c = read_results(study / "results.json").comparison("C4", "C2", "tsr")
    assert c is not None
    svg = re.findall(r"<svg.*?</svg>", section(page(study)[1], "verdicts", "findings"), re.DOTALL)[0]
    low, high = map(float, re.findall(r'class="range" x1="(.*?)" x2="(.*?)"', svg)[0])
    value = float(re.findall(r'class="value" x1="(.*?)"', svg)[0])
    assert 'class="zero" x1="50"' in svg
    assert 0 <= low < high <= 100
    assert (low - 50) / (high - 50) == pytest.approx(c.low / c.high)
    assert (value - 50) / (high - 50) == pytest.approx(c.difference / c.high)


def test_a_direction_is_always_named() -> None:
    results = study_results()
    c = results.comparison("C4", "C2", "aos")
    assert c is not None
    said = {
        value: phrases.direction(
            replace(c, difference=value, low=-0.2, high=0.2), Hypothesis("H3", "inconclusive", (c.key,))
        )
        for value in (0.1, 0.0, -0.1)
    }
    assert "points the claimed way; 12 scenes" in said[0.1]
    assert "points the other way; 12 scenes, 3 trainings of each, cannot decide" in said[-0.1]
    assert "is zero" in said[0.0]
    clear = phrases.direction(replace(c, low=0.07, high=0.1, p=0.001, p_holm=0.01), Hypothesis("H3", "inconclusive"))
    assert "cannot decide" not in clear, "what does not decide is another comparison of the claim"
    there = replace(c, metric="elsewhere", kind="elsewhere", suite="libero_x", difference=-0.02, low=-0.04, high=0.0)
    said_there = phrases.direction(there, Hypothesis("H4", "supported", (there.key,)))
    assert "success on libero_x: −2.0 points" in said_there
    assert "the other way" not in said_there, "below by less than the margin is what was claimed"
    loss = phrases.direction(LOSS, Hypothesis("H4", "supported", (LOSS.key,)))
    assert "points the claimed way." in loss, "it loses less, as is claimed"


def test_checks_are_never_green(tmp_path: Path) -> None:
    """Whatever an earlier version wrote: p of four scenes, not corrected, supports nothing."""
    results = study_results()
    before = tuple(replace(h, verdict="supported", note="") if h.id in CHECKS else h for h in results.hypotheses)
    write_json(tmp_path / "results.json", replace(results, hypotheses=before))
    report.write_report(tmp_path)
    verdicts = section(page(tmp_path)[1], "verdicts", "findings")
    claims = [h for h in before if h.id not in CHECKS and h.comparisons and h.verdict == "supported"]
    assert verdicts.count('class="word supported"') == len(claims)
    assert verdicts.count("Check, no claim:") == 2
    assert "in 6 of 6 comparisons; n = 12 scenes." in verdicts
    alone = replace(results, hypotheses=tuple(h for h in before if h.id in CHECKS))
    assert phrases.leading(alone) is None


def test_each_episode_is_a_dot_in_the_order_of_starts(tmp_path: Path) -> None:
    results = study_results(seeds=(0, 1))
    records = episodes(0.5, (0, 1))  # those of C2
    for seed in (0, 1):
        shuffled = [replace(r, label=replace(r.label, condition="C2")) for r in records[::-1] if r.label.seed == seed]
        append_episodes(tmp_path / "C2" / f"seed{seed}", shuffled)
    rows = {row.arm.id: row for row in story.dots(results, tmp_path)}
    kinds = [
        "success" if r.success else "grasped" if r.reached.grasped else "reached" if r.reached.approached else "nothing"
        for r in records
    ]
    assert rows["C2"].by_start
    assert rows["C2"].outcomes == kinds
    assert len(set(kinds)) >= 3
    assert not rows["C4"].by_start
    for arm in results.conditions:
        assert arm.tsr is not None
        assert arm.stages is not None
        counts, n = rows[arm.id].counts, arm.tsr.episodes
        assert sum(counts.values()) == n
        assert counts["success"] == arm.tsr.successes
        assert n - counts["nothing"] == round(n * arm.stages.approached)  # type: ignore[operator]


@pytest.mark.parametrize(("last", "said"), [(0.2, "Training lowered"), (0.6, "Training raised")])
def test_what_training_does_to_attention_is_found(last: float, said: str) -> None:
    """An overlap that falls from 0.41 at step 0 is said in the story, with both numbers, arm by arm."""
    results = study_results()
    watched = tuple(Watched(step, aos, 0.11, None, 0.9) for step, aos in ((0, 0.41), (50, 0.9), (300, last)))
    arms = tuple(
        replace(arm, cells=tuple(replace(cell, watched=watched) for cell in arm.cells)) for arm in results.conditions
    )
    found = findings.findings(replace(results, conditions=arms))["curves"]
    assert found.startswith(f"{said} the overlap of attention with the target in 9 of 9 trainings")
    assert f"from step 0 to step 300: C1 0.410 to {last:.3f}" in found
    assert "chance is 0.11" in found
    assert "curves" not in findings.findings(results), "nothing was watched"


def test_the_evidence_around_success_stands_on_the_page_and_in_the_tables(study: Path) -> None:
    results = read_results(study / "results.json")
    _, text = page(study)
    markdown = (study / "tables.md").read_text(encoding="utf-8")
    for arm in results.conditions:
        for row in arm.maps:
            for kept in (section(text, "attention", "causal"), markdown):
                assert f"{row.means.aos:.3f}" in kept
        for effect in arm.causal:
            assert f"{effect.shift.mean:.3f} ({effect.shift.low:.3f} to" in section(text, "causal", "curves")
    first = section(text, "counterfactual", "elsewhere")
    assert "70 % (52 % to 83 %)" in first
    assert "9 / 22, 41 % (24 % to 59 %)" in first
    assert first.count("libero_object (LIBERO-PRO lan: changed wording), official states") == 1, "what it came to first"
    places = section(text, "elsewhere", "attention")
    titles = ["libero_spatial, official states<", "libero_object (LIBERO-PRO lan: changed wording), official states<"]
    assert places.index(titles[0]) < places.index(titles[1])
    assert "floor: grey image C4" in places
    assert places.count(">floors: ") == 2, "two places have no floors, and say so"
    assert "libero_object_paraphrase (our rewordings), official states<" in places
    assert "3 / 4, 75 % (30 % to 95 %)" in places
    assert "64 seeds, 2304 episodes" in section(text, "power", "leakage")
    assert "by design" in section(text, "leakage", "cost")
    cost = section(text, "cost", "facts")
    assert "0.500 kWh" in cost
    assert "1 min 2 s" in cost  # 61.5 s a seed
    assert "| C1 |" in markdown[markdown.index("## Training of each arm") :]


def test_a_changed_declaration_is_noticed() -> None:
    """A right hash, a wrong one, none, and no text are told apart; a wrong one shows the hash of the text."""
    right, wrong = (hashlib.sha256(text).hexdigest() for text in (b"a", b"b"))
    cases = {"right": ("a", right), "wrong": ("a", wrong), "no hash": ("a", ""), "no text": ("", "")}
    said = {
        case: report.declaration(Study(preset="quick", hypotheses=text, hypotheses_hash=hash))
        for case, (text, hash) in cases.items()
    }
    assert len(set(said.values())) == len(cases)
    assert [case for case in cases if right in said[case]] == ["wrong"]
    prefixed = Study(preset="quick", hypotheses="a", hypotheses_hash=f"sha256:{right}")
    assert report.declaration(prefixed) == said["right"]


def test_the_declaration_stands_on_the_page_with_its_hash(tmp_path: Path) -> None:
    text = DECLARED.text.replace("succeeds", "<succeeds>")
    study = replace(STUDY, hypotheses=text, hypotheses_hash=hashlib.sha256(text.encode()).hexdigest())
    write_json(tmp_path / "results.json", replace(bare(), study=study))
    report.write_report(tmp_path)
    _, page_text = page(tmp_path)
    shown = page_text[page_text.index('<section id="hypotheses"') :]
    assert f"<pre>{text}</pre>" in html.unescape(shown)
    assert "<succeeds>" not in shown
    assert study.hypotheses_hash in shown
    assert report.declaration(study) in shown


def test_the_script_is_the_only_one_that_the_page_allows(study: Path) -> None:
    found, text = page(study)
    assert found.tags.count("script") == 1
    script = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert (
        f"default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
        in text
    )


def test_what_the_arms_had_in_common_is_said(study: Path) -> None:
    for text in (page(study)[1], (study / "tables.md").read_text(encoding="utf-8")):
        for value in ("aaaa", "bbbb", "cccc", "C1, C2, C4"):
            assert value in text


def test_starts_have_limits_of_their_own() -> None:
    """Of wide ones that two share a scene, of official ones that little moves; recorded data have neither."""
    study = bare().study
    wide, official, recorded = (
        set(report.limits(replace(bare(), study=replace(study, placement=where, suite=suite))))
        for where, suite in (("wide", "libero_10"), ("official", "libero_10"), ("official", "recorded"))
    )
    (shared,), (blind,) = wide - official, official - wide
    assert "Two starts share each scene" in shared
    assert "blind replay" in blind
    assert not recorded & {shared, blind}


def test_text_from_the_results_is_escaped(study: Path) -> None:
    _, text = page(study)
    assert "&lt;script&gt;alert(1)" in text


def test_embedded_files_are_the_files(study: Path) -> None:
    found, _ = page(study)
    for name, kind in (("maps/attention.png", "image/png"), ("films/C4_0.mp4", "video/mp4")):
        encoded = base64.b64encode((study / name).read_bytes()).decode()
        assert f"data:{kind};base64,{encoded}" in found.addresses


def test_equal_results_give_an_equal_page(study: Path) -> None:
    before = (study / "report.html").read_bytes()
    report.write_report(study)
    assert (study / "report.html").read_bytes() == before


def bare() -> Results:
    full = study_results(seeds=(0,))
    conditions = tuple(
        replace(
            c, tsr=None, aos=None, stages=None, grounding=None, destination=None, aid=None, action_error=None, cells=()
        )
        for c in full.conditions
    )
    return Results(schema=2, study=Study(preset="smoke"), conditions=conditions)


def test_missing_parts_are_said(tmp_path: Path) -> None:
    write_json(tmp_path / "results.json", bare())
    report.write_report(tmp_path)
    found, text = page(tmp_path)
    assert found.sections == SECTIONS
    assert found.texts["h1"].startswith("Inconclusive:")
    for id, after in itertools.pairwise(SECTIONS):
        body = re.sub(r"<[^>]*>", "", section(text, id, after)).strip()
        assert len(body) > len(id) + 10, f"the section {id} says nothing of what is missing"
    assert "None" not in text


def test_one_seed_is_said_in_the_first_lines(tmp_path: Path) -> None:
    write_json(tmp_path / "results.json", study_results(seeds=(0,)))
    report.write_report(tmp_path)
    found, text = page(tmp_path)
    assert found.texts["h1"].startswith("Inconclusive:")
    note = next(c.note for c in study_results(seeds=(0,)).comparisons if c.note)
    assert text.index(note) < text.index('<section id="asked"')


def test_lost_and_large_files_are_said(tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(b"0" * 3000)
    pictures = (Picture("maps/gone.png", "attention"), Picture("large.png", "reconstruction"))
    write_json(tmp_path / "results.json", replace(bare(), pictures=pictures))
    text = report.render(read_results(tmp_path / "results.json"), tmp_path, room=2000)
    assert all(picture.path in text for picture in pictures)
    assert "data:image/png" not in text
    shelf = report.Shelf(tmp_path, room=2000)
    gone, large = (shelf.file(picture.path) for picture in pictures)
    assert (gone.uri, large.uri) == (None, None)
    assert gone.why.removeprefix("maps/gone.png") != large.why.removeprefix("large.png")


def test_files_outside_of_the_study_are_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"x")
    folder = tmp_path / "study"
    write_json(folder / "results.json", replace(bare(), pictures=(Picture("../secret.png", "attention"),)))
    with pytest.raises(UserError, match="outside"):
        report.write_report(folder)
    assert not (folder / "report.html").exists()


def shown_in_80_columns(results: Results) -> list[str]:
    console = Console(width=80, record=True, file=io.StringIO())
    summary.print_summary(results, console)
    return console.export_text().splitlines()


def test_the_terminal_shows_the_same_verdict() -> None:
    plain = study_results()
    results = replace(plain, study=replace(plain.study, command="la-reconvla study run quick"))
    lines = shown_in_80_columns(results)
    assert max(len(line) for line in lines if not line.startswith("  la-reconvla")) <= 80
    assert "…" not in "".join(lines)
    assert phrases.headline(results) in " ".join(" ".join(lines).replace("│", " ").split())
    for c in results.conditions:
        assert c.tsr is not None
        (row,) = [line for line in lines if line.startswith(f"│ {c.id} ")]
        assert row.split()[-2] == f"{c.tsr.successes}/{c.tsr.episodes}"
    text = "\n".join(lines)
    step = next_step.next_step(results)
    assert step is not None
    assert lines[-len(step.lines) :] == step.lines, "the command in one line, and what next is the last of all"
    assert "floor: blind replay" in text
    assert "reference: expert" in text


@pytest.mark.parametrize("word", get_args(Verdict))
def test_the_first_line_says_where_nothing_is_decided(word: Verdict) -> None:
    results = study_results()
    told = tuple(replace(h, verdict=word) for h in results.hypotheses)
    line = phrases.headline(replace(results, hypotheses=told))
    assert line.startswith(word.capitalize())
    reason = phrases.reason(replace(results, hypotheses=told))
    assert ("points the claimed way; 108 episodes, 3 trainings of each, cannot decide" in reason) == (
        word not in ("supported", "refuted")
    )


def test_what_is_retained_stands_in_a_table_of_its_own(tmp_path: Path) -> None:
    share = replace(LOSS, kind="retained", metric="retained", difference=0.3, low=0.2, high=0.4, p_holm=0.04)
    there = replace(LOSS, kind="elsewhere", metric="elsewhere", difference=-0.02, low=-0.03, high=-0.01)
    results = study_results()
    study = replace(results.study, hypotheses=DECLARED.text)
    results = replace(results, study=study, comparisons=(*results.comparisons, share, there, LOSS))
    rows = tables.retained_table(results).rows
    assert [row[4] for row in rows] == ["+30.0 (+20.0 to +40.0)", "−2.0 (−3.0 to −1.0)"]
    assert [row[6] for row in rows] == ["0.040", "–"]
    assert [row[1] for row in tables.loss_table(results).rows] == [LOSS.suite]
    notes = [tables.loss_table(of).note for of in (results, study_results())]
    assert ["corrects" in note for note in notes] == [False, True]
    write_json(tmp_path / "results.json", results)
    report.write_report(tmp_path)
    for name in ("report.html", "tables.md"):
        assert "Success retained on other suites" in (tmp_path / name).read_text(encoding="utf-8")


def test_the_checks_say_what_is_wrong() -> None:
    results = study_results()
    assert summary.checks(results).startswith("expert 36/36; random 0/36; best floor 3/36; no leak found")
    leak = Leak("initial states", 10, 10, 2, "leak")
    assert "; training and evaluation share initial states; " in summary.checks(replace(results, leakage=(leak,)))
    began = replace(results, study=replace(results.study, pairing=()))
    assert summary.checks(began).endswith("whether arms began equal was not checked")


@pytest.mark.parametrize(
    ("command", "seeds", "more"),
    [
        ("study run quick", 1, "study run quick --seeds 0 1 2"),
        ("study run --seeds 0 --out x", 1, "study run --out x --seeds 0 1 2"),
        ("study run quick --seeds=0 --out=x", 1, "study run quick --out=x --seeds 0 1 2"),
        ("study run quick --seeds 0 1 2", 3, "study run quick --seeds 0 1 2 3 4 5"),
    ],
)
def test_what_would_decide_more_adds_seeds_to_the_same_study(command: str, seeds: int, more: str) -> None:
    results = study_results()
    arms = tuple(replace(arm, cells=arm.cells[:seeds]) for arm in results.conditions)
    study = replace(results.study, command=f"la-reconvla {command}")
    assert [cell.seed for cell in arms[0].cells] == list(range(seeds))
    step = next_step.next_step(replace(results, study=study, conditions=arms))
    assert step is not None
    assert step.command == f"la-reconvla {more}", "without power twice as many seeds"
    decided = tuple(replace(h, verdict="supported") for h in results.hypotheses)
    assert next_step.next_step(replace(results, hypotheses=decided)) is None


def test_a_head_that_knows_no_more_than_the_mean_picture_is_named() -> None:
    results = study_results()
    assert findings.findings(results).get("reconstructions") is None, "results of before say nothing of it"
    ends = {"C1": {}, "C2": {"held_out_reconstruction_loss": 0.3, "mean_picture_loss": 0.2}}
    ends["C4"] = {"held_out_reconstruction_loss": 0.1, "mean_picture_loss": 0.2}
    arms = [
        replace(c, cells=[replace(cell, train=cell.train | ends.get(c.id, {})) for cell in c.cells])
        for c in results.conditions
    ]
    said = findings.findings(results := replace(results, conditions=arms))["reconstructions"]
    assert "C2 1.50, C4 0.50. So C2 reconstruct no better than that picture" in said
    table = evidence_tables.cost_table(results)
    column = table.header.index("head's error / mean picture's")
    assert {row[0]: row[column] for row in table.rows}["C2"] == "1.50"
    for text in (said, summary.markdown(results)):
        assert "no better than that picture" in text


def test_what_next_is_what_power_says(tmp_path: Path) -> None:
    """Seeds and episodes are those of `planned`, time that of this study; page and terminal say the same."""
    results = study_results()
    power = planned(3, 3, 12, between_seeds=0.0)
    seconds = {"collection": 999.0, "training": 300.0, "rollouts": 600.0, "held-out frames": 60.0}
    study = replace(results.study, command="la-reconvla study run quick", wall_seconds=seconds)
    results = replace(results, study=study, power=power)
    row, step = next_step.aimed_at(results), next_step.next_step(results)
    assert row is not None
    assert step is not None
    assert row in power
    assert row.seeds is not None
    assert row.seeds > 3
    words = subprocess.run(["sh", "-c", f"echo {step.command}"], capture_output=True, text=True, check=True).stdout
    assert words.split("--seeds ")[1] == " ".join(map(str, range(row.seeds))) + "\n"
    assert len(step.command) < 200, "a reader copies it"
    assert f"{row.seeds} seeds, {row.seeds * 36} episodes per arm" in step.said
    assert next_step.time_to(results, row.seeds, 12) == pytest.approx((row.seeds - 3) / 3 * 960)
    assert next_step.time_to(results, 3, 24) == pytest.approx(600), "more starts take no training"
    filmed = replace(results, study=replace(study, wall_seconds={**seconds, "statistics and pictures": 50.0}))
    cells = [
        replace(c, cells=[replace(cell, train=cell.train | {"seconds": 301.0}) for cell in c.cells])
        for c in results.conditions
    ]
    trained = sum(301.0 for c in cells for _ in c.cells)
    slow = replace(results, conditions=cells, study=replace(study, hardware={"cores": 1}))
    assert next_step.time_to(slow, row.seeds, 12) is None, "300 seconds are not what these trainings took: records"
    enough = replace(study, hardware={"cores": 2}, wall_seconds={**seconds, "training": trained / 3})
    assert next_step.time_to(replace(slow, study=enough), row.seeds, 12) is not None
    tasks = len(results.study.tasks)
    assert next_step.time_to(filmed, 3, 24) == pytest.approx(600 + 50 * (24 / min(24, 12 * tasks) - 1))
    assert next_step.time_to(filmed, 3, 6) == pytest.approx(-300 + 50 * (18 / 24 - 1)), "three tasks"
    assert next_step.time_to(filmed, row.seeds, 12) == next_step.time_to(results, row.seeds, 12), "no more films"
    write_json(tmp_path / "results.json", results)
    report.write_report(tmp_path)
    box = html.unescape(section(page(tmp_path)[1], "next", "limits"))
    assert step.command in box
    assert step.said in box
    assert shown_in_80_columns(results)[-1] == step.said


def test_the_tables_as_text_hold_the_numbers_of_the_results(tmp_path: Path) -> None:
    results = study_results()
    write_json(tmp_path / "results.json", results)
    report.write_report(tmp_path)
    text = (tmp_path / "tables.md").read_text(encoding="utf-8")
    rows = {line.split(" | ")[0].removeprefix("| "): line.split(" | ")[1:] for line in text.splitlines()}
    for c in results.conditions:
        assert c.tsr is not None
        assert rows[f"{c.id}  {c.name}"][0] == f"{c.tsr.successes} / {c.tsr.episodes}"
    assert phrases.headline(results) in text
    assert results.study.command in text
    for hypothesis in results.hypotheses:
        assert rows[hypothesis.id][0] == hypothesis.verdict
    for table in text.split("## ")[1:]:
        lines = [line for line in table.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) <= 1, table


# ---------------------------------------------------------------- figures


@given(rows=st.integers(1, 9), columns=st.integers(1, 9), height=st.integers(9, 40), width=st.integers(9, 40))
def test_overlay_heats_the_patch_that_was_looked_at(rows: int, columns: int, height: int, width: int) -> None:
    """Also where the grid does not divide the image: the hottest pixels are exactly the patch of the highest score."""
    image = np.full((height, width, 3), 100, dtype=np.uint8)
    hot = (rows * columns) // 2
    saliency = np.zeros(rows * columns)
    saliency[hot] = 0.7
    found = figures.overlay(image, saliency, (rows, columns))
    assert found.shape == image.shape
    assert found.dtype == np.uint8
    r, c = np.mgrid[:height, :width]
    inside = (r * rows // height == hot // columns) & (c * columns // width == hot % columns)
    if rows * columns > 1:
        assert (found[inside].sum(-1).min() > found[~inside].sum(-1)).all()


def test_overlay_refuses_another_grid() -> None:
    with pytest.raises(UserError, match="grid"):
        figures.overlay(np.zeros((8, 8, 3), np.uint8), np.zeros(9), (2, 2))
    with pytest.raises(UserError, match="float"):
        figures.overlay(np.zeros((8, 8, 3)), np.zeros(4), (2, 2))  # type: ignore[arg-type]


def test_videos_play_and_keep_their_frames(tmp_path: Path) -> None:
    """Odd sides too; frames come back in order, up to compression."""
    film = [np.full((33, 47, 3), 20 * i, dtype=np.uint8) for i in range(10)]
    figures.write_video(tmp_path / "film.mp4", iter(film), fps=5)
    reader = imageio_ffmpeg.read_frames(str(tmp_path / "film.mp4"))
    facts = next(reader)
    assert facts["codec"] == "h264"
    assert facts["pix_fmt"].startswith("yuv420p")
    assert facts["fps"] == 5
    shown = [float(np.frombuffer(frame, np.uint8).mean()) for frame in reader]
    assert shown == pytest.approx([20 * i for i in range(10)], abs=4)


def test_a_film_shows_where_the_policy_had_last_looked() -> None:
    """Grey pictures on a grid of 2 x 2: the patch that got all of the attention is the lightest, in order."""
    grey = [np.full((32, 32, 3), 60, np.uint8) for _ in range(4)]
    track = Track(at=[0, 4, 8, 11], looks=[np.eye(4)[i] for i in range(3)], looked=[0, 3, 8])
    shown = [picture.reshape(2, 16, 2, 16, 3).mean((1, 3, 4)).ravel() for picture in shown_over(grey, track, (2, 2))]
    assert [int(patches.argmax()) for patches in shown] == [0, 1, 2, 2]
    assert all(patches.max() > np.sort(patches)[-2] + 50 for patches in shown)
    for bare in (shown_over(grey, track, None), shown_over(grey, Track(at=track.at), (2, 2))):
        assert np.array_equal(bare, grey)


def test_a_video_that_cannot_be_finished_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = [np.full((32, 32, 3), value, dtype=np.uint8) for value in (0, 120, 240)]
    monkeypatch.setattr(figures.imageio_ffmpeg, "count_frames_and_secs", lambda _: (2, 0.4))
    with pytest.raises(UserError, match="cut short; is the disk full"):
        figures.write_video(tmp_path / "film.mp4", frames)

    def dying(*_: object, **__: object) -> Any:
        yield
        raise OSError("[Errno 32] Broken pipe")

    monkeypatch.setattr(figures.imageio_ffmpeg, "write_frames", dying)
    with pytest.raises(UserError, match="Broken pipe"):
        figures.write_video(tmp_path / "film.mp4", frames)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "film", [[], [np.zeros((4, 4, 3))], [np.zeros((4, 4, 3), np.uint8), np.zeros((6, 4, 3), np.uint8)]]
)
def test_videos_of_nothing_are_refused(tmp_path: Path, film: list[np.ndarray]) -> None:
    with pytest.raises(UserError, match="at least one frame"):
        figures.write_video(tmp_path / "film.mp4", film)
    assert list(tmp_path.iterdir()) == []


def test_a_reconstruction_shows_predictions_only_under_the_mask() -> None:
    """The third picture is the original outside of the masked patches, whatever the decoder painted there."""
    image = np.zeros((1, 64, 64, 3), dtype=np.uint8)
    mask = np.zeros((1, 4), dtype=bool)
    mask[0, 3] = True
    red = np.full_like(image, (255, 0, 0))
    drawn = np.asarray(
        Image.open(io.BytesIO(figures.reconstruction_strip(image, mask, red, (2, 2), [""], None))).convert("RGB")
    )
    red_pixels = (drawn[..., 0] > 250) & (drawn[..., 1] < 5)
    black_pixels = drawn.sum(-1) < 5
    rows, columns = np.nonzero(red_pixels)
    assert red_pixels.sum() == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)  # one rectangle
    assert black_pixels.sum() / red_pixels.sum() == pytest.approx(4 + 3 + 3, rel=0.1)  # all, three and three quarters


def test_charts_are_readable_on_a_dark_page() -> None:
    light = charts.success_chart(study_results())
    assert light is not None
    dark = charts.for_dark_page(light).decode()
    used = set(re.findall(r"#[0-9a-f]{6}\b", dark))
    bright = {colour for colour in used if sum(bytes.fromhex(colour[1:])) > 3 * 0x40}
    assert used == bright  # no dark ink left
    assert len(used) >= 4


def test_unknown_files_are_not_embedded() -> None:
    with pytest.raises(UserError, match="cannot embed"):
        figures.data_uri(b"", ".pkl")


def test_success_on_other_starts_stands_apart(tmp_path: Path) -> None:
    other = OtherStarts("official", "C1 grey_image", Rate(0.25, 0.1, 0.5, 3, 12))
    write_json(tmp_path / "results.json", replace(bare(), elsewhere=(other,)))
    report.write_report(tmp_path)
    _, text = page(tmp_path)
    (table,) = tables.other_starts_tables(replace(bare(), elsewhere=(other,)))
    assert table.title in html.unescape(text)
    assert all(cell in html.unescape(section(text, "elsewhere", "attention")) for row in table.rows for cell in row)


def test_the_charts_are_had_as_files_for_both_kinds_of_page(study: Path, tmp_path: Path) -> None:
    files = report.write_figures(study, tmp_path / "figures")
    assert {"success.svg", "success-dark.svg", "stages.svg", "tasks-dark.svg"} <= {path.name for path in files}
    assert sorted(files) == sorted((tmp_path / "figures").iterdir())
    assert all(ElementTree.parse(path).getroot().tag.endswith("svg") for path in files)
    light, dark = ((tmp_path / "figures" / f"success{of}.svg").read_bytes() for of in ("", "-dark"))
    assert charts.INK.encode() in light
    assert charts.INK.encode() not in dark


@pytest.mark.parametrize("declared", [BEFORE, DECLARED], ids=["hull", "pooled"])
def test_the_page_names_the_calculator_that_gives_its_numbers(declared: Declaration) -> None:
    """`check power` with the quoted options gives the rows of the page, by the rule that the study declared."""
    results = study_results()
    ids = [c.id for c in results.conditions]
    arms = sum(id in declared.arms for id in ids) if declared.pooled else 2
    assert arms == (3 if declared.pooled else 2)
    rows = planned(3, 3, 12, arms=arms, between_seeds=0.07, shared=2, tests=declared.tests(ids))
    study = replace(STUDY, placement="wide", hypotheses=declared.text if declared.pooled else "")
    said = same_power(replace(results, study=study, power=rows))
    options = dict(zip(*[iter(said.removeprefix("la-reconvla check power ").split())] * 2, strict=True))
    of = {name.removeprefix("--").replace("-", "_"): float(v) if "." in v else int(v) for name, v in options.items()}
    assert planned(**of) == rows  # pyright: ignore[reportArgumentType]
