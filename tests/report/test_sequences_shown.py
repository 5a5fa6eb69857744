"""Average lengths of CALVIN's sequences in the report, in its tables as text and on the terminal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rich.console import Console
from test_results import study_results

from la_reconvla import layout
from la_reconvla.analysis.comparisons import Comparison
from la_reconvla.analysis.sequences import AverageLength, SequenceResults
from la_reconvla.report.summary import terminal_summary
from la_reconvla.report.tables import sequence_tables
from la_reconvla.report.write import write_report
from la_reconvla.storage import write_json
from la_reconvla.study.results import results_of


def test_average_lengths_and_their_differences_stand_everywhere(tmp_path: Path) -> None:
    lengths = {
        name: AverageLength(mean, mean - 0.25, mean + 0.25, (0.875, 0.5, 0.25, 0.125, 0.0625), 100, 80, 3)
        for name, mean in (("C1", 1.5), ("C4", 2.25), ("no-image", 0.5), ("random", 0.25))
    }
    pairs = (
        Comparison("C1", "C4", "average_length", -0.75, -1.0, -0.5, 0.02, 0.04, 300),
        Comparison("C4", "no-image", "average_length", 1.75, 1.5, 2.0, 0.0004, None, 300),
    )
    plain = study_results(seeds=(0,))
    results = replace(plain, sequences=SequenceResults(100, False, lengths, pairs))
    write_json(tmp_path / layout.RESULTS, results)
    assert results_of(tmp_path).sequences == results.sequences
    write_report(tmp_path)
    page, text = ((tmp_path / name).read_text() for name in (layout.REPORT, layout.TABLES))
    assert "| C4 | 2.25 | 2.00 to 2.50 | 87.5 % | 50.0 % | 25.0 % | 12.5 % | 6.2 % | 3 |" in text
    assert "| C1 - C4 | −0.75 (−1.00 to −0.50) | 0.020 | 0.040 | 300 |" in text
    assert "| C4 - no-image | +1.75 (+1.50 to +2.00) | < 0.001 | – | 300 |" in text
    section = page[page.index('<section id="sequences">') : page.index('<section id="success">')]
    assert "Subtasks done in a row, of five: none (C1) 1.50, words (C4) 2.25" in text
    for cell in ("2.25", "2.00 to 2.50", "87.5 %", "C1 - C4", "−0.75 (−1.00 to −0.50)", "&lt; 0.001", "No GPU"):
        assert cell in section
    assert '<a href="#sequences">' in page
    console = Console(width=120, record=True)
    console.print(terminal_summary(results))
    shown = console.export_text()
    assert "2.00 to 2.50" in shown
    assert "Differences of average length" in shown
    assert sequence_tables(plain) == []
