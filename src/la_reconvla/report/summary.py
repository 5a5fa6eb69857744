"""A study as text: ``tables.md`` and what the terminal shows."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.panel import Panel

from la_reconvla.analysis.results import Results
from la_reconvla.report.phrases import headline, leading, paired
from la_reconvla.report.tables import (
    comparison_table,
    error_table,
    exploratory_table,
    floor_table,
    grid_table,
    loss_table,
    other_starts_tables,
    overlap_table,
    stage_table,
    success_table,
    verdict_table,
)
from la_reconvla.text_table import TextTable, duration


def markdown(results: Results, further: Iterable[TextTable] = ()) -> str:
    """All of it as Markdown, with what ran, on what and how long, and then `further` tables."""
    s = results.study
    took = ", ".join(f"{part} {duration(seconds)}" for part, seconds in s.wall_seconds.items())
    facts = {
        "command": f"`{s.command}`",
        "commit": s.commit,
        "finished": s.finished,
        "setting": ", ".join(f"{key} {value}" for key, value in s.settings.items() if key != "config"),
        "machine": ", ".join(f"{key} {value}" for key, value in s.hardware.items()),
        "versions": ", ".join(f"{key} {value}" for key, value in s.versions.items()),
        "time": took,
        "action error": s.action_error_unit,
        "pairing": "; ".join(map(paired, s.pairing)) or "not checked",
        "declaration": f"SHA-256 {s.hypotheses_hash}" if s.hypotheses_hash else "no hash of it was kept",
        "intervals": "95 %; n, of held-out frames, is the number of different scenes",
    }
    parts = [f"# {s.preset}: {headline(results)}", "\n".join(f"- {key}: {value}" for key, value in facts.items())]
    makers = (
        success_table,
        floor_table,
        grid_table,
        stage_table,
        error_table,
        overlap_table,
        comparison_table,
        exploratory_table,
        verdict_table,
    )
    tables = [*(make(results) for make in makers), *other_starts_tables(results), loss_table(results), *further]
    return "\n\n".join([*parts, *(table.markdown() for table in tables if table.rows)]) + "\n"


def terminal_summary(results: Results) -> RenderableType:
    """The verdict with the tables of success, stages and attention overlap, for `rich` to print."""
    judged = leading(results)
    colour = {"supported": "green", "refuted": "red"}.get(judged.verdict if judged else "", "yellow")
    tables = (success_table(results), *other_starts_tables(results), stage_table(results), overlap_table(results))
    return Group(Panel(headline(results), border_style=colour), *(table.rich() for table in tables if table.rows))
