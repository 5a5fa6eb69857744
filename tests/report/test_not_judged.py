"""A study that only shows that everything runs gives numbers and no verdicts."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

from test_report import STUDY, page, shown_in_80_columns
from test_results import evidence

from la_reconvla.analysis.build import build
from la_reconvla.analysis.results import Arm
from la_reconvla.conditions import C1, C2, C4
from la_reconvla.report import write as report
from la_reconvla.storage import write_json
from la_reconvla.study.results import read_results


def test_a_study_that_is_not_judged_gives_no_verdict_anywhere(tmp_path: Path) -> None:
    arms = [(Arm.of(arm), evidence(rate, 0.0, 0.1, (0, 1))) for arm, rate in ((C1, 0.1), (C2, 0.1), (C4, 0.9))]
    study = replace(STUDY, preset="a name that says nothing", judged=False)
    judged, results = build(replace(study, judged=True), arms), build(study, arms)
    assert judged.hypotheses
    assert (results.hypotheses, results.comparisons) == ((), judged.comparisons), "numbers stay, words go"
    write_json(tmp_path / "results.json", results)
    report.write_report(tmp_path)
    _, html = page(tmp_path)
    markdown = (tmp_path / "tables.md").read_text(encoding="utf-8")
    terminal = "\n".join(shown_in_80_columns(results))
    said = "Not judged: this preset only shows that everything runs."
    assert f'<h1 id="verdict">{said}</h1>' in html
    assert markdown.startswith(f"# {study.preset}: {said}\n")
    assert said in terminal
    assert "For numbers that mean something:\n  la-reconvla study run quick" in re.sub(r" +\n", "\n", terminal)
    visible = html[html.index("</style>") :]
    for text in (visible, markdown, terminal):
        assert not re.search(r"\b(supported|refuted)\b", text.replace(study.hypotheses, ""))
    assert not re.search(r"\binconclusive\b", markdown + terminal)
    raw = json.loads((tmp_path / "results.json").read_text())
    assert (raw["study"].pop("judged"), raw["hypotheses"]) == (False, [])
    (tmp_path / "results.json").write_text(json.dumps(raw))
    assert read_results(tmp_path / "results.json").study.judged, "results of before are as they were"
